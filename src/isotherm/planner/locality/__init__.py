"""Placements and shares with which few (token, expert) pairs leave their node."""
