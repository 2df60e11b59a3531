"""`archgrad runs`: what runs there are below a folder, and how they stand; read from their files, without torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archgrad import files
from archgrad.errors import RunError
from archgrad.report.data.run_folder import Folder, newest_checkpoint, present, runs_below
from archgrad.report.data.run_format import CHECKPOINTS, HISTORY, RUN

Row = dict[str, Any]


def listed(folder: Path) -> list[Row]:
    """A row for each run below a folder, the one that was written last first.

    A row: folder, method, state ("not begun", "running", "finished", "stopped", "damaged"), phase, step, started,
    age_seconds of the last write, score ({name: value} or None), and reason where it is damaged.

    Raises RunError when there is no such folder.
    """
    if not folder.is_dir():
        raise RunError(f"There is no folder {folder}. Give the folder that your runs are in; the default is runs.")
    return sorted((_row(path) for path in runs_below(folder)), key=lambda row: float(row["age_seconds"]))


def _row(path: Path) -> Row:
    folder = present(path, tail=files.MIB)
    phase, step = _place(folder)
    identity, started = folder.run.get("identity"), folder.run.get("started")
    method = identity.get("method") if isinstance(identity, Mapping) else None
    return {
        "folder": str(path),
        "method": method if isinstance(method, str) else None,
        "state": folder.state,
        "phase": phase,
        "step": step,
        "started": started if isinstance(started, str) else None,
        "age_seconds": _age(path),
        "score": _score(folder) if folder.state == "finished" else None,
        "reason": folder.problems[0] if folder.state == "damaged" else None,
    }


def _place(folder: Folder) -> tuple[str | None, int | None]:
    """The phase and step that were logged last, else those of the newest checkpoint."""
    for record in reversed(folder.history):
        if isinstance(phase := record.get("phase"), str):
            step = record.get("step")
            return phase, step if isinstance(step, int) else None
    checkpoint = newest_checkpoint(folder.path)
    return checkpoint.phase or None, checkpoint.step


def _age(folder: Path) -> float:
    """Seconds since the last write, by the machine's clock: for the reader, nothing is decided by it."""
    times = []
    for path in (folder / RUN, folder / HISTORY, folder, folder / CHECKPOINTS):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return round(max(0.0, time.time() - max(times, default=0.0)), 1)


def _score(folder: Folder) -> dict[str, float] | None:
    """The first figure of the result, as the report has it."""
    try:
        name, value = next(iter((folder.record or {})["after"].items()))
        return {name: float(value)}
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration):
        return None


def written(rows: list[Row]) -> str:
    """The rows as a table; empty where there are none."""
    lines = [("folder", "method", "state", "phase", "step", "started", "last write", "score")]
    for row in rows:
        score = "".join(f"{name} {value:.4g}" for name, value in (row["score"] or {}).items())
        known = (row["method"], row["state"], row["phase"], row["step"], row["started"])
        cells = ("" if value is None else str(value) for value in known)
        lines.append((row["folder"], *cells, f"{age(row['age_seconds'])} ago", row["reason"] or score))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # Nothing stands behind the last column, so that a long reason widens no other line.
    table = ["   ".join([*map(str.ljust, line[:-1], widths), line[-1]]).rstrip() for line in lines]
    return "\n".join(table) if rows else ""


def age(seconds: float) -> str:
    """A time that has passed, to read: "12 s", "5 min", "3 h", "2 d"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
