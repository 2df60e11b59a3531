"""The commands and their options, as typer shows them; what they do is in `archgrad.cli.commands`.

That package is imported when a command runs: torch takes seconds, and help and completion must not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from archgrad.cli import typer_options
from archgrad.cli.command_output import Outcome, only_json_on_stdout
from archgrad.cli.command_table import COMMANDS, Command
from archgrad.cli.error_messages import ErrorGroup
from archgrad.cli.schemas import configuration
from archgrad.cli.typer_options import JSON

_RUN = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that was --out.", show_default=False)]
_WATCHED = Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help="A run's folder, or one that runs are in.")]
_RUNS = Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of runs.", show_default=False)]
_PAGE = Annotated[Path | None, typer.Option("--out", metavar="FILE.html", help="Write a page too.")]
_PORT = Annotated[
    int | None, typer.Option(metavar="N", min=0, max=65535, help="Default: the first free one from 6174 on.")
]
_NO_OPEN = Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")]
_FILE = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Default: RUN/network.onnx.")]
_DYNAMIC = Annotated[
    str | None,
    typer.Option(
        metavar="height,width", help="Sizes of images that the file takes at any value, as it does batches."
    ),
]
_NO_PREPROCESS = Annotated[
    bool,
    typer.Option("--no-preprocess", help="Inputs and outputs of the network alone, not pixels in and labels out."),
]
_RESIZE = Annotated[
    bool, typer.Option("--resize", help="The file takes pixels of any height and width, and resizes them itself.")
]
_INT8 = Annotated[
    bool,
    typer.Option(
        "--int8", help="Quantized by ONNX Runtime on the run's training data, and scored; network.int8.onnx."
    ),
]
_MAX_DROP = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        min=0,
        help="With --int8: points of the validation score that it may cost; layers stay in float for it. Default: 1.",
    ),
]
_MAX_MS = Annotated[
    float | None,
    typer.Option(
        metavar="X", help="With --int8: milliseconds that the file may take in its runtime, or it is not written."
    ),
]
_MAX_KB = Annotated[
    float | None,
    typer.Option(metavar="X", help="With --int8: kB of 1,024 bytes that the file may have, or it is not written."),
]
_REPORT = Annotated[
    Path | None, typer.Option("--out", metavar="FILE.html", help="Write the page there. Default: RUN/report.html.")
]
_FORCE = Annotated[bool, typer.Option("--force", help="Write over files of a package that you may have edited.")]
_PACKAGE = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: RUN/package.")]
_OF_INT8 = Annotated[
    bool, typer.Option("--int8", help="Of RUN/network.int8.onnx, which archgrad export --int8 wrote.")
]
_FILES = Annotated[list[Path], typer.Argument(metavar="FILE...", help=".onnx or .pte files.", show_default=False)]
_RUNTIME = Annotated[
    str | None, typer.Option(metavar="onnx|openvino|executorch", help="Default: onnx, executorch for .pte.")
]
_SHAPE = Annotated[
    list[str] | None,
    typer.Option(metavar="1,3,224,224", help="Of the input, where a file leaves it open; one for each input."),
]
_BATCH = Annotated[
    int, typer.Option(metavar="N", min=1, help="Samples of a pass, where the file leaves that open. Default: 1.")
]
_THREADS = Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="CPU threads of a pass. Default: 1.")]
_REPEATS = Annotated[int, typer.Option(metavar="N", min=1, help="Passes that are timed. Default: 50.")]
_ACCEPT = Annotated[
    list[str] | None,
    typer.Option(
        metavar="data|network|settings", help="Go on although this differs now; noted in the report; may be repeated."
    ),
]
_FOLDER = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where your runs are.")]

app = typer.Typer(
    cls=ErrorGroup,
    help="Finds a neural network's architecture by gradient, under the limit that your device sets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The command `archgrad`."""
    app(prog_name="archgrad")


def _version(asked: bool) -> None:
    if asked:
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


def _callback(command: Command) -> Callable[..., None]:
    """What typer calls for a row of the table."""

    def call(*, config: Path | None, as_json: bool, dry_run: bool = False, **given: Any) -> None:
        options = configuration.resolve(command.schema, given, config)
        options = configuration.anchored(options) if command.resumable else options
        with only_json_on_stdout(as_json):
            if dry_run:
                from archgrad.cli.commands.dry_run import plan

                outcome = plan(command.name, options)
            else:
                outcome = command.execute(options)
        outcome.show(as_json=as_json)

    return typer_options.describe(call, command.schema, dry_run=command.dry_run)


for _command in COMMANDS.values():
    app.command(_command.name, help=_command.help)(_callback(_command))


@app.command()
def export(
    run: _RUN,
    *,
    out: _FILE = None,
    dynamic: _DYNAMIC = None,
    int8: _INT8 = False,
    max_drop: _MAX_DROP = None,
    max_ms: _MAX_MS = None,
    max_kb: _MAX_KB = None,
    no_preprocess: _NO_PREPROCESS = False,
    resize: _RESIZE = False,
    as_json: JSON = False,
) -> None:
    """Write the network of a finished run as ONNX, checked against PyTorch."""
    with only_json_on_stdout(as_json):
        from archgrad.cli.commands.export import check_export, export_int8_run, export_run

        bounds = {"--max-drop": max_drop, "--max-ms": max_ms, "--max-kb": max_kb}
        check_export(int8=int8, dynamic=dynamic, resize=resize, bounds=bounds)
        if int8:
            drop = 1.0 if max_drop is None else max_drop
            outcome = export_int8_run(
                run, out, max_drop=drop, max_ms=max_ms, max_kb=max_kb, preprocess=not no_preprocess, resize=resize
            )
        else:
            outcome = export_run(run, out, dynamic=dynamic, preprocess=not no_preprocess, resize=resize)
    outcome.show(as_json=as_json)


@app.command()
def package(
    run: _RUN, *, out: _PACKAGE = None, int8: _OF_INT8 = False, force: _FORCE = False, as_json: JSON = False
) -> None:
    """Write a folder that can be served without archgrad and torch: ONNX, labels, code, test vector, model card."""
    with only_json_on_stdout(as_json):
        from archgrad.cli.commands.package import package_run

        outcome = package_run(run, out, int8=int8, force=force)
    outcome.show(as_json=as_json)


@app.command()
def latency(
    files: _FILES,
    *,
    runtime: _RUNTIME = None,
    shape: _SHAPE = None,
    batch: _BATCH = 1,
    threads: _THREADS = 1,
    repeats: _REPEATS = 50,
    as_json: JSON = False,
) -> None:
    """Time exported files on this machine, in turns: ONNX in ONNX Runtime or OpenVINO, ExecuTorch programs."""
    with only_json_on_stdout(as_json):
        from archgrad.cli.commands.latency import time_files

        outcome = time_files(
            files, runtime=runtime, shapes=shape or (), batch=batch, threads=threads, repeats=repeats
        )
    outcome.show(as_json=as_json)


@app.command()
def report(run: _RUN, *, out: _REPORT = None, as_json: JSON = False) -> None:
    """Print the table of a finished run, and draw its page again."""
    from archgrad.cli.commands.report import draw_report

    draw_report(run, out).show(as_json=as_json)


@app.command()
def board(run: _WATCHED = Path("runs"), *, port: _PORT = None, no_open: _NO_OPEN = False) -> None:
    """Show a run, or all runs below a folder, in the browser of this machine while they go on; Ctrl-C ends it."""
    from archgrad.cli.commands.report import serve_board

    serve_board(run, port=port, in_browser=not no_open)


@app.command()
def compare(runs: _RUNS, *, out: _PAGE = None, as_json: JSON = False) -> None:
    """Show runs side by side: figures, costs, limits, what they took, where their settings differ."""
    from archgrad.cli.commands.report import compare_runs

    compare_runs(runs, out).show(as_json=as_json)


@app.command()
def resume(run: _RUN, *, accept: _ACCEPT = None, as_json: JSON = False) -> None:
    """Continue a run that was stopped; the result is that of a run never stopped."""
    with only_json_on_stdout(as_json):
        from archgrad.cli.commands.resume import resume_run

        outcome = resume_run(run, accept=accept or ())
    outcome.show(as_json=as_json)


@app.command()
def runs(folder: _FOLDER = Path("runs"), *, as_json: JSON = False) -> None:
    """List the runs below a folder, and how they stand."""
    from archgrad.cli.commands.runs import listed, written

    rows = listed(folder)
    Outcome(rows, written(rows) or f"There is no run below {folder}.").show(as_json=as_json)


@app.command()
def doctor(*, as_json: JSON = False) -> None:
    """Say what this machine offers, and what is missing for what."""
    with only_json_on_stdout(as_json):
        from archgrad.cli.commands.doctor import examine

        outcome = examine()
    outcome.show(as_json=as_json)


@app.command()
def methods(*, as_json: JSON = False) -> None:
    """List the methods."""
    from archgrad.cli.commands.methods import list_methods

    list_methods().show(as_json=as_json)
