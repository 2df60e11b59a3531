"""Code of the user's that an option names: package.module:callable, or path/to/file.py:callable."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from archgrad.cli.error_messages import user_line
from archgrad.errors import ConfigError, ModelError, text_of

FORMS = "package.module:callable, path/to/file.py:callable"


def load(name: str, *, kind: str = "MODEL", forms: str = FORMS) -> Any:
    """What stands under the name in the module or file; `kind` and `forms` are for the messages.

    Raises:
        ConfigError: no such module, file or attribute.
        ModelError: the module's own code fails.
    """
    place, attribute = split_name(name, kind=kind, forms=forms)
    message = f"{kind}: {{}}. Give {forms}{{}}."
    module = _from_file(Path(place), message) if place.endswith(".py") else _from_module(place, message)
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            callables = [
                n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__
            ]
            defined = ", ".join(callables[:10]) or "no function and no class"
            raise ConfigError(f"{kind} {name!r}: {place} has no {attribute!r}. It defines {defined}.")
        value = getattr(value, part)
    return value


def _first_name(file: Path) -> str:
    """The last class or function of a file, which is most likely meant; its code is not run."""
    defined = re.findall(
        r"^(?:class|def) ([A-Za-z]\w*)", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
    )
    return defined[-1] if defined else "NAME"


def split_name(name: str, *, kind: str = "MODEL", forms: str = FORMS) -> tuple[str, str]:
    """Module or file, and attribute. Raises ConfigError where there are not both."""
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        file = Path(name)
        if file.suffix == ".py" and file.is_file():
            raise ConfigError(f"{kind} {name!r} is a file: name what is meant in it, {name}:{_first_name(file)}.")
        raise ConfigError(f"{kind} {name!r} is not understood. Give {forms}.")
    return place, attribute


def call(make: Any, name: str, known: Mapping[str, Any], *, kind: str = "MODEL") -> object:
    """What a callable returns, called with those of the known arguments that it takes; anything else as it is.

    Raises:
        ModelError: it needs other arguments, or fails.
    """
    if not callable(make):
        return make
    given = arguments(make, known)
    missing = [
        p.name
        for p in _accepted(make).values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in given
    ]
    if missing:
        fitting = f" or with {' and '.join(known)}" if known else ""
        raise ModelError(
            f"{kind} {name!r} needs the arguments {', '.join(missing)}. It is called without arguments{fitting}: "
            "write a function that fills them in, and name that."
        )
    with errors_in(name):
        result: object = make(**given)
    return result


def arguments(make: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the known arguments that a callable takes."""
    accepted, given = _accepted(make), {}
    for key, other in (("classes", "num_classes"), ("in_channels", "in_chans")):
        if key in known and (word := next((word for word in (key, other) if word in accepted), None)):
            given[word] = known[key]
    return given


@contextlib.contextmanager
def errors_in(what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into a ModelError that says where."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit among them
        place = f"{error.filename}, line {error.lineno}" if isinstance(error, SyntaxError) else user_line(error)
        text = " ".join(str(getattr(error, "msg", None) or text_of(error)).split())
        where = f" ({place})" if place else ""
        raise ModelError(f"{what} raised {type(error).__name__}: {text}{where}") from error


def _from_file(path: Path, message: str) -> ModuleType:
    if not path.is_file():
        raise ConfigError(message.format(f"there is no file {path}", ""))
    # So that the file can import its neighbors, as it can when Python runs it.
    _importable(path.parent.absolute())
    spec = importlib.util.spec_from_file_location(f"archgrad_model_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # Under this name no worker could import it.
    cloudpickle.register_pickle_by_value(module)
    with errors_in(str(path)):
        spec.loader.exec_module(module)
    return module


def _from_module(name: str, message: str) -> ModuleType:
    _importable(Path.cwd())
    try:
        with errors_in(name):
            return importlib.import_module(name)
    except ModelError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{name}.".startswith(f"{cause.name}."):
            missing = f"there is no module {cause.name!r}, seen from {Path.cwd()}"
            raise ConfigError(message.format(missing, ", and start where the package can be imported")) from None
        raise


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _accepted(make: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(make).parameters
    except ValueError:
        return {}
