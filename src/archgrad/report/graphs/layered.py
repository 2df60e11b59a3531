"""A graph from left to right: nodes in columns, and between them columns for the operations on the edges.

An edge holds a place of its own in every column that it crosses, and its operation is such a place; so nothing
lies upon anything else, and edges between the same two nodes run side by side (the layout of Sugiyama, Tagawa
and Toda, 1981).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from archgrad.report.charts import svg
from archgrad.report.graphs.graph import Graph

_MARGIN, _GAP, _APART = 12.0, 30.0, 12.0
_NODE, _OPERATION, _BEND = 30.0, 24.0, 2.0
_SWEEPS = 24
# Long edges are kept straight before short ones are.
_PULL = {0: 1.0, 1: 3.0, 2: 9.0}


@dataclass(eq=False)
class _Place:
    kind: Literal["node", "operation", "bend"]
    column: int
    text: str = ""
    y: float = 0.0

    @property
    def height(self) -> float:
        return {"node": _NODE, "operation": _OPERATION, "bend": _BEND}[self.kind]

    @property
    def width(self) -> float:
        return 0.0 if self.kind == "bend" else max(svg.length(self.text) + 16, _NODE if self.kind == "node" else 0)


_Links = Mapping[_Place, list[_Place]]


def drawn(graph: Graph) -> str:
    """The graph as SVG text for the page; it has at least one node."""
    nodes, routes = _places(graph)
    columns: list[list[_Place]] = [[] for _ in range(2 * len(graph.generations) - 1)]
    for place in (*nodes.values(), *(place for route in routes for place in route[1:-1])):
        columns[place.column].append(place)
    left: dict[_Place, list[_Place]] = defaultdict(list)
    right: dict[_Place, list[_Place]] = defaultdict(list)
    for one, other in (pair for route in routes for pair in itertools.pairwise(route)):
        left[other].append(one)
        right[one].append(other)
    columns = _ordered(columns, left, right)
    _raised(columns, left, right)
    _straightened(columns, routes)
    height = _moved(columns)
    widths = [max((place.width for place in column), default=0.0) for column in columns]
    starts = [_MARGIN + sum(widths[:k]) + k * _GAP for k in range(len(widths))]
    spans = [(start, start + width) for start, width in zip(starts, widths, strict=True)]
    # Where operations stand on edges, the edges without one, such as those to a concatenation, step back.
    labelled = any(edge.label for edge in graph.edges)
    drawn_edges = zip(graph.edges, routes, strict=True)
    body = [_edge(route, spans, faint=labelled and not edge.label) for edge, route in drawn_edges]
    body += [_operation(place, spans) for route in routes for place in route if place.kind == "operation"]
    body += [_node(place, spans, inner=bool(left[place] and right[place])) for place in nodes.values()]
    return svg.picture("".join(body), width=spans[-1][1] + _MARGIN, height=height)


def _places(graph: Graph) -> tuple[dict[str, _Place], list[list[_Place]]]:
    """The place of each node, and for each edge the places that it goes through."""
    depth = {key: place for place, keys in enumerate(graph.generations) for key in keys}
    targets, sources = {edge.target for edge in graph.edges}, {edge.source for edge in graph.edges}
    # Results stand at the right end, however short the way to them.
    depth |= dict.fromkeys(targets - sources, len(graph.generations) - 1)
    nodes = {key: _Place("node", 2 * depth[key], node.label) for key, node in graph.nodes.items()}
    routes = []
    for edge in graph.edges:
        first, last = nodes[edge.source], nodes[edge.target]
        between = [_Place("bend", column) for column in range(first.column + 1, last.column)]
        if edge.label:
            between[-1] = _Place("operation", last.column - 1, edge.label)
        routes.append([first, *between, last])
    return nodes, routes


def _ordered(columns: list[list[_Place]], left: _Links, right: _Links) -> list[list[_Place]]:
    """Each column sorted by the middle of its neighbors, to and fro; the order with the fewest crossings."""
    best, fewest = columns, _crossings(columns, right)
    for sweep in range(_SWEEPS):
        links, forward = (left, True) if sweep % 2 == 0 else (right, False)
        columns = [list(column) for column in columns]
        steps = range(1, len(columns)) if forward else range(len(columns) - 2, -1, -1)
        for step in steps:
            before = {place: k for k, place in enumerate(columns[step - 1 if forward else step + 1])}
            own = {place: float(k) for k, place in enumerate(columns[step])}
            middle = {
                place: sum(before[one] for one in links[place]) / len(links[place]) if links[place] else own[place]
                for place in columns[step]
            }
            columns[step] = sorted(columns[step], key=middle.__getitem__)
        crossings = _crossings(columns, right)
        if crossings < fewest:
            best, fewest = columns, crossings
    return best


def _crossings(columns: Sequence[Sequence[_Place]], right: _Links) -> int:
    total = 0
    for column, following in itertools.pairwise(columns):
        order = {place: k for k, place in enumerate(following)}
        ends = [order[one] for place in column for one in sorted(right[place], key=order.__getitem__)]
        total += sum(ends[i] > ends[j] for i, j in itertools.combinations(range(len(ends)), 2))
    return total


def _raised(columns: Sequence[Sequence[_Place]], left: _Links, right: _Links) -> None:
    """Gives every place its y, near its neighbors and clear of its column."""
    offsets = []
    for column in columns:
        gaps = [_clear(one, other) for one, other in itertools.pairwise(column)]
        offsets.append([0.0, *itertools.accumulate(gaps)][: len(column)])
        for place, offset in zip(column, offsets[-1], strict=True):
            place.y = offset - offsets[-1][-1] / 2
    for sweep in range(2 * _SWEEPS):
        for step in range(len(columns)) if sweep % 2 == 0 else range(len(columns) - 1, -1, -1):
            wanted, weights = [], []
            for place, offset in zip(columns[step], offsets[step], strict=True):
                pulls = [(_pull(place, one), one.y) for one in (*left[place], *right[place])]
                weight = sum(pull for pull, _ in pulls)
                mean = sum(pull * y for pull, y in pulls) / weight if weight else place.y
                wanted.append(mean - offset)
                weights.append(weight or 1.0)
            rising = _rising(wanted, weights)
            for place, y, offset in zip(columns[step], rising, offsets[step], strict=True):
                place.y = y + offset


def _straightened(columns: Sequence[Sequence[_Place]], routes: Sequence[Sequence[_Place]]) -> None:
    """Levels the long edges, each over as many columns at a time as its neighbors leave free."""
    neighbors: dict[_Place, tuple[_Place | None, _Place | None]] = {}
    for column in columns:
        padded = [None, *column, None]
        neighbors |= {place: (padded[k], padded[k + 2]) for k, place in enumerate(column)}
    for route in sorted(routes, key=len, reverse=True):
        level: list[_Place] = []
        low, high = -math.inf, math.inf
        for place in route[1:-1]:
            above, below = neighbors[place]
            least = above.y + _clear(above, place) if above else -math.inf
            most = below.y - _clear(place, below) if below else math.inf
            if max(low, least) > min(high, most):
                _level(level, low, high)
                level, low, high = [], -math.inf, math.inf
            level.append(place)
            low, high = max(low, least), min(high, most)
        _level(level, low, high)


def _level(places: Sequence[_Place], low: float, high: float) -> None:
    y = min(max(places[0].y, low), high) if places else 0.0
    for place in places:
        place.y = y


def _moved(columns: Sequence[Sequence[_Place]]) -> float:
    """Moves all places below the upper margin; returns the height of the picture."""
    places = [place for column in columns for place in column]
    top = min(place.y - place.height / 2 for place in places) - _MARGIN
    for place in places:
        place.y -= top
    return max(place.y + place.height / 2 for place in places) + _MARGIN


def _clear(one: _Place, other: _Place) -> float:
    return (one.height + other.height) / 2 + _APART


def _pull(place: _Place, other: _Place) -> float:
    return _PULL[(place.kind != "node") + (other.kind != "node")]


def _rising(wanted: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-decreasing figures nearest to those wanted: argmin sum w (y - wanted)^2.

    By pooling of adjacent violators; scikit-learn's takes two seconds to import.
    """
    pools: list[tuple[float, float, int]] = []
    for y, weight in zip(wanted, weights, strict=True):
        pools.append((y, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, u, m), (b, v, n) = pools[-2:]
            pools[-2:] = [((a * u + b * v) / (u + v), u + v, m + n)]
    return [y for y, _, count in pools for _ in range(count)]


def _edge(route: Sequence[_Place], spans: Sequence[tuple[float, float]], *, faint: bool) -> str:
    x, y = spans[route[0].column][1], route[0].y
    path = f"M{x:.1f},{y:.1f}"
    for place in route[1:]:
        start, end = spans[place.column]
        last = place is route[-1]
        start -= 7 if last else 0
        half = (start - x) / 2
        path += f"C{x + half:.1f},{y:.1f} {start - half:.1f},{place.y:.1f} {start:.1f},{place.y:.1f}"
        x, y = (start, place.y) if last else (end, place.y)
        path += "" if last else f"H{end:.1f}"
    arrow = f"M{x - 1:.1f},{y - 4:.1f}l8,4l-8,4z"
    kind = "faint-" if faint else ""
    return f'<path class="g-{kind}edge" d="{path}"/><path class="g-{kind}arrow" d="{arrow}"/>'


def _node(place: _Place, spans: Sequence[tuple[float, float]], *, inner: bool) -> str:
    start, end = spans[place.column]
    box = f'x="{start:.1f}" y="{place.y - _NODE / 2:.1f}" width="{end - start:.1f}" height="{_NODE:.0f}"'
    name = svg.words(place.text, (start + end) / 2, place.y, anchor="middle")
    return f'<rect class="{"g-node" if inner else "g-end"}" {box} rx="{6 if inner else 15}"/>{name}'


def _operation(place: _Place, spans: Sequence[tuple[float, float]]) -> str:
    start, end = spans[place.column]
    middle = (start + end) / 2
    box = f'x="{middle - place.width / 2:.1f}" y="{place.y - _OPERATION / 2:.1f}" width="{place.width:.1f}"'
    name = svg.words(place.text, middle, place.y, anchor="middle")
    return f'<rect class="g-op" {box} height="{_OPERATION:.0f}" rx="4"/>{name}'
