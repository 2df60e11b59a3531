"""Texts written to files, all or nothing."""

from __future__ import annotations

import os
from pathlib import Path

from archgrad.reading import Refusal


def text(path: Path, content: str, refuse: Refusal, *, errors: str = "strict") -> None:
    """Write UTF-8 text to a file beside `path`, then put it in its place; `errors` as of `str.encode`.

    What the system refuses is refused with its reason, and what was there before stays: no such folder, no access,
    a full disk.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(content, encoding="utf-8", errors=errors)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise refuse(
            f"cannot write {path}: {error.strerror or error}; free space, give write access, or choose another place"
        ) from error
