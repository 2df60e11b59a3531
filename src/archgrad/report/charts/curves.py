"""The curves of a run's history, as inline SVG that takes its colors from the page around it."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from archgrad.errors import RunError
from archgrad.report import numbers
from archgrad.report.charts.steps import Curve, History, Phase, Timeline, curve, is_finite, stretch, timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What axes are drawn in, by whoever fills them.
INK, FAINT, BOUND = "#010101", "#020202", "#030303"
LINES = ("#040404", "#050505", "#060606", "#070707")
# Where runs are held side by side.
SERIES = (*LINES, "#080808", "#090909", "#0a0a0a", "#0b0b0b")
# matplotlib writes fixed colors; each stands for a variable of the page's style sheet.
_VARIABLES = {
    INK: "--ink",
    FAINT: "--faint",
    BOUND: "--bound",
    **{color: f"--line{place}" for place, color in enumerate(SERIES, start=1)},
}
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


class Spot(NamedTuple):
    """A point that tells of itself: where it is in the picture, which line it is on, and what it is in words."""

    x: float
    y: float
    line: int
    text: str


@dataclass(frozen=True)
class Chart:
    """A picture: a heading, how to read it, the SVG, its points, what it shows in words, and its lines."""

    heading: str
    caption: str
    svg: str
    spots: Sequence[Spot] = ()
    words: str = ""
    lines: Sequence[str] = ()


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


def drawn(heading: str, fill: Callable[[Axes], None]) -> str:
    """What `fill` draws on empty axes, as SVG for the page."""
    return plotted(heading, fill, [])[0]


def plotted(heading: str, fill: Callable[[Axes], None], marks: Sequence[Spot]) -> tuple[str, list[Spot]]:
    """What `fill` draws on empty axes, and `marks`, given in the axes' figures, where they are in the picture."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Text stays text, dollars stay dollars, and the same history gives the same bytes.
    style: dict[Any, Any] = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 9}
    style["svg.hashsalt"] = heading
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has its own letters
        figure = Figure(figsize=(5.0, 2.5), dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        fill(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        spots = _placed(axes, marks, height=figure.bbox.height) if marks else []
    return _inline(out.getvalue()), spots


def _placed(axes: Axes, marks: Sequence[Spot], *, height: float) -> list[Spot]:
    placed = axes.transData.transform([(mark.x, mark.y) for mark in marks])
    inside = [(mark, x, height - y) for mark, (x, y) in zip(marks, placed, strict=True) if is_finite(float(x + y))]
    return [mark._replace(x=round(float(x), 1), y=round(float(y), 1)) for mark, x, y in inside]


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


def scaled(axes: Axes, figures: Sequence[float], *, name: str = "") -> None:
    """Give axes a scale for these figures: logarithmic where they are far apart, with prefixes where large.

    Ticks are written in the unit of the figure of that name.
    """
    from matplotlib.ticker import EngFormatter

    if min(figures) > 0 and max(figures) > 100 * min(figures):
        axes.set_yscale("log")
        # The usual labels are powers written as mathematics, which is switched off here.
        axes.yaxis.set_major_formatter(EngFormatter(sep="") if min(figures) >= 1 else "{x:g}")
        axes.yaxis.set_minor_formatter("")
    elif max(abs(y) for y in figures) >= 1e4:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    if (write := numbers.tick_writer(name)) is not None:
        axes.yaxis.set_major_formatter(lambda value, _: write(value))


def dress(axes: Axes, *, x: str = "step") -> None:
    """Give axes the look of the page; ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel(x, color=INK)
    axes.tick_params(colors=INK, color=FAINT, which="both", labelsize=8)
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


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


def _inline(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    # Its names of parts would be there once for each picture; what is referred to is named by a hash.
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    svg = re.sub(r"font-family: [^;]*; ", "", svg).replace("xlink:href", "href")
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg
