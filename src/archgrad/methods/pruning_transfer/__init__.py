"""Differentiable pruning for transfer."""
