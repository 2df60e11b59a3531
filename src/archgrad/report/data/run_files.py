"""A run's folder as plain JSON: strictly, for the report of a run that has ended, or as far as it can be read."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from archgrad import files
from archgrad.errors import RunError
from archgrad.report.charts.curves import History

State = Literal["not begun", "running", "stopped", "finished"]
RECORD, HISTORY, RUN, COMMAND = "record.json", "history.jsonl", "run.json", "command.json"
_TRACES = (RECORD, HISTORY, RUN, COMMAND)


@dataclass(frozen=True)
class Folder:
    """What a run's folder holds.

    Attributes:
        path: the folder.
        record: of record.json; None where the run has not ended, or it is damaged.
        history: of history.jsonl, whole lines alone.
        run: of run.json.
        command: of command.json.
        state: "running" where a live process holds the folder.
        problems: what is damaged, a sentence each.
    """

    path: Path
    record: Mapping[str, Any] | None = None
    history: History = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    command: Mapping[str, Any] = field(default_factory=dict)
    state: State = "not begun"
    problems: tuple[str, ...] = ()


def ended(path: Path) -> tuple[Mapping[str, Any], History]:
    """Record and history of a run that has ended.

    Raises:
        RunError: record.json or history.jsonl is missing or damaged.
    """
    record = _json(path / RECORD, _text(path / RECORD))
    history, lines = [], path / HISTORY
    for place, line in enumerate(_text(lines).splitlines(), start=1):
        if line.strip():
            one = _json(lines, line, source=f"line {place}")
            if not isinstance(one, dict):
                raise _damaged(lines, f"line {place} is no JSON object")
            history.append(one)
    return record, history


def about(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Of run.json and command.json what can be read."""
    return _object(path / RUN, []), _object(path / COMMAND, [])


def present(path: Path) -> Folder:
    """What can be read of a folder now, of a run in any state; what cannot is told in `problems`.

    Raises:
        RunError: there is no such folder.
    """
    if not path.is_dir():
        raise RunError(f"There is no run folder {path}. Give the folder that was --out.")
    problems: list[str] = []
    record = _object(path / RECORD, problems) if (path / RECORD).exists() else None
    run, command = (_object(path / name, problems) for name in (RUN, COMMAND))
    state = _state(path, run, recorded=bool(record))
    history = _lines(path / HISTORY, problems)
    return Folder(path, record or None, history, run, command, state, tuple(problems))


def is_run(path: Path) -> bool:
    """Whether a folder holds anything of a run."""
    return any((path / name).is_file() for name in _TRACES)


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when any of a folder's files does."""
    found = []
    for name in (*_TRACES, "lock"):
        with contextlib.suppress(OSError):
            known = (path / name).stat()
            found.append((name, known.st_mtime_ns, known.st_size))
    return tuple(found)


def _state(path: Path, run: Mapping[str, Any], *, recorded: bool) -> State:
    status = run.get("status")
    if status == "running":
        return "running" if is_held(path / "lock") else "stopped"
    if status == "finished" or recorded:
        return "finished"
    return "stopped" if (path / HISTORY).exists() else "not begun"


def is_held(lock: Path) -> bool:
    """Whether a live process holds a run's lock, so that it goes on."""
    try:
        with lock.open("rb") as file:
            # Asked for only where its holder lives: a run that begins just now is not to find it taken.
            os.kill(int(file.read(20)), 0)
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return False


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
    """A file's JSON object; empty, and a problem, where there is none."""
    if not path.exists():
        return {}
    try:
        found = _json(path, _text(path))
        if not isinstance(found, dict):
            raise _damaged(path, "no JSON object")
    except RunError as error:
        problems.append(str(error))
        return {}
    return found


def _lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        lines = _text(path, errors="replace").split("\n")
    except RunError as error:
        problems.append(str(error))
        return []
    found, broken = [], 0
    # What follows the last line break is being written.
    for line in lines[:-1]:
        try:
            one = _json(path, line) if line.strip() else None
        except RunError:
            one = 0
        if isinstance(one, dict):
            found.append(one)
        else:
            broken += one is not None
    if broken:
        lost = "line is" if broken == 1 else "lines are"
        problems.append(f"{broken} {lost} damaged in {path.name} and left out.")
    return found


def _text(path: Path, *, errors: str = "strict") -> str:
    try:
        return files.read_text(path, RunError, most=files.RECORD, errors=errors)
    except FileNotFoundError as error:
        raise RunError(
            f"{path} is missing. A report is drawn from a run folder that holds record.json and "
            f"history.jsonl; give the folder of a run that has ended"
        ) from error


def _json(path: Path, content: str, *, source: str = "it") -> Any:
    return files.parse_json(content, lambda what: _damaged(path, what), source=source, finite=False)


def _damaged(path: Path, what: str) -> RunError:
    return RunError(f"{path} is damaged ({what}). It must be JSON as a run writes it; resume or repeat the run")
