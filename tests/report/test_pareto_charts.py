"""Fronts in text and picture, from a record alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from archgrad.errors import RunError
from archgrad.report import page
from archgrad.report.charts.pareto import charts, fronts, rows
from archgrad.report.text import plain

PART = {"cost": "lat_ms_x", "unit": "ms", "costs": [5.0, 3.0, 4.0, 9.0], "scores": [90.0, 80.0, 70.0, 90.0],
        "front": [0, 1], "found": 0}  # fmt: skip


def test_the_front_is_told_by_rising_cost_and_the_found_one_marked() -> None:
    (one,) = fronts({"fronts": [PART]})
    assert rows(one) == [(3.0, 80.0, ""), (5.0, 90.0, "found")]
    text = plain({"method": "monas", "fronts": [PART]})
    assert "lat ms x, ms" in text and "4 networks tried, 2 on this front" in text
    assert text.index("80") < text.index("90")
    assert any(line.split() == ["found", "5", "90"] for line in text.splitlines())


def test_a_long_front_is_thinned_and_keeps_its_ends_and_the_found_one() -> None:
    many = {
        "cost": "c",
        "costs": list(range(100)),
        "scores": list(range(100)),
        "front": list(range(100)),
        "found": 41,
    }
    told = rows(fronts({"fronts": [many]})[0])
    assert len(told) <= 13 and told[0][0] == 0.0 and told[-1][0] == 99.0
    assert (41.0, 41.0, "found") in told


def test_the_page_is_drawn_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"method": "monas", "fronts": [PART]}))
    (tmp_path / "history.jsonl").write_text("")
    html = page.write(tmp_path).read_text()
    assert "Score against lat ms x" in html and "4 networks tried, 2 of them beaten by none" in html
    (chart,) = charts({"fronts": [PART]})
    assert chart.svg.startswith("<svg") and "score" in chart.svg
    (large,) = charts({"fronts": [PART | {"costs": [2e6, 3e6, 4e6, 9e6]}]})
    assert "M<" in large.svg


def test_random_search_is_drawn_beside() -> None:
    beside = {"costs": [4.0, 6.0], "scores": [75.0, 85.0], "front": [0, 1]}
    (one,) = fronts({"fronts": [PART | {"random": beside}]})
    assert one.random == [(4.0, 75.0), (6.0, 85.0)]
    (chart,) = charts({"fronts": [PART | {"random": beside}]})
    assert "random search" in chart.svg and "drawn at random" in chart.caption
    with pytest.raises(RunError, match="damaged at fronts"):
        fronts({"fronts": [PART | {"random": {"costs": [1.0]}}]})


@pytest.mark.parametrize("wrong", [{"costs": [1.0]}, {"front": [9]}, {"scores": None}, {"cost": "x", "found": 77}])
def test_a_damaged_front_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RunError, match="damaged at fronts"):
        plain({"method": "monas", "fronts": [PART | wrong]})


def test_without_fronts_nothing_is_said() -> None:
    assert fronts({}) == [] == charts({"fronts": None})
