"""Policies, and how those of other packages are found."""
