"""What a run was begun with, in a form that can be compared: functions with what they bind, networks, arrays.

A function of the user's is its name, the values that it has bound, and a digest of its code with that of the
functions it calls and what it reads of their module; one of a library is its name, since versions are compared
elsewhere. What code changes while it runs is state and no setting: attributes that it assigns, and containers and
tensors where it changes any in place. Nothing here depends on addresses, on hash seeds or on the process.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from archgrad import files
from archgrad.code_changes import LIBRARIES, Changes, changes as changes_of, names

WHOLE = 64 * files.MIB  # of an array: beyond it rows are sampled
ROWS = 1024
ITEMS = 32  # of a dataset
_DEPTH = 6
_SHORT = 60  # characters of a value in a description
_OF_MODULES = frozenset(vars(nn.Module()))
_PLAIN: tuple[type, ...] = (
    float, int, bool, str, type(None), torch.dtype, enum.Enum, type, Tensor, np.ndarray, FunctionType,
    BuiltinFunctionType, functools.partial,
)  # fmt: skip
_CALLED = ("__call__", "__iter__", "update", "compute", "reset")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def digest(*contents: Any) -> str:
    """Sixteen hexadecimal digits of texts, bytes, tensors and arrays."""
    total = hashlib.blake2b(digest_size=8)
    for content in contents:
        if isinstance(content, np.ndarray):
            content = (str(content.dtype), content.shape, np.ascontiguousarray(content).tobytes())
        if isinstance(content, Tensor):
            flat = content.detach().cpu().contiguous().reshape(-1)
            total.update(f"{content.dtype} {tuple(content.shape)}".encode())
            total.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        else:
            data = content if isinstance(content, bytes) else repr(content).encode()
            total.update(f"{len(data)}:".encode() + data)
    return total.hexdigest()


def of_array(array: Tensor | np.ndarray[Any, Any]) -> str:
    """A digest of an array [N, ...]: of all of it up to `WHOLE` bytes, of `ROWS` rows spread over it beyond."""
    if isinstance(array, np.ndarray) and array.dtype.kind not in "biufc":
        return digest(array[:: len(array) // ROWS + 1] if array.ndim and array.nbytes > WHOLE else array)
    tensor = torch.from_numpy(np.ascontiguousarray(array)) if isinstance(array, np.ndarray) else array
    if tensor.layout != torch.strided:
        entries = tensor.detach().to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
        return digest(tuple(tensor.shape), of_array(entries.indices()), of_array(entries.values()))
    if tensor.nbytes <= WHOLE or not tensor.ndim:
        return digest(tensor)
    return digest(tuple(tensor.shape), tensor[torch.linspace(0, len(tensor) - 1, ROWS).long()])


def of_item(item: Any) -> str:
    """A digest of one sample, or one batch: any nest of tensors, arrays, numbers, texts and images."""
    leaves = []
    for leaf in tree_leaves(item):
        if callable(getattr(leaf, "tobytes", None)) and not isinstance(leaf, np.ndarray | np.generic):
            leaf = np.asarray(leaf)  # an image of Pillow
        known = isinstance(leaf, Tensor | np.ndarray | np.generic | str | bytes | int | float | bool | None)
        leaves.append(leaf if known else type(leaf).__qualname__)
    return digest(*leaves)


@dataclasses.dataclass(frozen=True)
class _Level:
    """How deep in a value we are, and what of objects, functions and modules there is told beside their names."""

    depth: int = 0
    attributes: bool = False  # of objects inside others, which may change while the run goes on
    code: bool = True
    modules: bool = True

    @property
    def below(self) -> _Level:
        return dataclasses.replace(self, depth=self.depth + 1)


_INSIDE_MODULE = _Level(depth=1, attributes=True, modules=False)  # a function of its own may lead back to it
_READ_BY_CODE = _Level(depth=1, code=False, modules=False)  # and one that it reads to its code


def described(value: Any) -> str:
    """A value, function or object in words that are the same in every process; see the head of this file."""
    return _described(value, _Level())


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
    if at.depth > _DEPTH:
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
        inner = _ask(inspect.unwrap, value)  # what a decorator binds is no setting
        return _function(inner if isinstance(inner, FunctionType) else value, at)
    if isinstance(value, nn.Module):
        return f"{type(value).__qualname__}{f' #{of_network(value)}' if at.modules else ''}"
    return _object(value, at)


def _object(value: Any, at: _Level) -> str:
    """A class, a built-in function, or an object by its class and its plain attributes."""
    if inspect.isclass(value):
        own = at.code and _own(value)
        code = [_code(f, set()) for f in vars(value).values() if isinstance(f, FunctionType)] if own else []
        return f"{value.__qualname__}{f' #{digest(*code)}' if code else ''}"
    if not _ask(hasattr, value, "__dict__") or inspect.isbuiltin(value):
        return str(_ask(getattr, value, "__qualname__", type(value).__qualname__))
    if at.depth and not at.attributes and not _is_record(value):
        return type(value).__qualname__
    kind: Any = type(value)
    state = _state(kind)
    plain = {
        name: _described(entry, at.below)
        for name, entry in _ask(lambda: list(vars(value).items()))
        if _ask(_is_plain, entry) and name not in state.assigned and not (state.in_place and _is_mutable(entry))
    }
    listed = ", ".join(f"{name}={entry}" for name, entry in plain.items())
    code = _codes(kind, *_CALLED) if at.code else []
    mark = f" #{digest(*code)}" if code else ""
    return f"{type(value).__qualname__}{f'({listed})' if listed else ''}{mark}"


def _is_plain(value: Any, *, depth: int = 0) -> bool:
    if isinstance(value, tuple | list | set | frozenset | Mapping):
        entries = [*value, *value.values()] if isinstance(value, Mapping) else value
        return len(value) <= ROWS and depth < _DEPTH and all(_is_plain(entry, depth=depth + 1) for entry in entries)
    return isinstance(value, _PLAIN) or _is_record(value)


def _is_record(value: Any) -> bool:
    """Whether an object does no more than hold options."""
    return isinstance(value, argparse.Namespace | SimpleNamespace) or (
        dataclasses.is_dataclass(value) and not isinstance(value, type | nn.Module)
    )


def _function(function: FunctionType, at: _Level) -> str:
    if not at.code:
        return function.__qualname__
    bound = {name: entry for name, entry in _bound(function).items() if not name.startswith("__")}
    if changes_of(function.__code__).in_place:
        bound = {name: type(entry) if _is_mutable(entry) else entry for name, entry in bound.items()}
    listed = ", ".join(f"{name}={_described(entry, at.below)}" for name, entry in bound.items())
    mark = f" #{digest(_code(function, set()))}" if _own(function) else ""
    return f"{function.__qualname__}{f'({listed})' if listed else ''}{mark}"


def _bound(function: FunctionType) -> dict[str, Any]:
    """What a function has bound: the variables of the functions around it, and of a user's its defaults."""
    values: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            values[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    if _own(function):
        given = function.__defaults__ or ()
        first = function.__code__.co_argcount - len(given)
        values |= dict(zip(function.__code__.co_varnames[first:], given, strict=False))
        values |= function.__kwdefaults__ or {}
    return values


def _own(thing: Any) -> bool:
    """Whether a function or class is code of the user's."""
    return _own_name(str(getattr(thing, "__module__", None) or ""))


def _own_name(module: str) -> bool:
    return module.partition(".")[0] not in LIBRARIES


def _code(function: FunctionType, seen: set[CodeType]) -> str:
    """A digest of a function's code, of the user's functions that it names, and of the numbers that it reads."""
    code = function.__code__
    if code in seen:
        return ""
    seen.add(code)
    changes = changes_of(code)
    named = [(name, _read(function.__globals__.get(name), changes, seen)) for name in sorted(changes.read)]
    return digest(_parts(code, function.__doc__), named)


def _read(entry: Any, changes: Changes, seen: set[CodeType]) -> Any:
    """What code reads of its module: of functions and classes of the user's their code, of options their values."""
    if isinstance(entry, ModuleType) and _own_name(entry.__name__):
        return [
            _read(value, changes, seen)
            for name in sorted(changes.names)
            if (value := vars(entry).get(name)) is not None
        ]
    if isinstance(entry, FunctionType) and _own(entry):
        return _code(entry, seen)
    if isinstance(entry, type) and _own(entry):
        return [_code(method, seen) for method in vars(entry).values() if isinstance(method, FunctionType)]
    if isinstance(entry, FunctionType | type) or not _ask(_is_plain, entry) or _state_in(entry, changes):
        return str(_ask(getattr, entry, "__qualname__", ""))
    return _described(entry, _READ_BY_CODE)


def _is_mutable(value: Any) -> bool:
    return isinstance(value, list | set | Mapping | Tensor | np.ndarray)


def _state_in(value: Any, changes: Changes) -> bool:
    """Whether what code reads may be what it changes."""
    return (changes.in_place and _is_mutable(value)) or (bool(changes.assigned) and _is_record(value))


@functools.cache
def _state(kind: type) -> Changes:
    """What of an object the methods of its class change that are called as a run goes on."""
    called = ("forward",) if issubclass(kind, nn.Module) else _CALLED
    changes = [changes_of(function.__code__) for _, function in _reached(kind, *called)]
    assigned = frozenset[str]().union(*(each.assigned for each in changes))
    return Changes(frozenset(), frozenset(), assigned, any(each.in_place for each in changes))


def _parts(code: CodeType, doc: str | None = None) -> list[Any]:
    constants = [
        _parts(c) if isinstance(c, CodeType) else sorted(map(repr, c)) if isinstance(c, frozenset) else c
        for c in code.co_consts
        if not (doc is not None and c == doc)
    ]
    return [code.co_code.hex(), code.co_names, code.co_varnames, constants]


def of_network(network: nn.Module) -> str:
    """A digest of what a network computes apart from its weights.

    Of each module: class, settings such as stride and activation, shapes and types of its tensors, which of them are
    trained; of the user's classes also the code that `forward` reaches. It runs nothing, so that a network that
    cannot be traced has one too.
    """
    rows, forwards = list[Any](), dict[type, list[str]]()
    for path, module in network.named_modules():
        kind = type(module)
        forwards[kind] = forwards.get(kind) or _codes(kind, "forward")
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        forms = [(name, str(tensor.dtype), _shape(tensor), tensor.requires_grad) for name, tensor in tensors]
        rows.append((path, kind.__qualname__, _settings(module), forms, forwards[kind]))
    return digest(rows)


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
        if name not in _OF_MODULES and name not in state.assigned and (_own(kind) or not name.startswith("_"))
    }
    if not ours:  # what checkpoints do not hold, and what is called beside forward
        values |= {name: module._buffers[name] for name in sorted(module._non_persistent_buffers_set)}
        values |= {name: list(getattr(module, name).values()) for name in _HOOKS if getattr(module, name)}
    if state.in_place:
        values = {name: type(value) if _is_mutable(value) else value for name, value in values.items()}
    known = (float, int, bool, str, type(None), torch.dtype, enum.Enum, FunctionType, type, tuple, list)
    return [
        (name, _described(value, _INSIDE_MODULE))
        for name, value in values.items()
        if (isinstance(value, known) and _is_plain(value)) or not ours
    ]


def _codes(kind: type, *start: str) -> list[str]:
    """Digests of methods of a class and of those that they reach, where they are the user's."""
    return [f"{name} {_code(method, set())}" for name, method in _reached(kind, *start) if _own(method)]


def _reached(kind: type, *start: str) -> list[tuple[str, FunctionType]]:
    """Methods of a class and those that they name, and so on, by name."""
    pending, reached = [*start], dict[str, FunctionType]()
    while pending:
        name = pending.pop()
        method = getattr(kind, name, None)
        method = inspect.unwrap(method) if isinstance(method, FunctionType) else method
        # Such as `x.float()`, which names a method of every module.
        if name not in reached and isinstance(method, FunctionType) and vars(nn.Module).get(name) is not method:
            reached[name] = method
            pending += names(method.__code__)
    return sorted(reached.items())


def _shape(tensor: Tensor) -> list[int]:
    return [] if nn.parameter.is_lazy(tensor) or tensor.is_nested else list(tensor.shape)


def of_items(fetch: Callable[[int], Any], indices: Sequence[int]) -> str:
    """A digest of some samples, got by `fetch`; "drawn anew each time" where the first is not the same twice."""
    if len({of_item(fetch(index)) for index in [*indices[:1], *indices[:1]]}) > 1:
        return "drawn anew each time"
    return digest([of_item(fetch(index)) for index in indices])
