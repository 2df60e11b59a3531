"""Random search over encoders of several inputs and their fusion, and its card of human intervention."""
