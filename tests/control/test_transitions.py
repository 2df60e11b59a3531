"""Regression of measured transitions as a task."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from archgrad.control.transitions import Transitions
from archgrad.errors import DataError, ModelError

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = X[:, :2] * 2.0


def task() -> Transitions:
    return Transitions((X[:30], Y[:30]), (X[30:], Y[30:]), batch_size=8)


def test_batches_are_a_function_of_seed_and_step() -> None:
    one, again, other = (task().stream(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one(5)[0], again(5)[0]) and not torch.equal(one(5)[0], one(6)[0])
    assert not torch.equal(one(5)[0], other(5)[0]) and one(0)[0].shape == (8, 3)


def test_the_true_map_explains_everything_and_the_mean_nothing() -> None:
    network = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(2.0 * torch.eye(3)[:2])
    network.train()
    assert task().evaluate(network)["explained"] == pytest.approx(1.0) and network.training
    assert float(task().loss(network, (X, Y)).detach()) == pytest.approx(0.0)
    constant = nn.Linear(3, 2)
    with torch.no_grad():
        constant.weight.zero_()
        constant.bias.copy_(Y[30:].mean(0))
    assert task().evaluate(constant, "test")["explained"] == pytest.approx(0.0, abs=1e-6)


def test_halves_are_disjoint_and_whole() -> None:
    first, second = task().split(0.5)
    rows = torch.cat([first._parts["train"][0], second._parts["train"][0]])
    assert len(rows) == 30 and len(torch.unique(rows, dim=0)) == 30


def test_what_cannot_be_learnt_from_is_refused() -> None:
    with pytest.raises(DataError, match="train: 0 inputs"):
        Transitions((X[:0], Y[:0]), (X, Y))
    with pytest.raises(DataError, match="all finite"):
        Transitions((X, Y * torch.nan), (X, Y))
    with pytest.raises(ModelError, match=r"gives the change of the state \[B, 2\]"):
        task().check(nn.Linear(3, 3))
    with pytest.raises(ModelError, match=r"fails on inputs of shape \[2, 3\]"):
        task().check(nn.Linear(4, 2))
