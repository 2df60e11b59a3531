"""The weights of the choices: which records become which lines, on which scale, in whose color."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

from archgrad.report.charts.mixing_weights import weights


def _history() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"phase": "search", "step": k, "loss": 1.0} for k in range(20)]
    for epoch, row in enumerate(rows[::5]):
        row |= {"weight/normal/0-2/conv": 0.5 + 0.1 * epoch, "weight/normal/0-2/skip": 0.5 - 0.1 * epoch}
        row |= {"weight/out/skip": 0.25, "weight/out/pool": "nan" if epoch else 0.75}
    return rows


def _ends(drawn: str) -> list[tuple[float, float]]:
    paths = [path.attrib for path in ElementTree.fromstring(drawn).iter("path") if "g-line" in path.attrib["class"]]
    return [tuple(map(float, re.split("[ ,L]", path["d"])[-2:])) for path in paths]  # type: ignore[misc]


def test_a_picture_a_choice_and_a_color_a_candidate() -> None:
    found = weights(_history())
    assert [one.choice for one in found.charts] == ["normal/0-2", "out"]
    assert [one.leader for one in found.charts] == ["conv 0.80", "pool 0.75"]
    assert [label for label, _ in found.legend] == ["conv", "skip", "pool"] and found.left_out == 0
    colors = {label: re.findall(r"g-line\d", sample) for label, sample in found.legend}
    assert colors == {"conv": ["g-line1"], "skip": ["g-line2"], "pool": ["g-line3"]}
    for one, drawn in zip(found.charts, (("g-line2", "g-line1"), ("g-line2", "g-line3")), strict=True):
        # The leader is drawn last, over the others.
        assert tuple(re.findall(r"g-line\d", one.svg)) == drawn
        ElementTree.fromstring(one.svg)


def test_all_pictures_share_one_scale() -> None:
    first, second = weights(_history()).charts
    for one in (first, second):
        assert ">0.8</text>" in one.svg and ">0</text>" in one.svg and ">15</text>" in one.svg
    # 0.2 and 0.8 of an axis that ends at 0.8, at y = 8; then 0.25, and the single point of 0.75.
    (x, low), (_, high) = _ends(first.svg)
    assert high == 8.0 and low == 8 + 0.75 * 102 and x == 262.0
    assert _ends(second.svg)[1][0] == 30.0


def test_weights_below_nought_and_of_one_epoch() -> None:
    (one,) = weights([{"step": 3, "weight/a/x": -0.25, "weight/a/y": 1.5}]).charts
    assert ">-0.3</text>" in one.svg and ">1.5</text>" in one.svg and one.leader == "y 1.50"


def test_what_is_no_weight_or_too_much_is_left_out() -> None:
    assert weights([]).charts == [] and weights([{"step": 1, "loss": 1.0, "weight/a/x": None}]).charts == []
    found = weights([{"step": 1, **{f"weight/{k}/c{k}": 0.5 for k in range(100)}}])
    assert len(found.charts) == 80 and found.left_out == 20 and found.legend == []


def test_more_candidates_than_colors_are_dashed() -> None:
    found = weights([{"step": k, **{f"weight/a/c{n}": 0.1 for n in range(10)}} for k in range(2)])
    looks = [re.sub(r' d="[^"]*"', "", sample) for _, sample in found.legend]
    assert len(set(looks)) == 10 and "dash" in looks[8] and "dash" not in looks[7]
