"""archgrad finds a neural network's architecture by gradient, under the limit that your device sets.

The public names stand in `__init__.pyi`, for this file and for type checkers alike. Each is imported when it is first
used, so that `import archgrad` does not load torch.
"""

import importlib.metadata

import lazy_loader

__version__ = importlib.metadata.version("archgrad")

_import_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
__all__.sort()


def __getattr__(name: str) -> object:
    if name not in __all__ and not name.startswith("_"):
        import difflib

        near = difflib.get_close_matches(name, __all__, n=3)
        meant = f" Did you mean {' or '.join(near)}?" if near else " The reference lists what there is."
        raise AttributeError(f"archgrad has no {name!r}.{meant}", name=name)
    return _import_name(name)
