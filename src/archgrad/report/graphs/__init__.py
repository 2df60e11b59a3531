"""Cells and backbones, drawn."""
