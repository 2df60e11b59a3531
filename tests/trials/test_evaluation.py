"""Trials: on tables and on trained tasks alike, paid once, and the archive of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.costs.limits import Predicts
from archgrad.costs.table_column import TableColumn
from archgrad.errors import ConfigError, LimitError
from archgrad.tasks.task import Scored
from archgrad.trials.archive import ArchitectureCosts, Archive, Trial
from archgrad.trials.evaluation import steps_of

OPS = np.array(list(itertools.product(range(5), repeat=6)))
MERIT = np.array([0.0, 3.0, 5.0, 8.0, 2.0])[OPS].sum(1)
PRICE = np.array([0.0, 1.0, 2.0, 9.0, 3.0])[OPS].sum(1) + 1.0


@pytest.fixture(scope="module")
def table() -> ag.Tabular:
    return ag.Tabular(
        {"ops": OPS, "cifar10_test_e200": 40.0 + MERIT, "lat_ms_mine": PRICE, "energy_mj_mine": 2 * PRICE}
    )


@pytest.fixture(scope="module")
def cells() -> nn.Module:
    return ag.nasbench201_cells(channels=1, cells=1)


def quiet(trials: int, seed: int = 0, folder: Path | None = None) -> ag.Run:
    return ag.Run(trials=trials, seed=seed, device="cpu", progress=False, folder=folder)


def test_a_table_is_scored_and_a_classification_is_not(table: ag.Tabular) -> None:
    assert isinstance(table, Scored) and table.perfect == 100.0
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    assert not isinstance(ag.Classification((x, y)), Scored)


def test_random_search_looks_a_table_up(table: ag.Tabular, cells: nn.Module) -> None:
    found = ag.random_search(cells, table, quiet(300))
    tried = found.record["trials"]
    assert len(tried) == 300 == len({tuple(sorted(one["architecture"].items())) for one in tried})
    assert found.score == max(one["score"] for one in tried) == table.score(found.architecture)
    assert not [m for m in found.network.modules() if type(m).__module__.startswith("archgrad")]
    assert found.network(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert "score" in found.report()


def test_random_search_on_a_table_keeps_a_limit_by_a_column(table: ag.Tabular, cells: nn.Module) -> None:
    latency = TableColumn(table, "lat_ms_mine")
    assert latency.unit == "ms" and isinstance(latency, Predicts)
    found = ag.random_search(cells, table, quiet(200), limit=latency.at_most(12.0))
    assert found.costs["lat_ms_mine"] == table.cost(found.architecture, "lat_ms_mine") <= 12.0
    free = ag.random_search(cells, table, quiet(200))
    assert free.score > found.score
    with pytest.raises(LimitError, match="lowest reachable is 1"):
        ag.random_search(cells, table, quiet(10), limit=latency.at_most(0.5))
    with pytest.raises(LimitError, match="looked up by architecture"):
        latency.of(found.network)
    with pytest.raises(LimitError, match="no gradient"):
        latency.expected(cells)


def test_shared_weights_need_training(table: ag.Tabular, cells: nn.Module) -> None:
    with pytest.raises(ConfigError, match="shared=True trains"):
        ag.random_search(cells, table, quiet(3), shared=True)


def test_steps_are_divided_among_the_trials() -> None:
    assert sum(steps_of(n, trials=7, steps=100) for n in range(7)) == 100
    assert [steps_of(n, trials=5, steps=3) for n in range(5)] == [1] * 5, "each is trained a little"


def test_prices_lie_between_the_lowest_and_the_highest(table: ag.Tabular, cells: nn.Module) -> None:
    prices, run = ArchitectureCosts(cells, [TableColumn(table, "lat_ms_mine"), ag.params()]), quiet(1)
    run.begin("prices", {})
    prices.begin(run)
    assert prices.lowest["lat_ms_mine"] == 1.0 and prices.highest["lat_ms_mine"] == 55.0
    picks = dict.fromkeys(("1.0", "2.0", "2.1", "3.0", "3.1", "3.2"), 2)
    found = prices.of(ag.Architecture(picks))
    assert found["lat_ms_mine"] == 13.0
    assert prices.scaled(found)["lat_ms_mine"] == pytest.approx(12 / 54)
    assert prices.scaled({"lat_ms_mine": 99.0}) == {"lat_ms_mine": 1.0}
    assert found["params"] == ag.params().of(ag.build(cells, ag.Architecture(picks)))


def trial(pick: int, score: float, **costs: float) -> Trial:
    return Trial(ag.Architecture({"c": pick}), score, costs)


def archive() -> Archive:
    made = Archive()
    for one in (trial(0, 0.9, a=5.0, b=1.0), trial(1, 0.8, a=3.0, b=2.0), trial(2, 0.7, a=4.0, b=0.5)):
        made.add(one)
    return made


def test_the_archive_knows_its_front_and_volume() -> None:
    made = archive()
    assert [t.architecture["c"] for t in made.front(["a"])] == [0, 1]
    assert [t.architecture["c"] for t in made.front(["a", "b"])] == [0, 1, 2]
    assert made.hypervolume(["a"], score=0.5, bounds={"a": 6.0}) == pytest.approx(0.4 * 1 + 0.3 * 2)
    record = made.record({"a": ag.black_box(len, name="a", unit="A")}, found=ag.Architecture({"c": 1}))
    assert record == [
        {"cost": "a", "unit": "A", "costs": [5.0, 3.0, 4.0], "scores": [0.9, 0.8, 0.7], "front": [0, 1], "found": 1}
    ]


def test_the_archive_is_restored_as_it_was() -> None:
    other = Archive()
    other.load_state_dict(archive().state_dict())
    assert other.trials == archive().trials
    assert list(other.trials) == list(archive().trials) and ag.Architecture({"c": 1}) in other and len(other) == 3
