"""Curves: which figures share a chart, where stages begin, what is averaged, that the page stays clean."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import matplotlib as mpl
import pytest

from archgrad.errors import RunError
from archgrad.report.charts.curves import charts, scatter
from archgrad.report.charts.steps import curve, timeline


def _history() -> list[dict[str, Any]]:
    weights = [{"phase": "weights", "step": k, "time": float(k), "loss": 2.0 / k} for k in range(1, 11)]
    gates: list[dict[str, Any]] = [
        {
            "phase": "gates",
            "step": k,
            "loss": 0.1,
            "valid_loss": 0.2,
            "expected_macs": 9e6 - k,
            "flips": k % 3,
        }
        for k in range(1, 11)
    ]
    gates[-1]["accuracy"] = 0.9
    return weights + gates


def test_headings_and_order() -> None:
    limit = {"cost": "macs", "bound": 5e6}
    headings = [chart.heading for chart in charts(_history(), limit)]
    assert headings == ["Loss", "Accuracy", "Expected cost against the limit", "Gates flipping per epoch"]
    assert "Expected macs" in [chart.heading for chart in charts(_history())]
    assert charts([]) == []


def test_figures_of_a_search() -> None:
    row = {"expected_latency": 4.0, "cost": 3.0, "entropy": 2.0, "temperature": 1.0, "weight/a/b": 0.5}
    history = [{"phase": "search", "step": k, **row} for k in range(4)]
    found = {chart.heading: chart.svg for chart in charts(history, {"cost": "latency", "bound": 5.0})}
    against = ["Expected cost against the limit", "Cost against the limit"]
    assert list(found) == [*against, "Entropy of the choices", "Temperature"]
    assert [heading for heading, drawn in found.items() if "var(--bound)" in drawn] == against
    unlimited = [chart.heading for chart in charts(history)]
    assert unlimited == ["Entropy of the choices", "Temperature", "Expected latency", "Cost"]


def test_a_surrogate_beside_what_was_measured() -> None:
    part = {"predicted": [1.0, 2.5, float("nan")], "measured": [1.1, 2.4, 3.0], "rmse": 0.1234, "unit": "ms"}
    chart = scatter(part)
    assert chart is not None
    assert chart.caption == "2 networks, rmse 0.123 ms. On the dashed line the surrogate is right."
    ElementTree.fromstring(chart.svg)
    assert ">measured, ms</text>" in chart.svg and ">predicted, ms</text>" in chart.svg
    assert chart.svg.count("<use ") >= 2 and "http" not in chart.svg
    assert scatter({}) is None and scatter({"predicted": ["x"], "measured": [1.0]}) is None
    one = scatter({"predicted": [2.0], "measured": [2.0], "rank_correlation": 1})
    assert one is not None and one.caption.startswith("1 network, rank correlation 1.")


@pytest.mark.parametrize("part", [{"predicted": [1.0]}, {"predicted": [1.0], "measured": 3}, {"measured": None}])
def test_a_damaged_surrogate_is_named(part: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"damaged at surrogate: .* two lists"):
        scatter(part)


def test_svg_is_sound_and_colored_by_the_page() -> None:
    settings = dict(mpl.rcParams)
    for chart in charts(_history(), {"cost": "macs", "bound": 5e6}):
        ElementTree.fromstring(chart.svg)
        assert "http" not in chart.svg and "#0" not in chart.svg and "font-family" not in chart.svg
        assert "var(--line1)" in chart.svg and ">step</text>" in chart.svg
        assert ("var(--bound)" in chart.svg) == chart.heading.endswith("limit")
    assert dict(mpl.rcParams) == settings


def test_same_history_same_bytes() -> None:
    assert charts(_history()[:3]) == charts(_history()[:3])


def test_stages_that_count_anew_are_laid_end_to_end() -> None:
    line = timeline(_history())
    assert line.places == [*map(float, range(1, 11)), *map(float, range(12, 22))]
    assert [tuple(phase) for phase in line.phases] == [("weights", 0.0, 11.0), ("gates", 11.0, 22.0)]
    anew = timeline([{"step": k % 5, "loss": 1.0} for k in range(10)])
    assert anew.places == [float(k) for k in range(10)]


def test_many_phases_are_not_marked() -> None:
    history = [{"phase": f"r{k}", "step": step, "loss": 1.0} for k in range(13) for step in range(3)]
    assert ">r3<" in charts(history[:36])[0].svg and ">r3<" not in charts(history)[0].svg


def test_long_histories_are_averaged() -> None:
    history = [{"step": k, "loss": float(k % 2)} for k in range(1000)]
    drawn = curve(history, timeline(history), "loss")
    assert drawn.per_point == 3 and len(drawn.x) == 334
    assert drawn.y[:2] == [1 / 3, 2 / 3] and drawn.x[0] == 1.0
    assert charts(history)[0].caption == "Each point is the mean of up to 3 records."


def test_values_that_are_no_figures_are_left_out() -> None:
    history = [{"step": 1, "loss": float("nan"), "best": True, "arch": "a|b"}, {"step": 2, "loss": 1.0}]
    (chart,) = charts(history)
    assert chart.heading == "Loss" and chart.caption == "1 figure that is not finite is left out."


def test_names_cannot_break_out_of_the_picture() -> None:
    history = [{"phase": "<b>$x$", "step": k, "a_loss": 1.0, "<i>$y$_loss": 2.0 * k + 1} for k in range(30)]
    svg = charts(history)[0].svg
    assert "<b>" not in svg and "<i>" not in svg
    assert ">&lt;b&gt;$x$</text>" in svg and ">&lt;i&gt;$y$ loss</text>" in svg


def test_wide_ranges_are_drawn_on_a_logarithmic_axis() -> None:
    svg = charts([{"step": k, "scale": 10.0**k} for k in range(5)])[0].svg
    assert ">10k</text>" in svg and "$" not in svg
