"""SIGINT, SIGTERM and SIGHUP as a request to stop at the next step, instead of anywhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any] | int | None


class Stopped(KeyboardInterrupt):
    """A signal stopped the run after its state was saved; running the same program again goes on from there.

    Attributes:
        signal: which one.
        exit_status: what the program should exit with: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.

    Example:
        >>> import signal, archgrad as ag
        >>> ag.Stopped("stopped by the scheduler", signal.SIGTERM).exit_status
        143
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = signal.Signals(number)
        self.exit_status = 128 + number


class SignalListener:
    """Between `start` and `stop`, notes the first signal; `requested` is its number, or 0."""

    def __init__(self) -> None:
        self.requested = 0
        self._handlers: dict[int, _Handler] = {}

    def start(self) -> None:
        """Take over the three, but a SIGHUP that is ignored (nohup); only in the main thread, as Python demands."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._handlers[number] = signal.signal(number, self._note)

    def stop(self) -> None:
        """Give the signals back to the handlers that they had."""
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested = self.requested or number
