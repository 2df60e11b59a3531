"""The axis of steps: where each record of a history stands on it, and the curve that a figure makes over it.

Phases are laid end to end. Step k of a phase stands k after the phase's beginning, and a phase begins one after the
last step that was logged of the one before. What is logged between phases has no step of its own, and stands at the
end of the phase before. A history without any step counts its records.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

History = Sequence[Mapping[str, Any]]

LARGEST = 1e150  # what is larger cannot be drawn: sums of it are infinite
_LATEST = 1e15  # steps beyond are no steps
_MOST_POINTS = 400


class Phase(NamedTuple):
    """A phase on the axis: where it begins, and where the next one does."""

    name: str
    start: float
    end: float


class Timeline(NamedTuple):
    """Where the records of a history stand.

    Attributes:
        places: of each record, on the axis.
        when: of each record, in words.
        owners: of each record, which of `phases` it belongs to; -1: none.
        phases: by their order.
        unit: what the axis counts, "step" or "record".
    """

    places: list[float]
    when: list[str]
    owners: list[int]
    phases: list[Phase]
    unit: str


@dataclass(frozen=True)
class Curve:
    """One figure over the steps; each point is the mean of up to `per_point` records, made when `at` says.

    `left_out` counts the records whose figure is no number that can be drawn.
    """

    name: str
    x: list[float]
    y: list[float]
    per_point: int
    at: list[str]
    left_out: int = 0


def is_finite(value: object) -> TypeGuard[float]:
    """Whether this is a number that can be drawn: not NaN, infinite, or so large that sums of it are."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def timeline(history: History) -> Timeline:
    """The axis of steps of a history of records `{"phase", "step", ...}`, each of which may lack either."""
    if not any(_step(row) is not None for row in history):
        places = [float(k) for k in range(len(history))]
        return Timeline(places, [f"record {k + 1:,}" for k in range(len(history))], [-1] * len(places), [], "record")
    line = Timeline([], [], [], [], "step")
    start, last, current = 0.0, -1.0, ""
    for row in history:
        step, name = _step(row), str(row.get("phase") or "")
        if step is not None and (step < last or (last >= 0 and name not in ("", current))):
            start, last, current = start + last + 1, -1.0, ""
        if step is not None and (name or not current):
            # What is logged after a loop may count its steps, and is no step of it.
            last, current = step, name
            _extend(line.phases, Phase(name, start, start + last + 1))
        line.places.append(start + (last + 1 if step is None else step))
        line.when.append(_when(step, name or current))
        line.owners.append(len(line.phases) - 1)
    return line


def _extend(phases: list[Phase], phase: Phase) -> None:
    if phases and phases[-1].start == phase.start:
        phases[-1] = phase
    else:
        phases.append(phase)


def _step(row: Mapping[str, Any]) -> float | None:
    step = row.get("step")
    return float(step) if is_finite(step) and 0 <= step <= _LATEST else None


def _when(step: float | None, phase: str) -> str:
    if step is None:
        return f"after {phase}" if phase else "before the first step"
    return f"{phase}, step {step:,.0f}" if phase else f"step {step:,.0f}"


def curve(history: History, line: Timeline, name: str) -> Curve:
    """The finite values of one figure, averaged to about 400 points, never over the border of two phases."""
    given = [k for k, row in enumerate(history) if name in row]
    drawn = [k for k in given if is_finite(history[k][name])]
    per_point = max(1, math.ceil(len(drawn) / _MOST_POINTS))
    parts = [list(members) for _, members in itertools.groupby(drawn, lambda k: line.owners[k])]
    chunks = [part[start : start + per_point] for part in parts for start in range(0, len(part), per_point)]
    x = [sum(line.places[k] for k in chunk) / len(chunk) for chunk in chunks]
    y = [sum(float(history[k][name]) for k in chunk) / len(chunk) for chunk in chunks]
    at = [_between(line.when[chunk[0]], line.when[chunk[-1]]) for chunk in chunks]
    return Curve(name, x, y, per_point, at, len(given) - len(drawn))


def _between(first: str, last: str) -> str:
    """One time in words, or from one to another; "a, step 2" and "a, step 4" are "a, steps 2 to 4"."""
    if first == last:
        return first
    start, end = first.rpartition("step "), last.rpartition("step ")
    if start[0] == end[0] and start[1] and end[1]:
        return f"{start[0]}steps {start[2]} to {end[2]}"
    return f"{first} to {last}"


def stretch(line: Timeline, curves: Sequence[Curve]) -> tuple[float, float]:
    """The part of the axis that pictures of these curves show: all of the phases that they have points in.

    So pictures of the same phases share their axis, and none shows a phase before or after its points.
    """
    places = [x for one in curves for x in one.x]
    low, high = min(places), max(places)
    touched = [phase for phase in line.phases if phase.start <= high and low < phase.end]
    if touched:
        low, high = min(low, touched[0].start), max(high, touched[-1].end)
    return (low, high) if low < high else (low - 0.5, high + 0.5)
