"""UNAS."""
