"""Cells as text: our one-line form, and the form that the authors of DARTS print.

    normal 0:sep_conv_3x3,1:skip_connect | 0:max_pool_3x3,2:dil_conv_5x5 reduce 0:none,1:none | 1:none,2:none
    Genotype(normal=[('sep_conv_3x3', 0), ('skip_connect', 1), ...], normal_concat=range(2, 4), reduce=[...], ...)

A node is two pairs of a source state and an operation. (Where the topology is free, nodes may have another number of
pairs, which is written but not read.) Nodes are numbered from 2, behind the cell's two inputs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from archgrad.errors import ArchitectureError

Pair = tuple[int, str]
Node = tuple[Pair, ...]
Cells = dict[str, tuple[Node, ...]]

KINDS = ("normal", "reduce")
LONGEST = 20_000
_ALLOWED = (
    "allowed are 'normal 0:sep_conv_3x3,1:skip_connect | ... reduce ...', nodes separated by '|', and "
    "'Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=..., reduce=[...], reduce_concat=...)'"
)
_PAIR = re.compile(r"\s*([0-9]{1,4})\s*:\s*([A-Za-z0-9_]+)\s*", re.ASCII)


@dataclass(frozen=True)
class Rules:
    """Which cells a space has.

    Attributes:
        labels: allowed operations.
        nodes: nodes a cell, or None for any number.
        repeats: whether both inputs of a node may have the same source.
    """

    labels: Sequence[str]
    nodes: int | None = None
    repeats: bool = False


def parse(text: str, rules: Rules) -> Cells:
    """The nodes of each kind of cell that the text describes.

    Raises:
        ArchitectureError: text in neither form, or cells that break the rules.
    """
    if not isinstance(text, str):
        raise ArchitectureError(f"a cell is described by a string, given {type(text).__name__}; {_ALLOWED}")
    if len(text) > LONGEST:
        _refuse(text, f"it has {len(text)} characters, more than {LONGEST}")
    cells = _printed(text) if "Genotype" in text else _one_line(text)
    for kind, nodes in cells.items():
        _check(kind, nodes, rules)
    if len({len(nodes) for nodes in cells.values()}) > 1:
        counts = " and ".join(f"{len(nodes)} in {kind!r}" for kind, nodes in cells.items())
        raise ArchitectureError(f"the two kinds of cells have different numbers of nodes: {counts}; make them equal")
    return cells


def show(cells: Mapping[str, Sequence[Node]]) -> str:
    """The one-line form."""
    return " ".join(
        f"{kind} " + " | ".join(",".join(f"{source}:{label}" for source, label in node) for node in nodes)
        for kind, nodes in cells.items()
    )


def _refuse(text: str, reason: str) -> NoReturn:
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    raise ArchitectureError(f"{shown!r} describes no cells: {reason}; {_ALLOWED}") from None


def _one_line(text: str) -> Cells:
    _, *parts = re.split(r"\b(normal|reduce)\b", text)
    names, bodies = parts[::2], parts[1::2]
    if not names or text.split()[0] not in KINDS or len(set(names)) != len(names):
        _refuse(text, "it must begin with 'normal' or 'reduce' and name each once")
    return {
        kind: tuple(_node(text, node) for node in bodies[names.index(kind)].split("|"))
        for kind in KINDS
        if kind in names
    }


def _node(text: str, node: str) -> Node:
    matches = [_PAIR.fullmatch(pair) for pair in node.split(",")]
    pairs = [(int(match[1]), match[2]) for match in matches if match is not None]
    if len(pairs) != 2 or len(matches) != 2:
        _refuse(text, f"the node {node.strip()[:60]!r} is not two pairs source:operation")
    return pairs[0], pairs[1]


def _printed(text: str) -> Cells:
    """The authors' form, read as syntax; nothing is evaluated."""
    try:
        tree = ast.parse(text.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        _refuse(text, f"it cannot be read ({type(error).__name__})")
    statement = tree.body[0] if len(tree.body) == 1 else None
    call = statement.value if isinstance(statement, ast.Expr | ast.Assign) else None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "Genotype":
        _refuse(text, "it is not one Genotype(...)")
    fields = {keyword.arg: keyword.value for keyword in call.keywords}
    needed = {field for kind in KINDS for field in (kind, f"{kind}_concat")}
    if call.args or set(fields) != needed or len(call.keywords) != len(needed):
        _refuse(text, f"it needs {', '.join(sorted(needed))}, each once and by name")
    cells = {kind: _paired(text, _literal(text, fields[kind])) for kind in KINDS}
    for kind, nodes in cells.items():
        concat = _literal(text, fields[f"{kind}_concat"])
        every = list(range(2, 2 + len(nodes)))
        if not isinstance(concat, list | tuple) or not all(type(i) is int for i in concat) or sorted(concat) != every:
            _refuse(text, f"{kind}_concat must be all nodes, {every}, as the cells of this space concatenate them")
    return cells


def _literal(text: str, node: ast.expr) -> object:
    """A literal, or `range` of two small literals."""
    try:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
            bounds = [ast.literal_eval(argument) for argument in node.args]
            if len(bounds) == 2 and not node.keywords and all(type(b) is int and 0 <= b <= LONGEST for b in bounds):
                return list(range(*bounds))
            _refuse(text, "a range must have two bounds")
        value: object = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        _refuse(text, "only names of operations, numbers, tuples, lists and range(a, b) are read")
    return value


def _paired(text: str, value: object) -> tuple[Node, ...]:
    pairs = value if isinstance(value, list | tuple) else ()
    valid = [
        (pair[1], pair[0])
        for pair in pairs
        if isinstance(pair, list | tuple) and len(pair) == 2 and type(pair[0]) is str and type(pair[1]) is int
    ]
    if not valid or len(valid) != len(pairs) or len(valid) % 2:
        _refuse(text, "a cell is a list of pairs ('operation', source), two for each node")
    return tuple(zip(valid[::2], valid[1::2], strict=True))


def _check(kind: str, nodes: Sequence[Node], rules: Rules) -> None:
    if rules.nodes is not None and len(nodes) != rules.nodes:
        raise ArchitectureError(f"{kind!r} has {len(nodes)} nodes; the cells of this space have {rules.nodes}")
    for number, node in enumerate(nodes, start=2):
        for source, label in node:
            if label not in rules.labels:
                raise ArchitectureError(
                    f"node {number} of {kind!r}: there is no operation {label[:60]!r}; allowed are "
                    f"{', '.join(rules.labels)}"
                )
            if not 0 <= source < number:
                raise ArchitectureError(
                    f"node {number} of {kind!r} reads state {source}; allowed are those before it, 0 to {number - 1}"
                )
        if not rules.repeats and node[0][0] == node[1][0]:
            raise ArchitectureError(
                f"node {number} of {kind!r} reads state {node[0][0]} twice; in this form of the space its two "
                f"sources differ (with factorized=True they may be the same)"
            )
