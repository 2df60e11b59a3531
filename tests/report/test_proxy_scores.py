"""Pictures and tables of scores: what is drawn, what is said beside it, and damaged records."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from archgrad.errors import RunError
from archgrad.report import score_text as scored
from archgrad.report.charts.proxy_scores import candidates, clouds
from archgrad.report.page import page

SCORES: dict[str, Any] = {
    "scores": {"a": [0.1, 0.4], "b": [0.5, 0.0, 0.2]},
    "labels": {"a": ["<one>", "two"], "b": ["0", "1", "2"]},
    "draws": [{"a": [0.1, 0.5], "b": [0.4, 0.0, 0.2]}, {"a": [0.1, 0.3], "b": [0.6, 0.0, 0.2]}],
    "picks": [{"choice": "a", "pick": "two"}, {"choice": "b", "pick": ["0", "2"]}],
}
SCORED: dict[str, Any] = {
    "title": "3 networks",
    "networks": [
        {"name": "<x>", "scores": {"synflow": 3.0}, "rank": 1.0, "accuracy": 90.0},
        {"name": "y", "scores": {"synflow": 2.0}, "rank": 2.0, "accuracy": 91.0},
        {"name": "z", "scores": {"synflow": "-inf"}, "rank": 3.0, "accuracy": 10.0},
    ],
    "proxies": [
        {
            "name": "synflow",
            "needs": "nothing",
            "better": "higher",
            "published": ".74",
            "spearman": 0.5,
            "regret": 1.0,
        }
    ],
}


def test_each_choice_has_bars_for_means_and_dots_for_draws() -> None:
    one, other = candidates(SCORES)
    for picture in (one, other):
        ElementTree.fromstring(picture.svg)
    assert (one.choice, one.caption) == ("a", "longest bar or dot 0.5")
    assert one.svg.count("<rect") == 2 and one.svg.count("<circle") == 4
    # The highest mean stands on top; what was picked is dark, the others pale.
    assert one.svg.index("two") < one.svg.index("&lt;one&gt;")
    assert one.svg.count('class="g-bar"') == 1 and other.svg.count('class="g-bar"') == 2
    assert 'width="96.0"' in one.svg  # 0.4 of 0.5, 120 wide
    single = candidates({**SCORES, "draws": SCORES["draws"][:1]})
    assert "<circle" not in single[0].svg
    assert candidates({}) == []


@pytest.mark.parametrize(
    "part",
    [
        {"labels": {"a": ["one"], "b": ["0", "1", "2"]}},
        {"labels": {}},
        {"draws": [{"a": [0.1]}]},
        {"draws": [3]},
        {"scores": [1]},
        {"draws": 3},
    ],
)
def test_damaged_scores_are_named(part: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"the record is damaged at .*score"):
        candidates({**SCORES, **part})


def test_scores_are_drawn_over_accuracies() -> None:
    against = {"score": [1.0, 2.0, None], "accuracy": [50.0, 60.0, 70.0], "found": [2.0, 60.0], "networks": 900}
    (chart,) = clouds({"against": {**against, "spearman": 0.5, "regret": 1.25}})
    assert chart.caption == (
        "900 networks, Spearman 0.50, its highest is 1.25 points below the best. The diamond is what was found. "
        "1 without a finite score are left out."
    )
    ElementTree.fromstring(chart.svg)
    assert chart.svg.count("var(--ink)") > 3 and ">score</text>" in chart.svg
    (chart,) = clouds(SCORED)
    assert chart.heading == "synflow"
    assert clouds({}) == [] and clouds({**SCORED, "networks": [{"scores": {}}]}) == []
    with pytest.raises(RunError, match="of one length"):
        clouds({"against": {"score": [1.0], "accuracy": []}})


def test_scored_networks_as_text() -> None:
    text = scored.plain(SCORED)
    lines = [line.split() for line in text.splitlines()]
    assert ["1", "3", "90", "1"] in lines and ["3", "-inf", "10", "3"] in lines
    assert ["1", "<x>"] in lines and "here: Spearman" in text and "here: Kendall" not in text
    many = {**SCORED, "networks": SCORED["networks"] * 10}
    assert "and 10 more" in scored.plain(many)


@pytest.mark.parametrize("part", [{"networks": 3}, {"networks": [3]}, {"networks": [{}]}, {"proxies": "x"}])
def test_damaged_records_of_scores_are_named(part: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="the record is damaged at"):
        scored.plain({**SCORED, **part})
    with pytest.raises(RunError, match="the record is damaged at"):
        page({**SCORED, **part})


def test_the_page_of_scores_escapes_and_crowns_nothing() -> None:
    text = page(SCORED)
    assert "&lt;x&gt;" in text and "<x>" not in text
    assert "How far the scores are to be trusted" in text and "What was found" not in text
    found = page({"title": "t", **SCORES})
    assert "One candidate" in found and "Scores of the candidates, untrained" in found
