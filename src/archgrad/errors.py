"""What can go wrong, as exceptions.

    ArchgradError
    ├── InputError (ValueError)        something a user gave; the command line exits with status 2
    │   ├── ModelError                 a network that cannot be loaded, run or gated
    │   ├── DataError                  data that cannot be read or learnt from
    │   ├── LimitError                 a limit that makes no sense or cannot be met
    │   ├── ArchitectureError          an architecture that is damaged, foreign, or for another space
    │   ├── ChoiceError                choices that contradict each other or are used before they can be
    │   ├── ConfigError                an option or configuration file
    │   ├── RunError                   a run folder, a checkpoint, or a full disk
    │   └── ResourceError              memory ran out, or a data loader's worker died
    ├── MissingExtra (ImportError)     an optional dependency that is not installed
    └── NonFiniteError (ArithmeticError)  a loss or parameter that became NaN or infinite

Every message says what was given, what is allowed, and what to do.
"""

from __future__ import annotations

import contextlib


class ArchgradError(Exception):
    """Anything that archgrad raises on purpose."""


class InputError(ArchgradError, ValueError):
    """Something that the user gave cannot be used."""


class ModelError(InputError):
    """A network cannot be loaded, run on its example, or gated."""


class DataError(InputError):
    """Data cannot be read, or cannot be learnt from."""


class LimitError(InputError):
    """A limit makes no sense, or no network of the space meets it."""


class ArchitectureError(InputError):
    """An architecture is damaged, foreign, or belongs to another space."""


class ChoiceError(InputError):
    """Choices contradict each other, or are used before they are relaxed or decided."""


class ConfigError(InputError):
    """An option or a configuration file is wrong."""


class RunError(InputError):
    """A run folder or a checkpoint cannot be used, or the disk is full."""


class ResourceError(InputError):
    """Memory ran out, or a worker process of a data loader died; the last good state is kept."""


class MissingExtra(ArchgradError, ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. It comes with an extra: pip install 'archgrad[{extra}]'")
        self._given = (package, extra)

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        return MissingExtra, self._given


class NonFiniteError(ArchgradError, ArithmeticError):
    """A loss, gradient or parameter became NaN or infinite; the last good state is kept."""


def one_line(error: BaseException) -> str:
    """Class and first line of an error; of what stands behind it where it is torch's exporter that wraps another."""
    # By name, since torch is not imported here.
    while any(c.__name__ == "OnnxExporterError" for c in type(error).__mro__) and error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in text_of(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def text_of(error: BaseException) -> str:
    """What an error says; empty where its class, which may be a user's, cannot."""
    text = ""
    with contextlib.suppress(Exception):  # a user's __str__ may raise anything
        text = str(error)
    return text


def full_text(error: BaseException) -> str:
    """Class and all lines of an error."""
    return f"{type(error).__name__}: {text_of(error)}"


def annotate(error: BaseException, text: str) -> None:
    """Add a note to an error; where a user's class takes none, the error passes as it is."""
    with contextlib.suppress(Exception):
        error.add_note(text)


def notes_of(error: BaseException) -> list[str]:
    """The notes of an error; none where a user's class holds something else there."""
    notes = getattr(error, "__notes__", None)
    return [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []
