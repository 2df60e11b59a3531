"""Scored networks as text: their scores, and how far each proxy is to be trusted.

Of a record it reads `networks`, `[{"name", "scores": {proxy: number}, "rank", "accuracy"}]`, the best rank first,
and `proxies`, `[{"name", "needs", "better", "published", "darts", "spearman", "kendall", "top_tenth", "regret"}]`.
Figures that are not finite are missing, or strings.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from archgrad.errors import RunError
from archgrad.report import numbers, text

Record = Mapping[str, Any]

_MOST = 20
_WIDE, _NARROW = 240, 100
_MEASURED = {"spearman": "Spearman", "kendall": "Kendall", "top_tenth": "best tenth", "regret": "regret"}


class Grid(NamedTuple):
    """A table: a heading for each column, and its rows."""

    headings: list[str]
    rows: list[list[str]]


def is_scored(record: Record) -> bool:
    """Whether this is the record of scored networks, and not of a run that found one."""
    return bool(record.get("networks"))


def check(record: Record) -> None:
    """Raises RunError, naming the part, where a record of scores is not what scoring writes."""
    for key in ("networks", "proxies"):
        part = record.get(key) or []
        if not isinstance(part, list) or not all(isinstance(entry, Mapping) for entry in part):
            raise RunError(
                f"the record is damaged at {key}: allowed is a list of objects; score again to write it anew"
            )
    if not all(isinstance(entry.get("scores"), Mapping) for entry in record.get("networks") or []):
        raise RunError("the record is damaged at networks: each has an object scores; score again to write it anew")


def networks(record: Record, *, most: int = _MOST) -> Grid:
    """The scores of the networks ranked first, a row each, numbered as in `names`."""
    listed = record.get("networks") or []
    proxies = [str(entry.get("name")) for entry in record.get("proxies") or []]
    judged = any(numbers.is_number(entry.get("accuracy")) for entry in listed)
    headings = ["", *proxies, *(["accuracy, %"] if judged else []), "mean rank"]
    rows = []
    for place, entry in enumerate(listed[:most], start=1):
        scores = [_figure(name, entry["scores"].get(name)) for name in proxies]
        accuracy = [_figure("", entry.get("accuracy"))] if judged else []
        rows.append([str(place), *scores, *accuracy, _figure("", entry.get("rank"))])
    return Grid(headings, rows)


def names(record: Record, *, most: int = _MOST) -> list[str]:
    """What the numbered networks are."""
    return [str(entry.get("name", "")) for entry in (record.get("networks") or [])[:most]]


def trust(record: Record) -> Grid:
    """For each proxy what it needs, and the rank correlations with accuracy: published, and measured by the table."""
    proxies = record.get("proxies") or []
    measured = [key for key in _MEASURED if any(numbers.is_number(proxy.get(key)) for proxy in proxies)]
    headings = ["", "needs", "better", "NAS-Bench-201, published or measured before", "DARTS space"]
    rows = [
        [*(str(proxy.get(key) or "-") for key in ("name", "needs", "better", "published", "darts"))]
        + [_figure("", proxy.get(key)) for key in measured]
        for proxy in proxies
    ]
    return Grid([*headings, *(f"here: {_MEASURED[key]}" for key in measured)], rows)


def plain(record: Record) -> str:
    """The record as text for a terminal.

    Raises:
        RunError: a part of the record is of another kind than it should be.
    """
    text.check(record)
    check(record)
    count = len(record["networks"])
    parts: list[RenderableType] = [Text(text.title(record), style="bold"), Text(), _table(networks(record))]
    parts += [Text(f"and {count - _MOST} more")] if count > _MOST else []
    parts.append(Text())
    width = len(str(min(count, _MOST)))
    for place, name in enumerate(names(record), start=1):
        parts.append(Text(f"{place:>{width}}  {name}", no_wrap=True, overflow="ignore"))
    parts += [Text(), Text("Rank correlation with accuracy:", style="bold"), _table(trust(record), left=5)]
    parts += [Text(), *(Constrain(Text(f"note: {note}"), _NARROW) for note in text.notes(record))]
    out = io.StringIO()
    console = Console(file=out, width=_WIDE, color_system=None, force_terminal=False, highlight=False)
    console.print(Group(*parts), crop=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _table(grid: Grid, *, left: int = 1) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for place, heading in enumerate(grid.headings):
        table.add_column(Text(heading), justify="left" if place < left else "right")
    for row in grid.rows:
        table.add_row(*map(Text, row))
    return table


def _figure(name: str, value: object) -> str:
    return value if isinstance(value, str) else numbers.figure(name, value)
