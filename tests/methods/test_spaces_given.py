"""Spaces as users give them: frozen weights stay what they are, in every method; what does not fit is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import trainable, weights
from archgrad.errors import ChoiceError, ModelError

torch.set_num_threads(1)


def frozen(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


@functools.cache
def task() -> ag.Classification:
    held = ag.digits()
    return ag.Classification((held.x[:400], held.y[:400]), batch_size=32)


def quiet(steps: int) -> ag.Run:
    return ag.Run(steps=steps, trials=2, seed=0, device="cpu", progress=False)


def network(*, trainable: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    stem = frozen(nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()))
    rest = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(12, 10)
    return nn.Sequential(stem, rest if trainable else frozen(rest), head if trainable else frozen(head))


class Space(nn.Module):
    """A frozen stem, and a choice of three operations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = frozen(nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()))
        operations = {"3": nn.Conv2d(8, 8, 3, padding=1), "1": nn.Conv2d(8, 8, 1), "skip": nn.Identity()}
        self.choice = ag.OpChoice(operations, name="operation")
        self.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.choice(self.stem(x)))


@pytest.mark.parametrize("sparsity", [None, 3.0])
def test_slimming_cuts_frozen_channels_and_leaves_the_others(sparsity: float | None) -> None:
    net = network()
    space = ag.slim(net, example=task().example)
    limit = ag.macs(task().example).at_most(fraction=0.6)
    found = ag.dnal(space, task(), quiet(20), limit=limit, sparsity=sparsity, round_to=1)
    before, after = net[0][0].weight, found.network[0][0].weight
    assert not after.requires_grad
    assert len(after) < len(before)
    assert all(any(torch.equal(row, old) for old in before) for row in after)
    assert not any(torch.equal(row, old) for row in found.network[1][0].weight for old in net[1][0].weight)


METHODS = (
    ag.darts, ag.darts_prime, ag.unas, ag.random_search, ag.monas, ag.radars, ag.multimodal_random,
    functools.partial(ag.random_search, shared=True), functools.partial(ag.darts, second_order=True),
)  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=lambda m: getattr(m, "__name__", f"{getattr(m, 'keywords', '')}"))
def test_searches_train_what_is_left_and_keep_what_is_frozen(method: Callable[..., ag.Found]) -> None:
    space = Space()
    found = method(space, task(), quiet(24))
    assert torch.equal(found.network.stem[0].weight, space.stem[0].weight)
    assert not found.network.stem[0].weight.requires_grad
    assert not torch.equal(found.network.head[-1].weight, space.head[-1].weight)


def test_fresh_weights_are_drawn_for_what_is_trained_alone() -> None:
    space = Space()
    built = ag.build(space, ag.Architecture({"operation": 0}), weights="fresh")
    assert torch.equal(built.stem[0].weight, space.stem[0].weight)
    assert not torch.equal(built.head[-1].weight, space.head[-1].weight)


def test_frozen_weights_are_weights_that_are_not_trained() -> None:
    net = network()
    assert {id(p) for p in weights(net)} == {id(p) for p in net.parameters()}
    assert {id(p) for p in trainable(net)} == {id(p) for part in net[1:] for p in part.parameters()}
    assert ag.params().of(net) == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("method", [ag.dnal, ag.pruning_transfer])
def test_a_space_of_operations_is_refused_by_name(method: Callable[..., ag.Found]) -> None:
    with pytest.raises(ChoiceError, match="a space of gates alone"):
        method(Space(), task(), quiet(12))


@pytest.mark.parametrize("sparsity", [None, 3.0])
def test_nothing_to_train_is_refused(sparsity: float | None) -> None:
    space = ag.slim(network(trainable=False), example=task().example)
    with pytest.raises(ModelError, match="no parameter that requires a gradient"):
        ag.dnal(space, task(), quiet(12), limit=ag.macs(task().example).at_most(fraction=0.6), sparsity=sparsity)
