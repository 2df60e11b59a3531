"""The fronts of a search for several goals: score against each cost, what was tried and beaten, what was not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from archgrad.errors import RunError
from archgrad.report import numbers
from archgrad.report.charts.axes import BOUND, INK, LINES, Chart, Spot, dress, plotted, scaled
from archgrad.report.charts.steps import is_finite
from archgrad.report.charts.svg import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 12  # points of a front in a table
_NAMED = 6  # points that have their names beside them
_RANDOM = "random search"
_MOST_SPOTS, _MOST_SIGNS = 400, 400


class Front(NamedTuple):
    """One cost: all trials as (cost, score), the fronts by rising cost, what was handed back, what was tried, and the
    score's name and direction."""

    cost: str
    unit: str
    cloud: list[tuple[float, float]]
    front: list[tuple[float, float]]
    found: tuple[float, float] | None
    random: list[tuple[float, float]]
    random_label: str
    tried: Mapping[tuple[float, float], str]
    score: numbers.ScoreOfRecord


def fronts(record: Mapping[str, Any]) -> list[Front]:
    """What the record's "fronts" hold; see `archgrad.trials.evaluation.Archive.record`.

    Raises:
        RunError: a part is of another kind than it should be.
    """
    names, score = _names(record), numbers.score(record)
    return [_front(part, names, score) for part in record.get("fronts") or []]


def charts(record: Mapping[str, Any]) -> list[Chart]:
    """A picture for each cost: the cloud, the front as a line of steps, and what was handed back, if one was."""
    return [_chart(front) for front in fronts(record) if front.cloud and front.front]


def trade_off(record: Mapping[str, Any]) -> Chart | None:
    """Score against cost: the network before, the controls and what this run found; None below two points.

    The cost is the limit's where the networks have it, else MACs, parameters, or size on disk.
    """
    score, limit = numbers.final_score(record), record.get("limit") or {}
    bounded = str(limit.get("cost"))
    rows = [("before", record.get("before")), *((row.get("name"), row) for row in record.get("baselines") or [])]
    rows.append(("this run", record.get("after")))
    for cost in dict.fromkeys((bounded, "macs", "params", "size_bytes")):
        points = [
            (str(name), float(row[cost]), float(value))
            for name, row in rows
            if row and is_finite(value := _mean(row.get(score.name))) and is_finite(row.get(cost))
        ]
        if len({(x, y) for _, x, y in points}) > 1:
            bound = limit.get("bound") if cost == bounded else None
            return _trade_off(points, cost, score, bound=bound if is_finite(bound) else None)
    return None


def _mean(value: object) -> object:
    """A figure, or the mean of a mean and a deviation."""
    return value[0] if isinstance(value, list) and numbers.is_figure(value) else value


def _trade_off(
    points: list[tuple[str, float, float]], cost: str, score: numbers.ScoreOfRecord, *, bound: float | None
) -> Chart:
    low, high = min(x for _, x, _ in points), max(x for _, x, _ in points)
    names: dict[tuple[float, float], list[str]] = {}
    for name, x, y in points:
        names.setdefault((x, y), []).append(name)

    def fill(axes: Axes) -> None:
        for name, x, y in points:
            color = LINES[0] if name == "this run" else INK if name == "before" else LINES[1]
            axes.plot(x, y, color=color, linestyle="", marker="D" if name == "this run" else "o", markersize=6)
        for (x, y), together in names.items() if len(names) <= _NAMED else ():
            left = x > (low + high) / 2 or (bound is not None and x < bound < x + 0.2 * (high - low))
            axes.annotate(
                shortened(" and ".join(together), 36), (x, y), xytext=(6 if left else -6, 8), fontsize=8, color=INK,
                textcoords="offset points", ha="right" if left else "left",
            )  # fmt: skip
        if bound is not None:
            axes.axvline(bound, color=BOUND, linewidth=1.2, linestyle="--", label="limit")
            axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        scaled(axes, [y for _, _, y in points], name=score.name)
        dress(axes, x=numbers.label(cost))
        costs(axes, cost, [low, high])
        axes.margins(0.12, 0.25)
        axes.set_ylabel(score.label, color=INK)

    told = [
        Spot(x, y, 0, f"{name}: {numbers.label(score.name)} {numbers.figure(score.name, y)}, "
             f"{numbers.label(cost)} {numbers.figure(cost, x)}")
        for name, x, y in points
    ]  # fmt: skip
    name = numbers.label(score.name)
    heading = f"{name[:1].upper()}{name[1:]} against {numbers.label(cost)}"
    caption = "The diamond is what this run found." + (" The dashed line is the limit." if bound is not None else "")
    words = "; ".join(spot.text for spot in told)
    return Chart(heading, caption, *plotted(f"trade-off {cost}", fill, told), f"{words}.")


def costs(axes: Axes, cost: str, figures: Sequence[float]) -> None:
    """Ticks of an axis of costs: few, and in their unit or with prefixes."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    if (write := numbers.tick_writer(cost)) is not None:
        axes.xaxis.set_major_formatter(lambda value, _: write(value))
    elif max(figures) >= 1e4:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def rows(front: Front) -> list[tuple[float, float, str]]:
    """Points of the front as (cost, score, mark), at most a dozen spread over it; the mark says which was found."""
    count = len(front.front)
    places = sorted({round(i * (count - 1) / max(min(count, MOST) - 1, 1)) for i in range(min(count, MOST))})
    places = sorted({*places, *(i for i, point in enumerate(front.front) if point == front.found)})
    return [(*front.front[i], "found" if front.front[i] == front.found else "") for i in places]


def _names(record: Mapping[str, Any]) -> list[str]:
    """What each trial was, pick by pick, by label where the record has "labels"."""
    labels = record.get("labels") or {}
    names, trials = [], record.get("trials")
    for trial in trials if isinstance(trials, list) else []:
        picks = trial.get("architecture") if isinstance(trial, Mapping) else None
        words = [f"{choice} {_label(labels, choice, pick)}" for choice, pick in _items(picks)]
        names.append(", ".join(words)[:_MOST_SIGNS])
    return names


def _items(picks: object) -> list[tuple[str, Any]]:
    return [(str(choice), pick) for choice, pick in picks.items()] if isinstance(picks, Mapping) else []


def _label(labels: Any, choice: str, pick: Any) -> str:
    known = labels.get(choice) if isinstance(labels, Mapping) else None
    if isinstance(pick, int) and isinstance(known, list) and 0 <= pick < len(known):
        return str(known[pick])
    return str(pick)


def _front(part: Any, names: list[str], score: numbers.ScoreOfRecord) -> Front:
    try:
        cloud, front = _points(part)
        random = _points(part["random"])[1] if part.get("random") else []
        random_label = str((part.get("random") or {}).get("label") or _RANDOM)
        found = None if part.get("found") is None else cloud[part["found"]]
        name, unit = str(part["cost"]), str(part.get("unit") or "")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise RunError(
            "the record is damaged at fronts: each has a cost, costs and scores of one length, and the places of the "
            "front among them; run again to write it anew"
        ) from error
    # Places are those of trials; a list of another length is not of these points.
    tried = dict(zip(cloud, names, strict=True)) if len(names) == len(cloud) else {}
    cloud = [point for point in cloud if is_finite(point[0]) and is_finite(point[1])]
    return Front(name, unit, cloud, front, found, random, random_label, tried, score)


def _points(part: Any) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """All points, and those of the front."""
    cloud = [(float(x), float(y)) for x, y in zip(part["costs"], part["scores"], strict=True)]
    return cloud, sorted({cloud[i] for i in part["front"]})


def _chart(front: Front) -> Chart:
    name = front.cost.replace("_", " ")

    def fill(axes: Axes) -> None:
        from matplotlib.ticker import EngFormatter, MaxNLocator

        axes.plot(
            *zip(*front.cloud, strict=True), color=LINES[0], linestyle="", marker="o", markersize=2.5, alpha=0.35
        )
        if front.random:
            xs, ys = zip(*front.random, strict=True)
            axes.step(xs, ys, where="post", color=LINES[1], linewidth=1.2, linestyle="--", label=front.random_label)
            axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="best")
        xs, ys = zip(*front.front, strict=True)
        axes.step(xs, ys, where="post", color=LINES[0], linewidth=1.5, marker="o", markersize=4)
        if front.found:
            axes.plot(*front.found, color=INK, linestyle="", marker="D", markersize=6)
        dress(axes, x=f"{name}, {front.unit}" if front.unit else name)
        if max(x for x, _ in front.cloud) >= 1e4:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_ylabel(front.score.label, color=INK)

    caption = f"{len(front.cloud)} networks tried, {len(front.front)} of them beaten by none in both" + (
        "; the diamond is the one handed back, which may be off the front where other goals counted."
        if front.found
        else "."
    )
    if front.random and front.random_label == _RANDOM:
        caption += " Dashed: the front of as many drawn at random."
    elif front.random:
        caption += f" Dashed: {front.random_label}."
    return Chart(
        f"Score against {name}", caption, *plotted(f"front {front.cost}", fill, marks(front)), in_words(front)
    )


def marks(front: Front, *, line: int = 0) -> list[Spot]:
    """The points of a front, what was handed back, and some of the others, with score, cost and picks."""
    on_front, rest = set(front.front), [point for point in front.cloud if point not in {*front.front, front.found}]
    chosen = [front.found] if front.found and front.found not in on_front else []
    shown = [*front.front, *chosen, *rest[:: math.ceil(len(rest) / _MOST_SPOTS) or 1]]
    return [Spot(*point, line if point in on_front else line + 1, _told(front, point)) for point in shown]


def _told(front: Front, point: tuple[float, float]) -> str:
    cost = f"{front.cost.replace('_', ' ')} {numbers.amount(point[0])}"
    unit = front.unit if front.unit.lower() != front.cost.lower() else ""
    words = f"{numbers.label(front.score.name)} {point[1]:.5g}, {cost} {unit}".strip()
    kind = "handed back: " if point == front.found else "on the front: " if point in front.front else ""
    return f"{kind}{words}; {front.tried[point]}" if front.tried.get(point) else f"{kind}{words}"


def in_words(front: Front) -> str:
    """The ends of a front, in a sentence."""
    (low, first), (high, last) = front.front[0], front.front[-1]
    name = front.cost.replace("_", " ")
    ends = f"{first:.4g} at {name} {numbers.amount(low)} to {last:.4g} at {name} {numbers.amount(high)}"
    return f"A front of {len(front.front)}: from {front.score.label} {ends}."
