"""Runs side by side: figures, costs, limits, what they took, and where their settings differ."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.text import Text

from archgrad.errors import RunError
from archgrad.report import html, intervention_card, numbers, text
from archgrad.report.charts import comparison, svg
from archgrad.report.charts.mixing_weights import sample
from archgrad.report.data import live_status, run_folder
from archgrad.report.page import drawn_graphs

Row = tuple[str, list[str]]
_NARROW = 100
_NONE = "-"


@dataclass(frozen=True)
class Side:
    """One run: what it is called beside the others, its folder, and its record as far as there is one."""

    name: str
    folder: run_folder.Folder
    record: Mapping[str, Any]


def read(paths: Sequence[Path]) -> list[Side]:
    """The runs of some folders.

    Raises:
        RunError: fewer than two folders, one twice, or one that holds no run or a damaged one.
    """
    real = [path.resolve() for path in paths]
    if len(set(real)) < 2 or len(set(real)) < len(real):
        raise RunError(
            f"given {', '.join(map(str, paths)) or 'no folder'}: give two or more folders of runs, each once"
        )
    sides = []
    for path, name in zip(paths, _names(real), strict=True):
        folder = run_folder.present(path)
        if not run_folder.is_run(path):
            raise RunError(
                f"{path} holds no run: none of record.json, run.json and history.jsonl is there. Give --out's folder."
            )
        if folder.problems and not folder.history:
            raise RunError(folder.problems[0])
        record = folder.record or live_status.provisional(folder)
        text.check(record)
        sides.append(Side(name, folder, record))
    return sides


def rows(sides: Sequence[Side]) -> list[Row]:
    """What the runs came to, a row a figure, a cell a run."""
    table = [
        _row("method", sides, lambda side: str(side.record.get("method") or _NONE)),
        _row("state", sides, lambda side: side.folder.state),
        *_figures(sides),
        _row("limit", sides, lambda side: _limit(side)[0]),
        _row("reached", sides, lambda side: _limit(side)[1]),
        _row("limit kept", sides, lambda side: _limit(side)[2]),
        _row("networks tried", sides, lambda side: _count(side.record.get("trials"))),
        _row("time in loops", sides, _time),
        _row("device", sides, lambda side: str(side.record.get("device") or _NONE)),
        _row("decisions left to a person", sides, lambda side: str(_card(side).get("total", _NONE))),
        _row("alarms", sides, lambda side: _count(side.record.get("alarms"))),
    ]
    return [(label, cells) for label, cells in table if set(cells) != {_NONE}]


def differences(sides: Sequence[Side]) -> list[Row]:
    """Settings, budgets, options and versions that are not the same in all runs."""
    flat = [_flat(_settings(side)) for side in sides]
    names = dict.fromkeys(name for side in flat for name in side)
    table = [(name, [side.get(name, _NONE) for side in flat]) for name in names]
    return [(name, cells) for name, cells in table if len(set(cells)) > 1]


def warnings(sides: Sequence[Side]) -> list[str]:
    """What a reader has to know before figures are compared."""
    sentences = []
    if len({repr(_data(side)) for side in sides}) > 1:
        sentences.append(
            "The runs are of different data, or of other splits of them: their scores are not of one scale. "
            "See the data below."
        )
    scores = {numbers.final_score(side.record).label for side in sides if side.record.get("after")}
    if len(scores) > 1:
        sentences.append(f"The runs are judged by different figures: {', '.join(sorted(scores))}.")
    if open_runs := [side.name for side in sides if side.folder.state != "finished"]:
        sentences.append(f"Not finished: {', '.join(open_runs)}. What they came to is not known yet.")
    if len({str(side.record.get("device")) for side in sides}) > 1:
        sentences.append("The runs were made on different devices: their times are not of one scale.")
    return [*sentences, *(f"{side.name}: {problem}" for side in sides for problem in side.folder.problems)]


def plain(sides: Sequence[Side]) -> str:
    """The comparison as text for a terminal."""
    names = [side.name for side in sides]
    parts: list[RenderableType] = [text.columns_of(names, [[label, *cells] for label, cells in rows(sides)])]
    if differing := differences(sides):
        parts += [Text(), Text("Where they differ:", style="bold")]
        parts += [text.columns_of(names, [[label, *cells] for label, cells in differing])]
    if notes := warnings(sides):
        parts += [Text(), *(Constrain(Text(f"note: {side}"), _NARROW) for side in notes)]
    out = io.StringIO()
    # Wide enough for all columns; a terminal breaks lines by itself.
    console = Console(file=out, width=60 + 40 * len(sides), color_system=None, force_terminal=False, highlight=False)
    console.print(Group(*parts), crop=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def as_json(sides: Sequence[Side]) -> dict[str, Any]:
    """The comparison for machines."""
    runs = [
        {
            "name": side.name,
            "folder": str(side.folder.path),
            "state": side.folder.state,
            **{
                key: side.record.get(key) for key in ("method", "device", "score", "before", "after", "limit", "data")
            },
            "seconds": _seconds(side),
            "card_total": _card(side).get("total"),
            "alarms": list(side.record.get("alarms") or []),
        }
        for side in sides
    ]
    by_name = {
        name: dict(zip([side.name for side in sides], cells, strict=True)) for name, cells in differences(sides)
    }
    comparison: dict[str, Any] = _finite({"runs": runs, "differences": by_name, "warnings": warnings(sides)})
    return comparison


def page(sides: Sequence[Side]) -> str:
    """The comparison as one HTML page.

    Raises:
        RunError: a part of a record is of another kind than it should be.
    """
    names = [side.name for side in sides]
    listed = [(side.name, side.record, side.folder.history) for side in sides]
    context = {
        "title": f"{len(sides)} runs side by side",
        "about": ", ".join(names),
        "names": names,
        "warnings": warnings(sides),
        "rows": [[label, *cells] for label, cells in rows(sides)],
        "apart": [[label, *cells] for label, cells in differences(sides)],
        "legend": [(name, Markup(sample(place))) for place, name in enumerate(names)],
        "fronts": html.figures([*comparison.fronts(listed), *comparison.points(listed)], "fronts"),
        "curves": html.figures(comparison.curves(listed), "curves"),
        "cells": [
            (
                side.name,
                drawn_graphs(side.record, f"run {place}"),
                str(side.record.get("architecture_text") or ""),
            )
            for place, side in enumerate(sides)
        ],
    }
    return html.render("compare.html.jinja", context)


def _row(label: str, sides: Sequence[Side], cell: Any) -> Row:
    return label, [cell(side) for side in sides]


def _figures(sides: Sequence[Side]) -> list[Row]:
    """Each figure of the networks, before first where a run has one."""
    tables = [{row.label: row for row in text.rows(table.record)} for table in sides]
    rows = []
    for label in dict.fromkeys(label for table in tables for label in table):
        for when, name in (("before", f"{label}, before"), ("after", label)):
            cells = [getattr(table[label], when) if label in table else _NONE for table in tables]
            rows.append((name, cells))
    return rows


def _limit(side: Side) -> tuple[str, str, str]:
    """Bounds, the figures reached, and whether all are kept, of one limit or of several that hold at once."""
    first = side.record.get("limit") or {}
    limits = [limit for limit in (first, *(first.get("others") or [])) if numbers.is_number(limit.get("bound"))]
    if not limits:
        return _NONE, _NONE, _NONE
    bounded = "; ".join(f"{numbers.label(str(x.get('cost', 'cost')))} {numbers.number(x['bound'])}" for x in limits)
    if not all(numbers.is_number(limit.get("reached")) for limit in limits):
        return bounded, _NONE, _NONE
    kept = all(limit["reached"] <= limit["bound"] for limit in limits)
    return bounded, "; ".join(numbers.number(limit["reached"]) for limit in limits), "yes" if kept else "NO"


def _count(entries: object) -> str:
    return str(len(entries)) if isinstance(entries, list) and entries else _NONE


def _card(side: Side) -> Mapping[str, Any]:
    intervention_card.rows(side.record)
    card: Mapping[str, Any] = side.record.get("card") or {}
    return card


def _seconds(side: Side) -> float | None:
    """Seconds in loops up to the last record."""
    times = [row["time"] for row in side.folder.history if numbers.is_number(row.get("time"))]
    return max(times, default=None)


def _time(side: Side) -> str:
    seconds = _seconds(side)
    return _NONE if seconds is None or not math.isfinite(seconds) else numbers.seconds(seconds)


def _data(side: Side) -> object:
    """What tells data apart: the parts of the record's, else the option."""
    data = _mapping(side.record.get("data"))
    parts = {name: part for name, part in data.items() if isinstance(part, Mapping)}
    return parts or dict(data) or _mapping(side.folder.command.get("options")).get("data")


def _settings(side: Side) -> dict[str, Any]:
    made_with = _mapping(side.folder.run.get("made_with")) or _mapping(side.record.get("versions"))
    options = _mapping(side.folder.command.get("options"))
    # What the run tells too is told once.
    known = {
        "method",
        *_mapping(side.record.get("settings")),
        *_mapping(side.record.get("run")),
        *_mapping(side.record.get("data")),
    }
    return {
        **{f"--{key.replace('_', '-')}": value for key, value in options.items() if key not in known},
        "settings": side.record.get("settings") or {},
        "run": {**(side.record.get("run") or {})},
        "versions": {key: value for key, value in made_with.items() if key != "device"},
        "data": side.record.get("data") or {},
    }


def _flat(nested: Mapping[str, Any], start: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in nested.items():
        name = f"{start}{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{name}.")
        elif value not in (None, {}, []):
            flat[name] = svg.shortened(numbers.value_text(value), 60)
    return flat


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _names(paths: Iterable[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    listed = list(paths)
    for parts in range(1, max(len(path.parts) for path in listed) + 1):
        names = ["/".join(path.parts[-parts:]) for path in listed]
        if max(Counter(names).values()) == 1:
            return names
    return [str(path) for path in listed]


def _finite(value: Any) -> Any:
    """The value as JSON knows it: what is not finite is missing."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
