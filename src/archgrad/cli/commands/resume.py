"""`archgrad resume`: run the command again that a run's folder was begun with."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from archgrad.cli import command_file
from archgrad.cli.command_output import Outcome
from archgrad.cli.command_table import COMMANDS
from archgrad.cli.schemas import configuration
from archgrad.errors import RunError
from archgrad.report.data.run_format import COMMAND


def resume_run(run: Path, *, accept: Sequence[str] = ()) -> Outcome:
    """Continue a run, accepting that the parts named differ; the outcome is its command's. Raises RunError."""
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
        return command.execute(options)
