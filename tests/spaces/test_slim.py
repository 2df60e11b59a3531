"""slim: what is gated, what is frozen and why, and that the user's network stays as it was."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from families import convolutional, transformers
from families.checks import difference, outputs, stir
from families.families import FAMILIES, Family
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, hold, sample
from archgrad.choices.architecture import Architecture
from archgrad.costs.count import macs, params
from archgrad.errors import ModelError
from archgrad.extract.discretize import build
from archgrad.spaces.slim.slimmable import frozen, slim

BY_NAME = {f.name: f for f in FAMILIES}


def sizes(space: nn.Module) -> dict[str, int]:
    return {name: same[0].size for name, same in choices(space).items()}


def snapshot(net: nn.Module) -> list[object]:
    """Everything of a network that must not change, without its numbers."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return [
        *((p, id(m), type(m), m.training, [list(vars(m)[h]) for h in hooks]) for p, m in net.named_modules()),
        *((p, id(t), t.requires_grad, t.grad is None) for p, t in net.named_parameters(remove_duplicate=False)),
    ]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_gates_and_frozen_layers_are_those_worked_out_by_hand(family: Family) -> None:
    space = slim(family.network(), family.example())
    found = sizes(space)
    if family.more:
        found = {name: size for name, size in found.items() if name in family.gates}
    assert found == dict(family.gates)
    reasons = frozen(space)
    assert set(family.frozen) <= set(reasons)
    assert all(reasons.values())
    assert not set(reasons) & set(sizes(space))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_the_network_is_untouched_and_the_space_computes_the_same(family: Family) -> None:
    net, x = family.network(), family.example()
    stir(net)
    net.train()
    next(net.children()).eval()  # a mixed state has to survive
    next(net.children()).register_forward_hook(lambda *_: None)
    before, numbers = snapshot(net), {k: v.clone() for k, v in net.state_dict().items()}
    space = slim(net, x)
    assert snapshot(net) == before
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in numbers.items())
    assert type(space) is type(net)
    for path, module in net.named_modules():
        assert space.get_submodule(path).training == module.training, path
    shared = {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in space.parameters()}
    assert not shared
    for training in (False, True):
        torch.manual_seed(5)
        expected = outputs(net, x, training=training)
        torch.manual_seed(5)
        assert all(torch.equal(a, b) for a, b in zip(expected, outputs(space, x, training=training), strict=True))


def reason(name: str, layer: str) -> str:
    family = BY_NAME[name]
    return frozen(slim(family.network(), family.example()))[layer]


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_gradients_are_left_out_with_a_word(register: str) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    getattr(net[2].bias, register)(lambda tensor: None)
    with pytest.warns(UserWarning, match=r"hooks on the gradients of 2\.bias are left out") as caught:
        slim(net, torch.randn(2, 4))
    assert caught[0].filename == __file__


def test_reasons_say_what_holds_a_layer() -> None:
    assert "output" in reason("plain", "fc")
    assert "output" in reason("autoencoder", "9")
    assert "output" in reason("features_out", "second.0")
    assert "values that have none" in reason("mixer", "block.tokens.2")
    assert "picks rows" in reason("language", "head")
    assert "mixes" in reason("softmaxed", "blocks.0.0")


def test_what_a_residual_sum_adds_shares_one_gate() -> None:
    space = slim(BY_NAME["resnet"].network(), BY_NAME["resnet"].example())
    (trunk, *_) = choices(space)["stem.0"]
    producers = {c.module for c in trunk.couplings if c.side == "out"}
    readers = {c.module for c in trunk.couplings if c.side == "in"}
    assert producers == {"stem.0", "stem.1", "blocks.0.conv2", "blocks.0.bn2"}
    assert readers == {"blocks.0.conv1", "blocks.1.conv1", "blocks.1.short.0"}
    (second, *_) = choices(space)["blocks.1.conv2"]
    assert {"blocks.1.conv2", "blocks.1.short.0", "blocks.2.conv2"} <= {c.module for c in second.couplings}


def test_a_depthwise_convolution_goes_with_the_expansion() -> None:
    space = slim(BY_NAME["mobilenet"].network(), BY_NAME["mobilenet"].example())
    (expansion, *_) = choices(space)["blocks.0.body.0"]
    assert {c.module for c in expansion.couplings} == {f"blocks.0.body.{i}" for i in (0, 1, 3, 4, 6)}
    kept = (1, 5, 7)
    full = {name: tuple(range(size)) for name, size in sizes(space).items()}
    body = build(space, Architecture({**full, "blocks.0.body.0": kept})).get_submodule("blocks.0.body")
    assert body[0].weight.shape == (3, 8, 1, 1)
    assert body[3].weight.shape == (3, 1, 3, 3) and body[3].groups == 3
    assert body[6].weight.shape == (6, 3, 1, 1)
    for i in (0, 3):
        original = space.get_submodule("blocks.0.body")[i].weight
        assert torch.equal(body[i].weight, original[list(kept)])


def test_a_concatenation_keeps_its_parts_apart() -> None:
    space = slim(BY_NAME["inception"].network(), BY_NAME["inception"].example())
    reader = "blocks.1.0"
    places = {}
    for name in ("blocks.0.one.0", "blocks.0.three.1.0", "blocks.0.pool.1.0"):
        (member,) = [c for c in choices(space)[name][0].couplings if c.module == reader and c.side == "in"]
        places[name] = (member.places >= 0).nonzero().flatten().tolist()
    assert list(places.values()) == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9], [10, 11, 12]]


def test_flattened_channels_are_read_as_blocks_of_places() -> None:
    space = slim(BY_NAME["vgg"].network(), BY_NAME["vgg"].example())
    (member,) = [c for c in choices(space)["4"][0].couplings if c.module == "9"]
    assert torch.equal(member.places, torch.arange(6).repeat_interleave(16))


@pytest.mark.parametrize(("name", "layers"), [("vit_fused", ("qkv",)), ("vit_separate", ("query", "key", "value"))])
def test_heads_go_whole(name: str, layers: tuple[str, ...]) -> None:
    family = BY_NAME[name]
    space = slim(family.network(), family.example())
    full = {n: tuple(range(size)) for n, size in sizes(space).items()}
    attention = build(space, Architecture({**full, "blocks.0.attn.heads": (1,)})).get_submodule("blocks.0.attn")
    head = 12 // full["blocks.0.attn.heads"].__len__()
    assert sum(attention.get_submodule(n).out_features for n in layers) == 3 * head
    assert getattr(attention, "num_heads", getattr(attention, "heads", 0)) == 1


@pytest.mark.parametrize(
    ("family", "block", "left"),
    [("resnet", "blocks.0", "ReLU"), ("resnet", "blocks.1", "Sequential"), ("preact", "blocks.0", "Identity"),
     ("mobilenet", "blocks.1", "Identity"), ("convnext", "blocks.0", "Identity")],
)  # fmt: skip
def test_a_block_without_its_branch_is_its_skip(family: str, block: str, left: str) -> None:
    space = slim(BY_NAME[family].network(), (x := BY_NAME[family].example()))
    stir(space)
    full = Architecture({n: tuple(range(size)) for n, size in sizes(space).items()})
    gone = Architecture({**full, f"{block}.branch": ()})
    built = build(space, gone)
    assert type(built.get_submodule(block)).__name__ == left
    assert difference(outputs(hold(space, gone), x), outputs(built, x)) < 1e-5
    assert difference(outputs(hold(space, full), x), outputs(built, x)) > 1e-4
    assert macs(x).of(built) < macs(x).of(build(space, full))


def test_keep_leaves_layers_as_they_are() -> None:
    net, x = BY_NAME["resnet"].network(), BY_NAME["resnet"].example()
    space = slim(net, x, keep=["blocks.0.conv2", "blocks.1"])
    # Kept too are what shares a sum with the kept layer, and the branch that it stands in.
    assert sizes(space) == {
        "blocks.0.conv1": 8,
        "blocks.2.conv1": 12,
        "blocks.2.branch": 1,
    }
    assert "wish" in frozen(space)["stem.0"]
    for seed in range(3):
        built = build(space, sample(space, generator=torch.Generator().manual_seed(seed)))
        assert built.stem[0].weight.shape == net.stem[0].weight.shape
        for name, parameter in net.blocks[1].named_parameters():
            assert built.blocks[1].get_parameter(name).shape == parameter.shape


def test_keep_covers_attention_and_what_a_module_contains() -> None:
    space = slim(transformers.vit_fused(), torch.randn(2, 3, 8, 8), keep=["blocks.0.attn"])
    modules = {"blocks.0.mlp.branch": 1, "blocks.1.attn.branch": 1, "blocks.1.mlp.branch": 1}
    attention = {"blocks.1.attn.heads": 3, "blocks.1.attn.qkv.channels": 4}
    assert sizes(space) == {**attention, "blocks.0.mlp.0": 20, "blocks.1.mlp.0": 16, **modules}
    space = slim(convolutional.plain(), torch.randn(2, 3, 8, 8), keep=["blocks.1"])
    assert set(sizes(space)) == {"stem.0", "blocks.0.0"}


def test_keeping_everything_leaves_nothing_to_remove() -> None:
    with pytest.raises(ModelError, match="no channels that can be removed"):
        slim(convolutional.plain(), torch.randn(2, 3, 8, 8), keep=["stem", "blocks"])


def test_a_space_is_not_slimmed_again() -> None:
    gated = slim(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    with pytest.raises(ModelError, match=r"slimmable network already: .* is a gate"):
        slim(nn.Sequential(gated), torch.randn(2, 4))


class Heads(nn.Module):
    """More outputs than a message has room for, beside the channels that matter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.heads = nn.Linear(4, 6), nn.ModuleList(nn.Linear(6, 3) for _ in range(7))

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.first(x).softmax(-1)
        return [head(y) for head in self.heads]


def test_a_refusal_tells_each_reason_once() -> None:
    with pytest.raises(ModelError, match=r"heads\.0 and 6 more: its channels reach .*first: .*softmax"):
        slim(Heads(), torch.randn(2, 4))


def test_a_single_layer_has_nothing_to_remove() -> None:
    with pytest.raises(ModelError, match=r"Linear has no channels that can be removed.*output"):
        slim(nn.Linear(4, 3), torch.randn(2, 4))
    with pytest.raises(ModelError, match="no layer found"):
        slim(nn.Sequential(nn.Flatten(), nn.ReLU()), torch.randn(2, 4, requires_grad=True))


@pytest.mark.parametrize(
    "example",
    [torch.randn(2, 4, 8, 8), torch.randn(8), torch.zeros(2, 3, 8, 8, dtype=torch.long),
     torch.randn(2, 3, 8, 8).double(),
     (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)), ()],
    ids=["channels", "axes", "integers", "double", "two inputs", "none"],
)  # fmt: skip
def test_an_example_that_does_not_fit_is_refused(example: Tensor | tuple[Tensor, ...]) -> None:
    with pytest.raises(ModelError, match=r"Trunk fails on the example .*give an example|the example holds no tensor"):
        slim(convolutional.plain(), example)


class Broken(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.fault = fault
        self.lock = threading.Lock() if fault == "lock" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "raises":
            raise NotImplementedError("not today")
        y = self.second(torch.relu(self.first(x)))
        return y.detach() if self.fault == "detached" else y


@pytest.mark.parametrize(
    ("fault", "said"),
    [("raises", "Broken fails on the example.*not today"), ("lock", "Broken cannot be copied.*a lock")],
)
def test_a_network_that_cannot_be_run_or_copied_is_refused(fault: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        slim(Broken(fault), torch.randn(2, 4))


def test_outputs_need_no_gradient() -> None:
    assert sizes(slim(Broken("detached"), torch.randn(2, 4))) == {"first": 6}


class Remembers(nn.Module):
    """Keeps its last features, as networks that show attention maps do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.features = torch.relu(self.first(x))
        return self.second(self.features)


def test_a_network_that_keeps_its_activations_is_gated() -> None:
    assert sizes(slim(Remembers(), torch.randn(2, 4))) == {"first": 6}


def test_weights_that_rest_stay_at_rest() -> None:
    net, x = convolutional.plain(), torch.randn(2, 3, 8, 8)
    for parameter in net.stem.parameters():
        parameter.requires_grad_(False)
    net.eval()
    space = slim(net, x)
    built = build(space, sample(space, generator=torch.Generator().manual_seed(0)))
    assert {n: p.requires_grad for n, p in built.named_parameters()} == {
        n: p.requires_grad for n, p in net.named_parameters()
    }
    assert not any(m.training for m in built.modules())


@pytest.mark.parametrize(("given", "said"), [("net", "got a str"), (nn.Conv2d, "the class Conv2d: make a network")])
def test_what_is_no_network_is_refused(given: object, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        slim(given, torch.zeros(1, 1, 8, 8))


def test_lazy_layers_are_refused_until_they_have_run() -> None:
    net, x = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)), torch.zeros(1, 1, 8, 8)
    with pytest.raises(ModelError, match="run it once"):
        slim(net, x)
    net(x)
    assert sizes(slim(net, x)) == {"0": 8}


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _scripted(way: str, inner: nn.Module, width: int) -> nn.Module:
    if way == "traced":
        return torch.jit.trace(inner, torch.zeros(2, width, 8, 8))
    return torch.jit.freeze(torch.jit.script(inner.eval())) if way == "frozen" else torch.jit.script(inner)


class PartlyScripted(nn.Module):
    """A network of the user's with a part that came as TorchScript, and an activation of it."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, width, 1)
        self.active, self.swish = torch.jit.script(nn.Hardswish()), torch.jit.script(swish)
        self.inner, self.third, self.last = inner, nn.Conv2d(width, 9, 1), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.second(self.active(self.first(x))))
        return self.last(self.swish(self.third(y)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("way", ["scripted", "traced", "frozen"])
@pytest.mark.parametrize("seed", range(2))
def test_a_part_that_is_torchscript_stays_as_it_is_and_the_rest_is_cut(way: str, seed: int) -> None:
    torch.manual_seed(seed)
    width, x = 4 + seed, torch.randn(2, 3, 8, 8)
    inner = [nn.Conv2d(width, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, width, 3, groups=1)]
    net = PartlyScripted(_scripted(way, nn.Sequential(*inner).eval(), width), width)
    space = slim(net, x)
    assert sizes(space) == {"first": 8, "third": 9}
    assert "inner is TorchScript" in frozen(space)["second"]
    assert way == "frozen" or "inner is TorchScript" in frozen(space)["inner"]
    stir(space)
    for seed in range(3):
        architecture = sample(space, generator=torch.Generator().manual_seed(seed))
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True):
            torch.testing.assert_close(
                outputs(held, (x,), training=training), outputs(built, (x,), training=training)
            )
        assert float(macs(x).expected(held)) == pytest.approx(macs(x).of(built))
        assert float(params().expected(held)) == pytest.approx(params().of(built))
    built(x).sum().backward()  # what is inside can be trained still
    assert all(p.grad is not None for p in built.parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_network_that_is_torchscript_is_refused() -> None:
    scripted = torch.jit.trace(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()).eval(), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ModelError, match="TorchScript"):
        slim(scripted, torch.zeros(1, 1, 8, 8))


def test_keep_refuses_a_path_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="stemm"):
        slim(convolutional.plain(), torch.randn(2, 3, 8, 8), keep=["stemm"])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_example_stands_for_its_shape(value: float) -> None:
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    space = slim(net, torch.full((1, 8), value), inputs=True)
    assert {name: same[0].size for name, same in choices(space).items()} == {"0.inputs": 8, "0": 6}


@pytest.mark.parametrize(
    ("example", "message"),
    [(None, "and none was given"), ([[1, 2]], "the example holds .*list.*: give what the network takes")],
)
def test_an_example_without_tensors_is_refused(example: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        slim(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)), example=example)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_slimmed_network_inside_of_another_is_refused_before_another_layer_is_cut(place: int) -> None:
    x = torch.zeros(1, 1, 8, 8)
    space = ag.slim(
        nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3)), x
    )
    layers: list[nn.Module] = [nn.Conv2d(1, 1, 1), nn.ReLU()]
    whole = nn.Sequential(*layers[:place], space, *layers[place:])
    for use in (
        lambda: ag.build(whole, ag.sample(whole)),
        lambda: ag.GateTrainer(whole, limit=ag.params().at_most(fraction=0.5), steps=2),
    ):
        with pytest.raises(
            ag.ChoiceError, match=r"which is a part of this one. Give that part alone, or slim the whole"
        ):
            use()
    assert ag.build(space, ag.sample(space))(x).shape == (1, 3)


class KeepsStatistics(nn.Module):
    """A `train` as users write it: it keeps BatchNorm in evaluation mode, and returns nothing."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.inner = inner if inner is not None else nn.Identity()
        self.head = nn.Linear(8, 4)

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        self.body[1].eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.body(x)).mean((2, 3)))


class Within(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.part, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Identity()

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.first(x).relu())


@pytest.mark.parametrize("inner", [None, Within()], ids=["outside", "inside too"])
def test_a_train_that_returns_nothing_is_taken(inner: nn.Module | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 3, 8, 8), torch.arange(40) % 4
    net = KeepsStatistics(inner)
    task = ag.Classification((x, y), batch_size=10)
    limit = ag.macs(task.example).at_most(fraction=0.6)
    run = ag.Run(steps=6, progress=False, device="cpu")
    found = ag.dnal(ag.slim(net, task.example), task, run, limit=limit, round_to=1)
    assert type(found.network) is KeepsStatistics and not found.network.body[1].training
    assert found.costs["macs"] <= 0.6 * ag.macs(task.example).of(net)
    assert ag.export_onnx(found.network, task.example, tmp_path / "a.onnx").largest_difference < 1e-4
