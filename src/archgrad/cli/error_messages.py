"""What a command says, and its exit status, when something goes wrong that is not a fault of archgrad."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

import archgrad
from archgrad.cli.command_output import printable
from archgrad.errors import ArchgradError, full_text, notes_of, text_of
from archgrad.run.signals import Stopped

_OURS = Path(archgrad.__file__).parent
# Beside this environment's own folders those that it borrows: --system-site-packages, pip install --user, .pth files.
_LIBRARIES = tuple(
    {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {Path(path).resolve() for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
)

_NO_MEMORY_FOR_A_LIBRARY = ("failed to map segment", "annot allocate memory")


class ErrorGroup(TyperGroup):
    """The commands; an error that a user can correct becomes one message and an exit status."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options."""
        return _without_types(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _without_types(command.get_params(ctx))
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run the command; with --traceback errors are left as they are."""
        if ctx.params["traceback"]:
            return super().invoke(ctx)
        try:
            with _sigterm_raises():
                return super().invoke(ctx)
        except typer.Exit:
            raise
        except (Exception, KeyboardInterrupt) as error:
            # A fault of archgrad itself is not explained, and keeps its traceback.
            failure = explained(error)
            if failure is None:
                _add_usage(error)
                raise
            typer.echo(printable(failure.message), err=True)
            raise typer.Exit(failure.status) from None


def _without_types(params: list[Any]) -> list[Any]:
    """Leave "<bool>" out of the help: a switch takes no value."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


def _add_usage(error: Any) -> None:
    """Say the order of a command's arguments where one stands too many, or is given as an option."""
    context = getattr(error, "ctx", None)
    if context is None or not hasattr(error, "format_message"):  # typer keeps the class to itself
        return
    order = [p.name.upper() for p in context.command.params if p.param_type_name == "argument" and p.name]
    as_option = str(getattr(error, "option_name", "")).lstrip("-").upper() in order
    if order and (as_option or "extra argument" in error.message):
        code = ", a MODEL in a file as FILE.py:NAME" if "MODEL" in order else ""
        error.message = f"{error.message.rstrip('.')}. It takes {' '.join(order)} in this order{code}."


class Failure(NamedTuple):
    """A message and an exit status."""

    message: str
    status: int


def explained(error: BaseException) -> Failure | None:
    """The message and status for an error; None for what archgrad itself did wrong."""
    if isinstance(error, Stopped):
        return Failure(str(error), error.exit_status)
    if isinstance(error, KeyboardInterrupt):
        return Failure("Interrupted. Nothing was begun that could be resumed.", 128 + signal.SIGINT)
    place = user_line(error)
    notes = " ".join(notes_of(error))
    if isinstance(error, ArchgradError):
        raised = f" (raised at {place})" if place and place not in str(error) else ""
        return Failure(f"{error}{raised} {notes}".rstrip(), 2)
    if message := _resources(error):
        return Failure(message, 2)
    if place:
        return Failure(f"Your code raised {full_text(error)} ({place}). {notes}".rstrip(), 2)
    if isinstance(error, OSError):
        return Failure(full_text(error), 2)
    return None


def _resources(error: BaseException) -> str:
    if isinstance(error, ImportError):
        missing = any(sign in str(error) for sign in _NO_MEMORY_FOR_A_LIBRARY)
        return f"Memory ran out while a library was loaded ({error}). Close other programs." if missing else ""
    if not isinstance(error, MemoryError | RuntimeError):
        return ""
    if (explaining := sys.modules.get("archgrad.run.failures")) is None:
        # Nothing was trained; to load torch for the message would take seconds, and more memory.
        out = isinstance(error, MemoryError)
        return "Memory ran out. Close other programs, or give smaller files." if out else ""
    return str(explaining.explain(error))


def user_line(error: BaseException) -> str:
    """The innermost line of code that is neither ours nor a library's; empty where there is none."""
    place, seen = "", set[int]()
    while id(error) not in seen:  # causes may lead back to each other
        seen.add(id(error))
        frames = [(frame.filename, str(frame.lineno)) for frame in traceback.extract_tb(error.__traceback__)]
        # What a worker process raised comes as text.
        for name, line in [*frames, *re.findall(r'File "([^"\n]+)", line (\d+), in ', text_of(error))]:
            path = Path(name)
            if path.is_file() and not any(path.resolve().is_relative_to(own) for own in (_OURS, *_LIBRARIES)):
                place = f"{name}, line {line}"
        if error.__cause__ is None:
            break
        error = error.__cause__
    return place


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise Stopped, outside of a run's loops too, where there is no step to wait for."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    report = sys.unraisablehook
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _stop) for number in numbers}

    def send_again(lost: sys.UnraisableHookArgs) -> None:
        # Python drops what is raised in a finalizer or in a callback of a weak reference.
        if isinstance(lost.exc_value, Stopped):
            threading.Timer(0.01, os.kill, (os.getpid(), lost.exc_value.signal)).start()
        else:
            report(lost)

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(f"Stopped by {signal.Signals(number).name}.", number)
