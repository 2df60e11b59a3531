"""What a run writes and how often: settings, the log that follows them, and the history that it is read back from."""

from __future__ import annotations

import functools
import json
import math
import os
import weakref
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from torch import Tensor

from archgrad import files
from archgrad.argument_types import checked
from archgrad.errors import RunError
from archgrad.report.data.run_format import HISTORY, Record, own_record, parse_record
from archgrad.run import validation
from archgrad.run.budget import Phase
from archgrad.run.progress import ProgressView

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_LINE = 16 * files.MIB  # characters of one record, which has a figure for each candidate at most
_LEAST, _RECORDS = 10, 1000
_RESERVED = frozenset({"phase", "step", "time"})


@checked
@dataclass(frozen=True)
class Output:
    """What a run writes and how often.

    Attributes:
        log_every: training steps are logged every so many steps, and the last one of each phase. None: every 10th,
            and in phases of more than 10,000 steps every (steps / 1000)th, so that records of a long run stay few.
            What comes once an epoch is always logged. On a GPU losses and gradients are looked at for NaN there.
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

    def interval(self, steps: int) -> int:
        """Steps from one that is logged to the next, in a phase of so many."""
        return self.log_every or max(_LEAST, steps // _RECORDS)


def record_line(record: Record) -> str:
    """A line of history.jsonl; NaN and infinity, which JSON lacks, become strings."""
    safe = {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(safe, allow_nan=False) + "\n"


def _add(checksum: int, line: str) -> int:
    return zlib.crc32(line.encode(), checksum)


class History:
    """The records {"phase", "step", "time", figures} of a run; non-finite figures are strings in the file.

    They are kept as lines of the file, which take a fifth of the memory.

    Attributes:
        checksum: of the lines.
    """

    def __init__(self, folder: Path | None, *, tensorboard: bool) -> None:
        self._lines: list[str] = []
        self._old: list[str] = []
        self._folder = folder
        self._tensorboard = tensorboard
        self._file: TextIO | None = None
        self._writer: SummaryWriter | None = None
        self.checksum = 0  # of the lines

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def records(self) -> list[Record]:
        """The records so far, read anew from their lines."""
        return [own_record(line) for line in self._lines]

    def recall(self) -> None:
        """Read the records of an earlier process, for `rewind`, up to the first line that is not whole."""
        path = self._folder / HISTORY if self._folder else None
        if path is None or not path.exists():
            return
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                while line := file.readline(_LINE):
                    self._old.append(record_line(parse_record(line)))
        except RunError:
            return
        except OSError as error:
            raise RunError(f"Cannot read {path}: {error.strerror or error}. Give access to it.") from error

    def rewind(self, count: int) -> int:
        """Go to the first `count` recalled records; returns how many of them are lost."""
        self._lines = self._old[:count]
        self.checksum = functools.reduce(_add, self._lines, 0)
        return max(0, count - len(self._old))

    def write(self) -> None:
        """Make history.jsonl hold exactly the records, and write every further one there."""
        self._old = []
        if self._folder:
            path = self._folder / HISTORY
            files.write_text(path, "".join(self._lines), RunError)
            self._file = path.open("a", buffering=1, encoding="utf-8")
            # An abandoned Run leaves no ResourceWarning.
            weakref.finalize(self, self._file.close)

    def open_phase(self, name: str, *, step: int) -> None:
        """Begin TensorBoard's folder of a phase that starts or resumes at `step`."""
        if self._writer:
            self._writer.close()
        if self._tensorboard and self._folder:
            from torch.utils.tensorboard import SummaryWriter

            # A folder for each phase, because steps restart at 0 and would overwrite each other.
            self._writer = SummaryWriter(str(self._folder / "tensorboard" / name), purge_step=step)

    def add(
        self, record: Record, figures: dict[str, float], *, on_log: Callable[[Record], object] | None = None
    ) -> None:
        """Add a record that holds `figures`, and give `on_log` a copy. Raises RunError when the disk is full."""
        line = record_line(record)
        self._lines.append(line)
        self.checksum = _add(self.checksum, line)
        if on_log:
            on_log(dict(record))
        if self._writer:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, global_step=record["step"])
        if self._file is None:
            return
        try:
            self._file.write(line)
        except OSError as error:
            raise RunError(
                f"Could not write {self._file.name}: {error}. The checkpoints are intact. "
                "Make room, then run the same program again: it goes on from the last checkpoint."
            ) from error

    def sync(self) -> None:
        """Bring history.jsonl to the disk, so that no checkpoint is newer than it.

        Raises RunError where it is no longer in the run's folder.
        """
        # An abandoned run may have let go of the file before its loop is closed.
        if self._file and not self._file.closed:
            os.fsync(self._file.fileno())
            self._require_in_place(self._file)

    def _require_in_place(self, file: TextIO) -> None:
        path = Path(file.name)
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise RunError(
                f"The run folder {path.parent} was removed, renamed or replaced while the run was going on: "
                f"{path.name} there is not the file that it writes. Nothing is saved any more. Put the folder back, "
                f"then run the same program again: it goes on from the last checkpoint in it"
            )

    def close(self) -> None:
        """Close the files; further records stay in memory."""
        for file in (self._file, self._writer):
            if file:
                file.close()
        self._file = self._writer = None


class Log:
    """Records, notes and what is shown of them.

    Attributes:
        notes: warnings that the user should read.
        history: the records.
        view: what is shown on the terminal.
        interval: steps from one that is logged to the next.
    """

    def __init__(self, output: Output) -> None:
        self.notes: list[str] = []
        self.history = History(None, tensorboard=False)
        self.view = ProgressView(enabled=False)
        self._output = output
        self._on_log: Callable[[Record], object] | None = None
        self.interval = 1
        self._unseen: list[Record] = []  # figures that are not shown yet
        # The training step that was not logged, but may be the last one of its phase.
        self._unlogged: tuple[Mapping[str, float | Tensor], int] | None = None

    def open(self, history: History, *, shown: bool, first: bool) -> None:
        """Write to this history, and call `on_log` in the first process."""
        self.history, self.view = history, ProgressView(enabled=shown)
        self._on_log = self._output.on_log if first else None

    def open_phase(self, phase: Phase) -> None:
        """Begin a phase at its present step."""
        self.interval, self._unlogged = self._output.interval(phase.planned), None
        self._unseen.clear()
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
        if self.view.due_at < math.inf:
            self._unseen.append(values)

    def show(self, phase: Phase) -> None:
        """Show where the phase is, and the latest figures."""
        for figures in self._unseen:
            self.view.figures({name: value for name, value in figures.items() if "/" not in name})
        self._unseen.clear()
        self.view.step(phase.step, progress=phase.progress)

    def end_phase(self, phase: Phase) -> None:
        """End what is shown of a phase."""
        if self.view.due_at < math.inf:
            self.show(phase)
        self.view.stop()

    def is_due(self, figures: Mapping[str, float | Tensor], step: int, *, always: bool) -> bool:
        """Whether a training step is to be logged; its figures are kept otherwise, as it may be the last one."""
        due = always or step % self.interval == 0
        self._unlogged = None if due else (figures, step)
        return due

    def add_deferred(self, phase: Phase, *, seconds: float) -> None:
        """Log the last training step of a phase."""
        if self._unlogged:
            figures, step = self._unlogged
            self._unlogged = None
            self.add(figures, phase=phase, step=step, seconds=seconds)

    def note(self, text: str, *, kept: bool = True) -> None:
        """Show a line, and keep it in `notes`, once; nothing where it is empty or is there already."""
        if text and text not in self.notes:
            self.notes += [text] if kept else []
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
