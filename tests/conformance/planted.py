"""Two small problems with a planted best answer: a network to slim, and a supernet to search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

import archgrad as ag

GOOD = (0, 2, 5, 7)
EXAMPLE = torch.zeros(1, 8)


class Problem(Protocol):
    """A space and what is known about it."""

    epochs: int
    lowest: str
    tight: float

    def space(self) -> nn.Module: ...

    def reference(self) -> float: ...

    def answered(self, architecture: ag.Architecture) -> bool: ...


def task() -> ag.Classification:
    """Of eight inputs four carry the label and four carry noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=generator)
    y = (x[:, list(GOOD)].sum(dim=1) > 0).long()
    return ag.Classification((x, y), batch_size=50)


def limit(fraction: float = 0.5) -> ag.Limit:
    return ag.macs(EXAMPLE).at_most(fraction=fraction)


@dataclass(frozen=True)
class Gates:
    """Hidden unit j passes on x_j; the units outside GOOD disturb the output."""

    epochs: int = 6
    lowest: str = "10 "
    tight: float = 0.2

    @staticmethod
    def network() -> nn.Sequential:
        net = nn.Sequential(nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 2))
        out = torch.tensor([1.0 if j in GOOD else (-1.0) ** j * 0.8 for j in range(8)])
        with torch.no_grad():
            net[0].weight.copy_(torch.eye(8))
            net[0].bias.zero_()
            net[2].weight.copy_(torch.stack([-out, out]))
            shift = sum(float(w) for w in out) * 0.8
            net[2].bias.copy_(torch.tensor([shift, -shift]))
        return net

    def space(self) -> nn.Module:
        return ag.slim(self.network(), torch.randn(4, 8, generator=torch.Generator().manual_seed(1)))

    def reference(self) -> float:
        return ag.macs(EXAMPLE).of(self.space())

    def answered(self, architecture: ag.Architecture) -> bool:
        return list(architecture.values()) == [GOOD]


@dataclass(frozen=True)
class Inputs:
    """Each input has a gate, whatever the weights are; those outside GOOD are noise."""

    epochs: int = 60
    lowest: str = "2 "
    tight: float = 0.2

    def space(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return ag.slim(nn.Sequential(nn.Linear(8, 2)), EXAMPLE, inputs=True)

    def reference(self) -> float:
        return 16.0

    def answered(self, architecture: ag.Architecture) -> bool:
        return architecture["0.inputs"] == GOOD


class Only(nn.Module):
    """x with all but some of its entries set to 0."""

    def __init__(self, entries: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mask", torch.zeros(8).index_fill(0, torch.tensor(entries).long(), 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


class Searched(nn.Module):
    """The right entries, not the wrong ones; the first input, not its absolute value; any of the hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        others = tuple(set(range(8)) - set(GOOD))
        self.entries = ag.OpChoice({"wrong": Only(others), "right": Only(GOOD), "none": Only(())}, name="entries")
        self.source = ag.InputChoice(2, name="source")
        widths = {f"hidden {n}": nn.Sequential(nn.Linear(8, n), nn.ReLU(), nn.Linear(n, 8)) for n in (8, 16, 32)}
        self.hidden = ag.OpChoice(widths, name="hidden")
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entries(self.source([x, x.abs()]))
        return self.head(x + self.hidden(x))


@dataclass(frozen=True)
class Supernet:
    """The planted answer is entries "right" from the first input; the hidden layers differ in MACs alone."""

    epochs: int = 40
    lowest: str = "144"
    tight: float = 1.0

    def space(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return Searched()

    def reference(self) -> float:
        return float(2 * 8 * 32 + 16)

    def answered(self, architecture: ag.Architecture) -> bool:
        return architecture["entries"] == 1 and architecture["source"] == (0,)


GATES, INPUTS, SUPERNET = Gates(), Inputs(), Supernet()
