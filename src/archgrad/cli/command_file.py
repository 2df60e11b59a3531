"""command.json in a run's folder: the command that began the run, so that `archgrad resume` can repeat it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from archgrad import files
from archgrad.cli.schemas.options import NEGATIVES, Options
from archgrad.errors import InputError, ResourceError, RunError
from archgrad.report.data.run_format import COMMAND, forget
from archgrad.run.signals import Stopped

# Runs that differ in these alone are the same run.
_NOT_COMPARED = ("out", "onnx", "accept")


def check(folder: Path, command: str, options: Options) -> None:
    """Raise RunError when the folder holds a run of another command or other options, or cannot be created."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "may not be written to" if there.is_dir() else "is a file"
        raise RunError(f"The run folder {folder} cannot be created: {there} {why}. Choose another with --out.")
    if not (folder / "run.json").exists():
        return
    present = read(folder)
    asked, begun = options.model_dump(mode="json"), present["options"]
    rows = {"command": (command, present["command"])} | {k: (v, begun.get(k)) for k, v in asked.items()}
    differences = [
        f"{name} (given {given!r}, there {there!r})"
        for name, (given, there) in rows.items()
        if given != there and name not in _NOT_COMPARED
    ]
    if differences:
        raise RunError(
            f"{folder} holds another run. It differs in {'; '.join(differences)}. Choose another folder with "
            f"--out, or go on with the run that is there: archgrad resume {folder}"
        )


def write(folder: Path, command: str, options: Options) -> None:
    """Write command.json. Raises RunError when the folder cannot be written to."""
    body = {
        "command": command,
        "arguments": arguments(command, options.model_copy(update={"accept": []})),
        "directory": str(Path.cwd()),
        "options": options.model_dump(mode="json", exclude={"out", "accept"}),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The run folder {folder} cannot be created: {error}. Choose another with --out.") from error
    files.write_text(folder / COMMAND, json.dumps(body, indent=1) + "\n", RunError)


def arguments(command: str, options: Options) -> list[str]:
    """What to give archgrad to run the command with these options: those off their defaults, and `--out`."""
    fields, positional, named = type(options).model_fields, list[str](), list[str]()
    for name in [*options.positional, *(name for name in fields if name not in options.positional)]:
        value, option = getattr(options, name), f"--{name.replace('_', '-')}"
        if value is None or (value == fields[name].get_default() and name != "out"):
            continue
        values = [str(each) for each in value] if isinstance(value, list) else [str(value)]
        if name in options.positional:
            positional += values
        elif isinstance(value, bool):
            named += [option if value else NEGATIVES.get(name, f"--no-{option[2:]}")]
        else:
            named += [word for each in values for word in (option, each)]
    return [command, *positional, *named]


def read(folder: Path) -> dict[str, Any]:
    """What `write` wrote. Raises RunError when there is none, or it is damaged."""
    path = folder / COMMAND
    try:
        body: dict[str, Any] = files.parse_json(files.read_text(path, RunError), RunError, source=str(path))
        known = isinstance(body["command"], str) and isinstance(body["options"], dict)
        known = known and isinstance(body["directory"], str)
    except FileNotFoundError:
        raise RunError(
            f"{folder} is no folder of a run that the command line began: {COMMAND} is missing. Give the "
            "folder that was --out, or run the program that began it again."
        ) from None
    except (RunError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}). Give the command again in full, with --out.") from None
    if not known:
        raise RunError(f"{path} is damaged. Give the command again in full, with --out.")
    return body


@contextlib.contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Say how to go on when a signal ends what is inside; an input refused before its first step leaves no run.

    Raises Stopped.
    """
    try:
        yield
    except ResourceError as error:
        raise ResourceError(
            f"{error}\nTo go on with the same options: archgrad resume {folder}. Others need another --out."
        ) from error
    except InputError as error:
        # A folder that is in use, or holds another run, must not be cleared.
        if not isinstance(error, RunError):
            forget(folder)
        raise
    except KeyboardInterrupt as error:
        number = error.signal if isinstance(error, Stopped) else signal.SIGINT
        text = str(error) or "Interrupted."
        raise Stopped(f"{text}\nTo go on: archgrad resume {folder}", number) from error
