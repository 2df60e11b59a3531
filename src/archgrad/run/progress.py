"""What a person sees of a run: a live display on a terminal, plain lines elsewhere, both on stderr."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress as Display, TaskID, TextColumn

_LINE_SECONDS = 10.0
_FIRST_SECONDS = 1.0  # until the first line of a run: that it moves, and how fast
_REFRESH_SECONDS = 0.2
_BAR = 1000  # parts of the bar
_OF_EPOCH = ("valid_", "best_valid")
# Once a phase, when this many seconds have shown its pace and a longer time is left than the other.
_SURE_SECONDS, _LONG_SECONDS = 5.0, 60.0


class ProgressView:
    """Shows a phase, its step of n, the rate, the time that remains and the latest figures.

    `console` is where to show it (default: stderr); `enabled=False` shows nothing. Before `due_at`, by the monotonic
    clock, `step` has nothing new to show.
    """

    def __init__(self, *, enabled: bool = True, console: Console | None = None) -> None:
        self._enabled = enabled
        self._console = console or Console(stderr=True)
        self._display: Display | None = None
        self._task = TaskID(0)
        self._phase = ""
        self._total: int | None = None
        self._first = self._step = 0
        self._first_progress = self._progress = 0.0
        self._began = self._shown = 0.0
        self._paced = self._estimated = False
        self._figures = ""
        self._epoch: dict[str, float] = {}
        self._line_seconds = _FIRST_SECONDS
        self.due_at = math.inf

    def start(self, phase: str, *, total: int | None, done: int, progress: float = 0.0) -> None:
        """Begin a phase.

        Args:
            phase: its name.
            total: number of its steps; None where it ends by time.
            done: steps that were taken before.
            progress: used fraction of its budget, in [0, 1].
        """
        self._phase, self._total, self._first, self._step = phase, total, done, done
        self._first_progress = self._progress = progress
        self._began = self._shown = time.monotonic()
        self._figures, self._paced, self._estimated, self._epoch = "", False, False, {}
        self.due_at = self._began if self._enabled else math.inf
        if not self._enabled or not self._console.is_terminal:
            return
        self._display = Display(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[step]}", markup=False),
            TextColumn("{task.fields[pace]}", markup=False),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._console,
            # Refreshing by hand keeps threads out of programs that fork data loaders.
            auto_refresh=False,
        )
        self._task = self._display.add_task(
            phase, total=_BAR, completed=round(_BAR * progress), step=self._place(), pace="", figures=""
        )
        self._display.start()

    def step(self, done: int, *, progress: float) -> None:
        """Tell how many steps of the phase are taken, and which fraction of its budget is used."""
        self._step, self._progress = done, progress
        if not self._enabled:
            return
        now = time.monotonic()
        if not self._paced:  # the first step compiles and allocates: the pace is that of the others
            self._paced, self._first, self._first_progress, self._began = True, done, progress, now
        if not self._estimated and now - self._began >= _SURE_SECONDS:
            self._estimate(now)
        if now - self._shown >= (_REFRESH_SECONDS if self._display else self._line_seconds):
            self._show(now)
        self.due_at = self._shown + (_REFRESH_SECONDS if self._display else self._line_seconds)
        if not self._estimated:
            self.due_at = min(self.due_at, self._began + _SURE_SECONDS)

    def figures(self, figures: Mapping[str, float]) -> None:
        """Take the latest figures; they are shown with the next step, those of an epoch until the next epoch's."""
        if not self._enabled:
            return
        epoch = [name for name in figures if name.startswith(_OF_EPOCH)]
        if "best_valid" in epoch:  # the score, and the best so far
            self._epoch = {name: figures[name] for name in (epoch[0], "best_valid")}
        rest = {name: value for name, value in figures.items() if name not in epoch or not self._epoch}
        self._figures = "  ".join(f"{name} {_short(value)}" for name, value in (self._epoch | rest).items())

    def note(self, text: str) -> None:
        """Show one line at once."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Show the phase's last state and end it."""
        if not self._phase:
            return
        if self._enabled:
            self._show(time.monotonic())
        if self._display is not None:
            self._display.stop()
            self._display = None
        self._phase, self.due_at = "", math.inf

    def _estimate(self, now: float) -> None:
        """Say how long the phase will take by the pace of its first steps."""
        self._estimated = True
        left = self._seconds_left(now)
        if left is not None and left >= _LONG_SECONDS:
            more = f" for {self._total - self._step:,} more steps" if self._total is not None else ""
            self.note(f"{self._phase}: about {_clock(round(left))}{more}")

    def _show(self, now: float) -> None:
        self._shown, self._line_seconds = now, _LINE_SECONDS
        pace = self._pace(now)
        if self._display is not None:
            self._display.update(
                self._task,
                completed=round(_BAR * self._progress),
                step=self._place(),
                pace=pace,
                figures=self._figures,
            )
            self._display.refresh()
            return
        parts = [f"{self._phase} {self._place()}", pace, self._figures]
        self.note("  ".join(part for part in parts if part))

    def _place(self) -> str:
        return f"{self._step}/{self._total}" if self._total is not None else f"{self._step}"

    def _pace(self, now: float) -> str:
        """The rate and the time that remains, from the steps that this process took after its first."""
        taken, seconds = self._step - self._first, now - self._began
        if taken == 0 or seconds == 0:
            return ""
        rate = taken / seconds
        speed = f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"
        left = round(self._seconds_left(now) or 0.0)
        return f"{speed}  {_clock(left)} left" if left else speed

    def _seconds_left(self, now: float) -> float | None:
        """The time that the rest of the budget will take at this process's pace; None before its second step."""
        used, seconds = self._progress - self._first_progress, now - self._began
        return (1.0 - self._progress) * seconds / used if used > 0 else None


def _clock(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
