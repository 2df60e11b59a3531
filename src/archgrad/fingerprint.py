"""What a run was begun with, in a form that can be compared: functions with what they bind, networks, arrays.

A function of the user's is its name, the values that it has bound, and a digest of its code with that of the
functions it calls; one of a library is its name, since versions are compared elsewhere. Nothing here depends on
addresses, on hash seeds or on the process.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from archgrad import files

WHOLE = 64 * files.MIB  # of an array: beyond it rows are sampled
ROWS = 1024
ITEMS = 32  # of a dataset
_LIBRARIES = sys.stdlib_module_names | {
    "archgrad", "numpy", "scipy", "timm", "torch", "torchaudio", "torchvision", "transformers",
}  # fmt: skip
_DEPTH = 6
_SHORT = 60  # characters of a value in a description


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
    tensor = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
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


def described(value: Any, *, depth: int = 0) -> str:
    """A value, function or object in words that are the same in every process; see the head of this file."""
    if isinstance(value, float | int | bool | None | torch.dtype | torch.device | enum.Enum):
        return str(value) if isinstance(value, enum.Enum) else repr(value)
    if isinstance(value, str):
        text = repr(value) if depth else value
        return text if len(text) <= _SHORT else f"{text[:_SHORT]}... #{digest(value)}"
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__}{list(value.shape)} #{of_array(value) if value.dtype != object else ''}"
    if depth > _DEPTH:
        return type(value).__qualname__
    inside = functools.partial(described, depth=depth + 1)
    if isinstance(value, tuple | list):
        return f"({', '.join(map(inside, value))})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(inside, value)))}}}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{inside(key)}: {inside(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, functools.partial):
        keywords = [f"{name}={inside(entry)}" for name, entry in value.keywords.items()]
        return f"{inside(value.func)}({', '.join([*map(inside, value.args), *keywords])})"
    if isinstance(value, MethodType):
        return f"{inside(value.__self__)}.{inside(value.__func__)}"
    if isinstance(value, FunctionType):
        inner = inspect.unwrap(value)  # what a decorator binds is no setting
        return _function(inner if isinstance(inner, FunctionType) else value, depth)
    if isinstance(value, nn.Module):
        return f"{type(value).__qualname__} #{of_network(value)}"
    return _object(value, depth)


def _object(value: Any, depth: int) -> str:
    """A class, a built-in function, or an object by its class and its plain attributes."""
    if inspect.isclass(value):
        code = [_code(f, set()) for f in vars(value).values() if isinstance(f, FunctionType)] if _own(value) else []
        return f"{value.__qualname__}{f' #{digest(*code)}' if code else ''}"
    if not hasattr(value, "__dict__") or inspect.isbuiltin(value):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    frozen = getattr(getattr(value, "__dataclass_params__", None), "frozen", False)
    if depth and not frozen:
        return type(value).__qualname__  # what a function works on may change while the run goes on
    plain = {name: described(entry, depth=depth + 1) for name, entry in vars(value).items() if _is_plain(entry)}
    listed = ", ".join(f"{name}={entry}" for name, entry in plain.items())
    call = next((vars(kind)["__call__"] for kind in type(value).__mro__ if "__call__" in vars(kind)), None)
    mark = f" #{digest(_code(call, set()))}" if isinstance(call, FunctionType) and _own(type(value)) else ""
    return f"{type(value).__qualname__}{f'({listed})' if listed else ''}{mark}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return len(value) <= ROWS and all(map(_is_plain, value))
    return isinstance(value, float | int | bool | str | None | torch.dtype | enum.Enum | FunctionType | type)


def _function(function: FunctionType, depth: int) -> str:
    bound = {name: entry for name, entry in _bound(function).items() if not name.startswith("__")}
    listed = ", ".join(f"{name}={described(entry, depth=depth + 1)}" for name, entry in bound.items())
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
    return str(getattr(thing, "__module__", None) or "").partition(".")[0] not in _LIBRARIES


def _code(function: FunctionType, seen: set[CodeType]) -> str:
    """A digest of a function's code, of the user's functions that it names, and of the numbers that it reads."""
    code = function.__code__
    if code in seen:
        return ""
    seen.add(code)
    named: list[Any] = []
    for name in _names(code):
        entry = function.__globals__.get(name)
        if isinstance(entry, bool | int | float):
            named.append((name, entry))
        elif isinstance(entry, FunctionType) and _own(entry):
            named.append((name, _code(entry, seen)))
        elif entry is not None:
            named.append((name, str(getattr(entry, "__qualname__", ""))))
    return digest(_parts(code, function.__doc__), named)


def _names(code: CodeType) -> list[str]:
    nested = [name for each in code.co_consts if isinstance(each, CodeType) for name in _names(each)]
    return [*code.co_names, *nested]


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
        forwards[kind] = forwards.get(kind) or _forward(kind)
        settings = [
            (name, described(value, depth=_DEPTH))
            for name, value in sorted(vars(module).items())
            if not name.startswith("_") and name != "training" and _is_plain(value)
        ]
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        forms = [(name, str(tensor.dtype), _shape(tensor), tensor.requires_grad) for name, tensor in tensors]
        rows.append((path, kind.__qualname__, settings, forms, forwards[kind]))
    return digest(rows)


def _forward(kind: type[nn.Module]) -> list[str]:
    """Digests of `forward` and of the methods of the user's that it reaches."""
    pending, reached = ["forward"], dict[str, str]()
    while pending:
        name = pending.pop()
        method = getattr(kind, name, None)
        if name not in reached and isinstance(method, FunctionType) and _own(method):
            reached[name] = _code(method, set())
            pending += _names(method.__code__)
    return [f"{name} {reached[name]}" for name in sorted(reached)]


def _shape(tensor: Tensor) -> list[int]:
    return [] if nn.parameter.is_lazy(tensor) else list(tensor.shape)


def of_items(fetch: Callable[[int], Any], indices: Sequence[int]) -> str:
    """A digest of some samples, got by `fetch`; "drawn anew each time" where the first is not the same twice."""
    if len({of_item(fetch(index)) for index in [*indices[:1], *indices[:1]]}) > 1:
        return "drawn anew each time"
    return digest([of_item(fetch(index)) for index in indices])
