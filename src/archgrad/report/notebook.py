"""A run in a notebook, without script or widgets: its result as a short piece of HTML, and how it goes on."""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from archgrad.errors import ConfigError, MissingExtra, RunError
from archgrad.report import html, numbers, page, text
from archgrad.report.charts import curves, svg
from archgrad.report.charts.steps import is_finite

_MOST_PICKS = 12
_MOST_CURVES = 3
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


class NotebookDisplay:
    """Shows a run in a notebook while it goes on, in one place of the cell's output, without widgets.

    It is an `on_log` of `archgrad.Output`: phase, step, the latest figures, and the curves of loss and score.

    Args:
        seconds: the least time between two drawings; more where drawing takes long, so that the run keeps its
            processor.

    Raises:
        MissingExtra: IPython is not installed.
        ConfigError: the program does not run in IPython or a notebook.

    Example:
        >>> from archgrad.report import NotebookDisplay
        >>> NotebookDisplay  # run = ag.Run(epochs=16, output=ag.Output(on_log=NotebookDisplay()))
        <class 'archgrad.report.notebook.NotebookDisplay'>
    """

    def __init__(self, *, seconds: float = 1.0) -> None:
        try:
            ipython: Any = importlib.import_module("IPython")
            output: Any = importlib.import_module("IPython.display")
        except ImportError as error:
            raise MissingExtra("IPython", "notebook") from error
        if ipython.get_ipython() is None:
            raise ConfigError(
                "NotebookDisplay was made outside of a notebook. Leave it out here: a terminal shows a run by "
                "itself, and archgrad board shows it in the browser"
            )
        self._seconds, self._due, self._phase = seconds, 0.0, ""
        self._history: list[dict[str, Any]] = []
        self._html = output.HTML
        self._handle = output.display(self._html(self.html()), display_id=True)

    def __repr__(self) -> str:
        return f"NotebookDisplay({len(self._history)} records)"

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Take a record that was logged; it is shown at once where a phase begins, else with the next drawing."""
        self._history.append(dict(record))
        phase = str(record.get("phase") or "")
        if phase != self._phase or time.monotonic() >= self._due:
            self._phase = phase
            self.show()

    def show(self) -> None:
        """Draw what was logged so far."""
        began = time.monotonic()
        self._handle.update(self._html(self.html()))
        ended = time.monotonic()
        self._due = ended + max(self._seconds, 9 * (ended - began))

    def html(self) -> str:
        """What is shown: HTML without script."""
        drawn = [chart for chart in curves.charts(self._history) if len(chart.spots) > 1][:_MOST_CURVES]
        last = self._history[-1] if self._history else {}
        figures = [
            f"{numbers.label(name)} {numbers.figure(name, value)}"
            for name, value in last.items()
            if name not in ("phase", "step", "time") and "/" not in name
        ]
        place = f"{self._phase}, step {last['step'] + 1:,}" if is_finite(last.get("step")) else self._phase
        context = {
            **dict.fromkeys(("headings", "rows", "picks", "alarms"), ()),
            "heading": place or "A run of archgrad",
            "lines": [", ".join(figures)] if figures else [],
            "graphs": html.figures(drawn, f"live {id(self)}"),
            "architecture": "",
        }
        return html.render("notebook.html.jinja", {**context, "class": _CLASS, "colors": Markup(_style())})


def _style() -> str:
    light, dark = (" ".join(f"--{name}: {value};" for name, value in one.items()) for one in (svg.LIGHT, svg.DARK))
    rules = svg.style(svg.variables()).replace("\n.g-", f"\n.{_CLASS} .g-")
    selectors = ", ".join(f"{one} .{_CLASS}" for one in _DARK)
    return f".{_CLASS} {{ {light} }}\n{selectors} {{ {dark} }}\n.{_CLASS} {rules}"
