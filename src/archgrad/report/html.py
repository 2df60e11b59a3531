"""What the pages share: their style, their script, and the policy that lets no other script run."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from archgrad.report.charts import svg
from archgrad.report.charts.axes import Chart, Spot

_HERE = Path(__file__).parent


class Figure(NamedTuple):
    """A picture as the templates draw it; `spots` is JSON, and empty where there are none."""

    key: str
    heading: str
    caption: str
    svg: Markup
    spots: str


def figure(chart: Chart, key: str, title: str = "") -> Figure:
    """A chart with its words for who hears the page, and its points for the script."""
    words = " ".join(filter(None, (chart.words, chart.caption)))
    picture = svg.described(chart.svg, key=key, title=title or chart.heading, words=words)
    return Figure(key, chart.heading, chart.caption, Markup(picture), points(chart.spots))


def figures(charts: Sequence[Chart], part: str) -> list[Figure]:
    """All charts of a part of the page, whose name keeps their ids apart."""
    return [figure(chart, svg.slug(f"{part} {chart.heading}", place)) for place, chart in enumerate(charts)]


def points(spots: Sequence[Spot]) -> str:
    """Points as JSON for an attribute, which the template escapes."""
    return json.dumps(spots, ensure_ascii=False, separators=(",", ":"), allow_nan=False) if spots else ""


def served_policy() -> str:
    """The policy of a page that is served, as a header; it may not stand in another page's frame."""
    return f"{policy(live=True)}; frame-ancestors 'none'"


def policy(*, live: bool) -> str:
    """The page's content security policy: this one script, its own styles, and images within it."""
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    connect = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def render(template: str, context: Mapping[str, Any], *, live: int = 0) -> str:
    """A page from a template beside this file; `live` is in ms how often it asks whether it has changed."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared = {
        "contents": [],
        "live": live,
        "state": "",
        "about": "",
        "policy": policy(live=bool(live)),
        "version": importlib.metadata.version("archgrad"),
        "script": Markup(_script()),
        "css": Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        "colors": Markup(_colors()),
        "rules": Markup(svg.style(svg.variables())),
    }
    return environment.get_template(template).render({**shared, **context})


def _script() -> str:
    return (_HERE / "page.js").read_text(encoding="utf-8")


def _colors() -> str:
    light, dark = (" ".join(f"--{name}: {value};" for name, value in one.items()) for one in (svg.LIGHT, svg.DARK))
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark} }} }}\n"
        f":root[data-theme=dark] {{ color-scheme: dark; {dark} }}\n"
        ":root[data-theme=light] { color-scheme: light; }"
    )
