"""Control of systems that can be tried out: systems, costs, iLQR, and neural iLQR's model of the dynamics.

`archgrad` itself exports the method, `nnilqr`; this room exports what goes with it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
