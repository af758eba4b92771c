"""What an engine's dispatch makes of a placement."""
