"""What the mind thinks with: the past, what is expected, what of a gain is chance, and what it costs."""
