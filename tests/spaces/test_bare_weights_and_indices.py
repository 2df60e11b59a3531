"""Channels that bare parameters read and make, that indices carry along, and that layers of two inputs read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from families.checks import assert_plain, difference, extremes, outputs, stir
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, sample
from archgrad.costs.count import macs, params
from archgrad.extract.discretize import build
from archgrad.spaces.slim.slimmable import frozen, slim

DOUBLE = torch.float64


def sizes(space: nn.Module) -> dict[str, int]:
    return {name: same[0].size for name, same in choices(space).items() if not same[0].vanishing}


def assert_exact(
    space: nn.Module, example: tuple[Tensor, ...], *, counted: bool = True, plain: bool = True, within: float = 1e-9
) -> None:
    """Held and built networks agree, in both modes, and so do the costs that the space expects and their counts."""
    stir(space)
    few = [sample(space, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    for architecture in (extremes(space)[1], *few):
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            expected = outputs(held, example, training=training)
            assert difference(expected, outputs(built, example, training=training)) < within
        wide = all(
            len(pick) > 1 for pick in architecture.values() if isinstance(pick, tuple)
        )  # einsum drops widths of 1
        assert float(params().expected(held)) == pytest.approx(params().of(built), rel=1e-9)
        if counted and wide:
            assert float(macs(example).expected(held)) == pytest.approx(macs(example).of(built), rel=1e-9)
    if plain:
        assert_plain(built)


class Bare(nn.Module):
    """first -> something made of a bare parameter [8, 10] or the like -> last."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.first, self.last = way, nn.Linear(5, 8), nn.Linear(10, 3)
        sizes = {"transposed": (10, 8), "heads": (2, 8, 5), "convolution": (10, 8, 1), "complex": (8, 10, 2)}
        self.matrix = nn.Parameter(torch.randn(sizes.get(way, (8, 10))) / 3)
        self.listed = nn.ParameterList([nn.Parameter(torch.randn(10, 10) / 3), nn.Parameter(torch.randn(10))])

    def forward(self, x: Tensor) -> Tensor:
        x, w = self.first(x).relu(), self.matrix
        y = {
            "product": lambda: x @ w,
            "transposed": lambda: F.linear(x, w),
            "einsum": lambda: torch.einsum("btc,cd->btd", x, w),
            "heads": lambda: torch.einsum("btc,hcd->bthd", x, w).flatten(2),
            "convolution": lambda: F.conv1d(x.transpose(1, 2), w).transpose(1, 2),
            "listed": lambda: torch.einsum("btc,cd->btd", x, w).tanh() @ self.listed[0] + self.listed[1],
            "complex": lambda: torch.fft.irfft(torch.einsum(
                "bkc,cd->bkd", torch.fft.rfft(x, dim=1), torch.view_as_complex(w)), n=4, dim=1),
        }[self.way]()  # fmt: skip
        return self.last(y)


@pytest.mark.parametrize("way", ["product", "transposed", "einsum", "heads", "convolution", "listed", "complex"])
def test_a_bare_matrix_reads_and_makes_channels(way: str) -> None:
    x = torch.randn(2, 4, 5, dtype=DOUBLE)
    space = slim(Bare(way).double(), x)
    assert sizes(space)["first"] == 8 and sum(sizes(space).values()) >= 8 + (5 if way == "heads" else 10)
    assert_exact(space, (x,))


class Square(nn.Module):
    """A residual stream with a square bare matrix: its work shrinks on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.matrix = nn.Parameter(torch.randn(8, 8) / 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y + torch.tanh(y) @ self.matrix)


def test_a_square_matrix_costs_the_square_of_what_is_left() -> None:
    x = torch.randn(2, 5, dtype=DOUBLE)
    space = slim(Square().double(), x)
    assert sizes(space) == {"first": 8}
    assert_exact(space, (x,))


EDGES = torch.randint(0, 6, (2, 14), generator=torch.Generator().manual_seed(0))
EACH = torch.randint(0, 6, (6, 12), generator=torch.Generator().manual_seed(1))
Passed = Callable[[Tensor, Tensor, Tensor], Tensor]


def _reduced(y: Tensor, source: Tensor, target: Tensor) -> Tensor:
    return torch.zeros_like(y).scatter_reduce(0, target[:, None].expand(-1, y.shape[1]), y[source], "amax")


def _put(y: Tensor, source: Tensor, target: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z[target[:6]] = y[source[:6]]
    return z.index_put((target,), y[source], accumulate=True)


MESSAGES: dict[str, Passed] = {
    "index_add": lambda y, s, t: y.new_zeros(y.shape).index_add(0, t, y[s]),
    "scatter_add": lambda y, s, t: torch.zeros_like(y).scatter_add_(
        0, t[:, None].expand_as(y[s]), y.index_select(0, s)),
    "scatter_reduce": _reduced,
    "index_put": _put,
    "gather": lambda y, s, t: y.gather(0, s[:6, None].expand(-1, y.shape[1])) + torch.zeros_like(y).index_copy(
        0, torch.arange(6), y),
    "mask": lambda y, s, t: torch.cat([y[torch.arange(6) > t[0] % 5], y])[:6],
    "an index for each channel": lambda y, s, t: y.gather(0, EACH[:, : y.shape[1]]),
}  # fmt: skip


class Messages(nn.Module):
    def __init__(self, message: str, heads: int = 1) -> None:
        super().__init__()
        self.message, self.num_heads = message, heads
        self.first, self.second, self.last = nn.Linear(4, 12), nn.Linear(12, 9), nn.Linear(9, 2)
        self.score = nn.Parameter(torch.randn(1, heads, 24 // heads))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        y, (source, target) = self.first(x), edges
        if self.num_heads > 1:  # attention along the edges
            z = y.view(len(y), self.num_heads, -1)
            score = F.leaky_relu((torch.cat([z[source], z[target]], -1) * self.score).sum(-1)).exp()
            total = score.new_zeros(len(y), score.shape[1]).index_add(0, target, score)
            part = (score / (1e-3 + total[target]))[..., None] * z[source]
            y = y + torch.zeros_like(z).index_add(0, target, part).flatten(1)
        return self.last(torch.relu(self.second(y + MESSAGES[self.message](y, source, target))))


@pytest.mark.parametrize(("message", "heads"), [*((message, 1) for message in list(MESSAGES)[:-1]), ("index_add", 3)])
def test_channels_pass_along_the_edges_of_a_graph(message: str, heads: int) -> None:
    example = (torch.randn(6, 4, dtype=DOUBLE), EDGES)
    space = slim(Messages(message, heads).double(), example)
    first = {"first": 12} if heads == 1 else {"first.channels": 12 // heads}
    assert sizes(space) == {**first, "second": 9}
    assert_exact(space, example)


def test_an_index_of_its_own_for_each_channel_freezes_them() -> None:
    example = (torch.randn(6, 4, dtype=DOUBLE), EDGES)
    space = slim(Messages("an index for each channel").double(), example)
    assert sizes(space) == {"second": 9} and "first" in frozen(space)


class Experts(nn.Module):
    """Each word goes to two of its experts."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 7), nn.GELU(), nn.Linear(7, width)) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            words, rank = torch.where(chosen == number)
            y.index_add_(0, words, expert(x[words]) * weights[words, rank, None])
        return x + y


def test_experts_that_words_are_sent_to_lose_hidden_and_stream_channels() -> None:
    x = torch.randn(12, 5, dtype=DOUBLE)
    space = slim(nn.Sequential(nn.Linear(5, 6), Experts(6, 3), nn.Linear(6, 2)).double(), x)
    assert sizes(space) == {"0": 6, **{f"1.experts.{i}.0": 7 for i in range(3)}}
    assert_exact(space, (x,), counted=False)  # how many words each one takes is decided by the values


class Stacked(nn.Module):
    """Experts whose weights are one tensor each, [experts, in, out] or [experts, out, in], as in libraries."""

    def __init__(self, way: str, *, gated: bool, bias: bool, transposed: bool) -> None:
        super().__init__()
        self.way, self.gated, self.transposed, inner = way, gated, transposed, 48 if gated else 24
        self.router = nn.Linear(16, 3)
        self.up = nn.Parameter(torch.randn(*((3, inner, 16) if transposed else (3, 16, inner))) / 4)
        self.down = nn.Parameter(torch.randn(*((3, 16, 24) if transposed else (3, 24, 16))) / 4)
        self.bias = nn.Parameter(torch.randn(3, inner)) if bias else None

    def product(self, x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        weight = weight.transpose(1, 2) if self.transposed else weight
        if self.way == "grouped":
            return F.grouped_mm(x, weight, offs=torch.bincount(chosen, minlength=3).cumsum(0).int())
        return torch.bmm(x.unsqueeze(1), weight[chosen]).squeeze(1)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2)
        chosen, order = chosen.flatten().sort()
        y = self.product(x[order // 2], self.up, chosen)
        y = y if self.bias is None else y + self.bias[chosen]
        a, b = y.chunk(2, -1) if self.gated else (y, torch.ones(()))
        y = self.product(F.silu(a) * b, self.down, chosen) * weights.flatten()[order, None]
        return x + torch.zeros_like(x).index_add(0, order // 2, y)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("way", ["grouped", "indexed"])
def test_experts_of_stacked_weights_lose_hidden_and_stream_channels(way: str, seed: int) -> None:
    """torch's kernel for groups takes multiples of 16 bytes in each row: 8 channels, in half precision too."""
    gated, bias, transposed = (
        bool(b) for b in torch.randint(0, 2, (3,), generator=torch.Generator().manual_seed(seed))
    )
    dtype, size = (torch.float32, 8) if way == "grouped" else (DOUBLE, 1)
    x = torch.randn(12, 5, dtype=dtype)
    experts = Stacked(way, gated=gated, bias=bias, transposed=transposed)
    space = slim(nn.Sequential(nn.Linear(5, 16), experts, nn.Linear(16, 2)).to(dtype), x)
    assert sizes(space) == {"0": 16 // size, "1.up": 24 // size}
    assert not frozen(space).keys() - {"1.router", "2"}
    assert_exact(space, (x,), within=1e-9 if way == "indexed" else 1e-5)


class Pair(nn.Module):
    def __init__(self, *, named: bool) -> None:
        super().__init__()
        self.a, self.b, self.named = nn.Linear(5, 6), nn.Linear(4, 7), named
        self.both, self.last = nn.Bilinear(6, 7, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.a(x).relu(), self.b(y).relu()
        return self.last((self.both(input2=y, input1=x) if self.named else self.both(x, y)).relu())


@pytest.mark.parametrize("named", [False, True])
def test_a_bilinear_layer_loses_channels_on_its_three_sides(named: bool) -> None:
    example = (torch.randn(3, 2, 5, dtype=DOUBLE), torch.randn(3, 2, 4, dtype=DOUBLE))
    space = slim(Pair(named=named).double(), example)
    assert sizes(space) == {"a": 6, "b": 7, "both": 8}
    assert_exact(space, example)


class Translator(nn.Module):
    def __init__(self, *, named: bool) -> None:
        super().__init__()
        self.words, self.named = nn.Embedding(11, 8), named
        self.core, self.last = nn.Transformer(8, 2, 1, 1, 12, 0.0, batch_first=True), nn.Linear(8, 11)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.words(a), self.words(b)
        return self.last(self.core(src=a, tgt=b) if self.named else self.core(a, b))


@pytest.mark.parametrize("named", [False, True])
def test_torchs_transformer_knows_its_new_width(named: bool) -> None:
    example = (torch.randint(0, 11, (2, 5)), torch.randint(0, 11, (2, 3)))
    space = slim(Translator(named=named).double(), example)
    assert sizes(space)["words"] == 8
    assert_exact(space, example, counted=False)
    assert build(space, extremes(space)[1]).core.d_model == 1


class Series(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6 * 4, 2)
        self.places = nn.Parameter(torch.randn(1, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x) + self.places).flatten(1))


def test_positions_that_are_flattened_with_the_channels_leave_these_free() -> None:
    x = torch.randn(2, 4, 3, dtype=DOUBLE)
    space = slim(Series().double(), x)
    assert sizes(space) == {"first": 6}
    assert_exact(space, (x,))


def normed(form: str, dim: int | None) -> Callable[[nn.Module], nn.Module]:
    make = nn.utils.weight_norm if form == "hook" else nn.utils.parametrizations.weight_norm
    return lambda layer: make(layer, dim=dim)


class Vocoder(nn.Module):
    """Weights with norms in all kinds of convolutions and a Linear, as in WaveNet, HiFi-GAN and TCNs."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.up = norm(nn.ConvTranspose1d(4, 8, 4, 2, 1))
        self.blocks = nn.ModuleList(norm(nn.Conv1d(8, 8, 3, padding=1, groups=g)) for g in (1, 2, 8))
        self.down, self.last = norm(nn.Conv1d(8, 6, 1, bias=False)), norm(nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        for block in self.blocks:
            x = x + block(F.leaky_relu(x, 0.1))
        return self.last(self.down(x).tanh().mean(2))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(("form", "dim"), [("hook", 0), ("parametrization", 0), ("parametrization", None)])
def test_weight_norm_goes_through_slimming(form: str, dim: int | None) -> None:
    x = torch.randn(2, 4, 6, dtype=DOUBLE)
    net = Vocoder(normed(form, dim)).double()
    net.down.requires_grad_(False)
    for layer, part in ((net.up, 0), (net.blocks[0], 1)):  # lengths or directions alone are frozen
        [p for name, p in layer.named_parameters() if name != "bias"][part].requires_grad_(False)
    before = net(x)
    space = slim(net, x)
    assert sizes(space) == {"up": 2, "down": 6} and torch.equal(net(x), before)
    assert not frozen(space).keys() - {"last"}
    assert_exact(space, (x,), plain=False)
    built = build(space, extremes(space)[0])
    torch.testing.assert_close(built(x), space(x))
    assert [n for n, _ in built.named_parameters()] == [n for n, _ in net.named_parameters()]
    assert [p.requires_grad for p in built.parameters()] == [p.requires_grad for p in net.parameters()]
    built(x).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in built.parameters())
    assert not any(
        p.requires_grad for p in build(slim(net, x).requires_grad_(False), extremes(space)[0]).parameters()
    )


def test_a_row_of_zeros_with_weight_norm_stays_one() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].parametrizations.weight.original0[1] = 0.0
    space = slim(net, torch.randn(5, 3))
    built = build(space, extremes(space)[0])
    torch.testing.assert_close(built(x := torch.randn(2, 3)), net(x))


class Filters(nn.Module):
    """A convolution that is called with filters of its own."""

    def __init__(self, way: str, groups: int) -> None:
        super().__init__()
        self.way, self.width, self.count = way, 12, groups
        filters = torch.randn(12, 12 // groups, 3, 3) / 3
        kinds = {"buffer": nn.Buffer, "computed": lambda _: None}
        self.filters = kinds.get(way, nn.Parameter)(filters)
        self.bias = nn.Parameter(torch.randn(12)) if way in ("attribute", "number") else None
        self.computed = nn.Linear(12, 12 * 9) if way == "computed" else None

    def forward(self, x: Tensor) -> Tensor:
        way, w, batch = self.way, self.filters, x.shape[0]
        if self.computed is not None:
            channels = x.shape[1]
            w = self.computed(x.mean((2, 3))).view(batch * channels, 1, 3, 3)
            return F.conv2d(x.flatten(0, 1)[None], w, groups=batch * channels).view(batch, channels, 4, 4)
        if way == "number":
            return F.conv2d(x, w, self.bias, 1, 0, 1, 12) if self.count == 12 else F.conv2d(x, w, self.bias, groups=4)
        return F.conv2d(x, w, self.bias, groups=x.shape[1] // w.shape[1] if way == "shape" else self.count)


WAYS = {"number": (12, 4), "attribute": (12, 4), "shape": (4,), "buffer": (12,), "computed": (12,)}


@pytest.mark.parametrize(("way", "groups"), [(way, n) for way, counts in WAYS.items() for n in counts])
def test_filters_that_a_function_is_given_go_with_their_channels(way: str, groups: int) -> None:
    x = torch.rand(2, 2, 8, 8, dtype=DOUBLE)
    filters = Filters(way, groups)
    net = nn.Sequential(nn.Conv2d(2, 12, 3), filters, nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 3, 1))
    space = slim(net.double(), x)
    assert set(sizes(space).values()) == {groups} and not set(frozen(space)) - {"4"}
    assert_exact(space, (x,))


class Turned(nn.Module):
    """A layer, and others that read with its weight turned over, as a decoder with the weights of its encoder."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        a, b = (int(torch.randint(4, 12, (), generator=draw)) for _ in range(2))
        self.inner, self.code = nn.Linear(6, a), nn.Linear(a, b, bias=bool(seed % 2))
        self.back, self.norm = nn.Parameter(torch.randn(a)), nn.LayerNorm(a) if seed > 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        code = self.code(self.inner(x).tanh()).relu()
        hidden = self.norm(F.linear(code, self.code.weight.t(), self.back))
        return hidden.sigmoid() @ self.inner.weight


@pytest.mark.parametrize("seed", range(5))
def test_what_is_read_with_a_turned_weight_goes_with_what_that_makes(seed: int) -> None:
    net, x = Turned(seed).double(), torch.randn(3, 6, dtype=DOUBLE)
    space = slim(net, x)
    assert sizes(space) == {"inner": net.inner.out_features, "code": net.code.out_features}
    assert_exact(space, (x,))


@pytest.mark.parametrize("way", ["corners", "each", "added", "beside"])
def test_what_is_written_into_a_part_of_a_tensor_has_its_channels(way: str) -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.other, self.last = nn.Conv1d(3, 10, 1), nn.Conv1d(3, 10, 1), nn.Conv1d(10, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.first(x), self.other(x).tanh()
            y = torch.zeros(len(x), a.shape[1], 6, dtype=x.dtype)
            if way == "corners":
                y[:, :, :2], y[:, :, -2:] = a[:, :, :2], b[:, :, -2:]
            elif way == "each":
                for i in range(6):
                    y[:, :, i] = a[:, :, i] * (i + 1)
            elif way == "added":
                y[:, :, ::2] += a[:, :, ::2]
                y = y + b
            else:  # the second part is a constant's
                y[:, :, :3].copy_(a[:, :, :3]).mul_(2)
            return self.last(y + 1)

    x = torch.randn(2, 3, 6, dtype=DOUBLE)
    space = slim(Written().double(), x)
    assert sizes(space)["first"] == 10 and not set(frozen(space)) - {"last", "other"}
    assert_exact(space, (x,), plain=False)


@pytest.mark.parametrize("seed", range(4))
def test_a_convolution_of_one_place_leaves_the_channels_along_its_places_alone(seed: int) -> None:
    """Of an MLP-Mixer: the tokens are its channels, and the channels its places."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)
            wide = 1 + 2 * (seed == 3)
            last = nn.Conv1d(7, 6, wide, padding=wide // 2)
            self.tokens = nn.Sequential(nn.Conv1d(6, 7, 1), nn.GELU(), last)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last((x + self.tokens(self.norm(x))) if seed else self.tokens(x))

    x = torch.randn(2, 6, 5, dtype=DOUBLE)
    space = slim(Mixer().double(), x)
    assert sizes(space) == ({"tokens.0": 7} if seed == 3 else {"first": 8, "tokens.0": 7})
    assert_exact(space, (x,), plain=False)


@pytest.mark.parametrize("seed", range(3))
def test_products_without_channels_are_a_part_of_what_a_module_computes(seed: int) -> None:
    """Of a graph network's layers the first multiplies features that no layer has made."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(i, 9 + seed) for i in (4, 9 + seed, 9 + seed))
            self.last = nn.Linear(9 + seed, 2)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(edges @ x).relu()
            return self.last(x)

    example = torch.randn(2, 5, 4, dtype=DOUBLE), torch.rand(2, 5, 5, dtype=DOUBLE)
    assert_exact(slim(Graph().double(), example), example, plain=False)


@pytest.mark.parametrize("spread", ["repeat", "expand", "added"])
def test_an_index_that_is_the_same_for_all_channels_picks_rows_of_them(spread: str) -> None:
    class Picking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 9), nn.Linear(9, 2)

        def forward(self, x: Tensor, order: Tensor) -> Tensor:
            x = self.first(x)
            rows = order.argsort(1)[:, :4, None]
            if spread == "added":
                return self.last(x.gather(1, rows + torch.zeros_like(x[:, :4], dtype=torch.long)))
            wide = rows.repeat(1, 1, x.shape[2]) if spread == "repeat" else rows.expand(-1, -1, x.shape[2])
            return self.last(x.gather(1, wide))

    example = torch.randn(2, 6, 3, dtype=DOUBLE), torch.rand(2, 6, dtype=DOUBLE)
    space = slim(Picking().double(), example)
    assert sizes(space) == {"first": 9}
    assert_exact(space, example, plain=False)


@pytest.mark.parametrize("side", [1, 4, 7])
def test_maps_that_a_linear_layer_makes_go_with_their_channels(side: int) -> None:
    layers = nn.Linear(5, 12 * side**2), nn.ReLU(), nn.Unflatten(1, (12, side, side)), nn.ConvTranspose2d(12, 3, 3)
    space, x = slim(nn.Sequential(*layers).double(), torch.randn(2, 5).double()), torch.randn(2, 5).double()
    assert sizes(space) == {"0": 12}
    assert_exact(space, (x,))


class OwnKernel(nn.Conv2d):
    """A convolution with a forward of its own, whose numbers are the layer's."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.tanh(), self.bias, self.stride, self.padding, self.dilation, self.groups)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_groups_of_layers_with_a_forward_of_their_own_go_with_their_channels(groups: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        OwnKernel(3, 8, 3, padding=1), nn.ReLU(), OwnKernel(8, 8, 3, padding=1, groups=groups), nn.ReLU(),
        OwnKernel(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    ).to(DOUBLE)  # fmt: skip
    example = torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    space = slim(net, example)
    assert {"0", "4"} <= set(sizes(space))
    assert_exact(space, (example,))
