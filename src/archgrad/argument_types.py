"""Arguments of public functions verified against their annotations, so that a wrong one is refused in plain words."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import numbers
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from archgrad.errors import (
    ArchgradError,
    ArchitectureError,
    ConfigError,
    InputError,
    LimitError,
    ModelError,
    ResourceError,
    annotate,
    one_line,
)

_BY_PLACE = inspect.Parameter.POSITIONAL_OR_KEYWORD
Function = TypeVar("Function", bound=Callable[..., Any])

# What to give, and the error, by the name of the class that is asked for; the classes themselves lie above this file.
_ADVICE: dict[str, tuple[str, type[InputError]]] = {
    "Module": ("a torch.nn.Module", ModelError),
    "Architecture": ("an archgrad.Architecture, such as found.architecture", ArchitectureError),
    "Limit": ("a bound on a cost, such as archgrad.macs(x).at_most(fraction=0.5)", LimitError),
    "Run": ("a run, such as archgrad.Run(epochs=10)", ConfigError),
    "Recipe": ("a recipe, such as archgrad.Recipe(optimizer_factory=archgrad.adamw)", ConfigError),
}


_NO_SIZE = 2**31  # so many cells, samples or steps nothing computes


def checked(function: Function) -> Function:
    """A function, or a class by its constructor, that refuses arguments of types that its annotations do not allow.

    Verified are classes, numbers, literals, callables, and what mappings and sequences hold. Protocols and `Any` are
    left to the function, which can say more of them. A whole number will do for a float, a bool for neither.

    Raises:
        InputError: (in the call) an argument of another type; the message says which, and what is allowed.
        ResourceError: (in the call) a size that no memory holds.
    """
    if inspect.isclass(function):
        function.__init__ = checked(function.__init__)  # type: ignore[method-assign]
        return function
    signature = inspect.signature(function)
    name = function.__qualname__.removesuffix(".__init__")

    @functools.cache
    def hints() -> dict[str, Any]:
        return get_type_hints(function)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            # As any function's does, but with what it takes.
            taken = [p for p in signature.parameters.values() if p.name != "self"]
            named = "; by name alone " if (first := [p.kind for p in taken].count(_BY_PLACE)) < len(taken) else ""
            listed = ", ".join(p.name for p in taken[:first]) + named + ", ".join(p.name for p in taken[first:])
            raise TypeError(f"{name}(): {error}. It takes {listed.removeprefix('; ')}") from None
        for option, value in bound.arguments.items():
            if option in hints() and not _fits(value, hints()[option]):
                raise _refusal(name, option, value, hints()[option])
            if option != "seed" and hints().get(option) is int and value >= _NO_SIZE:
                raise ConfigError(f"{name}({option}={value}) was given. Allowed is a number below {_NO_SIZE:,}.")
        try:
            return function(*args, **kwargs)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG and not getattr(error, "__notes__", None):
                shown = f"{str(error.filename)[:40]}..."
                raise ConfigError(f"{name}: no file system takes a name as long as {shown}") from error
            raise
        except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
            if not isinstance(error, ArchgradError) and (reason := _too_large(error)):
                raise ResourceError(f"{name}: {reason}. Give smaller sizes, or numbers") from error
            raise

    return wrapped  # type: ignore[return-value]


def _too_large(error: BaseException) -> str:
    """Why what was asked for is larger than memory or a number can be; empty for other errors, and a user's own."""
    if getattr(error, "__notes__", None):
        return ""
    text = one_line(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "Storage size calculation over" in text:
        return f"memory ran out ({text})"
    return f"a number is too large ({text})" if isinstance(error, OverflowError) or "verflow when" in text else ""


@contextlib.contextmanager
def noted(what: str) -> Iterator[None]:
    """Around a call of the user's function: an error of it passes, with a note that says `what` archgrad called."""
    try:
        yield
    except ArchgradError:
        raise
    except Exception as error:  # a user's function may raise anything
        annotate(error, f"It was raised while archgrad called {what}.")
        raise


def _fits(value: object, hint: Any, *, deep: bool = True) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, TypeVar):
        return hint.__bound__ is None or _fits(value, hint.__bound__)
    if origin in (Union, types.UnionType):
        # Any nest of tensors will do for a network's inputs, and of what is no module a choice can say more.
        deep = deep and not any(_named(one) == "Tensor" or "Module]" in str(one) for one in inner)
        return any(_fits(value, one, deep=deep) for one in inner)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if hint in (int, float):
        return isinstance(value, numbers.Integral if hint is int else numbers.Real) and not isinstance(value, bool)
    if origin is not None and inspect.isclass(origin):
        return _is_container(value, origin) and not (deep and _holds_strangers(value, origin, inner))
    if hint is Any or not inspect.isclass(hint):
        return True
    if getattr(hint, "_is_protocol", False):
        return callable(value) or "__call__" not in vars(hint)
    return isinstance(value, hint)


def _is_container(value: object, origin: Any) -> bool:
    """Whether this is callable, a mapping or a sequence, as asked for; arrays and tensors are sequences here."""
    if origin is Callable:
        return callable(value)
    if issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if origin is list:
        return isinstance(value, list | tuple)
    if issubclass(origin, Sequence):
        listed = hasattr(value, "__len__") and isinstance(value, Iterable)
        other = isinstance(value, str | bytes | Mapping) or (origin is tuple and type(value).__name__ == "Tensor")
        return listed and not other
    return isinstance(value, origin)


def _holds_strangers(value: Any, origin: type, inner: tuple[Any, ...]) -> bool:
    """Whether an entry of a mapping, or of a list or tuple, is none that its annotation allows."""
    if isinstance(value, Mapping):
        return not all(_fits(part, hint) for entry in value.items() for part, hint in zip(entry, inner, strict=False))
    if not isinstance(value, list | tuple):
        return False
    if origin is tuple and inner[-1:] != (...,):
        return len(value) != len(inner) or not all(map(_fits, value, inner))
    return not all(_fits(part, inner[0]) for part in value)


def _refusal(name: str, option: str, value: object, hint: Any) -> InputError:
    wanted = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    advice, error = _ADVICE.get(_named(wanted[0]), ("", ConfigError))
    allowed = " or ".join([advice or _named(wanted[0]), *map(_named, wanted[1:])])
    given = repr(value)
    given = given if len(given) <= 80 and "\n" not in given else f"a {type(value).__name__}"
    inside = "" if isinstance(value, type) else next((n for n in ("network", "space") if _suits(value, n, hint)), "")
    meant = f" Give its .{inside}." if inside else ""
    return error(f"{name}({option}={given}) was given. Allowed is {allowed}.{meant}")


def _suits(value: object, name: str, hint: Any) -> bool:
    """Whether an attribute of this name is what is asked for: a result holds its network."""
    return hasattr(value, name) and hint is not Any and _fits(getattr(value, name), hint)


def _named(hint: Any) -> str:
    """An annotation as a reader would say it: "float", "a mapping", 'one of "inherit", "fresh"'."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    if isinstance(hint, TypeVar):
        return _named(hint.__bound__)
    if hint is types.NoneType:
        return "None"
    if inspect.isclass(hint) and get_origin(hint) is None:
        return hint.__name__
    return re.sub(r"(\w+\.)+", "", str(hint))
