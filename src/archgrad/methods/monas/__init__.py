"""MONAS."""
