"""Imports that Ctrl-C ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While modules are imported, Ctrl-C ends the program with status 130 and one line.

    An exception would come out of the middle of somebody's import, as whatever that makes of it.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    os.write(2, b"Interrupted. Nothing was begun that could be resumed.\n")
    os._exit(128 + number)
