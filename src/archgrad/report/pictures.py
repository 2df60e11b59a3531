"""The curves of a run's history, as inline SVG that takes its colours from the page around it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from matplotlib.axes import Axes

History = Sequence[Mapping[str, Any]]

_INK, _FAINT, _LIMIT = "#010101", "#020202", "#030303"
_LINES = ("#040404", "#050505", "#060606", "#070707")
# matplotlib writes fixed colours; each stands for a variable of the page's style sheet.
_VARIABLES = {
    _INK: "--ink",
    _FAINT: "--faint",
    _LIMIT: "--limit",
    **{colour: f"--line{place}" for place, colour in enumerate(_LINES, start=1)},
}
_AXES = ("phase", "step", "time", "epoch")
_KNOWN = {"flips": "Gates flipping per epoch", "open_gates": "Open gates", "scale": "Scale of the gates"}
_AGAINST_LIMIT = "Expected cost against the limit"
_ORDER = ("Loss", "Accuracy", _AGAINST_LIMIT, *_KNOWN.values())
_MOST_POINTS = 400
_MOST_MARKED_PHASES = 12
_MOST_CHARTS = 24


@dataclass(frozen=True)
class Chart:
    """One picture: a heading, a sentence on how to read it, and the SVG."""

    heading: str
    caption: str
    svg: str


@dataclass(frozen=True)
class _Curve:
    name: str
    x: list[float]
    y: list[float]
    per_point: int


def charts(history: History, limit: Mapping[str, Any] | None = None) -> list[Chart]:
    """One chart for each kind of figure: loss, accuracy, gates, expected cost against its limit, and others.

    `history` holds records `{"phase", "step", "time", figure: number, ...}`; a figure may be on some only.
    """
    positions = _positions(history)
    groups: dict[str, list[_Curve]] = {}
    for name in _figure_names(history):
        groups.setdefault(_heading(name, limit), []).append(_curve(history, positions, name))
    ordered = sorted(groups, key=lambda heading: _ORDER.index(heading) if heading in _ORDER else len(_ORDER))
    spans = _phase_spans(history, positions)
    return [
        _chart(heading, groups[heading][: len(_LINES)], spans=spans, bound=_bound(heading, limit))
        for heading in ordered[:_MOST_CHARTS]
    ]


def _heading(name: str, limit: Mapping[str, Any] | None) -> str:
    if name == "loss" or name.endswith("_loss"):
        return "Loss"
    if name == "accuracy" or name.endswith("_accuracy"):
        return "Accuracy"
    if limit and name == f"expected_{limit.get('cost')}":
        return _AGAINST_LIMIT
    return _KNOWN.get(name, name.replace("_", " ").capitalize())


def _bound(heading: str, limit: Mapping[str, Any] | None) -> float | None:
    bound = (limit or {}).get("bound")
    return float(bound) if heading == _AGAINST_LIMIT and _is_finite(bound) else None


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _figure_names(history: History) -> list[str]:
    names = {name: None for one in history for name in one if name not in _AXES}
    return [name for name in names if any(_is_finite(one.get(name)) for one in history)]


def _positions(history: History) -> list[float]:
    # A step that falls back starts a stage that counts anew; the stages are laid end to end.
    positions: list[float] = []
    offset, last = 0.0, 0.0
    for place, one in enumerate(history):
        step = float(one["step"]) if _is_finite(one.get("step")) else float(place)
        if step < last:
            offset += last
        last = step
        positions.append(offset + step)
    return positions


def _phase_spans(history: History, positions: list[float]) -> list[tuple[str, float, float]]:
    spans: list[tuple[str, float, float]] = []
    for one, x in zip(history, positions, strict=True):
        name = str(one.get("phase", ""))
        if spans and spans[-1][0] == name:
            spans[-1] = (name, spans[-1][1], x)
        else:
            spans.append((name, x, x))
    return spans if len(spans) <= _MOST_MARKED_PHASES else []


def _curve(history: History, positions: list[float], name: str) -> _Curve:
    points = [(x, float(one[name])) for x, one in zip(positions, history, strict=True) if _is_finite(one.get(name))]
    per_point = math.ceil(len(points) / _MOST_POINTS)
    chunks = [points[start : start + per_point] for start in range(0, len(points), per_point)]
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in chunks]
    return _Curve(name, [x for x, _ in means], [y for _, y in means], per_point)


def _chart(
    heading: str, curves: list[_Curve], *, spans: list[tuple[str, float, float]], bound: float | None
) -> Chart:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Text stays text, dollars stay dollars, and the same history gives the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": heading, "text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(5.0, 2.5), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        for colour, curve in zip(_LINES, curves, strict=False):
            marker = "o" if len(curve.x) <= 40 else ""
            axes.plot(
                curve.x,
                curve.y,
                color=colour,
                linewidth=1.5,
                marker=marker,
                markersize=3,
                label=curve.name.replace("_", " "),
            )
        if bound is not None:
            axes.axhline(bound, color=_LIMIT, linewidth=1.2, linestyle="--", label="limit")
        _dress(axes, curves, spans)
        if len(curves) + (bound is not None) > 1:
            axes.legend(frameon=False, labelcolor=_INK, fontsize=8)
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    averaged = max(curve.per_point for curve in curves)
    caption = f"Each point is the mean of {averaged} records." if averaged > 1 else ""
    return Chart(heading, caption, _inline(out.getvalue()))


def _dress(axes: Axes, curves: list[_Curve], spans: list[tuple[str, float, float]]) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figures = [y for curve in curves for y in curve.y]
    if min(figures) > 0 and max(figures) > 100 * min(figures):
        axes.set_yscale("log")
        # The usual labels are powers written as mathematics, which is switched off here.
        axes.yaxis.set_major_formatter(EngFormatter(sep="") if min(figures) >= 1 else "{x:g}")
        axes.yaxis.set_minor_formatter("")
    elif max(abs(y) for y in figures) >= 1e4:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("step", color=_INK)
    axes.tick_params(colors=_INK, color=_FAINT, which="both", labelsize=8)
    axes.grid(axis="y", color=_FAINT, linewidth=0.5, alpha=0.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)
    low, high = axes.get_xlim()
    for place, (name, start, end) in enumerate(spans):
        if place and low < start < high:
            axes.axvline(start, color=_FAINT, linewidth=0.8, linestyle=":")
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
                color=_INK,
            )


def _inline(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", svg, count=1)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*; ", "", svg).replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
