"""Curves: which figures share a chart, where stages begin, what is averaged, that the page stays clean."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import matplotlib as mpl

from archgrad.report import pictures
from archgrad.report.pictures import charts


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


def test_svg_is_sound_and_coloured_by_the_page() -> None:
    settings = dict(mpl.rcParams)
    for chart in charts(_history(), {"cost": "macs", "bound": 5e6}):
        ElementTree.fromstring(chart.svg)
        assert "http" not in chart.svg and "#0" not in chart.svg and "font-family" not in chart.svg
        assert "var(--line1)" in chart.svg and ">step</text>" in chart.svg
        assert ("var(--limit)" in chart.svg) == chart.heading.endswith("limit")
    assert dict(mpl.rcParams) == settings


def test_same_history_same_bytes() -> None:
    assert charts(_history()[:3]) == charts(_history()[:3])


def test_stages_that_count_anew_are_laid_end_to_end() -> None:
    history = _history()
    positions = pictures._positions(history)
    assert positions == [float(k) for k in range(1, 21)]
    assert pictures._phase_spans(history, positions) == [("weights", 1.0, 10.0), ("gates", 11.0, 20.0)]
    alternating = [{"phase": "ab"[k % 2], "step": k // 2} for k in range(60)]
    positions = pictures._positions(alternating)
    assert positions == [float(k // 2) for k in range(60)]
    assert pictures._phase_spans(alternating, positions) == []


def test_long_histories_are_averaged() -> None:
    history = [{"step": k, "loss": float(k % 2)} for k in range(1000)]
    curve = pictures._curve(history, [float(k) for k in range(1000)], "loss")
    assert curve.per_point == 3 and len(curve.x) == 334
    assert curve.y[:2] == [1 / 3, 2 / 3] and curve.x[0] == 1.0
    assert charts(history)[0].caption == "Each point is the mean of 3 records."


def test_values_that_are_no_figures_are_left_out() -> None:
    history = [{"step": 1, "loss": float("nan"), "best": True, "arch": "a|b"}, {"step": 2, "loss": 1.0}]
    assert [chart.heading for chart in charts(history)] == ["Loss"]


def test_names_cannot_break_out_of_the_picture() -> None:
    history = [{"phase": "<b>$x$", "step": k, "a_loss": 1.0, "<i>$y$_loss": 2.0 * k + 1} for k in range(30)]
    svg = charts(history)[0].svg
    assert "<b>" not in svg and "<i>" not in svg
    assert ">&lt;b&gt;$x$</text>" in svg and ">&lt;i&gt;$y$ loss</text>" in svg


def test_wide_ranges_are_drawn_on_a_logarithmic_axis() -> None:
    svg = charts([{"step": k, "scale": 10.0**k} for k in range(5)])[0].svg
    assert ">10k</text>" in svg and "$" not in svg
