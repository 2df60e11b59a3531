"""Scores without training: a small picture for each choice, and scores over accuracies where a table gave some."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from archgrad.errors import RunError
from archgrad.report.charts import svg
from archgrad.report.charts.axes import INK, LINES, Chart, drawn, dress
from archgrad.report.charts.steps import is_finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW, _MARGIN, _BAR = 18.0, 8.0, 120.0
_MOST_CHOICES, _MOST_CANDIDATES, _MOST_POINTS = 80, 24, 1000
_MEASURES = {"spearman": "Spearman", "kendall": "Kendall", "top_tenth": "Spearman within the best tenth"}
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Candidates:
    """The candidates of one choice: its name, what the pictured scores are, and the SVG."""

    choice: str
    caption: str
    svg: str


def candidates(record: Record) -> list[Candidates]:
    """Of each choice a bar for the mean score of every candidate, and a dot for each draw of the weights.

    `record` has `scores` {choice: [mean]}, `labels` {choice: [name]}, `draws` [{choice: [score]}], and `picks`.

    Raises:
        RunError: a part of it is of another kind, or of another length than the labels.
    """
    scores, labels, draws = record.get("scores") or {}, record.get("labels") or {}, record.get("draws") or []
    if not isinstance(scores, Mapping) or not isinstance(labels, Mapping) or not isinstance(draws, list):
        _damaged("scores, labels or draws", "an object, an object and a list")
    picked = {str(one.get("choice")): one.get("pick") for one in record.get("picks") or []}
    charts = []
    for name in list(scores)[:_MOST_CHOICES]:
        names = labels.get(name)
        rows = [scores[name], *(one.get(name) if isinstance(one, Mapping) else None for one in draws)]
        if not isinstance(names, list) or not all(isinstance(row, list) and len(row) == len(names) for row in rows):
            _damaged(f"the scores of {name!r}", "one number for each label, in each draw")
        pick = picked.get(name)
        chosen = pick if isinstance(pick, list) else [pick]
        charts.append(_bars(name, [str(one) for one in names], rows, chosen))
    return charts


def _bars(name: str, labels: Sequence[str], rows: Sequence[Sequence[object]], chosen: Sequence[object]) -> Candidates:
    numbers = [[float(value) if is_finite(value) else 0.0 for value in row] for row in rows]
    largest = max((value for row in numbers for value in row), default=0.0) or 1.0
    mean, draws = numbers[0], numbers[1:]
    order = sorted(range(len(labels)), key=lambda k: -mean[k])[:_MOST_CANDIDATES]
    left = _MARGIN + max((svg.length(labels[k]) for k in order), default=0.0) + 8
    parts = []
    for place, k in enumerate(order):
        y = _MARGIN + _ROW * (place + 0.5)
        # A candidate that is not picked is pale.
        kind = "g-bar" if labels[k] in chosen else "g-pale"
        size = f'width="{_BAR * max(mean[k], 0.0) / largest:.1f}" height="{_ROW - 8:.0f}"'
        parts.append(svg.words(labels[k], left - 8, y, anchor="end", kind="g-word" if kind == "g-bar" else "g-soft"))
        parts.append(f'<rect class="{kind}" x="{left:.1f}" y="{y - _ROW / 2 + 4:.1f}" {size}/>')
        dots = [
            f'<circle class="g-dot" cx="{left + _BAR * row[k] / largest:.1f}" cy="{y:.1f}" r="2"/>' for row in draws
        ]
        parts += dots if len(draws) > 1 else []
    drawn_here = svg.picture("".join(parts), width=left + _BAR + _MARGIN, height=2 * _MARGIN + _ROW * len(order))
    more = f", {len(labels) - len(order)} more left out" if len(labels) > len(order) else ""
    return Candidates(name, f"longest bar or dot {largest:.2g}{more}", drawn_here)


def clouds(record: Record) -> list[Chart]:
    """Score over accuracy: of a search's cells (`against`), or of scored networks, a chart for each proxy.

    Raises:
        RunError: two lists of different lengths.
    """
    against = record.get("against") or {}
    if not isinstance(against, Mapping):
        _damaged("against", "an object")
    charts = [_cloud("Scores of the cells against the table", against)] if against else []
    networks, proxies = record.get("networks") or [], record.get("proxies") or []
    accuracies = [chart.get("accuracy") for chart in networks]
    for proxy in proxies if any(is_finite(chart) for chart in accuracies) else []:
        name = str(proxy.get("name"))
        scores = [chart.get("scores", {}).get(name) for chart in networks]
        charts.append(_cloud(name, {**proxy, "score": scores, "accuracy": accuracies}))
    return [chart for chart in charts if chart is not None]


def _cloud(heading: str, part: Record) -> Chart | None:
    scores, accuracies = part.get("score"), part.get("accuracy")
    if not isinstance(scores, list) or not isinstance(accuracies, list) or len(scores) != len(accuracies):
        _damaged(heading, "a list of scores and a list of accuracies, of one length")
    pairs = [(x, y) for x, y in zip(scores, accuracies, strict=True) if is_finite(x) and is_finite(y)]
    if not pairs:
        return None
    shown = pairs[:: math.ceil(len(pairs) / _MOST_POINTS)]
    point = part.get("found")
    mark = point if isinstance(point, list) and len(point) == 2 and all(map(is_finite, point)) else None

    def fill(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.plot(*zip(*shown, strict=True), color=LINES[0], linestyle="", marker="o", markersize=2.5, alpha=0.5)
        if mark:
            axes.plot(*mark, color=INK, linestyle="", marker="D", markersize=6)
        dress(axes, x="score")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_ylabel("accuracy by the table, %", color=INK)

    measures = [f"{word} {part[key]:.2f}" for key, word in _MEASURES.items() if is_finite(part.get(key))]
    if is_finite(part.get("regret")):
        measures.append(f"its highest is {part['regret']:.2f} points below the best")
    left_out = f" {len(scores) - len(pairs)} without a finite score are left out." if len(scores) > len(pairs) else ""
    diamond = " The diamond is what was found." if mark else ""
    count = part.get("networks", len(pairs))
    return Chart(heading, f"{', '.join([f'{count} networks', *measures])}.{diamond}{left_out}", drawn(heading, fill))


def _damaged(place: str, allowed: str) -> NoReturn:
    raise RunError(f"the record is damaged at {place}: allowed is {allowed}; run again to write it anew")
