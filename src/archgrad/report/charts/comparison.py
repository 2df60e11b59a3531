"""Pictures of several runs in one: curves of one figure, fronts of one cost, and what each run handed back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from archgrad.report import text
from archgrad.report.charts import pareto as fronted
from archgrad.report.charts.curves import (
    INK,
    SERIES,
    Chart,
    Curve,
    History,
    Spot,
    curve,
    dress,
    figure_names,
    in_words,
    is_finite,
    marks,
    named,
    plotted,
    positions,
    scaled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A name, a record and a history.
Given = tuple[str, Mapping[str, Any], History]
_MOST_CURVES = 12
_DASHES = ("-", (0, (6, 3)), (0, (2, 2)))
_SCORES = ("accuracy", "score")
_COSTS = ("macs", "params")
# What comes first in a report of one run comes first here.
_FIRST = ("loss", "valid_loss", "accuracy", "valid_accuracy", "cost", "entropy")


def curves(runs: Sequence[Given]) -> list[Chart]:
    """A chart for each figure that two runs or more logged, a line a run; steps of phases laid end to end."""
    named = [figure_names(history) for _, _, history in runs]
    places = [positions(history) for _, _, history in runs]
    every = dict.fromkeys(name for one in named for name in one)
    names = [name for name in every if sum(name in one for one in named) > 1]
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    found = []
    for name in names[:_MOST_CURVES]:
        lines = {
            place: curve(history, places[place], name)
            for place, (_, _, history) in enumerate(runs)
            if name in named[place]
        }
        if any(len(one.x) > 1 for one in lines.values()):
            found.append(_curves(name, lines, [run for run, _, _ in runs]))
    return found


def _curves(name: str, lines: Mapping[int, Curve], runs: Sequence[str]) -> Chart:
    def fill(axes: Axes) -> None:
        for place, one in lines.items():
            marker = "o" if len(one.x) <= 40 else ""
            axes.plot(one.x, one.y, **_line(place), linewidth=1.5, marker=marker, markersize=3)
        scaled(axes, [y for one in lines.values() for y in one.y])
        dress(axes)

    spots = [
        spot._replace(line=place, text=f"{runs[place]}: {spot.text}")
        for place, one in lines.items()
        for spot in marks([one])
    ]
    told = " ".join(f"{runs[place]}: {in_words(one)}" for place, one in lines.items())
    return Chart(named(name), "", *plotted(f"beside {name}", fill, spots), told)


def fronts(runs: Sequence[Given]) -> list[Chart]:
    """A picture for each cost: the front of every run that has one, and what it handed back."""
    held: dict[tuple[str, str], dict[int, fronted.Front]] = {}
    for place, (_, record, _) in enumerate(runs):
        for one in fronted.fronts(record):
            if one.front:
                held.setdefault((one.cost, one.unit), {})[place] = one
    return [_fronts(cost, unit, some, [run for run, _, _ in runs]) for (cost, unit), some in held.items()]


def _fronts(cost: str, unit: str, some: Mapping[int, fronted.Front], runs: Sequence[str]) -> Chart:
    def fill(axes: Axes) -> None:
        for place, one in some.items():
            axes.step(
                *zip(*one.front, strict=True), where="post", **_line(place), linewidth=1.5, marker="o", markersize=3.5
            )
            if one.found:
                axes.plot(*one.found, color=SERIES[place % len(SERIES)], linestyle="", marker="D", markersize=7)
        _axes(axes, cost, unit, [x for one in some.values() for x, _ in one.front])

    spots = []
    for place, one in some.items():
        shown = one._replace(cloud=[])
        spots += [spot._replace(line=place, text=f"{runs[place]}: {spot.text}") for spot in fronted.marks(shown)]
    told = " ".join(f"{runs[place]}: {fronted.in_words(one)}" for place, one in some.items())
    name = text.label(cost)
    return Chart(
        f"Fronts: score against {name}", "Diamonds were handed back.", *plotted(f"fronts {cost}", fill, spots), told
    )


def points(runs: Sequence[Given]) -> list[Chart]:
    """What each run handed back: its score against each cost that two or more runs have."""
    found = []
    for score in _SCORES:
        for cost in _COSTS:
            held: dict[int, tuple[float, float]] = {}
            for place, (_, record, _) in enumerate(runs):
                x, y = ((record.get("after") or {}).get(key) for key in (cost, score))
                if is_finite(x) and is_finite(y):
                    held[place] = (x, y)
            if len(held) > 1:
                found.append(_points(score, cost, held, [run for run, _, _ in runs]))
    return found


def _points(score: str, cost: str, held: Mapping[int, tuple[float, float]], runs: Sequence[str]) -> Chart:
    def fill(axes: Axes) -> None:
        for place, point in held.items():
            axes.plot(*point, color=SERIES[place % len(SERIES)], linestyle="", marker="D", markersize=7)
        _axes(axes, cost, "", [x for x, _ in held.values()])
        axes.set_ylabel(score, color=INK)
        axes.margins(0.1)

    told = {}
    for place, (x, y) in held.items():
        told[place] = f"{runs[place]}: {score} {text.figure(score, y)}, {text.label(cost)} {text.figure(cost, x)}"
    spots = [Spot(*held[place], place, words) for place, words in told.items()]
    heading = f"{score.capitalize()} against {text.label(cost)}"
    return Chart(
        heading, "What each run handed back.", *plotted(heading, fill, spots), f"{'; '.join(told.values())}."
    )


def _axes(axes: Axes, cost: str, unit: str, costs: Sequence[float]) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    name = text.label(cost)
    dress(axes, x=f"{name}, {unit}" if unit and unit != name else name)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if max(costs) >= 1e4:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel("score", color=INK)


def _line(place: int) -> dict[str, Any]:
    return {"color": SERIES[place % len(SERIES)], "linestyle": _DASHES[place // len(SERIES) % len(_DASHES)]}
