"""A run's record as text: before, after and change, with the limit and the notes.

A record is a plain dict, as in a run folder's record.json. Every part may be missing, and is then left out.
Figures of other names than those in `_FIGURES` are shown under their own.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeGuard

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from archgrad.errors import RunError

Record = Mapping[str, Any]

_MAPPINGS = ("settings", "run", "versions", "before", "after", "limit", "data")
_LISTS_OF_MAPPINGS = ("layers", "frozen", "baselines")
_NOISY = 0.5
_WIDTH = 100


class Row(NamedTuple):
    """One figure, written out: its label, before, after, and how it changed."""

    label: str
    before: str
    after: str
    change: str


def table(record: Record) -> RenderableType:
    """The record as a rich renderable.

    Raises:
        RunError: a part of the record is of another kind than it should be.
    """
    check(record)
    parts: list[RenderableType] = [Text(title(record), style="bold")]
    figures = rows(record)
    if figures:
        grid = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
        both = bool(record.get("before")) and bool(record.get("after"))
        grid.add_column("")
        for heading in ("before", "after", "change"):
            grid.add_column(heading if both or record.get(heading) else "", justify="right")
        for row in figures:
            grid.add_row(*(Text(cell) for cell in row))
        parts += [Text(), grid]
    lines = [line for line in (limit_line(record), frozen_line(record)) if line]
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
    console.print(table(record))
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
    for key in (*_LISTS_OF_MAPPINGS, "notes"):
        part = record.get(key) or []
        if not isinstance(part, list) or (key != "notes" and not all(isinstance(one, Mapping) for one in part)):
            wrong.append(key)
    if wrong:
        raise RunError(
            f"the record is damaged at {', '.join(wrong)}: allowed are JSON objects, and lists of them for "
            f"{', '.join(_LISTS_OF_MAPPINGS)}; run again to write it anew"
        )


def _is_latency(part: object) -> bool:
    return part is None or (
        isinstance(part, Mapping) and all(isinstance(one, Mapping) for one in part.values() if one is not None)
    )


def title(record: Record) -> str:
    """The record's title, or its method's name."""
    return str(record.get("title") or record.get("method") or "archgrad run")


def rows(record: Record) -> list[Row]:
    """The figures of before and after, written out; latencies, one row a runtime, come last."""
    before, after = record.get("before") or {}, record.get("after") or {}
    result = []
    # Known figures first, in their order; latency_ms is no number and falls out.
    for key in {**_FIGURES, **before, **after}:
        if not (is_number(before.get(key)) or is_number(after.get(key))):
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
    """A figure written in its unit; "-" where it is no number."""
    if not is_number(value):
        return "-"
    write = _FIGURES[key][1] if key in _FIGURES else number
    return write(value) if math.isfinite(value) else "not finite"


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
    "loss": ("loss", number),
    "params": ("parameters", number),
    "macs": ("MACs", number),
    "size_bytes": ("size on disk", size),
}
