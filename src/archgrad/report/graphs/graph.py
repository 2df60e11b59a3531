"""A directed graph of nodes and labelled edges, as the drawings of a cell need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Node:
    """A tensor or a block."""

    label: str
    details: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Edge:
    """From node to node, through the operation that `label` names, if any."""

    source: str
    target: str
    label: str


@dataclass(frozen=True)
class Graph:
    """A directed graph without cycles; `nodes` are in the order in which they were given."""

    name: str
    nodes: Mapping[str, Node]
    edges: Sequence[Edge]
    generations: Sequence[Sequence[str]]
