"""Where a network may vary: choices, their relaxations, policies and estimators, and how to reach them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
