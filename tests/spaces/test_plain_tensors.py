"""Tensors that a module keeps as plain attributes go with the channels that lie along them."""

from __future__ import annotations

import functools

import pytest
import torch
from families.checks import agree
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices


class Table(nn.Module):
    """A table of positions that is added: a buffer, saved or not, or a plain attribute, as in SimpleViT."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        table = torch.arange(60.0).view(6, 10).sin()
        if kind == "plain":
            self.table = table
        else:
            self.register_buffer("table", table, persistent=kind == "saved")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table.to(x.device, dtype=x.dtype)


class Kept(nn.Module):
    """Keeps what it computed last, a tensor at first and then another."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.layer = torch.zeros(3), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x).detach()
        return self.layer(x).relu()


class Replaced(nn.Module):
    """Keeps something else than a tensor of its last call, or looks for its tensor in a place of its own."""

    last: object = None

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.layer = way, nn.Linear(10, 10)
        self.kept = torch.zeros(10) if way != "over a name of the class" else 0.0
        self.last = torch.zeros(10)

    @functools.cached_property
    def table(self) -> Tensor:
        return torch.zeros(10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).relu()
        if self.way == "a number":
            self.kept = 0.0
        elif self.way == "a list":
            self.kept = [y.detach()]
        elif self.way == "by its dictionary":
            return y + float(vars(self)["kept"].sum())
        elif self.way == "a cached property":
            return y + float(self.table.sum())
        return y


@pytest.mark.parametrize(
    "way", ["a number", "a list", "by its dictionary", "a cached property", "over a name of the class"]
)
def test_what_is_no_table_stays_what_it_is(way: str) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 10), Replaced(way), nn.Linear(10, 3)).double(), torch.randn(2, 4).double()
    net(x)
    space = ag.slim(net, x)
    assert {n: g[0].size for n, g in choices(space).items()} == {"0": 10, "1.layer": 10}
    agree(space, x, torch.randn(3, 4).double(), plain=False)


@pytest.mark.parametrize("kind", ["plain", "saved", "not saved"])
def test_a_table_is_cut_whatever_it_is_kept_as(kind: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 10), Table(kind), nn.ReLU(), nn.Linear(10, 3)).double()
    before = list(net.state_dict())
    x = torch.randn(2, 6, 4).double()
    space = ag.slim(net, x)
    assert {n: g[0].size for n, g in choices(space).items()} == {"0": 10}
    agree(space, x, torch.randn(3, 6, 4).double())
    small = ag.build(space, ag.Architecture({"0": (2, 7)}))
    assert small[1].table.shape == (6, 2) and torch.equal(small[1].table, net[1].table[:, [2, 7]].to(small[1].table))
    assert list(small.state_dict()) == before == list(net.state_dict())
    assert ("table" in vars(net[1])) == (kind == "plain"), "the network that was given is left as it is"


def test_what_a_module_keeps_of_a_call_costs_no_channels() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 10), Kept(), nn.Linear(10, 3)).double(), torch.randn(2, 4).double()
    space = ag.slim(net, x)
    assert {n: g[0].size for n, g in choices(space).items()} == {"0": 10, "1.layer": 10}
    agree(space, x, torch.randn(3, 4).double())


class Scaled(nn.Module):
    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.layer, self.table = nn.Linear(10, 10), table

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x).relu() * self.table


def test_a_table_that_several_modules_keep_is_cut_in_each() -> None:
    torch.manual_seed(0)
    table, x = torch.linspace(0.5, 1, 10).double(), torch.randn(2, 4).double()
    net = nn.Sequential(nn.Linear(4, 10), Scaled(table), Scaled(table), nn.Linear(10, 3)).double()
    space = ag.slim(net, x)
    assert choices(space)["0"][0].size == 10
    agree(space, x, torch.randn(3, 4).double())
