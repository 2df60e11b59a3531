"""Pictures of drawn histories show their records where they were made: each point, border of phases and axis."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import Phase, given, settings, strategies as st

from archgrad.report import numbers
from archgrad.report.charts import comparison
from archgrad.report.charts.curves import charts
from archgrad.report.charts.mixing_weights import weights
from archgrad.report.charts.steps import LARGEST, curve, stretch, timeline

FIGURES = ("loss", "valid_loss", "accuracy", "flips")
VALUES = st.one_of(
    st.floats(0.001, 10.0),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([math.nan, math.inf, 1e308, -1e308, 1e150, -1e150, 1e-308, 0.0, None, True, "x"]),
)


class Made(NamedTuple):
    """A history, where each of its records stands, and where its phases begin and end."""

    history: list[dict[str, Any]]
    places: list[float]
    borders: list[tuple[str, float, float]]


@st.composite
def histories(draw: st.DrawFn) -> Made:
    """As runs write them: phases that log every so many steps and the last one, records between, the end cut off."""
    made = Made([], [], [])

    def add(phase: str | None, step: int | None, place: float) -> None:
        some = draw(st.lists(st.sampled_from(FIGURES), max_size=3, unique=True))
        figures = {name: draw(VALUES) for name in some}
        made.history.append({"phase": phase, "step": step, "time": place, **figures})
        made.places.append(place)

    start = 0
    for number in range(draw(st.integers(1, 4))):
        for _ in range(draw(st.integers(0, 2))):
            add(None, None, start)
        steps, every = draw(st.integers(1, 30)), draw(st.integers(1, 9))
        name = f"{draw(st.sampled_from(['weights', 'gates']))}{number}"
        logged = sorted({*range(0, steps, every), steps - 1})
        for step in logged:
            add(name, step, start + step)
        made.borders.append((name, start, start + steps))
        start += steps
        if draw(st.booleans()):
            add(None, steps, start)  # what is logged after a loop may say how many steps it had
    return made


def _drawable(value: object) -> bool:
    return isinstance(value, float) and abs(value) <= LARGEST  # not NaN either


@settings(max_examples=150, deadline=None)
@given(made=histories())
def test_records_stand_where_they_were_made(made: Made) -> None:
    line = timeline(made.history)
    assert line.places == made.places and line.unit == "step"
    assert [tuple(phase) for phase in line.phases] == made.borders
    for name in FIGURES:
        drawn = curve(made.history, line, name)
        rows = list(zip(made.history, made.places, strict=True))
        assert list(zip(drawn.x, drawn.y, strict=True)) == [
            (place, row[name]) for row, place in rows if _drawable(row.get(name))
        ]
        assert drawn.left_out == sum(name in row and not _drawable(row[name]) for row in made.history)


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(made=histories())
def test_pictures_show_their_records(made: Made) -> None:
    for chart in charts(made.history):
        points = [(spot, chart.lines[spot.line]) for spot in chart.spots]
        expected, drawn = [], []
        for name in dict.fromkeys(name for _, name in points):
            spots = [spot for spot, of in points if of == name]
            records = [
                (place, row[name.replace(" ", "_")])
                for row, place in zip(made.history, made.places, strict=True)
                if _drawable(row.get(name.replace(" ", "_")))
            ]
            written = [numbers.figure(name.replace(" ", "_"), y + 0.0) for _, y in records]
            assert [spot.text.rpartition(f": {name} ")[2] for spot in spots] == written
            order = np.argsort([y for _, y in records])
            assert np.all(np.diff([spots[k].y for k in order]) <= 0.2), "what is higher is drawn higher"
            expected += [x for x, _ in records]
            drawn += [spot.x for spot in spots]
        if len(set(expected)) > 1:
            design = np.stack([expected, np.ones(len(expected))], axis=1)
            (scale, origin), *_ = np.linalg.lstsq(design, np.array(drawn), rcond=None)
            np.testing.assert_allclose(scale * np.array(expected) + origin, drawn, atol=0.2)
            # The axis holds whole phases: those with points, and none before or after them.
            low, high = min(expected), max(expected)
            held = [b for b in made.borders if b[1] <= high and low < b[2]] or [("", low, high)]
            width = scale * 1.04 * (max(high, held[-1][2]) - min(low, held[0][1]))
            assert 200 < width < 360, "points fill the width of the picture"


def test_the_control_fails_where_records_between_phases_count_as_steps() -> None:
    """What the pictures showed before: a record without a step was given its number among the records."""
    history = [{"phase": "a", "step": k, "loss": 1.0} for k in range(240)]
    history += [{"phase": None, "step": None, "derived_loss": 2.0}]
    history += [{"phase": "b", "step": k, "loss": 1.0} for k in range(160)]
    line = timeline(history)
    assert [tuple(phase) for phase in line.phases] == [("a", 0, 240), ("b", 240, 400)]
    assert line.places[240] == 240 and line.when[240] == "after a" and line.places[-1] == 399


def test_a_history_without_steps_counts_its_records() -> None:
    line = timeline([{"loss": 3.0}, {"phase": "a", "step": "x", "loss": 2.0}])
    assert line.places == [0.0, 1.0] and line.unit == "record" and line.when[1] == "record 2"
    assert timeline([]).places == []


def test_all_pictures_of_one_history_share_their_axis() -> None:
    history = [
        {"phase": phase, "step": k, "loss": 1.0, "lr": 0.1, **({"open_gates": 5.0} if phase == "b" else {})}
        for phase in "abc"
        for k in range(10)
    ]
    line = timeline(history)
    ends = {name: stretch(line, [curve(history, line, name)]) for name in ("loss", "lr", "open_gates")}
    assert ends == {"loss": (0, 30), "lr": (0, 30), "open_gates": (10, 20)}


@pytest.mark.parametrize("steps", [1, 2, 60])
def test_weights_and_runs_side_by_side_stand_on_the_same_steps(steps: int) -> None:
    history: list[dict[str, Any]] = [{"phase": None, "step": None, "predicted_peak_bytes": 5}]
    for phase in ("warm", "search"):
        history += [{"phase": phase, "step": k, "loss": 1.0, "weight/a/conv": 0.5} for k in range(steps)]
        history += [{"phase": None, "step": None, "loss": 1.0}]
    (small,) = weights(history).charts
    # Of 30 to 262 pixels, as wide as the picture of the weights is between its margins.
    last = 30 + (small.spots[-1].x - 30)
    assert last == pytest.approx(262.0 if steps * 2 > 1 else 146.0)
    (chart,) = comparison.curves([("one", {}, history), ("two", {}, history)])
    assert chart.spots[-1].text == "two: after search: loss 1"
    assert re.findall(r">(\d+)</text>", chart.svg)
