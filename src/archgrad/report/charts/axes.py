"""Pictures on axes of matplotlib: as inline SVG that takes its colors from the page around it, and as figures."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from archgrad.report import numbers
from archgrad.report.charts.steps import is_finite
from archgrad.report.charts.svg import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What axes are drawn in, by whoever fills them: the colors of the light page.
INK, FAINT, BOUND = LIGHT["ink"], LIGHT["faint"], LIGHT["bound"]
# Where runs are held side by side.
SERIES = tuple(LIGHT[f"line{place}"] for place in range(1, 9))
LINES = SERIES[:4]
# matplotlib writes fixed colors; each stands for a variable of the page's style sheet.
_VARIABLES = {
    INK: "--ink",
    FAINT: "--faint",
    BOUND: "--bound",
    **{color: f"--line{place}" for place, color in enumerate(SERIES, start=1)},
}


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


class Drawing(str):
    """A picture as SVG text, which knows how to draw itself anew on any axes."""

    __slots__ = ("fill",)
    fill: Callable[[Axes], None]


def undrawn(fill: Callable[[Axes], None]) -> Drawing:
    """A picture that the page draws in another way, for `figures` alone."""
    drawing = Drawing("")
    drawing.fill = fill
    return drawing


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
    drawing = Drawing(_inline(out.getvalue()))
    drawing.fill = fill
    return drawing, spots


def figures(charts: Sequence[Chart]) -> dict[str, Figure]:
    """The charts as figures of matplotlib, by their headings; those that are not drawn on axes are left out."""
    from matplotlib.figure import Figure

    made: dict[str, Figure] = {}
    for chart in charts:
        if isinstance(chart.svg, Drawing):
            count = sum(name.partition(" (")[0] == chart.heading for name in made)
            figure = Figure(figsize=(6.4, 3.6), layout="constrained")
            chart.svg.fill(figure.add_subplot())
            figure.suptitle(chart.heading)
            made[f"{chart.heading} ({count + 1})" if count else chart.heading] = figure
    return made


def _placed(axes: Axes, marks: Sequence[Spot], *, height: float) -> list[Spot]:
    placed = axes.transData.transform([(mark.x, mark.y) for mark in marks])
    inside = [(mark, x, height - y) for mark, (x, y) in zip(marks, placed, strict=True) if is_finite(float(x + y))]
    return [mark._replace(x=round(float(x), 1), y=round(float(y), 1)) for mark, x, y in inside]


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
