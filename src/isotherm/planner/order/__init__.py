"""The order in which moves can be carried out."""
