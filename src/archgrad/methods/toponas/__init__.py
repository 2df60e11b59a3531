"""TopoNAS."""

from archgrad.methods.toponas.toponas import ToponasTerms as ToponasTerms
