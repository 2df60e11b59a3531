"""Settings and data of a report, in words."""

from __future__ import annotations

import functools

import pytest
import torch

import archgrad as ag
from archgrad.report import facts
from archgrad.report.page import page

DATA = {
    "train": {"size": 1079, "indices_sha256": "ab" * 32, "split_off_train": False},
    "valid": {"size": 359, "indices_sha256": "cd" * 32, "split_off_train": True},
    "normalization": {"mean": [0.5], "std": [0.25]}, "input_shape": [1, 8, 8], "augmentation": [],
    "class_weight": None, "class_names": [str(i) for i in range(100)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (ag.sgd, "sgd(learning_rate=0.05, weight_decay=0.0005, clip=5.0)"),
        (functools.partial(ag.sgd, learning_rate=0.2), "sgd(learning_rate=0.2, weight_decay=0.0005, clip=5.0)"),
        (ag.adamw, "adamw(learning_rate=0.001, weight_decay=0.05)"),
        (torch.optim.SGD, "SGD"),
    ],
)  # fmt: skip
def test_the_optimizer_is_told_with_its_rates(factory: object, told: str) -> None:
    recipe = ag.Recipe(optimizer_factory=factory, average=0.9)
    rows = facts.settings({"settings": {"recipe": recipe.record(), "search_recipe": recipe.record()}})
    assert rows["optimizer"] == rows["optimizer of the search"] and told in rows["optimizer"]
    assert rows["schedule"] == "cosine" and rows["average"] == "0.9"
    assert "accumulate" not in rows and "clip" not in rows and "drop path" not in rows


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ([{"cost": "macs", "bound": None, "fraction": 0.2}], "MACs at most 20 % of the whole network's"),
        ({"cost": "params", "bound": 300000.0, "fraction": None}, "parameters at most 300,000"),
        ([{"cost": "onnx latency", "bound": 0.25, "fraction": None}], "onnx latency at most 0.25 ms"),
        (None, None),
    ],
)  # fmt: skip
def test_a_limit_is_told_in_words(limit: object, told: str | None) -> None:
    record = {"settings": {"limit": limit}, "limit": {"cost": "onnx latency", "unit": "ms", "bound": 0.25}}
    assert facts.settings(record).get("limit") == told


def test_data_has_its_name_and_sizes_and_no_sums() -> None:
    rows = facts.data({"data": DATA}, "images/")
    assert rows["data"] == "images/" and rows["training part"] == "1,079 samples"
    assert rows["validation part"] == "359 samples, split off the training part"
    assert rows["normalization"] == "mean 0.5; std 0.25" and rows["class names"].endswith("and 88 more")
    assert "augmentation" not in rows and "class weight" not in rows
    drawn = page({"settings": {"recipe": ag.Recipe().record()}, "data": DATA})
    assert "indices" not in drawn and "{&#34;" not in drawn and "learning_rate=0.05" in drawn
