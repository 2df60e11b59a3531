"""MONAS."""

from archgrad.methods.monas.monas import MonasTerms as MonasTerms
