"""Global response normalization in modules of the user's own: its channels go, and its mean is of those left."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from families.checks import agree, difference, outputs
from torch import Tensor, nn

from archgrad.choices.access import choices, hold
from archgrad.choices.architecture import Architecture
from archgrad.choices.channel_norms import channel_norm
from archgrad.choices.response_norms import ResponseNorm
from archgrad.extract.discretize import build
from archgrad.gates import full
from archgrad.spaces.slim.slimmable import frozen, slim

DOUBLE = torch.float64
WAYS = ("paper", "hidden eps", "no bias", "no residual", "in order")


class Response(nn.Module):
    """x of one to three spatial axes, channels last or first, in one of the ways in which it is written."""

    def __init__(self, width: int, *, way: str, places: int = 2, last: bool = True) -> None:
        super().__init__()
        self.way, self.last = way, last
        self.spatial = tuple(range(1, 1 + places)) if last else tuple(range(2, 2 + places))
        self.channels = -1 if last else 1
        if way != "hidden eps":
            self.eps = 1e-3 if way == "in order" else 1e-6
        shape = (*[1] * (places + 1), width) if last else (1, width, *[1] * places)
        names = ("weight", "bias") if way == "in order" else ("gamma", "beta")
        for name in names[: 1 if way == "no bias" else 2]:
            setattr(self, name, nn.Parameter(torch.zeros(width if way == "in order" else shape)))

    def forward(self, x: Tensor) -> Tensor:
        length = torch.norm(x, p=2, dim=self.spatial, keepdim=True)
        mean = length.mean(dim=self.channels, keepdim=True)
        if self.way == "in order":
            shape = [1] * x.dim()
            shape[self.channels] = -1
            return x + torch.addcmul(self.bias.view(shape), self.weight.view(shape), x * (length / (mean + self.eps)))
        share = length / (mean + (1e-6 if self.way == "hidden eps" else self.eps))
        y = self.gamma * (x * share) + (0.0 if self.way == "no bias" else self.beta)
        return y if self.way == "no residual" else y + x


class Block(nn.Module):
    """A block of ConvNeXt V2 for places of any number of axes."""

    def __init__(self, width: int, *, way: str, places: int, last: bool) -> None:
        super().__init__()
        self.last = last
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[places - 1]
        self.depth = conv(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width) if last else nn.GroupNorm(1, width)
        self.first = nn.Linear(width, 3 * width) if last else conv(width, 3 * width, 1)
        self.response = Response(3 * width, way=way, places=places, last=last)
        self.second = nn.Linear(3 * width, width) if last else conv(3 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(x)
        y = self.norm(y.movedim(1, -1) if self.last else y)
        y = self.second(self.response(F.gelu(self.first(y))))
        return x + (y.movedim(-1, 1) if self.last else y)


class Net(nn.Module):
    def __init__(self, **how: object) -> None:
        super().__init__()
        self.stem = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[int(how["places"]) - 1](3, 4, 2, stride=2)  # type: ignore[call-overload]
        self.blocks = nn.Sequential(Block(4, **how), Block(4, **how))  # type: ignore[arg-type]
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).flatten(2).mean(2))


KINDS = [*itertools.product(WAYS, (2,), (True, False)), *itertools.product(("paper",), (1, 3), (True, False))]


@pytest.mark.parametrize(("way", "places", "last"), KINDS)
def test_channels_behind_a_response_norm_go(way: str, places: int, last: bool) -> None:
    torch.manual_seed(places)
    x = torch.randn(2, 3, *[6] * places, dtype=DOUBLE)
    space = slim(Net(way=way, places=places, last=last).to(DOUBLE), x)
    assert set(frozen(space)) == {"head"}
    assert {same[0].size for same in choices(space).values()} == {4, 12, 1}
    agree(space, x, torch.randn(3, 3, *[8] * places, dtype=DOUBLE))
    some = Architecture({**full(space), "blocks.0.first": (0, 2, 3)})
    other = Architecture({**full(space), "blocks.0.first": (1, 2, 3)})
    assert difference(outputs(hold(space, some), (x,)), outputs(build(space, other), (x,))) > 1e-6


@pytest.mark.parametrize(("way", "last"), [*itertools.product(WAYS, (True, False))])
def test_a_response_norm_is_known_by_what_it_computes(way: str, last: bool) -> None:
    torch.manual_seed(0)
    module = Response(5, way=way, last=last).to(DOUBLE)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    kind = channel_norm(module)
    assert isinstance(kind, ResponseNorm)
    assert (kind.axis, kind.residual, kind.eps) == (
        -1 if last else 1, way != "no residual", 1e-3 if way == "in order" else 1e-6,
    )  # fmt: skip
    x = torch.randn(2, 5, 3, 4, dtype=DOUBLE)
    x = x.movedim(1, -1) if last else x
    every = torch.ones(5, dtype=DOUBLE)
    assert torch.allclose(kind(module, x, every), module(x), rtol=1e-9)
    tiny = 1e-5 * x  # where eps counts
    assert torch.allclose(kind(module, tiny, every), module(tiny), rtol=1e-9)
    g = (0.1 + torch.rand(5, dtype=DOUBLE)).requires_grad_()
    assert torch.autograd.gradcheck(lambda share: kind(module, x, share), g)


class Mean(nn.Module):
    """Not one of the kind: the mean is of the squares."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        power = x.square().sum((1, 2), keepdim=True)
        return x + self.gamma * x * power / (power.mean(-1, keepdim=True) + 1e-6)


def test_what_only_looks_like_one_is_not_taken_for_it() -> None:
    assert channel_norm(Mean(5)) is None
