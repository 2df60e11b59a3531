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
from archgrad.report import html, intervention, numbers, text
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
    found = []
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
        found.append(Side(name, folder, record))
    return found


def rows(sides: Sequence[Side]) -> list[Row]:
    """What the runs came to, a row a figure, a cell a run."""
    found = [
        _row("method", sides, lambda one: str(one.record.get("method") or _NONE)),
        _row("state", sides, lambda one: one.folder.state),
        *_figures(sides),
        _row("limit", sides, lambda one: _limit(one)[0]),
        _row("reached", sides, lambda one: _limit(one)[1]),
        _row("limit kept", sides, lambda one: _limit(one)[2]),
        _row("networks tried", sides, lambda one: _count(one.record.get("trials"))),
        _row("time in loops", sides, _time),
        _row("device", sides, lambda one: str(one.record.get("device") or _NONE)),
        _row("human intervention, total", sides, lambda one: str(_card(one).get("total", _NONE))),
        _row("alarms", sides, lambda one: _count(one.record.get("alarms"))),
    ]
    return [(label, cells) for label, cells in found if set(cells) != {_NONE}]


def differences(sides: Sequence[Side]) -> list[Row]:
    """Settings, budgets, options and versions that are not the same in all runs."""
    flat = [_flat(_settings(one)) for one in sides]
    names = dict.fromkeys(name for one in flat for name in one)
    found = [(name, [one.get(name, _NONE) for one in flat]) for name in names]
    return [(name, cells) for name, cells in found if len(set(cells)) > 1]


def warnings(sides: Sequence[Side]) -> list[str]:
    """What a reader has to know before figures are compared."""
    found = []
    if len({repr(_data(one)) for one in sides}) > 1:
        found.append(
            "The runs are of different data, or of other splits of them: their scores are not of one scale. "
            "See the data below."
        )
    scores = {numbers.final_score(one.record).label for one in sides if one.record.get("after")}
    if len(scores) > 1:
        found.append(f"The runs are judged by different figures: {', '.join(sorted(scores))}.")
    if open_runs := [one.name for one in sides if one.folder.state != "finished"]:
        found.append(f"Not finished: {', '.join(open_runs)}. What they came to is not known yet.")
    if len({str(one.record.get("device")) for one in sides}) > 1:
        found.append("The runs were made on different devices: their times are not of one scale.")
    return [*found, *(f"{one.name}: {problem}" for one in sides for problem in one.folder.problems)]


def plain(sides: Sequence[Side]) -> str:
    """The comparison as text for a terminal."""
    names = [one.name for one in sides]
    parts: list[RenderableType] = [text.columns_of(names, [[label, *cells] for label, cells in rows(sides)])]
    if apart := differences(sides):
        parts += [Text(), Text("Where they differ:", style="bold")]
        parts += [text.columns_of(names, [[label, *cells] for label, cells in apart])]
    if said := warnings(sides):
        parts += [Text(), *(Constrain(Text(f"note: {one}"), _NARROW) for one in said)]
    out = io.StringIO()
    # Wide enough for all columns; a terminal breaks lines by itself.
    console = Console(file=out, width=60 + 40 * len(sides), color_system=None, force_terminal=False, highlight=False)
    console.print(Group(*parts), crop=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def as_json(sides: Sequence[Side]) -> dict[str, Any]:
    """The comparison for machines."""
    runs = [
        {
            "name": one.name,
            "folder": str(one.folder.path),
            "state": one.folder.state,
            **{key: one.record.get(key) for key in ("method", "device", "score", "before", "after", "limit", "data")},
            "seconds": _seconds(one),
            "card_total": _card(one).get("total"),
            "alarms": list(one.record.get("alarms") or []),
        }
        for one in sides
    ]
    apart = {name: dict(zip([one.name for one in sides], cells, strict=True)) for name, cells in differences(sides)}
    found: dict[str, Any] = _finite({"runs": runs, "differences": apart, "warnings": warnings(sides)})
    return found


def page(sides: Sequence[Side]) -> str:
    """The comparison as one HTML page.

    Raises:
        RunError: a part of a record is of another kind than it should be.
    """
    names = [one.name for one in sides]
    listed = [(one.name, one.record, one.folder.history) for one in sides]
    given = {
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
                one.name,
                drawn_graphs(one.record, f"run {place}"),
                str(one.record.get("architecture_text") or ""),
            )
            for place, one in enumerate(sides)
        ],
    }
    return html.render("compare.html.jinja", given)


def _row(label: str, sides: Sequence[Side], cell: Any) -> Row:
    return label, [cell(one) for one in sides]


def _figures(sides: Sequence[Side]) -> list[Row]:
    """Each figure of the networks, before first where a run has one."""
    told = [{row.label: row for row in text.rows(one.record)} for one in sides]
    found = []
    for label in dict.fromkeys(label for one in told for label in one):
        for when, name in (("before", f"{label}, before"), ("after", label)):
            cells = [getattr(one[label], when) if label in one else _NONE for one in told]
            found.append((name, cells))
    return found


def _limit(one: Side) -> tuple[str, str, str]:
    limit = one.record.get("limit") or {}
    bound, reached = limit.get("bound"), limit.get("reached")
    if not numbers.is_number(bound):
        return _NONE, _NONE, _NONE
    told = f"{numbers.label(str(limit.get('cost', 'cost')))} {numbers.number(bound)}"
    if not numbers.is_number(reached):
        return told, _NONE, _NONE
    return told, numbers.number(reached), "yes" if reached <= bound else "NO"


def _count(given: object) -> str:
    return str(len(given)) if isinstance(given, list) and given else _NONE


def _card(one: Side) -> Mapping[str, Any]:
    intervention.rows(one.record)
    card: Mapping[str, Any] = one.record.get("card") or {}
    return card


def _seconds(one: Side) -> float | None:
    """Seconds in loops up to the last record."""
    times = [row["time"] for row in one.folder.history if numbers.is_number(row.get("time"))]
    return max(times, default=None)


def _time(one: Side) -> str:
    seconds = _seconds(one)
    return _NONE if seconds is None or not math.isfinite(seconds) else live_status.duration(seconds)


def _data(one: Side) -> object:
    """What tells data apart: the parts of the record's, else the option."""
    data = _mapping(one.record.get("data"))
    parts = {name: part for name, part in data.items() if isinstance(part, Mapping)}
    return parts or dict(data) or _mapping(one.folder.command.get("options")).get("data")


def _settings(one: Side) -> dict[str, Any]:
    made = _mapping(one.folder.run.get("made_with")) or _mapping(one.record.get("versions"))
    given = _mapping(one.folder.command.get("options"))
    # What the run tells too is told once.
    known = {
        "method",
        *_mapping(one.record.get("settings")),
        *_mapping(one.record.get("run")),
        *_mapping(one.record.get("data")),
    }
    return {
        **{f"--{key.replace('_', '-')}": value for key, value in given.items() if key not in known},
        "settings": one.record.get("settings") or {},
        "run": {**(one.record.get("run") or {})},
        "versions": {key: value for key, value in made.items() if key != "device"},
        "data": one.record.get("data") or {},
    }


def _flat(given: Mapping[str, Any], start: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in given.items():
        name = f"{start}{key}"
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{name}.")
        elif value not in (None, {}, []):
            found[name] = svg.shortened(numbers.value_text(value), 60)
    return found


def _mapping(given: object) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else {}


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
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
