"""The demo: real text, a small trained model, and both served over expert-parallel ranks."""
