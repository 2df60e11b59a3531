"""Gates on a network that exists."""
