"""`archgrad report`, `board` and `compare`: what is drawn from folders of runs alone, without torch."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

import typer

from archgrad.cli import command_output
from archgrad.errors import ConfigError, RunError
from archgrad.report import board, compare, page
from archgrad.report.data import run_folder


def draw_report(run: Path, out: Path | None = None) -> command_output.Outcome:
    """Draw a run's report again, in its folder or in a file of its own; the outcome is its record."""
    if not run.is_dir():
        raise RunError(f"There is no run folder {run}. Give the folder that was --out.")
    _check_page(out, example="report.html")
    drawn = page.write(run, out)
    record = run_folder.present(run, tail=1).record or {}
    return command_output.of_record(record, f"The report is {drawn}")


def serve_board(out: Path, *, port: int | None, in_browser: bool) -> None:
    """Serve a run's page until Ctrl-C."""
    with board.Server(board.Board(out), port=port) as server:
        typer.echo(f"{out} is shown at {server.url} on this machine; Ctrl-C ends it.")
        if in_browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt as error:
            # SIGTERM is reported to whoever sent it.
            if type(error) is not KeyboardInterrupt:
                raise


def compare_runs(runs: Sequence[Path], out: Path | None) -> command_output.Outcome:
    """Show runs side by side, and write a page where asked."""
    _check_page(out, example="compare.html")
    sides = compare.read(runs)
    if out is not None:
        page.replace(out, compare.page(sides))
    closing = (
        f"The page is {out}" if out else "With --out compare.html there is a page with curves, cells and fronts."
    )
    return command_output.Outcome(compare.as_json(sides), f"{compare.plain(sides)}\n{closing}")


def _check_page(out: Path | None, *, example: str) -> None:
    if out is not None and (out.is_dir() or not out.parent.is_dir() or out.suffix.lower() not in (".html", ".htm")):
        raise ConfigError(f"--out {out}: give a file .html in a folder that is there, such as {example}")
