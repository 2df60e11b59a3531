"""The commands as typer shows them; what they do is in `archgrad.cli.commands.slim`, imported when one runs.

The options of slim, search, score, train, transfer and demo are the fields of their schemas, so that the command
line, YAML files and command.json cannot differ.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from archgrad.cli import error_messages as failures
from archgrad.cli.schemas.commands import DemoOptions, InitOptions, SlimOptions, TrainOptions, anchored, resolve
from archgrad.cli.schemas.control import ControlOptions
from archgrad.cli.schemas.score import ScoreOptions
from archgrad.cli.schemas.search import SearchOptions
from archgrad.cli.schemas.transfer import TransferOptions
from archgrad.cli.typer_options import JSON, describe

_RUN = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that was --out.", show_default=False)]
_ONNX = Annotated[bool, typer.Option("--onnx", help="As ONNX, the only format so far.")]
_RUNS = Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of runs.", show_default=False)]
_PAGE = Annotated[Path | None, typer.Option("--out", metavar="FILE.html", help="Write a page too.")]
_PORT = Annotated[int | None, typer.Option(min=0, max=65535, help="Default: the first free one from 6174 on.")]
_NO_OPEN = Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")]
_FILE = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: RUN/network.onnx.")]


class _Guarded(TyperGroup):
    """Turns what a user can put right into one message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; with --traceback nothing is turned into anything."""
        if ctx.params["traceback"]:
            return super().invoke(ctx)
        try:
            with _termination():
                return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            # A fault of archgrad itself is not explained, and keeps its traceback.
            failure = failures.explained(error)
            if failure is None:
                raise
            typer.echo(failure.message, err=True)
            raise typer.Exit(failure.status) from None


app = typer.Typer(
    cls=_Guarded,
    help="Finds a neural network's architecture by gradient, under the limit that your device sets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The command `archgrad`."""
    app(prog_name="archgrad")


def _version(wanted: bool) -> None:
    if wanted:
        from archgrad import __version__

        typer.echo(f"archgrad {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show errors with their traceback.")] = False,
) -> None:
    pass


def _demo(*, config: Path | None, as_json: bool, **given: Any) -> None:
    options = resolve(DemoOptions, given, config)
    typer.echo(f"A small CNN learns real digits and is slimmed to half its MACs, into {options.out} ...", err=True)
    with _quiet(as_json):
        from archgrad.cli.commands.slim import demo

        record = demo(options)
    _show(record, as_json, f"{_baseline(record)}\n{_NEXT}\n{_where(options.out)}")


def _slim(*, config: Path | None, as_json: bool, dry_run: bool, **given: Any) -> None:
    options = anchored(resolve(SlimOptions, given, config))
    if dry_run:
        _planned("slim", options, as_json)
        return
    with _quiet(as_json):
        from archgrad.cli.commands.slim import slim

        record = slim(options)
    _show(record, as_json, _where(options.out))


def _search(*, config: Path | None, as_json: bool, dry_run: bool, **given: Any) -> None:
    options = anchored(resolve(SearchOptions, given, config))
    if dry_run:
        _planned("search", options, as_json)
        return
    with _quiet(as_json):
        from archgrad.cli.commands.search import search

        record = search(options)
    larger = _LARGER.format(out=options.out) if options.space == "darts" else ""
    _show(record, as_json, f"{_where(options.out)}{larger}")


def _control(*, config: Path | None, as_json: bool, **given: Any) -> None:
    options = resolve(ControlOptions, given, config)
    with _quiet(as_json):
        from archgrad.cli.commands.control import control

        record = control(options)
    _show(record, as_json, _where(options.out))


def _score(*, config: Path | None, as_json: bool, **given: Any) -> None:
    options = anchored(resolve(ScoreOptions, given, config))
    with _quiet(as_json):
        from archgrad.cli.commands.score import score

        record = score(options)
    _show(record, as_json, _where(options.out) if options.out else "")


def _train(*, config: Path | None, as_json: bool, **given: Any) -> None:
    options = anchored(resolve(TrainOptions, given, config))
    with _quiet(as_json):
        from archgrad.cli.commands.train import train

        record = train(options)
    _show(record, as_json, _where(options.out))


def _transfer(*, config: Path | None, as_json: bool, dry_run: bool, **given: Any) -> None:
    options = anchored(resolve(TransferOptions, given, config))
    if dry_run:
        _planned("transfer", options, as_json)
        return
    with _quiet(as_json):
        from archgrad.cli.commands.transfer import transfer_command

        record = transfer_command(options)
    _show(record, as_json, _where(options.out))


def _init(*, config: Path | None, as_json: bool, **given: Any) -> None:
    options = resolve(InitOptions, given, config)
    with _quiet(as_json):
        from archgrad.cli.commands.init import init

        seen = init(options)
    if as_json:
        typer.echo(json.dumps(seen))
        return
    shapes = " and ".join(map(str, seen["input"]))
    typer.echo(
        f"inputs {shapes}, {seen['classes']} classes; {seen['params']:,.0f} parameters, {seen['macs']:,.0f} MACs"
    )
    for name, size in seen["gates"].items():
        typer.echo(f"can be slimmed: {name} ({size})")
    for name, reason in seen["frozen"].items():
        typer.echo(f"frozen: {name}: {reason}")
    typer.echo(f"suggested limit: {seen['limit'] or 'none; no usual share of the MACs can be reached'}")
    typer.echo(f"wrote {' and '.join(seen['written'])}. Next: archgrad slim --config {seen['written'][0]} --dry-run")


def _planned(command: str, options: SlimOptions | SearchOptions | TransferOptions, as_json: bool) -> None:
    with _quiet(as_json):
        from archgrad.cli.commands.dry_run import lines, plan

        found = plan(command, options)
    typer.echo(json.dumps(found) if as_json else "\n".join(lines(found)))


app.command("init", help="Look at a model and data, and write a configuration and a script to slim it with.")(
    describe(_init, InitOptions)
)
app.command("demo", help="Slim a small CNN on real digits, end to end, in about a minute on two cores.")(
    describe(_demo, DemoOptions)
)
app.command("slim", help="Slim a network of yours, or of timm, on your data, under a limit if you give one.")(
    describe(_slim, SlimOptions, dry=True)
)
app.command("search", help="Search a space for an architecture, under a limit if you give one, and train it.")(
    describe(_search, SearchOptions, dry=True)
)
app.command("control", help="Control a system by trying it out, with a network that learns its dynamics.")(
    describe(_control, ControlOptions)
)
app.command("score", help="Rank networks without training, and tell how far the ranking is to be trusted.")(
    describe(_score, ScoreOptions)
)
app.command("train", help="Train a network, or an architecture that was slimmed or searched, from fresh weights.")(
    describe(_train, TrainOptions)
)


app.command("transfer", help="Prune a network on much data, and train what stays on few samples of other data.")(
    describe(_transfer, TransferOptions, dry=True)
)


@app.command()
def export(run: _RUN, *, onnx: _ONNX = True, out: _FILE = None, as_json: JSON = False) -> None:
    """Write the network of a finished run as ONNX, checked against PyTorch."""
    with _quiet(as_json):
        from archgrad.cli.commands.slim import export as write

        done = write(run, out)
    figures = {
        "path": str(done.path),
        "dynamic_batch": done.dynamic_batch,
        "largest_difference": done.largest_difference,
    }
    batch = "any batch size" if done.dynamic_batch else "the batch size of its example alone"
    line = f"{done.path}: takes {batch}; largest difference from PyTorch {done.largest_difference:.2g}"
    typer.echo(json.dumps(figures) if as_json else line)


@app.command()
def report(run: _RUN, *, as_json: JSON = False) -> None:
    """Print the table of a finished run, and draw its report.html anew."""
    with _quiet(as_json):
        from archgrad.cli.commands.report import report as draw

        record, page = draw(run)
    _show(record, as_json, f"The report is {page}")


@app.command()
def board(run: _RUN, *, port: _PORT = None, no_open: _NO_OPEN = False) -> None:
    """Show a run in the browser, on this machine alone, while it goes on; Ctrl-C ends it."""
    from archgrad.cli.commands.report import board as serve

    serve(run, port=port, in_browser=not no_open)


@app.command()
def compare(runs: _RUNS, *, out: _PAGE = None, as_json: JSON = False) -> None:
    """Show runs side by side: figures, costs, limits, what they took, where their settings differ."""
    with _quiet(as_json):
        from archgrad.cli.commands.report import compare as draw

        body, lines = draw(runs, out)
    typer.echo(json.dumps(body) if as_json else lines)


@app.command()
def resume(run: _RUN, *, as_json: JSON = False) -> None:
    """Go on with a run that was stopped; the result is that of a run never stopped."""
    with _quiet(as_json):
        from archgrad.cli.commands.slim import resume as repeat

        record = repeat(run)
    _show(record, as_json, _where(run))


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where your runs are.")] = Path("runs"),
    *,
    as_json: JSON = False,
) -> None:
    """List the runs below a folder, and how they stand."""
    from archgrad.cli.commands.runs import listed, written

    rows = listed(folder)
    typer.echo(json.dumps(rows) if as_json else written(rows) or f"There is no run below {folder}.")


@app.command()
def doctor(*, as_json: JSON = False) -> None:
    """Say what this machine offers, and what is missing for what."""
    with _quiet(as_json):
        from archgrad.cli.commands.doctor import examined, written

        report = examined()
    typer.echo(json.dumps(report) if as_json else written(report))


@app.command()
def methods(*, as_json: JSON = False) -> None:
    """List the methods."""
    from archgrad.cli.schemas.methods import described

    rows = described()
    if as_json:
        typer.echo(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "what for", "paper", box=None, padding=(0, 3, 0, 0), header_style="bold")
    for row in rows:
        table.add_row(row["name"], row["purpose"], row["paper"])
    Console(highlight=False).print(table)


@contextlib.contextmanager
def _quiet(as_json: bool) -> Iterator[None]:
    """Keep what a user's code prints off stdout where JSON is to be alone there."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _termination() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, failures.terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(record: Mapping[str, Any], as_json: bool, more: str) -> None:
    if as_json:
        typer.echo(json.dumps(record))
        return
    from archgrad.report import score_text as scored
    from archgrad.report import text

    typer.echo((scored if scored.is_scored(record) else text).plain(record))
    if more:
        typer.echo(more)


def _where(out: str | Path) -> str:
    written = [name for name in _WRITTEN if (Path(out) / name).exists()]
    return f"{out} holds {', '.join(written)}"


def _baseline(record: Mapping[str, Any]) -> str:
    (baseline,) = record["baselines"]
    return (
        f"{baseline['name']}: accuracy {100 * baseline['accuracy']:.2f} %, {baseline['macs']:,.0f} MACs "
        f"(slimmed: {100 * record['after']['accuracy']:.2f} %, {record['after']['macs']:,.0f})\n"
    )


_WRITTEN = ("report.html", "architecture.json", "network.safetensors", "network.pt2", "network.onnx")
_LARGER = """
Next, a larger network of the same cells:
  archgrad train {out}/architecture.json DATA --cells 20 --channels 36 --auxiliary 0.4 --drop-path 0.2"""
_NEXT = """Next, with a network and data of your own:
  archgrad slim mymodel.py:MyCNN images/ --size 64 --limit macs=0.5 --out runs/mine
  (any function or class that gives an nn.Module; a folder of images, one sub-folder a class, or a .npz file)
  --weights FILE starts from trained weights; --limit latency_ms=4.0 is measured on this machine.
"""
