"""Scores of every kind: errors, negative returns and figures near zero are told with their name and direction."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from archgrad.report import compare, notebook, numbers, page, text
from archgrad.report.charts import baselines, comparison, curves, pareto

MSE = {"name": "mse", "higher_is_better": False}


def record(before: float, after: float, *, score: dict[str, Any] | None = None) -> dict[str, Any]:
    name = (score or MSE)["name"]
    return {
        "title": "Slimmed", "score": score or MSE,
        "before": {"loss": 0.2, name: before, "params": 1000, "macs": 4000},
        "after": {"loss": 0.1, name: after, "params": 500, "macs": 2000},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (0.073, 0.086, "+18 % (worse)"),
        (0.086, 0.073, "-15 % (better)"),
        (0.1, 0.1, "+0 %"),
        (-2.0, -1.0, "+1 (worse)"),
        (0.0, 0.25, "+0.25 (worse)"),
        (1e-9, 0.25, "+0.25 (worse)"),
        (0.25, -0.25, "-0.5 (better)"),
        (0.5, float("nan"), "-"),
    ],
)
def test_a_lower_score_is_better(before: float, after: float, change: str) -> None:
    rows = text.rows(record(before, after))
    assert rows[0].label == "mse (lower is better)" and rows[0].change == change
    # Costs are still told as factors, and the figures that are no score without a verdict.
    assert [row.change for row in rows[1:]] == ["-50 %", "x 0.5", "x 0.5"]


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (-21.0, 18.0, "+39 (better)"),
        (-5.0, -6.0, "-1 (worse)"),
        (0.8, 0.84, "+5 % (better)"),
        (200.0, 20.0, "-90 % (worse)"),
    ],
)
def test_a_higher_score_is_better_where_nothing_else_is_said(before: float, after: float, change: str) -> None:
    rows = text.rows(record(before, after, score={"name": "mean_return"}))
    assert (rows[0].label, rows[0].change) == ("mean return", change)


def test_no_score_but_a_share_is_told_as_an_accuracy() -> None:
    shown = text.plain(record(0.073, 0.086))
    assert "0.073" in shown and "7.30 %" not in shown and "x 1.1" not in shown and "points" not in shown
    shares = record(0.9, 0.85, score={"name": "accuracy", "higher_is_better": True})
    assert text.rows(shares)[0] == ("accuracy", "90.00 %", "85.00 %", "-5.00 points")


def test_without_a_score_the_record_is_read_as_before() -> None:
    old = {"before": {"reward": 1.0, "params": 10}, "after": {"reward": 2.0, "params": 10}}
    assert text.rows(old)[0] == ("reward", "1", "2", "+100 % (better)")
    assert numbers.score({}) == ("score", True) and numbers.final_score({"after": {"params": 1}}).name == "score"


def test_the_jump_from_the_supernet_is_a_loss_in_either_direction() -> None:
    jump = {"score": "mse", "supernet": 0.25, "derived": 0.75, "gap": -0.5}
    assert "discretization gap: 0.5 of mse (lower is better)" in text.gap_line({"score": MSE, "discretization": jump})
    higher = {"score": "mse", "supernet": 0.75, "derived": 0.25, "gap": 0.5}
    assert "gap: 0.5 of mse (supernet" in text.gap_line({"discretization": higher})
    chart = curves.jump({"score": MSE, "discretization": jump})
    assert chart is not None and "mse (lower is better)" in chart.svg


FRONT = {"cost": "macs", "unit": "MACs", "costs": [10.0, 20.0, 30.0, 40.0], "scores": [0.9, 0.5, 0.6, 0.2],
         "front": [0, 1, 3], "found": 1,
         "random": {"costs": [10.0, 20.0], "scores": [0.7, 0.8], "front": [0]}}  # fmt: skip


def test_fronts_name_the_score_and_rank_by_its_direction() -> None:
    searched = {"score": MSE, "fronts": [FRONT]}
    (chart,) = pareto.charts(searched)
    assert "mse (lower is better)" in chart.svg and "mse (lower is better) 0.9" in chart.words
    assert any(spot.text.startswith("handed back: mse 0.5") for spot in chart.spots)
    assert "mse (lower is better)" in text.plain(searched)
    trials = [{"score": score} for score in FRONT["scores"]]  # type: ignore[attr-defined]
    controls = dict(baselines.rows({**searched, "trials": trials}))
    assert controls["as many drawn at random, MACs against mse (lower is better)"] == (
        "best mse (lower is better) 0.7, the search's 0.2; at the cost of what was found or less: 0.7, found 0.5"
    )
    assert controls["the networks tried"].startswith("4 scores, mse (lower is better): lowest 0.2")
    random = {"costs": [10.0, 20.0], "scores": [0.7, 0.8], "front": [0, 1]}
    upward = dict(baselines.rows({"fronts": [{**FRONT, "random": random}]}))
    assert upward["as many drawn at random, MACs against score"].startswith("best score 0.8, the search's 0.9")


def test_curves_of_a_lower_score_say_so() -> None:
    history = [{"phase": "weights", "step": k, "loss": 1.0 / (k + 1), "valid_mse": 0.5} for k in range(3)]
    captions = {
        chart.heading: chart.caption for chart in curves.charts(history, score=numbers.ScoreOfRecord("mse", False))
    }
    assert captions == {"Loss": "", "Valid mse": "Lower is better."}
    assert all(chart.caption == "" for chart in curves.charts(history, score=numbers.ScoreOfRecord("mse")))


def test_page_and_notebook_tell_the_direction() -> None:
    for html in (page.page(record(0.073, 0.086)), notebook.summary(record(0.073, 0.086))):
        assert "mse (lower is better)" in html and re.search(r"\+18 % (<span class=.range.>)?\(worse\)", html)


def test_runs_of_other_directions_are_not_compared(tmp_path: Path) -> None:
    paths = []
    for name, score in (("a", MSE), ("b", MSE), ("c", {"name": "mse", "higher_is_better": True})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "record.json").write_text(json.dumps(record(0.073, 0.086, score=score)))
        (folder / "history.jsonl").write_text("")
        paths.append(folder)
    same, other = compare.read(paths[:2]), compare.read(paths)
    assert not any("judged by" in line for line in compare.warnings(same))
    assert "judged by different figures: mse, mse (lower is better)" in " ".join(compare.warnings(other))
    assert ("mse (lower is better)", ["0.086", "0.086"]) in compare.rows(same)
    assert compare.as_json(same)["runs"][0]["score"] == MSE
    (first, second) = comparison.points([(one.name, one.record, ()) for one in other])
    assert first.heading == "Mse against MACs" and first.caption.endswith("Lower is better.")
    assert "mse (lower is better)" in first.svg and second.heading == "Mse against parameters"
