"""Modules that compare the sizes of what they are given with numbers that they keep."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from families.checks import agree
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices


class Compared(nn.Module):
    """A convolution in a module that keeps its number of channels, and asks whether it is given as many."""

    def __init__(self, inputs: int, outputs: int, way: str) -> None:
        super().__init__()
        self.channels, self.way, self.conv = inputs, way, nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        WAYS[self.way](self, x)
        return self.conv(x).relu()


def _shape(own: Compared, x: Tensor) -> None:
    assert x.shape[1] == own.channels


def _turned(own: Compared, x: Tensor) -> None:
    assert own.channels == x.size(1), "other channels"


def _unpacked(own: Compared, x: Tensor) -> None:
    _, c, _, _ = x.shape
    if c != own.channels:
        raise ValueError("other channels")


def _asserted(own: Compared, x: Tensor) -> None:
    torch._assert(x.size()[1] == own.channels, "other channels")


def _tuple(own: Compared, x: Tensor) -> None:
    assert tuple(x.shape[1:2]) == (own.channels,)


def _float(own: Compared, x: Tensor) -> None:
    assert x.shape[1] == float(own.channels) == own.channels


def _of_numpy(own: Compared, x: Tensor) -> None:
    assert x.shape[1] == np.int64(own.channels)


def _of_torch(own: Compared, x: Tensor) -> None:
    assert bool(x.shape[1] == torch.tensor(own.channels)) and not bool(torch.tensor(own.channels) != x.shape[1])


def _half(own: Compared, x: Tensor) -> None:
    assert x.shape[2] / 2 != own.channels + 0.5 and x.shape[0] != "two" and own.channels != "eight"


WAYS: dict[str, Callable[[Compared, Tensor], None]] = {
    "shape": _shape, "turned": _turned, "unpacked": _unpacked, "asserted": _asserted, "tuple": _tuple,
}  # fmt: skip


# A number of another kind does not shrink.
OTHERS = {"float": _float, "of numpy": _of_numpy, "of torch": _of_torch, "of no kind": _half}


@pytest.mark.parametrize("way", OTHERS)
def test_numbers_of_other_kinds_are_compared_as_ever(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WAYS, way, OTHERS[way])
    net = nn.Sequential(Compared(3, 8, "shape"), nn.Conv2d(8, 6, 1), Compared(6, 2, way)).double()
    x = torch.randn(2, 3, 6, 6).double()
    assert "0.conv" in choices(ag.slim(net, x, keep=["1"]))


@pytest.mark.parametrize("way", WAYS)
def test_what_is_compared_with_channels_shrinks_with_them(way: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Compared(3, 8, way), Compared(8, 8, way), Compared(8, 2, way)).double()
    x = torch.randn(2, 3, 6, 6).double()
    space = ag.slim(net, x)
    assert {n: g[0].size for n, g in choices(space).items()} == {"0.conv": 8, "1.conv": 8}
    agree(space, x, torch.randn(3, 3, 8, 8).double())
    small = ag.build(space, ag.Architecture({"0.conv": (1, 5), "1.conv": (0, 2, 7)}))
    assert (small[0].channels, small[1].channels, small[2].channels) == (3, 2, 3)
    with pytest.raises((AssertionError, ValueError)):
        small[1](torch.randn(1, 8, 6, 6).double())


class Chosen(nn.Module):
    """Numbers that equal a size of a tensor, and count something else."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.conv = 8, nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] == self.steps:
            x = x[:, :, : self.steps // 2]
        return self.conv(x).relu()


class Window(nn.Module):
    """Compares its number of channels with a number that only happens to be as large."""

    def __init__(self) -> None:
        super().__init__()
        self.window, self.conv = 8, nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu() if x.shape[1] == self.window else self.conv(x.relu())


def test_a_number_that_is_compared_and_not_insisted_on_stays() -> None:
    net = nn.Sequential(nn.Conv1d(3, 8, 1), Window(), nn.Conv1d(8, 2, 1)).double()
    x = torch.randn(2, 3, 8).double()
    space = ag.slim(net, x)
    assert "1.conv" in choices(space)
    small = ag.build(space, ag.sample(space, generator=torch.Generator().manual_seed(0)))
    assert small[1].window == 8


def test_what_counts_something_else_costs_no_gate() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 6, 1), nn.Conv1d(6, 8, 1), Chosen(), nn.Conv1d(8, 2, 1)).double()
    x = torch.randn(2, 3, 8).double()
    space = ag.slim(net, x)
    assert "0" in choices(space)
    agree(space, x, torch.randn(3, 3, 8).double())


class Strict(nn.Module):
    """Asks whether a size is a plain number, or hands it to what takes no other."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.conv = way, nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "type" and any(type(size) is not int for size in x.shape):
            raise TypeError("sizes are to be of int")
        if self.way == "pickle":
            pickle.dumps(tuple(x.shape))
        return self.conv(x).relu()


@pytest.mark.parametrize("way", ["type", "pickle"])
def test_sizes_are_plain_numbers_where_code_asks_for_those(way: str) -> None:
    net = nn.Sequential(nn.Conv1d(3, 8, 1), Strict(way), nn.Conv1d(8, 2, 1)).double()
    assert set(choices(ag.slim(net, torch.randn(2, 3, 5).double()))) == {"0", "1.conv"}
