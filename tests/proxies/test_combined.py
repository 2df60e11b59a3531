"""Sizes as proxies; proxies joined over a population, and compared with published scores of one."""

from __future__ import annotations

import csv
import gzip
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from archgrad import proxies
from archgrad.errors import ConfigError, ModelError
from archgrad.spaces.nasbench201 import nasbench201_network


def test_rank_vote() -> None:
    nan = math.nan
    assert proxies.rank_vote({"a": [1, 3, 2]}) == [3, 1, 2]
    assert proxies.rank_vote({"a": [1, 3, 3, nan, -math.inf, nan]}) == [3, 1.5, 1.5, 5.5, 4, 5.5]
    assert proxies.rank_vote({"a": [1, 2, 3], "b": [1, 2, 0]}) == [2.5, 1.5, 2]
    assert proxies.rank_vote({"a": [1, 2, 3], "b": [1, 2, 0]}, {"a": 0, "b": 2}) == [2, 1, 3]
    for scores in ({}, {"a": []}, {"a": [1.0], "b": [1.0, 2.0]}):
        with pytest.raises(ConfigError, match="lists of one length"):
            proxies.rank_vote(scores)
    for weights in ({"b": 1.0}, {"a": -1.0}, {"a": 0.0}, {"a": nan}):
        with pytest.raises(ConfigError, match="weight"):
            proxies.rank_vote({"a": [1.0, 2.0]}, weights)


def test_joined_scores_as_published() -> None:
    assert proxies.te_nas([10.0, 2.0, math.inf], [5, 4, 3]) == [3, 3, 6]
    found = proxies.az_nas({"a": [3, 1, 2], "b": [3, 1, 2]})
    np.testing.assert_allclose(found, [0, 2 * math.log(1 / 3), 2 * math.log(2 / 3)], atol=1e-12)


def test_counts() -> None:
    images = torch.zeros(2, 3, 8, 8)
    made = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten())
    assert proxies.params(made, images) == 108
    assert proxies.params(made) == 108
    assert proxies.macs(made, images) == proxies.macs(made.double(), images) == 108 * 36
    assert proxies.macs(made.to("meta"), images) == 108 * 36
    for count in (proxies.params, proxies.macs):
        with pytest.raises(ModelError, match=r"give a torch\.nn\.Module"):
            count("resnet", images)  # type: ignore[arg-type]


def test_synflow_ranks_cells_as_the_published_table_does() -> None:
    folder = os.environ.get("ARCHGRAD_DATA")
    path = Path(folder or ".") / "nasbench201" / "nasbench201_zero_cost_proxies_sample.csv.gz"
    if not folder or not path.exists():
        pytest.skip("ARCHGRAD_DATA is not set, or has no table of published proxies")
    with gzip.open(path, "rt") as file:
        rows = [r for r in csv.DictReader(file) if r["dataset"] == "cifar10" and r["source"] == "B" and r["synflow"]]
    chosen = random.Random(0).sample(rows, 30)
    images = torch.zeros(1, 3, 32, 32)
    ours = [proxies.synflow(nasbench201_network(r["arch"]), images) for r in chosen]
    ranks = [proxies.rank_vote({"score": column}) for column in (ours, [float(r["synflow"]) for r in chosen])]
    assert np.corrcoef(ranks)[0, 1] > 0.9
