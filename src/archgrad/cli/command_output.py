"""What a command prints: a JSON value with --json, else text."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import typer

_FILES = ("report.html", "architecture.json", "network.safetensors", "network.pt2", "network.onnx")


class Outcome(NamedTuple):
    """What is printed: `body` with --json, else `text`."""

    body: Any
    text: str

    def show(self, *, as_json: bool) -> None:
        """Print it on stdout."""
        typer.echo(json.dumps(self.body) if as_json else printable(self.text))


def printable(text: str) -> str:
    """Text that any terminal takes: halves of characters, as a stranger's file may hold them, become "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def of_record(record: Mapping[str, Any], *closing: str) -> Outcome:
    """A run's record as a table, with lines below it; empty lines are left out."""
    from archgrad.report import score_text, text

    table = score_text if score_text.is_scored(record) else text
    return Outcome(record, "\n".join([table.plain(record), *filter(None, closing)]))


def files_in(folder: str | Path) -> str:
    """A sentence on the files of a result that a run's folder holds."""
    present = [name for name in _FILES if (Path(folder) / name).exists()]
    return f"{folder} holds {', '.join(present)}"


@contextlib.contextmanager
def only_json_on_stdout(as_json: bool) -> Iterator[None]:
    """With --json, send what the user's code prints to stderr."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield
