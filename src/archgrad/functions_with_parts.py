"""Functions of a network that hold parts of it, in closures, defaults, partials and hooks: a copy needs its own."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

from torch import nn

_HOLDERS = (types.FunctionType, types.MethodType, functools.partial, dict, list, tuple, set)
_LONG = 1000  # entries of a container above which it is data, and not looked into


def functions_of(network: nn.Module) -> tuple[dict[types.FunctionType, types.FunctionType], set[int]]:
    """Functions among attributes and hooks that lead to a part of the network, and the ids of all that does.

    Each function has a twin that holds nothing yet. `self.f = lambda x: m.c_proj(m.act(m.c_fc(x)))` holds m in its
    closure, and copying leaves functions as they are: the copy would go on computing with the original's m.
    """
    own = {id(part) for part in (*network.modules(), *network.parameters(), *network.buffers())}
    own |= {id(v) for m in network.modules() for v in vars(m).values() if isinstance(v, (list, dict, set))}
    attributes = [value for module in network.modules() for value in vars(module).values()]
    todo = [value for a in attributes for value in (_held(a) if id(a) in own else [a])]
    seen, holders = dict[int, Any](), dict[int, list[int]]()  # what holds it, by what is held
    while todo:
        value = todo.pop()
        if id(value) in own or id(value) in seen or not isinstance(value, _HOLDERS):
            continue
        seen[id(value)] = value
        for inner in _held(value):
            holders.setdefault(id(inner), []).append(id(value))
            todo.append(inner)
    leading, ids = set[int](), [held for held in holders if held in own]
    while ids:
        fresh = [holder for holder in holders.get(ids.pop(), ()) if holder not in leading]
        leading.update(fresh)
        ids += fresh
    twins = {
        f: types.FunctionType(f.__code__, f.__globals__, f.__name__, None, tuple(types.CellType() for _ in _cells(f)))
        for f in (seen[i] for i in leading) if isinstance(f, types.FunctionType)
    }  # fmt: skip
    return twins, leading


def _cells(function: types.FunctionType) -> tuple[types.CellType, ...]:
    return function.__closure__ or ()


def _held(value: Any) -> list[Any]:
    """What one of `_HOLDERS` holds, none for others."""
    match value:
        case types.FunctionType():
            cells = [cell.cell_contents for cell in _cells(value) if cell != types.CellType()]
            return [
                *cells,
                *(value.__defaults__ or ()),
                *(value.__kwdefaults__ or {}).values(),
                *vars(value).values(),
            ]
        case types.MethodType():
            return [value.__func__, value.__self__]
        case functools.partial():
            return [value.func, *value.args, *value.keywords.values()]
        case dict() if len(value) <= _LONG:
            return [*value, *value.values()]
        case list() | tuple() | set() if len(value) <= _LONG:
            return list(value)
    return []


def bind(function: types.FunctionType, twin: types.FunctionType, memo: dict[int, Any], leading: set[int]) -> None:
    """Give the twin what the function holds: of the network the parts of its copy, of all else the same objects."""

    def of(value: Any) -> Any:
        if id(value) in memo or id(value) not in leading:
            return memo.get(id(value), value)
        match value:
            case types.MethodType():
                made: Any = types.MethodType(of(value.__func__), of(value.__self__))
            case functools.partial():
                made = functools.partial(of(value.func), *map(of, value.args), **of_each(value.keywords))
            case dict():
                made = memo[id(value)] = copy.copy(value)
                made.clear()
                made.update(of_each(value))
            case list():
                made = memo[id(value)] = copy.copy(value)
                made[:] = map(of, value)
            case _:
                parts = map(of, value)
                made = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        return memo.setdefault(id(value), made)

    def of_each(values: dict[Any, Any]) -> dict[Any, Any]:
        return {of(name): of(value) for name, value in values.items()}

    for mine, given in zip(_cells(twin), _cells(function), strict=True):
        if given != types.CellType():
            mine.cell_contents = of(given.cell_contents)
    twin.__defaults__ = None if function.__defaults__ is None else tuple(map(of, function.__defaults__))
    twin.__kwdefaults__ = of_each(function.__kwdefaults__ or {}) or None
    vars(twin).update(of_each(vars(function)))
    twin.__qualname__, twin.__doc__, twin.__module__ = function.__qualname__, function.__doc__, function.__module__
