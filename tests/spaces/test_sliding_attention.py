"""Efficient channel attention: a convolution of one channel slides along the channels, which can go all the same."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from families.checks import assert_plain, difference, extremes, outputs, stir, swapped
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, hold, sample
from archgrad.extract.discretize import build, write_back

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()


class Means(nn.Module):
    """Channels last, from the mean over all places."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x.mean((2, 3)).unsqueeze(1))).transpose(-1, -2).unsqueeze(-1)


class Pooled(nn.Module):
    """By modules, as in the authors' own files."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.avg_pool, self.sigmoid = nn.AdaptiveAvgPool2d(1), nn.Sigmoid()
        self.conv = nn.Conv1d(1, 1, kernel_size=size, padding=(size - 1) // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.avg_pool(x)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * self.sigmoid(y).expand_as(x)


class Viewed(nn.Module):
    """A bias, a view, and a mean and a largest value, each through the same filter."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        own = [self.conv(y[:, None]) for y in (x.mean((2, 3)), x.amax((2, 3)))]
        return x * (own[0] + own[1]).sigmoid().view(len(x), -1, 1, 1)


class Upright(nn.Module):
    """A filter of two dimensions, one place wide."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, (size, 1), padding=(size // 2, 0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3))[:, None, :, None]).sigmoid()[:, 0, :, :, None]


class Net(nn.Module):
    def __init__(self, attention: nn.Module, place: str) -> None:
        super().__init__()
        self.place, self.attention = place, attention
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.third, self.head = nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        y = self.norm2(self.second(x))
        if self.place == "branch":
            x = (x + self.attention(y)).relu()
        elif self.place == "stream":
            x = self.attention(x + y.relu())
        else:
            x = self.attention(y.relu())
        return self.head(self.third(x).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "place"), [*itertools.product([Means, Pooled, Viewed, Upright], ["branch", "stream", "alone"])]
)
def test_channels_that_a_filter_slides_along_go_exactly(kind: type[nn.Module], place: str) -> None:
    torch.manual_seed(1)
    net = Net(kind(3 if kind is Means else 5), place).double()
    stir(net)
    space = ag.slim(net, X)
    sizes = {name: same[0].size for name, same in choices(space).items()}
    assert sorted(sizes.values()) == ([6, 8, 8] if place == "alone" else [6, 8]), ag.frozen(space)
    for architecture in [
        *extremes(space),
        *(sample(space, generator=torch.Generator().manual_seed(i)) for i in (0, 1)),
    ]:
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            assert difference(outputs(held, (X,), training=training), outputs(built, (X,), training=training)) < 1e-9
        for cost in (ag.params(), ag.macs(X)):
            assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)
        assert_plain(built)
    fewer = ag.Architecture({n: tuple(i for i in range(s) if i % 3) for n, s in sizes.items()})
    built = build(space, fewer).eval()
    wrong = build(space, swapped(fewer, sizes))
    assert difference(outputs(hold(space, fewer), (X,)), outputs(wrong, (X,))) > 1e-7
    for again in (copy.deepcopy(built), pickle.loads(pickle.dumps(built)), torch.export.export(built, (X,)).module()):
        with torch.no_grad():
            assert difference(outputs(built, (X,)), [again(X)]) < 1e-9


@pytest.mark.parametrize("kind", [Means, Viewed])
def test_what_was_cut_trains_comes_back_and_is_cut_again(kind: type[nn.Module]) -> None:
    torch.manual_seed(2)
    net = Net(kind(3), "branch").double()
    stir(net)
    space = ag.slim(net, X)
    fewer = ag.Architecture({n: tuple(range(1, s[0].size)) for n, s in choices(space).items()})
    built = build(space, fewer)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(1.1)
    write_back(space, fewer, built)
    assert difference(outputs(build(space, fewer), (X,)), outputs(built, (X,))) < 1e-9
    for _ in range(2):  # also when it was saved
        built = pickle.loads(pickle.dumps(built))
        space = ag.slim(built, X)
        sizes = {n: s[0].size for n, s in choices(space).items()}
        assert sorted(sizes.values()) == sorted(len(pick) for pick in fewer.values() if isinstance(pick, tuple)), (
            ag.frozen(space)
        )
        for architecture in [*extremes(space), sample(space, generator=torch.Generator().manual_seed(1))]:
            held, again = hold(space, architecture), build(space, architecture)
            assert difference(outputs(held, (X,)), outputs(again, (X,))) < 1e-9
            for cost in (ag.params(), ag.macs(X)):
                assert float(cost.expected(held)) == pytest.approx(cost.of(again), rel=1e-9)
            assert_plain(again)
        fewer = ag.Architecture({n: tuple(range(max(1, size - 2))) for n, size in sizes.items()})
        built = build(space, fewer)


@pytest.mark.parametrize("widths", [(8, 8), (8, 6), (6, 8)])
def test_blocks_share_a_filter(widths: tuple[int, int]) -> None:
    """What it slides along is one where both have as many channels, and stays where they have not."""

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Means(3)
            self.first, self.second = (nn.Conv2d(n, m, 3) for n, m in ((3, widths[0]), (widths[0], widths[1])))
            self.third, self.head = nn.Conv2d(widths[1], 5, 3), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.attention(self.second(self.attention(self.first(x).relu())).relu())
            return self.head(self.third(x).relu().mean((2, 3)))

    net = Blocks().double()
    stir(net)
    space = ag.slim(net, X)
    assert set(choices(space)) == ({"first", "third"} if len(set(widths)) == 1 else {"third"})
    for architecture in [*extremes(space), sample(space, generator=torch.Generator().manual_seed(1))]:
        held, built = hold(space, architecture), build(space, architecture)
        assert difference(outputs(held, (X,)), outputs(built, (X,))) < 1e-9
        for cost in (ag.params(), ag.macs(X)):
            assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)


def test_a_filter_that_makes_fewer_places_keeps_its_channels() -> None:
    class Shorter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inlet, self.conv, self.head = nn.Linear(5, 8), nn.Conv1d(1, 1, 3), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(self.inlet(x)[:, None])[:, 0])

    with pytest.raises(ag.errors.ModelError, match=r"inlet: conv \(Conv1d\) mixes along these channels"):
        ag.slim(Shorter(), torch.randn(3, 5))
