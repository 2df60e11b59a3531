"""The folder of one run: whose it is, who is running in it, and the figures that are computed once."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import secrets
import time
import weakref
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import torch

from archgrad import files
from archgrad.errors import RunError
from archgrad.fingerprint import described
from archgrad.reached_code import environment_read
from archgrad.report.data.run_format import (
    CHECKPOINTS,
    COMPUTED,
    HISTORY,
    LOCK,
    RUN,
    TRIALS,
    WEIGHTS,
    Owner,
    Record,
    foreign_parts,
    forget,
    lock_text,
    parse_lock,
)
from archgrad.run.device import Machine
from archgrad.run.validation import ACCEPTABLE

# A killed run's data-loading children have its lock until they notice, which takes them about five seconds.
_ORPHANS_SECONDS = 10.0
# Boards and lists of runs take it for an instant, to see whether it is free.
_READERS_SECONDS = 0.3


class Holder(Protocol):
    """A run that has a folder."""

    failed: bool  # whether a step of it failed

    def close(self) -> None:
        """Let go of the folder."""


_HOLDERS: weakref.WeakValueDictionary[Path, Holder] = weakref.WeakValueDictionary()


class RunFolder:
    """run.json (identity, versions, times), the lock, and computed.json.

    Attributes:
        id: of the run, which its other files name, so that those of another one are not taken for its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = secrets.token_hex(8)
        self._lock: TextIO | None = None
        self._record: Record = {}  # what run.json holds

    def open(
        self,
        identity: Record,
        machine: Machine,
        *,
        accept: frozenset[str] = frozenset(),
        holder: Holder | None = None,
    ) -> tuple[bool, Record, list[str]]:
        """Take the folder; whether this resumes a run, that run's computed figures, and notes for the user.

        `accept` names parts of the identity that may differ. An earlier `holder` of this process, in which a step
        failed, is closed: a traceback that is kept, as in a notebook, keeps it alive. Raises RunError when the folder
        holds another run or one that is running.
        """
        machine.by_first(lambda: self._take(holder))
        try:
            earlier = self.read(identity, accept=accept)
            self.id = str(earlier.get("id", "")) if earlier else self.id
            computed = self.computed()
        except RunError:
            self.release()
            raise
        made_with = versions() | {"device": device_name(machine.device), "processes": machine.world}
        made_with |= numerics()
        variables = {name: described(value) for name, value in environment_read().items()}
        notes = [str(note) for note in earlier.get("accepted", [])] if earlier else []
        if earlier and (changed := _differences(made_with, earlier["made_with"])):
            notes.append(f"Resumed under other conditions, so that last bits may differ: {'; '.join(changed)}.")
        if earlier and (changed := _differences(variables, earlier.get("variables", variables), of="variable ")):
            notes.append(
                f"Resumed in another environment, which code of yours may compute with: {'; '.join(changed)}."
            )
        machine.wait()
        if machine.rank == 0:
            self.begin(identity, earlier, {"made_with": made_with, "variables": variables})
        return earlier is not None, computed, notes

    def _take(self, holder: Holder | None) -> None:
        if (before := _HOLDERS.get(self.path.resolve())) is not None and before.failed:
            before.close()
        self.acquire()
        if holder is not None:
            _HOLDERS[self.path.resolve()] = holder

    def acquire(self) -> None:
        """Make the folder and take its lock. Raises RunError when a live process has it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_what_is_no_file()
            lock = (self.path / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"The run folder {self.path} cannot be used: {error}. Choose a folder that can be written to."
            ) from error
        began = time.monotonic()
        while not _locked(lock):
            lock.seek(0)
            owner = parse_lock(lock.read())
            patience = _READERS_SECONDS if owner and owner.is_alive() else _ORPHANS_SECONDS
            if time.monotonic() > began + patience:
                lock.close()
                raise self._in_use(owner)
            time.sleep(0.1)
        files.remove_partial(self.path)
        lock.truncate(0)
        lock.write(lock_text())
        lock.flush()
        self._lock = lock
        # An abandoned Run frees its folder without a ResourceWarning.
        weakref.finalize(self, lock.close)

    def _refuse_what_is_no_file(self) -> None:
        for name in (RUN, HISTORY, COMPUTED, LOCK, TRIALS, CHECKPOINTS, WEIGHTS):
            path, folder = self.path / name, name in (CHECKPOINTS, WEIGHTS)
            if path.exists() and not (path.is_dir() if folder else path.is_file()):
                kind = "folder" if folder else "ordinary file"
                raise RunError(f"{path} is no {kind}. Remove it, or choose another folder.")
            if path.is_symlink():
                raise RunError(
                    f"{path} is a link to {path.readlink()}: a run writes there, and removes files. Put what it "
                    f"stands for in its place, or choose another folder."
                )

    def _in_use(self, owner: Owner | None) -> RunError:
        if owner and owner.is_here and owner.pid == os.getpid():
            return RunError(f"Another Run of this process is using {self.path}. Call its finish() or close() first.")
        who = f"pid {owner.pid}{'' if owner.is_here else f' on {owner.host}'}" if owner else "by an unknown process"
        return RunError(
            f"The run in {self.path} is running ({who}). Wait for it or stop it, or choose another folder."
        )

    def release(self) -> None:
        """Let go of the lock."""
        if self._lock:
            # Children that load data share the lock: closing it here alone would leave it with them.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()
            self._lock = None

    def read(self, identity: Record, *, accept: frozenset[str] = frozenset()) -> Record | None:
        """run.json of the run in this folder, None in a new one; differences in `accept` are listed as "accepted".

        Raises RunError when that run has another identity, or run.json is damaged.
        """
        path = self.path / RUN
        if not path.exists():
            traces = [name for name in (CHECKPOINTS, HISTORY) if (self.path / name).exists()]
            if traces:
                raise RunError(
                    f"{self.path} has {' and '.join(traces)} but no run.json, so it is not known whose "
                    "they are. Choose another folder, or remove them."
                )
            return None
        try:
            record = _object(path)
        except (RunError, OSError) as error:
            raise RunError(f"{path} is damaged ({error}). Choose another folder.") from error
        if wrong_parts := foreign_parts(record):
            raise RunError(f"{path} is damaged ({wrong_parts}). Choose another folder.")
        theirs = record["identity"]
        parts = {name for name in identity.keys() | theirs.keys() if identity.get(name) != theirs.get(name)}
        if wrong := parts - accept:
            differences = _differences({n: identity.get(n) for n in wrong}, {n: theirs.get(n) for n in wrong})
            raise RunError(
                f"{self.path} holds another run. It differs in {'; '.join(differences)}. "
                f"Choose another folder, or resume with the same settings.{_how_to_accept(wrong)}"
                f"{_about_python(record, wrong)}"
            )
        if parts:
            changed = _differences({n: identity.get(n) for n in parts}, {n: theirs.get(n) for n in parts})
            record.setdefault("accepted", []).append(
                f"Accepted on {now()}, so that the result mixes both: it differs from what the run was begun with in "
                f"{'; '.join(changed)}."
            )
        return record

    def begin(self, identity: Record, earlier: Record | None, conditions: Record) -> None:
        """Write run.json for a new run, or for one that is resumed now."""
        record = earlier or {"id": self.id, "started": now(), "resumed": []}
        record["identity"] = identity
        if earlier:
            record["resumed"].append(now())
        self._record = record | {"status": "running", "finished": None} | conditions
        self._write(RUN, self._record)

    def mark_finished(self) -> None:
        """Mark the run finished in run.json, which is written anew, whatever became of it meanwhile."""
        self._write(RUN, self._record | {"status": "finished", "finished": now()})

    def forget(self) -> None:
        """Remove what `begin` wrote, where no step was taken."""
        forget(self.path)

    def computed(self) -> Record:
        """The figures in computed.json. Raises RunError when it is damaged."""
        path = self.path / COMPUTED
        try:
            if not path.exists():
                return {}
            content = _object(path)
            if "checksum" not in content or "figures" not in content:
                raise RunError("it has no checksum, as in earlier versions, whose run folders are to be begun anew")
            figures: Record = content["figures"]
            if content.get("run", self.id) != self.id:
                raise RunError("it is of another run")
            if content["checksum"] != _checksum(figures):
                raise RunError("its checksum does not match its figures")
        except (RunError, OSError, LookupError, TypeError, ValueError) as error:
            raise RunError(f"{path} is damaged ({error}). Remove it: its figures are measured again.") from error
        return figures

    def write_computed(self, figures: Record) -> None:
        """Replace computed.json."""
        self._write(COMPUTED, {"run": self.id, "checksum": _checksum(figures), "figures": figures})

    def _write(self, name: str, content: Record) -> None:
        files.write_text(self.path / name, json.dumps(content, indent=2) + "\n", RunError)


def _checksum(figures: Record) -> str:
    return f"{zlib.crc32(json.dumps(figures).encode()):08x}"


def _object(path: Path) -> Record:
    """What a JSON file of the run holds, an object. Raises RunError, or FileNotFoundError."""
    content = files.parse_json(
        files.read_text(path, RunError, most=64 * files.MIB), RunError, source=str(path), finite=False
    )
    if not isinstance(content, dict):
        raise RunError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def versions() -> Record:
    """The versions that a result depends on."""
    return {
        "archgrad": importlib.metadata.version("archgrad"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def numerics() -> Record:
    """Settings of torch on which the order of a sum, or its precision, may depend."""
    backends: Any = torch.backends  # whose stubs lack some of it
    cuda, cpu = backends.cuda.matmul, backends.mkldnn.matmul
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        # torch.get_float32_matmul_precision raises where one of these was set by itself.
        "matmul_precision": f"cuda {cuda.fp32_precision}, cpu {cpu.fp32_precision}",
        "mkldnn": bool(torch.backends.mkldnn.enabled),
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


def _differences(given: Mapping[str, Any], there: Mapping[str, Any], *, of: str = "") -> list[str]:
    mine, theirs = ({} if not each else _flat(each, "") for each in (given, there))
    missing = "nothing"
    return [
        f"{of}{name} (given {_short(mine.get(name, missing))}, in the folder {_short(theirs.get(name, missing))})"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name, missing) != theirs.get(name, missing)
    ]


def _short(text: str) -> str:
    """A value for a message, of a SHA-256 its first digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1...", text)


def _how_to_accept(parts: set[str]) -> str:
    if not parts <= set(ACCEPTABLE):
        return ""
    names = sorted(parts)
    options = " ".join(f"--accept {name}" for name in names)
    return (
        f" Where the difference is meant: archgrad resume {options}, or run.accept({', '.join(map(repr, names))}) in "
        f"Python; the report then says so."
    )


def _about_python(record: Record, parts: set[str]) -> str:
    """That code may differ because another version of Python reads it, where that may be so."""
    there, here = str(record["made_with"].get("python")), platform.python_version()
    if not parts <= set(ACCEPTABLE) or there.split(".")[:2] == here.split(".")[:2]:
        return ""
    return (
        f" The run was begun by Python {there}, and this is Python {here}. Code whose source cannot be had, such as "
        f"that of exec or python -c, is compared by its bytecode, which is another in each: that may be all that "
        f"differs. Resume by Python {'.'.join(there.split('.')[:2])}, or accept it."
    )


def _flat(value: Any, name: str) -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        flat: dict[str, str] = {}
        for key, item in value.items():
            flat |= _flat(item, f"{name}.{key}" if name else str(key))
        return flat
    return {name: json.dumps(value)}
