"""Channels within attention heads: queries and keys lose them in pairs, values by themselves, besides whole heads."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from families.checks import difference, extremes, outputs, stir, swapped
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, hold, sample
from archgrad.extract.discretize import build

WIDTH, HEADS, HEAD, STEPS = 16, 2, 8, 6
SCALES = ("kept", "of the size", "torch's own", "given")
ROTATIONS = ("none", "halves", "part", "normalized")


class Rotations(nn.Module):
    """Angles of every step: cosine and sine, each for both halves of what is rotated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 1.0 / 10.0 ** (torch.arange(0, width, 2) / width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.arange(x.shape[1], device=x.device)[:, None] * self.frequencies[None].to(x)
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    own, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    half = own.shape[-1] // 2
    turned = torch.cat([-own[..., half:], own[..., :half]], -1)
    return torch.cat([own * cos + turned * sin, rest], -1)


class RootMeanSquare(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


class Attention(nn.Module):
    """Two heads; keys and values of one where they are shared."""

    def __init__(self, scale: str, rotation: str, *, shared: bool, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.kind, self.fused, self.shared = HEADS, scale, fused, shared
        self.scale = HEAD**-0.5
        if fused:
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        else:
            keys = HEAD if shared else WIDTH
            self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, keys), nn.Linear(WIDTH, keys)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norms = nn.ModuleList(RootMeanSquare(HEAD) for _ in range(2 * (rotation == "normalized")))

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
        batch, steps = x.shape[:2]
        if self.fused:
            q, k, v = self.qkv(x).view(batch, steps, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q = self.q(x).view(batch, steps, self.num_heads, -1).transpose(1, 2)
            k, v = (p(x).view(batch, steps, 1 if self.shared else self.num_heads, -1).transpose(1, 2)
                    for p in (self.k, self.v))  # fmt: skip
        if len(self.norms):
            q, k = self.norms[0](q), self.norms[1](k)
        if angles is not None:
            q, k = rotated(q, *angles), rotated(k, *angles)
        if self.shared:
            k, v = (y.expand(-1, q.shape[1], -1, -1) for y in (k, v))
        if self.kind in ("torch's own", "given"):
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale if self.kind == "given" else None)
        else:
            scale = self.scale if self.kind == "kept" else q.shape[-1] ** -0.5
            y = (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Net(nn.Module):
    def __init__(self, scale: str, rotation: str, *, shared: bool, fused: bool) -> None:
        super().__init__()
        self.inlet, self.norm, self.head = nn.Linear(5, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)
        self.attention = Attention(scale, rotation, shared=shared, fused=fused)
        rotates = {"halves": HEAD, "part": HEAD // 2}.get(rotation)
        self.rotations = Rotations(rotates) if rotates else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        return self.head(x + self.attention(self.norm(x), self.rotations(x) if self.rotations is not None else None))


@pytest.mark.parametrize("seed", range(16))
def test_channels_within_heads_go_in_pairs_and_exactly(seed: int) -> None:
    scale, rotation = SCALES[seed % 4], ROTATIONS[seed // 4]
    draw = random.Random(seed)
    fused = draw.random() < 0.4
    torch.manual_seed(seed)
    net, x = Net(scale, rotation, fused=fused, shared=not fused and draw.random() < 0.4), torch.randn(2, STEPS, 5)
    net = net.double()
    x = x.double()
    stir(net)
    space = ag.slim(net, x)
    sizes = {name: same[0].size for name, same in choices(space).items()}
    inside = {name: size for name, size in sizes.items() if name.endswith(".channels")}
    # What is rotated goes with its pair; a scale that depends on the size asks for one gate over all of a head.
    several = rotation == "part" and scale in ("of the size", "torch's own")
    rescaled_behind_norm = rotation == "normalized" and scale in ("of the size", "torch's own") and fused
    expected = {"halves": HEAD // 2, "part": HEAD // 4}.get(rotation, HEAD)
    if not several and not rescaled_behind_norm:
        assert expected in inside.values(), sizes
    for architecture in [
        *extremes(space),
        *(sample(space, generator=torch.Generator().manual_seed(i)) for i in (0, 1)),
    ]:
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            assert difference(outputs(held, (x,), training=training), outputs(built, (x,), training=training)) < 1e-9
        for cost in (ag.params(), ag.macs(x)):
            assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)
    if inside:
        fewer = ag.Architecture({n: tuple(range(max(1, s - (n in inside)))) for n, s in sizes.items()})
        wrong = build(space, swapped(ag.Architecture({n: fewer[n] for n in sizes}), sizes))
        assert difference(outputs(hold(space, fewer), (x,)), outputs(wrong, (x,))) > 1e-7


LAYOUTS = {
    "kinds, heads": lambda y, heads: y.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4),
    "heads, kinds": lambda y, heads: y.unflatten(-1, (heads, 3, -1)).permute(3, 0, 2, 1, 4),
    "kinds alone": lambda y, heads: y.unflatten(-1, (3, -1)).unbind(2),
    "a number": lambda y, heads: y.reshape(*y.shape[:2], 3, 1, -1).permute(2, 0, 3, 1, 4),
    "a size": lambda y, heads: y.view(*y.shape[:2], 3, y.shape[-1] // 3).permute(2, 0, 1, 3),
    "thirds": lambda y, heads: y.chunk(3, -1),
    "thirds with heads": lambda y, heads: [z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in y.chunk(3, -1)],
}


class Lone(nn.Module):
    """Attention of one head, whose number is an attribute or nowhere."""

    def __init__(self, layout: str, width: int) -> None:
        super().__init__()
        self.heads, self.layout = 1, layout
        self.inlet, self.qkv, self.proj = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3 * width), nn.Linear(width, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        q, k, v = LAYOUTS[self.layout](self.qkv(x), self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = mixed.transpose(1, 2).flatten(2) if mixed.dim() == 4 else mixed
        return self.head(x + self.proj(mixed))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [3, 12])
def test_a_lone_head_loses_channels(layout: str, width: int) -> None:
    torch.manual_seed(width)
    net, x = Lone(layout, width).double(), torch.randn(2, STEPS, 5).double()
    stir(net)
    space = ag.slim(net, x)
    sizes = {name: same[0].size for name, same in choices(space).items()}
    assert sizes.get("qkv") == width, sizes
    fewer = ag.Architecture({n: tuple(range(s - (n == "qkv"))) for n, s in sizes.items()})
    for architecture in [*extremes(space), fewer]:
        held, built = hold(space, architecture), build(space, architecture)
        assert difference(outputs(held, (x,)), outputs(built, (x,))) < 1e-9
        assert float(ag.macs(x).expected(held)) == pytest.approx(ag.macs(x).of(built), rel=1e-9)
    wrong = build(space, swapped(fewer, sizes))
    assert difference(outputs(hold(space, fewer), (x,)), outputs(wrong, (x,))) > 1e-7


class Towers(nn.Module):
    """Two towers compared by a product, a sum or an attention of one head."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.table = way, nn.EmbeddingBag(9, WIDTH)
        self.left = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, WIDTH))
        self.right = nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x), self.right(x)
        if self.way == "sum":
            return (a * b).sum(-1)
        if self.way == "table":
            return (self.table((x[:, :3] * 3).long().clamp(0, 8)) * a).sum(-1) + (a @ b.T).sum(1)
        if self.way == "attention":
            return F.scaled_dot_product_attention(a[None], b[None], x[None])[0]
        return a @ b.T


class Words(nn.Module):
    """The table of an embedding puts the words out as well, past any layer; some weights are complex."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mlp = (
            nn.Embedding(9, WIDTH),
            nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU(), nn.Linear(12, WIDTH)),
        )
        self.phase = nn.Parameter(torch.randn(4, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        h = self.table((x.abs() * 3).long().clamp(0, 8))
        return F.linear(h + self.mlp(h), self.table.weight) * self.phase.abs().sum()


@pytest.mark.parametrize("way", ["product", "sum", "table", "attention", "words"])
def test_what_activations_are_multiplied_over_goes_from_both(way: str) -> None:
    torch.manual_seed(0)
    net, x = (Words() if way == "words" else Towers(way)), torch.randn(4, 5)
    stir(net)
    space = ag.slim(net, x)
    assert WIDTH in [same[0].size for same in choices(space).values()], ag.frozen(space)
    for architecture in [*extremes(space), sample(space, generator=torch.Generator().manual_seed(0))]:
        held, built = hold(space, architecture), build(space, architecture)
        assert difference(outputs(held, (x,)), outputs(built, (x,))) < 1e-5
        assert float(ag.params().expected(held)) == pytest.approx(ag.params().of(built), rel=1e-9)
