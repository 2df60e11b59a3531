"""Files that are written all or nothing."""

from __future__ import annotations

import os
from pathlib import Path

from archgrad.reading import Refusal


def text(path: Path, content: str, refuse: Refusal, *, errors: str = "strict") -> None:
    """Write UTF-8 text, as `data` does; `errors` as of `str.encode`."""
    data(path, content.encode("utf-8", errors), refuse)


def data(path: Path, content: bytes, refuse: Refusal) -> None:
    """Write bytes to a file beside `path`, then put it in its place.

    What the system refuses is refused with its reason, and what was there before stays: no such folder, no access,
    a full disk.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise refuse(
            f"cannot write {path}: {error.strerror or error}; free space, give write access, or choose another place"
        ) from error
