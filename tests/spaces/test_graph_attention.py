"""Attention on graphs in plain torch: whole heads go, and channels within heads, whatever their number is called."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from families.checks import agree
from torch import Tensor, nn

from archgrad.choices.access import choices
from archgrad.spaces.slim.slimmable import frozen, slim

DOUBLE = torch.float64
NAMES = ("heads", "num_heads", "num_of_heads", "_num_heads", "h", "n_heads")
LARGEST = ("none", "of each head", "of each node")


class GraphAttention(nn.Module):
    """[N, in], edges [2, E] -> [N, heads * out]: scores of edges by a vector for each head at either end."""

    def __init__(self, read: int, out: int, heads: int, *, name: str, largest: str, kept: bool, joint: bool) -> None:
        super().__init__()
        setattr(self, name, heads)
        self.name, self.out, self.largest, self.kept, self.joint = name, out, largest, kept, joint
        self.lin = nn.Linear(read, heads * out, bias=False)
        if not joint:
            self.source, self.target = (nn.Parameter(torch.randn(1, heads, out)) for _ in range(2))
        else:  # as in GATv2
            self.lin_target, self.both = nn.Linear(read, heads * out), nn.Parameter(torch.randn(1, heads, out))
        self.bias = nn.Parameter(torch.randn(heads * out))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        nodes, heads = len(x), getattr(self, self.name)
        shape = (-1, heads, self.out) if self.kept else (nodes, heads, -1)
        h, (source, target) = self.lin(x).view(shape), edges
        if self.joint:
            g = self.lin_target(x).view(shape)
            scores = (F.leaky_relu(h[source] + g[target], 0.2) * self.both).sum(-1)
        else:
            ends = (h * self.source).sum(-1)[source] + (h * self.target).sum(-1)[target]
            scores = F.leaky_relu(ends, 0.2)
        if self.largest == "of all":
            scores = scores - scores.max()
        elif self.largest == "of each head":
            scores = scores - scores.amax(0, keepdim=True)
        elif self.largest == "of each node":
            least = scores.new_full((nodes, heads), -1e30)
            scores = scores - least.scatter_reduce(0, target[:, None].expand_as(scores), scores, "amax")[target]
        share = scores.exp()
        whole = torch.zeros(nodes, heads, dtype=x.dtype).index_add(0, target, share)
        share = share / (whole[target] + 1e-16)
        sent = h[source] * share.unsqueeze(-1)
        y = torch.zeros(nodes, *sent.shape[1:], dtype=x.dtype).index_add(0, target, sent)
        return y.reshape(nodes, -1) + self.bias


class Net(nn.Module):
    def __init__(self, **how: object) -> None:
        super().__init__()
        self.first = GraphAttention(5, 6, 4, **how)  # type: ignore[arg-type]
        self.second = GraphAttention(24, 4, 3, **how)  # type: ignore[arg-type]
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.head(F.elu(self.second(F.elu(self.first(x, edges)), edges)))  # type: ignore[no-any-return]


def graph(nodes: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(nodes)
    edges = torch.randint(0, nodes, (2, 3 * nodes), generator=g)
    return torch.randn(nodes, 5, generator=g, dtype=DOUBLE), torch.cat([edges, torch.arange(nodes).expand(2, -1)], 1)


KINDS = [
    *((name, "none", True, False) for name in NAMES),
    *(("heads", *how) for how in itertools.product(LARGEST, (True, False), (True, False))),
]


@pytest.mark.parametrize(("name", "largest", "kept", "joint"), dict.fromkeys(KINDS))
def test_heads_and_channels_within_them_go(name: str, largest: str, kept: bool, joint: bool) -> None:
    torch.manual_seed(0)
    space = slim(Net(name=name, largest=largest, kept=kept, joint=joint).to(DOUBLE), graph(10))
    assert set(frozen(space)) == {"head"}
    assert {n: same[0].size for n, same in choices(space).items()} == {
        "first.lin": 4, "first.lin.channels": 6, "second.lin": 3, "second.lin.channels": 4,
    }  # fmt: skip
    agree(space, graph(10), graph(7))


def test_one_maximum_of_all_heads_leaves_channels_within_them() -> None:
    torch.manual_seed(0)
    space = slim(Net(name="heads", largest="of all", kept=True, joint=False).to(DOUBLE), graph(10))
    assert set(choices(space)) == {"first.lin.channels", "second.lin.channels"}


class Pooled(nn.Module):
    """Divides by the largest element of all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).exp()
        return self.last(y / y.max()) + self.last(y / y.min())  # type: ignore[no-any-return]


def test_what_takes_the_largest_of_all_is_told_what_keeps_channels_apart() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4), Pooled())
    assert "x.amax(0, keepdim=True)" in frozen(slim(net, torch.randn(3, 3)))["2.first"]


class Images(nn.Module):
    """`h` is a height here, beside `w`."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.w = 6, 3
        self.make, self.up = nn.Linear(4, 8 * 6 * 3), nn.ConvTranspose2d(8, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.make(x).view(len(x), -1, self.h, self.w))  # type: ignore[no-any-return]


def test_a_height_is_no_number_of_heads() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, dtype=DOUBLE)
    space = slim(Images().to(DOUBLE), x)
    assert {n: same[0].size for n, same in choices(space).items()} == {"make": 8}
    agree(space, x, torch.randn(3, 4, dtype=DOUBLE))


class Annotated(nn.Module):
    """Attention of several heads, `h` of them, as the annotated transformer has it."""

    def __init__(self, heads: int, width: int, way: str) -> None:
        super().__init__()
        self.d_k, self.h, self.way = width // heads, heads, way
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, *given: Tensor) -> Tensor:
        batch, (*into, out) = len(given[0]), self.linears
        if self.way == "view":
            parts = [f(x).view(batch, -1, self.h, self.d_k) for f, x in zip(into, given, strict=True)]
        else:
            sizes = (self.h, self.d_k if self.way == "unflatten" else -1)
            parts = [f(x).unflatten(-1, sizes) for f, x in zip(into, given, strict=True)]
        q, k, v = (part.transpose(1, 2) for part in parts)
        y = (q @ k.transpose(-2, -1) / self.d_k**0.5).softmax(-1) @ v
        return out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.into, self.attention, self.out = nn.Linear(5, 12), Annotated(3, 12, way), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.out(x + self.attention(x, x, x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", ["view", "unflatten", "unflatten the rest"])
def test_attention_that_calls_its_heads_h_loses_them(way: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 5, dtype=DOUBLE)
    space = slim(Block(way).to(DOUBLE), x)
    assert {"into", "attention.heads", "attention.linears.0.channels"} <= set(choices(space))
    agree(space, x, torch.randn(3, 4, 5, dtype=DOUBLE))
