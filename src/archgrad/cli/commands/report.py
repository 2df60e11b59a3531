"""report, board and compare: what is drawn from folders alone, without torch."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from archgrad import files
from archgrad.errors import ConfigError, RunError
from archgrad.report import board as boards
from archgrad.report import compare as compared
from archgrad.report import page, text

Record = dict[str, Any]


def report(out: Path) -> tuple[Record, Path]:
    """Draw a run's report anew; returns its record and the page."""
    if not out.is_dir():
        raise RunError(f"There is no run folder {out}. Give the folder that was --out.")
    written = page.write(out)
    held = files.read_text(out / "record.json", RunError, most=files.RECORD)
    record: Record = files.parse_json(held, RunError, source=str(out / "record.json"), finite=False)
    text.check(record)
    return record, written


def board(out: Path, *, port: int | None, in_browser: bool) -> None:
    """Serve a run's page until Ctrl-C."""
    with boards.Server(boards.Board(out), port=port) as server:
        typer.echo(f"{out} is shown at {server.url} on this machine; Ctrl-C ends it.")
        if in_browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt as error:
            # SIGTERM is told to whoever sent it.
            if type(error) is not KeyboardInterrupt:
                raise


def compare(runs: Sequence[Path], out: Path | None) -> tuple[Record, str]:
    """Hold runs side by side; returns what was found, as JSON and as text, and writes a page where asked."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ConfigError(f"--out {out}: give a file in a folder that is there, such as compare.html")
    found = compared.read(runs)
    if out is not None:
        page.replace(out, compared.page(found))
    more = (
        f"\nThe page is {out}" if out else "\nWith --out compare.html there is a page with curves, cells and fronts."
    )
    return compared.as_json(found), f"{compared.plain(found)}{more}"
