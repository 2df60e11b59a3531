"""Bounded reading of untrusted files, and atomic writing.

What is read may come from anywhere: sizes, depth and numbers are bounded, and nothing is executed. What is written is
on the disk before it takes the place of what was there, so that a crash or a power cut leaves one of the two.
Every function takes the class of error that its caller raises, so that a message fits the file.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import json
import math
import os
import platform
import re
import shutil
import stat
import struct
import time
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from archgrad.errors import ArchgradError

if TYPE_CHECKING:
    import numpy as np

Refusal = Callable[[str], ArchgradError]

MIB = 2**20
RECORD = 256 * MIB  # record.json, which holds pictures, and history.jsonl
DEPTH = 64  # nested lists and objects; our own files need less than ten
_ABANDONED_SECONDS = 24 * 3600.0
DIGITS = 300  # of a whole number: what a float can hold
# Possessive, so that a string without an end takes no more than one look at each character.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
# What numpy and zipfile raise for bytes that are not what they seem.
UNREADABLE = (
    ValueError, OSError, EOFError, LookupError, RuntimeError, MemoryError, SyntaxError, TypeError, AttributeError,
    OverflowError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_text(
    path: Path, refuse: Refusal, *, most: int = 16 * MIB, errors: str = "strict", refuse_absent: bool = False
) -> str:
    """The UTF-8 text of an ordinary file of at most so many bytes; `errors` as of `bytes.decode`.

    FileNotFoundError passes, unless `refuse_absent`. What else is wrong is refused: no ordinary file, too large, not
    readable, not UTF-8.
    """
    try:
        with open_ordinary(path) as file:
            data = file.read(most + 1)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not refuse_absent:
            raise
        raise refuse(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > most:
        raise refuse(f"{path} is larger than {most / MIB:,.0f} MiB, which such a file does not reach")
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise refuse(f"cannot read {path}: no text in UTF-8 ({error})") from None


def open_ordinary(path: Path) -> IO[bytes]:
    """A file, opened for reading. OSError where it is something else: a pipe may never begin, a device never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "no ordinary file")
    return os.fdopen(handle, "rb")


def parse_json(content: str, refuse: Refusal, *, source: str, finite: bool = True) -> Any:
    """The value of a JSON text: no key twice in an object, no nesting beyond `DEPTH`, no number that no float holds.

    Args:
        content: the text.
        refuse: makes the error.
        source: what messages call it.
        finite: refuse NaN and Infinity, which are no JSON.
    """

    def constant(name: str) -> float:
        if finite:
            raise ValueError(f"{name} is no number of JSON")
        return float(name)

    if deeper(content, DEPTH):
        raise refuse(f"{source} is not JSON (it is nested deeper than {DEPTH} levels)")
    try:
        return json.loads(content, object_pairs_hook=_once, parse_int=_integer, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise refuse(f"{source} is not JSON ({error})") from None


def parse_document(
    content: str, refuse: Refusal, *, source: str, form: str, version: int, finite: bool = True
) -> dict[str, Any]:
    """The JSON object of a text whose "format" and "version" are these; refused otherwise, as by `parse_json`."""
    body = parse_json(content, refuse, source=source, finite=finite)
    given = body.get("format") if isinstance(body, dict) else type(body).__name__
    if given != form:
        raise refuse(f'{source}: "format" is {shown(given)}, expected {form!r}')
    if body.get("version") != version:
        raise refuse(
            f"{source} has format version {shown(body.get('version'))}; this archgrad reads version {version}"
        )
    return body  # type: ignore[no-any-return]


def deeper(content: str, than: int) -> bool:
    """Whether brackets are nested deeper in a JSON text than so many levels, those in strings left out."""
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub("", content)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > than:
            return True
    return False


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return content


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def shown(value: object, *, most: int = 200) -> str:
    """The `repr` of a value, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def read_arrays(
    path: Path, refuse: Refusal, *, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The arrays of a .npz file whose names are wanted, one after another; of the others an empty one.

    What a header declares is compared with the bytes that are there before memory is taken for it, and all of it
    with the memory that is free. Pickled objects are refused, as is what is no .npz file.
    """
    import numpy as np

    place = str(path)
    try:
        with open_ordinary(path) as file:
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile("not a zip archive")
            with zipfile.ZipFile(file) as archive:
                members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
                taken = {name: member for name, member in members.items() if wanted(name)}
                refuse_more_than_free(path, sum(member.file_size for member in taken.values()), refuse)
                for name in members:
                    place = f"{path}: {name}"
                    yield name, _array(archive, taken[name], refuse, place) if name in taken else np.empty(0)
    except ArchgradError:
        raise
    except (*UNREADABLE, NotImplementedError) as error:
        reason = _first_line(error)
        raise refuse(
            f"{path} is damaged or not a .npz file ({reason}); copy it again, or write it with numpy.savez"
        ) from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, refuse: Refusal, place: str) -> np.ndarray[Any, Any]:
    import numpy as np

    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
        shape, dtype = _header(file, version)
        if dtype.hasobject:
            raise refuse(
                f"{place} holds pickled Python objects, which can execute code and are not read; save plain numbers "
                f"or strings (for instance array.astype(str))"
            )
        declared = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or declared > member.file_size:
            raise ValueError(f"{place} declares {declared:,} bytes and holds {member.file_size:,}")
    with archive.open(member) as file:
        array: np.ndarray[Any, Any] = np.lib.format.read_array(file, allow_pickle=False)  # type: ignore[no-untyped-call]
    return array


def _header(file: IO[bytes], version: tuple[int, int]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    import numpy as np

    readers: dict[Any, Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"format version {version[0]}.{version[1]} is for arrays of records, which are not read")
    shape, _, dtype = readers[version](file)
    return shape, dtype


def refuse_more_than_free(path: Path, needed: int, refuse: Refusal) -> None:
    """Refuse a file whose content takes more memory than is free."""
    free = free_memory()
    if free is not None and needed > free:
        raise refuse(
            f"{path} unpacks to {needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB of memory are free; take "
            f"a part of it, or a machine with more memory"
        )


def free_memory() -> int | None:
    """Bytes of memory that a program can still take on this machine; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    except (OSError, ValueError, StopIteration):
        return None


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def write_text(path: Path, content: str, refuse: Refusal, *, errors: str = "strict") -> None:
    """Write UTF-8 text, as `write_bytes` does; `errors` as of `str.encode`."""
    write_bytes(path, content.encode("utf-8", errors), refuse)


def write_bytes(path: Path, content: bytes, refuse: Refusal) -> None:
    """Write a file atomically; refused with the reason where the system does not allow it."""

    def write(partial: Path) -> None:
        partial.write_bytes(content)

    replace(path, write, refuse, size=len(content))


def replace(path: Path, write: Callable[[Path], None], refuse: Refusal, *, size: int) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in the place of `path` atomically.

    The file and its folder are synchronized with the disk (fsync). Where something fails, such as a full disk, the
    temporary file is removed, what stood at `path` stays, and the error says how many bytes (`size`) were needed.
    """
    if not path.parent.is_dir():
        raise refuse(f"cannot write {path}: there is no folder {path.parent}. Make it, or choose another place")
    try:
        encoded = os.fsencode(path.name)
    except UnicodeEncodeError:
        raise refuse(f"cannot write {shown(str(path))}: no file can be named so. Choose another name") from None
    # With what is added to it, a long name would be longer than a file system takes.
    name = path.name if len(encoded) < 200 else hashlib.sha256(encoded).hexdigest()
    partial = path.with_name(f".{name}.{pid_namespace()}.{os.getpid()}.partial")
    remove_partial(path.parent, of=name)
    try:
        write(partial)
        partial.chmod(0o666 & ~_umask())  # as an ordinary file has it, whatever wrote it
        _synchronize(partial)
        partial.replace(path)
        _synchronize(path.parent)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise refuse(
                f"cannot write {path}: {error.strerror}. What was saved before is intact. Give write access, or "
                f"choose another place"
            ) from error
        if isinstance(error, IsADirectoryError):
            raise refuse(
                f"cannot write {path}: a folder is there. What was saved before is intact. Remove or rename it, or "
                f"choose another place"
            ) from error
        free = shutil.disk_usage(path.parent).free
        raise refuse(
            f"cannot write {path}: {error.strerror or error}; it needs {size / 1e6:,.1f} MB, and "
            f"{free / 1e6:,.1f} MB are free. What was saved before is intact. Make room, give "
            f"write access, or choose another place"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: Path, *, of: str = "") -> None:
    """Remove what killed processes left of files that they were writing in a folder, or `of` one.

    Of a process elsewhere, on another machine or in another container that has this folder too, nobody here can say
    whether it lives: what it left goes a day after it was last written to.
    """
    for partial in folder.glob(f".{glob.escape(of) or '*'}.*.partial"):
        *_, where, pid, _ = partial.name.split(".")
        if where == pid_namespace() and pid.isdecimal() and Path("/proc/self").exists():
            left = not Path(f"/proc/{pid}").exists()
        else:
            left = _age(partial) > _ABANDONED_SECONDS
        if left:
            with contextlib.suppress(OSError):  # another user's
                partial.unlink(missing_ok=True)


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0


@functools.cache
def pid_namespace() -> str:
    """Where a process number means one process, as eight digits: this boot of this machine, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        container = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        boot = container = ""
    return hashlib.sha256(f"{platform.node()} {boot} {container}".encode()).hexdigest()[:8]


def _umask() -> int:
    """The process's mask, read: to set it, even for a moment, would change what other threads write."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask")).split()[1], 8)
    except (OSError, ValueError, StopIteration):
        return 0o022


def _synchronize(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
