"""`archgrad runs`: what runs there are below a folder, and how they stand; read from their files, without torch."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from archgrad import files
from archgrad.errors import RunError

Row = dict[str, Any]
_LEVELS = 4  # of folders below the one given
_TAIL = files.MIB  # of history.jsonl, in which its last record is looked for
_CHECKPOINT = re.compile(r"(\d+)-(.+)-(\d+|end)\.safetensors")
# Other tools have folders of checkpoints too.
_TRACES = ("run.json", "command.json", "history.jsonl")


def listed(folder: Path) -> list[Row]:
    """A row for each run below a folder, the one that was written last first.

    A row: folder, method, state ("running", "finished", "stopped", "damaged"), phase, step, started, age_seconds of
    the last write, score ({name: value} or None), and reason where it is damaged.

    Raises RunError when there is no such folder.
    """
    if not folder.is_dir():
        raise RunError(f"There is no folder {folder}. Give the folder that your runs are in; the default is runs.")
    return sorted((_row(place) for place in _runs(folder, _LEVELS)), key=lambda row: float(row["age_seconds"]))


def _runs(folder: Path, levels: int) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        if any((folder / name).exists() for name in _TRACES):
            yield folder
            return
        below = [one for one in sorted(folder.iterdir()) if one.is_dir() and not one.is_symlink()]
        for one in below if levels else ():
            yield from _runs(one, levels - 1)


def _row(folder: Path) -> Row:
    row: Row = {
        "folder": str(folder), "method": None, "state": "damaged", "phase": None, "step": None, "started": None,
        "age_seconds": _age(folder), "score": None, "reason": None,
    }  # fmt: skip
    try:
        record = _object(folder / "run.json")
        method, started = record["identity"]["method"], record["started"]
        if not isinstance(method, str) or not isinstance(started, str):
            raise RunError("run.json does not say what was run, and when")
        phase, step = _place(folder)
        row |= {"method": method, "started": started, "phase": phase, "step": step, "state": "stopped"}
        if is_locked(folder):
            row["state"] = "running"
        elif record.get("status") == "finished":
            row |= {"state": "finished", "score": _score(folder)}
    except FileNotFoundError:
        row["reason"] = "run.json is missing"
    except (RunError, OSError, LookupError, TypeError, AttributeError) as error:
        row["reason"] = str(error)
    return row


def _object(path: Path) -> Row:
    found = files.parse_json(files.read_text(path, RunError), RunError, source=path.name)
    if not isinstance(found, dict):
        raise RunError(f"{path.name} holds a {type(found).__name__}, not an object")
    return found


def is_locked(folder: Path) -> bool:
    """Whether a live process has the lock of a run's folder; it is not taken from it."""
    try:
        with (folder / "lock").open("rb") as lock:
            # A shared lock for an instant: a run that begins just then tries again.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _place(folder: Path) -> tuple[str | None, int | None]:
    """The phase and step that were logged last, else those of the newest checkpoint."""
    with contextlib.suppress(OSError), (folder / "history.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        for line in reversed(file.read(_TAIL).splitlines()):
            with contextlib.suppress(RunError):
                record = files.parse_json(line.decode("utf-8", "replace"), RunError, source="a line")
                if isinstance(record, dict) and isinstance(record.get("phase"), str):
                    step = record.get("step")
                    return record["phase"], step if isinstance(step, int) else None
    names = sorted(path.name for path in _files(folder / "checkpoints"))
    marks = [match for name in names if (match := _CHECKPOINT.fullmatch(name))]
    if not marks:
        return None, None
    return marks[-1][2], None if marks[-1][3] == "end" else int(marks[-1][3])


def _files(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []


def _age(folder: Path) -> float:
    """Seconds since the last write, by the machine's clock: for the reader, nothing is decided by it."""
    times = []
    for path in (folder / "run.json", folder / "history.jsonl", folder, *_files(folder / "checkpoints")):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return round(max(0.0, time.time() - max(times, default=0.0)), 1)


def _score(folder: Path) -> dict[str, float] | None:
    """The first figure of what was found, as the report has it."""
    try:
        content = files.read_text(folder / "record.json", RunError, most=files.RECORD)
        record = files.parse_json(content, RunError, source="record.json", finite=False)
        name, value = next(iter(record["after"].items()))
        return {name: float(value)}
    except (FileNotFoundError, RunError, LookupError, TypeError, ValueError, AttributeError, StopIteration):
        return None


def written(rows: list[Row]) -> str:
    """The rows as a table; empty where there are none."""
    lines = [("folder", "method", "state", "phase", "step", "started", "last write", "score")]
    for row in rows:
        score = "".join(f"{name} {value:.4g}" for name, value in (row["score"] or {}).items())
        told = (row["method"], row["state"], row["phase"], row["step"], row["started"])
        more = row["reason"] or score
        lines.append((row["folder"], *("" if one is None else str(one) for one in told), _passed(row), more))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # Nothing stands behind the last column, so that a long reason widens no other line.
    table = ["   ".join([*map(str.ljust, line[:-1], widths), line[-1]]).rstrip() for line in lines]
    return "\n".join(table) if rows else ""


def _passed(row: Row) -> str:
    return f"{age(row['age_seconds'])} ago"


def age(seconds: float) -> str:
    """A time that has passed, to read: "12 s", "5 min", "3 h", "2 d"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
