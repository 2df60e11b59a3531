"""The before and after table, its limit line and its notes."""

from __future__ import annotations

from typing import Any

import pytest

from archgrad.errors import RunError
from archgrad.report import numbers, text

RECORD: dict[str, Any] = {
    "method": "dnal",
    "title": "MyCNN slimmed by DNAL",
    "before": {
        "accuracy": 0.98,
        "params": 1_230_000,
        "macs": 45_600,
        "size_bytes": 4_940_000,
        "latency_ms": {"eager": {"median_ms": 3.2, "low_ms": 3.0, "high_ms": 3.9}},
    },
    "after": {
        "accuracy": 0.9725,
        "params": 307_500,
        "macs": 22_800,
        "size_bytes": 999_999,
        "latency_ms": {
            "eager": {"median_ms": 1.6, "low_ms": 1.5, "high_ms": 2.6},
            "onnx": {"median_ms": 0.5, "low_ms": 0.4, "high_ms": 0.6},
        },
    },
    "limit": {"cost": "macs", "unit": "MACs", "bound": 23_000, "reached": 22_800},
    "frozen": [{"name": "head", "reason": "its width is the classes"}],
    "notes": ["rounded to multiples of 8"],
}


def test_rows_by_hand() -> None:
    assert [tuple(row) for row in text.rows(RECORD)] == [
        ("accuracy", "98.00 %", "97.25 %", "-0.75 points"),
        ("parameters", "1.23 M", "308 k", "x 0.25"),
        ("MACs", "45,600", "22,800", "x 0.5"),
        ("size on disk", "4.94 MB", "1.00 MB", "x 0.202"),
        ("latency, eager", "3.20 ms (3.00 to 3.90)", "1.60 ms (1.50 to 2.60)", "x 0.5"),
        ("latency, ONNX", "-", "0.500 ms (0.400 to 0.600)", "-"),
    ]


def test_plain_is_ascii_with_limit_frozen_and_notes() -> None:
    shown = text.plain(RECORD)
    assert shown.isascii() and "\x1b" not in shown
    assert shown.startswith("MyCNN slimmed by DNAL\n")
    assert "limit on MACs: at most 23,000; reached 22,800 (kept)" in shown
    assert "frozen: 1 layer (its width is the classes)" in shown
    assert "note: rounded to multiples of 8" in shown
    assert "latency after (eager) is noisy" in shown and "latency before" not in shown


def test_a_broken_limit_is_said_out_loud() -> None:
    limit = {"cost": "latency", "unit": "ms", "bound": 4.0, "reached": 4.2}
    line = text.limit_line({"limit": limit})
    assert line == "limit on latency: at most 4 ms; reached 4.2 ms (NOT KEPT)"


def test_figures_of_other_names_and_odd_values() -> None:
    rows = text.rows(
        {
            "before": {"energy_mj": 2.5, "loss": float("nan")},
            "after": {"energy_mj": 1, "loss": 0.5, "tag": "x"},
        }
    )
    assert [tuple(row) for row in rows] == [
        ("loss", "not finite", "0.5", "-"),
        ("energy", "2.50 mJ", "1.00 mJ", "x 0.4"),
    ]


SEARCH: dict[str, Any] = {
    "title": "Cell found",
    "after": {"accuracy": 0.9, "macs": 4_000, "latency_ms": {"eager": {"median_ms": 3.9}}},
    "limit": {"cost": "latency", "unit": "ms", "bound": 4.0, "reached": 3.9},
    "baselines": [{"name": "random search", "accuracy": 0.88, "kept": True}, {"name": "largest [b]", "macs": 9_000}],
    "architecture_text": "|" + "nor_conv_3x3~0|" * 12,
    "picks": [{"choice": "edge", "pick": "conv"}],
    "alarms": ["skip connections everywhere"],
    "notes": ["a note"],
}


def test_a_search_is_told_without_a_before() -> None:
    shown = text.plain(SEARCH)
    lines = shown.splitlines()
    assert "architecture found:" in lines and f"  {SEARCH['architecture_text']}" in lines
    tables = [line.split() for line in lines]
    assert (
        ["found"] in tables and ["accuracy", "90.00", "%"] in tables and ["latency,", "eager", "3.90", "ms"] in tables
    )
    assert "before" not in shown and "change" not in shown and "edge" not in shown
    assert ["accuracy", "MACs"] in tables and ["this", "run", "90.00", "%", "4,000"] in tables
    assert ["random", "search", "88.00", "%", "-"] in tables and ["largest", "[b]", "-", "9,000"] in tables
    assert "limit on latency: at most 4 ms; reached 3.9 ms (kept)" in lines
    assert lines.index("ALARM: skip connections everywhere") < lines.index("note: a note")


def test_beside_a_before_the_text_leaves_the_baselines_to_the_page() -> None:
    assert "random search" not in text.plain({**SEARCH, "before": {"accuracy": 0.9}})
    assert text.columns({"before": {"macs": 1}}) == [("before", "before")]


def test_picks_stand_in_for_a_string() -> None:
    picks: list[Any] = [
        {"choice": "op", "pick": "conv", "weight": 0.5},
        {"choice": "inputs", "pick": [0, 2], "weight": [0.25, None]},
        {"choice": "gate", "pick": 3},
        {},
    ]
    assert text.picks({"picks": picks}) == [
        ("op", "conv", "0.5"), ("inputs", "0, 2", "0.25, -"), ("gate", "3", ""), ("null", "null", "")
    ]  # fmt: skip
    lines = text.plain({"picks": picks}).splitlines()
    assert "picks (weight):" in lines and "  inputs   0, 2 (0.25, -)" in lines and "  gate     3" in lines
    assert "  and 60 more" in text.plain({"picks": picks * 25}).splitlines()


@pytest.mark.parametrize("record", [{}, {"method": "freenas", "before": None, "limit": None, "notes": None}])
def test_an_almost_empty_record(record: dict[str, Any]) -> None:
    assert text.plain(record).strip() in ("archgrad run", "freenas")


def test_markup_in_names_is_not_obeyed() -> None:
    assert "[red]x[/red]" in text.plain({"title": "[red]x[/red]", "notes": ["[/oops]"]})


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ([], "not list"),
        ({"before": 3}, "before"),
        ({"layers": [1]}, "layers"),
        ({"notes": "one"}, "notes"),
        ({"graphs": [1]}, "graphs"),
        ({"picks": {"a": 1}}, "picks"),
        ({"alarms": "one"}, "alarms"),
        ({"surrogate": [1]}, "surrogate"),
        ({"architecture_text": ["x"]}, "architecture_text"),
        ({"after": {"latency_ms": {"eager": 1.0}}}, "after.latency_ms"),
    ],
)
def test_damage_is_named(record: Any, part: str) -> None:
    with pytest.raises(RunError, match=part):
        text.table(record)


def test_a_mean_and_a_deviation_are_one_figure() -> None:
    record = {"after": {"5 shots": [0.5, 0.02]}, "baselines": [{"name": "rival", "5 shots": [0.25, 0.1]}]}
    shown = text.plain(record)
    assert "0.5 ± 0.02" in shown and "0.25 ± 0.1" in shown
    assert numbers.figure("5 shots", [0.5, "much"]) == numbers.figure("5 shots", [1.0]) == "-"
