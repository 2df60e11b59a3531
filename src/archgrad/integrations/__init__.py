"""Thin adapters for the training loops of other libraries; each file needs the extra of its name."""
