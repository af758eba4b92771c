"""Heat files, and the files of other systems. Needs no torch."""
