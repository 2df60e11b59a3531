"""Heads of torch's attention and transformer layers: closing them is removing them, by a plain replacement."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from families.checks import assert_plain, difference, extremes, outputs, stir, swapped
from torch import Tensor, fx, nn

import archgrad as ag
from archgrad.choices.access import choices, hold, sample
from archgrad.extract.discretize import build

WIDTH, HEADS, STEPS = 8, 4, 5
X = torch.randn(3, STEPS, WIDTH, generator=torch.Generator().manual_seed(0))
PADDED = torch.arange(STEPS)[None] >= torch.tensor([[5], [3], [2]])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(STEPS)
Call = Callable[[nn.Module, Tensor], Tensor]


class Attends(nn.Module):
    def __init__(self, inner: nn.Module, call: Call) -> None:
        super().__init__()
        self.inner, self.call, self.head = inner, call, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.call(self.inner, x).tanh())


def attention(**options: bool | float | int) -> nn.Module:
    return nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **options})


def encoder(**options: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 10, dropout=0.1, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2)


CALLS: dict[str, tuple[Callable[[], nn.Module], Call]] = {
    "itself": (attention, lambda a, x: a(x, x, x)[0]),
    "no weights": (attention, lambda a, x: a(x, x, x, need_weights=False)[0]),
    "steps first": (
        lambda: attention(batch_first=False, bias=False),
        lambda a, x: a(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))[0].transpose(0, 1),
    ),
    "dropout": (lambda: attention(dropout=0.3), lambda a, x: a(x, x, x, need_weights=False)[0]),
    "across": (attention, lambda a, x: a(x, x.flip(1)[:, :3], x[:, :3] * 2)[0]),
    "other widths": (
        lambda: attention(kdim=6, vdim=5),
        lambda a, x: a(x, x[..., :6], x[..., 3:], need_weights=False)[0],
    ),
    "padding": (attention, lambda a, x: a(x, x, x, key_padding_mask=PADDED[: len(x)], need_weights=False)[0]),
    "causal": (attention, lambda a, x: a(x, x, x, attn_mask=CAUSAL, is_causal=True, need_weights=False)[0]),
    "both masks": (
        attention,
        lambda a, x: a(x, x, x, key_padding_mask=PADDED[: len(x)], attn_mask=CAUSAL.isinf())[0],
    ),
    "encoder": (encoder, lambda e, x: e(x)),
    "encoder, norm first": (lambda: encoder(norm_first=True), lambda e, x: e(x)),
    "encoder, padded": (encoder, lambda e, x: e(x, src_key_padding_mask=PADDED[: len(x)])),
    "decoder": (
        lambda: nn.TransformerDecoderLayer(WIDTH, HEADS, 10, dropout=0.1, batch_first=True),
        lambda d, x: d(x, x.flip(1), tgt_mask=CAUSAL),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask", "ignore:enable_nested_tensor is True")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", CALLS)
def test_closed_heads_are_removed_heads(name: str) -> None:
    torch.manual_seed(0)
    make, call = CALLS[name]
    net = Attends(make(), call)
    stir(net)
    space = ag.slim(net, X)
    gates = {n: same[0].size for n, same in choices(space).items()}
    heads = [n.removesuffix(".heads") for n, size in gates.items() if n.endswith(".heads") and size == HEADS]
    assert len(heads) == 1 + name.startswith(("decoder", "encoder")), gates
    inner = {f"{n}.{kind}.channels" for n in heads for kind in ("queries", "values") if name != "other widths"}
    assert inner <= gates.keys() and all(gates[n] == WIDTH // HEADS for n in inner), gates
    found = [*extremes(space), *(sample(space, generator=torch.Generator().manual_seed(i)) for i in range(2))]
    for architecture in found:
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            dropping = [*held.modules(), *built.modules()] if training else []
            for module in dropping:
                if isinstance(module, nn.MultiheadAttention):
                    module.dropout = 0.0
            expected = outputs(held, (X,), training=training)
            assert difference(expected, outputs(built, (X,), training=training)) < 1e-5
        for cost in (ag.macs(X), ag.params()):
            assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)
        assert_plain(built.inner)
    wrong = build(space, swapped(found[1], gates))
    assert difference(expected, outputs(wrong, (X,), training=True)) > 1e-6
    built = build(space, found[1]).eval()
    expected = outputs(built, (X,))
    assert difference(expected, outputs(copy.deepcopy(built), (X,))) == 0
    with torch.no_grad():
        assert difference(expected, [torch.export.export(built, (X,)).module()(X)]) < 1e-6


@pytest.mark.parametrize("value", [2, 0.5, "two"])
@pytest.mark.parametrize("name", ["numbers", "noted", "rows_of_mine"])
def test_attributes_of_the_users_own_stay(name: str, value: float | str) -> None:
    torch.manual_seed(0)
    inner = attention()
    setattr(inner, name, value)
    space = ag.slim(Attends(inner, lambda a, x: a(x, x, x)[0] * len(str(getattr(a, name)))), X)
    assert "inner.heads" in choices(space)
    built = build(space, sample(space, generator=torch.Generator().manual_seed(0)))
    assert getattr(built.inner, name) == value
    written = fx.symbolic_trace(nn.Sequential(nn.Linear(WIDTH, 6), nn.ReLU(), nn.Linear(6, 2)))
    setattr(written, name, value)
    assert list(choices(ag.slim(written, X))) == ["0"]


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask", "ignore:enable_nested_tensor is True")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_what_lost_heads_and_channels_loses_more(name: str, saved: bool) -> None:
    """The replacement has the gates of torch's own module, by the same names, also when it was saved and loaded."""
    torch.manual_seed(0)
    make, call = CALLS[name]
    space = ag.slim(Attends(make(), call), X)
    sizes = {n: same[0].size for n, same in choices(space).items()}
    kept = {n: (0, 2, 3) if n.endswith(".heads") else (1,) if ".queries" in n else (0, 1) for n in sizes}
    fewer = {n: kept[n] if n.endswith((".heads", ".channels")) else tuple(range(s)) for n, s in sizes.items()}
    cut = build(space, ag.Architecture(fewer))
    stir(cut)
    if saved:
        cut.inner = pickle.loads(pickle.dumps(cut.inner))
    again = ag.slim(cut, X)
    assert difference(outputs(cut, (X,)), outputs(copy.deepcopy(build(again, extremes(again)[0])), (X,))) < 1e-5
    left = {n: same[0].size for n, same in choices(again).items() if n.endswith((".heads", ".channels"))}
    if name != "other widths":
        assert left == {n: len(fewer[n]) for n in sizes if n.endswith((".heads", ".values.channels"))}
    for architecture in [*extremes(again), sample(again, generator=torch.Generator().manual_seed(1))]:
        held, built = hold(again, architecture), build(again, architecture)
        assert difference(outputs(held, (X,)), outputs(built, (X,))) < 1e-5
        for cost in (ag.macs(X), ag.params()):
            assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_steps_stay_where_attention_has_no_replacement(options: dict[str, bool]) -> None:
    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.asks, self.inner = nn.Parameter(torch.randn(4, WIDTH)), attention(**options)
            self.hidden, self.head = nn.Linear(WIDTH * 4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            asks = self.asks.repeat(len(x), 1, 1)
            return self.head(self.hidden(self.inner(asks, x, x)[0].flatten(1)).relu())

    space = ag.slim(Asked(), X)
    assert set(choices(space)) == {"hidden"} and "steps" in ag.frozen(space)[""]


@pytest.mark.parametrize("torch_again", [False, True])
def test_a_lone_head_loses_channels(torch_again: bool) -> None:
    torch.manual_seed(0)
    net = Attends(nn.MultiheadAttention(WIDTH, 1, batch_first=True), CALLS["itself"][1])
    if torch_again:
        space = ag.slim(net, X)
        fewer = {n: tuple(range(max(1, s[0].size - 2 * ("queries" in n)))) for n, s in choices(space).items()}
        net = build(space, ag.Architecture(fewer))
    stir(net)
    space = ag.slim(net, X)
    assert {"inner.queries.channels", "inner.values.channels"} == set(choices(space))
    for architecture in [*extremes(space), sample(space, generator=torch.Generator().manual_seed(1))]:
        held, built = hold(space, architecture), build(space, architecture)
        assert difference(outputs(held, (X,)), outputs(built, (X,))) < 1e-5
        assert float(ag.macs(X).expected(held)) == pytest.approx(ag.macs(X).of(built), rel=1e-9)


def test_a_mask_that_the_replacement_is_not_written_for_is_refused() -> None:
    space = ag.slim(Attends(attention(), CALLS["padding"][1]), X)
    replaced = build(space, extremes(space)[1]).inner
    assert replaced(X, X, X, key_padding_mask=PADDED, need_weights=False)[1] is None
    with pytest.raises(AssertionError, match="attn_mask was not given"):
        replaced(X, X, X, key_padding_mask=PADDED, attn_mask=CAUSAL)
    again = pickle.loads(pickle.dumps(replaced))
    assert torch.equal(again(X, X, X, PADDED)[0], replaced(X, X, X, PADDED)[0]) and again.batch_first


def twins() -> nn.Module:
    first, second = attention(), attention()
    second.in_proj_weight = first.in_proj_weight
    return nn.ModuleList([first, second])


FROZEN: dict[str, tuple[nn.Module, Call, str]] = {
    "zeros added": (attention(add_zero_attn=True), lambda a, x: a(x, x, x)[0], "keeps the width"),
    "biases added": (attention(add_bias_kv=True), lambda a, x: a(x, x, x)[0], "keeps the width"),
    "one example": (attention(), lambda a, x: torch.stack([a(y, y, y)[0] for y in x]), "no batch dimension"),
    "a mask for each head": (
        attention(),
        lambda a, x: a(x, x, x, attn_mask=CAUSAL.expand(len(x) * HEADS, -1, -1))[0],
        "a mask for each head",
    ),
    "shared weights": (twins(), lambda a, x: a[1](*[a[0](x, x, x)[0]] * 3)[0], "shared with"),
    "several ways": (attention(), lambda a, x: a(x, x, x)[0] + a(x, x, x, attn_mask=CAUSAL)[0], "several ways"),
    "the mean of the heads' weights": (
        attention(), lambda a, x: a(x, x, x)[0] + a(x, x, x)[1].mean(1)[:, :1, None], "mixes them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_heads_that_cannot_be_removed_are_frozen_for_their_reason(name: str) -> None:
    inner, call, reason = FROZEN[name]
    net = nn.Sequential(Attends(inner, call), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    space = ag.slim(net, X)
    left = [gate for gate in choices(space) if "inner" in gate]
    assert all(gate.endswith(".channels") for gate in left)
    assert left or reason in " ".join(why for path, why in ag.frozen(space).items() if "inner" in path)


class Rows(nn.Module):
    """Reads the rows of an image as steps."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x[:, 0]).mean(1))


def test_heads_go_under_a_limit_by_scores_and_by_dnal() -> None:
    torch.manual_seed(0)
    task = ag.Classification.load("digits", batch_size=128)
    net, cost = Rows(), ag.macs(task.example)
    with torch.no_grad():
        net.encoder.self_attn.in_proj_weight.view(3, 4, 2, 8)[:, 1] *= 0.01
        net.encoder.self_attn.out_proj.weight.view(8, 4, 2)[:, 1] *= 0.01
    space = ag.slim(net, task.example)
    for criterion in ("magnitude", "taylor"):
        scores = ag.importance(space, task, criterion=criterion)
        assert int(scores["encoder.self_attn.heads"].argmin()) == 1
    small = ag.cut(space, scores, limit=cost.at_most(fraction=0.6), task=task)
    assert cost.of(small) <= 0.6 * cost.of(net) and small.encoder.self_attn.num_heads < 4
    run, recipe = ag.Run(epochs=3, seed=0, progress=False), ag.Recipe(optimizer_factory=ag.adam)
    found = ag.dnal(space, task, run, limit=cost.at_most(fraction=0.6), recipe=recipe)
    assert cost.of(found.network) <= 0.6 * cost.of(net)
    assert (
        difference(outputs(found.network, (task.example,)), outputs(copy.deepcopy(found.network), (task.example,)))
        == 0
    )


@pytest.mark.parametrize(("name", "keys"), [("itself", 15), ("across", 9), ("other widths", 15)])
def test_what_is_out_of_reach_counts_the_projections_of_attention(name: str, keys: int) -> None:
    made, call = CALLS[name]
    reasons = ag.frozen(ag.slim(Attends(made(), call), X))
    k, v = (6, 5) if name == "other widths" else (8, 8)
    each = 15 * WIDTH + keys * (k + v) + 15 * WIDTH  # a unit of a head: rows of q, k and v, a column of the output
    head = 15 * WIDTH * 3
    least = 2 if name == "other widths" else 1  # of the two units of the last head
    assert reasons.macs_fraction == pytest.approx((least * each + head) / (8 * each + head))


@pytest.mark.parametrize("name", ["itself", "other widths"])
def test_fresh_weights_of_attention_are_drawn_anew(name: str) -> None:
    made, call = CALLS[name]
    network = Attends(made(), call)
    space = ag.slim(network, X)
    for pick in (None, (0, 2)):
        sizes = {n: range(c[0].size) for n, c in choices(space).items()}
        architecture = ag.Architecture(
            {n: tuple(i for i in size if not pick or i in pick) for n, size in sizes.items()}
        )
        inherited, fresh = build(space, architecture), build(space, architecture, weights="fresh")
        same = [n for n, p in fresh.named_parameters() if torch.equal(p, inherited.state_dict()[n])]
        assert all("bias" in n for n in same), same
        drawn = dict(fresh.inner.named_parameters())
        for weight in [p for n, p in drawn.items() if n.endswith("proj_weight")]:
            limit = (6 / sum(weight.shape)) ** 0.5
            assert weight.abs().max() <= limit and weight.abs().max() > 0.8 * limit
        assert not drawn["in_proj_bias"].any() and not drawn["out_proj.bias"].any()


def test_a_frozen_projection_of_attention_is_not_drawn_anew() -> None:
    made, call = CALLS["itself"]
    network = Attends(made(), call)
    network.inner.in_proj_weight.requires_grad_(False)
    space = ag.slim(network, X)
    whole = ag.Architecture({n: tuple(range(c[0].size)) for n, c in choices(space).items()})
    fresh = build(space, whole, weights="fresh")
    assert torch.equal(fresh.inner.in_proj_weight, network.inner.in_proj_weight)
