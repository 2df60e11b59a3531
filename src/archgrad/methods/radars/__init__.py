"""RADARS."""

from archgrad.methods.radars.radars import RadarsTerms as RadarsTerms
