"""The one reader of run folders: strictly, for the report of a run that has ended, or as far as they can be read."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from archgrad import files
from archgrad.errors import RunError
from archgrad.report.charts.steps import History
from archgrad.report.data.run_format import (
    CHECKPOINTS,
    COMMAND,
    HISTORY,
    LOCK,
    RECORD,
    RUN,
    checkpoint_header,
    foreign_parts,
    is_running,
    parse_checkpoint_name,
    parse_record,
    readable,
)

State = Literal["not begun", "running", "stopped", "finished", "damaged"]
_FILES = (RECORD, HISTORY, RUN, COMMAND)


@dataclass(frozen=True)
class Folder:
    """What a run's folder holds.

    Attributes:
        path: the folder.
        record: of record.json; None where the run has not ended, or it is damaged.
        history: of history.jsonl, whole lines alone.
        run: of run.json.
        command: of command.json.
        state: "running" where a live process has the lock, "damaged" where run.json does not say what the run does.
        problems: what is damaged, a sentence each.
    """

    path: Path
    record: Mapping[str, Any] | None = None
    history: History = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    command: Mapping[str, Any] = field(default_factory=dict)
    state: State = "not begun"
    problems: tuple[str, ...] = ()


class Checkpoint(NamedTuple):
    """What the newest checkpoint says.

    Attributes:
        phase: its name.
        step: the steps that are taken; None where it does not say.
        limit: the steps that the phase has; None where time alone ends it.
        progress: the used fraction of the phase's budget.
        notes: of the run, so far.
    """

    phase: str = ""
    step: int | None = None
    limit: int | None = None
    progress: float = 0.0
    notes: tuple[str, ...] = ()


def ended(path: Path) -> tuple[Mapping[str, Any], History]:
    """Record and history of a run that has ended.

    Raises:
        RunError: record.json or history.jsonl is missing or damaged.
    """
    record = _json(path / RECORD, _text(path / RECORD))
    history = []
    for place, line in enumerate(_text(path / HISTORY).splitlines(), start=1):
        if line.strip():
            try:
                history.append(parse_record(line, source=f"line {place}"))
            except RunError as error:
                raise _damaged(path / HISTORY, str(error)) from None
    return record, history


def about(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Of run.json and command.json what can be read."""
    return _object(path / RUN, []), _object(path / COMMAND, [])


def present(path: Path, *, tail: int | None = None) -> Folder:
    """What can be read of a folder now, of a run in any state; what cannot is said in `problems`.

    Args:
        path: the folder.
        tail: bytes of the history that are read, from its end; default: all of them.

    Raises:
        RunError: there is no such folder.
    """
    if not path.is_dir():
        raise RunError(f"There is no run folder {path}. Give the folder that was --out.")
    problems: list[str] = []
    record = _object(path / RECORD, problems)
    run, command = (_object(path / name, problems) for name in (RUN, COMMAND))
    state = _state(path, run, recorded=bool(record))
    if state == "damaged" and not any(RUN in problem for problem in problems):
        what = f"is not what a run writes: {foreign_parts(run) or 'it does not say how the run stands'}"
        what = what if (path / RUN).exists() else "is missing"
        problems.append(f"{path / RUN} {what}")
    history = _lines(path / HISTORY, problems, tail=tail)
    return Folder(path, record or None, history, run, command, state, tuple(problems))


def is_run(path: Path) -> bool:
    """Whether a folder holds anything of a run."""
    return any((path / name).is_file() for name in _FILES)


def runs_below(path: Path, *, levels: int = 4) -> Iterator[Path]:
    """The folders of runs in a folder and in those below it, down to so many levels; links are not followed."""
    with contextlib.suppress(OSError):
        if is_run(path):
            yield path
            return
        below = [one for one in sorted(path.iterdir()) if one.is_dir() and not one.is_symlink()]
        for one in below if levels else ():
            yield from runs_below(one, levels=levels - 1)


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when any of a folder's files does."""
    found = []
    for name in (*_FILES, LOCK):
        with contextlib.suppress(OSError):
            known = (path / name).stat()
            found.append((name, known.st_mtime_ns, known.st_size))
    return tuple(found)


def newest_checkpoint(path: Path) -> Checkpoint:
    """What the newest checkpoint of a run says; nothing where there is none, or it cannot be read."""
    paths: list[Path] = []
    with contextlib.suppress(OSError):
        paths = sorted((path / CHECKPOINTS).iterdir())
    names = [(file, name) for file in paths if (name := parse_checkpoint_name(file.name))]
    # The end of a loop that was left counts only once the program has gone on.
    counted = [(file, name) for file, name in names if name.mark != "left"]
    if not counted:
        return Checkpoint()
    file, name = counted[-1]
    header = checkpoint_header(file)
    progress, notes = header.get("progress"), header.get("notes")
    return Checkpoint(
        str(header.get("phase") or name.phase),
        _count(header.get("step")),
        _count(header.get("limit")) or None,
        min(1.0, max(0.0, progress)) if isinstance(progress, int | float) else 0.0,
        tuple(map(str, notes)) if isinstance(notes, list) else (),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a result into a run's folder. Raises RunError where it cannot be written."""
    files.write_text(path / RECORD, json.dumps(record, indent=1) + "\n", RunError)


def _state(path: Path, run: Mapping[str, Any], *, recorded: bool) -> State:
    if is_running(path):
        return "running"
    if (path / RUN).exists():
        match run.get("status"):
            case "finished":
                return "finished"
            case "running" if not foreign_parts(run):
                return "stopped"
        return "damaged"
    if recorded:
        return "finished"
    return "damaged" if (path / HISTORY).exists() or (path / CHECKPOINTS).exists() else "not begun"


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


def _lines(path: Path, problems: list[str], *, tail: int | None) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        content = _text(path, errors="replace") if tail is None else _end(path, tail)
    except RunError as error:
        problems.append(str(error))
        return []
    records, broken = [], 0
    # What follows the last line break is being written.
    for line in content.split("\n")[:-1]:
        if line.strip():
            try:
                records.append(parse_record(line))
            except RunError:
                broken += 1
    if broken:
        lost = "line is" if broken == 1 else "lines are"
        problems.append(f"{broken} {lost} damaged in {path.name} and left out.")
    return records


def _end(path: Path, size: int) -> str:
    """The whole lines in the last bytes of a file."""
    try:
        with files.open_ordinary(path) as file:
            start = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(start)
            content = file.read(size).decode("utf-8", "replace")
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
    return content.partition("\n")[2] if start else content


def _text(path: Path, *, errors: str = "strict") -> str:
    try:
        return files.read_text(path, RunError, most=files.RECORD, errors=errors)
    except FileNotFoundError as error:
        raise RunError(
            f"{path} is missing. A report is drawn from a run folder that holds record.json and "
            f"history.jsonl; give the folder of a run that has ended"
        ) from error


def _json(path: Path, content: str) -> Any:
    return readable(files.parse_json(content, lambda what: _damaged(path, what), source="it", finite=False), content)


def _damaged(path: Path, what: str) -> RunError:
    return RunError(f"{path} is damaged ({what}). It must be JSON as a run writes it; resume or repeat the run")
