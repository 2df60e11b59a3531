"""Kernels of which the channels that they read and make lie along one axis: each is cut by itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families.checks import agree, extremes
from families.timm_shim import load_timm
from torch import Tensor, nn

from archgrad.choices.access import choices
from archgrad.choices.architecture import Architecture
from archgrad.errors import ModelError
from archgrad.extract.discretize import build
from archgrad.gates import full
from archgrad.spaces.slim.dependency import Components, Walk
from archgrad.spaces.slim.slimmable import frozen, slim
from archgrad.spaces.slim.written_sizes import of_outputs

DOUBLE = torch.float64
READ, MADE = 8, 10


class Filters(nn.Module):
    """[B, 3, H, W] -> [B, 3]: a convolution between two layers whose filters are one row of a parameter or layer."""

    def __init__(self, way: str, kernel: int) -> None:
        super().__init__()
        self.way, self.made, self.read, self.kernel = way, MADE, READ, kernel
        self.first, self.last = nn.Conv2d(3, READ, 3, padding=1), nn.Linear(MADE, 3)
        size = MADE * READ * kernel * kernel
        if way == "parameter":
            self.row = nn.Parameter(0.1 * torch.randn(size))
        elif way == "mixed":
            self.rows, self.router = nn.Parameter(0.1 * torch.randn(4, size)), nn.Linear(3, 4)
        else:
            self.code, self.context, self.makes = nn.Parameter(torch.randn(5)), nn.Linear(3, 5), nn.Linear(5, size)

    def forward(self, x: Tensor) -> Tensor:
        y, mean = F.relu(self.first(x)), x.mean((2, 3))
        if self.way in ("parameter", "made"):
            row = self.row if self.way == "parameter" else self.makes(self.code)
            filters = row.view(self.made, self.read, self.kernel, self.kernel)
            y = F.conv2d(y, filters, padding=self.kernel // 2)
        else:
            mixed = (
                self.router(mean).softmax(1) @ self.rows if self.way == "mixed" else self.makes(self.context(mean))
            )
            filters = mixed.view(len(x) * self.made, self.read, self.kernel, self.kernel)
            y = y.reshape(1, len(x) * y.shape[1], *y.shape[2:])
            y = F.conv2d(y, filters, padding=self.kernel // 2, groups=len(x)).view(len(x), self.made, *x.shape[2:])
        return self.last(F.relu(y).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kernel", [3, 1])
@pytest.mark.parametrize("way", ["parameter", "mixed", "made", "made for each"])
def test_filters_in_a_row_lose_channels_on_both_sides(way: str, kernel: int) -> None:
    torch.manual_seed(kernel)
    x = torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    space = slim(Filters(way, kernel).to(DOUBLE), x)
    sizes = sorted(same[0].size for same in choices(space).values())
    assert {READ, MADE} <= set(sizes)
    by_size = {same[0].size: name for name, same in choices(space).items()}
    two = build(space, Architecture({**full(space), by_size[MADE]: (1, 4, 9), by_size[READ]: (0, 7)}))
    assert (two.made, two.read, two.first.out_channels, two.last.in_features) == (3, 2, 2, 3)
    row = two.row if way == "parameter" else two.rows[0] if way == "mixed" else two.makes.weight[:, 0]
    assert row.numel() == 3 * 2 * kernel * kernel
    agree(space, x, torch.randn(5, 3, 8, 7, dtype=DOUBLE))


MIXED = {
    "einsum": lambda scores, kernels: torch.einsum("bk,koihw->boihw", scores, kernels),
    "rows": lambda scores, kernels: (scores @ kernels.flatten(1)).unflatten(1, kernels.shape[1:]),
    "tensordot": lambda scores, kernels: torch.tensordot(scores, kernels, dims=1),
    "sum": lambda scores, kernels: (scores[:, :, None, None, None, None] * kernels).sum(1),
}


class Mixture(nn.Module):
    """[B, 3, H, W] -> [B, 3]: a kernel for each example, mixed of several `[kernels, out, in, k, k]`."""

    def __init__(self, way: str, kernel: int) -> None:
        super().__init__()
        self.way, self.kernels = way, nn.Parameter(0.1 * torch.randn(4, MADE, READ, kernel, kernel))
        self.first, self.router, self.last = nn.Conv2d(3, READ, 3, padding=1), nn.Linear(3, 4), nn.Linear(MADE, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, scores = F.relu(self.first(x)), self.router(x.mean((2, 3))).softmax(1)
        filters = MIXED[self.way](scores, self.kernels).flatten(0, 1)
        y = F.conv2d(y.reshape(1, -1, *y.shape[2:]), filters, padding=filters.shape[-1] // 2, groups=len(x))
        return self.last(F.relu(y).view(len(x), -1, *x.shape[2:]).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kernel", [3, 1])
@pytest.mark.parametrize("way", MIXED)
def test_kernels_that_are_mixed_lose_channels_on_both_sides(way: str, kernel: int) -> None:
    torch.manual_seed(kernel)
    x = torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    space = slim(Mixture(way, kernel).to(DOUBLE), x)
    by_size = {same[0].size: name for name, same in choices(space).items()}
    assert set(by_size) == {READ, MADE}
    two = build(space, Architecture({by_size[MADE]: (1, 4, 9), by_size[READ]: (0, 7)}))
    assert two.kernels.shape == (4, 3, 2, kernel, kernel)
    agree(space, x, torch.randn(5, 3, 8, 7, dtype=DOUBLE))


class Repeated(nn.Module):
    """[B, 3, H, W] -> [B, 3]: one row of filters that reads what it makes, so that one gate cuts it on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.width = READ
        self.first, self.last = nn.Conv2d(3, READ, 3, padding=1), nn.Linear(READ, 3)
        self.row = nn.Parameter(0.1 * torch.randn(READ * READ * 9))

    def forward(self, x: Tensor) -> Tensor:
        filters, y = self.row.view(self.width, self.width, 3, 3), self.first(x)
        for _ in range(2):
            y = F.conv2d(F.relu(y), filters, padding=1)
        return self.last(F.relu(y).mean((2, 3)))  # type: ignore[no-any-return]


def test_filters_that_one_gate_cuts_on_both_sides_go_with_its_square() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    space = slim(Repeated().to(DOUBLE), x)
    assert [same[0].size for same in choices(space).values()] == [READ]
    agree(space, x, torch.randn(5, 3, 8, 7, dtype=DOUBLE))


class Turned(nn.Module):
    """[B, 3, N] -> [B, 3]: points whose features are multiplied by a matrix made of them, as PointNet does."""

    def __init__(self, *, wide: bool) -> None:
        super().__init__()
        self.wide, self.read, self.made = wide, 6, 9
        made = 9 if wide else 6
        self.first, self.code = nn.Conv1d(3, 6, 1), nn.Linear(3, 5)
        self.makes, self.last = nn.Linear(5, 6 * made), nn.Conv1d(made, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        row = self.makes(torch.tanh(self.code(x.amax(2))))
        if self.wide:
            matrix = row.view(-1, self.read, self.made)
        else:
            matrix = row.view(-1, self.read, self.read) + torch.eye(self.read, dtype=x.dtype)
        y = torch.bmm(F.relu(self.first(x)).transpose(1, 2), matrix).transpose(1, 2)
        return self.last(F.relu(y)).amax(2)  # type: ignore[no-any-return]


@pytest.mark.parametrize("wide", [True, False])
def test_a_matrix_that_a_layer_makes_loses_rows_and_columns(wide: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 12, dtype=DOUBLE)
    space = slim(Turned(wide=wide).to(DOUBLE), x)
    assert set(frozen(space)) == {"last"}
    assert {5, 6, 9 if wide else 6} == {same[0].size for same in choices(space).values()}
    agree(space, x, torch.randn(5, 3, 20, dtype=DOUBLE))


class Conditional(nn.Module):
    """[B, 3, H, W] -> [B, 3]: a convolution of timm whose filters are mixed for each example."""

    def __init__(self, *, depthwise: bool, bias: bool, padding: str) -> None:
        from timm.layers import CondConv2d

        super().__init__()
        made = READ if depthwise else MADE
        self.stem, self.norm, self.router = nn.Conv2d(3, READ, 3), nn.BatchNorm2d(READ), nn.Linear(READ, 4)
        groups = READ if depthwise else 1
        self.layer = CondConv2d(READ, made, 3, stride=2, padding=padding, groups=groups, bias=bias)
        self.after, self.head = nn.BatchNorm2d(made), nn.Linear(made, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y: Tensor = self.layer(x, self.router(x.mean((2, 3))).sigmoid())
        return self.head(F.relu(self.after(y)).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("padding", ["", "same"])
@pytest.mark.parametrize(("depthwise", "bias"), [(True, True), (False, True), (False, False)])
def test_conditional_convolutions_of_timm(depthwise: bool, bias: bool, padding: str) -> None:
    load_timm()
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    space = slim(Conditional(depthwise=depthwise, bias=bias, padding=padding).to(DOUBLE), x)
    assert set(frozen(space)) == {"head"}
    agree(space, x, torch.randn(3, 3, 11, 9, dtype=DOUBLE))
    layer = build(space, extremes(space)[1]).layer
    assert type(layer).__name__ == "CondConv2d" and layer.weight.shape[1] == 9
    assert (layer.in_channels, layer.out_channels, layer.groups) == (1, 1, 1)
    assert depthwise or layer.weight_shape == (1, 1, 3, 3)


class Attention(nn.Module):
    """[B, 4, 5] -> [B, 3]: as many places as heads, so that queries by keys are as large as a weight of queries."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.heads = nn.Linear(5, 12), 4
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))
        self.last, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2).flatten(0, 1)
            for layer in (self.query, self.key, self.value)
        )
        y = torch.bmm((torch.bmm(q, k.transpose(1, 2)) * 0.3).softmax(2), v)
        y = y.unflatten(0, (len(x), -1)).transpose(1, 2).flatten(2)
        return self.head(self.last(y).mean(1))  # type: ignore[no-any-return]


def test_heads_that_look_like_a_kernel_are_cut_exactly() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, dtype=DOUBLE)
    space = slim(Attention().to(DOUBLE), x)
    assert {3, 12} <= {same[0].size for same in choices(space).values()}
    agree(space, x, torch.randn(3, 6, 5, dtype=DOUBLE))


def test_a_shape_of_numbers_in_forward_stays() -> None:
    class Fixed(Filters):
        def forward(self, x: Tensor) -> Tensor:
            filters = self.row.view(MADE, READ, self.kernel, self.kernel)
            return self.last(F.relu(F.conv2d(F.relu(self.first(x)), filters)).mean((2, 3)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    with pytest.raises(ModelError, match="shape '\\[10, 8, 3, 3\\]' is invalid"):
        slim(Fixed("parameter", 3), torch.randn(2, 3, 6, 6))


class Decoder(nn.Module):
    """[B, 5] -> [B, 1, H', W']: features of a layer that are viewed as channels and places of any shape."""

    def __init__(self, order: str, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        self.order, (self.channels, self.height, self.width) = order, sizes
        self.enters, self.makes = nn.Linear(5, 7), nn.Linear(7, self.channels * self.height * self.width)
        self.norm = nn.BatchNorm2d(self.channels)
        self.up, self.last = nn.ConvTranspose2d(self.channels, 6, 4, 2, 1), nn.Conv2d(6, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.makes(F.relu(self.enters(x))))
        if self.order == "first":
            y = y.view(-1, self.channels, self.height, self.width)
        elif self.order == "last":
            y = y.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)
        else:  # places in one
            y = y.view(len(y), self.channels, -1).unflatten(2, (self.height, self.width))
        return self.last(F.relu(self.up(self.norm(y))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("sizes", [(8, 4, 4), (8, 5, 3), (6, 6, 6), (6, 6, 2), (3, 3, 4)])
@pytest.mark.parametrize("order", ["first", "last", "in one"])
def test_channels_before_or_behind_places_of_any_shape(order: str, sizes: tuple[int, int, int]) -> None:
    torch.manual_seed(sum(sizes))
    x = torch.randn(4, 5, dtype=DOUBLE)
    space = slim(Decoder(order, sizes).to(DOUBLE), x)
    assert set(frozen(space)) == {"last"}
    assert sorted(same[0].size for same in choices(space).values()) == sorted([6, 7, sizes[0]])
    agree(space, x, torch.randn(3, 5, dtype=DOUBLE))


class Generator(nn.Module):
    """[B, 5] -> [B, 1, H, W]: features of a layer that are viewed as channels and places, as `view` does it."""

    def __init__(self, sizes: tuple[int, ...], view: Callable[[Generator, Tensor], Tensor]) -> None:
        super().__init__()
        self.view, self.channels = view, sizes[0]
        self.makes, self.unflatten = nn.Linear(5, int(np.prod(sizes))), nn.Unflatten(1, sizes)
        up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[len(sizes) - 2]
        self.up = nn.Sequential(up(sizes[0], 6, 4, 2, 1), nn.ReLU(), up(6, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.view(self, F.relu(self.makes(x))))  # type: ignore[no-any-return]


def advised(sizes: tuple[int, ...]) -> dict[str, Callable[[Generator, Tensor], Tensor]]:
    """What a reason says to write, word by word, and how it is written."""
    rest = ", ".join(map(str, sizes[1:]))
    return {
        f"x.view(x.size(0), -1, {rest})": lambda net, x: x.view(x.size(0), -1, *sizes[1:]),
        f"x.unflatten(1, (-1, {rest}))": lambda net, x: x.unflatten(1, (-1, *sizes[1:])),
        f"x.view(-1, self.channels, {rest})": lambda net, x: x.view(-1, net.channels, *sizes[1:]),
        f"torch.nn.Unflatten(1, ({sizes[0]}, {rest}))": lambda net, x: net.unflatten(x),
    }


WRITTEN: dict[str, Callable[[tuple[int, ...]], Callable[[Generator, Tensor], Tensor]]] = {
    "view": lambda sizes: lambda net, x: x.view(-1, *sizes),
    "batch": lambda sizes: lambda net, x: x.reshape(len(x), *sizes),
    "unflatten": lambda sizes: lambda net, x: x.unflatten(1, sizes),
}


@pytest.mark.parametrize("sizes", [(8, 3, 3), (6, 2, 2, 2), (32, 7, 7)])
@pytest.mark.parametrize("way", WRITTEN)
def test_a_number_of_channels_in_forward_is_named_and_what_is_advised_opens_them(
    way: str, sizes: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, dtype=DOUBLE)
    reason = frozen(slim(Generator(sizes, WRITTEN[way](sizes)).to(DOUBLE), x))["makes"]
    assert f"forward has their number, {sizes[0]}, written into a reshape" in reason
    for words, view in advised(sizes).items():
        assert words in reason
        space = slim(Generator(sizes, view).to(DOUBLE), x)
        assert {n: same[0].size for n, same in choices(space).items()} == {"makes": sizes[0], "up.0": 6}
        agree(space, x, torch.randn(4, 5, dtype=DOUBLE), plain=False)


def test_a_batch_that_takes_what_channels_leave_is_named() -> None:
    sizes = (8, 5)
    net = Generator(sizes, WRITTEN["view"](sizes))
    assert "(B, N, C)" in frozen(slim(net, torch.randn(16, 5)))["makes"]
    assert "another number of examples" in of_outputs([torch.zeros(8, 2)], [torch.zeros(4, 2)])
    assert "reach the network's output" in of_outputs([torch.zeros(8, 2)], [torch.zeros(8, 1)])


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
def test_labels_that_stand_for_one_another_in_a_circle_are_one_line(length: int) -> None:
    size, at = length + 4, lambda: ""
    walk = Walk(
        Components(size), {}, is_read=np.ones(size, bool), rule=lambda _: None, path=at, here=at, computed=at
    )  # fmt: skip
    circle = np.arange(length)
    walk.stands_for(np.roll(circle, 1), circle)
    walk.stands_for(np.array([0]), np.array([length]))  # a tail of the circle, and of that tail
    walk.stands_for(np.array([length]), np.array([length + 1]))
    lines = walk.lines.tolist()
    assert len({*lines[: length + 2]}) == 1
    assert len({*lines}) == 3
