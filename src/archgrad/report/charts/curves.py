"""The curves of a run's history, and what else is drawn of its record on axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from archgrad.errors import RunError
from archgrad.report import numbers
from archgrad.report.charts.axes import BOUND, FAINT, INK, LINES, Chart, Spot, drawn, dress, plotted, scaled
from archgrad.report.charts.steps import Curve, History, Phase, Timeline, curve, is_finite, stretch, timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES = ("phase", "step", "time", "epoch")
# Drawn elsewhere, a picture a choice: see archgrad.report.charts.mixing_weights.
WEIGHT = "weight/"
# Drawn elsewhere, over accuracies: see archgrad.report.charts.proxy_scores.
SCORE = "score/"
# Drawn as a front while a search goes on: see archgrad.report.data.live_status.
TRIED = "tried/"
# Drawn by `jump`.
JUMP = "discretization_"
_BEST = "best_valid"  # the best score so far
_KNOWN = {
    "flips": "Gates flipping per epoch",
    "open_gates": "Open gates",
    "scale": "Scale of the gates",
    "entropy": "Entropy of the choices",
    "distance": "Distance from discrete weights",
    "log10_fisher": "Squared gradient norm of the weights and its threshold, log10",
    "log10_threshold": "Squared gradient norm of the weights and its threshold, log10",
    "temperature": "Temperature",
    "lr": "Learning rate",
}
_EXPECTED_AGAINST_LIMIT = "Expected cost against the limit"
_AGAINST_LIMIT = "Cost against the limit"
_ORDER = ("Loss", "Accuracy", _EXPECTED_AGAINST_LIMIT, _AGAINST_LIMIT, *dict.fromkeys(_KNOWN.values()))
_MOST_POINTS = 400
_MOST_MARKED_PHASES = 12
_MARGIN = 0.02  # of the axis of steps, before its first step and after its last
_MOST_CHARTS = 24


def charts(
    history: History, limit: Mapping[str, Any] | None = None, *, score: numbers.ScoreOfRecord | None = None
) -> list[Chart]:
    """One chart for each kind of figure: loss, accuracy, gates, expected cost against its limit, and others.

    `history` holds records `{"phase", "step", "time", figure: number, ...}`; a figure may be on some only. Where
    lower is better of `score`, its chart says so.
    """
    line = timeline(history)
    groups: dict[str, list[Curve]] = {}
    for name in figure_names(history):
        groups.setdefault(_heading(name, limit, score), []).append(curve(history, line, name))
    ordered = sorted(groups, key=lambda heading: _ORDER.index(heading) if heading in _ORDER else len(_ORDER))
    return [
        _chart(heading, groups[heading][: len(LINES)], line=line, bound=_bound(heading, limit), score=score)
        for heading in ordered[:_MOST_CHARTS]
    ]


def _heading(name: str, limit: Mapping[str, Any] | None, score: numbers.ScoreOfRecord | None) -> str:
    if name == _BEST and score:
        name = score.name
    if name == "loss" or name.endswith("_loss"):
        return "Loss"
    if name == "accuracy" or name.endswith("_accuracy"):
        return "Accuracy"
    if limit and name == f"expected_{limit.get('cost')}":
        return _EXPECTED_AGAINST_LIMIT
    if limit and name in ("cost", limit.get("cost")):
        return _AGAINST_LIMIT
    return named(name)


def named(name: str) -> str:
    """The heading of one figure's picture."""
    words = numbers.label(name)
    return _KNOWN.get(name, f"{words[:1].upper()}{words[1:]}")


def _bound(heading: str, limit: Mapping[str, Any] | None) -> float | None:
    bound = (limit or {}).get("bound")
    against = heading in (_EXPECTED_AGAINST_LIMIT, _AGAINST_LIMIT)
    return float(bound) if against and is_finite(bound) else None


def figure_names(history: History) -> list[str]:
    """The figures of a history that charts are drawn of."""
    names = {
        name: None
        for row in history
        for name in row
        if name not in _AXES and not name.startswith((WEIGHT, SCORE, TRIED, JUMP))
    }
    return [name for name in names if any(is_finite(row.get(name)) for row in history)]


def _chart(
    heading: str,
    curves: list[Curve],
    *,
    line: Timeline,
    bound: float | None,
    score: numbers.ScoreOfRecord | None,
) -> Chart:
    low, high = stretch(line, curves)

    def fill(axes: Axes) -> None:
        for color, one in zip(LINES, curves, strict=False):
            marker = "o" if len(one.x) <= 40 else ""
            name = numbers.label(one.name)
            axes.plot(one.x, one.y, color=color, linewidth=1.5, marker=marker, markersize=3, label=name)
        if bound is not None:
            axes.axhline(bound, color=BOUND, linewidth=1.2, linestyle="--", label="limit")
        scaled(axes, [y for one in curves for y in one.y], name=_unit_name(curves[0].name, score))
        dress(axes, x=line.unit)
        axes.set_xlim(low - _MARGIN * (high - low), high + _MARGIN * (high - low))
        _mark(axes, line.phases)
        if len(curves) + (bound is not None) > 1:
            axes.legend(frameon=False, labelcolor=INK, fontsize=8)

    captions = [means_line(curves)]
    if score and not score.higher_is_better and any(score.measures(one.name) for one in curves):
        captions.append("Lower is better.")
    words = " ".join(in_words(one, score) for one in curves)
    picture, spots = plotted(heading, fill, marks(curves, score))
    lines = [numbers.label(one.name) for one in curves]
    return Chart(heading, " ".join(filter(None, captions)), picture, spots, words, lines)


def means_line(curves: Sequence[Curve]) -> str:
    """What a reader has to know of the points of curves: that they are means, and that some are missing."""
    averaged, lost = max(one.per_point for one in curves), sum(one.left_out for one in curves)
    sentences = [f"Each point is the mean of up to {averaged} records."] if averaged > 1 else []
    if lost:
        sentences.append(
            f"{lost:,} figures that are not finite are left out."
            if lost > 1
            else "1 figure that is not finite is left out."
        )
    return " ".join(sentences)


def _unit_name(name: str, score: numbers.ScoreOfRecord | None) -> str:
    """The figure by whose unit another is written: the best score so far is a score."""
    return score.name if name == _BEST and score else name


def marks(curves: Sequence[Curve], score: numbers.ScoreOfRecord | None = None) -> list[Spot]:
    """The points of curves, with the step and the value of each."""
    return [
        Spot(x, y, place, f"{when}: {numbers.label(line.name)} {numbers.figure(_unit_name(line.name, score), y)}")
        for place, line in enumerate(curves)
        for x, y, when in zip(line.x, line.y, line.at, strict=True)
    ]


def in_words(line: Curve, score: numbers.ScoreOfRecord | None = None) -> str:
    """What a curve does, in a sentence."""
    count = f"{len(line.y)} {'point' if len(line.y) == 1 else 'points'}"
    first, last, low, high = (
        numbers.figure(_unit_name(line.name, score), y) for y in (line.y[0], line.y[-1], min(line.y), max(line.y))
    )
    ends = f"{first} at {line.at[0]}, {last} at {line.at[-1]}"
    return f"{numbers.label(line.name)}, {count}: {ends}; lowest {low}, highest {high}."


def scatter(part: Mapping[str, Any]) -> Chart | None:
    """A surrogate's predictions over what was measured; None without a pair of finite figures.

    `part` is `{"predicted": [...], "measured": [...], "rmse", "rank_correlation", "unit"}`, of which the last
    three may be missing.

    Raises:
        RunError: the two lists are none, or differ in length.
    """
    lists = [part.get("measured", []), part.get("predicted", [])]
    if not all(isinstance(values, list) for values in lists) or len(lists[0]) != len(lists[1]):
        raise RunError(
            "the record is damaged at surrogate: predicted and measured are two lists of numbers of one length; "
            "run again to write it anew"
        )
    pairs = [(x, y) for x, y in zip(*lists, strict=True) if is_finite(x) and is_finite(y)]
    if not pairs:
        return None
    unit = str(part.get("unit") or "")

    def fill(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        ends = [min(min(pair) for pair in pairs), max(max(pair) for pair in pairs)]
        axes.plot(ends, ends, color=FAINT, linewidth=1.2, linestyle="--")
        axes.plot(*zip(*pairs, strict=True), color=LINES[0], linestyle="", marker="o", markersize=3.5, alpha=0.8)
        dress(axes, x=f"measured, {unit}" if unit else "measured")
        axes.set_ylabel(f"predicted, {unit}" if unit else "predicted", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(6))

    known = {"rmse": f" {unit}".rstrip(), "rank_correlation": ""}
    measures = [
        f"{name.replace('_', ' ')} {part[name]:.3g}{end}" for name, end in known.items() if is_finite(part.get(name))
    ]
    count = f"{len(pairs)} {'network' if len(pairs) == 1 else 'networks'}"
    caption = f"{', '.join([count, *measures])}. On the dashed line the surrogate is right."
    marks = [Spot(x, y, 0, f"measured {x:.4g}, predicted {y:.4g} {unit}".strip()) for x, y in pairs[:_MOST_POINTS]]
    return Chart("Surrogate against measurement", caption, *plotted("surrogate", fill, marks))


def jump(record: Mapping[str, Any]) -> Chart | None:
    """What the supernet scored, the network found with its weights, and that network trained, as bars.

    From a record's `discretization`, {"score", "supernet", "derived"}, and `after`; None where the first is missing.
    """
    part = record.get("discretization") or {}
    name = str(part.get("score", "score"))
    stages = (
        ("the supernet", part.get("supernet")),
        ("the network found,\nwith its weights", part.get("derived")),
        ("the network found,\ntrained", (record.get("after") or {}).get(name)),
    )
    bars = [(label, value) for label, value in stages if is_finite(value)]
    if not all(is_finite(part.get(key)) for key in ("supernet", "derived")):
        return None

    def fill(axes: Axes) -> None:
        places = range(len(bars), 0, -1)
        axes.barh(places, [value for _, value in bars], color=LINES[: len(bars)], height=0.6)
        for place, (_, value) in zip(places, bars, strict=True):
            axes.annotate(f" {value:.3g}", (value, place), va="center", fontsize=8, color=INK)
        score = numbers.final_score(record)
        dress(axes, x=score.label if name == score.name else numbers.label(name))
        axes.set_yticks(list(places), [label for label, _ in bars])
        axes.grid(visible=False)
        axes.margins(x=0.12)

    caption = "The first two on validation data, before any training of the network found; the last on test data."
    return Chart("From the supernet to the network", caption, drawn("jump", fill))


def _mark(axes: Axes, phases: Sequence[Phase]) -> None:
    if len(phases) > _MOST_MARKED_PHASES:
        return
    low, high = axes.get_xlim()
    for name, start, end in phases:
        if low < start < high and start > 0:
            axes.axvline(start, color=FAINT, linewidth=0.8, linestyle=":")
        # A name wider than its stage would run into the next.
        start, end = max(start, low), min(end, high)
        if name and (end - start) / (high - low) > 0.015 * len(name):
            axes.annotate(
                name,
                ((start + end) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=INK,
            )
