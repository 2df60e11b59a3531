"""Channels that a norm normalizes over: the open ones make the statistics, and closing is removing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from families.checks import assert_plain, difference, extremes, outputs, stir
from families.grammar import Conv1D, NormAcross, RootMeanSquareNorm
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, hold, logits, relax, sample, using
from archgrad.choices.channel_norms import channel_norm
from archgrad.extract.discretize import build

WIDTH = 6


class RmsNormAct(nn.Module):
    """A norm with what follows it inside, as in timm's MobileNetV5."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), 1e-6
        self.drop, self.act = nn.Identity(), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.square().mean(1, keepdim=True) + self.eps) * self.weight.view(1, -1, 1)
        return self.act(self.drop(y))


class Evened(nn.Module):
    """A norm whose class has another name."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.epsilon = nn.Parameter(torch.ones(WIDTH)), 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt() * self.scale


class InSingle(nn.LayerNorm):
    """In single precision whatever it is given, as in CLIP and Whisper."""

    def forward(self, x: Tensor) -> Tensor:
        own = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), own, self.eps).type(x.dtype)


class OfInSingle(nn.LayerNorm):
    """The same, with weights that have to be in single precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).type(x.dtype)


class Scaled(nn.Module):
    """A vector of unit length, times a number that the module keeps from when it had all of its channels."""

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis, self.factor = axis, WIDTH**0.5
        self.gamma = nn.Parameter(torch.ones(WIDTH) if axis == -1 else torch.ones(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=self.axis) * self.factor * self.gamma


class Divided(nn.Module):
    """A mean square by a number of channels that the module keeps, under a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.weight = WIDTH, nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().sum(-1, keepdim=True) / self.features + 1e-6)


class Annotated(nn.Module):
    """The norm of the annotated transformer: an unbiased deviation, and a small number beside it."""

    def __init__(self, unbiased: bool = True) -> None:
        super().__init__()
        self.a_2, self.b_2 = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        self.eps, self.unbiased = 1e-6, unbiased

    def forward(self, x: Tensor) -> Tensor:
        deviation = x.std(-1, keepdim=True, unbiased=self.unbiased)
        return self.a_2 * (x - x.mean(-1, keepdim=True)) / (deviation + self.eps) + self.b_2


class Counting(nn.Module):
    """A norm whose number of channels is computed, and whose small number is a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), torch.tensor([1e-6])

    @property
    def dim(self) -> int:
        return len(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class LayerScale(nn.Module):
    """A factor for each channel, beside a small number, is no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.initial = nn.Parameter(torch.ones(WIDTH)), 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


NORMS: dict[str, tuple[Callable[[], nn.Module], int, bool]] = {  # how it is made, its axis, whether it has a mean
    "layer": (lambda: nn.LayerNorm(WIDTH), -1, True),
    "without weights": (lambda: nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-3), -1, True),
    "without bias": (lambda: nn.LayerNorm(WIDTH, bias=False), -1, True),
    "rms": (lambda: nn.RMSNorm(WIDTH), -1, False),
    "rms of llama": (lambda: RootMeanSquareNorm(WIDTH, shifted=False), -1, False),
    "rms of gemma": (lambda: RootMeanSquareNorm(WIDTH, shifted=True), -1, False),
    "across": (lambda: NormAcross(WIDTH), 1, True),
    "with an activation": (RmsNormAct, 1, False),
    "of another name": (Evened, -1, False),
    "one group": (lambda: nn.GroupNorm(1, WIDTH), 1, True),
    "a biased deviation beside a number": (lambda: Annotated(unbiased=False), -1, True),
    "with a property": (Counting, -1, False),
    "in single precision": (lambda: InSingle(WIDTH), -1, True),
    "times a kept number": (Scaled, -1, False),
    "times a kept number, channels first": (lambda: Scaled(1), 1, False),
    "divided by a kept number": (Divided, -1, False),
}


def stirred(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    norm = norm.double()
    for parameter in norm.parameters():
        parameter.data = 0.5 + torch.rand(parameter.shape).double()
    return norm


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_known_by_what_it_computes_and_open_channels_alone_make_its_statistics(name: str) -> None:
    make, axis, centered = NORMS[name]
    norm = stirred(make())
    kind = channel_norm(norm)
    assert kind is not None and (kind.axis, kind.centered, kind.width) == (axis, centered, WIDTH)
    x = torch.randn(3, 5, WIDTH).double() + 1
    x = x.transpose(1, 2) if axis == 1 else x
    assert torch.allclose(kind(norm, x, torch.ones(WIDTH)), norm(x), atol=1e-6)
    kept = torch.tensor([0, 2, 5])
    smaller = copy.deepcopy(norm)
    for attribute, dim in kind.tensors:
        setattr(smaller, attribute, nn.Parameter(getattr(norm, attribute).data.index_select(dim, kept)))
    for count in kind.counts:
        setattr(smaller, count, (3,) if isinstance(getattr(norm, count), tuple) else 3)
    mask = torch.zeros(WIDTH).index_fill(0, kept, 1.0)
    found = kind(norm, x, mask).index_select(axis, kept)
    assert torch.allclose(found, smaller(x.index_select(axis, kept)), atol=1e-6)
    wrong = kind(norm, x, mask.roll(1)).index_select(axis, kept)
    assert not torch.allclose(wrong, smaller(x.index_select(axis, kept)), atol=1e-2)


class Written(nn.Module):
    """A norm with a number in `forward`: added under the root, or the least length that it divides by."""

    def __init__(self, eps: float, *, added: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.number, self.added = [eps], added

    def forward(self, x: Tensor) -> Tensor:
        if self.added:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.number[0]) * self.weight
        return F.normalize(x, dim=-1, eps=self.number[0]) * x.shape[-1] ** 0.5 * self.weight


@pytest.mark.parametrize("power", range(2, 13))
def test_a_number_in_the_forward_of_a_norm_is_measured(power: int) -> None:
    for added in (True, False):
        kind = channel_norm(Written(eps := 10.0**-power, added=added))
        assert kind is not None and (kind.eps, kind.least) == ((eps, 1e-12) if added else (0.0, eps))


class Padded(nn.Module):
    """Vectors, those of padding zero, behind a norm that leaves them zero."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(10, WIDTH, padding_idx=0), norm, nn.Linear(WIDTH, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(tokens)))


@pytest.mark.parametrize("eps", [1e-12, 1e-6])
@pytest.mark.parametrize("example", [0, 1])
def test_zeros_stay_zeros_behind_a_norm_that_divides_by_a_least_length(example: int, eps: float) -> None:
    torch.manual_seed(0)
    net = Padded(Written(eps, added=False))
    tokens = torch.arange(8).reshape(2, 4)
    space = ag.slim(net, tokens + 1 - example)
    assert {n: same[0].size for n, same in choices(space).items()} == {"embed": WIDTH}
    for architecture in [*extremes(space), sample(space, generator=torch.Generator().manual_seed(0))]:
        held, built = hold(space, architecture), build(space, architecture)
        assert torch.equal(built(tokens)[0, 0], net.head.bias)
        torch.testing.assert_close(held(tokens), built(tokens))
    relax(space, ag.scaled_sigmoid)
    space(tokens).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in (*logits(space), *space.parameters()))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_that_divides_zeros_by_zero_does_so_in_a_space(norm: type[nn.Module]) -> None:
    torch.manual_seed(0)
    space = ag.slim(Padded(norm(WIDTH, eps=0.0)), torch.arange(1, 9).reshape(2, 4))  # type: ignore[call-arg]
    assert choices(space).keys() == {"embed"}
    for architecture in extremes(space):
        held, built = hold(space, architecture), build(space, architecture)
        torch.testing.assert_close(held(x := torch.arange(4)[None]), built(x), equal_nan=True)


def test_soft_gates_weigh_the_statistics() -> None:
    norm, x, g = stirred(nn.LayerNorm(WIDTH)), torch.randn(4, WIDTH).double(), torch.rand(WIDTH).double()
    kind = channel_norm(norm)
    assert kind is not None
    mean = (g * x).sum(-1, keepdim=True) / g.sum()
    variance = (g * (x - mean) ** 2).sum(-1, keepdim=True) / g.sum()
    expected = (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    assert torch.allclose(kind(norm, x, g), expected)
    assert torch.allclose(kind(norm, x, 3 * g), expected), "a common factor changes nothing"
    assert bool(kind(norm, x, torch.zeros(WIDTH)).isfinite().all())
    g.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: kind(norm, x, s), g)


@pytest.mark.parametrize(
    "other",
    [
        nn.BatchNorm1d(WIDTH), nn.GroupNorm(2, WIDTH), nn.LayerNorm((5, WIDTH)), nn.PReLU(WIDTH), nn.Linear(WIDTH, 1),
        nn.LocalResponseNorm(2), nn.LayerNorm(1), LayerScale(),
    ],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_other_layers_are_no_norms_over_channels(other: nn.Module) -> None:
    assert channel_norm(other) is None


def test_a_norm_that_runs_in_single_precision_alone_lets_its_stream_go() -> None:
    torch.manual_seed(0)
    net, x = Trunk(lambda: OfInSingle(WIDTH), -1), torch.randn(3, 5, 4)
    space = ag.slim(net, x)
    assert {n: same[0].size for n, same in choices(space).items()} == {"inlet": WIDTH, "up": 9, "up.branch": 1}
    stir(space)
    held, built = (make(space, extremes(space)[1]) for make in (hold, build))
    assert difference(outputs(held, (x,)), outputs(built, (x,))) < 1e-5


def test_channels_of_an_unbiased_deviation_go_in_pairs() -> None:
    kind = channel_norm(stirred(Annotated()))
    assert kind is not None and kind.unbiased and kind.outside and kind.eps == 1e-6  # type: ignore[union-attr]
    torch.manual_seed(0)
    net, x = Trunk(Annotated, -1).double(), torch.randn(3, 5, 4).double()
    space = ag.slim(net, x)
    assert {n: same[0].size for n, same in choices(space).items()} == {"inlet": WIDTH // 2, "up": 9, "up.branch": 1}
    stir(space)
    for architecture in [*extremes(space), sample(space, generator=torch.Generator().manual_seed(0))]:
        held, built = hold(space, architecture), build(space, architecture)
        assert difference(outputs(held, (x,)), outputs(built, (x,))) < 1e-9
    soft = ag.relax(space, ag.scaled_sigmoid)
    soft(x).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in ag.logits(soft) if p.grad is not None)


def test_an_odd_number_of_channels_under_an_unbiased_deviation_stays() -> None:
    norm = Annotated()
    norm.a_2, norm.b_2 = nn.Parameter(torch.ones(7)), nn.Parameter(torch.zeros(7))
    net = nn.Sequential(nn.Linear(4, 7), norm, nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 2))
    space = ag.slim(net, torch.randn(3, 4))
    assert set(choices(space)) == {"2"} and "odd number" in ag.frozen(space)["0"]


class Trunk(nn.Module):
    """A residual stream [B, T, C] between layers, normalized before each branch."""

    def __init__(self, norm: Callable[[], nn.Module], axis: int) -> None:
        super().__init__()
        self.axis, self.inlet, self.positions = axis, nn.Linear(4, WIDTH), nn.Parameter(torch.randn(5, WIDTH))
        self.first, self.second, self.last = norm(), norm(), norm()
        self.up, self.down, self.mix = nn.Linear(WIDTH, 9), nn.Linear(9, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def normalized(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x.transpose(1, 2)).transpose(1, 2) if self.axis == 1 else norm(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x) + self.positions
        x = x + self.mix(self.normalized(self.first, x)).tanh()
        x = x + self.down(F.gelu(self.up(self.normalized(self.second, x))))
        return self.head(self.normalized(self.last, x))


@pytest.mark.parametrize("name", NORMS)
def test_a_stream_is_one_gate_whose_removal_is_exact(name: str) -> None:
    make, axis, _ = NORMS[name]
    torch.manual_seed(0)
    net, x = Trunk(make, axis).double(), torch.randn(3, 5, 4).double()
    space = ag.slim(net, x)
    assert {n: same[0].size for n, same in choices(space).items()} == {"inlet": WIDTH, "up": 9, "up.branch": 1}
    assert difference(outputs(net, (x,)), outputs(space, (x,))) == 0.0
    stir(space)
    for architecture in [
        *extremes(space),
        *(sample(space, generator=torch.Generator().manual_seed(i)) for i in (0, 1)),
    ]:
        held, built = hold(space, architecture), build(space, architecture)
        assert difference(outputs(held, (x,)), outputs(built, (x,))) < (
            1e-5 if "llama" in name or "gemma" in name or "single" in name else 1e-9
        )
        for cost in (ag.macs(x), ag.params()):
            assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)
        if len(architecture["inlet"]) == 1 and axis == -1 and isinstance(built.last, nn.LayerNorm):
            assert built.last.normalized_shape == (1,)
        assert_plain(built)


class PostNorm(nn.Module):
    """Blocks that normalize the sum of stream and branch, as BERT does."""

    def __init__(self, norm: Callable[[], nn.Module], blocks: int) -> None:
        super().__init__()
        self.inlet, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)
        self.branches = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(blocks))
        self.norms = nn.ModuleList(norm() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        for branch, norm in zip(self.branches, self.norms, strict=True):
            x = norm(x + branch(x).tanh())
        return self.head(x)


@pytest.mark.parametrize("eps", [1e-5, 1e-12])
@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_norms_of_one_open_channel_multiply_the_closed_ones_by_nothing(kind: type[nn.Module], eps: float) -> None:
    torch.manual_seed(0)
    net, x = PostNorm(lambda: kind(WIDTH, eps=eps), blocks=12), torch.randn(2, 5, 4)  # type: ignore[call-arg]
    space = ag.slim(net, x)
    assert choices(space), "the stream has a gate"
    stir(space)
    for architecture in extremes(space):
        held, built = hold(space, architecture), build(space, architecture)
        for y in (held(x), built(x)):
            assert bool(y.isfinite().all())
        assert torch.allclose(held(x), built(x), rtol=1e-4, atol=1e-5)


def test_gates_of_a_stream_have_a_gradient_through_statistics_and_readers() -> None:
    torch.manual_seed(0)
    net, x = Trunk(lambda: nn.LayerNorm(WIDTH), -1).double(), torch.randn(3, 5, 4).double()
    space = ag.slim(net, x)
    g = torch.full((WIDTH,), 0.7, dtype=torch.float64, requires_grad=True)

    def of(g: Tensor) -> Tensor:
        with using(space, {"inlet": g}):
            return space(x)

    assert torch.autograd.gradcheck(of, g)
    relax(space, ag.scaled_sigmoid)
    space(x).square().mean().backward()
    assert all(
        row.grad is not None and bool(row.grad.isfinite().all()) and bool(row.grad.any()) for row in logits(space)
    )


class Words(nn.Module):
    """A language model whose output layer has the weight of its embedding."""

    def __init__(self, *, tied: bool, layer: type[nn.Module]) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = (
            (layer(9, WIDTH), layer(WIDTH, 9)) if layer is Conv1D else (nn.Linear(WIDTH, 9), nn.Linear(9, WIDTH))
        )
        self.head, self.bias = nn.Linear(WIDTH, 11), nn.Parameter(torch.zeros(11))
        self.head.bias = self.bias
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.norm(x + self.down(torch.relu(self.up(x)))))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layer", [nn.Linear, Conv1D])
def test_an_embedding_and_its_output_layer_shrink_together_and_stay_one(layer: type[nn.Module], tied: bool) -> None:
    torch.manual_seed(0)
    net, tokens = Words(tied=tied, layer=layer), torch.randint(0, 11, (2, 5))
    space = ag.slim(net, tokens)
    assert {n: same[0].size for n, same in choices(space).items()} == {"embed": WIDTH, "up": 9, "up.branch": 1}
    stir(space)
    for architecture in extremes(space):
        built, held = build(space, architecture), hold(space, architecture)
        assert difference(outputs(held, (tokens,)), outputs(built, (tokens,))) < 1e-5
        assert (built.head.weight is built.embed.weight) is tied
        assert built.head.bias is built.bias
        assert float(ag.params().expected(held)) == pytest.approx(ag.params().of(built), rel=1e-9)


class Across(nn.Module):
    """A decoder that attends to an encoder, in torch's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(4, 8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 10, batch_first=True), 1)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 10, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(self.one(x), self.encoder(self.two(x[:, :3]))))


def test_streams_that_meet_in_torchs_attention_share_a_gate_and_their_costs_are_right() -> None:
    torch.manual_seed(0)
    net, x = Across(), torch.randn(2, 5, 4)
    space = ag.slim(net, x)
    gates = {n: same[0].size for n, same in choices(space).items()}
    assert gates["one"] == 8 and "two" not in gates and sum(size == 2 for size in gates.values()) == 3
    stir(space)
    for architecture in [
        *extremes(space),
        *(sample(space, generator=torch.Generator().manual_seed(i)) for i in (0, 1)),
    ]:
        held, built = hold(space, architecture), build(space, architecture)
        assert difference(outputs(held, (x,)), outputs(built, (x,))) < 1e-5
        for cost in (ag.macs(x), ag.params()):
            assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)
        with torch.no_grad():
            assert difference(outputs(built, (x,)), [torch.export.export(built.eval(), (x,)).module()(x)]) < 1e-5


class Neighbours(nn.Module):
    """Products of a given matrix with features of several widths, all computed by one module."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 6), nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        return self.head((near @ self.two((near @ self.one(x)).relu())).relu().mean(1))


def test_each_product_that_a_module_computes_costs_what_its_own_channels_say() -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 7, 4), torch.rand(2, 7, 7))
    space = ag.slim(Neighbours(), x)
    for seed in range(3):
        architecture = sample(space, generator=torch.Generator().manual_seed(seed))
        found = float(ag.macs(x).expected(hold(space, architecture)))
        one, two = (len(architecture[name]) for name in ("one", "two"))
        assert found == pytest.approx(ag.macs(x).of(build(space, architecture)), rel=1e-9)
        assert found == pytest.approx(7 * 4 * one + 7 * 7 * one + 7 * one * two + 7 * 7 * two + 3 * two, rel=1e-9)


class AddNorm(nn.LayerNorm):
    """Adds and normalizes in one call, and gives the sum too."""

    def forward(self, x: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x + more), x + more


class ScaledNorm(nn.LayerNorm):
    """Takes a scale before its input."""

    def forward(self, scale: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return scale * super().forward(x)


class PickyNorm(nn.Module):
    """Raises an error of its own for inputs of other shapes."""

    class Refused(Exception):
        pass

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3:
            raise self.Refused
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class Reader(nn.Module):
    """A stream of three tokens, read through a norm that is called in some way."""

    def __init__(self, norm: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inp, self.norm, self.hidden = nn.Linear(4, WIDTH), norm, nn.Linear(WIDTH, 5)
        self.out, self.call = nn.Linear(5, 2), call

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.call(self.norm, self.inp(x))).relu())


READERS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor], bool]] = {
    "adds in one call": (lambda: AddNorm(WIDTH), lambda norm, x: norm(x, x)[0], False),
    "takes a scale first": (lambda: ScaledNorm(WIDTH), lambda n, x: n(scale=x.new_tensor(2.0), x=x), False),
    "raises its own errors": (lambda: PickyNorm(WIDTH), lambda norm, x: norm(x), True),
    "layer": (lambda: nn.LayerNorm(WIDTH), lambda norm, x: norm(x), True),
}


@pytest.mark.parametrize("name", READERS)
def test_a_norm_that_is_called_otherwise_freezes_itself_and_no_more(name: str) -> None:
    make, call, followed = READERS[name]
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4)
    space = ag.slim(Reader(make(), call), x)
    stir(space)
    assert ("inp" in choices(space)) == followed and "hidden" in choices(space)
    for architecture in extremes(space):
        assert difference(outputs(hold(space, architecture), (x,)), outputs(build(space, architecture), (x,))) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["layer", "rms", "rms of llama", "one group"])
def test_norms_are_known_and_exact_in_half_precision(name: str, dtype: torch.dtype) -> None:
    make, axis, _ = NORMS[name]
    norm = stirred(make()).to(dtype)
    kind = channel_norm(norm)
    assert kind is not None
    x = 1e-3 * torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(2))  # where eps counts
    x = (x.transpose(1, 2) if axis == 1 else x).to(dtype)
    wanted = norm(x).float()
    assert (kind(norm, x, torch.ones(WIDTH)).float() - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_hooks_of_the_user_see_what_the_gated_norm_puts_out() -> None:
    torch.manual_seed(0)
    seen: list[Tensor] = []
    net = Reader(nn.LayerNorm(WIDTH), lambda norm, x: norm(x))
    net.norm.register_forward_hook(lambda module, given, out: seen.append(out) or 3 * out)  # type: ignore[func-returns-value]
    x = torch.randn(2, 3, 4)
    space = ag.slim(net, x)
    stir(space)
    assert "inp" in choices(space)
    architecture = sample(space, generator=torch.Generator().manual_seed(1))
    held, built = hold(space, architecture), build(space, architecture)
    assert difference(outputs(held, (x,)), outputs(built, (x,))) < 1e-5
    kept = list(architecture["inp"])
    seen.clear()
    held(x), built(x)
    assert torch.allclose(seen[0][..., kept], seen[1], atol=1e-5)
