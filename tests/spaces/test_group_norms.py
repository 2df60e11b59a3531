"""GroupNorms whose groups lose the same places, where whole groups would tie all channels in front of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from families.checks import assert_plain, difference, extremes, outputs, stir
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, logits, relax, sample
from archgrad.choices.architecture import Architecture
from archgrad.choices.channel_norms import group_norm
from archgrad.choices.relaxations import scaled_sigmoid
from archgrad.costs.count import macs
from archgrad.extract.discretize import build
from archgrad.spaces.slim.slimmable import frozen, slim


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("places", [(5, 3), ()])
def test_statistics_of_open_places_are_those_of_a_norm_without_the_others(
    places: tuple[int, ...], groups: int, affine: bool
) -> None:
    norm = nn.GroupNorm(groups, 4 * groups, affine=affine).double()
    x = torch.randn(2, 4 * groups, *places, dtype=torch.float64)
    if affine:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    is_open = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64).repeat(groups)
    kept = is_open.bool()
    smaller = nn.GroupNorm(groups, 3 * groups, affine=affine).double()
    if affine:
        smaller.weight.data, smaller.bias.data = norm.weight.data[kept], norm.bias.data[kept]
    kind = group_norm(norm)
    torch.testing.assert_close(kind(norm, x, is_open)[:, kept], smaller(x[:, kept]))
    torch.testing.assert_close(kind(norm, x, torch.ones_like(is_open)), norm(x))


class Joined(nn.Module):
    """Two branches, with GroupNorms of their own, put together in front of another, as in the U-Nets of diffusion."""

    def __init__(self, a: int, b: int, groups: int, *, own: bool) -> None:
        super().__init__()
        norm = (lambda width: nn.GroupNorm(groups, width)) if own else (lambda width: nn.Identity())
        self.a = nn.Sequential(nn.Conv2d(3, a, 3, padding=1), norm(a))
        self.b = nn.Sequential(nn.Conv2d(3, b, 1), norm(b), nn.SiLU(), nn.Conv2d(b, b, 1))
        self.norm, self.mix = nn.GroupNorm(groups, a + b), nn.Conv2d(a + b, a, 3, padding=1)
        self.last = nn.Conv2d(a, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.last(a + self.mix(F.silu(self.norm(torch.cat([a, self.b(x)], 1)))))


@pytest.mark.parametrize(("a", "b", "groups", "own"), [(16, 8, 4, True), (16, 8, 4, False), (8, 16, 4, True)])
def test_groups_across_a_concatenation_lose_places(a: int, b: int, groups: int, *, own: bool) -> None:
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    net = Joined(a, b, groups, own=own).double()
    space = slim(net, x)
    assert frozen(space).keys() == {"last"} and frozen(space).parameters_fraction < 0.5
    stir(space)
    draws = [sample(space, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for architecture in (*extremes(space), *draws):
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            expected = outputs(held, (x,), training=training)
            assert difference(expected, outputs(built, (x,), training=training)) < 1e-9
        assert float(macs(x).expected(held)) == pytest.approx(macs(x).of(built), rel=1e-9)
        assert built.norm.num_groups == groups and built.norm.num_channels == built.mix.in_channels
    assert_plain(built)


class JoinedVectors(nn.Module):
    """Two branches of vectors, [B, C], put together in front of a GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.last = nn.Linear(3, 8), nn.Linear(3, 4), nn.GroupNorm(2, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu())


def test_groups_of_vectors_lose_places() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    space = slim(JoinedVectors().double(), x)
    assert choices(space)
    stir(space)
    for architecture in extremes(space):
        held, built = hold(space, architecture), build(space, architecture)
        assert difference(outputs(held, (x,)), outputs(built, (x,))) < 1e-9


def test_a_place_that_is_open_in_part_counts_in_part() -> None:
    x = torch.randn(2, 3, 5, 5)
    space = slim(Joined(16, 8, 4, own=True), x)
    relax(space, scaled_sigmoid)
    space(x).square().sum().backward()
    assert all(logit.grad is not None and bool(logit.grad.abs().sum() > 0) for logit in logits(space))


def test_whole_groups_go_where_they_can() -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 2, 1))
    space = slim(net, x := torch.randn(2, 3, 4, 4))
    assert {name: same[0].size for name, same in choices(space).items()} == {"0": 4}
    built = build(space, Architecture({"0": (0, 2, 3)}))
    assert built[1].num_groups == 3 and built(x).shape == net(x).shape
