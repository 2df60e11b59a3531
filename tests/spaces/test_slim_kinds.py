"""Kinds of networks on which slimming used to be wrong, endless or refused: several members of each kind."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from families.checks import difference, extremes, outputs
from families.grammar import PARTIAL, Partial
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from archgrad.choices.access import choices, hold, sample
from archgrad.choices.architecture import Architecture
from archgrad.errors import ModelError
from archgrad.extract.discretize import build
from archgrad.spaces.slim.acceptance import RUNS, Budget
from archgrad.spaces.slim.slimmable import frozen, slim
from archgrad.spaces.slim.trial import Removal, Trial

Function = Callable[[Tensor], Tensor]


def sizes(space: nn.Module) -> dict[str, int]:
    return {name: same[0].size for name, same in choices(space).items()}


def architectures(space: nn.Module) -> list[Architecture]:
    return [*extremes(space), *(sample(space, generator=torch.Generator().manual_seed(i)) for i in range(3))]


def assert_exact(space: nn.Module, inputs: tuple[Tensor, ...], *, training: bool = False) -> None:
    for architecture in architectures(space):
        expected = outputs(hold(space, architecture), inputs, training=training)
        assert difference(expected, outputs(build(space, architecture), inputs, training=training)) < 1e-5


class Two(nn.Module):
    """first -> something in between -> second -> last, where what lies in between is given."""

    def __init__(self, between: Function, *, before: Function = lambda x: x, after: Function = lambda x: x) -> None:
        super().__init__()
        self.before, self.between, self.after = before, between, after
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.between(self.first(self.before(x))))
        return self.after(self.last(F.gelu(y)))


MIXING: dict[str, Function] = {
    "standardize": lambda y: (y - y.mean(-1, keepdim=True)) / (y.std(-1, keepdim=True) + 0.1),
    "softmax": lambda y: y.softmax(-1),
    "roll": lambda y: y.roll(1, -1),
    "sort": lambda y: y.sort(-1).values,
    "median": lambda y: y - y.median(-1, keepdim=True).values,
    "cumulative": lambda y: y.cumsum(-1),
}
DOMAINS: dict[str, Function] = {
    "logarithm": torch.log,
    "root": lambda x: x.sqrt(),
    "arc sine": torch.asin,
    "logit": torch.logit,
    "inverse": lambda x: x.clamp(min=0).reciprocal().where(x > 0, torch.tensor(torch.nan, dtype=x.dtype)),
}


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("mixing", MIXING)
def test_a_layer_that_mixes_is_frozen_whatever_the_domain_of_the_inputs(domain: str, mixing: str) -> None:
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    space = slim(Two(MIXING[mixing], before=DOMAINS[domain]), x)
    assert sizes(space) == {"second": 10}
    assert "mixes" in frozen(space)["first"] or "combines" in frozen(space)["first"]
    assert_exact(space, (x,))


UNIT: dict[str, Function] = {
    "divided": lambda y: y / (1 + y.norm(dim=-1, keepdim=True)),
    "normalized": lambda y: F.normalize(y, dim=-1),
    "expanded": lambda y: y * torch.rsqrt(1 + y.square().sum(-1, keepdim=True)).expand_as(y),
}


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("unit", UNIT)
def test_a_norm_to_which_closed_channels_add_nothing_leaves_the_layer_its_gate(unit: str, domain: str) -> None:
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    divided = Two(UNIT[unit], before=DOMAINS[domain])
    space = slim(divided, x)
    assert sizes(space) == {"first": 8, "second": 10}
    assert_exact(space, (x,))


def hidden(y: Tensor) -> Tensor:
    """A mixing that the walk takes for a plain product: each channel is scaled by all."""
    return y * torch.sigmoid(y.detach().numpy().sum(-1, keepdims=True).item() if y.numel() == 1 else _numpy_sum(y))


def _numpy_sum(y: Tensor) -> Tensor:
    return torch.from_numpy(y.detach().numpy().sum(-1, keepdims=True))


def test_what_the_walk_does_not_see_the_trial_does() -> None:
    space = slim(Two(hidden), x := torch.rand(4, 6))
    assert "first" not in sizes(space) and "mixes" in frozen(space)["first"]
    assert_exact(space, (x,))


@pytest.mark.parametrize("infinite", [torch.inf, -torch.inf, torch.nan])
def test_one_infinite_output_does_not_hide_a_difference(infinite: float) -> None:
    def spoil(y: Tensor) -> Tensor:
        return torch.cat([y, torch.full_like(y[:, :1], infinite)], 1)

    space = slim(Two(hidden, after=spoil), torch.rand(4, 6))
    assert "first" not in sizes(space) and "mixes" in frozen(space)["first"]


@dataclass
class Silent:
    """A way in which an example may leave a layer without effect."""

    after_first: Function
    example: Tensor


SILENT = {
    "masked": Silent(lambda y: y * 0.0, torch.rand(3, 6)),
    "rectified": Silent(lambda y: (y - 1e6).relu(), torch.rand(3, 6)),
    "rounded": Silent(lambda y: (y * 1e-9).round(), torch.rand(3, 6)),
}


@pytest.mark.parametrize("name", SILENT)
def test_what_the_example_does_not_exercise_is_frozen_for_that(name: str) -> None:
    class Net(Two):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.head(torch.relu(self.beside(x)))

    torch.manual_seed(0)
    net = Net(SILENT[name].after_first)
    net.beside, net.head = nn.Linear(6, 5), nn.Linear(5, 3)
    space = slim(net, SILENT[name].example)
    assert "does not exercise" in frozen(space)["first"] and sizes(space)["beside"] == 5


@pytest.mark.parametrize("term", ["normalize", "softmax", "standardize", "sort"])
@pytest.mark.parametrize("dropout", [nn.Dropout(0.5), nn.Dropout1d(0.4), nn.AlphaDropout(0.3), None])
def test_a_term_of_training_alone_is_compared_beside_random_layers(term: str, dropout: nn.Module | None) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)
            self.dropout = dropout

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            z = F.gelu(self.second(y))
            z = self.dropout(z) if self.dropout is not None else F.dropout(z, 0.5, self.training)
            return self.last(z + (hidden(y).sum() if self.training and term else 0.0))

    space = slim(Net(), torch.rand(4, 6))
    assert list(sizes(space)) == ["second"]


@pytest.mark.parametrize("width", [4, 6])
def test_channel_draws_in_training_do_not_freeze(width: int) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.Dropout2d(0.5), nn.ReLU(), nn.Conv2d(width, 5, 3), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(5 * 16, 3),
    )  # fmt: skip
    assert sizes(slim(net, torch.randn(2, 3, 8, 8))) == {"0": width, "3": 5}


STOCHASTIC = {
    "input": (lambda x: x + 0.1 * torch.randn_like(x), None, {"first": 8, "second": 10}),
    "output": (None, lambda y: y + torch.randn_like(y), {"first": 8, "second": 10}),
    "sample": (None, lambda y: y + torch.rand(len(y), 1, dtype=y.dtype), {"first": 8, "second": 10}),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_network_that_draws_at_random_is_gated(name: str) -> None:
    before, after, gates = STOCHASTIC[name]
    net = Two(torch.relu, before=before or (lambda x: x), after=after or (lambda x: x))
    x, state = torch.rand(3, 6), torch.get_rng_state()
    assert sizes(slim(net, x)) == gates
    assert torch.equal(state, torch.get_rng_state())


def test_draws_for_each_channel_in_eval_are_named() -> None:
    space = slim(Two(lambda y: F.dropout(y, 0.4, training=True)), torch.rand(3, 6))
    assert "random numbers" in frozen(space)["first"] and sizes(space) == {"second": 10}


class Rotary(nn.Module):
    """Attention with queries in groups and positions by rotation, in several sizes."""

    def __init__(self, heads: int, groups: int, head_dim: int, *, rotate: bool, repeat: str) -> None:
        super().__init__()
        self.shape, self.rotate, self.repeat = (heads, groups, head_dim), rotate, repeat
        width = heads * head_dim
        self.inlet, self.q = nn.Linear(5, width), nn.Linear(width, width)
        self.k, self.v = nn.Linear(width, groups * head_dim), nn.Linear(width, groups * head_dim)
        self.o, self.up, self.down, self.head = (
            nn.Linear(width, width), nn.Linear(width, 20), nn.Linear(20, width), nn.Linear(width, 3)
        )  # fmt: skip

    def turn(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * torch.rand(half, dtype=x.dtype).mul(0).add(0.5)
        both = torch.cat([angle, angle], -1)
        return x * both.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * both.sin()

    def forward(self, x: Tensor) -> Tensor:
        heads, groups, head_dim = self.shape
        x = self.inlet(x)
        batch, length, _ = x.shape
        q, k, v = (f(x) for f in (self.q, self.k, self.v))
        if self.rotate:
            q, k, v = (t.unflatten(-1, (-1, head_dim)).transpose(1, 2) for t in (q, k, v))
        else:
            q, k, v = (t.view(batch, length, -1, head_dim).transpose(1, 2) for t in (q, k, v))
        if self.rotate:
            q, k = self.turn(q), self.turn(k)
        if self.repeat == "kernel":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            x = x + self.o(y.transpose(1, 2).flatten(2))
            return self.head(x + self.down(self.up(x).relu()))
        if self.repeat == "repeat":
            k, v = (t.repeat_interleave(heads // groups, 1) for t in (k, v))
        else:
            k, v = (
                t[:, :, None].expand(batch, groups, heads // groups, length, head_dim).flatten(1, 2) for t in (k, v)
            )
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x + self.down(self.up(x).relu()))


@pytest.mark.parametrize("repeat", ["repeat", "expand", "kernel"])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize(("heads", "groups", "head_dim"), [(4, 2, 8), (6, 3, 4), (8, 1, 6)])
def test_the_walk_ends_on_grouped_queries(heads: int, groups: int, head_dim: int, rotate: bool, repeat: str) -> None:
    x = torch.randn(2, 7, 5)
    space = slim(Rotary(heads, groups, head_dim, rotate=rotate, repeat=repeat), x)
    assert sizes(space)["up"] == 20
    if repeat != "expand" and groups > 1:  # queries that share a head of keys and values go with it
        assert sizes(space)["q"] == groups
    assert_exact(space, (x,))


class Biased(nn.Module):
    """Attention whose scores are shifted by a table with a column for each head, as T5's are."""

    def __init__(self, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.o, self.table = nn.Linear(4 * heads, 6), nn.Embedding(7, heads)
        if fused:
            self.qkv = nn.Linear(6, 12 * heads)
        else:
            self.q, self.k, self.v = (nn.Linear(6, 4 * heads) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            q, k, v = self.qkv(x).unflatten(-1, (3, -1, 4)).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        rows = torch.arange(x.shape[1])
        bias = self.table(rows[:, None] - rows + 3).permute(2, 0, 1)[None]
        return self.o(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("heads", [2, 3, 5])
def test_a_table_of_biases_goes_with_its_heads(heads: int, fused: bool) -> None:
    space = slim(Biased(heads, fused=fused), x := torch.randn(2, 4, 6))
    ((name, size),) = sizes(space).items()
    assert size == heads
    assert_exact(space, (x,))
    assert build(space, Architecture({name: (heads - 1,)})).table.weight.shape == (7, 1)


def test_the_walk_is_linear_in_the_number_of_blocks() -> None:
    """Counted, not timed: the pairs of labels that a chain of blocks ties grow with its length and no faster."""
    from archgrad.spaces.slim import dependency
    from archgrad.spaces.slim.channel_graph import trace

    counts = []
    for blocks in (10, 20, 40):
        pairs = 0
        join = dependency.Components.join

        def counting(self: dependency.Components, a: Tensor, b: Tensor, reason: str, join: object = join) -> None:
            nonlocal pairs
            pairs += len(a)
            join(self, a, b, reason)  # type: ignore[operator]

        layers = [m for _ in range(blocks) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dependency.Components, "join", counting)
            trace(nn.Sequential(nn.Conv2d(3, 8, 1), *layers).eval(), (torch.randn(1, 3, 6, 6),))
        counts.append(pairs)
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0]) > 0


def test_the_number_of_runs_is_bounded_where_everything_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 0
    failure = Trial.failure

    def counted(self: Trial, *args: object, **more: object) -> object:
        nonlocal runs
        runs += 1
        return failure(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Trial, "failure", counted)

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for letter in "abcdefghijklmnop":  # no two are named alike
                setattr(self, letter, Two(hidden))
            self.good = Two(torch.relu)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([child(x) for child in self.children()]).sum(0)

    space = slim(Many(), torch.rand(3, 6))
    assert runs <= RUNS
    assert "good.first" in sizes(space) and "a.second" in sizes(space)
    assert all("mixes" in frozen(space)[f"{letter}.first"] for letter in "abcdefghijklmnop")


def test_what_is_over_the_budget_is_frozen_with_that_reason() -> None:
    budget = Budget(left=1)
    assert budget.spend("a test") and not budget.spend("a test")


WIDTH_ONE: dict[str, Function] = {
    "squeeze": lambda y: y.unsqueeze(-1).squeeze(),
    "named by number": lambda y: y if y.shape[-1] > 1 else y.new_zeros(len(y)),
    "refused": lambda y: y if y.shape[-1] != 1 else _refuse(),
}


def _refuse() -> Tensor:
    raise ValueError("one channel is too few")


@pytest.mark.parametrize("name", WIDTH_ONE)
@pytest.mark.parametrize("depth", [1, 5])
def test_what_fails_at_width_one_is_frozen_alone(name: str, depth: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(depth)])
            self.narrow, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(WIDTH_ONE[name](self.narrow(self.body(x))))

    space = slim(Net(), x := torch.randn(3, 6))
    assert set(sizes(space)) == {f"body.{i}.0" for i in range(depth)}
    assert set(frozen(space)) == {"narrow", "head"}
    assert "one channel" in frozen(space)["narrow"]
    assert_exact(space, (x,))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, scale: float | Tensor | None = None, *, shift: Tensor | None = None) -> Tensor:
        y = self.b(torch.relu(self.a(x)))
        y = y if scale is None else y * scale
        return x + (y if shift is None else y + shift)


CALLS: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "keyword": lambda block, x: block(x, scale=0.5),
    "second argument": lambda block, x: block(x, 0.5),
    "all by keyword": lambda block, x: block(x=x),
    "shift": lambda block, x: block(x, shift=0.1 * x.mean(-1, keepdim=True).detach() * 0),
    "an attribute is read": lambda block, x: block(x) + 0 * block.a.out_features,
}


@pytest.mark.parametrize("call", CALLS)
def test_branches_are_offered_only_where_the_network_runs_without_them(call: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inlet, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
            self.blocks = nn.ModuleList([Block(8), Block(8)])

        def forward(self, x: Tensor) -> Tensor:
            x = self.inlet(x)
            for block in self.blocks:
                x = CALLS[call](block, x)
            return self.head(x)

    space = slim(Net(), x := torch.randn(3, 6))
    assert {"inlet", "blocks.0.a", "blocks.1.a"} - set(sizes(space)) <= {"inlet"}
    assert_exact(space, (x,))


BAD: dict[str, Function] = {
    "split by numbers": lambda y: torch.cat([y.split((3, 5), -1)[1], y.split((3, 5), -1)[0]], -1),
    "numpy": lambda y: torch.from_numpy(y.detach().numpy().copy()),
    "list": lambda y: torch.tensor(y.detach().tolist(), dtype=y.dtype),
    "view by numbers": lambda y: y.view(-1, 2, 4).flip(1).reshape(-1, 8),
    "index": lambda y: y[:, torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])],
    "padding": lambda y: F.pad(y, (1, 0))[:, :8],
    "complex": lambda y: torch.fft.fft(y).real,
    "vmap": torch.vmap(lambda row: row.softmax(0)),
    "scatter": lambda y: torch.zeros_like(y).scatter(1, torch.arange(8).flip(0).expand(len(y), 8), y),
}


@pytest.mark.parametrize("name", BAD)
def test_one_place_that_cannot_be_followed_freezes_that_place(name: str) -> None:
    space = slim(Two(BAD[name]), x := torch.randn(3, 6))
    assert sizes(space) == {"second": 10} and frozen(space)["first"]
    assert_exact(space, (x,))


@dataclass
class Result:
    y: Tensor
    note: str = "one"


class Plain:
    def __init__(self, y: Tensor) -> None:
        self.scores = {"y": y, "n": 3}


RESULTS: dict[str, Callable[[Tensor], object]] = {
    "data class": Result,
    "object": Plain,
    "nest": lambda y: [None, {"a": (y, "text", 0.5)}, y.shape],
    "integers too": lambda y: (y, y.argmax(-1), y > 0),
    "complex": lambda y: torch.complex(y, y),
    "set": lambda y: {"s": {1, 2}, "y": y},
}


@pytest.mark.parametrize("name", RESULTS)
def test_outputs_may_be_anything_that_holds_tensors(name: str) -> None:
    class Net(Two):
        def forward(self, x: Tensor) -> Tensor:
            return RESULTS[name](super().forward(x))  # type: ignore[return-value]

    space = slim(Net(torch.relu), torch.rand(3, 6))
    assert sizes(space) == {"first": 8, "second": 10}
    assert list(frozen(space)) == ["last"]


COMPUTED: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_layer_of_computed_weights_is_frozen_by_name_and_the_rest_gated(name: str) -> None:
    net = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), COMPUTED[name](nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(),
        nn.Linear(7, 3),
    )  # fmt: skip
    x = torch.randn(3, 6)
    net(x).sum().backward()
    space = slim(net, x)
    assert sizes(space) == {"4": 7}
    said = frozen(space)["2"]
    assert {"prune": "prun", "orthogonal": "Orthogonal"}[name] in said
    space(x).sum().backward()
    assert_exact(space, (x,))
    assert_exact(space, (x,), training=True)


@pytest.mark.parametrize("kind", ["attribute", "list", "dictionary"])
def test_a_network_that_keeps_what_it_computed_is_gated(kind: str) -> None:
    class Net(Two):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            self.kept = {"attribute": y, "list": [y], "dictionary": {"y": y}}[kind]
            return y

    net, x = Net(torch.relu), torch.rand(3, 6)
    net(x).sum().backward()
    assert sizes(slim(net, x)) == {"first": 8, "second": 10}


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_wrapped_networks_are_gated(wrap: Callable[[nn.Module], nn.Module]) -> None:
    space = slim(wrap(Two(torch.relu)), x := torch.rand(3, 6))
    assert sizes(space) == {"module.first": 8, "module.second": 10}
    assert_exact(space, (x,))


def test_slim_works_without_gradients_and_in_inference_code() -> None:
    with torch.no_grad():
        space = slim(Two(torch.relu), x := torch.rand(3, 6))
    assert sizes(space) == {"first": 8, "second": 10}
    assert all(p.requires_grad for p in space.parameters())
    assert_exact(space, (x,))
    net = Two(torch.relu)
    with torch.inference_mode():
        space = slim(net, x)
    assert sizes(space) == {"first": 8, "second": 10}
    space(x).sum().backward()


@pytest.mark.parametrize("kept", ["plain", "nested"])
def test_an_activation_that_is_used_again_is_named(kept: str) -> None:
    class Cache(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(6, 8), None

        def forward(self, x: Tensor) -> Tensor:
            if self.last is None:
                self.last = self.layer(x).relu()
            return self.last

    cache = Cache()
    net = nn.Sequential(
        cache if kept == "plain" else nn.Sequential(cache), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    net(x := torch.rand(3, 6))
    space = slim(net, x)
    assert list(sizes(space)) == ["1"]
    assert "set them to None" in frozen(space)["0.layer" if kept == "plain" else "0.0.layer"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("norm", [nn.Identity, nn.BatchNorm1d])
def test_a_layer_that_one_sample_leaves_silent_is_tried_on_others(norm: type[nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    net, x = nn.Sequential(nn.Linear(3, 4), norm(4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(1, 3)
    with torch.no_grad():
        net[0].bias.copy_(-net[0](x)[0] - 0.05)  # all units are dead on the example, and alive near it
    space = slim(net.eval(), x)
    assert sizes(space) == {"0": 4}
    assert_exact(space, (torch.randn(5, 3),))


def test_a_compiled_layer_is_named() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU())
    net.append(torch.compile(nn.Linear(6, 7), backend="eager"))
    net.extend([nn.ReLU(), nn.Linear(7, 3)])
    space = slim(net, x := torch.randn(2, 4))
    assert sizes(space) == {"0": 8}
    assert "compiled" in frozen(space)["2"] and "compiled" in frozen(space)["4._orig_mod"]
    assert_exact(space, (x,))


def test_what_is_compiled_as_a_whole_is_slimmed_as_it_was_before_and_never_compiled() -> None:
    compilations = list[object]()

    def backend(graph: torch.fx.GraphModule, given: list[Tensor]) -> Callable[..., object]:
        compilations.append(given)
        return graph.forward

    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 4)
    space = slim(torch.compile(net, backend=backend), x, keep=["2"])
    assert type(space) is nn.Sequential and sizes(space) == {"0": 8} and not compilations
    assert_exact(space, (x,))


class Quantized(nn.Module):
    """Stands for the layers of torch.ao.nn.quantized, whose weights are no parameters."""

    __module__ = "torch.ao.nn.quantized.modules.linear"

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2]


@pytest.mark.parametrize(
    "net, example, reason",
    [
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(0, 4), "holds no sample"),
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.full((2, 4), torch.nan), "holds NaN"),
        (nn.Sequential(nn.Linear(4, 8, device="meta"), nn.ReLU()), torch.randn(2, 4), "on the device meta"),
        (nn.Sequential(nn.ReLU(), Quantized()), torch.randn(2, 4), "1 is quantized: slim the network in float"),
    ],
)
def test_what_no_network_can_be_slimmed_with_is_named(net: nn.Module, example: Tensor, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        slim(net, example)


KINDS = {"linear": nn.Linear(4, 4), "conv": nn.Conv1d(4, 4, 1), "lstm": nn.LSTM(4, 4), "norm": nn.LayerNorm(4)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_another_type_is_told_how_data_keep_theirs(kind: str, dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match="TensorDataset or a Dataset of yours keeps its types"):
        slim(nn.Sequential(KINDS[kind], nn.Linear(4, 4)).to(dtype), torch.randn(2, 4, 4))


@pytest.mark.parametrize("values", [1, 256])
def test_float_inputs_that_are_indices_stay_in_their_range(values: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.second, self.head = nn.Embedding(257, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.second(self.table((x * values).long()).mean(1))))

    x = torch.rand(3, 5)
    space = slim(Net(), x)
    assert sizes(space)["second"] == 6
    assert_exact(space, (x,))


def test_a_full_graph_network_is_tried_on_the_whole_graph() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 24), nn.Linear(24, 7)

        def forward(self, x: Tensor, adjacency: Tensor, edges: Tensor) -> Tensor:
            x = torch.relu(adjacency @ self.a(x))
            x = x + torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
            return adjacency @ self.c(torch.relu(self.b(x)))

    inputs = (torch.randn(12, 16), torch.rand(12, 12), torch.randint(0, 12, (2, 20)))
    space = slim(Graph(), inputs)
    assert "b" in sizes(space)
    assert_exact(space, inputs)


PAIRS: dict[str, Function] = {
    "glu": F.glu,
    "chunk": lambda y: y.chunk(2, -1)[0] * y.chunk(2, -1)[1].sigmoid(),
    "half": lambda y: y[..., : y.shape[-1] // 2] * y[..., y.shape[-1] // 2 :].sigmoid(),
    "view": lambda y: y.view(len(y), 2, -1).prod(1),
    "neighbours": lambda y: y.view(len(y), -1, 2).amax(-1),
}


@pytest.mark.parametrize("name", PAIRS)
def test_halves_that_meet_share_a_gate(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(8, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.b(PAIRS[name](self.a(x)))))

    space = slim(Net(), x := torch.randn(3, 6))
    assert sizes(space) == {"a": 8, "b": 5}
    assert_exact(space, (x,))


def test_batch_norm_over_two_values_freezes_nothing() -> None:
    first, second = [nn.Linear(6, 8), nn.BatchNorm1d(8)], [nn.Linear(8, 10), nn.BatchNorm1d(10)]
    net = nn.Sequential(*first, nn.ReLU(), *second, nn.ReLU(), nn.Linear(10, 3))
    assert sizes(slim(net, torch.randn(1, 6))) == {"0": 8, "3": 10}
    assert sizes(slim(net.float(), torch.randn(2, 6))) == {"0": 8, "3": 10}


def test_rounding_is_told_from_mixing() -> None:
    """A network that magnifies rounding a million times is gated; one that mixes a millionth part is not."""
    assert sizes(slim(Two(torch.relu, after=lambda y: (y * 1e6).sin()), torch.rand(3, 6))) == {
        "first": 8,
        "second": 10,
    }
    assert list(sizes(slim(Two(lambda y: y + 1e-6 * hidden(y)), torch.rand(3, 6)))) == ["second"]


def test_the_mapping_of_frozen_layers_is_complete_and_says_how_much_it_is() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Softmax(-1), nn.Linear(8, 100), nn.ReLU(), nn.Linear(100, 3))
    reasons = frozen(slim(net, torch.rand(3, 6)))
    assert list(reasons) == ["0", "4"]
    assert "mixes" in reasons["0"] and "output" in reasons["4"]
    least = 6 * 8 + 8 + 8 + 1 + 3 + 3
    assert reasons.parameters_fraction == pytest.approx(least / sum(p.numel() for p in net.parameters()))
    assert reasons.macs_fraction == pytest.approx((48 + 8 + 3) / (48 + 800 + 300))


def test_a_layer_that_does_not_run_is_named() -> None:
    net = Two(torch.relu)
    net.unused = nn.Linear(5, 7)
    assert "does not run" in frozen(slim(net, torch.rand(3, 6)))["unused"]


def test_built_networks_keep_the_order_of_parameters() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(),
                        nn.Linear(6 * 16, 3))  # fmt: skip
    net[3].register_parameter("more", nn.Parameter(torch.zeros(2)))
    space = slim(net, torch.randn(2, 3, 8, 8))
    for architecture in architectures(space):
        built = build(space, architecture)
        assert [n for n, _ in built.named_parameters()] == [n for n, _ in net.named_parameters()]
        assert list(built.state_dict()) == list(net.state_dict())


def test_progress_is_shown_where_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    budget = Budget()
    budget.spend("trying 3 gates together")
    assert not caplog.records
    now += 60
    budget.spend("trying 3 gates together")
    assert "trying 3 gates together" in caplog.text


def test_nothing_exercised_is_refused_with_that_reason() -> None:
    with pytest.raises(ModelError, match="does not exercise"):
        slim(Two(torch.relu, after=lambda y: y * 0), torch.rand(3, 6))


def test_a_trial_compares_what_it_says() -> None:
    """Negative control: a removal that lacks its reader is refused on every mask that closes something."""
    net, x = Two(torch.relu), torch.rand(3, 6)
    couplings = choices(slim(net, x))["first"][0].couplings
    trial = Trial(net, (x,))
    for mask in ("random", "one", "every second", "all but one", "smallest"):
        assert trial.failure([Removal("first", couplings)], mask) is None
        assert trial.failure([Removal("first", [c for c in couplings if c.side != "in"])], mask) is not None


def test_measuring_the_rounding_floor_does_not_change_what_is_drawn() -> None:
    """A layer that draws in training beside a term of training alone: the floor stays a floor."""

    class Net(Two):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            y = y + hidden(y) if self.training else y
            y = F.gelu(self.second(y))
            return self.last(y + 0.1 * torch.randn_like(y[:1, :1]) if self.training else y)

    space = slim(Net(torch.relu), x := torch.rand(3, 6))
    assert list(sizes(space)) == ["second"]
    trial = Trial(Net(torch.relu), (x,))
    for check in trial.checks("random"):
        assert all(floor < 1e-12 for floor in trial.floor(trial.network, check))


def test_a_square_that_is_turned_by_its_strides_is_not_taken_for_the_same() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(self.inner(x).relu())  # [1, 5, 5]
            return self.last(torch.as_strided(y, (1, 5, 5), (25, 1, 5)))

    space = slim(Turned(), torch.randn(1, 5, 4))
    assert list(choices(space)) == ["inner"] and "first" in frozen(space)


@pytest.mark.parametrize("way", PARTIAL)
def test_numbers_that_a_module_keeps_shrink_with_the_channels_that_they_count(way: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 8, 1), Partial(8, 2, way), nn.ReLU(), Partial(8, 2, way), nn.Conv1d(8, 4, 1))
    x = torch.randn(2, 3, 6)
    space = slim(net, x)
    assert set(frozen(space)) == {"4"} and (sizes(space)["0"], sizes(space)["0#2"]) == (2, 6)
    assert_exact(space, (x,))
    built = build(space, Architecture({**{n: tuple(range(s)) for n, s in sizes(space).items()}, "0": (1,)}))
    assert built[1](torch.ones(1, 7, 4)).shape[1] == 8 and net[1].first == 2  # two of 1.layer and the six others
    assert type(built[1].first) is type(net[1].first) is int  # and nothing that remembers where it was


class Standardized(nn.Conv2d):
    """A convolution whose weight has a largest entry of 1 in what each output reads."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight.abs().amax((1, 2, 3), keepdim=True), self.bias)


def test_a_weight_that_is_computed_in_each_call_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), Standardized(6, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1))
    reasons = frozen(slim(net, torch.randn(2, 3, 4, 4)))
    assert set(reasons) == {"0", "3"}
    assert reasons["0"].startswith("1 (Standardized) computes its weight from its parameters in each call")


class Crossing(nn.Module):
    """A module of several layers is added to what is not as wide as what it reads, once both are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, 8, 1)
        self.added = nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 8, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return torch.cat([y, self.added(y) + x], 1)


def test_what_stands_in_for_a_branch_has_the_width_of_what_it_is_added_to() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 8, 1), Crossing(), nn.ReLU(), nn.Conv1d(16, 3, 1))
    space = slim(net, x := torch.randn(2, 3, 6))
    assert {"0", "1.first"} <= set(sizes(space))
    for seed in range(10):
        architecture = sample(space, generator=torch.Generator().manual_seed(seed))
        expected = outputs(hold(space, architecture), (x,))
        assert difference(expected, outputs(build(space, architecture), (x,))) < 1e-5


class Reshaping(nn.Module):
    """Attention as many write it: one width in a reshape is the input's, or -1. What it does depends on a value."""

    def __init__(self, *, written: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.written = nn.Linear(8, 24), nn.Linear(8, 8), written

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        head, whole = (-1, -1) if self.written else (width // 2, width)
        q, k, v = self.qkv(x).reshape(batch, length, 3, 2, head).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v if bool(q.abs().sum() > 0) else v
        return x + self.proj(y.transpose(1, 2).reshape(batch, length, whole))


def test_a_reshape_to_the_width_of_the_input_is_named_with_what_opens_the_stream() -> None:
    for written in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(5, 8), Reshaping(written=written), nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(6, 3)
        )
        space = slim(net, torch.randn(2, 6, 5))
        assert ("0" in frozen(space)) is not written
        assert written or "as (B, N, C) behind attention, write -1" in frozen(space)["0"]


class EqualCounts(nn.Module):
    """Runs only where two gates of one size keep as many channels."""

    def __init__(self, size: int, way: str) -> None:
        super().__init__()
        self.a, self.b, self.k, self.way = nn.Conv1d(3, 3 * size, 1), nn.Conv1d(3, size, 1), size, way
        self.head = nn.Conv1d(4 * size, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, b = self.a(x), self.b(x)
        count = {"number": self.k, "shape": y[:, : self.k].shape[1]}[self.way]
        b = b.reshape(len(x), count, x.shape[-1])
        return self.head(torch.cat([y[:, : self.k].relu(), y[:, self.k :], b.tanh()], 1))


@pytest.mark.parametrize("way", ["number", "shape"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_gates_whose_counts_have_to_be_equal_are_frozen(size: int, way: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6)
    try:
        space = slim(nn.Sequential(nn.Conv1d(3, 3, 1), EqualCounts(size, way)), x)
    except ModelError as error:
        assert "no channels that can be removed" in str(error)
        return
    assert_exact(space, (x,))


class Asking(nn.Module):
    """Code that asks whether a number is an int and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.layer = 4, nn.Conv1d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        widths = (self.width, self.width) if type(self.width) is int else self.width
        return self.layer(x[:, : widths[0]])


class Trimmed(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, : self.out_channels]


@pytest.mark.parametrize("layer", [Asking, lambda: Trimmed(4, 6, 1)])
def test_numbers_of_layers_and_code_that_asks_for_ints_are_no_obstacle(layer: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    space = slim(nn.Sequential(nn.Conv1d(3, 4, 1), layer(), nn.ReLU(), nn.Conv1d(6, 3, 1)), x := torch.randn(2, 3, 5))
    assert any(size == 6 for size in sizes(space).values())
    assert_exact(space, (x,))


class Times(nn.Module):
    """A learned temperature, logit scale or gain of a whole tensor: one number."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.full(shape, 0.7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.logit_scale


SINGLE = {"PReLU": nn.PReLU, "[]": Times, "[1]": lambda: Times(1), "[1, 1]": lambda: Times(1, 1)}


@pytest.mark.parametrize("name", SINGLE)
def test_what_holds_one_number_has_no_channels_and_is_not_called_frozen(name: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g, self.single, self.last = nn.Linear(6, 8), nn.Linear(8, 10), SINGLE[name](), SINGLE[name]()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.g(self.single(self.f(x))))

    space = slim(Scaled(), torch.rand(3, 6))
    assert sizes(space) == {"f": 8} and list(frozen(space)) == ["g"]
    own = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Softmax(-1), nn.PReLU(8), nn.Linear(8, 1))
    assert list(frozen(slim(own, torch.rand(3, 6)))) == ["1", "3", "4"], "one number a channel, and one output, do"
