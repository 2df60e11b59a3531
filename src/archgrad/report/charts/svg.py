"""What the pictures share: the page's colors, and SVG text from pieces that may hold anything."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from xml.sax.saxutils import escape

LIGHT: Mapping[str, str] = {
    "paper": "#fdfdfc", "ink": "#1d1f21", "soft": "#5c6166", "faint": "#b9bec4", "rule": "#e2e4e6",
    "panel": "#f3f4f4", "alarm": "#b3263a", "bound": "#5c6166", "kept": "#2f8454",
    "bar": "#1f6fb2", "link": "#1a5f9c", "edge": "#868c92",
    "line1": "#1f6fb2", "line2": "#c4621b", "line3": "#2f8454", "line4": "#8a4fa8",
    "line5": "#b8860b", "line6": "#c2417c", "line7": "#12858d", "line8": "#6b6f74",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "paper": "#16181a", "ink": "#e4e6e8", "soft": "#a0a6ac", "faint": "#565c62", "rule": "#2c3034",
    "panel": "#1f2225", "alarm": "#f08492", "bound": "#a0a6ac", "kept": "#75c997",
    "bar": "#4b93d1", "link": "#7db8ee", "edge": "#6e757c",
    "line1": "#6db3ee", "line2": "#eda266", "line3": "#75c997", "line4": "#c79be0",
    "line5": "#e3c05c", "line6": "#f08fb9", "line7": "#5cc8cf", "line8": "#a9aeb4",
}  # fmt: skip
LINES = 8
WORD = 12.0

# Classes rather than attributes: one text serves the page, with its variables, and a file of its own.
_RULES = """
.g-paper { fill: {paper}; }
.g-edge { fill: none; stroke: {soft}; stroke-width: 1.4; }
.g-arrow { fill: {soft}; }
.g-faint-edge { fill: none; stroke: {faint}; stroke-width: 1.4; }
.g-faint-arrow { fill: {faint}; }
.g-node { fill: {paper}; stroke: {bar}; stroke-width: 1.6; }
.g-end { fill: {panel}; stroke: {soft}; stroke-width: 1.2; }
.g-op { fill: {panel}; stroke: {faint}; stroke-width: 1; }
.g-bar { fill: {bar}; }
.g-pale { fill: {faint}; }
.g-dot { fill: {line2}; }
.g-rule { stroke: {rule}; stroke-width: 1; }
.g-word { fill: {ink}; font-size: 12px; }
.g-soft { fill: {soft}; font-size: 12px; }
.g-tick { fill: {soft}; font-size: 10px; }
.g-line { fill: none; }
"""
_OTHER_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]+")


def style(colors: Mapping[str, str]) -> str:
    """The style rules of all pictures, in these colors: {"ink": "#1d1f21", ...}."""
    rules = _RULES + "".join(f".g-line{k} {{ stroke: {{line{k}}}; }}\n" for k in range(1, LINES + 1))
    return re.sub(r"{(\w+)}", lambda found: colors[found[1]], rules).strip()


def variables() -> dict[str, str]:
    """The colors as variables of the page's style sheet."""
    return {name: f"var(--{name})" for name in LIGHT}


def picture(body: str, *, width: float, height: float) -> str:
    """SVG for the page, which brings colors and fonts."""
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">{body}</svg>'


def standalone_svg(svg: str) -> str:
    """What `picture` gave, as a file of its own: colors for light and dark, a ground, and a font."""
    rules = f"{style(LIGHT)}\n@media (prefers-color-scheme: dark) {{\n{style(DARK)}\n}}"
    ground = '<rect class="g-paper" width="100%" height="100%"/>'
    head = '<svg xmlns="http://www.w3.org/2000/svg" font-family="system-ui, Helvetica, Arial, sans-serif" '
    svg = head + svg.removeprefix("<svg ")
    return svg.replace(">", f"><style>{rules}</style>{ground}", 1) + "\n"


def described(svg: str, *, key: str, title: str, words: str = "") -> str:
    """The picture with a name, and what it shows in words, for who hears the page; `key` is its own on the page."""
    name, more = f"{escape(_clean(title))}", f"{escape(_clean(words))}"
    by = f'aria-labelledby="{key}-t"' + (f' aria-describedby="{key}-d"' if more else "")
    parts = f'<title id="{key}-t">{name}</title>' + (f'<desc id="{key}-d">{more}</desc>' if more else "")
    return svg.replace("<svg ", f'<svg role="img" {by} ', 1).replace(">", f">{parts}", 1)


def slug(text: str, place: int) -> str:
    """An id for an element, from a name that may hold anything; the number keeps ids apart."""
    return f"{re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:40]}-{place}"


def words(text: str, x: float, y: float, *, kind: str = "g-word", anchor: str = "start", most: int = 32) -> str:
    """A text whose middle line is at y; beyond `most` characters it is cut, and whole in its tooltip."""
    text = _clean(text)
    short = shortened(text, most)
    whole = f"<title>{escape(text)}</title>" if short != text else ""
    # A shift of the baseline, as not every reader of SVG knows dominant-baseline.
    place = f'x="{x:.1f}" y="{y + 4:.1f}"'
    return f'<text class="{kind}" {place} text-anchor="{anchor}">{whole}{escape(short)}</text>'


def _clean(text: str) -> str:
    return _OTHER_CONTROLS.sub(" ", text)


def shortened(text: str, most: int) -> str:
    """The text, or its first characters and an ellipsis: `most` characters in all."""
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def length(text: str, *, most: int = 32) -> float:
    """About how wide `words` of this text are, in pixels; rather more, as fonts differ."""
    ems = [1.0 if unicodedata.east_asian_width(sign) in "WF" else 0.6 for sign in shortened(text, most)]
    return WORD * sum(ems)
