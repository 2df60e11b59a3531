"""What is too long or too large to draw as a graph: tables, a row a block or a row an edge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from archgrad.report import numbers
from archgrad.report.charts import svg
from archgrad.report.graphs.graph import Graph

_ROW, _MARGIN, _GAP, _BAR = 22.0, 12.0, 24.0, 110.0
_MOST_ROWS = 400
_Cell = float | str


def chain(graph: Graph) -> str:
    """A chain from top to bottom, with the details of its blocks in columns; numbers have bars."""
    order = [key for generation in graph.generations for key in generation]
    into = {edge.target: edge.label for edge in graph.edges if edge.label}
    names = list(dict.fromkeys(name for node in graph.nodes.values() for name in node.details))
    rows: list[dict[str, _Cell]] = []
    for key in order:
        node = graph.nodes[key]
        through = {"through": into.get(key, "")} if into else {}
        rows.append({**through, "block": node.label, **node.details})
    return _table(rows, [*(["through"] if into else []), "block", *names])


def edges(graph: Graph) -> str:
    """The edges as they were given: from, operation, to."""
    label = {key: node.label for key, node in graph.nodes.items()}
    rows: list[dict[str, _Cell]] = [
        {"from": label[edge.source], "operation": edge.label, "to": label[edge.target]} for edge in graph.edges
    ]
    return _table(rows, ["from", "operation", "to"])


def _table(rows: Sequence[Mapping[str, _Cell]], names: Sequence[str]) -> str:
    shown = rows[:_MOST_ROWS]
    body, x = [], _MARGIN
    for name in names:
        column = [row.get(name, "") for row in shown]
        drawn, width = _column(name, column, x)
        body.append(drawn)
        x += width + _GAP
    width = x - _GAP + _MARGIN
    lines = [_MARGIN + _ROW * (k + 1) for k in range(len(shown) + 1)]
    rules = "".join(f'<path class="g-rule" d="M{_MARGIN:.0f},{y:.0f}H{width - _MARGIN:.0f}"/>' for y in lines)
    if len(rows) > len(shown):
        lines.append(lines[-1] + _ROW)
        body.append(svg.words(f"and {len(rows) - len(shown)} more", _MARGIN, lines[-1] - _ROW / 2, kind="g-soft"))
    return svg.picture(rules + "".join(body), width=width, height=lines[-1] + _MARGIN)


def _column(name: str, cells: Sequence[_Cell], x: float) -> tuple[str, float]:
    """A column and its width; numbers are written before bars that share one scale."""
    written = [cell if isinstance(cell, str) else numbers.figure(name, cell) for cell in cells]
    finite = [cell for cell in cells if not isinstance(cell, str) and math.isfinite(cell)]
    largest = max(finite, default=0)
    # Bars mean something only where all are lengths.
    barred = largest > 0 and min(finite) >= 0
    values = max((svg.length(one) for one in written), default=0.0)
    width = max(values + (8 + _BAR if barred else 0), svg.length(name))
    parts = [svg.words(name, x, _MARGIN + _ROW / 2, kind="g-soft")]
    for place, (cell, one) in enumerate(zip(cells, written, strict=True), start=1):
        y = _MARGIN + _ROW * (place + 0.5)
        right = barred and not isinstance(cell, str)
        parts.append(svg.words(one, x + values if right else x, y, anchor="end" if right else "start"))
        if right and not isinstance(cell, str) and math.isfinite(cell):
            size = f'width="{_BAR * cell / largest:.1f}" height="{_ROW - 10:.0f}"'
            parts.append(f'<rect class="g-bar" x="{x + values + 8:.1f}" y="{y - _ROW / 2 + 5:.1f}" {size}/>')
    return "".join(parts), width
