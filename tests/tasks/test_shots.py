"""Few samples of each class."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import archgrad as ag
from archgrad.errors import DataError


def task(**settings: object) -> ag.Classification:
    g = torch.Generator().manual_seed(0)
    return ag.Classification((torch.randn(120, 4, generator=g), torch.arange(120) % 3), batch_size=16, **settings)


def test_so_many_of_each_class_in_one_batch_and_the_rest_as_it_was() -> None:
    whole = task()
    few = whole.shots(5, seed=1)
    x, y = few.stream(seed=0)(0)
    assert few.steps_per_epoch == 1 and torch.bincount(y).tolist() == [5, 5, 5]
    held = {
        tuple(row.tolist())
        for row in whole._parts["train"].source.one((whole._parts["train"].indices.tolist(), 0))[0]
    }
    assert {tuple(row.tolist()) for row in x} <= held
    assert few.splits["test"] == whole.splits["test"] and few.splits["valid"] == whole.splits["valid"]
    assert few.splits["train"]["size"] == 15 and whole.splits["train"]["size"] == 72


def test_a_draw_is_a_function_of_its_seed() -> None:
    def drawn(seed: int) -> set[float]:
        return set(task().shots(4, seed=seed).stream(seed=0)(0)[0][:, 0].tolist())

    assert drawn(1) == drawn(1) != drawn(2)


def test_more_shots_than_there_are_of_a_class_are_refused() -> None:
    assert task().shots(24).splits["train"]["size"] == 72
    with pytest.raises(
        DataError, match="25 shots of each class: class '0' has 24 training samples of 72 in 3 classes"
    ):
        task().shots(25)


def test_fewer_images_than_classes_are_refused() -> None:
    poor = ag.Classification(
        (torch.randn(3, 4), torch.tensor([0, 1, 2])), (torch.randn(5, 4), torch.arange(5)),
        (torch.randn(5, 4), torch.arange(5)), classes=5,
    )  # fmt: skip
    with pytest.raises(DataError, match="class '3' has 0 training samples of 3 in 5 classes"):
        poor.shots(1)


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_a_number_that_is_none_is_refused(count: object) -> None:
    with pytest.raises(DataError, match="whole number"):
        task().shots(count)


def test_a_sampler_of_the_users_own_is_refused() -> None:
    data = TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
    own = DataLoader(data, batch_sampler=[[0, 1, 2], [3, 4, 5]])
    given, other = (TensorDataset(torch.randn(6, 4), torch.arange(6) % 3) for _ in range(2))
    with pytest.raises(DataError, match="sampler of your own"):
        ag.Classification(own, given, other, classes=3).shots(1)
    weighted = DataLoader(data, batch_size=8, sampler=WeightedRandomSampler([1.0] * 60, 60))
    assert ag.Classification(weighted, given, other).shots(2).splits["train"]["size"] == 6
