"""RADARS."""
