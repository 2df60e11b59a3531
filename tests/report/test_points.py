"""Points that tell of themselves lie where they are drawn, and controls are what they are by hand."""

from __future__ import annotations

import math
import re

import pytest
from made_up_runs import ended, front, rows

from archgrad.report.charts import baselines as controls
from archgrad.report.charts.curves import charts, scatter
from archgrad.report.charts.mixing_weights import weights
from archgrad.report.charts.pareto import charts as front_charts
from archgrad.report.charts.steps import curve, timeline


def test_points_lie_on_the_line_that_is_drawn() -> None:
    (chart,) = charts([{"phase": "search", "step": k, "loss": 1.0 / (k + 1)} for k in range(5)])
    places = [(spot.x, spot.y) for spot in chart.spots]
    path = max(re.findall(r'd="(M [^"z]*)"', chart.svg), key=len)
    drawn = [tuple(map(float, pair)) for pair in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)]
    assert len(drawn) == len(places) == 5
    for (x, y), (to_x, to_y) in zip(places, drawn, strict=True):
        assert math.dist((x, y), (to_x, to_y)) < 0.2
    assert chart.spots[1].text == "search, step 1: loss 0.5"
    assert chart.words == "loss, 5 points: 1 at search, step 0, 0.2 at search, step 4; lowest 0.2, highest 1."


def test_a_mean_of_records_says_of_which() -> None:
    history = [{"phase": "ab"[k >= 501], "step": k, "loss": 1.0} for k in range(1002)]
    at = curve(history, timeline(history), "loss").at
    assert at[0] == "a, steps 0 to 2" and at[-1] == "b, steps 999 to 1,001" and len(at) == 334
    # No mean is of two phases.
    assert {"a, steps 498 to 500", "b, steps 501 to 503"} < set(at)
    assert curve([{"loss": 2.0}], timeline([{"loss": 2.0}]), "loss").at == ["record 1"]


def test_a_front_tells_score_cost_and_picks_by_label() -> None:
    record = {**ended(), "labels": {"edge": ["conv", "skip"]}}
    (chart,) = front_charts(record)
    told = [spot.text for spot in chart.spots]
    assert told[0] == "on the front: score 0.5, macs 10,000; edge conv, other [0, 0]"
    assert told[1] == "on the front: score 0.6, macs 20,000; edge skip, other [0, 1]"
    assert "handed back: score 0.55, macs 30,000; edge conv, other [0, 2]" in told and len(told) == 8
    assert chart.words == "A front of 5: from score 0.5 at macs 10,000 to 0.9 at macs 80,000."
    # Trials of another number are not of these points.
    (chart,) = front_charts({**record, "trials": record["trials"][1:]})
    assert chart.spots[0].text == "on the front: score 0.5, macs 10,000"
    for strange in (3, {"a": 1}, [3], [{"architecture": 3}]):
        front_charts({**record, "trials": strange})


def test_weights_tell_what_leads_at_each_step() -> None:
    small = weights(rows(0, 20)).charts[0]
    assert small.spots[0].text == "search, step 0: conv 0.50, skip 0.50"
    assert small.spots[-1].text == "search, step 19: conv 0.69, skip 0.31" and len(small.spots) == 20
    assert len(weights(rows(0, 500)).charts[0].spots) <= 61


def test_a_surrogate_tells_both_figures() -> None:
    chart = scatter({"predicted": [1.0, 2.5], "measured": [1.1, 2.4], "unit": "ms"})
    assert chart is not None and [spot.text for spot in chart.spots] == [
        "measured 1.1, predicted 1 ms",
        "measured 2.4, predicted 2.5 ms",
    ]


def test_controls_by_hand() -> None:
    told = dict(controls.rows(ended()))
    assert told["as many drawn at random, MACs against score"] == (
        "best score 0.85, the search's 0.9; at the cost of what was found or less: 0.55, found 0.55"
    )
    # Ranks 1 2 3 4 5 6 7 8 and 1 3 2 5 4 7 6 8: sum of squared differences 6, so 1 - 6 * 6 / (8 * 63).
    assert f"rank correlation {1 - 36 / 504:.2f} with the score, over the 8" in told["MACs as a proxy"]
    assert told["the networks tried"] == "8 scores: lowest 0.5, median 0.675, highest 0.9"
    assert controls.rows({}) == [] and controls.rows({"trials": 3}) == []


@pytest.mark.parametrize(
    ("costs", "scores", "told"),
    [
        ([1, 2, 3, 4], [4, 3, 2, 1], "-1.00"),
        # Ties share their mean rank: 1.5 1.5 3 4 with 1 2 3 4.
        ([1, 1, 2, 3], [1, 2, 3, 4], f"{4.5 / math.sqrt(4.5 * 5):.2f}"),
        ([1, 1, 1, 1], [1, 2, 3, 4], "not defined"),
    ],
)
def test_rank_correlation(costs: list[float], scores: list[float], told: str) -> None:
    part = {"cost": "params", "costs": costs, "scores": scores, "front": [0], "found": None}
    assert f"rank correlation {told}" in dict(controls.rows({"fronts": [part]}))["parameters as a proxy"]


def test_too_few_networks_have_no_proxy() -> None:
    part = {**front(), "costs": [1, 2, 3], "scores": [1, 2, 3], "front": [0], "found": 0, "random": None}
    assert controls.rows({"fronts": [part]}) == []
