"""Safe, atomic, checked files for a run's state: tensors as safetensors, everything else as JSON."""

from __future__ import annotations

import contextlib
import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from archgrad import files
from archgrad.errors import RunError
from archgrad.report.data.run_format import CheckpointName, parse_checkpoint_name

State = dict[str, Any]
Mark = int | Literal["end", "left"]

_FORMAT = "archgrad checkpoint 1"
# What safetensors stores under its own name everywhere; any other dtype is stored as its bytes.
_NATIVE = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
)


def save(path: Path, state: object) -> None:
    """Write `state` to one safetensors file, whole or not at all.

    `state` is any nest of dict (str or int keys), list, tuple, str, int, float, bool, None, dense tensors and
    numpy arrays. Tensors are stored from the CPU; strides and `requires_grad` are not stored.

    Raises RunError when a value cannot be stored, or the disk is full.
    """
    bodies: dict[str, Tensor] = {}
    text = json.dumps(_encode(state, "", bodies), separators=(",", ":"))
    metadata = {"format": _FORMAT, "state": text, "checksum": _checksum(text, bodies)}
    size = len(text) + sum(body.nbytes for body in bodies.values())

    def write(partial: Path) -> None:
        try:
            save_file(bodies, partial, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    files.replace(path, write, _cannot_write, size=size)


def load(path: Path) -> Any:
    """Read what `save` wrote, tensors on the CPU; nothing in the file is executed.

    Raises RunError when the file is missing, truncated, damaged or not a checkpoint of archgrad.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys() if metadata.get("format") == _FORMAT else []
            # The copies keep the state alive after the file is replaced or cut.
            bodies = {name: file.get_tensor(name).clone() for name in names}
    except FileNotFoundError as error:
        raise RunError(f"There is no checkpoint at {path}. Check the path.") from error
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise RunError(
            f"The checkpoint {path} is damaged, truncated or no safetensors file ({error}). "
            "Go on from an older checkpoint, or start the run in another folder."
        ) from error
    if metadata.get("format") != _FORMAT:
        raise RunError(
            f"{path} is a safetensors file, but not a checkpoint that this archgrad can read: its format "
            f"is {metadata.get('format')!r}, allowed is {_FORMAT!r}. Give a file of a run's checkpoints."
        )
    text = metadata.get("state", "")
    if files.deeper(text, files.DEPTH * 4):
        raise RunError(f"The checkpoint {path} is not one that archgrad wrote (it is nested too deeply).")
    if metadata.get("checksum") != _checksum(text, bodies):
        raise RunError(
            f"The checkpoint {path} is damaged: its checksum does not match its content. "
            "Go on from an older checkpoint, or start the run in another folder."
        )
    try:
        return _decode(json.loads(text), bodies)
    except (
        ValueError, TypeError, LookupError, RuntimeError, AttributeError, OverflowError, MemoryError, struct.error
    ) as error:  # fmt: skip
        raise RunError(f"The checkpoint {path} is not one that archgrad wrote ({error}).") from error


@contextlib.contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Around what needs a file or folder. Raises RunError where the system does not allow it."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{error.filename or path} cannot be used: {error.strerror or error}. Give access to the whole run "
            f"folder, then run the same program again: it goes on from the last checkpoint."
        ) from error


class Series:
    """The checkpoints of one run: the last two of the running phase, and the end of every finished phase.

    A mark is a step, `"end"` for a finished phase, or `"left"` for a loop that was left before its last step:
    an end that counts only once the program has gone on (`confirm_end`).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._left: tuple[int, Path] | None = None

    def save(self, state: State, *, index: int, phase: str, mark: Mark) -> Path:
        """Save the state of phase number `index` and drop what is no longer needed; returns the path."""
        path = self.folder / str(CheckpointName(index, phase, str(mark)))
        with _usable(self.folder):
            self.folder.mkdir(exist_ok=True)
            save(path, state)
            if mark == "left":
                self._left = index, path
            else:
                self._prune(index, keep=1 if mark == "end" else 2)
        return path

    def newest(self, index: int, *, run: str = "") -> tuple[State | None, Path | None, list[str]]:
        """The newest valid state of phase `index`, its path, and a warning for each newer one that is damaged.

        So is one that does not name this `run` and phase.
        """
        warnings: list[str] = []
        with _usable(self.folder):
            paths = self._of(index)
        for path in paths:
            with _usable(path), files.open_ordinary(path):
                pass  # what cannot be read now is not damaged, and is not to be lost
            try:
                return _of_run(load(path), path, run=run, index=index), path, warnings
            except RunError as error:
                warnings.append(f"Fell back to what was saved before it. {error}")
        return None, None, warnings

    def confirm_end(self, index: int) -> None:
        """Make the end of a phase that this process left early its real end."""
        if self._left and self._left[0] == index:
            path = self._left[1]
            with _usable(path):
                path.replace(path.with_name(path.name.replace("-left.", "-end.")))
        self._left = None

    def discard(self, index: int, newest: Path | None) -> int:
        """Remove what a phase that goes on from `newest` makes void: newer files of it, later phases, remains.

        Returns the number of files of later phases.
        """
        with _usable(self.folder):
            for path in [*self.folder.glob("*-left.safetensors"), *self.folder.glob(".*.partial")]:
                if path.is_file():
                    path.unlink()
            for path in self._of(index):
                if path == newest:
                    break
                path.unlink()
            later = [path for path, name in self._files() if name.index > index]
            for path in later:
                path.unlink()
        return len(later)

    def _files(self) -> list[tuple[Path, CheckpointName]]:
        paths = list(self.folder.iterdir()) if self.folder.is_dir() else []
        # A pipe of that name would be read for ever.
        named = [(p, parts) for p in paths if (parts := parse_checkpoint_name(p.name)) and p.is_file()]
        return sorted(named, key=lambda pair: pair[0].name)

    def _of(self, index: int) -> list[Path]:
        """The files of a phase that count, newest first; names sort by step, and "end" comes after digits."""
        return [path for path, name in reversed(self._files()) if name.index == index and name.mark != "left"]

    def _prune(self, index: int, *, keep: int) -> None:
        phases: dict[int, list[tuple[Path, CheckpointName]]] = {}
        for path, name in reversed(self._files()):
            if name.mark != "left":
                phases.setdefault(name.index, []).append((path, name))
        for number, files_of in phases.items():
            ended = int(files_of[0][1].mark == "end")
            # An earlier phase without an end would have to start anew: its last states stay.
            rest = keep if number == index or not ended else 0
            for path, _ in files_of[ended + rest :]:
                path.unlink()


def _of_run(state: Any, path: Path, *, run: str, index: int) -> State:
    """The state, which says of which run and phase it is. Raises RunError where that is another one."""
    if not isinstance(state, dict):
        raise RunError(f"{path} holds no state of a run.")
    if state.get("run", run) != run or state.get("index", index) != index:
        raise RunError(f"{path} is a checkpoint of another run, or of another phase of this one: it was moved there.")
    return state


def _encode(value: Any, name: str, bodies: dict[str, Tensor]) -> Any:
    """JSON for `value`: anything but str, int, finite float, bool and None becomes a list [kind, ...]."""
    if type(value) in (str, int, bool, type(None)):
        return value
    if isinstance(value, Tensor):
        return ["tensor", *_put_tensor(value, name, bodies)]
    if isinstance(value, np.ndarray | np.generic):
        return ["array" if isinstance(value, np.ndarray) else "scalar", *_put_array(value, name, bodies)]
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else ["float", struct.pack("<d", value).hex()]
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str | int)]
        if wrong:
            raise _refusal(f"{name}: the key {wrong[0]!r}", type(wrong[0]), "keys of type str and int")
        return ["dict", *([key, _encode(item, f"{name}/{key}", bodies)] for key, item in value.items())]
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, *(_encode(item, f"{name}/{place}", bodies) for place, item in enumerate(value))]
    allowed = "dict, list, tuple, str, int, float, bool, None, dense tensors and numpy arrays without objects"
    raise _refusal(name or "the state", type(value), allowed)


def _decode(value: Any, bodies: dict[str, Tensor]) -> Any:
    if not isinstance(value, list):
        return value
    kind, *rest = value
    if kind == "dict":
        return {key: _decode(item, bodies) for key, item in rest}
    if kind in ("list", "tuple"):
        items = [_decode(item, bodies) for item in rest]
        return items if kind == "list" else tuple(items)
    if kind == "float":
        return struct.unpack("<d", bytes.fromhex(rest[0]))[0]
    name, dtype, shape = rest
    raw = bodies[name].reshape(-1)
    if kind == "tensor":
        return raw.view(getattr(torch, dtype)).reshape(shape)
    array = raw.numpy().view(np.dtype(dtype)).reshape(shape)
    return array if kind == "array" else array[()]


def _put_tensor(tensor: Tensor, name: str, bodies: dict[str, Tensor]) -> tuple[str, str, list[int]]:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise _refusal(name, type(tensor), "dense tensors that hold values (not sparse, quantized or meta)")
    body = tensor.detach().resolve_conj().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)
    shape = list(body.shape)
    if body.dtype not in _NATIVE:
        body = body.reshape(-1).view(torch.uint8)
    key = _key(name, bodies)
    bodies[key] = body
    return key, str(tensor.dtype).removeprefix("torch."), shape


def _put_array(array: Any, name: str, bodies: dict[str, Tensor]) -> tuple[str, str, list[int]]:
    dtype: np.dtype[Any] = array.dtype
    if dtype.hasobject or np.dtype(dtype.str) != dtype:
        raise _refusal(name, type(array), f"arrays of plain numbers and text, not of dtype {dtype}")
    key = _key(name, bodies)
    bodies[key] = torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy())
    return key, dtype.str, list(array.shape)


def _key(name: str, bodies: dict[str, Tensor]) -> str:
    # The number keeps apart paths that read alike, as the keys 1 and "1" do.
    return f"{len(bodies)}:{name.encode('ascii', 'backslashreplace').decode()}"


def _checksum(text: str, bodies: Mapping[str, Tensor]) -> str:
    total = zlib.crc32(text.encode())
    for name in sorted(bodies):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(bodies[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _cannot_write(reason: str) -> RunError:
    return RunError(f"{reason}. Then run the same program again: it goes on from the last checkpoint.")


def _refusal(name: str, given: type, allowed: str) -> RunError:
    return RunError(
        f"The state at {name} cannot be saved: it is of type {given.__module__}.{given.__qualname__}. "
        f"Allowed are {allowed}. Change what the part's state_dict returns."
    )
