"""What the code of a function says, what it reads, and what it changes while it runs."""

from __future__ import annotations

import ast
import dis
import functools
import linecache
import re
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple

LIBRARIES = sys.stdlib_module_names | {
    "archgrad", "gymnasium", "numpy", "scipy", "timm", "torch", "torchaudio", "torchvision", "transformers",
}  # fmt: skip
# What changes a container or a tensor in place: methods of it, and how deep it lies under what else changes it.
_IN_PLACE = {
    "append", "extend", "insert", "update", "setdefault", "add", "pop", "popitem", "clear", "remove",
    "copy_", "fill_", "zero_", "add_", "mul_", "set_", "register_buffer",
}  # fmt: skip
_OF_VARIABLES = re.compile(r"(LOAD|STORE)_FAST(?:_BORROW|_CHECK|_AND_CLEAR)?(?=_LOAD|_STORE|\Z)")
_STORED = {"STORE_SUBSCR": 2, "DELETE_SUBSCR": 2, "STORE_SLICE": 3}


class Changes(NamedTuple):
    """What code reads of its module, names of any kind in it, attributes that it assigns, changes in place.

    `stored` are the variables of its module, and of functions around it, that it assigns.
    """

    read: frozenset[str]
    names: frozenset[str]
    assigned: frozenset[str]
    in_place: bool
    stored: frozenset[str] = frozenset()


@functools.cache
def changes(code: CodeType) -> Changes:
    """Of a function and those inside it."""
    read, assigned, stored, in_place = set[str](), set[str](), set[str](), _changes_kept(code)
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read.add(step.argval)
        elif step.opname == "STORE_ATTR":
            assigned.add(step.argval)
        elif step.opname == "STORE_GLOBAL" or (step.opname == "STORE_DEREF" and step.argval in code.co_freevars):
            stored.add(step.argval)
    for nested in (changes(each) for each in code.co_consts if isinstance(each, CodeType)):
        read, assigned, in_place = read | nested.read, assigned | nested.assigned, in_place or nested.in_place
        stored |= nested.stored - set(code.co_cellvars)
    return Changes(frozenset(read), frozenset(names(code)), frozenset(assigned), in_place, frozenset(stored))


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


# What a function of these says is what it computes: all but these, which say where it stands or what is meant.
_UNSAID = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx", "decorator_list"}
Said = list[Any]


def said(function: FunctionType) -> Said:
    """What a function says, as JSON: its source without comments, layout, annotations and docstring.

    That is the same in every version of Python. Where its source cannot be had, as of code that was made by `exec`,
    or is that of other code, as after an edit of its file, it is the bytecode, which differs between versions.
    """
    code = function.__code__
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    for inner, nodes in _written(text, code.co_filename).get(code.co_qualname, ()) if text else ():
        if _compiled(inner) == _compiled(code):
            return [_parts_of(node, top=True) for node in nodes]
    return ["bytecode", _compiled(code, doc=function.__doc__)]


def said_of_class(kind: type) -> dict[str, Said]:
    """What the source of a class assigns to its attributes, by name; nothing where its source cannot be had."""
    module = sys.modules.get(kind.__module__)
    filename = getattr(module, "__file__", None)
    text = "".join(linecache.getlines(filename, vars(module))) if module and filename else ""
    return _assigned_in_classes(text).get(kind.__qualname__, {}) if text else {}


@functools.lru_cache(maxsize=64)
def _assigned_in_classes(text: str) -> dict[str, dict[str, Said]]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found = dict[str, dict[str, Said]]()
    pending: list[tuple[str, ast.AST]] = [("", tree)]
    while pending:
        prefix, node = pending.pop()
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.ClassDef):
                found[prefix + inner.name] = _assigned_in(inner)
                pending.append((f"{prefix}{inner.name}.", inner))
            elif isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                pending.append((f"{prefix}{inner.name}.<locals>.", inner))
            else:
                pending.append((prefix, inner))
    return found


def _assigned_in(node: ast.ClassDef) -> dict[str, Said]:
    values = dict[str, Said]()
    for line in node.body:
        if isinstance(line, ast.Assign | ast.AnnAssign | ast.AugAssign) and line.value is not None:
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
            for name in names:
                values[name] = [*values.get(name, []), _parts_of(line)]
    return values


@functools.lru_cache(maxsize=64)
def _written(text: str, filename: str) -> dict[str, list[tuple[CodeType, list[ast.AST]]]]:
    """The code objects of a source text by qualified name, with the nodes that each may be of."""
    try:
        tree = ast.parse(text)
        pending, codes = [compile(text, filename, "exec", dont_inherit=True)], list[CodeType]()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    while pending:
        inner = [each for each in pending.pop().co_consts if isinstance(each, CodeType)]
        codes += inner
        pending += inner
    functions: dict[tuple[str, int], list[ast.AST]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            functions.setdefault((node.name, first), []).append(node)
        elif isinstance(node, ast.Lambda):
            functions.setdefault(("<lambda>", node.lineno), []).append(node)
    found: dict[str, list[tuple[CodeType, list[ast.AST]]]] = {}
    for code in codes:
        if nodes := functions.get((code.co_name, code.co_firstlineno)):
            found.setdefault(code.co_qualname, []).append((code, _of(code, nodes)))
    return found


def _of(code: CodeType, nodes: list[ast.AST]) -> list[ast.AST]:
    """Of functions that begin on one line that whose body the code computes; all of them where it does not say."""
    places = set(code.co_positions())
    here: list[ast.AST] = [
        node
        for node in nodes
        if isinstance(node, ast.Lambda)
        and (node.body.lineno, node.body.end_lineno, node.body.col_offset, node.body.end_col_offset) in places
    ]
    return here if len(here) == 1 else nodes


def _compiled(code: CodeType, *, doc: str | None = None) -> Said:
    """Bytecode, names and constants, the docstring left out."""
    constants = [
        _compiled(c) if isinstance(c, CodeType) else sorted(map(repr, c)) if isinstance(c, frozenset) else repr(c)
        for c in code.co_consts
        if not (doc is not None and c == doc)
    ]
    return [code.co_code.hex(), code.co_names, code.co_varnames, constants]


def _parts_of(node: Any, *, top: bool = False) -> Any:
    """A node of a syntax tree without what is empty, since versions of Python differ in what they leave out."""
    if isinstance(node, list):
        return [_parts_of(each) for each in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.JoinedStr):  # empty pieces of which some versions keep
        return ["JoinedStr", [_parts_of(each) for each in node.values if getattr(each, "value", None) != ""]]
    fields = {name: getattr(node, name, None) for name in node._fields if name not in _UNSAID}
    if not top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        fields["decorator_list"] = node.decorator_list
    if (
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and ast.get_docstring(node) is not None
    ):
        fields["body"] = node.body[1:]
    return [type(node).__name__, *([n, _parts_of(v)] for n, v in fields.items() if v is not None and v != [])]
