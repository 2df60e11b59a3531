"""A search by rounds in pictures, from a record alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from archgrad.errors import RunError
from archgrad.report import page
from archgrad.report.charts.radars import _runs, charts, rounds

FIRST = {"predicted_peak_bytes": 3e6, "measured_peak_bytes": 2e6, "bound_bytes": 4e6,
         "left": {"a": [0, 1, 2, 5], "b": [0, 1]}, "support": {"a": [0, 1], "b": [1]}}  # fmt: skip
SECOND = FIRST | {"left": {"a": [0, 5], "b": [0, 1]}, "support": {"a": [5], "b": [0]}}


def test_memory_and_the_space_of_each_round_are_drawn(tmp_path: Path) -> None:
    memory, before, after = charts({"rounds": [FIRST, SECOND]})
    assert "the bound is 3.8 MiB" in memory.caption and all(
        w in memory.svg for w in ("predicted", "measured", "bound")
    )
    assert "6 candidates left, 3 of them" in before.caption and "4 candidates left, 2 of them" in after.caption
    (tmp_path / "record.json").write_text(json.dumps({"method": "radars", "rounds": [FIRST, SECOND]}))
    (tmp_path / "history.jsonl").write_text("")
    html = page.write(tmp_path).read_text()
    assert "The space in round 2" in html and "Memory of the search" in html


def test_of_many_rounds_the_first_and_the_last_are_drawn_and_of_many_sites_the_rest_is_told() -> None:
    wide = FIRST | {part: {f"site {i}": [0] for i in range(50)} for part in ("left", "support")}
    found = charts({"rounds": [wide] * 20})
    assert len(found) == 7 and found[1].heading.endswith("round 1") and found[-1].heading.endswith("round 20")
    assert "10 further sites are not drawn" in found[1].caption


def test_runs_of_candidates() -> None:
    assert _runs([0, 1, 2, 5, 7, 8]) == [(0, 2), (5, 5), (7, 8)] and _runs([]) == []


@pytest.mark.parametrize("wrong", [{"left": None}, {"support": {"a": ["x"]}}, {"bound_bytes": "much"}])
def test_damaged_rounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="damaged at rounds"):
        rounds({"rounds": [FIRST | wrong]})


def test_without_rounds_nothing_is_drawn() -> None:
    assert charts({}) == [] == charts({"rounds": None})
