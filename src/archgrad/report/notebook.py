"""A run's record as a short piece of HTML, as a notebook shows a result: figures, limit, what was found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from markupsafe import Markup

from archgrad.errors import RunError
from archgrad.report import html, page, text
from archgrad.report.charts import svg

_MOST_PICKS = 12
_CLASS = "archgrad-found"
# Notebooks say whether they are dark in ways of their own.
_DARK = ('[data-jp-theme-light="false"]', "body.vscode-dark", "html[data-theme=dark]")


def summary(record: text.Record, *, picks: Sequence[tuple[str, str, str]] = ()) -> str:
    """The record as HTML without script, under a style of its own; what is damaged in it is told.

    Args:
        record: as in record.json; any part may be missing.
        picks: choice, pick and weight where the record has none.
    """
    try:
        text.check(record)
        shown = text.columns(record)
        figures = [[row.label, *(getattr(row, name) for name, _ in shown)] for row in text.rows(record)]
        # Several results in one notebook have ids of their own.
        key = hashlib.sha256(json.dumps(record, default=str, sort_keys=True).encode()).hexdigest()[:8]
        graphs = page.drawn_graphs(record, f"found {key}")
        context = {
            "heading": text.title(record),
            "headings": ["", *(heading for _, heading in shown)],
            "rows": figures,
            "lines": [line for line in (text.limit_line(record), text.gap_line(record)) if line],
            "graphs": graphs,
            "architecture": str(record.get("architecture_text") or "").strip(),
            "picks": (text.picks(record) or list(picks))[: 0 if graphs else _MOST_PICKS],
            "alarms": [str(alarm) for alarm in record.get("alarms") or []],
        }
    except RunError as error:
        context = {
            **dict.fromkeys(("headings", "rows", "lines", "graphs", "picks"), ()),
            "heading": "A result of archgrad",
            "architecture": "",
            "alarms": [str(error)],
        }
    return html.render("notebook.html.jinja", {**context, "class": _CLASS, "colors": Markup(_style())})


def _style() -> str:
    light, dark = (" ".join(f"--{name}: {value};" for name, value in one.items()) for one in (svg.LIGHT, svg.DARK))
    rules = svg.style(svg.variables()).replace("\n.g-", f"\n.{_CLASS} .g-")
    selectors = ", ".join(f"{one} .{_CLASS}" for one in _DARK)
    return f".{_CLASS} {{ {light} }}\n{selectors} {{ {dark} }}\n.{_CLASS} {rules}"
