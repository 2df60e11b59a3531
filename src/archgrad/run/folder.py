"""The folder of one run: whose it is, who is running in it, and its remembered figures."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import time
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from archgrad import files
from archgrad.errors import RunError

Record = dict[str, Any]

# A killed run's data-loading children hold its lock until they notice, which takes them about five seconds.
_ORPHANS_SECONDS = 10.0


class RunFolder:
    """run.json (identity, versions, times), the lock, and remembered.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: TextIO | None = None

    def acquire(self) -> None:
        """Make the folder and take its lock. Raises RunError when a live process holds it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"The run folder {self.path} cannot be used: {error}. Choose a folder that can be written to."
            ) from error
        deadline = time.monotonic() + _ORPHANS_SECONDS
        while not _locked(lock):
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            if owner == str(os.getpid()):
                lock.close()
                raise RunError(
                    f"Another Run of this process is using {self.path}. Call its finish() or close() first."
                )
            if _alive(owner) or time.monotonic() > deadline:
                lock.close()
                raise RunError(
                    f"The run in {self.path} is running (pid {owner}). Wait for it or stop it, or choose "
                    "another folder."
                )
            time.sleep(0.2)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock
        # An abandoned Run frees its folder without a ResourceWarning.
        weakref.finalize(self, lock.close)

    def release(self) -> None:
        """Let go of the lock."""
        if self._lock:
            # Children that load data share the lock: closing it here alone would leave it with them.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()
            self._lock = None

    def held(self, identity: Record) -> Record | None:
        """The record of the run that the folder holds, None for a new one.

        Raises RunError when that run has another identity, or cannot be told.
        """
        path = self.path / "run.json"
        if not path.exists():
            traces = [name for name in ("checkpoints", "history.jsonl") if (self.path / name).exists()]
            if traces:
                raise RunError(
                    f"{self.path} has {' and '.join(traces)} but no run.json, so it is not known whose "
                    "they are. Choose another folder, or remove them."
                )
            return None
        try:
            record = _object(path)
            theirs, _, resumed = record["identity"], record["made_with"], record["resumed"]
            if not isinstance(resumed, list) or not isinstance(theirs, dict):
                raise TypeError("it has other parts than a run writes")
        except (RunError, OSError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged ({error}). Choose another folder.") from error
        differences = _differences(identity, theirs)
        if differences:
            raise RunError(
                f"{self.path} holds another run. It differs in {'; '.join(differences)}. "
                "Choose another folder, or resume with the same settings."
            )
        return record

    def begin(self, identity: Record, held: Record | None, made_with: Record) -> None:
        """Write run.json for a new run, or for one that is resumed now."""
        record = held or {"identity": identity, "started": now(), "resumed": []}
        if held:
            record["resumed"].append(now())
        record |= {"status": "running", "finished": None, "made_with": made_with}
        self._write_record(record)

    def mark_finished(self) -> None:
        """Mark the run finished in run.json."""
        record = _object(self.path / "run.json")
        self._write_record(record | {"status": "finished", "finished": now()})

    def clear(self) -> None:
        """Remove what belongs to a run: its record, history and remembered figures."""
        for name in ("run.json", "history.jsonl", "remembered.json"):
            (self.path / name).unlink(missing_ok=True)

    def remembered(self) -> Record:
        """What remembered.json holds. Raises RunError when it is damaged."""
        path = self.path / "remembered.json"
        try:
            found = _object(path) if path.exists() else {}
        except (RunError, OSError) as error:
            raise RunError(f"{path} is damaged ({error}). Remove it: its figures are measured again.") from error
        return found

    def remember(self, figures: Record) -> None:
        """Replace remembered.json."""
        files.write_text(self.path / "remembered.json", json.dumps(figures, indent=2) + "\n", RunError)

    def _write_record(self, record: Record) -> None:
        files.write_text(self.path / "run.json", json.dumps(record, indent=2) + "\n", RunError)


def _object(path: Path) -> Record:
    """What a JSON file of the run holds, an object. Raises RunError, or FileNotFoundError."""
    found = files.parse_json(files.read_text(path, RunError, most=64 * files.MIB), RunError, source=str(path))
    if not isinstance(found, dict):
        raise RunError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def versions() -> Record:
    """The versions that a result depends on."""
    return {
        "archgrad": importlib.metadata.version("archgrad"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """The device in words, such as "cuda:0 (NVIDIA H100)" or "cpu (x86_64)"."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device} ({name})"


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _differences(given: Mapping[str, Any], held: Mapping[str, Any]) -> list[str]:
    mine, theirs = _flat(given, ""), _flat(held, "")
    missing = "nothing"
    return [
        f"{name} (given {mine.get(name, missing)}, held {theirs.get(name, missing)})"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name, missing) != theirs.get(name, missing)
    ]


def _flat(value: Any, name: str) -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        flat: dict[str, str] = {}
        for key, item in value.items():
            flat |= _flat(item, f"{name}.{key}" if name else str(key))
        return flat
    return {name: json.dumps(value)}
