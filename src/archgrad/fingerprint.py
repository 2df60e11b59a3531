"""What a run was begun with, in a form that can be compared: functions with what they bind, networks, arrays.

A function of the user's is its name, the values that it has bound, and a digest of its code with that of the
functions it calls and what it reads of their module; one of a library is its name, since versions are compared
elsewhere. What code changes while it runs is state and no setting: attributes that it assigns, and containers and
tensors where it changes any in place. Nothing here depends on addresses, on hash seeds or on the process.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from archgrad.code_changes import Changes, changes as changes_of, said, said_of_class
from archgrad.digests import digest, of_array
from archgrad.plain_values import DEPTH, is_mutable, is_path, is_plain, is_record
from archgrad.reached_code import (
    bound_by,
    functions_in,
    is_own,
    is_own_name,
    layers_of,
    own_bases,
    reached_by,
    written_here,
)

_SHORT = 60  # characters of a value in a description
_OF_MODULES = frozenset(vars(nn.Module()))
_CALLED = ("__call__", "__iter__", "update", "compute", "reset", "step", "make_vec")
_MAKING = {"__init__", "__new__", "__init_subclass__", "__post_init__", "__repr__", "__str__", "__hash__", "__del__"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_COMPREHENSION = re.compile(r"<(?:list|set|dict)comp>\.<locals>\.")  # a function in Python 3.11 alone
_STATISTICS = re.compile(r"running_(?:mean|var)$|num_batches_tracked$")  # which training moves


@dataclasses.dataclass(frozen=True)
class _Level:
    """How deep in a value we are, and what of objects, functions and modules there is told beside their names."""

    depth: int = 0
    attributes: bool = False  # of objects inside others, which may change while the run goes on
    code: bool = True
    modules: bool = True
    written: bool = False  # attributes of classes as their source gives them, not as they are by now

    @property
    def below(self) -> _Level:
        return dataclasses.replace(self, depth=self.depth + 1)


_INSIDE_MODULE = _Level(depth=1, attributes=True, modules=False)  # a function of its own may lead back to it
_READ_BY_CODE = _Level(depth=1, code=False, modules=False)  # and one that it reads to its code


def described(value: Any, *, written: bool = False) -> str:
    """A value, function or object in words that are the same in every process; see the head of this file.

    Where a run changes what classes hold, as environments count their steps there, `written` takes what their source
    gives.
    """
    return _described(value, _Level(written=written))


class _Refused(Exception):
    """An object of the user's, or a tensor without data, does not say what it holds."""


def _ask(call: Callable[..., Any], *given: Any) -> Any:
    """What a call into an object of the user's gives, which may fail in any way."""
    try:
        return call(*given)
    except Exception as error:
        raise _Refused from error


def _described(value: Any, at: _Level) -> str:
    try:
        return _told(value, at)
    except _Refused:
        return type(value).__qualname__


def _told(value: Any, at: _Level) -> str:
    if isinstance(value, float | int | bool | None | torch.dtype | torch.device | enum.Enum):
        return str(_ask(str if isinstance(value, enum.Enum) else repr, value))
    if isinstance(value, str):
        text = repr(value) if at.depth else value
        return text if len(text) <= _SHORT else f"{text[:_SHORT]}... #{digest(value)}"
    if isinstance(value, Tensor) and (value.requires_grad or isinstance(value, nn.Parameter)):
        return f"{type(value).__name__}{_shape(value)}"  # trained, so that checkpoints hold it
    if isinstance(value, Tensor | np.ndarray):
        shape = _ask(lambda: list(value.shape))
        return f"{type(value).__name__}{shape} #{_ask(of_array, value) if value.dtype != object else ''}"
    if at.depth > DEPTH:
        return type(value).__qualname__
    inside = functools.partial(_described, at=at.below)
    if isinstance(value, tuple | list):
        return f"({', '.join(map(inside, _ask(list, value)))})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(inside, _ask(list, value))))}}}"
    if isinstance(value, Mapping):
        pairs = _ask(lambda: list(value.items()))
        return f"{{{', '.join(f'{inside(key)}: {inside(entry)}' for key, entry in pairs)}}}"
    if isinstance(value, functools.partial):
        keywords = [f"{name}={inside(entry)}" for name, entry in value.keywords.items()]
        return f"{inside(value.func)}({', '.join([*map(inside, value.args), *keywords])})"
    if isinstance(value, MethodType):
        return f"{inside(value.__self__)}.{inside(value.__func__)}"
    if isinstance(value, FunctionType):
        outer = [_code(layer, written=at.written) for layer in layers_of(value)[:-1] if at.code]
        return _function(layers_of(value)[-1], at) + "".join(f" in #{each}" for each in outer)
    if isinstance(value, nn.Module):
        return f"{type(value).__qualname__}{f' #{of_network(value)}{_constants(value)}' if at.modules else ''}"
    return _object(value, at)


def _object(value: Any, at: _Level) -> str:
    """A class, a built-in function, or an object by its class and its plain attributes."""
    if inspect.isclass(value):
        own = at.code and is_own(value)
        functions = [f for _, f in functions_in(value)] if own else []
        values = _class_values(value, written=True) if own and at.written else {}
        parts: list[Any] = [_code(*functions, written=at.written)] if functions else []
        parts += [values] if values else []
        return f"{value.__qualname__}{f' #{digest(*parts)}' if parts else ''}"
    if not _ask(hasattr, value, "__dict__") or inspect.isbuiltin(value):
        return str(_ask(getattr, value, "__qualname__", type(value).__qualname__))
    if at.depth and not at.attributes and not is_record(value):
        return type(value).__qualname__
    kind: Any = type(value)
    state = _state(kind)
    plain = {
        name: _described(entry, at.below)
        for name, entry in _ask(lambda: list(vars(value).items()))
        if _ask(is_plain, entry) and name not in state.assigned and not (state.in_place and is_mutable(entry))
    }
    listed = ", ".join(f"{name}={entry}" for name, entry in plain.items())
    code = _computing(kind, *_CALLED, written=at.written) if at.code else []
    mark = f" #{digest(*code)}" if code else ""
    return f"{type(value).__qualname__}{f'({listed})' if listed else ''}{mark}"


def _function(function: FunctionType, at: _Level) -> str:
    name = _COMPREHENSION.sub("", function.__qualname__)
    if not at.code:
        return name
    bound = {name: entry for name, entry in bound_by(function).items() if not name.startswith("__")}
    if changes_of(function.__code__).in_place:
        bound = {name: type(entry) if is_mutable(entry) else entry for name, entry in bound.items()}
    listed = ", ".join(f"{name}={_described(entry, at.below)}" for name, entry in bound.items())
    mark = f" #{_code(function, written=at.written)}" if is_own(function) else ""
    return f"{name}{f'({listed})' if listed else ''}{mark}"


class _Reading:
    """What code reaches: functions, and what they read of modules and objects, each once and by its number.

    A queue, since code may lead back to itself, and a chain of calls be longer than Python's stack.
    """

    def __init__(self, *, written: bool, state: frozenset[_Name]) -> None:
        self.written, self.state, self.found_state = written, state, set(state)
        self._numbers = dict[Any, int]()
        self._pending = list[tuple[Any, Changes | None]]()

    def number(self, thing: Any, changes: Changes | None = None) -> int:
        """Of a function, or of a module or object and what code takes of it."""
        key = (id(thing), changes)
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            self._pending.append((thing, changes))
        return self._numbers[key]

    def rows(self) -> list[Any]:
        """What all that was numbered says, and so on."""
        rows = list[Any]()
        for thing, changes in self._pending:  # which grows
            if changes is None:
                rows.append(_function_row(thing, self))
            elif isinstance(thing, ModuleType):
                entries = [(name, vars(thing).get(name)) for name in sorted(changes.names)]
                known = [(n, entry) for n, entry in entries if entry is not None and self.is_setting(vars(thing), n)]
                rows.append([_read(entry, changes, self) for _, entry in known])
            else:
                rows.append(_held(thing, changes, self))
        return rows

    def is_setting(self, values: Mapping[str, Any], name: str) -> bool:
        """Whether none of the code was found to change a variable of a module."""
        return (id(values), name) not in self.state


_Name = tuple[int, str]  # of a variable, and which module's


def _code(*functions: FunctionType, written: bool = False) -> str:
    """A digest of functions' code, of the user's functions that they name, and of what they bind and read."""
    state = frozenset[_Name]()
    while True:
        reading = _Reading(written=written, state=state)
        rows = [[reading.number(function) for function in functions], reading.rows()]
        if reading.found_state == state:
            return digest(rows)
        state = frozenset(reading.found_state)  # which what was read before it may have counted


def _function_row(function: FunctionType, reading: _Reading) -> Any:
    changes, values = changes_of(function.__code__), function.__globals__
    moved = {name for name in changes.read if changes.in_place and is_mutable(values.get(name))}
    reading.found_state |= {(id(values), name) for name in changes.stored | moved if name in values}
    names = (name for name in changes.read - changes.stored if name in values and reading.is_setting(values, name))
    read = [(name, values[name]) for name in sorted(names)]
    bound = [(name, entry) for name, entry in bound_by(function).items() if not name.startswith("__")]
    told = [(name, _read(entry, changes, reading)) for name, entry in [*read, *bound]]
    return [said(function), told]


def _read(entry: Any, changes: Changes, reading: _Reading) -> Any:
    """What code reads of its module: of functions and classes of the user's their code, of options their values."""
    if isinstance(entry, ModuleType) and is_own_name(entry.__name__):
        return reading.number(entry, changes)
    if layers := [layer for layer in layers_of(entry) if is_own_name(str(layer.__globals__.get("__name__", "")))]:
        return [reading.number(layer) for layer in layers]
    if isinstance(entry, type) and is_own(entry):
        members = [(one.name, _described(one.value, _READ_BY_CODE)) for one in _members(entry)]
        values = _class_values(entry, written=reading.written)
        return [members, values, *(reading.number(method) for _, method in functions_in(entry))]
    if isinstance(entry, FunctionType | type) or _state_in(entry, changes):
        return str(_ask(getattr, entry, "__qualname__", ""))
    if _ask(is_plain, entry):
        return _described(entry, _READ_BY_CODE)
    if isinstance(entry, nn.Module) or not written_here(type(entry)):
        return str(_ask(getattr, entry, "__qualname__", type(entry).__qualname__))
    return reading.number(entry, changes)


def _held(value: Any, changes: Changes, reading: _Reading) -> Any:
    """Of an object of the user's own what code that reads it may compute with, and does not change."""
    kind = type(value)
    operators = [
        name for name, _ in reached_by(kind, *(n for n in dir(kind) if n.startswith("__") and n not in _MAKING))
    ]
    reached = reached_by(kind, *_CALLED, *operators, *changes.names)
    inside = [changes, *(changes_of(method.__code__) for _, method in reached)]
    wanted = frozenset[str]().union(*(each.names for each in inside))
    assigned = frozenset[str]().union(*(each.assigned for each in inside))
    in_place = any(each.in_place for each in inside)
    class_values = _class_values(kind, written=reading.written)
    entries = {**class_values, **_ask(lambda: dict(vars(value)))}
    values = [
        (name, entry)
        for name, entry in ((name, entries[name]) for name in sorted(entries))
        if name in wanted - assigned and not (in_place and is_mutable(entry)) and not is_path(entry)
    ]
    told = [(name, _read(entry, changes, reading)) for name, entry in values]
    return [kind.__qualname__, told, [reading.number(method) for _, method in reached]]


def _members(kind: type) -> list[enum.Enum]:
    return list(kind) if issubclass(kind, enum.Enum) else []


def _class_values(kind: type, *, written: bool = False) -> dict[str, str]:
    """The plain attributes of a class of the user's and of those that it inherits from, in words."""
    values = dict[str, str]()
    for base in own_bases(kind):
        if written:
            values |= {name: digest(text) for name, text in said_of_class(base).items()}
            continue
        for name, entry in sorted(vars(base).items()):
            if isinstance(entry, functools.partialmethod):
                entry = functools.partial(entry.func, *entry.args, **entry.keywords)
            if not name.startswith("__") and not isinstance(entry, FunctionType) and _ask(is_plain, entry):
                values[name] = _described(entry, _READ_BY_CODE)
    return values


def _state_in(value: Any, changes: Changes) -> bool:
    """Whether what code reads may be what it changes."""
    return (changes.in_place and is_mutable(value)) or (bool(changes.assigned) and is_record(value))


@functools.cache
def _state(kind: type) -> Changes:
    """What of an object the methods of its class change that are called as a run goes on."""
    called = ("forward",) if issubclass(kind, nn.Module) else _CALLED
    changes = [changes_of(function.__code__) for _, function in reached_by(kind, *called)]
    assigned = frozenset[str]().union(*(each.assigned for each in changes))
    return Changes(frozenset(), frozenset(), assigned, any(each.in_place for each in changes))


def of_network(network: nn.Module) -> str:
    """A digest of what a network computes apart from its weights.

    Of each module: class, settings such as stride and activation, shapes and types of its tensors, which of them are
    trained; of the user's classes also the code that `forward` reaches. It runs nothing, so that a network that
    cannot be traced has one too.
    """
    rows, forwards = list[Any](), dict[type, list[str]]()
    for path, module in network.named_modules():
        kind = type(module)
        if kind not in forwards:
            forwards[kind] = _computing(kind, "forward", "__call__")
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        forms = [
            (name, str(tensor.dtype), _shape(tensor), tensor.requires_grad, *_hooks(tensor))
            for name, tensor in tensors
        ]
        rows.append((path, kind.__qualname__, _settings(module), forms, forwards[kind]))
    return digest(rows)


def _constants(module: nn.Module) -> str:
    """A digest of what a loss, a metric or an augmentation keeps, such as weights of classes; empty for nothing."""
    kinds: set[Any] = {type(inner) for inner in module.modules()}
    moved = any(_state(kind).in_place for kind in kinds)
    kept = {} if moved else {n: b for n, b in module.named_buffers() if not _STATISTICS.search(n)}
    return f" #{digest(*(part for n, b in kept.items() for part in (n, _saved(b))))}" if kept else ""


def of_weights(network: nn.Module) -> str:
    """A digest of what a network's parameters and saved buffers hold."""
    return digest(*(part for name, entry in network.state_dict().items() for part in (name, _saved(entry))))


def _saved(entry: Any) -> Any:
    """What `digest` takes for an entry of a state dict: tensors that are not dense, and other objects, in words."""
    if not isinstance(entry, Tensor) or entry.is_meta or entry.is_nested or nn.parameter.is_lazy(entry):
        return described(entry)
    return entry if entry.layout == torch.strided else of_array(entry)


def _settings(module: nn.Module) -> list[tuple[str, str]]:
    """What a module has beside its trained and saved tensors, in words."""
    kind: Any = type(module)
    ours, state = kind.__module__.partition(".")[0] == "archgrad", _state(kind)
    # Of a library's class what it keeps to itself follows from the rest.
    values = {
        name: value
        for name, value in sorted(vars(module).items())
        if name not in _OF_MODULES and name not in state.assigned and (is_own(kind) or not name.startswith("_"))
    }
    if not ours:  # what checkpoints do not hold, and what is called beside forward
        values |= {name: module._buffers[name] for name in sorted(module._non_persistent_buffers_set)}
        values |= {name: tuple(getattr(module, name).values()) for name in _HOOKS if getattr(module, name)}
    if state.in_place:
        values = {name: type(value) if is_mutable(value) else value for name, value in values.items()}
    known = (float, int, bool, str, type(None), torch.dtype, enum.Enum, FunctionType, type, tuple, list)
    return [
        (name, _described(value, _INSIDE_MODULE))
        for name, value in values.items()
        if (isinstance(value, known) and is_plain(value)) or not ours
    ]


def _computing(kind: type, *start: str, written: bool = False) -> list[str]:
    """Digests of the code that methods of a class reach, and of what that reads of the class."""
    wanted = frozenset[str]().union(*(changes_of(method.__code__).names for _, method in reached_by(kind, *start)))
    values = {name: text for name, text in _class_values(kind, written=written).items() if name in wanted}
    return [*_codes(kind, *start, written=written), *([digest(values)] if values else [])]


def _hooks(tensor: Tensor) -> list[str]:
    """What its gradient goes through, in words."""
    kept = [getattr(tensor, name, None) or {} for name in ("_backward_hooks", "_post_accumulate_grad_hooks")]
    return [_described(hook, _INSIDE_MODULE) for hooks in kept for hook in hooks.values()]


def code_of(value: object, *methods: str) -> str:
    """A digest of methods of an object and of what they reach, where they are code of the user's; else empty."""
    codes = _computing(type(value), *methods)
    return digest(codes) if codes else ""


def _codes(kind: type, *start: str, written: bool = False) -> list[str]:
    """Digests of methods of a class and of those that they reach, where they are the user's."""
    reached = reached_by(kind, *start)
    return [f"{name} {_code(method, written=written)}" for name, method in reached if is_own(method)]


def _shape(tensor: Tensor) -> list[int]:
    return [] if nn.parameter.is_lazy(tensor) or tensor.is_nested else list(tensor.shape)
