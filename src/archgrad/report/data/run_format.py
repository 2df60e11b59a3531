"""What a run's folder holds, and in which form: file names, the lock, lines of the history, headers of checkpoints.

Everything here does without torch: boards and lists of runs are drawn on machines that do not train.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from archgrad import files
from archgrad.errors import RunError

Record = dict[str, Any]

RUN = "run.json"  # identity, versions, times
HISTORY = "history.jsonl"  # what was logged
RECORD = "record.json"  # the result
COMMAND = "command.json"  # the command line that made it
COMPUTED = "computed.json"  # figures that are computed once in a run's life
LOCK = "lock"
TRIALS = "trials.jsonl"  # the networks that were tried
WEIGHTS = "trials"  # of theirs
CHECKPOINTS = "checkpoints"

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_CHECKPOINT = re.compile(r"(?P<index>\d+)-(?P<phase>.+)-(?P<mark>\d+|end|left)\.safetensors")
_LARGEST_HEADER = 100_000_000


class Owner(NamedTuple):
    """The process that took the lock of a folder last."""

    pid: int
    host: str
    namespace: str = ""  # of process numbers; empty where it does not say

    @property
    def is_here(self) -> bool:
        """Whether it ran on this machine, and in this container."""
        return self.host == platform.node() and self.namespace in ("", files.pid_namespace())

    def is_alive(self) -> bool:
        """Whether there is a process of that number here; True elsewhere, where nobody can look."""
        if not self.is_here:
            return True
        try:
            os.kill(self.pid, 0)
        except PermissionError:
            return True
        except (OSError, OverflowError):
            return False
        return True


def lock_text() -> str:
    """What this process writes into a lock."""
    return f"{os.getpid()} {platform.node()} {files.pid_namespace()}\n"


def parse_lock(content: str) -> Owner | None:
    """Who wrote a lock; None where it does not say."""
    pid, host, namespace, *_ = [*content.split(), "", "", ""]
    return Owner(int(pid), host, namespace) if pid.isdecimal() and len(pid) < 20 and host else None


def is_running(folder: Path) -> bool:
    """Whether a live process has the lock of a run's folder, on this machine or on another.

    A lock whose process on this machine is gone counts as free: data loaders that a killed run leaves behind hold on
    to it for some seconds.
    """
    try:
        with files.open_ordinary(folder / LOCK) as lock:
            owner = parse_lock(lock.read(300).decode("utf-8", "replace"))
            # Tried only where its owner may live, so that a run that begins just now does not find it taken.
            if owner and not owner.is_alive():
                return False
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def foreign_parts(run: Mapping[str, Any]) -> str:
    """Why an object of run.json is not what a run writes, so that no run goes on from it; empty where it is."""
    kinds = {"id": str, "identity": dict, "made_with": dict, "resumed": list, "accepted": list, "variables": dict}
    absent = [name for name in kinds if name not in run and name not in ("id", "accepted", "variables")]
    wrong = [name for name, kind in kinds.items() if name in run and not isinstance(run[name], kind)]
    texts = [f"it lacks {name!r}" for name in absent] + [f"its {name!r} is of another kind" for name in wrong]
    return ", ".join(texts)


def run_id(folder: Path) -> str:
    """The id in run.json; empty where it has none."""
    try:
        body = files.parse_json(files.read_text(folder / RUN, RunError), RunError, source=RUN, finite=False)
    except (RunError, OSError):
        return ""
    return str(body.get("id", "")) if isinstance(body, dict) else ""


def forget(folder: Path) -> None:
    """Remove what a run has written into its folder before its first step, so that another may use it.

    A folder in which a step was taken is left alone.
    """
    if any((folder / CHECKPOINTS).glob("*")):
        return
    for name in (RUN, COMPUTED, HISTORY):
        (folder / name).unlink(missing_ok=True)
    if (folder / CHECKPOINTS).is_dir():
        (folder / CHECKPOINTS).rmdir()


def parse_record(line: str, *, source: str = "a line") -> Record:
    """The record in a line of history.jsonl, which errors call `source`. Raises RunError where it holds none."""
    record = readable(files.parse_json(line, RunError, source=source), line)
    if not isinstance(record, dict):
        raise RunError(f"{source} is no JSON object")
    return _with_numbers(record)


def own_record(line: str) -> Record:
    """The record in a line that `record_line` made, in this process: nothing about it is in doubt."""
    return _with_numbers(json.loads(line))


def _with_numbers(record: Record) -> Record:
    return {key: _number(value) if key != "phase" else value for key, value in record.items()}


def readable(value: Any, source: str) -> Any:
    """JSON without halves of characters and signs that control a terminal, which a stranger's may hold.

    Only a `source` with escapes has such.
    """
    if "\\" not in source:
        return value
    if isinstance(value, str):
        return _NO_TEXT.sub("\ufffd", value)
    if isinstance(value, list):
        return [readable(entry, source) for entry in value]
    if isinstance(value, dict):
        return {readable(key, source): readable(entry, source) for key, entry in value.items()}
    return value


def _number(value: Any) -> Any:
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


@dataclass(frozen=True)
class CheckpointName:
    """The name of a checkpoint's file: number and name of its phase, and a step, "end" or "left"."""

    index: int
    phase: str
    mark: str

    def __str__(self) -> str:
        mark = f"{int(self.mark):010d}" if self.mark.isdecimal() else self.mark
        return f"{self.index:04d}-{self.phase}-{mark}.safetensors"


def parse_checkpoint_name(name: str) -> CheckpointName | None:
    """The parts of a file's name; None where it is no checkpoint's."""
    match = _CHECKPOINT.fullmatch(name)
    return CheckpointName(int(match["index"]), match["phase"], match["mark"]) if match else None


def checkpoint_header(path: Path) -> dict[str, Any]:
    """The plain values in the state that a checkpoint's header holds; empty where it cannot be read."""
    try:
        with files.open_ordinary(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST_HEADER:
                return {}
            header = json.loads(file.read(length))
        kind, *items = json.loads(header["__metadata__"]["state"])
        return {str(key): _plain(value) for key, value in items} if kind == "dict" else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError, struct.error):
        return {}


def _plain(value: Any) -> Any:
    """A list in the form ["list", ...] as a list; any other nest as None."""
    if not isinstance(value, list):
        return value
    return value[1:] if value[:1] == ["list"] else None
