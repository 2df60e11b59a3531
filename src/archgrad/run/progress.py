"""What a person sees of a run: a live display on a terminal, plain lines elsewhere, both on stderr."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Display

_LINE_SECONDS = 10.0
_FIRST_SECONDS = 1.0  # until the first line of a run: that it moves, and how fast
_REFRESH_SECONDS = 0.2
# Once a phase, when this many seconds have shown its pace and a longer time is left than the other.
_SURE_SECONDS, _LONG_SECONDS = 5.0, 60.0


class ProgressView:
    """Shows a phase, its step of n, the rate, the time that remains and the latest figures.

    `console` is where to show it (default: stderr); `enabled=False` shows nothing.
    """

    def __init__(self, *, enabled: bool = True, console: Console | None = None) -> None:
        self._enabled = enabled
        self._console = console or Console(stderr=True)
        self._display: Display | None = None
        self._task = TaskID(0)
        self._phase = ""
        self._total = 0
        self._first = self._step = 0
        self._began = self._shown = 0.0
        self._estimated = False
        self._figures = ""
        self._line_seconds = _FIRST_SECONDS

    def start(self, phase: str, *, total: int, done: int) -> None:
        """Begin a phase of `total` steps of which `done` were taken before."""
        self._phase, self._total, self._first, self._step = phase, total, done, done
        self._began = self._shown = time.monotonic()
        self._figures, self._estimated = "", False
        if not self._enabled or not self._console.is_terminal:
            return
        self._display = Display(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[update_schedule]}", markup=False),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._console,
            # Refreshing by hand keeps threads out of programs that fork data loaders.
            auto_refresh=False,
        )
        self._task = self._display.add_task(phase, total=total, completed=done, update_schedule="", figures="")
        self._display.start()

    def step(self, done: int) -> None:
        """Tell that `done` steps of the phase are taken."""
        self._step = done
        if not self._enabled:
            return
        if not self._estimated and time.monotonic() - self._began >= _SURE_SECONDS:
            self._estimate()
        wait = _REFRESH_SECONDS if self._display else self._line_seconds
        if time.monotonic() - self._shown >= wait:
            self._show()

    def figures(self, figures: Mapping[str, float]) -> None:
        """Take the latest figures; they are shown with the next step."""
        if self._enabled:
            self._figures = "  ".join(f"{name} {_short(value)}" for name, value in figures.items())

    def note(self, text: str) -> None:
        """Show one line at once."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Show the phase's last state and end it."""
        if not self._phase:
            return
        if self._enabled:
            self._show()
        if self._display is not None:
            self._display.stop()
            self._display = None
        self._phase = ""

    def _estimate(self) -> None:
        """Say how long the phase will take by the pace of its first steps."""
        self._estimated = True
        taken = self._step - self._first
        left = (self._total - self._step) * (time.monotonic() - self._began) / max(1, taken)
        if taken and left >= _LONG_SECONDS:
            self.note(f"{self._phase}: about {_clock(round(left))} for {self._total - self._step:,} more steps")

    def _show(self) -> None:
        self._shown, self._line_seconds = time.monotonic(), _LINE_SECONDS
        update_schedule = self._pace()
        if self._display is not None:
            self._display.update(
                self._task, completed=self._step, update_schedule=update_schedule, figures=self._figures
            )
            self._display.refresh()
            return
        parts = [f"{self._phase} {self._step}/{self._total}", update_schedule, self._figures]
        self.note("  ".join(part for part in parts if part))

    def _pace(self) -> str:
        """The rate and the time that remains, from the steps taken by this process."""
        taken, seconds = self._step - self._first, time.monotonic() - self._began
        if taken == 0 or seconds == 0:
            return ""
        rate = taken / seconds
        speed = f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"
        left = round((self._total - self._step) / rate)
        if left == 0:
            return speed
        return f"{speed}  {_clock(left)} left"


def _clock(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
