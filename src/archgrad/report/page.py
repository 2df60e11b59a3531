"""A run's report as one self-contained HTML page: nothing fetched, readable in light and dark, without script too."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from archgrad import files
from archgrad.errors import RunError
from archgrad.report import facts, html, intervention_card, numbers, score_text, text
from archgrad.report.charts import baselines, control, curves, mixing_weights, pareto, proxy_scores, radars, rl, svg
from archgrad.report.charts.axes import FAINT, LINES, Chart, dress, undrawn
from archgrad.report.charts.steps import LARGEST, History
from archgrad.report.data import run_folder
from archgrad.report.graphs import cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TEMPLATE = "page.html.jinja"
_MOST_SCORED = 100


def page(
    record: text.Record,
    history: History = (),
    *,
    run: Mapping[str, Any] | None = None,
    command: Mapping[str, Any] | None = None,
    now: Mapping[str, Any] | None = None,
    live: int = 0,
) -> str:
    """The report as HTML; what the record or the history lacks is left out.

    Args:
        record: as in record.json.
        history: as in history.jsonl.
        run: as in run.json.
        command: as in command.json.
        now: where the run stands, on the board: see `archgrad.report.board`.
        live: in ms, how often the page asks its own address whether it has changed; 0: never.

    Raises:
        RunError: a part of the record is of another kind than it should be.
    """
    text.check(record)
    score_text.check(record)
    candidates = proxy_scores.candidates(record)
    context = {
        "title": text.title(record),
        "about": " \u00b7 ".join(str(record[key]) for key in ("method", "device") if record.get(key)),
        "now": now,
        "state": (now or {}).get("kind", ""),
        **_figures(record),
        **_found(record),
        "candidates": html.figures(
            [Chart(chart.choice, chart.caption, chart.svg, (), _told_scores(chart.choice)) for chart in candidates],
            "candidates",
        ),
        "clouds": html.figures(proxy_scores.clouds(record), "clouds"),
        **_charts(record, history),
        "weights": _weights(history),
        "film": rl.film(record),
        "cells": rl.cells(record),
        "load": record.get("load"),
        **_how(record, run or {}, command or {}),
    }
    return html.render(_TEMPLATE, context, live=live)


def write(folder: str | Path, out: Path | None = None) -> Path:
    """Reads a run folder's record.json and history.jsonl, writes its report.html or `out`, and returns that path.

    Beside report.html each graph of the record is written as an SVG file. Where run.json and command.json are there,
    the page says how to run it again.

    Raises:
        RunError: a file is missing, damaged, or cannot be written.
    """
    folder = Path(folder)
    record, history = run_folder.ended(folder)
    text.check(record)
    run, command = run_folder.about(folder)
    drawn = page(record, history, run=run, command=command)
    if out is not None:
        replace(out, drawn)
        return out
    contents = {"report.html": drawn}
    names = cells.file_names(record.get("graphs") or [])
    contents |= {name: svg.standalone_svg(drawn) for name, drawn in zip(names, pictures(record), strict=True)}
    for name, content in contents.items():
        replace(folder / name, content)
    return folder / "report.html"


def replace(target: Path, content: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        RunError: the disk is full, or the folder cannot be written in.
    """
    # JSON may hold halves of characters, which no file can.
    files.write_text(target, content, RunError, errors="replace")


def pictures(record: text.Record) -> list[str]:
    """The record's graphs as SVG, for the page."""
    listed = record.get("graphs") or []
    return [cells.draw_cell(graph, part=f"graphs[{place}]") for place, graph in enumerate(listed)]


def drawn_graphs(record: text.Record, part: str) -> list[html.Figure]:
    """The record's graphs with their edges in words; `part` keeps their ids apart from others of the page."""
    figures = []
    for place, (graph, picture) in enumerate(zip(record.get("graphs") or [], pictures(record), strict=True)):
        name = str(graph.get("name") or "")
        title = f"The graph {name}".strip()
        figures.append(
            html.figure(Chart(name, "", picture, (), cells.in_words(graph)), svg.slug(f"{part} graph", place), title)
        )
    return figures


def _figures(record: text.Record) -> dict[str, Any]:
    shown = text.columns(record)
    rivals = text.rivals(record)
    return {
        "alarms": [str(alarm) for alarm in record.get("alarms") or []],
        "columns": shown,
        "headings": ["", *(heading for _, heading in shown)],
        "rows": [[row.label, *(_cell(getattr(row, name)) for name, _ in shown)] for row in text.rows(record)],
        "trade_off": _trade_off(record),
        "given": text.given_line(record),
        "limit": text.limit_line(record),
        "int8": text.int8_rows(record),
        "kept": text.limit_kept(record),
        "gap": text.gap_line(record),
        "baselines": {
            "headings": rivals.headings,
            "rows": [[name, *cells] for name, cells in rivals.rows],
            # Without one network that was found, all of them are the result.
            "section": "Controls" if record.get("after") else "Networks",
            "title": "The network beside the baselines" if record.get("after") else "The networks of the front",
        },
        "controls": baselines.rows(record),
        "notes": text.notes(record),
        "layers": _layers(record),
        "frozen": [
            (str(layer.get("name", "")), str(layer.get("reason", ""))) for layer in record.get("frozen") or []
        ],
        "card": intervention_card.rows(record),
    }


def _found(record: text.Record) -> dict[str, Any]:
    return {
        "graphs": drawn_graphs(record, "found"),
        "architecture": str(record.get("architecture_text") or "").strip(),
        "picks": text.picks(record),
        "scored": _scored(record),
    }


def _how(record: text.Record, run: Mapping[str, Any], command: Mapping[str, Any]) -> dict[str, Any]:
    """How it was run, and how to run it again."""
    about = {"method": record.get("method"), "device": record.get("device"), **(record.get("run") or {})}
    times = {key: run.get(key) for key in ("started", "resumed") if run.get(key)}
    made_with = run.get("made_with")
    versions = {**(record.get("versions") or {}), **(made_with if isinstance(made_with, Mapping) else {})}
    parts = {
        "Run": {**about, **times},
        "Settings": facts.settings(record),
        "Data": facts.data(record, _mapping(command.get("options")).get("data")),
        "Versions": versions,
    }
    return {"groups": _groups(parts), "again": _again(record, versions, command)}


def _mapping(part: object) -> Mapping[str, Any]:
    return part if isinstance(part, Mapping) else {}


def _again(record: text.Record, versions: Mapping[str, Any], command: Mapping[str, Any]) -> dict[str, str] | None:
    arguments = command.get("arguments")
    seed = (record.get("run") or {}).get("seed")
    known = [f"{name} {versions[name]}" for name in ("archgrad", "torch", "python") if versions.get(name)]
    same = "The same versions and device give the same result" + (f": {', '.join(known)}." if known else ".")
    if isinstance(arguments, list) and arguments:
        # Quoted, and always a command of archgrad: the folder may come from a stranger.
        line = shlex.join(["archgrad", *map(str, arguments)])
        return {"command": line, "told": f"{same} Relative paths are of the folder where it was given."}
    if seed is None or not record.get("method"):
        return None
    call = f"archgrad.{record['method']} with Run(seed={numbers.value_text(seed)}, ...)"
    return {"command": "", "told": f'{call} and the settings, budgets and data below, under "How it was run". {same}'}


def _told_scores(choice: str) -> str:
    return f"Scores of the candidates of {choice}, untrained."


def _charts(record: text.Record, history: History) -> dict[str, Any]:
    """Pictures of the run; what was logged once is a row, not a picture."""
    shown, once = _drawn_charts(record, history)
    rows = [(chart.lines[spot.line], *spot.text.rpartition(": ")[::2]) for chart in once for spot in chart.spots]
    values = [(name, f"{told.removeprefix(name).strip()} ({when})") for name, when, told in rows]
    return {"charts": html.figures(shown, "run"), "once": values}


def _drawn_charts(record: text.Record, history: History) -> tuple[list[Chart], list[Chart]]:
    """The pictures of the run, and those of figures that were logged once."""
    others = (curves.jump(record), curves.scatter(record.get("surrogate") or {}))
    searched = [*control.charts(record), *radars.charts(record), *rl.charts(record)]
    logged = curves.charts(history, record.get("limit"), score=numbers.score(record))
    once = [chart for chart in logged if len(chart.spots) == len({spot.line for spot in chart.spots})]
    shown = [*searched, *(chart for chart in logged if chart not in once), *(chart for chart in others if chart)]
    return shown, once


def _scored(record: text.Record) -> dict[str, Any] | None:
    if not score_text.is_scored(record):
        return None
    names = score_text.names(record, most=_MOST_SCORED)
    return {
        "networks": score_text.networks(record, most=_MOST_SCORED),
        "names": list(enumerate(names, start=1)),
        "left_out": max(0, len(record["networks"]) - _MOST_SCORED),
        "trust": score_text.trust(record),
    }


def _weights(history: History) -> dict[str, Any]:
    drawing = mixing_weights.weights(history)
    charts = [
        Chart(chart.choice, f"highest at the end: {chart.leader}", chart.svg, chart.spots, "Weights over the steps.")
        for chart in drawing.charts
    ]
    return {
        "charts": html.figures(charts, "weights"),
        "legend": [(label, Markup(sample)) for label, sample in drawing.legend],
        "left_out": drawing.left_out,
    }


def _trade_off(record: text.Record) -> list[html.Figure]:
    """Score against cost: the fronts of a search for several networks, else this run beside the controls."""
    return html.figures(_trade_off_charts(record), "trade-off")


def _trade_off_charts(record: text.Record) -> list[Chart]:
    one = None if record.get("fronts") else pareto.trade_off(record)
    return [one] if one else pareto.charts(record)


def charts(record: text.Record, history: History = ()) -> list[Chart]:
    """All pictures of the report that are drawn on axes, in its order; layers and weights of candidates too.

    Raises:
        RunError: a part of the record is of another kind than it should be.
    """
    text.check(record)
    listed = [*_trade_off_charts(record), *proxy_scores.clouds(record)]
    if layers := _layers(record):
        listed.append(
            Chart("What is left of the layers", "", undrawn(functools.partial(_draw_layers, layers=layers)))
        )
    return [*listed, *_drawn_charts(record, history)[0], *mixing_weights.charts(history)]


def _cell(written: str) -> tuple[str, str]:
    """A figure, and what stands behind it in brackets: a range, or whether it is better."""
    figure, bracket, more = written.partition(" (")
    return figure, f"({more}" if bracket else ""


_NAMES_OF_KINDS = {"block": ".branch", "heads": ".heads"}
_MOST_PARTS = 24  # heads that are drawn one by one


def _layers(record: text.Record) -> list[dict[str, Any]]:
    """What is left of each layer, residual stream, attention module and block, in the order of the network."""
    layers = [
        layer
        for layer in record.get("layers") or []
        if numbers.is_number(layer.get("before")) and 0 < layer["before"] < LARGEST
    ]
    # Bars share one scale, the widest layer's, so that wide and narrow layers can be told apart.
    widest = max((layer["before"] for layer in layers if _kind_of(layer) not in _NAMES_OF_KINDS), default=1)
    result = []
    for layer in layers:
        kind, before, after = _kind_of(layer), layer["before"], layer.get("after")
        kept = min(after, before) if numbers.is_number(after) and after >= 0 else before
        scale = before if kind in _NAMES_OF_KINDS else widest
        few = kind in _NAMES_OF_KINDS and before <= _MOST_PARTS
        result.append(
            {
                "name": str(layer.get("name", "")).removesuffix(_NAMES_OF_KINDS.get(kind, "\0")),
                "kind": kind,
                "count": _count(kind, kept, before),
                "parts": [k < kept for k in range(int(before))] if few else [],
                "whole": f"{100 * before / scale:.2f}",
                "kept": f"{100 * kept / scale:.2f}",
            }
        )
    return result


def _draw_layers(axes: Axes, *, layers: Sequence[Mapping[str, Any]]) -> None:
    places = range(len(layers), 0, -1)
    axes.barh(places, [float(layer["whole"]) for layer in layers], color=FAINT)
    bars = axes.barh(places, [float(layer["kept"]) for layer in layers], color=LINES[0])
    axes.bar_label(bars, [layer["count"] for layer in layers], padding=3, fontsize=8)
    dress(axes, x="")
    axes.set_xticks([])
    axes.set_xlim(0, 130)
    axes.set_yticks(list(places), [svg.shortened(layer["name"], 32) for layer in layers])


def _kind_of(layer: Mapping[str, Any]) -> str:
    """What a row counts; records of earlier versions tell it by the name alone."""
    kind, name = layer.get("kind"), str(layer.get("name", ""))
    known = next((one for one, end in _NAMES_OF_KINDS.items() if name.endswith(end)), "channels")
    return kind if kind in ("block", "heads", "stream", "channels") else known


def _count(kind: str, kept: float, before: float) -> str:
    if kind == "block":
        return "block kept" if kept else "block removed"
    word = {"heads": " heads", "stream": " in the stream"}.get(kind, "")
    return f"{numbers.number(kept)} of {numbers.number(before)}{word}"


def _groups(parts: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    groups = []
    for heading, part in parts.items():
        pairs = [(key.replace("_", " "), numbers.value_text(value)) for key, value in (part or {}).items()]
        pairs = [(key, value) for key, value in pairs if value != "null"]
        if pairs:
            groups.append((heading, pairs))
    return groups
