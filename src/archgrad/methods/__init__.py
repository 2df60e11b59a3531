"""The published methods, one file or one folder each.

`archgrad` itself exports the methods; this room exports what goes with them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
