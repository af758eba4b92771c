"""Thin adapters to inference engines, each imported only when asked for."""
