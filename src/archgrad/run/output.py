"""What a run writes and how often: settings, and the log that follows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from archgrad.errors import ConfigError, RunError
from archgrad.report.data.run_format import Record
from archgrad.run import validation
from archgrad.run.budget import Phase
from archgrad.run.history import History
from archgrad.run.progress import ProgressView

_LEAST, _RECORDS = 10, 1000
_RESERVED = frozenset({"phase", "step", "time"})


@dataclass(frozen=True)
class Output:
    """What a run writes and how often.

    Attributes:
        log_every: training steps are logged every so many steps, and the last one of each phase. None: every 10th,
            and in phases of more than 10,000 steps every (steps / 1000)th, so that records of a long run stay few.
            What comes once an epoch is always logged.
        checkpoint_seconds: time between two checkpoints; 0 saves at every step.
        tensorboard: also write for TensorBoard, into the run's folder.
        on_log: called with a copy of each record, in the first process: for experiment trackers.

    Raises:
        ConfigError: a value out of its range.

    Example:
        >>> import archgrad as ag
        >>> records = []
        >>> run = ag.Run(steps=20, output=ag.Output(log_every=1, on_log=records.append))
    """

    log_every: int | None = None
    checkpoint_seconds: float = 30.0
    tensorboard: bool = False
    on_log: Callable[[Record], object] | None = None

    def __post_init__(self) -> None:
        validation.count("log_every", self.log_every)
        validation.seconds("checkpoint_seconds", self.checkpoint_seconds, zero=True)
        if self.on_log is not None and not callable(self.on_log):
            raise ConfigError(f"on_log={self.on_log!r} was given. Allowed is a function of one record, or None.")

    def interval(self, steps: int) -> int:
        """Steps from one that is logged to the next, in a phase of so many."""
        return self.log_every or max(_LEAST, steps // _RECORDS)


class Log:
    """Records, notes and what is shown of them.

    Attributes:
        notes: warnings that the user should read.
        history: the records.
        view: what is shown on the terminal.
    """

    def __init__(self, output: Output) -> None:
        self.notes: list[str] = []
        self.history = History(None, tensorboard=False)
        self.view = ProgressView(enabled=False)
        self._output = output
        self._on_log: Callable[[Record], object] | None = None
        self._interval = 1
        # The training step that was not logged, but may be the last one of its phase.
        self._unlogged: tuple[Mapping[str, float | Tensor], int] | None = None

    def open(self, history: History, *, shown: bool, first: bool) -> None:
        """Write to this history, and call `on_log` in the first process."""
        self.history, self.view = history, ProgressView(enabled=shown)
        self._on_log = self._output.on_log if first else None

    def open_phase(self, phase: Phase) -> None:
        """Begin a phase at its present step."""
        self._interval, self._unlogged = self._output.interval(phase.planned), None
        self.history.open_phase(f"{phase.index:04d}-{phase.name}", step=phase.step)
        self.view.start(phase.name, total=phase.limit, done=phase.step, progress=phase.progress)

    def add(
        self, figures: Mapping[str, float | Tensor], *, phase: Phase | None, step: int | None, seconds: float
    ) -> None:
        """Add a record, and show those of its figures that have no slash in their name."""
        values = _numbers(figures)
        at = step if step is not None or phase is None else phase.step
        record = {"phase": phase.name if phase else None, "step": at, "time": round(seconds, 3)}
        self.history.add(record | values, values, on_log=self._on_log)
        self.view.figures({name: value for name, value in values.items() if "/" not in name})

    def is_due(self, figures: Mapping[str, float | Tensor], step: int, *, always: bool) -> bool:
        """Whether a training step is to be logged; its figures are kept otherwise, as it may be the last one."""
        due = always or step % self._interval == 0
        self._unlogged = None if due else (figures, step)
        return due

    def add_deferred(self, phase: Phase, *, seconds: float) -> None:
        """Log the last training step of a phase."""
        if self._unlogged:
            figures, step = self._unlogged
            self._unlogged = None
            self.add(figures, phase=phase, step=step, seconds=seconds)

    def note(self, text: str) -> None:
        """Keep a warning in `notes`, once, and show it; nothing where it is empty."""
        if text and text not in self.notes:
            self.notes.append(text)
            self.view.note(text)

    def close(self) -> None:
        """Close the files and end what is shown."""
        self.view.stop()
        self.history.close()


def _numbers(figures: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Figures as Python numbers, from numbers and tensors of one element."""
    clash = sorted(_RESERVED & figures.keys())
    if clash:
        raise RunError(f"The figures {clash} are named like what every record holds. Rename them.")
    return {name: _number(name, value) for name, value in figures.items()}


def _number(name: str, value: float | Tensor) -> float:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise RunError(
                f"The figure {name!r} is a tensor of shape {list(value.shape)}. Allowed is one number: take its mean."
            )
        value = value.item()
    return value if isinstance(value, int) else float(value)
