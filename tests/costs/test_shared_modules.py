"""Modules that stand in several places: their work counts where they run, and goes with what runs them."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, sample
from archgrad.choices.architecture import Architecture
from archgrad.costs.count import macs, macs_by_module, params
from archgrad.extract.discretize import build
from archgrad.gates import full
from archgrad.spaces.slim.slimmable import slim

X = torch.randn(4, 3)


class Block(nn.Module):
    """A residual block that runs a layer which others run too."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.enters, self.shared, self.leaves = nn.Linear(6, 7), shared, nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leaves(F.relu(self.shared(F.relu(self.enters(x)))))  # type: ignore[no-any-return]


class Sharing(nn.Module):
    """[B, 3] -> [B, 2]: three blocks, and where the layer stands that they share.

    Args:
        place: "outside" them, "inside" alone, or "blocks": two of them are one.
    """

    def __init__(self, place: str) -> None:
        super().__init__()
        layer = nn.Linear(7, 7)
        self.inlet = nn.Linear(3, 6)
        if place == "outside":
            self.layer = layer
        self.blocks = nn.ModuleList(Block(layer) for _ in range(3))
        if place == "blocks":
            self.blocks = nn.ModuleList([Block(nn.Linear(7, 7)), Block(nn.Linear(7, 7))])
            self.blocks.append(self.blocks[0])
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("place", ["outside", "inside", "blocks"])
def test_work_of_a_shared_module_counts_under_its_first_path(place: str) -> None:
    net = Sharing(place)
    found = macs_by_module(net, X)
    first = {"outside": "layer", "inside": "blocks.0.shared", "blocks": "blocks.0.shared"}[place]
    assert found[first] == 49 * (2 if place == "blocks" else 3)
    assert set(found) <= {path for path, _ in net.named_modules()}
    assert sum(found.values()) == macs(X).of(net) == 18 + 3 * (42 + 49 + 42) + 12


@pytest.mark.parametrize("place", ["outside", "inside", "blocks"])
def test_what_is_expected_of_shared_modules_is_what_is_built(place: str) -> None:
    torch.manual_seed(0)
    space = slim(Sharing(place), X)
    branches = [name for name, same in choices(space).items() if same[0].vanishing]
    assert len(branches) == (1 if place == "blocks" else 3)
    draws = [sample(space, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    picks = itertools.product(((), (0,)), repeat=len(branches))
    closed = [Architecture({**full(space), **dict(zip(branches, pick, strict=True))}) for pick in picks]
    for architecture in (*draws, *closed):
        held, built = hold(space, architecture), build(space, architecture)
        assert float(macs(X).expected(held)) == pytest.approx(macs(X).of(built), rel=1e-9)
        if any(architecture[name] for name in branches) or place != "inside":
            assert float(params().expected(held)) == pytest.approx(params().of(built), rel=1e-9)
        else:  # it counts as there until what it stands in is gone altogether
            assert float(params().expected(held)) > params().of(built)
