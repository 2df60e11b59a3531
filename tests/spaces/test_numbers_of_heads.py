"""Attributes that count heads go by many names, of queries and of the keys and values that several queries share."""

from __future__ import annotations

import functools

import pytest
import torch
from families.checks import agree, difference, extremes, outputs, stir
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, hold
from archgrad.extract.discretize import build
from archgrad.spaces.slim.layer_sides import counting_heads

WIDTH, HEADS, SHARED, STEPS = 24, 4, 2, 5
NAMES = [
    ("num_heads", "num_kv_heads"), ("n_heads", "n_kv_heads"), ("n_head", "n_query_groups"),
    ("n_local_heads", "n_local_kv_heads"), ("num_attention_heads", "num_key_value_heads"),
    ("num_heads", "num_query_groups"), ("num_query_heads", "num_kv_heads"), ("q_heads", "kv_heads"),
    ("nheads", "num_heads_kv"), ("n_head", "n_kv_head"), ("heads", "num_kv_groups"), ("head_num", "kv_heads"),
]  # fmt: skip


class Attention(nn.Module):
    """Grouped queries, with rows for each head by numbers, and keys and values repeated in one of three ways."""

    def __init__(self, queries: str, keys: str, way: str) -> None:
        super().__init__()
        self.queries, self.keys, self.way = queries, keys, way
        self.head_dim, self.n_rep = WIDTH // HEADS, HEADS // SHARED
        setattr(self, queries, HEADS)
        setattr(self, keys, SHARED)
        self.wq, self.wo = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wk, self.wv = nn.Linear(WIDTH, WIDTH // 2), nn.Linear(WIDTH, WIDTH // 2)

    def repeated(self, x: Tensor) -> Tensor:
        """[B, T, kv heads, C] to [B, T, heads, C]."""
        if self.way == "interleave":
            return x.repeat_interleave(self.n_rep, 2)
        b, t, heads, dim = x.shape
        return x[:, :, :, None].expand(b, t, heads, self.n_rep, dim).reshape(b, t, heads * self.n_rep, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.wq(x).view(b, t, getattr(self, self.queries), self.head_dim).transpose(1, 2)
        k, v = (
            self.repeated(w(x).view(b, t, getattr(self, self.keys), self.head_dim)).transpose(1, 2)
            for w in (self.wk, self.wv)
        )
        y = (q @ k.mT / 3).softmax(-1) @ v
        return x + self.wo(y.transpose(1, 2).reshape(b, t, -1))


@pytest.mark.parametrize("way", ["interleave", "expand"])
@pytest.mark.parametrize(("queries", "keys"), NAMES)
def test_heads_are_found_by_the_usual_names_of_their_numbers(queries: str, keys: str, way: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, WIDTH), Attention(queries, keys, way), nn.Linear(WIDTH, 3)).double()
    x = torch.randn(2, STEPS, 3).double()
    space = ag.slim(net, x)
    assert {"0": WIDTH, "1.wq": SHARED}.items() <= {n: g[0].size for n, g in choices(space).items()}.items()
    stir(space)
    least = extremes(space)[1]
    held, built = hold(space, least), build(space, least)
    assert difference(outputs(held, (x,)), outputs(built, (x,))) < 1e-9
    for attention in [m for m in built.modules() if isinstance(m, Attention)]:
        assert (getattr(attention, queries), getattr(attention, keys), attention.n_rep) == (2, 1, 2)


class Latent(nn.Module):
    """Multi-head latent attention: a part of the keys that is of no head stands beside those of each."""

    def __init__(self, spread: str) -> None:
        super().__init__()
        self.num_heads, self.plain, self.turned, self.values, self.spread = HEADS, 4, 2, 3, spread
        self.q = nn.Linear(WIDTH, HEADS * (self.plain + self.turned))
        self.down, self.up = nn.Linear(WIDTH, 5 + self.turned), nn.Linear(5, HEADS * (self.plain + self.values))
        self.o = nn.Linear(HEADS * self.values, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.num_heads, self.plain + self.turned).transpose(1, 2)
        c, turned = self.down(x).split([5, self.turned], -1)
        k, v = (
            self.up(c).view(b, t, self.num_heads, self.plain + self.values).transpose(1, 2)
            .split([self.plain, self.values], -1)
        )  # fmt: skip
        heads = self.num_heads if self.spread == "a number" else k.shape[1]
        k = torch.cat([k, turned.unsqueeze(1).expand(-1, heads, -1, -1)], -1)
        y = (q @ k.mT / 3).softmax(-1) @ v
        return x + self.o(y.transpose(1, 2).reshape(b, t, -1))


@pytest.mark.parametrize("spread", ["a number", "a size"])
def test_heads_go_where_keys_of_all_of_them_stand_beside_those_of_each(spread: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, WIDTH), Latent(spread), nn.Linear(WIDTH, 3)).double()
    x = torch.randn(2, STEPS, 3).double()
    space = ag.slim(net, x)
    assert {"1.q": HEADS}.items() <= {n: g[0].size for n, g in choices(space).items()}.items()
    stir(space)
    least = extremes(space)[1]
    held, built = hold(space, least), build(space, least)
    assert difference(outputs(held, (x,)), outputs(built, (x,))) < 1e-9
    assert [m.num_heads for m in built.modules() if isinstance(m, Latent)] in ([1], [])


def test_names_that_hold_head_and_count_something_else_are_none() -> None:
    module, others = nn.Module(), ("head_dim", "dim_head", "d_head", "dim_per_head", "head_size", "channels_per_head",
                                   "num_key_value_groups", "n_rep", "num_groups", "n_hidden", "ahead")  # fmt: skip
    for name in others:
        setattr(module, name, 4)
    assert counting_heads(module) == ()
    module.kv_heads, module.n_local_heads, module.w, module.h = 2, 4, 3, 3
    assert counting_heads(module) == ("n_local_heads", "kv_heads")


@functools.lru_cache
def _divided(steps: int, heads: int) -> tuple[int, ...]:
    """What a library such as einops remembers of sizes."""
    return (-1, steps, heads, WIDTH // HEADS)


class Remembered(nn.Module):
    """Queries beside keys and values in one, divided by sizes that are remembered for all modules together."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.norm = HEADS, nn.LayerNorm(WIDTH)
        self.to_q, self.to_kv, self.out = (nn.Linear(WIDTH, n, bias=False) for n in (WIDTH, 2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        parts = (self.to_q(y), *self.to_kv(y).chunk(2, dim=-1))
        q, k, v = (part.reshape(_divided(part.shape[1], self.heads)).transpose(1, 2) for part in parts)
        return x + self.out(((q @ k.mT / 3).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Remembered()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_numbers_that_a_cache_remembers_are_those_of_each_module() -> None:
    for block, paths in ((Remembered, ("1.to_q", "2.to_q")), (Wrapped, ("1.inner.to_q", "2.inner.to_q"))):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, WIDTH), block(), block(), nn.Linear(WIDTH, 3)).double()
        x = torch.randn(2, STEPS, 3).double()
        space = ag.slim(net, x)
        assert dict.fromkeys(paths, HEADS).items() <= {n: g[0].size for n, g in choices(space).items()}.items()
        assert isinstance(_divided, functools._lru_cache_wrapper)
        agree(space, x, torch.randn(3, STEPS + 1, 3).double(), plain=False)


@functools.cache
def _noted() -> dict[str, Tensor]:
    """A cache that holds something on purpose."""
    return {}


class Noted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        _noted()["hidden"] = self.first(x).relu()
        if _noted.cache_info().currsize > 9:
            _noted.cache_clear()
        return self.last(_noted()["hidden"])


def test_a_cache_goes_on_holding_what_it_is_for() -> None:
    space = ag.slim(nn.Sequential(Noted()), torch.randn(2, 3))
    assert {n: g[0].size for n, g in choices(space).items()} == {"0.first": 6}
