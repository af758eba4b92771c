"""What `isotherm bench` measures: each measurement in a file of its own, all that is compared in one run."""
