"""Modules that are added to a stream can go as a whole: attention and MLP of a block with two residuals."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families.checks import assert_plain, difference, outputs, stir
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, hold
from archgrad.extract.discretize import build

WIDTH = 8


class Part(nn.Module):
    """Two layers, called with one tensor, by name or with more arguments; puts out one or several."""

    def __init__(self, way: str, inner: int) -> None:
        super().__init__()
        self.way, self.up, self.down = way, nn.Linear(WIDTH, inner), nn.Linear(inner, WIDTH)

    def forward(self, hidden: Tensor, mask: Tensor | None = None, *more: Any, scale: float = 1.0, **rest: Any) -> Any:
        y = self.down(F.gelu(self.up(hidden))) * scale
        y = y if mask is None else y * mask
        if self.way == "mixes":
            y = y + y.roll(1, 1)
        if self.way == "weights":
            return y, y.mean()
        return (y, None) if self.way == "tuple" else y


class Block(nn.Module):
    def __init__(self, first: str, second: str, *, gamma: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.first, self.second = Part(first, 6), Part(second, 10)
        self.gamma = nn.Parameter(1e-5 * torch.ones(WIDTH)) if gamma else 1.0
        self.drop = nn.Dropout(0.2)

    def call(self, part: Part, x: Tensor) -> Tensor:
        if part.way == "names":
            return part(hidden=x, scale=2.0, layer=3)
        if part.way == "arguments":
            return part(x, torch.ones_like(x[..., :1]), "more")
        y = part(x)
        return y[0] if isinstance(y, tuple) else y

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.call(self.first, self.norm1(x))
        y = self.call(self.second, self.norm2(x))
        return self.drop(y * self.gamma) + x


class Stack(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.inlet, self.blocks, self.norm = nn.Linear(5, WIDTH), nn.ModuleList(blocks), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def slimmed(net: nn.Module, **options: Any) -> tuple[nn.Module, dict[str, int], Tensor]:
    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    space = ag.slim(net.double(), x, **options)
    return space, {name: same[0].size for name, same in choices(space).items()}, x


@pytest.mark.parametrize("seed", range(8))
def test_parts_of_blocks_with_two_residuals_are_gates_and_their_removal_is_exact(seed: int) -> None:
    draw = random.Random(seed)
    ways = [draw.choice(["plain", "names", "arguments", "tuple", "mixes"]) for _ in range(4)]
    torch.manual_seed(seed)
    net = Stack([Block(*ways[:2], gamma=draw.random() < 0.5), Block(*ways[2:], gamma=draw.random() < 0.5)])
    space, gates, x = slimmed(net)
    parts = [f"blocks.{i}.{part}.branch" for i in (0, 1) for part in ("first", "second")]
    assert {n for n in gates if n.endswith(".branch")} == set(parts)
    stir(space)
    whole = {name: tuple(range(size)) for name, size in gates.items()}
    for gone in ([], parts[:1], parts[1:3], parts):
        rest = {
            n: tuple(sorted(draw.sample(range(s), draw.randint(1, s)))) for n, s in gates.items() if n not in parts
        }
        architecture = ag.Architecture({**whole, **rest, **dict.fromkeys(gone, ())})
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            assert difference(outputs(held, (x,), training=training), outputs(built, (x,), training=training)) < 1e-9
        for cost in (ag.macs(x), ag.params()):
            assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)
        for part in parts:
            assert any(True for _ in built.get_submodule(part.removesuffix(".branch")).parameters()) is (
                part not in gone
            )
        assert_plain(built)
        with torch.no_grad():
            assert difference(outputs(built, (x,)), [torch.export.export(built.eval(), (x,)).module()(x)]) < 1e-9


class Other(Block):
    """A block whose parts are not added to a stream, in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__("plain", "weights" if how == "gives more" else "plain", gamma=False)
        self.how, self.table, self.join = how, nn.Parameter(torch.randn(4, WIDTH)), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.call(self.second, self.norm2(x))
        return {
            "multiplied": lambda: x * y, "alone": lambda: y, "joined": lambda: self.join(torch.cat([x, y], -1)),
            "behind": lambda: x + y.sigmoid(), "gives more": lambda: x + y,
            "to a parameter": lambda: self.table.add(y),
        }[self.how]()  # fmt: skip


@pytest.mark.parametrize("how", ["multiplied", "alone", "joined", "behind", "gives more"])
def test_what_is_not_added_to_a_stream_stays(how: str) -> None:
    torch.manual_seed(0)
    _, gates, _ = slimmed(Stack([Other(how), Block("plain", "plain", gamma=False)]))
    assert not {"blocks.0.first.branch", "blocks.0.second.branch"} & {*gates}
    assert "blocks.1.first.branch" in gates and "blocks.0.second.up" in gates


def test_a_part_that_holds_a_kept_layer_stays() -> None:
    torch.manual_seed(0)
    _, gates, _ = slimmed(Stack([Block("plain", "plain", gamma=False)]), keep=["blocks.0.first.up"])
    assert "blocks.0.first.branch" not in gates and "blocks.0.second.branch" in gates


def test_attention_that_keeps_states_by_its_number_stays() -> None:
    torch.manual_seed(0)
    block = Block("plain", "plain", gamma=False)
    block.first.layer_idx = 0
    _, gates, _ = slimmed(Stack([block]))
    assert "blocks.0.first.branch" not in gates and "blocks.0.second.branch" in gates


class Cast(Part):
    """Puts out another dtype than it reads."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden.to(self.up.weight.dtype))


class Halved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.part, self.head = nn.Linear(5, WIDTH), Cast("plain", 6), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inlet(x).bfloat16()
        return self.head(y + self.part(y))


class Memory(Part):
    """Reads another sequence than the one it is added to; both are as long in the example."""

    def forward(self, memory: Tensor, x: Tensor) -> Tensor:
        return super().forward(memory).mean(1, keepdim=True).expand(-1, x.shape[1], -1)


class Crossed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.part, self.head = nn.Linear(5, WIDTH), Memory("plain", 6), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        y = self.inlet(x)
        return self.head(y + self.part(self.inlet(memory), y))


@pytest.mark.parametrize(("net", "lengths"), [(Halved, (6,)), (Crossed, (6, 6))])
def test_a_module_whose_zeros_no_one_input_tells_is_no_gate(net: type[nn.Module], lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    space = ag.slim(net(), tuple(torch.randn(2, n, 5) for n in lengths))
    assert "part.branch" not in choices(space) and "part.up" in choices(space)
