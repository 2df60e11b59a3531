"""What the code of a function reads, and what it changes while it runs."""

from __future__ import annotations

import dis
import functools
import re
import sys
from collections.abc import Iterator
from types import CodeType
from typing import Any, NamedTuple

LIBRARIES = sys.stdlib_module_names | {
    "archgrad", "numpy", "scipy", "timm", "torch", "torchaudio", "torchvision", "transformers",
}  # fmt: skip
# What changes a container or a tensor in place: methods of it, and how deep it lies under what else changes it.
_IN_PLACE = {
    "append", "extend", "insert", "update", "setdefault", "add", "pop", "popitem", "clear", "remove",
    "copy_", "fill_", "zero_", "add_", "mul_", "set_", "register_buffer",
}  # fmt: skip
_OF_VARIABLES = re.compile(r"(LOAD|STORE)_FAST(?:_BORROW|_CHECK|_AND_CLEAR)?(?=_LOAD|_STORE|\Z)")
_STORED = {"STORE_SUBSCR": 2, "DELETE_SUBSCR": 2, "STORE_SLICE": 3}


class Changes(NamedTuple):
    """What code reads of its module, names of any kind in it, attributes that it assigns, changes in place."""

    read: frozenset[str]
    names: frozenset[str]
    assigned: frozenset[str]
    in_place: bool


@functools.cache
def changes(code: CodeType) -> Changes:
    """Of a function and those inside it."""
    read, assigned, in_place = set[str](), set[str](), _changes_kept(code)
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read.add(step.argval)
        elif step.opname == "STORE_ATTR":
            assigned.add(step.argval)
    for nested in (changes(each) for each in code.co_consts if isinstance(each, CodeType)):
        read, assigned, in_place = read | nested.read, assigned | nested.assigned, in_place or nested.in_place
    return Changes(frozenset(read), frozenset(names(code)), frozenset(assigned), in_place)


def _changes_kept(code: CodeType) -> bool:
    """Whether code changes in place what it finds in `self`, in its module or in functions around it.

    An activation, which it has made or was given, is not that. The stack is followed as if nothing branched.
    """
    kept, stack = {"self": True} | dict.fromkeys(code.co_freevars, True), [False] * 8
    for op, name, moved in _steps(code):
        method = op in ("LOAD_ATTR", "LOAD_METHOD")
        if (
            name == "setattr"
            or (method and stack[-1] and name in _IN_PLACE)
            or (op in _STORED and stack[-_STORED[op]])
        ):
            return True
        if method:
            stack += [stack[-1]] * moved
        elif op in ("LOAD_GLOBAL", "LOAD_NAME"):
            stack += [name not in LIBRARIES] * moved
        elif op in ("LOAD_FAST", "LOAD_DEREF"):
            stack.append(kept.get(name, False))
        elif op in ("STORE_FAST", "STORE_DEREF"):
            kept[name] = stack.pop()
        elif op == "BINARY_SUBSCR":
            stack.pop()
        elif op == "COPY":
            stack.append(stack[-name])
        elif op == "SWAP":
            stack[-1], stack[-name] = stack[-name], stack[-1]
        else:
            stack = [*stack[: len(stack) + min(moved, 0)], *[False] * max(moved, 0)]
            if op.startswith(("CALL", "BINARY", "BUILD", "GET_ITER", "UNARY", "COMPARE")):
                stack[-1] = False
        stack = [False] * (8 - len(stack)) + stack  # of what jumps leave out
    return False


def _steps(code: CodeType) -> Iterator[tuple[str, Any, int]]:
    """Name, argument and effect on the stack of each instruction, in the words of Python 3.11.

    Later ones read or store two variables at once, check or borrow what they read, and subscript by `BINARY_OP`.
    """
    for step in dis.get_instructions(code):
        variables = step.argval if isinstance(step.argval, tuple) else (step.argval,)
        if parts := _OF_VARIABLES.findall(step.opname):
            for way, name in zip(parts, variables, strict=True):
                yield f"{way}_FAST", name, 1 if way == "LOAD" else -1
        else:
            subscript = step.opname == "BINARY_OP" and step.argrepr == "[]"
            op = "BINARY_SUBSCR" if subscript else step.opname
            yield op, step.argval, dis.stack_effect(step.opcode, step.arg)


def names(code: CodeType) -> list[str]:
    """All names in code but those of its own variables."""
    nested = [name for each in code.co_consts if isinstance(each, CodeType) for name in names(each)]
    return [*code.co_names, *nested]
