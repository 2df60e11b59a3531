"""Pictures of control: what they say, and what they make of damaged records."""

from __future__ import annotations

import pytest

from archgrad.errors import RunError
from archgrad.report import page
from archgrad.report.charts.control import charts

RECORD = {
    "control": {
        "states": [[0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 2.0, 3.0, 4.0]], "actions": [[0.5], [1.0]], "low": [-1.0],
        "high": [1.0], "costs": [[1, 90.0], [4, 30.0]],
    }
}  # fmt: skip


def test_a_picture_for_the_cost_the_states_and_each_action() -> None:
    found = charts(RECORD)
    assert [one.heading for one in found] == [
        "Cost against real rollouts", "States over the horizon", "States 4 to 4 over the horizon",
        "Action 0 between its bounds",
    ]  # fmt: skip
    assert "90 at first, 30 after 4 rollouts" in found[0].caption
    assert "1 of 2 steps" in found[-1].caption
    written = page.page(RECORD)
    assert all(one.heading in written for one in found) and "#0" not in found[0].svg


def test_without_control_there_is_no_picture() -> None:
    assert charts({}) == [] and charts({"control": {}}) == []


@pytest.mark.parametrize("part", ["states", "actions", "low", "costs"])
def test_a_damaged_record_is_named(part: str) -> None:
    for wrong in (None, [1.0, 2.0, 3.0], "text"):
        with pytest.raises(RunError, match="damaged at control"):
            charts({"control": RECORD["control"] | {part: wrong}})


def test_control_that_is_no_object_is_named() -> None:
    with pytest.raises(RunError, match="damaged at control"):
        page.page({"control": [1]})
