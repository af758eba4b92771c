"""The files of each system: what is read, and what is written."""
