"""Attention of diffusion and restoration networks: convolutions, heads by view, linear attention; whole heads go."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from families.checks import assert_plain, difference, extremes, outputs, stir
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, hold, sample
from archgrad.extract.discretize import build

WIDTH = 16


class Scores(nn.Module):
    """Attention without weights: [B, 3 H D, N] -> [B, H D, N], each head's query, key and value beside each other."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv: Tensor) -> Tensor:
        batch, width, places = qkv.shape
        per_head = width // (3 * self.n_heads)
        q, k, v = qkv.reshape(batch * self.n_heads, 3 * per_head, places).split(per_head, dim=1)
        scores = torch.einsum("bct,bcs->bts", q * per_head**-0.25, k * per_head**-0.25).softmax(-1)
        return torch.einsum("bts,bcs->bct", scores, v).reshape(batch, -1, places)


class Attends(nn.Module):
    """One member of the kind.

    Args:
        heads: their number.
        way: "chunk" of one convolution, "filtered" by a depthwise one, "apart", "inside" another module, or "linear
            layers" over places.
        linear: attention that is linear in the number of places.
        ends: what stands behind the last layer: "", "norm" or "list".
    """

    def __init__(self, heads: int, way: str, *, linear: bool, ends: str) -> None:
        super().__init__()
        self.heads, self.way, self.linear = heads, way, linear
        self.scale, self.norm = (WIDTH // heads) ** -0.5, nn.GroupNorm(4, WIDTH)
        if way == "filtered":
            self.filters = nn.Conv2d(3 * WIDTH, 3 * WIDTH, 3, padding=1, groups=3 * WIDTH)
        if way in ("chunk", "filtered", "inside"):
            self.qkv = (
                nn.Conv1d(WIDTH, 3 * WIDTH, 1) if way == "inside" else nn.Conv2d(WIDTH, 3 * WIDTH, 1, bias=False)
            )
        else:
            self.to_q, self.to_k, self.to_v = (self.layer(bias=False) for _ in range(3))
        if way == "inside":
            self.attention = Scores(heads)
        last = nn.Conv1d(WIDTH, WIDTH, 1) if way == "inside" else self.layer(bias=True)
        if ends == "norm":
            self.out: nn.Module = nn.Sequential(
                last, nn.Identity() if way == "linear layers" else nn.GroupNorm(1, WIDTH)
            )
        else:
            self.out = nn.ModuleList([last, nn.Dropout(0.1)]) if ends == "list" else last

    def layer(self, *, bias: bool) -> nn.Module:
        if self.way == "linear layers":
            return nn.Linear(WIDTH, WIDTH, bias=bias)
        return nn.Conv2d(WIDTH, WIDTH, 1, bias=bias)

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, H, D, N]."""
        if self.linear:
            context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v)
            return torch.einsum("bhde,bhdn->bhen", context, q.softmax(-2) * self.scale)
        scores = torch.einsum("bhdi,bhdj->bhij", q * self.scale, k).softmax(-1)
        return torch.einsum("bhij,bhdj->bhdi", scores, v)

    def forward(self, x: Tensor) -> Tensor:
        batch, size, y = len(x), x.shape[2:], self.norm(x)
        if self.way == "inside":
            y = self.attention(self.qkv(y.flatten(2)))
        elif self.way == "linear layers":
            y = y.flatten(2).transpose(1, 2)
            parts = (
                f(y).transpose(1, 2).reshape(batch, self.heads, -1, y.shape[1])
                for f in (self.to_q, self.to_k, self.to_v)
            )
            y = self.attended(*parts).flatten(1, 2).transpose(1, 2)
        else:
            if self.way == "apart":
                parts = (self.to_q(y), self.to_k(y), self.to_v(y))
            else:
                parts = (self.filters(self.qkv(y)) if self.way == "filtered" else self.qkv(y)).chunk(3, dim=1)
            y = self.attended(*(p.reshape(batch, self.heads, -1, size.numel()) for p in parts))
            y = y.reshape(batch, -1, *size)
        for layer in self.out if isinstance(self.out, nn.ModuleList) else [self.out]:
            y = layer(y)
        y = y.transpose(1, 2) if self.way == "linear layers" else y
        return x + y.reshape(batch, -1, *size)


class Denoiser(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.inlet, self.attention, self.norm = nn.Conv2d(3, WIDTH, 3, padding=1), attention, nn.GroupNorm(4, WIDTH)
        self.outlet = nn.Conv2d(WIDTH, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outlet(F.silu(self.norm(self.attention(self.inlet(x)))))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("way", ["chunk", "filtered", "apart", "inside", "linear layers"])
def test_whole_heads_of_attention_in_diffusion_networks_are_removed_exactly(way: str, seed: int) -> None:
    draw = random.Random(seed)
    heads, linear, ends = draw.choice([2, 4, 8]), draw.random() < 0.5, draw.choice(["", "norm", "list"])
    torch.manual_seed(seed)
    net = Denoiser(Attends(heads, way, linear=linear and way != "inside", ends=ends)).double()
    x = torch.randn(2, 3, draw.choice([4, 5]), 4).double()
    space = ag.slim(net, x)
    gates = {name: same[0].size for name, same in choices(space).items()}
    assert gates["attention.heads"] == heads and gates["inlet"] == 4
    stir(space)
    drawn = [sample(space, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    for architecture in (*extremes(space), *drawn):
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            assert difference(outputs(held, (x,), training=training), outputs(built, (x,), training=training)) < 1e-9
        for cost in (ag.macs(x), ag.params()):
            assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)
        assert_plain(built)
