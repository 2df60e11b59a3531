"""DARTS-PRIME."""

from archgrad.methods.darts_prime.darts_prime import DartsPrimeTerms as DartsPrimeTerms
