"""Attention that takes the width of its heads from the width of the stream: both are removed, each alone."""

from __future__ import annotations

import copy
import math
import pickle
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from families.checks import assert_plain, difference, extremes, outputs, stir, swapped
from torch import Tensor, fx, nn, zeros

import archgrad as ag
from archgrad.choices.access import choices, hold, sample
from archgrad.extract.discretize import build
from archgrad.spaces.slim.kept_sizes import KeptSize

WIDTH, HEADS, STEPS = 12, 3, 6
LAYOUTS = ("fused", "queries apart", "all apart", "split", "interleaved")
HEAD = ("of the stream", "free", "kept")
END = ("stream", "product", "free")
SCALE = ("kernel", "of the stream", "kept", "of queries")


class Attention(nn.Module):
    """Attention over [B, T, C] as one of many write it.

    Args:
        layout: how queries, keys and values are made.
        head: how the width of a head is written in reshapes.
        end: how the width of all heads is.
        scale: what the scores are divided by.
        reduced: keys and values are of patches of steps, by a convolution that is reshaped to the stream's width.
        biased: a table of the heads' biases and a depthwise filter on values.
    """

    def __init__(self, layout: str, head: str, end: str, scale: str, *, reduced: bool, biased: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.width = HEADS, WIDTH // HEADS, WIDTH
        self.layout, self.head, self.end, self.scaled = layout, head, end, scale
        self.factor = self.head_dim**-0.5
        self.out = nn.Linear(WIDTH, WIDTH)
        if layout == "queries apart":
            self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        elif layout == "all apart":
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        else:
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        reduced = reduced and layout == "queries apart"
        self.reduce = nn.Conv1d(WIDTH, WIDTH, 2, 2) if reduced else None
        self.norm = nn.LayerNorm(WIDTH) if reduced else None
        self.bias = nn.Parameter(torch.randn(HEADS, 1, 1)) if biased else None
        self.register_buffer("steps", torch.linspace(-1, 1, STEPS).sin(), persistent=False)

    def made(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, length, width = x.shape
        head = {"of the stream": width // self.num_heads, "free": -1, "kept": self.head_dim}[self.head]
        if self.layout in ("fused", "interleaved"):
            order = (3, self.num_heads) if self.layout == "fused" else (self.num_heads, 3)
            qkv = self.qkv(x).reshape(batch, length, *order, head)
            return qkv.permute(*((2, 0, 3, 1, 4) if self.layout == "fused" else (3, 0, 2, 1, 4))).unbind(0)
        if self.layout == "queries apart":
            q = self.q(x).view(batch, length, self.num_heads, head).transpose(1, 2)
            if self.reduce is not None and self.norm is not None:
                x = self.norm(self.reduce(x.transpose(1, 2)).reshape(batch, width, -1).permute(0, 2, 1))
            k, v = self.kv(x).reshape(batch, x.size(1), 2, self.num_heads, head).permute(2, 0, 3, 1, 4)
            return q, k, v
        parts = self.qkv(x).split(self.width, dim=-1) if self.layout == "split" else (self.q(x), self.k(x), self.v(x))
        return tuple(p.view(batch, length, self.num_heads, head).transpose(1, 2) for p in parts)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.made(x)
        if self.scaled == "kernel" and self.bias is None and mask is None:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0 if self.training else 0)
        else:
            factor = {
                "of the stream": (width // self.num_heads) ** -0.5, "of queries": 1 / math.sqrt(q.size(-1)),
            }.get(self.scaled, self.factor)  # fmt: skip
            scores = q @ k.transpose(-2, -1) * factor
            scores = scores if self.bias is None else scores + self.bias.sigmoid() * self.steps.view(-1, 1)
            scores = scores if mask is None else scores.masked_fill(mask, -1e4)
            y = scores.softmax(-1) @ v
        last = {"stream": width, "product": self.num_heads * self.head_dim, "free": -1}[self.end]
        return self.out(y.transpose(1, 2).reshape(batch, length, last))


class Positional(Attention):
    """The same, called with a mask in its place."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return Attention.forward(self, x, mask)


class Net(nn.Module):
    """Two residual blocks of attention on a stream that has a width of its own."""

    def __init__(self, make: Callable[[], nn.Module], *, masked: bool) -> None:
        super().__init__()
        self.inlet, self.masked = nn.Linear(5, WIDTH), masked
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.blocks = nn.ModuleList(make() for _ in range(2))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(2) if self.masked else None
        for norm, block in zip(self.norms, self.blocks, strict=False):
            x = x + (block(norm(x)) if mask is None else block(norm(x), mask))
        return self.head(self.norms[2](x))


def drawn(seed: int) -> Net:
    """A network with one way of writing attention."""
    draw = random.Random(seed)
    layout, head, end, scale = LAYOUTS[seed % len(LAYOUTS)], draw.choice(HEAD), draw.choice(END), draw.choice(SCALE)
    if seed % 3 == 0:  # what cannot be cut as it is written
        end = "stream"
    masked, biased, reduced = draw.random() < 0.3, draw.random() < 0.5, draw.random() < 0.5
    torch.manual_seed(seed)
    return Net(
        lambda: Positional(layout, head, end, scale, reduced=reduced and not masked and not biased, biased=biased),
        masked=masked and not (reduced and layout == "queries apart"),
    ).double()


def gradient(network: nn.Module, x: Tensor) -> list[Tensor]:
    given = x.clone().requires_grad_()
    out = copy.deepcopy(network)(given)
    return [torch.autograd.grad(out.sin().sum(), given)[0]]


@pytest.mark.parametrize("seed", range(15))
def test_heads_and_stream_are_removed_each_alone_and_exactly(seed: int) -> None:
    net, x = drawn(seed), torch.randn(2, STEPS, 5).double()
    before = copy.deepcopy(net)
    space = ag.slim(net, x)
    assert difference(outputs(net, (x,)), outputs(space, (x,))) == 0.0
    assert all(type(m) is Positional for m in net.blocks), "the network that was given is left as it is"
    assert [n for n, _ in space.named_parameters()] == [n for n, _ in before.named_parameters()] or choices(space)
    sizes = {name: same[0].size for name, same in choices(space).items()}
    assert sizes["inlet"] == WIDTH
    assert [s for n, s in sizes.items() if n.startswith("blocks.0") and s == HEADS], sizes
    assert ag.frozen(space).parameters_fraction < 0.1
    stir(space)
    for architecture in [
        *extremes(space),
        *(sample(space, generator=torch.Generator().manual_seed(i)) for i in range(1)),
    ]:
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            assert difference(outputs(held, (x,), training=training), outputs(built, (x,), training=training)) < 1e-9
        assert difference(gradient(held, x), gradient(built, x)) < 1e-9
        longer = torch.cat([x, x])
        assert difference(outputs(held, (longer,)), outputs(built, (longer,))) < 1e-9
        for cost in (ag.params(), ag.macs(x)):
            assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)
        assert_plain(built)
        again = pickle.loads(pickle.dumps(built))
        assert difference(outputs(built, (x,)), outputs(again, (x,))) == 0.0
    most = ag.Architecture({n: tuple(range(max(1, size - 1))) for n, size in sizes.items()})
    wrong = build(space, swapped(most, sizes))
    assert difference(outputs(hold(space, most), (x,)), outputs(wrong, (x,))) > 1e-6
    assert list(build(space, extremes(space)[0]).state_dict()) == list(before.state_dict())


@pytest.mark.parametrize("seed", range(6))
def test_what_was_saved_is_slimmed_as_what_was_not(seed: int) -> None:
    """torch writes numbers of a module into its graph when it loads one: heads would be a constant."""
    net, x = drawn(seed), torch.randn(2, STEPS, 5).double()
    space = ag.slim(net, x)
    cut = build(space, ag.Architecture({n: tuple(range(max(1, c[0].size - 1))) for n, c in choices(space).items()}))
    loaded = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(cut))))
    code = [m.code for m in loaded.modules() if isinstance(m, torch.fx.GraphModule)]
    spaces = [ag.slim(n, x) for n in (cut, loaded)]
    sizes = [{name: same[0].size for name, same in choices(s).items()} for s in spaces]
    assert sizes[0] == sizes[1]
    assert code == [m.code for m in loaded.modules() if isinstance(m, torch.fx.GraphModule)]
    least = [build(s, extremes(s)[1]) for s in spaces]
    assert difference(outputs(least[0], (x,)), outputs(least[1], (x,))) < 1e-9
    assert difference(outputs(least[1], (x,)), outputs(pickle.loads(pickle.dumps(least[1])), (x,))) < 1e-9


class Deciding(Attention):
    """Attention of which no single graph tells what it computes."""

    def __init__(self, way: str) -> None:
        super().__init__("fused", "of the stream", "stream", "kept", reduced=False, biased=False)
        self.way = way
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if self.way == "a size" and x.shape[1] > 3:
            x = 2 * x
        if self.way == "a value" and self.last.sum() > -1:
            x = 2 * x
        if self.way == "training" and self.training:
            x = 2 * x
        y = super().forward(x)
        if self.way == "an activation kept":
            self.last = y
        return y


@pytest.mark.parametrize("way", ["a size", "a value", "training", "an activation kept", "a hook"])
def test_what_one_graph_does_not_hold_stays_as_it_is(way: str) -> None:
    torch.manual_seed(0)
    net, x = Net(lambda: Deciding(way), masked=False).double(), torch.randn(2, STEPS, 5).double()
    if way == "a hook":
        for block in net.blocks:
            block.register_forward_hook(lambda _m, _i, out: out * 1.0)
    space = ag.slim(net, x)
    assert all(type(m) is Deciding for m in space.blocks)
    assert "as (B, N, C) behind attention, write -1" in ag.frozen(space)["inlet"]


def test_a_mask_that_was_not_given_to_the_example_is_refused() -> None:
    torch.manual_seed(0)
    net = Net(
        lambda: Positional("fused", "of the stream", "stream", "kept", reduced=False, biased=False), masked=False
    )
    x = torch.randn(2, STEPS, 5)
    space = ag.slim(net, x)
    assert isinstance(space.blocks[0], fx.GraphModule)
    assert space.blocks[0].num_heads == HEADS, "its numbers can be asked for"
    with pytest.raises(AssertionError, match="mask was None"):
        space.blocks[0](torch.randn(2, STEPS, WIDTH), torch.ones(STEPS, STEPS, dtype=torch.bool))
    numbers = [a for n in space.blocks[0].graph.nodes for a in n.args]
    assert not any(isinstance(a, KeptSize) for a in numbers)


def test_what_has_widths_of_its_own_is_not_rewritten() -> None:
    torch.manual_seed(0)
    for head, end in (("free", "free"), ("kept", "free"), ("kept", "product")):
        net = Net(lambda: Attention("fused", head, end, "kept", reduced=False, biased=False), masked=False)  # noqa: B023
        assert all(type(m) is Attention for m in ag.slim(net, torch.randn(2, STEPS, 5)).blocks)


MASKS: dict[str, Callable[[int, Tensor], Tensor]] = {
    "sizes": lambda n, x: torch.ones(n, n).tril(),
    "a size and a number": lambda n, x: torch.zeros(n, 1) + torch.ones(1, n),
    "sizes and more": lambda n, x: torch.zeros(x.shape[0], 1, n, n, device=x.device, dtype=x.dtype) + 1,
    "a tuple": lambda n, x: torch.ones((n, n)).tril(),
    "by keyword": lambda n, x: torch.ones(size=(n, n)).tril(),
    "a shape": lambda n, x: torch.ones(*x.shape[:-2], 1, n, x.shape[1]).tril(),
    "empty": lambda n, x: torch.empty(n, n).fill_(1).tril(),
    "drawn": lambda n, x: torch.rand(n, n) + 1 + 0 * torch.randn(n, n),
    "imported": lambda n, x: zeros(n, n) + 1,
    "of a tensor": lambda n, x: x.new_ones(n, n).tril(),
    "full": lambda n, x: torch.full((n, n), 1.0).tril(),
}


class Masked(Attention):
    """Makes its mask itself, of its length."""

    def __init__(self, name: str) -> None:
        super().__init__("fused", "of the stream", "stream", "kept", reduced=False, biased=False)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, MASKS[self.name](x.shape[1], x) == 0)


@pytest.mark.parametrize("name", MASKS)
def test_what_is_made_of_lengths_is_followed_whatever_makes_it(name: str) -> None:
    torch.manual_seed(0)
    net, x = Net(lambda: Masked(name), masked=False).double(), torch.randn(2, STEPS, 5).double()
    space = ag.slim(net, x)
    assert {"inlet", "blocks.0.heads"} <= set(choices(space))
    cut, longer = build(space, extremes(space)[1]), torch.randn(3, STEPS + 2, 5).double()
    held = hold(space, extremes(space)[1])
    for given in (x, longer):
        assert difference(outputs(held, (given,)), outputs(cut, (given,))) < 1e-9
    assert fx.symbolic_trace(nn.Sequential(nn.ReLU())).code and torch.zeros(2, 2).shape == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("head", [2, 3, 6, 8, 24])
def test_the_scale_of_a_kernel_is_torchs_own_to_the_last_bit(head: int, dtype: torch.dtype) -> None:
    class Kernel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads, self.qkv, self.out = 2, nn.Linear(2 * head, 6 * head), nn.Linear(2 * head, 2 * head)

        def forward(self, x: Tensor) -> Tensor:
            batch, length, width = x.shape
            qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, width // self.num_heads)
            y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
            return x + self.out(y.transpose(1, 2).reshape(batch, length, width))

    torch.manual_seed(head)
    net = nn.Sequential(nn.Linear(5, 2 * head), Kernel(), nn.Linear(2 * head, 3)).to(dtype)
    assert {"0", "1.heads"} <= set(choices(ag.slim(net, torch.randn(2, STEPS, 5, dtype=dtype))))
