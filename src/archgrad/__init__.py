"""archgrad finds a neural network's architecture by gradient, under the limit that your device sets.

The public names stand in `__init__.pyi`, for this file and for type checkers alike. Each is imported when it is first
used, so that `import archgrad` does not load torch.
"""

import importlib.metadata

import lazy_loader

__version__ = importlib.metadata.version("archgrad")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
__all__.sort()
