"""Modules that stand in several places: their work counts where they run, and goes with what runs them."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, logits, relax, sample
from archgrad.choices.architecture import Architecture
from archgrad.choices.modules import OpChoice
from archgrad.choices.relaxations import ScaledSigmoid, softmax
from archgrad.costs.count import macs, macs_by_call, macs_by_module, params
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


def _sharing_candidates(seed: int) -> nn.Module:
    """[B, 3] -> [B, 2]: choices whose candidates hold layers of one pool, alone, in a row or in other choices."""
    draw = random.Random(seed)
    pool = [nn.Linear(3, 3) for _ in range(3)]
    tied = nn.Linear(3, 3)
    tied.weight = pool[0].weight

    def layer() -> nn.Module:
        return draw.choice(
            [*pool, tied, nn.Linear(3, 3), nn.Sequential(draw.choice(pool), nn.Tanh(), draw.choice(pool))]
        )

    def choice(name: str, depth: int) -> nn.Module:
        candidates = [layer() for _ in range(draw.randint(2, 3))]
        if depth and draw.random() < 0.5:
            candidates.append(nn.Sequential(choice(f"{name}a", depth - 1), choice(f"{name}b", depth - 1)))
        return OpChoice({str(i): each for i, each in enumerate(candidates)}, name=name)

    parts = [choice(f"choice{i}", 1) for i in range(draw.randint(1, 3))]
    if draw.random() < 0.5:
        parts.insert(0, draw.choice(pool))  # there whatever is picked
    if draw.random() < 0.5:
        parts.append(parts[-1])  # a choice in two places is one decision
    return nn.Sequential(*parts, nn.Linear(3, 2))


@pytest.mark.parametrize("seed", range(12))
def test_layers_that_candidates_share_cost_what_is_built(seed: int) -> None:
    space = _sharing_candidates(seed)
    for number in range(8):
        architecture = sample(space, generator=torch.Generator().manual_seed(number))
        held, built = hold(space, architecture), build(space, architecture)
        assert float(macs(X).expected(held)) == pytest.approx(macs(X).of(built), rel=1e-9)
        assert float(params().expected(held)) == pytest.approx(params().of(built), rel=1e-9)


def test_what_candidates_share_is_there_where_any_of_them_is() -> None:
    layer = nn.Linear(3, 3, bias=False)
    once = OpChoice({"once": layer, "twice": nn.Sequential(layer, layer), "none": nn.Identity()}, name="first")
    again = OpChoice({"again": layer, "none": nn.Identity()}, name="second")
    space = relax(nn.Sequential(once, again), softmax)
    with torch.no_grad():
        logits(space)[0].copy_(torch.tensor([0.5, 0.3, 0.2]).log())
        logits(space)[1].copy_(torch.tensor([0.4, 0.6]).log())
    assert float(params().expected(space).detach()) == pytest.approx(9 * (1 - (1 - 0.8) * (1 - 0.4)), rel=1e-6)
    assert float(macs(X).expected(space).detach()) == pytest.approx(9 * (0.5 + 2 * 0.3 + 0.4), rel=1e-6)


def test_one_layer_as_two_candidates_is_counted_for_each() -> None:
    layer = nn.Linear(3, 3, bias=False)
    space = relax(nn.Sequential(OpChoice({"one": layer, "same": layer, "none": nn.Identity()}, name="c")), softmax)
    with torch.no_grad():
        logits(space)[0].copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    assert float(macs(X).expected(space).detach()) == pytest.approx(9 * 0.8, rel=1e-6)
    assert float(params().expected(space).detach()) == pytest.approx(9 * 0.8, rel=1e-6)


def test_no_more_than_all_parameters_are_expected() -> None:
    layer = nn.Linear(3, 3, bias=False)
    space = relax(nn.Sequential(OpChoice({"a": layer, "b": nn.Sequential(layer)}, name="c")), ScaledSigmoid)
    with torch.no_grad():
        logits(space)[0].fill_(9.0)
    assert float(params().expected(space).detach()) == pytest.approx(9.0, rel=1e-6)


def test_places_are_found_once_for_each_module() -> None:
    layer = nn.Linear(3, 3, bias=False)
    network = nn.Sequential(*[layer] * 300)
    assert macs(X).of(network) == 300 * 9.0
    assert sum(call.place == "7" for call in macs_by_call(network, X)) == 1
