"""What a run logged: in memory, in history.jsonl, and for TensorBoard where asked."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from archgrad import files
from archgrad.errors import RunError
from archgrad.report.data.run_format import HISTORY, Record, parse_record, record_line

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_LINE = 16 * files.MIB  # characters of one record, which has a figure for each candidate at most


class History:
    """The records {"phase", "step", "time", figures} of a run; non-finite figures are strings in the file."""

    def __init__(self, folder: Path | None, *, tensorboard: bool) -> None:
        self.records: list[Record] = []
        self._old: list[Record] = []
        self._folder = folder
        self._tensorboard = tensorboard
        self._file: TextIO | None = None
        self._writer: SummaryWriter | None = None

    def recall(self) -> None:
        """Read the records of an earlier process, for `rewind`, up to the first line that is not whole."""
        path = self._folder / HISTORY if self._folder else None
        if path is None or not path.exists():
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            while line := file.readline(_LINE):
                try:
                    self._old.append(parse_record(line))
                except RunError:
                    break

    def rewind(self, count: int) -> int:
        """Go to the first `count` recalled records; returns how many of them are lost."""
        self.records = self._old[:count]
        return max(0, count - len(self._old))

    def write(self) -> None:
        """Make history.jsonl hold exactly the records, and write every further one there."""
        self._old = []
        if self._folder:
            path = self._folder / HISTORY
            files.write_text(path, "".join(record_line(record) for record in self.records), RunError)
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
        self.records.append(record)
        if on_log:
            on_log(dict(record))
        if self._writer:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, global_step=record["step"])
        if self._file is None:
            return
        try:
            self._file.write(record_line(record))
        except OSError as error:
            raise RunError(
                f"Could not write {self._file.name}: {error}. The checkpoints are intact. "
                "Make room, then run the same program again: it goes on from the last checkpoint."
            ) from error

    def sync(self) -> None:
        """Bring history.jsonl to the disk, so that no checkpoint is newer than it."""
        # An abandoned run may have let go of the file before its loop is closed.
        if self._file and not self._file.closed:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files; further records stay in memory."""
        for file in (self._file, self._writer):
            if file:
                file.close()
        self._file = self._writer = None
