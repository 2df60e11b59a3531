"""Channels over which lengths, distances and products of activations are taken, whatever adds up in front of them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from families.checks import difference, extremes, outputs, stir
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, sample
from archgrad.costs.count import macs, params
from archgrad.extract.discretize import build
from archgrad.spaces.slim.slimmable import frozen, slim

DOUBLE = torch.float64


def sizes(space: nn.Module) -> dict[str, int]:
    return {name: same[0].size for name, same in choices(space).items() if not same[0].vanishing}


def assert_exact(space: nn.Module, example: tuple[Tensor, ...]) -> None:
    stir(space)
    few = [sample(space, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for architecture in (extremes(space)[1], *few):
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            expected = outputs(held, example, training=training)
            assert difference(expected, outputs(built, example, training=training)) < 1e-9
        assert float(params().expected(held)) == pytest.approx(params().of(built), rel=1e-9)
        assert float(macs(example).expected(held)) == pytest.approx(macs(example).of(built), rel=1e-9)


UNIT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "normalize": lambda x, table: F.normalize(x, dim=-1) @ table.T,
    "by hand": lambda x, table: (x / x.norm(dim=-1, keepdim=True)) @ table.T,
    "squares": lambda x, table: (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)) @ table.T,
    "cosine": lambda x, table: F.cosine_similarity(x.unsqueeze(-2), table, dim=-1),
    "cosine classifier": lambda x, table: F.linear(F.normalize(x, dim=-1), F.normalize(table, dim=-1)),
    "distance": lambda x, table: torch.cdist(x, table.expand(len(x), -1, -1)),
    "distance by hand": lambda x, table: (x.unsqueeze(-2) - table).square().sum(-1),
}


class Stream(nn.Module):
    """A residual stream, a table that may be added to it, norms before its branches, and what takes its length."""

    def __init__(self, way: str, *, table: bool, norm: bool, blocks: int) -> None:
        super().__init__()
        self.way, self.first = way, nn.Linear(5, 8)
        self.places = nn.Parameter(torch.randn(1, 4, 8)) if table else None
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8) if norm else nn.Identity(), nn.Linear(8, 7), nn.GELU(), nn.Linear(7, 8))
            for _ in range(blocks)
        )
        self.table = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) if self.places is None else self.first(x) + self.places
        for block in self.blocks:
            x = x + block(x)
        return UNIT[self.way](x, self.table)


@pytest.mark.parametrize("way", UNIT)
def test_lengths_behind_a_residual_sum_leave_the_stream_free(way: str) -> None:
    draw = random.Random(way)
    net = Stream(way, table=draw.random() < 0.5, norm=draw.random() < 0.5, blocks=draw.randint(1, 3)).double()
    x = torch.randn(2, 4, 5, dtype=DOUBLE)
    space = slim(net, x)
    assert sizes(space) == {"first": 8, **{f"blocks.{i}.1": 7 for i in range(len(net.blocks))}}
    assert set(frozen(space).values()) <= {"its channels reach the network's output"}
    assert_exact(space, (x,))


class Mixed(nn.Module):
    """A length of what is added to values that nothing makes: they stay when the layer's channels are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(F.normalize(y + torch.linspace(0, 1, 8, dtype=y.dtype), dim=-1))


def test_a_length_of_values_that_nothing_makes_freezes_its_channels() -> None:
    x = torch.randn(2, 4, 5, dtype=DOUBLE)
    space = slim(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), Mixed()).double(), x)
    assert sizes(space) == {"0": 5} and "2.first" in frozen(space)


class Clusters(nn.Module):
    """Residuals to centers, added up by soft assignments and given unit length twice (NetVLAD)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.chosen, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Linear(32, 2)
        self.centers = nn.Parameter(torch.rand(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(self.first(x), dim=1)
        part, x = self.chosen(x).flatten(2).softmax(1), x.flatten(2)
        y = ((x.unsqueeze(1) - self.centers[..., None]) * part.unsqueeze(2)).sum(-1)
        return self.last(F.normalize(F.normalize(y, dim=2).flatten(1), dim=1))


class Features(nn.Module):
    """Products of all pairs of embeddings (DLRM), put together by `cat` and a view, or by `stack`."""

    def __init__(self, *, stacked: bool) -> None:
        super().__init__()
        self.stacked, self.first = stacked, nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        self.tables = nn.ModuleList(nn.EmbeddingBag(9, 8, mode="sum") for _ in range(2))
        self.last = nn.Linear(8 + 3, 2)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        x = self.first(x)
        parts = [x, *(table(words) for table in self.tables)]
        y = torch.stack(parts, 1) if self.stacked else torch.cat(parts, 1).view(len(x), -1, x.shape[1])
        pairs = torch.bmm(y, y.transpose(1, 2))
        return self.last(torch.cat([x, pairs[:, [1, 2, 2], [0, 0, 1]]], 1))


class Searched(nn.Module):
    """One image's features are the filters of another's, a channel each (trackers)."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.features(x), self.features(y)
        found = F.conv2d(x.reshape(1, -1, *x.shape[2:]), y.reshape(-1, 1, *y.shape[2:]), groups=len(x) * x.shape[1])
        return self.last(found.view(len(x), -1, *found.shape[2:]))


class Filtered(nn.Module):
    """A layer's filters that the module around it applies itself, beside products of its own (Mamba)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.filters, self.last = (
            nn.Linear(5, 8),
            nn.Conv1d(8, 8, 3, padding=1, groups=8),
            nn.Linear(8, 2),
        )
        self.mixing = nn.Parameter(torch.randn(8, 6))
        self.back = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv1d(self.first(x).transpose(1, 2), self.filters.weight, self.filters.bias, padding=1, groups=len(
            self.filters.weight)).transpose(1, 2)  # fmt: skip
        return self.last(y + self.back(torch.tanh(y @ self.mixing)))


class Excited(nn.Module):
    """Unit length of what factors scale, which stand on the left or the right, beside a norm over groups."""

    def __init__(self, *, left: bool) -> None:
        super().__init__()
        self.left, self.first, self.norm = left, nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8)
        self.factors = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.norm(x)
        y = self.factors(x) * y if self.left else y * self.factors(x)
        return self.last(F.normalize(x + y, dim=1))


IMAGE, WORDS = torch.randn(2, 3, 6, 6, dtype=DOUBLE), torch.randint(0, 9, (2, 3))
SPECIAL: dict[str, tuple[nn.Module, tuple[Tensor, ...], dict[str, int]]] = {
    "clusters": (Clusters(), (IMAGE,), {"first": 8}),
    "stacked features": (Features(stacked=True), (IMAGE[:, 0, 0, :5], WORDS), {"first.0": 8}),
    "joined features": (Features(stacked=False), (IMAGE[:, 0, 0, :5], WORDS), {"first.0.channels": 8}),
    "factors on the left": (Excited(left=True), (IMAGE,), {"first": 4}),
    "factors on the right": (Excited(left=False), (IMAGE,), {"first": 4}),
    "search": (Searched(), (IMAGE, IMAGE[..., 1:5, :4].contiguous()), {"features": 8}),
    "filters": (Filtered(), (IMAGE[:, 0, :, :5].contiguous(),), {"first": 8, "mixing": 6}),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_networks_that_multiply_activations_shrink(name: str) -> None:
    net, example, expected = SPECIAL[name]
    space = slim(net.double(), example)
    assert sizes(space) == expected
    assert not frozen(space).keys() - {"last", "chosen"}
    assert_exact(space, example)


def _near_by_hand(x: Tensor) -> Tensor:
    lengths = x.square().sum(-1, keepdim=True)
    return lengths - 2 * x @ x.transpose(1, 2) + lengths.transpose(1, 2)


def _summed(x: Tensor) -> Tensor:
    y = x.transpose(1, 2)
    return x @ y if x.shape[-1] > 3 else torch.addbmm(x.new_zeros(x.shape[1], x.shape[1]), x, y)


NEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "cdist": lambda x: torch.cdist(x, x),
    "of one norm": lambda x: torch.cdist(x, x, p=1),
    "by hand": _near_by_hand,
    "summed": _summed,
}


class Neighbours(nn.Module):
    """Edges to the nearest points, of which the first layer finds those by the coordinates (DGCNN)."""

    def __init__(self, way: str, widths: list[int], flat: bool) -> None:
        super().__init__()
        self.way, self.flat = way, flat
        self.layers = nn.ModuleList(nn.Linear(2 * i, o) for i, o in zip([3, *widths], widths, strict=False))
        self.last = nn.Linear(sum(widths), 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for layer in self.layers:
            near = NEAR[self.way](x).expand(len(x), -1, -1).topk(3, largest=False).indices
            if self.flat:
                rows = near + torch.arange(len(x)).view(-1, 1, 1) * x.shape[1]
                other = x.reshape(-1, x.shape[2])[rows]
            else:
                wide = near.unsqueeze(-1).expand(-1, -1, -1, x.shape[2])
                other = x.unsqueeze(1).expand(-1, x.shape[1], -1, -1).gather(2, wide)
            own = x.unsqueeze(2).expand_as(other)
            x = layer(torch.cat([other - own, own], -1)).relu().amax(2)
            seen.append(x)
        return self.last(torch.cat(seen, -1))


@pytest.mark.parametrize("points", [6, 30])
@pytest.mark.parametrize("way", NEAR)
def test_products_of_inputs_cost_beside_those_of_channels(way: str, points: int) -> None:
    draw = random.Random(f"{way} {points}")
    widths = [draw.randint(6, 9) for _ in range(draw.randint(2, 3))]
    x = torch.randn(2, points, 3, dtype=DOUBLE)
    space = slim(Neighbours(way, widths, draw.random() < 0.5).double(), x)
    assert sizes(space)
    for seed in range(4):
        architecture = sample(space, generator=torch.Generator().manual_seed(seed))
        built = macs(x).of(build(space, architecture))
        assert float(macs(x).expected(hold(space, architecture))) == pytest.approx(built, rel=1e-9)
