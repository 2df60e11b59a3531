"""A run's record as text: before, after and change, or what a search found beside its rivals; limit and notes.

A record is a plain dict, as in a run folder's record.json. Every part may be missing, and is then left out.
`score`, {"name", "higher_is_better"}, says by which figure networks are judged, and which way is better.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from archgrad.errors import RunError
from archgrad.report import numbers
from archgrad.report.charts import pareto

Record = Mapping[str, Any]

_MAPPINGS = (
    "settings",
    "run",
    "versions",
    "given",
    "before",
    "after",
    "limit",
    "data",
    "surrogate",
    "discretization",
    "control",
    "score",
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


def table(record: Record, *, notes_too: bool = True) -> RenderableType:
    """The record as a rich renderable; with its notes, which are for whoever ran it.

    Raises:
        RunError: a part of the record is of another kind than it should be.
    """
    check(record)
    parts: list[RenderableType] = [Text(title(record), style="bold")]
    parts += [Text(line) for line in [given_line(record)] if line]
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
    for front in pareto.fronts(record):
        unit = f", {front.unit}" if front.unit else ""
        cells = [[mark, numbers.number(cost), numbers.number(score)] for cost, score, mark in pareto.rows(front)]
        parts += [Text(), columns_of([f"{numbers.label(front.cost)}{unit}", front.score.label], cells)]
        parts += [Text(f"  {len(front.cloud)} networks tried, {len(front.front)} on this front")]
    sentences = (limit_line(record), gap_line(record), frozen_line(record))
    lines = [line for line in sentences if line]
    lines += [f"ALARM: {alarm}" for alarm in record.get("alarms") or []]
    lines += [f"note: {note}" for note in notes(record) if notes_too]
    if lines:
        parts += [Text(), *(Text(line) for line in lines)]
    return Group(*parts)


def plain(record: Record, *, notes_too: bool = True) -> str:
    """The record as plain text, for logs and files.

    Raises:
        RunError: a part of the record is of another kind than it should be.
    """
    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, color_system=None, force_terminal=False, highlight=False)
    # A string that is to be copied is not to be broken.
    console.print(table(record, notes_too=notes_too), crop=False)
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
    decided = picks(record)
    if not decided:
        return []
    width = max(len(choice) for choice, _, _ in decided[:_MOST_PICKS])
    lines = [
        f"  {choice:<{width}}   {pick}{f' ({weight})' if weight else ''}"
        for choice, pick, weight in decided[:_MOST_PICKS]
    ]
    more = [f"  and {len(decided) - len(lines)} more"] if len(decided) > len(lines) else []
    return ["", "picks (weight):" if any(weight for _, _, weight in decided) else "picks:", *lines, *more]


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
        isinstance(part, Mapping)
        and all(isinstance(timing, Mapping) for timing in part.values() if timing is not None)
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
    """The figures of before and after, written out: the score, other scores, costs, latencies by runtime."""
    before, after = record.get("before") or {}, record.get("after") or {}
    score = numbers.final_score(record)
    result = []
    # latency_ms is no number and falls out.
    for key in numbers.in_order((score.name, *before, *after)):
        old, new = before.get(key), after.get(key)
        if numbers.is_figure(old) or numbers.is_figure(new):
            change = numbers.change(key, old, new, score=score)
            result.append(Row(_label(key, score), numbers.figure(key, old), numbers.figure(key, new), change))
    timings = before.get("latency_ms") or {}, after.get("latency_ms") or {}
    for runtime in {**timings[0], **timings[1]}:
        old, new = (timing.get(runtime) or {} for timing in timings)
        change = numbers.ratio(old.get("median_ms"), new.get("median_ms"))
        name = "ONNX" if runtime == "onnx" else runtime
        result.append(Row(f"latency, {name}", _timing(old), _timing(new), change))
    return result


def int8_rows(record: Record) -> list[list[str]]:
    """Of the int8 file, where one was written, a row for each figure: name, float, int8; the layers left in float."""
    about = record.get("int8")
    if not isinstance(about, Mapping):
        return []
    score, result = str(about.get("score", "score")), list[list[str]]()
    forms: dict[str, tuple[str, Callable[[float], str]]] = {
        "test": (f"{numbers.label(score)}, test", lambda x: numbers.figure(score, x)),
        "valid": (f"{numbers.label(score)}, validation", lambda x: numbers.figure(score, x)),
        "latency_ms": (f"latency, {about.get('runtime', 'onnx')}", lambda x: f"{numbers.number(x)} ms"),
        "size_bytes": ("size of the file", lambda x: f"{x / 1024:,.1f} kB"),
    }
    for key, (name, form) in forms.items():
        both = about.get(key)
        if isinstance(both, Mapping) and all(numbers.is_number(both.get(kind)) for kind in ("float", "int8")):
            result.append([name, form(both["float"]), form(both["int8"])])
    layers = about.get("float_layers")
    if result and isinstance(layers, list):
        result.append(["layers left in float", "", ", ".join(map(str, layers)) or "none"])
    return result


def given_line(record: Record) -> str:
    """What the weights that were given score as they stand; empty where none were given."""
    given = record.get("given") or {}
    figures, score = given.get("figures") or {}, numbers.final_score(record)
    if not numbers.is_figure(figures.get(score.name)):
        return ""
    figure = f"{score.label} {numbers.figure(score.name, figures[score.name])}"
    part = {"valid": "validation"}.get(str(given.get("part")), str(given.get("part")))
    constants = given.get("normalization") or {}
    how = [
        f"{word} {', '.join(numbers.number(x) for x in constants[key] if numbers.is_number(x))}"
        for key, word in (("mean", "mean"), ("std", "deviation"))
        if isinstance(constants.get(key), list)
    ]
    inputs = f"; inputs normalized by {' and '.join(how)}" if how else ""
    return f"given weights, before anything was trained: {figure} on the {part} part{inputs}"


def limit_kept(record: Record) -> bool:
    """Whether no limit is broken."""
    limit = record.get("limit") or {}
    listed = (limit, *(limit.get("others") or []))
    pairs = [(one.get("reached"), one.get("bound")) for one in listed if isinstance(one, Mapping)]
    return not any(numbers.is_number(a) and numbers.is_number(b) and not a <= b for a, b in pairs)


def limit_line(record: Record) -> str:
    """The limits, what was reached, and whether that keeps them; empty without a limit."""
    limit = record.get("limit") or {}
    others = limit.get("others") or []
    lines = [_limit(one) for one in (limit, *others) if isinstance(one, Mapping)]
    return "; ".join(filter(None, [*lines, _rounding(record)]))


def _rounding(record: Record) -> str:
    """What widths are multiples of, where that was measured."""
    measured = record.get("rounding")
    if not isinstance(measured, Mapping) or not numbers.is_number(measured.get("round_to")):
        return ""
    return f"widths in multiples of {measured['round_to']}, measured in {measured.get('runtime')}"


def _limit(limit: Mapping[str, Any]) -> str:
    bound, reached = limit.get("bound"), limit.get("reached")
    if not numbers.is_number(bound):
        return ""
    name, unit = numbers.label(str(limit.get("cost", "cost"))), str(limit.get("unit", ""))
    unit = "" if unit == name else f" {unit}".rstrip()
    line = f"limit on {name}: at most {numbers.number(bound)}{unit}"
    if not numbers.is_number(reached):
        return line
    return f"{line}; reached {numbers.number(reached)}{unit} ({'kept' if reached <= bound else 'NOT KEPT'})"


def gap_line(record: Record) -> str:
    """How much worse the network found is than the supernet, before it is trained; empty where not known."""
    jump = record.get("discretization") or {}
    supernet, derived = jump.get("supernet"), jump.get("derived")
    if not (numbers.is_number(supernet) and numbers.is_number(derived)):
        return ""
    score = numbers.final_score(record)
    name = str(jump.get("score") or score.name)
    gap = score.gain(derived, supernet) if name == score.name else supernet - derived
    size = (
        f"{100 * gap:.2f} points of accuracy"
        if name == "accuracy"
        else f"{numbers.number(gap)} of {_label(name, score)}"
    )
    return (
        f"discretization gap: {size} (supernet {numbers.figure(name, supernet)}, the network found with its weights "
        f"{numbers.figure(name, derived)})"
    )


def _label(name: str, score: numbers.ScoreOfRecord) -> str:
    return score.label if name == score.name else numbers.label(name)


def rivals(record: Record) -> Rivals:
    """The network found first, then each baseline, with the figures that any baseline has."""
    baselines = record.get("baselines") or []
    keys = list({key: None for row in baselines for key, value in row.items() if numbers.is_figure(value)})
    after = record.get("after") or {}
    this_run = [{**after, "name": "this run"}] if any(numbers.is_figure(after.get(key)) for key in keys) else []
    rows = [
        (str(row.get("name", "")), [numbers.figure(key, row.get(key)) for key in keys])
        for row in (*this_run, *baselines)
    ]
    score = numbers.final_score(record)
    return Rivals([_label(key, score) for key in keys], rows)


def picks(record: Record) -> list[tuple[str, str, str]]:
    """Choice, pick and weight, written out; the weight is empty where there is none."""
    result = []
    for pick_record in record.get("picks") or []:
        pick, weight = pick_record.get("pick"), pick_record.get("weight")
        picked = ", ".join(map(numbers.value_text, pick)) if isinstance(pick, list) else numbers.value_text(pick)
        weighed = [
            f"{w:.3g}" if numbers.is_number(w) else "-" for w in (weight if isinstance(weight, list) else [weight])
        ]
        result.append(
            (numbers.value_text(pick_record.get("choice")), picked, "" if weight is None else ", ".join(weighed))
        )
    return result


def frozen_line(record: Record) -> str:
    """How many layers kept their width because they could not be followed; empty where none."""
    frozen = record.get("frozen") or []
    if not frozen:
        return ""
    reasons = {str(layer.get("reason", "")) for layer in frozen} - {""}
    why = f" ({next(iter(reasons))})" if len(reasons) == 1 else f" ({len(reasons)} reasons)" if reasons else ""
    return f"frozen: {numbers.counted(len(frozen), 'layer')}{why}"


def notes(record: Record) -> list[str]:
    """The record's notes, and one for each latency whose spread is above half of its median."""
    result = [str(note) for note in record.get("notes") or []]
    for when in ("before", "after"):
        for runtime, timing in ((record.get(when) or {}).get("latency_ms") or {}).items():
            figures = [(timing or {}).get(key) for key in ("low_ms", "median_ms", "high_ms")]
            low, median, high = (each if numbers.is_number(each) else math.nan for each in figures)
            if high - low > _NOISY * median:
                result.append(
                    f"latency {when} ({runtime}) is noisy: {numbers.timing_text(low, high)} around "
                    f"{numbers.duration(median)}; measure again on an idle machine"
                )
    return result


def _timing(timing: Mapping[str, Any]) -> str:
    median, low, high = (timing.get(key) for key in ("median_ms", "low_ms", "high_ms"))
    if not numbers.is_number(median):
        return "-"
    text = numbers.duration(median)
    if numbers.is_number(low) and numbers.is_number(high):
        return f"{text} ({numbers.timing_text(low, high)})"
    return text
