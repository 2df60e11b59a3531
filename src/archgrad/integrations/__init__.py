"""Thin adapters for the training loops of other libraries; each export needs the extra of its library."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
