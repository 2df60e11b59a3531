"""A run's record as text: before, after and change, or what a search found beside its rivals; limit and notes.

A record is a plain dict, as in a run folder's record.json. Every part may be missing, and is then left out.
Figures of other names than those in `_FIGURES` are shown under their own.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from archgrad.errors import RunError
from archgrad.report.charts.pareto import fronts
from archgrad.report.charts.pareto import rows as points

Record = Mapping[str, Any]

_MAPPINGS = (
    "settings",
    "run",
    "versions",
    "before",
    "after",
    "limit",
    "data",
    "surrogate",
    "discretization",
    "control",
)
_LISTS_OF_MAPPINGS = ("layers", "frozen", "baselines", "graphs", "picks", "fronts")
_LISTS = (*_LISTS_OF_MAPPINGS, "notes", "alarms")
_MOST_PICKS = 40
_NOISY = 0.5
_WIDTH = 100


class Row(NamedTuple):
    """One figure, written out: its label, before, after, and how it changed."""

    label: str
    before: str
    after: str
    change: str


class Rivals(NamedTuple):
    """Column headings, and rows of a name and figures, written out."""

    headings: list[str]
    rows: list[tuple[str, list[str]]]


def table(record: Record) -> RenderableType:
    """The record as a rich renderable.

    Raises:
        RunError: a part of the record is of another kind than it should be.
    """
    check(record)
    parts: list[RenderableType] = [Text(title(record), style="bold")]
    parts += [Text(line, no_wrap=True, overflow="ignore") for line in _architecture(record)]
    figures = rows(record)
    if figures:
        shown = columns(record)
        cells = [[row.label, *(getattr(row, name) for name, _ in shown)] for row in figures]
        parts += [Text(), columns_of([heading for _, heading in shown], cells)]
    # A run with a before is told beside that; its baselines stand on the page.
    others = rivals(record)
    if others.rows and not record.get("before"):
        parts += [Text(), columns_of(others.headings, [[name, *cells] for name, cells in others.rows])]
    for one in fronts(record):
        unit = f", {one.unit}" if one.unit else ""
        cells = [[mark, number(cost), number(score)] for cost, score, mark in points(one)]
        parts += [Text(), columns_of([f"{label(one.cost)}{unit}", "score"], cells)]
        parts += [Text(f"  {len(one.cloud)} networks tried, {len(one.front)} on this front")]
    told = (limit_line(record), gap_line(record), frozen_line(record))
    lines = [line for line in told if line]
    lines += [f"ALARM: {alarm}" for alarm in record.get("alarms") or []]
    lines += [f"note: {note}" for note in notes(record)]
    if lines:
        parts += [Text(), *(Text(line) for line in lines)]
    return Group(*parts)


def plain(record: Record) -> str:
    """The record as plain text, for logs and files.

    Raises:
        RunError: a part of the record is of another kind than it should be.
    """
    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, color_system=None, force_terminal=False, highlight=False)
    # A string that is to be copied is not to be broken.
    console.print(table(record), crop=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def check(record: object) -> None:
    """Raises RunError, naming the part, where a record is not what a run writes."""
    if not isinstance(record, Mapping):
        raise RunError(f"a record is a JSON object, not {type(record).__name__}; run again to write it anew")
    wrong = [key for key in _MAPPINGS if not isinstance(record.get(key) or {}, Mapping)]
    wrong += [
        f"{key}.latency_ms"
        for key in ("before", "after")
        if isinstance(record.get(key), Mapping) and not _is_latency(record[key].get("latency_ms"))
    ]
    for key in _LISTS:
        part = record.get(key) or []
        of_mappings = key in _LISTS_OF_MAPPINGS
        if not isinstance(part, list) or (of_mappings and not all(isinstance(one, Mapping) for one in part)):
            wrong.append(key)
    if not isinstance(record.get("architecture_text") or "", str):
        wrong.append("architecture_text")
    if wrong:
        raise RunError(
            f"the record is damaged at {', '.join(wrong)}: allowed are JSON objects, lists of them for "
            f"{', '.join(_LISTS_OF_MAPPINGS)}, lists for notes and alarms, and a string for architecture_text; "
            f"run again to write it anew"
        )


def _architecture(record: Record) -> list[str]:
    """What was found: its string where there is one, else pick by pick."""
    string = str(record.get("architecture_text") or "").strip()
    if string:
        return ["", "architecture found:", *(f"  {line}" for line in string.splitlines())]
    found = picks(record)
    if not found:
        return []
    width = max(len(choice) for choice, _, _ in found[:_MOST_PICKS])
    lines = [
        f"  {choice:<{width}}   {pick}{f' ({weight})' if weight else ''}"
        for choice, pick, weight in found[:_MOST_PICKS]
    ]
    more = [f"  and {len(found) - len(lines)} more"] if len(found) > len(lines) else []
    return ["", "picks (weight):" if any(weight for _, _, weight in found) else "picks:", *lines, *more]


def columns_of(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for a terminal: names at the left, figures at the right."""
    grid = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    grid.add_column("")
    for heading in headings:
        grid.add_column(Text(heading), justify="right")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid


def _is_latency(part: object) -> bool:
    return part is None or (
        isinstance(part, Mapping) and all(isinstance(one, Mapping) for one in part.values() if one is not None)
    )


def title(record: Record) -> str:
    """The record's title, or its method's name."""
    return str(record.get("title") or record.get("method") or "archgrad run")


def columns(record: Record) -> list[tuple[str, str]]:
    """Which columns of `rows` the record fills, and their headings; a search has no before, and says "found"."""
    if record.get("before") and record.get("after"):
        return [(name, name) for name in ("before", "after", "change")]
    return [("before", "before")] if record.get("before") else [("after", "found")]


def rows(record: Record) -> list[Row]:
    """The figures of before and after, written out; latencies, one row a runtime, come last."""
    before, after = record.get("before") or {}, record.get("after") or {}
    result = []
    # Known figures first, in their order; latency_ms is no number and falls out.
    for key in {**_FIGURES, **before, **after}:
        if not (is_figure(before.get(key)) or is_figure(after.get(key))):
            continue
        one, other = before.get(key), after.get(key)
        change = _points(one, other) if key == "accuracy" else _ratio(one, other)
        result.append(Row(label(key), figure(key, one), figure(key, other), change))
    old, new = before.get("latency_ms") or {}, after.get("latency_ms") or {}
    for runtime in {**old, **new}:
        one, other = old.get(runtime) or {}, new.get(runtime) or {}
        change = _ratio(one.get("median_ms"), other.get("median_ms"))
        name = "ONNX" if runtime == "onnx" else runtime
        result.append(Row(f"latency, {name}", _timing(one), _timing(other), change))
    return result


def limit_line(record: Record) -> str:
    """The limit, what was reached, and whether that keeps it; empty without a limit."""
    limit = record.get("limit") or {}
    bound, reached = limit.get("bound"), limit.get("reached")
    if not is_number(bound):
        return ""
    name, unit = label(str(limit.get("cost", "cost"))), str(limit.get("unit", ""))
    unit = "" if unit == name else f" {unit}".rstrip()
    line = f"limit on {name}: at most {number(bound)}{unit}"
    if not is_number(reached):
        return line
    return f"{line}; reached {number(reached)}{unit} ({'kept' if reached <= bound else 'NOT KEPT'})"


def gap_line(record: Record) -> str:
    """What the jump from the supernet to the network found cost before that was trained; empty where not known."""
    jump = record.get("discretization") or {}
    gap, supernet, derived = (jump.get(name) for name in ("gap", "supernet", "derived"))
    if not (is_number(gap) and is_number(supernet) and is_number(derived)):
        return ""
    name = str(jump.get("score", "score"))
    size = f"{100 * gap:.2f} points of accuracy" if name == "accuracy" else f"{number(gap)} of {label(name)}"
    return (
        f"discretization gap: {size} (supernet {figure(name, supernet)}, the network found with its weights "
        f"{figure(name, derived)})"
    )


def rivals(record: Record) -> Rivals:
    """The network found first, then each baseline, with the figures that any baseline has."""
    baselines = record.get("baselines") or []
    keys = list({key: None for one in baselines for key, value in one.items() if is_figure(value)})
    after = record.get("after") or {}
    found = [{**after, "name": "this run"}] if any(is_figure(after.get(key)) for key in keys) else []
    rows = [(str(one.get("name", "")), [figure(key, one.get(key)) for key in keys]) for one in (*found, *baselines)]
    return Rivals([label(key) for key in keys], rows)


def picks(record: Record) -> list[tuple[str, str, str]]:
    """Choice, pick and weight, written out; the weight is empty where there is none."""
    result = []
    for one in record.get("picks") or []:
        pick, weight = one.get("pick"), one.get("weight")
        picked = ", ".join(map(value_text, pick)) if isinstance(pick, list) else value_text(pick)
        weighed = [f"{w:.3g}" if is_number(w) else "-" for w in (weight if isinstance(weight, list) else [weight])]
        result.append((value_text(one.get("choice")), picked, "" if weight is None else ", ".join(weighed)))
    return result


def frozen_line(record: Record) -> str:
    """How many layers kept their width because they could not be followed; empty where none."""
    frozen = record.get("frozen") or []
    if not frozen:
        return ""
    reasons = {str(one.get("reason", "")) for one in frozen} - {""}
    why = f" ({next(iter(reasons))})" if len(reasons) == 1 else f" ({len(reasons)} reasons)" if reasons else ""
    return f"frozen: {len(frozen)} {'layer' if len(frozen) == 1 else 'layers'}{why}"


def notes(record: Record) -> list[str]:
    """The record's notes, and one for each latency whose spread is above half of its median."""
    result = [str(note) for note in record.get("notes") or []]
    for when in ("before", "after"):
        for runtime, timing in ((record.get(when) or {}).get("latency_ms") or {}).items():
            figures = [(timing or {}).get(key) for key in ("low_ms", "median_ms", "high_ms")]
            low, median, high = (figure if is_number(figure) else math.nan for figure in figures)
            if high - low > _NOISY * median:
                result.append(
                    f"latency {when} ({runtime}) is noisy: {timing_text(low, high)} around "
                    f"{duration(median)}; measure again on an idle machine"
                )
    return result


def label(key: str) -> str:
    """What a figure is called in a table."""
    return _FIGURES[key][0] if key in _FIGURES else key.replace("_", " ")


def figure(key: str, value: object) -> str:
    """A figure written in its unit, or [mean, deviation] as mean ± deviation; "-" where it is neither."""
    if isinstance(value, list) and is_figure(value):
        return " ± ".join(figure(key, one) for one in value)
    if not is_number(value):
        return "-"
    write = _FIGURES[key][1] if key in _FIGURES else number
    return write(value) if math.isfinite(value) else "not finite"


def is_figure(value: object) -> bool:
    """Whether this is a number, or a mean and a deviation."""
    return is_number(value) or (isinstance(value, list) and len(value) == 2 and all(map(is_number, value)))


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is an int or a float; a truth value is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: float) -> str:
    """A figure, with a prefix from a hundred thousand on: 0.0123, 12,345, 123 k, 1.23 M."""
    if abs(value) >= 1e5:
        return _scaled(value, ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")))
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1e4 else f"{value:.4g}"


def size(value: float) -> str:
    """Bytes with a decimal prefix: 1.23 MB."""
    return _scaled(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))) or f"{value:.0f} B"


def percent(value: float) -> str:
    """A share as a percentage: 98.25 %."""
    return f"{100 * value:.2f} %"


def duration(value: float) -> str:
    """Milliseconds: 1.23 ms."""
    return f"{_three_digits(value)} ms"


def timing_text(low: float, high: float) -> str:
    """A range of milliseconds: 1.1 to 1.3."""
    return f"{_three_digits(low)} to {_three_digits(high)}"


def value_text(value: object) -> str:
    """Any value of a configuration: strings as they are, the rest as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    for step, prefix in steps:
        # What would be rounded up to the step belongs to it: 999,999 is 1 M.
        if abs(value) >= step * 0.9995:
            return f"{_three_digits(value / step)} {prefix}"
    return ""


def _points(before: object, after: object) -> str:
    if not (is_number(before) and is_number(after)) or not math.isfinite(after - before):
        return "-"
    return f"{100 * (after - before):+.2f} points"


def _ratio(before: object, after: object) -> str:
    if not (is_number(before) and is_number(after)) or not before or not math.isfinite(after / before):
        return "-"
    return f"x {after / before:.3g}"


def _timing(timing: Mapping[str, Any]) -> str:
    median, low, high = (timing.get(key) for key in ("median_ms", "low_ms", "high_ms"))
    if not is_number(median):
        return "-"
    text = duration(median)
    return f"{text} ({timing_text(low, high)})" if is_number(low) and is_number(high) else text


_FIGURES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "accuracy": ("accuracy", percent),
    "score": ("score", number),
    "loss": ("loss", number),
    "params": ("parameters", number),
    "macs": ("MACs", number),
    "size_bytes": ("size on disk", size),
}
