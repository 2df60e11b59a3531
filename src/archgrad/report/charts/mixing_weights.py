"""The mixing weights of each choice over a search, as small pictures side by side under one legend."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archgrad.report.charts import svg
from archgrad.report.charts.axes import INK, SERIES, Chart, Spot, dress, undrawn
from archgrad.report.charts.curves import WEIGHT
from archgrad.report.charts.steps import Curve, History, curve, timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 270.0, 130.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 30.0, 8.0, 8.0, 20.0
_MOST_CHOICES, _MOST_LABELS, _MOST_DRAWN = 80, 24, 24
_MOST_SPOTS, _TOLD = 60, 4
# What is beyond is no weight, and is drawn at the edge.
_LARGEST = 1e6
_DASHES = ("", ' stroke-dasharray="6 3"', ' stroke-dasharray="2 2"')


@dataclass(frozen=True)
class Small:
    """The weights of one choice: its name, what leads at the end, the SVG, and its points."""

    choice: str
    leader: str
    svg: str
    spots: Sequence[Spot] = ()


@dataclass(frozen=True)
class Weights:
    """All choices, the candidates with the samples of their lines, and how many choices are not drawn."""

    charts: list[Small]
    legend: list[tuple[str, str]]
    left_out: int


def weights(history: History) -> Weights:
    """A picture a choice from records that hold "weight/<choice>/<candidate>"; all on one scale.

    A candidate has one line style in all pictures; a name may hold slashes, a candidate's may not.
    """
    choices = _choices(history)
    shown = dict(list(choices.items())[:_MOST_CHOICES])
    labels = list(dict.fromkeys(label for lines in shown.values() for label in lines))
    lines = [line for of_one in shown.values() for line in of_one.values()]
    frame = _Frame.around(lines)
    charts = [_small(choice, of_one, labels, frame) for choice, of_one in shown.items()]
    legend = [(label, sample(place)) for place, label in enumerate(labels)] if len(labels) <= _MOST_LABELS else []
    return Weights(charts, legend, len(choices) - len(shown))


def charts(history: History) -> list[Chart]:
    """The same weights on axes of matplotlib, a picture a choice."""
    line = timeline(history)

    def fill(axes: Axes, curves: Mapping[str, Curve]) -> None:
        for place, (label, one) in enumerate(curves.items()):
            axes.plot(one.x, one.y, color=SERIES[place % len(SERIES)], linewidth=1.5, label=label)
        dress(axes, x=line.unit)
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)

    shown = list(_choices(history).items())[:_MOST_CHOICES]
    return [Chart(f"Weights of {name}", "", undrawn(functools.partial(fill, curves=one))) for name, one in shown]


def _choices(history: History) -> dict[str, dict[str, Curve]]:
    """The curves of each choice's candidates."""
    at = timeline(history)
    names = dict.fromkeys(name for one in history for name in one if name.startswith(WEIGHT))
    choices: dict[str, dict[str, Curve]] = {}
    for name in names:
        choice, _, candidate = name.removeprefix(WEIGHT).rpartition("/")
        line = curve(history, at, name)
        if line.x:
            choices.setdefault(choice, {})[candidate] = line
    return choices


@dataclass(frozen=True)
class _Frame:
    first: float
    last: float
    low: float
    high: float

    @classmethod
    def around(cls, lines: Sequence[Curve]) -> _Frame:
        xs, ys = [x for one in lines for x in one.x], [y for one in lines for y in one.y]
        # Tenths, so that the two figures on the axis are round; 0 is always in the picture.
        low = math.floor(10 * max(min([0.0, *ys]), -_LARGEST)) / 10
        high = math.ceil(10 * min(max([0.1, *ys]), _LARGEST) - 1e-9) / 10
        return cls(min(xs, default=0.0), max(xs, default=0.0), low, high)

    def x(self, value: float) -> float:
        share = (value - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        return _TOP + (self.high - value) / (self.high - self.low) * (_HEIGHT - _TOP - _BOTTOM)


def _small(choice: str, lines: dict[str, Curve], labels: list[str], frame: _Frame) -> Small:
    leader = max(lines, key=lambda label: lines[label].y[-1])
    parts = []
    for value in (frame.low, frame.high):
        y = frame.y(value)
        parts.append(f'<path class="g-rule" d="M{_LEFT:.0f},{y:.1f}H{_WIDTH - _RIGHT:.0f}"/>')
        parts.append(svg.words(f"{value:g}", _LEFT - 5, y, kind="g-tick", anchor="end"))
    for value, anchor in ((frame.first, "start"), (frame.last, "end")):
        if anchor == "end" or frame.last > frame.first:
            parts.append(svg.words(f"{value:g}", frame.x(value), _HEIGHT - 9, kind="g-tick", anchor=anchor))
    # What leads is drawn last, over the others.
    for label in sorted(lines, key=lambda label: lines[label].y[-1])[-_MOST_DRAWN:]:
        parts.append(_line(lines[label], labels.index(label), frame, thick=label == leader))
    words = f"{leader} {lines[leader].y[-1]:.2f}"
    picture = svg.picture("".join(parts), width=_WIDTH, height=_HEIGHT)
    return Small(choice, words, picture, _spots(lines, leader, frame))


def _spots(lines: Mapping[str, Curve], leader: str, frame: _Frame) -> list[Spot]:
    """Points on the line that leads at the end, each with the highest weights there."""
    first = lines[leader]
    together = {label: line for label, line in lines.items() if line.x == first.x}
    places = range(0, len(first.x), math.ceil(len(first.x) / _MOST_SPOTS))
    spots = []
    for k in sorted({*places, len(first.x) - 1}):
        order = sorted(together, key=lambda label: -together[label].y[k])[:_TOLD]
        words = ", ".join(f"{label} {together[label].y[k]:.2f}" for label in order)
        more = f", {len(lines) - len(order)} more" if len(lines) > len(order) else ""
        spot = (round(frame.x(first.x[k]), 1), round(frame.y(first.y[k]), 1))
        spots.append(Spot(*spot, 0, f"{first.at[k]}: {words}{more}"))
    return spots


def _line(line: Curve, place: int, frame: _Frame, *, thick: bool) -> str:
    spots = [f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(line.x, line.y, strict=True)]
    # A single point has no length: a round cap shows it.
    path = f"M{spots[0]}L{' '.join(spots[1:] or spots)}"
    return f'<path {_look(place)} stroke-linecap="round" stroke-width="{3 if thick else 1.5}" d="{path}"/>'


def sample(place: int) -> str:
    """The line of that number, for a legend."""
    return svg.picture(f'<path {_look(place)} stroke-width="3" d="M0,5H24"/>', width=24, height=10)


def _look(place: int) -> str:
    dashes = _DASHES[place // svg.LINES % len(_DASHES)]
    return f'class="g-line g-line{place % svg.LINES + 1}"{dashes}'
