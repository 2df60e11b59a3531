"""Several kinds of input: data, encoders, fusion."""
