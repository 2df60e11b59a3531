"""UNAS."""

from archgrad.methods.unas.objective import UnasTerms as UnasTerms
from archgrad.methods.unas.unas import adam_of_unas as adam_of_unas
