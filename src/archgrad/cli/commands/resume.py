"""`archgrad resume`: run the command again that a run's folder was begun with."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from archgrad.cli import command_file
from archgrad.cli.command_output import Outcome, printable
from archgrad.cli.command_table import COMMANDS, Command
from archgrad.cli.schemas import configuration
from archgrad.cli.schemas.options import Options
from archgrad.errors import RunError
from archgrad.report.data.run_format import COMMAND

_CODE = re.compile(r"(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_][\w.]*")


def resume_run(run: Path, *, accept: Sequence[str] = ()) -> Outcome:
    """Continue a run, accepting that the parts named differ; the outcome is its command's. Raises RunError."""
    with reopened(run, accept=accept) as (command, options):
        return command.execute(options)


@contextlib.contextmanager
def reopened(run: Path, *, accept: Sequence[str] = (), action: str = "resume") -> Iterator[tuple[Command, Options]]:
    """The command that began a run, with its options, in the directory that it was given in. Raises RunError."""
    begun = command_file.read(run)
    out = run.absolute()
    command = COMMANDS.get(begun["command"])
    if command is None or not command.resumable:
        raise RunError(f"{out / COMMAND} is damaged: {begun['command']!r} is no command. Give it again in full.")
    options = configuration.resolve(
        command.schema, {**begun["options"], "out": str(out), **({"accept": list(accept)} if accept else {})}
    )
    # In the directory of the command, so that the user's code finds its files.
    directory = Path(begun["directory"])
    with contextlib.chdir(directory if directory.is_dir() else Path.cwd()):
        _announce(out, begun["options"], action)
        yield command, options


def _announce(run: Path, options: Mapping[str, Any], action: str) -> None:
    """Say whose code is about to run. Raises RunError for code inside the run's folder."""
    listed = [value for option in options.values() for value in (option if isinstance(option, list) else [option])]
    named = [match[1] for value in listed if (match := _CODE.fullmatch(str(value)))]
    code = [str(Path(place).absolute()) if place.endswith(".py") else place for place in named]
    files = [place for place in code if place.endswith(".py")]
    if inside := [path for path in files if Path(path).resolve().is_relative_to(run.resolve())]:
        raise RunError(
            f"{run / COMMAND} names code inside the run's own folder, {inside[0]}, where archgrad writes none. Look "
            f"at it; if it is yours, move it out of the folder and give the whole command"
        )
    if code:
        typer.echo(printable(f"{action} runs code of {', '.join(dict.fromkeys(code))}"), err=True)
