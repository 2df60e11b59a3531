"""Expected counted costs of supernets: a closed form in the weights against the mean over all architectures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, logits, relax, using
from archgrad.choices.architecture import Architecture
from archgrad.choices.modules import Choice, InputChoice, OpChoice
from archgrad.choices.relaxations import softmax
from archgrad.costs.count import macs, params
from archgrad.extract.discretize import build

X = torch.ones(1, 3, 5, 5, dtype=torch.float64)


def conv(width: int, kernel: int) -> nn.Module:
    return nn.Conv2d(width, width, kernel, padding=kernel // 2)


def operations(name: str, *, width: int = 4) -> OpChoice:
    return OpChoice({"conv3": conv(width, 3), "skip": nn.Identity(), "conv1": conv(width, 1)}, name=name)


def chain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), operations("a"), nn.ReLU(), operations("b"), nn.Conv2d(4, 2, 3))


def same_name() -> nn.Module:
    """One decision for two places of different price."""
    widen = nn.Conv2d(4, 6, 1)
    behind = (operations("a", width=6), operations("b", width=6))
    return nn.Sequential(nn.Conv2d(3, 4, 1), operations("a"), widen, *behind)


def nested() -> nn.Module:
    inner = nn.Sequential(operations("inner"), nn.ReLU(), conv(4, 5))
    outer = OpChoice({"cell": inner, "skip": nn.Identity()}, name="outer")
    return nn.Sequential(nn.Conv2d(3, 4, 1), outer, operations("b"))


class Node(nn.Module):
    """Three edges, each with a choice of operations; the node keeps one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        edges = [operations("e0"), nn.Sequential(operations("e1"), conv(4, 1)), nn.MaxPool2d(3, 1, 1)]
        self.node = InputChoice(3, name="node", edges=edges)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.node([x, torch.relu(x), -x])


SPACES = {"chain": chain, "same name": same_name, "nested": nested, "edges": Node}


def all_of(space: nn.Module) -> Iterator[tuple[Architecture, dict[str, int]]]:
    """Each architecture that keeps one entry a choice, and its entries."""
    found = {name: same[0] for name, same in choices(space).items()}
    for entries in itertools.product(*(range(choice.size) for choice in found.values())):
        picks = dict(zip(found, entries, strict=True))
        yield Architecture({n: (i,) if isinstance(found[n], InputChoice) else i for n, i in picks.items()}), picks


def relaxed(space: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """The space under random softmax weights in double precision, and those weights."""
    relax(space.double(), softmax).double()
    with torch.no_grad():
        for parameter in logits(space):
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64))
    return space, {name: same[0].ready().detach() for name, same in choices(space).items()}


def mean_over(space: nn.Module, weights: dict[str, Tensor], value) -> float:
    return sum(
        math.prod(float(weights[n][i]) for n, i in picks.items()) * value(architecture)
        for architecture, picks in all_of(space)
    )


@pytest.mark.parametrize("make", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("cost", [macs(X), params()], ids=["macs", "params"])
def test_the_expected_cost_equals_the_mean_over_all_architectures(make, cost) -> None:
    space, weights = relaxed(make())
    prices = {architecture: cost.of(build(space, architecture)) for architecture, _ in all_of(space)}
    assert len(set(prices.values())) > 4
    for architecture, price in prices.items():
        assert cost.expected(hold(space, architecture)).item() == pytest.approx(price, rel=1e-12)
    assert cost.expected(space).item() == pytest.approx(mean_over(space, weights, prices.__getitem__), rel=1e-9)


def test_the_mean_is_that_of_the_policy_and_no_other() -> None:
    """The control: the even mean over architectures is something else."""
    space, weights = relaxed(chain())
    even = {name: torch.full_like(w, 1 / len(w)) for name, w in weights.items()}
    value = params().expected(space).item()
    other = mean_over(space, even, lambda a: params().of(build(space, a)))
    assert abs(value / other - 1) > 1e-3


@pytest.mark.parametrize("make", SPACES.values(), ids=SPACES)
def test_the_gradient_is_that_of_the_mean(make) -> None:
    space, _ = relaxed(make())
    cost = macs(X)
    counter = cost.counter(space)
    parameters = logits(space)
    gradients = torch.autograd.grad(counter(space), parameters)
    prices = {architecture: float(cost.of(build(space, architecture))) for architecture, _ in all_of(space)}
    leaves = {name: same[0].ready() for name, same in choices(space).items()}
    mean = sum(
        price * torch.stack([leaves[n][i] for n, i in picks.items()]).prod()
        for (_, picks), price in zip(all_of(space), prices.values(), strict=True)
    )
    for got, wanted in zip(gradients, torch.autograd.grad(mean, parameters), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-9 * max(prices.values()))


class Shared(nn.Module):
    """Two picks of the same choice reach one operation: what is documented for such a sum of products."""

    def __init__(self) -> None:
        super().__init__()
        self.first = OpChoice(["x", "y"], name="first")
        self.second = OpChoice(["x", "y"], name="second")
        self.op = nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.first.ready()[0] + self.second.ready()[0]
        return self.op(x) * weights

    def mixing_terms(self, path: str) -> list[list[tuple[Choice, int]]]:
        return [[(self.first, 0)], [(self.second, 0)]]


class Squared(Shared):
    """The same choice twice in one term."""

    def mixing_terms(self, path: str) -> list[list[tuple[Choice, int]]]:
        return [[(self.first, 0), (self.first, 0)]]


def test_an_operation_that_choices_share_is_priced_by_its_sum_of_products() -> None:
    space = Shared()
    cost = macs(torch.ones(1, 2))
    for one, two in itertools.product((0.0, 1.0, 0.25), repeat=2):
        weights = {"first": torch.tensor([one, 1 - one]), "second": torch.tensor([two, 1 - two])}
        with using(space, weights):
            assert cost.expected(space).item() == pytest.approx(4 * (one + two), rel=1e-12)


def test_a_term_that_names_a_choice_twice_has_it_once() -> None:
    space, cost = Squared(), macs(torch.ones(1, 2))
    values = {}
    for one in (0.0, 1.0, 0.5):
        with using(space, {"first": torch.tensor([one, 1 - one]), "second": torch.tensor([1.0, 0.0])}):
            values[one] = cost.expected(space).item()
    assert values == {0.0: 0.0, 1.0: 4.0, 0.5: 2.0}  # the mean over draws
