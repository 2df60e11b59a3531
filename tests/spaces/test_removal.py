"""Removing channels is closing them: the held space and the built network compute and cost the same."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from families.checks import assert_plain, difference, extremes, outputs, stir, swapped
from families.convolutional import plain
from families.families import FAMILIES, Family
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, relax, sample
from archgrad.choices.architecture import Architecture
from archgrad.choices.channels import remove_channels
from archgrad.choices.relaxations import ScaledSigmoid
from archgrad.costs.count import macs, params
from archgrad.extract.discretize import build, write_back
from archgrad.spaces.slim.slimmable import slim
from archgrad.spaces.slim.trial import Removal, Trial
from archgrad.spaces.slim.trial_masks import MASKS

BY_NAME = {f.name: f for f in FAMILIES}
UNPICKLED = {"parametrized", "hooked_norm"}  # torch itself refuses to pickle these
EXPORTED = [
    "resnet",
    "mobilenet",
    "resnext",
    "densenet",
    "vit_fused",
    "vit_separate",
    "instance_norm",
    "language",
]


def doubled(family: Family) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A stirred space in double precision, where only real differences are left, and its inputs."""
    x = tuple(t.double() if t.is_floating_point() else t for t in family.example(batch=3))
    space = slim(family.network().double(), x)
    stir(space)
    return space, x


def random(space: nn.Module, *, seed: int) -> Architecture:
    return sample(space, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_built_equals_held_and_counts_are_exact(family: Family) -> None:
    space, x = doubled(family)
    cost = macs(x)
    for architecture in [*extremes(space), *(random(space, seed=seed) for seed in range(5))]:
        held, built = hold(space, architecture), build(space, architecture)
        for training in (False, True) if family.steady else (False,):
            assert difference(outputs(held, x, training=training), outputs(built, x, training=training)) < 1e-8
        assert float(cost.expected(held)) == pytest.approx(cost.of(built), rel=1e-9)
        assert float(params().expected(held)) == pytest.approx(params().of(built), rel=1e-9)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name != "parametrized"], ids=lambda f: f.name)
def test_trained_weights_go_back_to_where_build_took_them(family: Family) -> None:
    """Held as before, the space computes what the trained network does; what was closed is as it was.

    Left out is weight_norm over channels that are cut, whose magnitude `build` computes.
    """
    space, x = doubled(family)
    architecture = random(space, seed=3)
    network = build(space, architecture)
    before = [tensor.clone() for tensor in space.state_dict().values()]
    stir(network, seed=5)
    assert difference(outputs(hold(space, architecture), x), outputs(network, x)) > 1e-6
    write_back(space, architecture, network)
    assert difference(outputs(hold(space, architecture), x), outputs(network, x)) < 1e-8
    changed = sum(int((a != b).sum()) for a, b in zip(space.state_dict().values(), before, strict=True))
    assert changed <= sum(tensor.numel() for tensor in network.state_dict().values())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_the_built_network_is_plain_and_survives_its_file(family: Family, tmp_path: Path) -> None:
    x = family.example()
    space = slim(family.network(), x)
    stir(space)
    state = {k: v.clone() for k, v in space.state_dict().items()}
    architecture = random(space, seed=7)
    built = build(space, architecture)
    if family.name not in UNPICKLED:
        assert_plain(built)
    assert all(torch.equal(v, space.state_dict()[k]) for k, v in state.items()), "build changed the space"
    here = outputs(built, x)
    assert difference(outputs(hold(space, architecture), x), here) < 1e-5
    save_model(built, str(tmp_path / "model.safetensors"))
    again = build(space, architecture, weights="fresh")
    stir(again, seed=9)
    load_model(again, str(tmp_path / "model.safetensors"))
    for other in (again, copy.deepcopy(built)):
        assert all(torch.equal(a, b) for a, b in zip(here, outputs(other, x), strict=True))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_a_wrong_channel_is_noticed(family: Family) -> None:
    """The equality can fail: one other entry of one gate, and the outputs differ."""
    space, x = doubled(family)
    sizes = {name: same[0].size for name, same in choices(space).items()}
    full = {name: tuple(range(size)) for name, size in sizes.items()}
    name = next(n for n, size in sizes.items() if size > 1)
    right = Architecture({**full, name: full[name][:-1]})
    held, wrong = hold(space, right), build(space, swapped(right, sizes))
    assert difference(outputs(held, x), outputs(wrong, x)) > 1e-6


@pytest.mark.parametrize("name", EXPORTED)
def test_the_built_network_exports(name: str) -> None:
    family = BY_NAME[name]
    x = family.example()
    space = slim(family.network(), x)
    stir(space)
    built = build(space, random(space, seed=1)).eval()
    program = torch.export.export(built, x)
    with torch.no_grad():
        assert difference([program.module()(*x)], outputs(built, x)) < 1e-5


@pytest.mark.parametrize("name", ["plain", "vgg", "mobilenet", "densenet", "vit_fused", "squeeze_excite"])
def test_slimming_a_slimmed_network_finds_what_was_kept(name: str) -> None:
    family = BY_NAME[name]
    space = slim(family.network(), (x := family.example()))
    stir(space)
    widths = {n: same[0].size for n, same in choices(space).items()}
    half = Architecture({n: tuple(range(0, size, 2)) for n, size in widths.items()})
    built = build(space, half)
    again = slim(built, x)
    assert {n: same[0].size for n, same in choices(again).items()} == {n: len(pick) for n, pick in half.items()}
    same = build(again, extremes(again)[0])
    assert all(torch.equal(a, b) for a, b in zip(outputs(built, x), outputs(same, x), strict=True))


def test_fresh_weights_are_drawn_anew() -> None:
    space = slim(plain(), torch.randn(2, 3, 8, 8))
    architecture = random(space, seed=0)
    torch.manual_seed(1)
    fresh, inherited = build(space, architecture, weights="fresh"), build(space, architecture)
    torch.manual_seed(1)
    again = build(space, architecture, weights="fresh")
    for (name, a), b, c in zip(fresh.named_parameters(), inherited.parameters(), again.parameters(), strict=True):
        assert a.shape == b.shape
        assert torch.equal(a, c)
        if name.endswith("weight") and a.dim() > 1:
            assert not torch.equal(a, b)


def test_a_soft_gate_scales_what_the_next_layer_reads() -> None:
    """w[:, c] * g_c on the reader's weight is the reader on x_c * g_c: padding and bias included."""
    space = relax(slim(plain(), (x := torch.randn(2, 3, 8, 8))), ScaledSigmoid).eval()
    gates = {name: same[0] for name, same in choices(space).items()}
    with torch.no_grad():
        for gate in gates.values():
            gate.relaxation.logits.copy_(torch.randn(gate.size))
    net = build(space, extremes(space)[0]).eval()
    g = {name: gate.relaxation(gate.live).detach().view(1, -1, 1, 1) for name, gate in gates.items()}
    with torch.no_grad():
        y = net.blocks[0](net.stem(x) * g["stem.0"])
        y = net.blocks[1](y * g["blocks.0.0"]) * g["blocks.1.0"]
        assert difference([net.fc(y.mean((2, 3)))], [space(x)]) < 1e-5
        assert difference([net(x)], [space(x)]) > 1e-2


class Toy(nn.Module):
    """conv -> BatchNorm -> activation -> conv, with a mask at a place of one's choice."""

    def __init__(self, activation: nn.Module, mask_at: str) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)
        self.activation, self.mask_at = activation, mask_at
        self.mask: Tensor | float = 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x * self.mask if self.mask_at == "conv" else x
        x = self.norm(x)
        x = x * self.mask if self.mask_at == "norm" else x
        return self.last(self.activation(x))


def masked_and_shrunk(activation: nn.Module, mask_at: str, *, training: bool) -> float:
    torch.manual_seed(0)
    net = Toy(activation, mask_at)
    stir(net)
    x = torch.randn(4, 3, 8, 8)
    space = slim(net, (x,))
    (name,) = choices(space)
    shrunk = build(space, Architecture({name: (0, 2, 3)}))
    net.mask = torch.tensor([1.0, 0, 1, 1, 0, 0]).view(6, 1, 1)
    return difference(outputs(net, (x,), training=training), outputs(shrunk, (x,), training=training))


@pytest.mark.parametrize("training", [False, True])
def test_the_published_gate_place_is_exact_only_for_activations_that_keep_zero(training: bool) -> None:
    """Spec 1h-3: after BatchNorm it is exact for act(0) = 0; elsewhere removal is something else."""
    for activation in (nn.ReLU6(), nn.Hardswish(), nn.GELU()):
        assert masked_and_shrunk(activation, "norm", training=training) < 1e-5
    assert masked_and_shrunk(nn.Sigmoid(), "norm", training=training) > 0.01
    assert masked_and_shrunk(nn.ReLU(), "conv", training=training) > 0.01


def test_one_silent_producer_of_a_sum_is_not_a_closed_channel() -> None:
    """Spec 1h-4: one producer's row may be dropped; the readers' columns only if all producers are off."""
    torch.manual_seed(0)
    one, two, reader = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
    x, kept = torch.randn(2, 3, 5, 5), torch.tensor([0, 2, 3, 5])
    off = torch.zeros(6).index_fill_(0, kept, 1.0).view(6, 1, 1)
    with torch.no_grad():
        masked = reader(one(x) + two(x) * off)
        rows = F.conv2d(x, two.weight[kept], two.bias[kept])
        scattered = reader(one(x).index_add(1, kept, rows))
        columns = F.conv2d((one(x) + two(x))[:, kept], reader.weight[:, kept], reader.bias)
        both = reader((one(x) + two(x)) * off)
    assert difference([masked], [scattered]) < 1e-6
    assert difference([masked], [columns]) > 0.1
    assert difference([both], [columns]) < 1e-6


@pytest.mark.parametrize("lost", ["blocks.0.conv2", "blocks.1.short.0", "blocks.0.bn2"])
def test_the_trial_refuses_a_group_that_lacks_a_member(lost: str) -> None:
    family = BY_NAME["resnet"]
    net, x = family.network(), family.example()
    couplings = choices(slim(net, x))["stem.0"][0].couplings
    trial = Trial(net, x)
    assert trial.failure([Removal("stem.0", couplings)]) is None
    assert trial.failure([Removal("stem.0", [c for c in couplings if c.module != lost])])


def test_the_trial_refuses_couplings_in_the_wrong_order() -> None:
    """All shapes fit, but the reader loses other channels than the producer."""
    family = BY_NAME["plain"]
    net, x = family.network(), family.example()
    couplings = list(choices(slim(net, x))["stem.0"][0].couplings)
    trial = Trial(net, x)
    i = next(i for i, c in enumerate(couplings) if c.side == "in")
    old = couplings[i]
    couplings[i] = type(old)(old.module, old.side, old.places.flip(0), old.tensors, old.counts)
    failures = [trial.failure([Removal("stem.0", couplings)], mask) for mask in MASKS]
    assert any(failure is not None and "mixes" in failure.reason for failure in failures)


@pytest.mark.parametrize(("name", "one", "other"), [("language", "embed", "head"), ("tied_linears", "one", "two")])
def test_shared_weights_stay_shared(name: str, one: str, other: str) -> None:
    family = BY_NAME[name]
    space = slim(family.network(), family.example())
    for architecture in extremes(space):
        built = build(space, architecture)
        assert built.get_submodule(one).weight is built.get_submodule(other).weight


def test_a_side_of_several_gates_is_cut_once() -> None:
    family = BY_NAME["inception"]
    space, _ = doubled(family)
    picks = {n: tuple(range(same[0].size)) for n, same in choices(space).items()}
    picks |= {"blocks.0.one.0": (3,), "blocks.0.three.1.0": (0, 5), "blocks.0.pool.1.0": (1,)}
    built = build(space, Architecture(picks))
    reader = built.get_submodule("blocks.1.0")
    assert reader.in_channels == 4
    assert torch.equal(reader.weight, space.get_submodule("blocks.1.0").weight[:, [3, 4, 9, 11]])
    network = copy.deepcopy(family.network())
    remove_channels(network, {n: same[0].couplings for n, same in choices(space).items()}, picks)
    assert network.get_submodule("blocks.1.0").in_channels == 4


@pytest.mark.parametrize("batch_first", [True, False])
def test_encoder_layers_without_a_branch_run_in_every_mode(batch_first: bool) -> None:
    """torch's fast path, in eval mode, reads the weights of the MLP and of attention."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
    x = torch.randn(2, 5, 8)
    space = slim(
        nn.Sequential(
            nn.Linear(8, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first), nn.Linear(16, 3)
        ),
        x,
    )
    sizes = {name: same[0] for name, same in choices(space).items()}
    for branch in (name for name, gate in sizes.items() if gate.vanishing):
        picks = {name: () if name == branch else tuple(range(gate.size)) for name, gate in sizes.items()}
        built = build(space, Architecture(picks))
        for training in (True, False):
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    assert built.train(training)(x).shape == (2, 5, 3)
