"""A placement from nothing."""
