"""Layers of einops keep numbers of heads, and of channels within them, by the names of axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families.checks import agree
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices
from archgrad.gates import full

einops = pytest.importorskip("einops", reason="einops is installed by `make test`")
layers = pytest.importorskip("einops.layers.torch", reason="einops is installed by `make test`")

WIDTH, HEADS, EACH = 16, 4, 8
DIVIDED = "b n (h d) -> b h n d"


class Attention(nn.Module):
    """Queries, keys and values divided by layers of einops, or by its functions, and put together again."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.heads = HEADS
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * EACH) for _ in range(3))
        self.out = nn.Linear(HEADS * EACH, WIDTH)
        made: dict[str, Callable[[], list[Any]]] = {
            "a layer each": lambda: [layers.Rearrange(DIVIDED, h=HEADS) for _ in range(3)],
            "one layer": lambda: [layers.Rearrange(DIVIDED, h=HEADS)] * 3,
            "heads and widths": lambda: [
                layers.Rearrange(DIVIDED, **by) for by in ({"h": HEADS}, *[{"d": EACH}] * 2)
            ],
            "functions": list,
        }
        self.divide = nn.ModuleList(made[way]())
        self.merge = layers.Rearrange("b h n d -> b n (h d)")

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(x) for layer in (self.q, self.k, self.v)]
        if len(self.divide):
            q, k, v = (divide(part) for divide, part in zip(self.divide, parts, strict=True))
        else:
            q, k, v = (einops.rearrange(part, DIVIDED, h=self.heads) for part in parts)
        return x + self.out(self.merge((q @ k.mT * 8**-0.5).softmax(-1) @ v))


@pytest.mark.parametrize(
    ("way", "widths"),
    [
        ("a layer each", {"1.q.channels": EACH, "1.q": HEADS, "1.v.channels": EACH}),
        ("one layer", {"1.q.channels": EACH, "1.q": HEADS, "1.v.channels": EACH}),
        ("heads and widths", {"1.q.channels": EACH, "1.v": EACH}),
        ("functions", {"1.q.channels": EACH, "1.heads": HEADS, "1.v.channels": EACH}),
    ],
)
def test_heads_that_layers_of_einops_divide_go_with_their_numbers(way: str, widths: dict[str, int]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, WIDTH), Attention(way), Attention(way), nn.Linear(WIDTH, 3)).double()
    x = torch.randn(2, 6, 5).double()
    space = ag.slim(net, x)
    second = {name.replace("1.", "2.", 1): size for name, size in widths.items()}
    assert (widths | second).items() <= {n: g[0].size for n, g in choices(space).items()}.items()
    agree(space, x, torch.randn(3, 7, 5).double())


def test_a_number_of_a_layer_says_what_is_left() -> None:
    net = nn.Sequential(nn.Linear(5, WIDTH), Attention("one layer"), nn.Linear(WIDTH, 3))
    space = ag.slim(net, torch.randn(2, 6, 5))
    small = ag.build(space, ag.Architecture({**full(space), "1.q": (1, 3)}))
    assert small[1].divide[0].axes_lengths == {"h": 2} and net[1].divide[0].axes_lengths == {"h": HEADS}
    assert repr(small[1].divide[0]) == "Rearrange('b n (h d) -> b h n d', h=2)"
