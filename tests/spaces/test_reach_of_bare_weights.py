"""What `frozen` says of modules that compute with parameters of their own, which are the weights of no layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families.checks import extremes
from torch import Tensor, nn
from torch.nn import functional as F

from archgrad.choices.access import choices
from archgrad.costs.count import params
from archgrad.extract.discretize import build
from archgrad.spaces.slim.slimmable import frozen, slim

DOUBLE = torch.float64
PRODUCTS: dict[str, tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor]]] = {
    "scaled": ((1, 0), lambda x, w: F.linear(x, w * 0.7)),
    "plain": ((1, 0), F.linear),
    "matrix": ((0, 1), lambda x, w: x @ w),
    "turned": ((1, 0), lambda x, w: (w @ x.T).T),
    "einsum": ((1, 0), lambda x, w: torch.einsum("oi,bi->bo", w, x)),
    "convolution": ((1, 0, 2, 2), lambda x, w: F.conv2d(x[:, :, None, None], w * 0.7, padding=1).mean((2, 3))),
}


class Bare(nn.Module):
    """[B, reads] -> [B, makes] by a parameter of its own."""

    def __init__(self, product: str, reads: int, makes: int) -> None:
        super().__init__()
        shape, self.product = PRODUCTS[product]
        sizes = [(reads, makes)[n] if n < 2 else 3 for n in shape]
        self.weight, self.bias = nn.Parameter(torch.randn(sizes)), nn.Parameter(torch.randn(makes))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight) + self.bias


@pytest.mark.parametrize("layers", ["bare", "mixed"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_fractions_out_of_reach_are_those_of_the_smallest_network(product: str, layers: str) -> None:
    middle = Bare(product, 12, 9) if layers == "bare" else nn.Linear(12, 9)
    net = nn.Sequential(Bare(product, 6, 12), nn.ReLU(), middle, nn.ReLU(), Bare(product, 9, 3)).double()
    space = slim(net, torch.randn(4, 6, dtype=DOUBLE))
    assert list(choices(space)) == ["0.weight", "2.weight" if layers == "bare" else "2"], dict(frozen(space))
    smallest = build(space, extremes(space)[1])
    bare = 9 if product == "convolution" else 1  # places of a kernel
    inner = bare if layers == "bare" else 1
    whole, least = bare * 6 * 12 + inner * 12 * 9 + bare * 9 * 3, bare * 6 * 1 + inner * 1 * 1 + bare * 1 * 3
    assert frozen(space).macs_fraction == pytest.approx(least / whole)
    assert frozen(space).parameters_fraction == pytest.approx(params().of(smallest) / params().of(net))


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_bare_weight_that_is_read_alone_is_listed_with_its_reason(product: str) -> None:
    """Its input channels go, and what it makes stays."""
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), Bare(product, 12, 3)).double()
    space = slim(net, torch.randn(4, 6, dtype=DOUBLE))
    assert list(choices(space)) == ["0"]
    assert dict(frozen(space)) == {"2": "its channels reach the network's output"}


@pytest.mark.parametrize("product", PRODUCTS)
def test_keep_holds_what_a_bare_weight_makes(product: str) -> None:
    parts = (Bare(product, 6, 12), nn.ReLU(), Bare(product, 12, 9), nn.ReLU(), nn.Linear(9, 3))
    space = slim(nn.Sequential(*parts).double(), torch.randn(4, 6, dtype=DOUBLE), keep=["2"])
    assert list(choices(space)) == ["0.weight"]
    assert "at your wish" in frozen(space)["2"]


class Recurrent(nn.Module):
    """An LSTM written by hand, whose first states are as wide as a number says."""

    def __init__(self, reads: int, hidden: int) -> None:
        super().__init__()
        self.width = hidden
        self.reads, self.keeps = (
            nn.Parameter(torch.randn(reads, 4 * hidden)),
            nn.Parameter(torch.eye(hidden, 4 * hidden)),
        )
        self.bias = nn.Parameter(torch.zeros(4 * hidden))

    def forward(self, x: Tensor) -> Tensor:
        state = cell = torch.zeros(len(x), int(str(self.width)), dtype=x.dtype)
        for step in range(x.shape[1]):
            gates = x[:, step] @ self.reads + state @ self.keeps + self.bias
            enter, forget, value, leave = gates.chunk(4, 1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * value.tanh()
            state = leave.sigmoid() * cell.tanh()
        return state


def test_a_module_of_which_only_the_input_is_cut_is_listed() -> None:
    net = nn.Sequential(nn.Linear(4, 12), Recurrent(12, 8), nn.Linear(8, 3)).double()
    space = slim(net, torch.randn(2, 5, 4, dtype=DOUBLE))
    assert list(choices(space)) == ["0"]
    assert set(frozen(space)) == {"1", "2"}
    assert "fixed number of channels" in frozen(space)["1"]
