"""DNAL on a supernet of summed blocks: operations lose channels, or vanish when all their gates close."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families.checks import assert_plain, difference, extremes, outputs, stir
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices
from archgrad.gates.selection import above_threshold, gates
from archgrad.gates.width_rounding import WidthRounding
from archgrad.spaces.mobile import BLOCKS, Widths, mobile_backbone

torch.set_num_threads(1)

# Layer 0 is residual, layer 1 is not.
SMALL = {"widths": Widths(8, 8, (8, 12), 16), "cells": (1, 1), "strides": (1, 2), "stem_stride": 2, "classes": 10}


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def space(x: Tensor) -> nn.Module:
    torch.manual_seed(0)
    found = ag.slim(mobile_backbone(**SMALL, in_channels=1, mixed="sum"), x)
    stir(found)
    return found


def scored(space: nn.Module, value: float) -> dict[str, Tensor]:
    return {name: torch.full((gate.size,), value) for name, gate in gates(space).items()}


def derived(space: nn.Module, scores: dict[str, Tensor]) -> ag.Architecture:
    """What DNAL keeps by its threshold, widths not rounding."""
    return above_threshold(space, scores, 0.0, WidthRounding(1))


def blocks(network: nn.Module, layer: int) -> set[str]:
    parts = (name.split(".") for name, _ in network.named_modules() if name.startswith(f"layers.{layer}.blocks."))
    return {part[3] for part in parts if len(part) > 3}


def test_the_supernet_has_no_choices_and_every_operation_its_own_gates(space: nn.Module) -> None:
    assert not choices(mobile_backbone(**SMALL, in_channels=1, mixed="sum"))
    found = gates(space)
    for layer in (0, 1):
        for label in BLOCKS:
            assert found[f"layers.{layer}.blocks.{label}.0.0"].size == 8 * int(label[3])
    vanishing = {name for name, gate in found.items() if gate.vanishing}
    everywhere = {f"layers.{layer}.blocks.{label}.branch" for layer in (0, 1) for label in BLOCKS}
    assert vanishing == everywhere - {"layers.1.blocks.k3e3.branch"}  # without a skip the smallest stays


def test_an_operation_vanishes_when_all_its_gates_close_and_partial_ones_stay(space: nn.Module, x: Tensor) -> None:
    scores = scored(space, 1.0)
    for layer, label in ((0, "k5e6"), (0, "k3e3"), (1, "k7e6")):
        scores[f"layers.{layer}.blocks.{label}.0.0"].fill_(-1.0)  # the operation's own gate stays open
    scores["layers.1.blocks.k5e3.branch"].fill_(-1.0)
    scores["layers.1.blocks.k7e3.0.0"][5:] = -1.0  # a partial operation
    architecture = derived(space, scores)
    assert architecture["layers.0.blocks.k5e6.branch"] == ()
    network = ag.build(space, architecture)
    assert_plain(network)
    assert blocks(network, 0) == set(BLOCKS) - {"k5e6", "k3e3"}
    assert blocks(network, 1) == set(BLOCKS) - {"k7e6", "k5e3"}
    assert network.get_submodule("layers.1.blocks.k7e3.0.0").out_channels == 5
    held = ag.hold(space, architecture)
    for training in (False, True):
        assert difference(outputs(held, (x,), training=training), outputs(network, (x,), training=training)) < 1e-5
    assert difference(outputs(ag.build(space, extremes(space)[0]), (x,)), outputs(network, (x,))) > 1e-3


def test_a_residual_layer_may_lose_all_operations_and_another_keeps_one(space: nn.Module, x: Tensor) -> None:
    architecture = derived(space, scored(space, -1.0))
    network = ag.build(space, architecture)
    assert blocks(network, 0) == set()
    assert blocks(network, 1) == {"k3e3"}
    assert network.get_submodule("layers.1.blocks.k3e3.0.0").out_channels == 1
    assert_plain(network)
    assert difference(outputs(ag.hold(space, architecture), (x,)), outputs(network, (x,))) < 1e-5
    assert outputs(network, (torch.randn(3, 1, 9, 20),))[0].shape == (3, 10)


@pytest.mark.parametrize("seed", range(2))
def test_random_architectures_are_held_built_and_counted_alike(space: nn.Module, x: Tensor, seed: int) -> None:
    architecture = ag.sample(space, generator=torch.Generator().manual_seed(seed))
    network = ag.build(space, architecture)
    held = outputs(ag.hold(space, architecture), (x,))
    assert difference(held, outputs(network, (x,))) < 1e-5
    assert any(not pick for pick in architecture.values())  # something vanished
    masks = [same[0].picked(architecture[name]).double() for name, same in choices(space).items()]
    for cost in (ag.macs(x), ag.params()):
        counted = float(cost.counter(space).at(torch.cat(masks)).detach())
        assert counted == pytest.approx(cost.of(network), rel=1e-9)
        assert counted < cost.of(ag.build(space, extremes(space)[0]))
    kept = next(name for name, pick in architecture.items() if name.endswith(".branch") and pick)
    changed = ag.Architecture({**architecture, kept: ()})
    assert difference(held, outputs(ag.hold(space, changed), (x,))) > 1e-6


def test_the_built_network_exports(space: nn.Module, x: Tensor) -> None:
    network = ag.build(space, ag.sample(space, generator=torch.Generator().manual_seed(1))).eval()
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))


def test_dnal_keeps_the_limit_and_the_network_has_the_operations_it_kept() -> None:
    task = ag.Classification.load("digits", batch_size=256)
    x = task.example
    torch.manual_seed(0)
    net = mobile_backbone(**SMALL, in_channels=1, mixed="sum")
    space = ag.slim(net, x)
    limit = ag.macs(x).at_most(fraction=0.4)
    run = ag.Run(epochs=3, seed=0, device="cpu", progress=False)
    found = ag.dnal(space, task, run, limit=limit)
    bound = 0.4 * ag.macs(x).of(net)
    assert ag.macs(x).of(found.network) == found.costs["macs"] <= bound
    assert found.costs["macs"] > 0.9 * bound
    assert_plain(found.network)
    for layer in (0, 1):
        left = blocks(found.network, layer)
        assert left == {b for b in BLOCKS if found.architecture.get(f"layers.{layer}.blocks.{b}.branch") != ()}
    assert "k3e3" in left
    assert found.score is not None


class Summed(nn.Module):
    """Somebody's own sum of branches."""

    def __init__(self, combine: Callable[[list[Tensor], Tensor], Tensor], *, listed: bool = True) -> None:
        super().__init__()
        made = [
            nn.Sequential(nn.Conv2d(6, inner, 3, padding=1), nn.ReLU(), nn.Conv2d(inner, 6, 1), nn.BatchNorm2d(6))
            for inner in (8, 5, 9)
        ]
        self.branches = nn.ModuleList(made) if listed else nn.ModuleDict(dict(zip("abc", made, strict=True)))
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        branches = self.branches if isinstance(self.branches, nn.ModuleList) else self.branches.values()
        return self.combine([branch(x) for branch in branches], x)


def own(combine: Callable[[list[Tensor], Tensor], Tensor], *, listed: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    block = Summed(combine, listed=listed)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), block, nn.Flatten(), nn.Linear(6 * 36, 4))


def plus(terms: list[Tensor], x: Tensor) -> Tensor:
    return torch.stack([x, *terms]).sum(dim=0)


def total(terms: list[Tensor], x: Tensor) -> Tensor:
    return torch.stack(terms).sum(dim=0)


def mean(terms: list[Tensor], x: Tensor) -> Tensor:
    return torch.stack(terms).mean(dim=0)


def product(terms: list[Tensor], x: Tensor) -> Tensor:
    return x * torch.stack(terms).prod(dim=0)


def weighted(terms: list[Tensor], x: Tensor) -> Tensor:
    return x + terms[0] + 2 * terms[1] + 3 * terms[2]


@pytest.mark.parametrize(
    ("combine", "free"),
    [(plus, ["0", "1", "2"]), (total, ["0", "2"]), (mean, []), (product, []), (weighted, ["0", "1", "2"])],
)
def test_sums_of_other_networks(combine: Callable[[list[Tensor], Tensor], Tensor], free: list[str]) -> None:
    x = torch.randn(2, 3, 8, 8)
    space = ag.slim(own(combine), x)
    vanishing = [name for name, gate in gates(space).items() if gate.vanishing]
    assert vanishing == [f"2.branches.{term}.branch" for term in free]
    stir(space)
    for architecture in extremes(space):
        network = ag.build(space, architecture)
        assert difference(outputs(ag.hold(space, architecture), (x,)), outputs(network, (x,))) < 1e-5
    # In a sum that takes its terms by their numbers, zeros stand in for them.
    assert len(network[2].branches) == (3 if combine is weighted else 3 - len(free))


def test_sums_of_a_dictionary() -> None:
    space = ag.slim(own(total, listed=False), torch.randn(2, 3, 8, 8))
    assert [n for n, gate in gates(space).items() if gate.vanishing] == ["2.branches.a.branch", "2.branches.c.branch"]
