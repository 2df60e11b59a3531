"""Counted costs against hand counts, against enumeration, and as differentiable functions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from families import transformers
from families.convolutional import mobilenet, plain, resnet, resnext
from families.families import FAMILIES
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, logits, relax, sample
from archgrad.choices.architecture import Architecture
from archgrad.choices.gate import Gate
from archgrad.choices.modules import InputChoice, OpChoice
from archgrad.choices.relaxations import ScaledSigmoid, softmax
from archgrad.costs.count import macs, macs_by_module, params, uncounted
from archgrad.errors import ModelError
from archgrad.extract.discretize import build
from archgrad.spaces.slim.slimmable import slim

BY_NAME = {f.name: f for f in FAMILIES}
T, D = 5, 12  # tokens, features
X = torch.randn(2, T, D)


class Residual(nn.Module):
    """A field and its derivatives by the place, as in networks that solve differential equations."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self.field, self.order = nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 1)), order

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            found = [self.field(x)]
            for _ in range(self.order):
                found.append(torch.autograd.grad(found[-1].sum(), x, create_graph=True)[0][:, :1])
        return tuple(found)


COUNTED = {
    "linear": (nn.Linear(12, 7), X, T * 12 * 7),
    "convolution": (nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.randn(2, 3, 9, 9), 3 * 8 * 9 * 25),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), torch.randn(2, 6, 5, 5), 3 * 8 * 9 * 9),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), torch.randn(2, 6, 5, 5), 6 * 9 * 9),
    "dilated 1d": (nn.Conv1d(2, 4, 3, dilation=2), torch.randn(2, 2, 10), 2 * 4 * 3 * 6),
    "3d": (nn.Conv3d(1, 2, 3), torch.randn(2, 1, 4, 4, 4), 2 * 27 * 8),
    "transposed": (nn.ConvTranspose2d(3, 4, 2, 2), torch.randn(2, 3, 5, 5), 3 * 4 * 4 * 25),
    "recurrent": (nn.GRU(12, 7, batch_first=True), X, T * 3 * (12 * 7 + 7 * 7)),
    "fused attention": (transformers.Fused(D, 3), X, 4 * T * D * D + 2 * T * T * D),
    "separate attention": (transformers.Separate(D, 4), X, 4 * T * D * D + 2 * T * T * D),
    "torch's attention": (transformers.Packed(D, 4), X, 4 * T * D * D + 2 * T * T * D),
    "encoder layer": (
        nn.TransformerEncoderLayer(D, 4, 20, batch_first=True), X, 4 * T * D * D + 2 * T * T * D + 2 * T * D * 20,
    ),
    # The field, then W2^T and W1^T of the gradient; the second derivative goes through the first layer alone.
    "first derivative": (Residual(1), torch.randn(3, 2), 2 * (2 * 7 + 7)),
    "nothing": (nn.Sequential(nn.BatchNorm1d(T), nn.ReLU(), nn.Flatten()), X, 0),
}  # fmt: skip


@pytest.mark.parametrize(("network", "example", "expected"), COUNTED.values(), ids=COUNTED)
def test_macs_of_one_example_by_hand(network: nn.Module, example: Tensor, expected: int) -> None:
    assert macs(example).of(network) == expected
    assert macs(example[:1]).of(network) == expected


def test_each_module_is_given_its_own_work() -> None:
    net = plain()
    found = macs_by_module(net, torch.randn(2, 3, 8, 8))
    assert found == {
        "stem.0": 3 * 8 * 9 * 64, "blocks.0.0": 8 * 12 * 9 * 16, "blocks.1.0": 12 * 6 * 9 * 16, "fc": 6 * 5
    }  # fmt: skip
    attention = transformers.Fused(D, 3)
    assert macs_by_module(attention, X) == {
        "": 2 * T * T * D, "qkv": 3 * T * D * D, "proj": T * D * D
    }  # fmt: skip


def test_a_module_called_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    assert macs(torch.randn(1, 6)).of(Twice()) == 2 * 36
    assert params().of(Twice()) == 42


def test_counting_leaves_the_network_as_it_is() -> None:
    net = resnet().train()
    net.blocks[0].eval()
    modes = [m.training for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    macs(torch.randn(2, 3, 8, 8)).of(net)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())
    with pytest.raises(ModelError, match=r"Trunk does not run on the example of \[2, 4, 8, 8\]"):
        macs(torch.randn(2, 4, 8, 8)).of(net)
    assert [m.training for m in net.modules()] == modes


def test_parameters_by_hand() -> None:
    assert params().of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))) == 3 * 8 * 9 + 8 + 16
    tied = transformers.Language()
    assert params().of(tied) == 20 * 12 + (12 * 16 + 16) + (16 * 12 + 12)
    relaxed = relax(OpChoice([nn.Linear(3, 4), nn.Linear(3, 4, bias=False)], name="op"), softmax)
    assert params().of(relaxed) == 16 + 12


def test_several_inputs_and_tokens() -> None:
    family = BY_NAME["two_inputs"]
    x = family.example(batch=3)
    assert macs(x).of(family.network()) == 3 * 8 * 9 * 64 + 4 * 6 + 14 * 10 + 10 * 5
    tokens = BY_NAME["language"]
    assert macs(tokens.example()[0]).of(tokens.network()) == 6 * (2 * 12 * 16 + 12 * 20)


def open_gates(space: nn.Module) -> Architecture:
    return Architecture({n: tuple(range(same[0].size)) for n, same in choices(space).items()})


def test_a_slim_space_costs_what_its_network_costs() -> None:
    net, x = resnet(), torch.randn(2, 3, 8, 8)
    space = slim(net, x)
    for cost in (macs(x), params()):
        assert cost.of(space) == cost.of(net)
        assert float(cost.expected(space)) == cost.of(net)
        assert float(cost.expected(hold(space, open_gates(space)))) == cost.of(net)


def test_the_expected_cost_of_half_open_gates_by_hand() -> None:
    x = torch.randn(2, 3, 8, 8)
    space = relax(slim(plain(), x), ScaledSigmoid)  # every gate at 1/2
    expected = 3 * 8 * 9 * 64 / 2 + (8 * 12 + 12 * 6) * 9 * 16 / 4 + 6 * 5 / 2
    assert macs(x).expected(space).item() == pytest.approx(expected, rel=1e-12)
    norms = 2 * (8 + 12 + 6) / 2
    convolutions = 3 * 8 * 9 / 2 + (8 * 12 + 12 * 6) * 9 / 4
    assert params().expected(space).item() == pytest.approx(convolutions + norms + 6 * 5 / 2 + 5, rel=1e-12)


@pytest.mark.parametrize(
    "make", [plain, resnet, mobilenet, resnext, transformers.vit_fused, transformers.vit_separate]
)
def test_the_gradient_is_that_of_the_cost(make) -> None:
    x = torch.randn(2, 3, 8, 8)
    space = slim(make(), x)
    total = sum(same[0].size for same in choices(space).values())
    at = torch.rand(total, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for cost in (macs(x), params()):
        counter = cost.counter(space)
        scale = cost.of(space)
        assert torch.autograd.gradcheck(lambda w, c=counter, s=scale: c.at(w) / s, (at,))
        ones = torch.ones_like(at).requires_grad_()
        (gradient,) = torch.autograd.grad(counter.at(ones), ones)
        assert bool((gradient > 0).all())


def test_the_cost_reaches_the_logits() -> None:
    x = torch.randn(2, 3, 8, 8)
    space = relax(slim(resnet(), x), ScaledSigmoid)
    macs(x).expected(space).backward()
    assert all(p.grad is not None and bool((p.grad > 0).all()) for p in logits(space))
    assert all(p.grad is None for n, p in space.named_parameters() if not n.endswith("logits"))


def test_a_counter_may_be_kept_for_copies_and_other_weights() -> None:
    x = torch.randn(2, 3, 8, 8)
    space = slim(mobilenet(), x)
    cost = macs(x)
    counter = cost.counter(space)
    for seed in range(4):
        architecture = sample(space, generator=torch.Generator().manual_seed(seed))
        assert float(counter(hold(space, architecture))) == pytest.approx(
            cost.of(build(space, architecture)), rel=1e-12
        )


class Cells(nn.Module):
    """Three choices of operations; the second has one inside a candidate."""

    def __init__(self) -> None:
        super().__init__()
        inner = OpChoice([nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)], name="inner")
        self.stem = nn.Conv2d(3, 4, 1)
        self.one = OpChoice([nn.Conv2d(4, 4, 3, padding=1), nn.Identity(), nn.AvgPool2d(3, 1, 1)], name="one")
        self.two = OpChoice([nn.Sequential(inner, nn.ReLU()), nn.Conv2d(4, 4, 5, padding=2)], name="two")
        self.sum = InputChoice(2, name="sum")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.two(self.sum([x, self.one(x)]))


def test_the_expected_cost_is_the_mean_over_all_architectures() -> None:
    """Additive and, for a choice in a candidate, a product of independent draws."""
    torch.manual_seed(0)
    x, space = torch.randn(1, 3, 6, 6), relax(Cells(), softmax)
    with torch.no_grad():
        for parameter in logits(space):
            parameter.copy_(torch.randn(parameter.shape))
    probabilities = {n: torch.softmax(c[0].relaxation.logits.detach().double(), 0) for n, c in choices(space).items()}
    for cost in (macs(x), params()):
        mean, seen = 0.0, set()
        for one, two, inner in itertools.product(range(3), range(2), range(2)):
            architecture = Architecture({"one": one, "two": two, "inner": inner, "sum": (1,)})
            p = math.prod(float(probabilities[n][i]) for n, i in (("one", one), ("two", two), ("inner", inner)))
            value = cost.of(build(space, architecture))
            assert float(cost.expected(hold(space, architecture))) == pytest.approx(value, rel=1e-12)
            mean += p * value
            seen.add(value)
        assert len(seen) > 3
        assert cost.expected(space).item() == pytest.approx(mean, rel=1e-6)


def test_the_expected_cost_is_a_mean_over_gate_draws_too() -> None:
    """Independent gates: where no gate has both sides of a layer, the mean over all masks."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    x = torch.randn(2, 3)
    space = slim(net, x)
    counter = macs(x).counter(space)
    w = torch.rand(5, dtype=torch.float64)
    mean = torch.zeros((), dtype=torch.float64)
    for mask in itertools.product((0.0, 1.0), repeat=5):
        m = torch.tensor(mask, dtype=torch.float64)
        mean += torch.where(m > 0, w, 1 - w).prod() * counter.at(m)
    assert float(counter.at(w)) == pytest.approx(float(mean), rel=1e-12)
    n, m = w[:3].sum(), w[3:].sum()
    assert float(counter.at(w)) == pytest.approx(float(3 * n + n * m + m * 2), rel=1e-12)


def test_attention_is_counted_by_heads() -> None:
    x = torch.randn(2, 3, 8, 8)
    space = slim(transformers.vit_separate(), x)
    full = open_gates(space)
    one = Architecture({**full, "blocks.0.attn.heads": (2,)})
    tokens, width, head = 17, 12, 3
    saved = 3 * (4 * tokens * width * head + 2 * tokens * tokens * head)  # three heads of four are gone
    cost = macs(x)
    assert cost.of(build(space, full)) - cost.of(build(space, one)) == saved
    assert float(cost.expected(hold(space, full)) - cost.expected(hold(space, one))) == saved


def test_a_space_without_choices_costs_itself() -> None:
    net = nn.Linear(3, 4)
    assert float(macs(torch.randn(2, 3)).expected(net)) == 12
    assert float(params().expected(net)) == 16


def test_a_gate_in_the_forward_has_no_price() -> None:
    """A gate of one's own has no couplings: nothing is removed, so nothing is saved."""
    space = nn.Sequential(nn.Linear(3, 4), Gate(4, name="gate"), nn.Linear(4, 2))
    held = hold(space, Architecture({"gate": (0,)}))
    assert float(macs(torch.randn(1, 3)).expected(held)) == macs(torch.randn(1, 3)).of(
        build(space, Architecture({"gate": (0,)}))
    )


def test_functional_work_belongs_to_the_module_that_calls_it() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.kernel)

    net = nn.Sequential(nn.Linear(2, 3), Own())
    assert macs_by_module(net, torch.randn(5, 2)) == {"0": 6, "1": 12}


class Handing(nn.Module):
    """Hands parameters of its own to modules, as learned queries and tokens do."""

    def __init__(self, hand: Callable[[nn.Parameter, int], Tensor]) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 3, 8))
        self.layer, self.head, self.hand = nn.Linear(8, 8), nn.Linear(8, 2), hand

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.hand(self.query, len(x))) + x)


HANDED = {
    "itself": (lambda query, batch: query, 1),
    "a view": (lambda query, batch: query.expand(batch, -1, -1), 2),
    "a computed tensor": (lambda query, batch: query + 0, 1),
    "a reshaped one": (lambda query, batch: query.reshape(3, 8), 1),
}


@pytest.mark.parametrize(("hand", "rows"), HANDED.values(), ids=HANDED)
def test_parameters_handed_to_modules_are_no_obstacle(hand: Callable[[nn.Parameter, int], Tensor], rows: int) -> None:
    network, x = Handing(hand), torch.randn(2, 3, 8, requires_grad=True)
    network.head.bias.requires_grad_(False)
    before = [p.requires_grad for p in network.parameters()]
    assert macs(x).of(network) == (rows * 3 * 64 + 2 * 3 * 16) / 2
    assert [p.requires_grad for p in network.parameters()] == before and x.requires_grad


def test_encoder_and_decoder_in_any_form() -> None:
    torch.manual_seed(0)
    network = nn.Transformer(D, 4, 1, 1, 20, batch_first=True)
    one = 4 * T * D * D + 2 * T * T * D  # attention
    assert macs((X, X)).of(network) == 3 * one + 2 * (2 * T * D * 20)
    layer = nn.TransformerEncoderLayer(D, 4, 20, batch_first=True, norm_first=True)
    encoder, mask = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.zeros(2, T, dtype=torch.bool)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.encoder(batch["x"], src_key_padding_mask=batch["mask"])

    mask[1, -2:] = True
    assert macs({"x": X, "mask": mask}).of(Masked()) == 2 * (one + 2 * T * D * 20)


def test_examples_may_be_any_nest() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 5)

        def forward(self, first: Tensor | None, rest: dict[str, list[Tensor]], scale: float) -> Tensor:
            return self.layer(rest["x"][0]) * scale if first is None else self.layer(first)

    x = torch.randn(3, 6)
    assert macs((None, {"x": [x]}, 2.0)).of(Nested()) == 30
    assert macs((x, {"x": []}, 2.0)).of(Nested()) == 30
    with pytest.raises(ModelError, match="is empty"):
        macs(torch.zeros(0, 6)).of(nn.Linear(6, 5))


def test_whatever_a_forward_raises_is_explained_and_everything_put_back() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("logits")

    network = Failing().train()
    with pytest.raises(ModelError, match=r"Failing does not run on the example of \[1, 2\]: KeyError"):
        macs(torch.zeros(1, 2)).of(network)
    assert network.training and network.layer.weight.requires_grad
    assert torch.backends.mha.get_fastpath_enabled()


class Attends(nn.Module):
    """Self-attention by torch's module or by its function, with one layer called twice."""

    def __init__(self, module: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True) if module else nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.inner, nn.MultiheadAttention):
            return self.inner(x, x, x)[0]
        return F.scaled_dot_product_attention(self.inner(x), self.inner(x), x)


STEPS = 5
RECURRENT = {
    "rnn": (nn.RNN(6, 8, batch_first=True), STEPS * (8 * 6 + 8 * 8)),
    "gru": (nn.GRU(6, 8, batch_first=True), STEPS * 3 * (8 * 6 + 8 * 8)),
    "lstm": (nn.LSTM(6, 8, batch_first=True), STEPS * 4 * (8 * 6 + 8 * 8)),
    "two layers both ways": (
        nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True),
        STEPS * 2 * 4 * (8 * 6 + 8 * 8) + STEPS * 2 * 4 * (8 * 16 + 8 * 8),
    ),
    "projected": (nn.LSTM(6, 8, batch_first=True, proj_size=3), STEPS * (4 * (8 * 6 + 8 * 3) + 8 * 3)),
    "attention": (nn.Sequential(nn.Linear(6, 8), Attends(module=True)), STEPS * (48 + 3 * 64 + 64 + 2 * STEPS * 8)),
    "function": (nn.Sequential(nn.Linear(6, 8), Attends(module=False)), STEPS * (48 + 2 * 64 + 2 * STEPS * 8)),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_and_attention_are_counted_in_full(name: str) -> None:
    network, expected = RECURRENT[name]
    assert macs(torch.randn(2, STEPS, 6)).of(network) == expected


class Does(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


W = torch.randn(4, STEPS)
PRODUCTS = {
    "matrix and vector": (lambda x: W @ x[0, :, 0], 4 * STEPS),
    "vectors": (lambda x: x[0, 0] @ x[0, 1], 6),
    "few distances": (lambda x: torch.cdist(x, x), STEPS * STEPS * 6),
    "many distances": (lambda x: torch.cdist(*[x.repeat(1, 9, 1)] * 2), 81 * STEPS * STEPS * 6),
    "bilinear": (lambda x: F.bilinear(x[:, 0], x[:, 1], torch.ones(5, 6, 6)), 5 * 36),
    "einsum": (lambda x: torch.einsum("bts,tu->bus", x, torch.ones(STEPS, 7)), 7 * STEPS * 6),
    "computed weight": (lambda x: F.linear(x, (2 * torch.ones(3, 6)).tanh()), STEPS * 3 * 6),
    "expanded weight": (lambda x: F.linear(x, torch.ones(1, 6).expand(9, 6)), STEPS * 9 * 6),
    "shared heads": (
        lambda x: F.scaled_dot_product_attention(x.repeat(4, 1, 1)[None], x[None], x[None], enable_gqa=True),
        2 * 4 * STEPS * STEPS * 6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_every_kind_are_counted_by_hand(name: str) -> None:
    function, expected = PRODUCTS[name]
    assert macs(torch.randn(1, STEPS, 6)).of(Does(function)) == expected
    assert not uncounted(Does(function), torch.randn(1, STEPS, 6))


def test_what_is_not_counted_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    @torch.library.custom_op("archgrad_tests::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return 2 * x

    net, x = nn.Sequential(Does(lambda x: torch.fft.rfft(x).abs()), nn.Sequential(Does(twice))), torch.randn(2, 8)
    for _ in range(2):
        assert macs(x).of(net) == 0
    said = uncounted(net, x)
    assert len(said) == 2 and "fft_r2c in 0 (Does)" in said[0] and "archgrad_tests.twice in 1.0 (Does)" in said[1]
    assert [r.getMessage() for r in caplog.records] == said
    assert not uncounted(nn.Sequential(nn.LSTM(6, 8)), x[:, None, :6])
    assert not uncounted(Does(lambda x: F.normalize(x) + x / x.norm(dim=1, keepdim=True)), x)  # as no norm is
    assert "linalg_svd" in uncounted(Does(torch.linalg.svdvals), x)[0]
