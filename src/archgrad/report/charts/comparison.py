"""Pictures of several runs in one: curves of one figure, fronts of one cost, and what each run handed back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from archgrad.report import numbers
from archgrad.report.charts import pareto
from archgrad.report.charts.axes import INK, SERIES, Chart, Spot, dress, plotted, scaled
from archgrad.report.charts.curves import figure_names, in_words, marks, named
from archgrad.report.charts.steps import Curve, History, curve, is_finite, timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A name, a record and a history.
Given = tuple[str, Mapping[str, Any], History]
_MOST_CURVES = 12
_DASHES = ("-", (0, (6, 3)), (0, (2, 2)))
_COSTS = ("macs", "params")
# What comes first in a report of one run comes first here.
_FIRST = ("loss", "valid_loss", "accuracy", "valid_accuracy", "cost", "entropy")


def curves(runs: Sequence[Given]) -> list[Chart]:
    """A chart for each figure that two runs or more logged, a line a run; steps of phases laid end to end."""
    names_by_run = [figure_names(history) for _, _, history in runs]
    places = [timeline(history) for _, _, history in runs]
    every = dict.fromkeys(name for figures in names_by_run for name in figures)
    names = [name for name in every if sum(name in figures for figures in names_by_run) > 1]
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    charts = []
    for name in names[:_MOST_CURVES]:
        lines = {
            place: curve(history, places[place], name)
            for place, (_, _, history) in enumerate(runs)
            if name in names_by_run[place]
        }
        if any(len(figures.x) > 1 for figures in lines.values()):
            charts.append(_curves(name, lines, [run for run, _, _ in runs]))
    return charts


def _curves(name: str, lines: Mapping[int, Curve], runs: Sequence[str]) -> Chart:
    def fill(axes: Axes) -> None:
        for place, line in lines.items():
            marker = "o" if len(line.x) <= 40 else ""
            axes.plot(line.x, line.y, **_line(place), linewidth=1.5, marker=marker, markersize=3)
        scaled(axes, [y for line in lines.values() for y in line.y])
        dress(axes)

    spots = [
        spot._replace(line=place, text=f"{runs[place]}: {spot.text}")
        for place, line in lines.items()
        for spot in marks([line])
    ]
    words = " ".join(f"{runs[place]}: {in_words(line)}" for place, line in lines.items())
    return Chart(named(name), "", *plotted(f"beside {name}", fill, spots), words)


def fronts(runs: Sequence[Given]) -> list[Chart]:
    """A picture for each cost: the front of every run that has one, and what it handed back."""
    by_cost: dict[tuple[str, str], dict[int, pareto.Front]] = {}
    for place, (_, record, _) in enumerate(runs):
        for front in pareto.fronts(record):
            if front.front:
                by_cost.setdefault((front.cost, front.unit), {})[place] = front
    return [_fronts(cost, unit, some, [run for run, _, _ in runs]) for (cost, unit), some in by_cost.items()]


def _fronts(cost: str, unit: str, some: Mapping[int, pareto.Front], runs: Sequence[str]) -> Chart:
    # Scores of several names or directions on one axis have none.
    labels = {front.score.label for front in some.values()}
    score = labels.pop() if len(labels) == 1 else "score"

    def fill(axes: Axes) -> None:
        for place, front in some.items():
            axes.step(
                *zip(*front.front, strict=True),
                where="post",
                **_line(place),
                linewidth=1.5,
                marker="o",
                markersize=3.5,
            )
            if front.found:
                axes.plot(*front.found, color=SERIES[place % len(SERIES)], linestyle="", marker="D", markersize=7)
        _axes(axes, cost, unit, [x for front in some.values() for x, _ in front.front], score=score)

    spots = []
    for place, front in some.items():
        shown = front._replace(cloud=[])
        spots += [spot._replace(line=place, text=f"{runs[place]}: {spot.text}") for spot in pareto.marks(shown)]
    words = " ".join(f"{runs[place]}: {pareto.in_words(front)}" for place, front in some.items())
    name = numbers.label(cost)
    return Chart(
        f"Fronts: score against {name}", "Diamonds were handed back.", *plotted(f"fronts {cost}", fill, spots), words
    )


def points(runs: Sequence[Given]) -> list[Chart]:
    """What each run handed back: its score against each cost that two or more runs have."""
    charts = []
    scores = [numbers.final_score(record) for _, record, _ in runs]
    for score in dict.fromkeys(scores):
        for cost in _COSTS:
            points_by_run: dict[int, tuple[float, float]] = {}
            for place, (_, record, _) in enumerate(runs):
                x, y = ((record.get("after") or {}).get(key) for key in (cost, score.name))
                if scores[place] == score and is_finite(x) and is_finite(y):
                    points_by_run[place] = (x, y)
            if len(points_by_run) > 1:
                charts.append(_points(score, cost, points_by_run, [run for run, _, _ in runs]))
    return charts


def _points(
    score: numbers.ScoreOfRecord, cost: str, points_by_run: Mapping[int, tuple[float, float]], runs: Sequence[str]
) -> Chart:
    def fill(axes: Axes) -> None:
        for place, point in points_by_run.items():
            axes.plot(*point, color=SERIES[place % len(SERIES)], linestyle="", marker="D", markersize=7)
        _axes(axes, cost, "", [x for x, _ in points_by_run.values()], score=score.label)
        axes.margins(0.1)

    name, axis = numbers.label(score.name), numbers.label(cost)
    descriptions = {
        place: f"{runs[place]}: {name} {numbers.figure(score.name, y)}, {axis} {numbers.figure(cost, x)}"
        for place, (x, y) in points_by_run.items()
    }
    spots = [Spot(*points_by_run[place], place, words) for place, words in descriptions.items()]
    heading = f"{name[:1].upper()}{name[1:]} against {axis}"
    caption = f"What each run handed back.{'' if score.higher_is_better else ' Lower is better.'}"
    return Chart(heading, caption, *plotted(heading, fill, spots), f"{'; '.join(descriptions.values())}.")


def _axes(axes: Axes, cost: str, unit: str, costs: Sequence[float], *, score: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    name = numbers.label(cost)
    dress(axes, x=f"{name}, {unit}" if unit and unit != name else name)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if max(costs) >= 1e4:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel(score, color=INK)


def _line(place: int) -> dict[str, Any]:
    return {"color": SERIES[place % len(SERIES)], "linestyle": _DASHES[place // len(SERIES) % len(_DASHES)]}
