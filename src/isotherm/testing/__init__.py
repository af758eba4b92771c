"""What Isotherm proves itself with, for those who build on it. Nothing is imported from here by the
rest of the package; each module is imported by its own name.
"""
