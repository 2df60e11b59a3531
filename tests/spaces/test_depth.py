"""Modules that are added to a stream can go as a whole: attention and MLP of a block with two residuals."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families.checks import assert_plain, difference, outputs, stir
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, hold, sample
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


class Parted(nn.Module):
    """A part whose last layer stands beside the norm behind the sum, as in BERT, or in the block itself."""

    def __init__(self, way: str, inner: int) -> None:
        super().__init__()
        self.way = way
        self.core, self.drop = Core(way, inner), nn.Dropout(0.1)
        self.output = nn.Module()
        self.output.dense, self.output.norm = nn.Linear(inner, WIDTH), nn.LayerNorm(WIDTH)
        self.output.gain = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.core(hidden=x, mask=None) if self.way == "names" else self.core(x)
        y = y[0] if isinstance(y, tuple) else y
        y = self.output.dense(self.drop(y.tanh()))
        if self.way == "before":
            return x + self.output.norm(y)
        if self.way == "twice":
            return self.output.norm(x + y + self.output.norm(y))
        if self.way == "kept":
            return self.output.norm(x + y + self.core(x).mean())
        return self.output.norm(self.output.gain * y + x)


class Core(nn.Module):
    def __init__(self, way: str, inner: int) -> None:
        super().__init__()
        self.way, self.first, self.second = way, nn.Linear(WIDTH, inner), nn.Linear(inner, inner)
        if way == "decoder":
            self.layer_idx, self.is_decoder = 0, True
        if way == "encoder":
            self.layer_idx, self.is_decoder = 0, False

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Any:
        y = self.second(F.gelu(self.first(hidden)))
        return (y, hidden.softmax(1), None) if self.way in ("tuple", "encoder") else y


@pytest.mark.parametrize("way", ["plain", "names", "tuple", "encoder", "decoder", "before", "twice", "kept"])
def test_a_branch_in_two_modules_goes_as_one(way: str) -> None:
    torch.manual_seed(0)
    space, gates, x = slimmed(Stack([Parted(way, 6), Parted("plain", 10)]))
    branch = "blocks.0.core.branch"
    assert (branch in gates) == (way in ("plain", "names", "tuple", "encoder"))
    assert "blocks.1.core.branch" in gates and gates["blocks.0.core.first"] == 6
    stir(space)
    whole = {name: tuple(range(size)) for name, size in gates.items()}
    for name in {branch, "blocks.1.core.branch"} & {*gates}:
        fewer = {"blocks.1.core.second": (1, 4), "inlet": (0, 2, 3, 7)}
        for picks in ({**whole, name: ()}, {**whole, **fewer, name: ()}):
            architecture = ag.Architecture(picks)
            held, built = hold(space, architecture), build(space, architecture)
            for training in (False, True):
                expected = outputs(held, (x,), training=training)
                assert difference(expected, outputs(built, (x,), training=training)) < 1e-9
            assert_plain(built)
            assert not [n for n, _ in built.named_parameters() if n.startswith(name.removesuffix("branch"))]
            assert float(ag.macs(x).expected(held)) == pytest.approx(ag.macs(x).of(built), rel=1e-9)


class Biased(nn.Module):
    """Attention that hands on a table of biases, which its first one makes, as T5's."""

    def __init__(self, *, makes: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 6), nn.Linear(6, WIDTH)
        self.table = nn.Parameter(torch.randn(4, 4)) if makes else None

    def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        bias = self.table if bias is None else bias
        assert bias is not None
        return self.down(bias @ self.up(x).tanh()), bias


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.head = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.parts = nn.ModuleList(Biased(makes=i == 0) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, bias = self.inlet(x), None
        for part in self.parts:
            y, bias = part(x, bias)
            x = x + y
        return self.head(x)


def test_what_a_module_hands_on_it_hands_on_without_its_branch() -> None:
    torch.manual_seed(0)
    space, gates, x = slimmed(Shared())
    assert "parts.0.branch" not in gates and {"parts.1.branch", "parts.2.branch"} <= {*gates}
    whole = {name: tuple(range(size)) for name, size in gates.items()}
    architecture = ag.Architecture({**whole, "parts.1.branch": ()})
    expected = outputs(hold(space, architecture), (x,))
    assert difference(expected, outputs(build(space, architecture), (x,))) < 1e-9


class Twice(nn.Module):
    """second(first(x)) + shortcut(x), as in diffusion U-Nets: `second` alone reads other channels than it makes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.scale, self.first, self.second = (
            nn.Linear(4, outputs),
            Scaling(inputs, outputs),
            Scaling(outputs, outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.second(self.first(x, self.scale(t)[:, :, None, None])) + self.shortcut(x)


class Scaling(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y = self.a(x)
        return self.b((y if scale is None else y * (scale + 1)).relu())


class Twins(nn.Module):
    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Twice(a, b) for a, b in itertools.pairwise((3, *widths)))
        self.last = nn.Conv2d(widths[-1], 2, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, t)
        return self.last(x)


@pytest.mark.parametrize("widths", [(4, 4), (8, 8), (16, 16), (6, 6, 6, 6), (5, 7, 7)])
def test_a_branch_whose_zeros_would_have_another_width_costs_no_channels(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    example = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    space = ag.slim(Twins(widths).double(), example)
    assert {f"blocks.{i}.second.a" for i in range(len(widths))} <= set(choices(space))
    stir(space)
    for seed in range(12):
        architecture = sample(space, generator=torch.Generator().manual_seed(seed))
        held, built = hold(space, architecture), build(space, architecture)
        assert difference(outputs(held, example), outputs(built, example)) < 1e-9
