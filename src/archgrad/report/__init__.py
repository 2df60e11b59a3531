"""What a run came to: a table for the terminal and one self-contained HTML page, drawn from plain records."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
