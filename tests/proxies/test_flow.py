"""Synaptic flow of many architectures at once, and in the mean over draws of the weights."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.errors import ArchitectureError, ConfigError, ModelError
from archgrad.proxies import synflow
from archgrad.proxies.flow import mean_channels, synflow_each

X = torch.ones(1, 3, 8, 8)


def cells(**changes: int) -> nn.Module:
    torch.manual_seed(0)
    return ag.nasbench201_cells(**{"channels": 4, "cells": 1, **changes})


def drawn(space: nn.Module, count: int) -> list[ag.Architecture]:
    generator = torch.Generator().manual_seed(1)
    return [ag.sample(space, generator=generator) for _ in range(count)]


def flows(small: nn.Module, some: list[ag.Architecture]) -> torch.Tensor:
    return torch.tensor(synflow_each(small, some, X[:, :1]), dtype=torch.float64)


def test_each_is_the_plain_score_of_the_space_held() -> None:
    space = cells()
    some = drawn(space, 12)
    together = synflow_each(space, some, X, stack=5)
    assert together == pytest.approx([synflow(ag.hold(space, a), X) for a in some], rel=1e-10)
    assert together[0] != pytest.approx(together[1], rel=1e-3)
    # Weights of its own give another score: it is the space's that are scored.
    assert together[0] != pytest.approx(synflow(ag.nasbench201_network(space.to_string(some[0])), X), rel=1e-3)


def test_inputs_are_chosen_too() -> None:
    torch.manual_seed(0)
    space = ag.darts_cells(channels=4, cells=3, classes=10)
    some = drawn(space, 3)
    x = torch.ones(1, 3, 16, 16)
    assert synflow_each(space, some, x) == pytest.approx([synflow(ag.hold(space, a), x) for a in some], rel=1e-10)


def test_what_no_path_reaches_is_lowest_and_what_overflows_is_scaled() -> None:
    space = cells()
    # The reductions have a path of their own to the output, so a dead cell means that nothing arrives at all.
    dead, alive = (ag.Architecture(dict.fromkeys(some_edges(space), op)) for op in (0, 3))
    assert synflow_each(space, [dead, alive], X)[0] == -math.inf
    with torch.no_grad():
        space.classifier.weight.mul_(1e38)
        for module in space.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(1e30)
    huge = synflow_each(space, [alive], X)[0]
    assert math.isfinite(huge) and huge == pytest.approx(synflow(ag.hold(space, alive), X), rel=1e-10)
    assert huge > math.log(1e300)


def some_edges(space: nn.Module) -> list[str]:
    from archgrad.choices.access import choices

    return list(choices(space))


def test_one_channel_is_the_mean_over_draws() -> None:
    some = drawn(cells(), 6)
    draws = []
    for seed in range(40):
        torch.manual_seed(seed)
        draws.append(synflow_each(ag.nasbench201_cells(channels=4, cells=1), some, X))
    mean = torch.tensor(draws, dtype=torch.float64).exp().mean(0).log()
    torch.manual_seed(0)
    # Each tensor's own mean stands for the distribution's: a wide space has many entries to take it over.
    wide = ag.nasbench201_cells(channels=4, cells=1)
    with torch.no_grad():
        for module in wide.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.fill_(0.5 / math.sqrt(fan_in))  # E|theta| of torch's own initialization
    exact = flows(mean_channels(wide), some) + math.log(10)  # classes
    assert torch.allclose(exact, mean, atol=0.08), (exact, mean)
    wrong = flows(mean_channels(cells(channels=8)), some) + math.log(10)
    assert not torch.allclose(wrong, mean, atol=0.2)


def test_one_channel_is_exact_where_all_weights_of_a_tensor_are_equal() -> None:
    space = cells()
    with torch.no_grad():
        for i, parameter in enumerate(space.parameters()):
            parameter.fill_((-1) ** i * 0.1 * (1 + i % 3))
    some = drawn(space, 8)
    full = torch.tensor(synflow_each(space, some, X), dtype=torch.float64)
    assert torch.allclose(flows(mean_channels(space), some) + math.log(10), full, rtol=1e-9)


def test_the_space_is_left_alone() -> None:
    space = cells()
    before = {name: tensor.clone() for name, tensor in space.state_dict().items()}
    synflow_each(space, drawn(space, 3), X)
    mean_channels(space)
    assert all(torch.equal(before[name], tensor) for name, tensor in space.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in space.parameters())


def test_bad_input() -> None:
    space = cells()
    with pytest.raises(ArchitectureError, match="another space"):
        synflow_each(space, [ag.Architecture({"other": 0})], X)
    with pytest.raises(ConfigError, match="stack=0"):
        synflow_each(space, drawn(space, 1), X, stack=0)
    assert synflow_each(space, [], X) == []
    gated = ag.slim(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), example=X)
    with pytest.raises(ModelError, match=r"gates.*synflow\(hold"):
        synflow_each(gated, [ag.sample(gated)], X)


def test_what_has_no_mean_channel_is_refused() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 3))
            self.op = ag.OpChoice([nn.Conv2d(3, 3, 1), nn.Identity()], name="op")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("bchw,cd->bdhw", self.op(x), self.weight)

    with pytest.raises(ModelError, match="reduced to one channel"):
        mean_channels(Own())
    with pytest.raises(ModelError, match="outside of convolutions"):
        synflow_each(Own(), [ag.Architecture({"op": 0})], X)


def test_equal_graphs_have_equal_mean_flow() -> None:
    small = mean_channels(cells())
    edges = some_edges(small)
    # conv 1.0 then skip 3.1, and skip 1.0 then conv 3.1: other weights, the same graph.
    pairs = [{**dict.fromkeys(edges, 0), "1.0": a, "3.1": b} for a, b in itertools.permutations((1, 3))]
    first, second = synflow_each(small, [ag.Architecture(p) for p in pairs], X[:, :1])
    assert first == pytest.approx(second, abs=0.25)
    assert first != second  # each tensor has a mean of its own
