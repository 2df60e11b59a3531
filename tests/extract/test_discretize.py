"""decide: what the mixing weights point at. build: a plain network that computes what was held."""

from __future__ import annotations

import copy

import pytest
import torch
from families.checks import assert_plain
from families.convolutional import resnet
from torch import Tensor, nn

from archgrad.choices.access import hold, relax, restrict, sample
from archgrad.choices.architecture import Architecture
from archgrad.choices.decide import decide
from archgrad.choices.gate import Gate
from archgrad.choices.modules import InputChoice, OpChoice
from archgrad.choices.relaxations import Open, ScaledSigmoid, Softmax, softmax
from archgrad.errors import ArchitectureError, ChoiceError
from archgrad.extract.discretize import build
from archgrad.spaces.slim.slimmable import slim


class Mixed(nn.Module):
    """Every kind of choice in one forward."""

    def __init__(self) -> None:
        super().__init__()
        inner = OpChoice([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)], name="inner")
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = OpChoice(
            {"a": nn.Conv2d(4, 4, 3, padding=1), "b": nn.Identity(), "c": nn.Sequential(inner, nn.Tanh())}, name="op"
        )
        self.second = OpChoice({"a": nn.ReLU(), "b": nn.Sigmoid(), "c": nn.Tanh()}, name="op")
        self.inputs = InputChoice(3, name="inputs", keep=2)
        self.gate = Gate(2, name="gate", places=torch.tensor([0, 1, -1, 1]))
        self.last = Gate(4, name="last", dim=-1)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a = self.first(x)
        b = self.second(a)
        return self.last(self.head(self.gate(self.inputs([x, a, b])).mean((2, 3))))


def set_logits(choice: nn.Module, values: list[float]) -> None:
    with torch.no_grad():
        choice.relaxation.logits.copy_(torch.tensor(values))


def test_decide_takes_the_heaviest() -> None:
    space = relax(Mixed(), softmax)
    set_logits(space.first, [0.1, 2.0, 1.0])
    set_logits(space.inputs, [3.0, -1.0, 2.0])
    set_logits(space.gate, [0.0, 3.0])
    set_logits(space.last, [0.0, 0.1, 0.0, 0.0])  # none above one half: the heaviest stays
    inner = space.first.candidates[2][0]
    set_logits(inner, [0.0, 1.0])
    assert decide(space) == Architecture({"op": 1, "inner": 1, "inputs": (0, 2), "gate": (1,), "last": (1,)})


def test_decide_keeps_what_is_above_the_threshold() -> None:
    space = relax(nn.Sequential(Gate(4, name="gate")), ScaledSigmoid)
    set_logits(space[0], [3.0, 0.2, -1.0, 0.0])
    assert decide(space)["gate"] == (0, 1)
    assert decide(space, threshold=0.9)["gate"] == (0,)
    assert decide(space, threshold=0.1)["gate"] == (0, 1, 2, 3)
    assert decide(space, threshold=0.99)["gate"] == (0,)


def test_decide_never_takes_the_dead() -> None:
    space = relax(Mixed(), softmax)
    set_logits(space.first, [0.0, 9.0, 1.0])
    set_logits(space.inputs, [9.0, 0.0, 1.0])
    restrict(space, {"op": [0, 2], "inputs": [1, 2], "gate": [0]})
    found = decide(space)
    assert (found["op"], found["inputs"], found["gate"]) == (2, (1, 2), (0,))


def test_only_a_branch_may_vanish() -> None:
    space = relax(slim(resnet(), torch.randn(2, 3, 8, 8)), ScaledSigmoid)
    for module in space.modules():
        if isinstance(module, ScaledSigmoid):
            with torch.no_grad():
                module.logits.fill_(-1.0)
    found = decide(space)
    assert {n for n, pick in found.items() if pick == ()} == {f"blocks.{i}.branch" for i in range(3)}
    assert all(len(pick) == 1 for n, pick in found.items() if not n.endswith("branch"))


def test_decide_needs_a_relaxation() -> None:
    with pytest.raises(ChoiceError, match="'op' has no relaxation to decide by"):
        decide(Mixed())


def test_what_was_decided_of_a_held_space_is_what_was_held() -> None:
    space = Mixed()
    for seed in range(5):
        architecture = sample(space, generator=torch.Generator().manual_seed(seed))
        assert decide(hold(space, architecture)) == architecture


@pytest.mark.parametrize("seed", range(6))
def test_build_equals_hold_for_every_kind_of_choice(seed: int) -> None:
    torch.manual_seed(seed)
    space, x = relax(Mixed(), softmax), torch.randn(2, 3, 6, 6)
    architecture = sample(space, generator=torch.Generator().manual_seed(seed))
    built = build(space, architecture)
    assert_plain(built)
    assert torch.equal(hold(space, architecture)(x), built(x))
    assert torch.equal(copy.deepcopy(built)(x), built(x))
    program = torch.export.export(built.eval(), (x,))
    assert torch.allclose(program.module()(x), built(x), atol=1e-6)
    assert torch.isfinite(space(x)).all()


def test_an_open_gate_leaves_nothing_behind() -> None:
    space = nn.Sequential(nn.Linear(3, 4), Gate(4, name="gate"))
    built = build(space, Architecture({"gate": (0, 1, 2, 3)}))
    assert isinstance(built[1], nn.Identity)


def test_a_space_that_is_a_choice_itself() -> None:
    space = OpChoice([nn.Linear(3, 3), nn.ReLU()], name="op")
    built = build(space, Architecture({"op": 1}))
    assert_plain(built)
    assert isinstance(built, nn.ReLU)


def test_a_choice_directly_in_a_choice() -> None:
    inner = OpChoice([nn.Tanh(), nn.Sigmoid()], name="inner")
    space = nn.Sequential(OpChoice([nn.ReLU(), inner], name="outer"))
    built = build(space, Architecture({"outer": 1, "inner": 1}))
    assert_plain(built)
    assert isinstance(built[0], nn.Sigmoid)


class Alias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = OpChoice([nn.Tanh(), nn.ReLU()], name="op")
        self.two = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.two(1 + self.one(x))


def test_one_choice_at_two_places() -> None:
    space, x = Alias(), torch.randn(3)
    built = build(space, Architecture({"op": 0}))
    assert_plain(built)
    assert torch.equal(built(x), hold(space, Architecture({"op": 0}))(x))


def test_build_and_hold_agree_about_the_dead() -> None:
    """A dead channel is in neither network, or the architecture that names it is refused."""
    space = slim(resnet(), (x := torch.randn(2, 3, 8, 8)))
    restrict(space, {"blocks.0.conv1": [0, 1, 2]})
    every = {n: tuple(range(g[0].size)) for n, g in _choices(space).items()}
    try:
        held, built = hold(space, Architecture(every)), build(space, Architecture(every))
    except (ArchitectureError, ChoiceError) as error:
        assert "blocks.0.conv1" in str(error)
    else:
        assert torch.allclose(held.eval()(x), built.eval()(x), atol=1e-5)


def _choices(space: nn.Module) -> dict[str, list[Gate]]:
    found: dict[str, list[Gate]] = {}
    for module in space.modules():
        if isinstance(module, Gate):
            found.setdefault(module.name, []).append(module)
    return found


def test_parametrizations_of_the_users_own_stay() -> None:
    class Symmetric(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w + w.T

    space = nn.Sequential(nn.Linear(3, 3), OpChoice([nn.ReLU(), nn.Tanh()], name="op"))
    nn.utils.parametrize.register_parametrization(space[0], "weight", Symmetric())
    built = build(space, Architecture({"op": 0}))
    assert torch.equal(built[0].weight, space[0].weight)
    assert nn.utils.parametrize.is_parametrized(built[0])


def test_the_space_may_be_built_again_and_again() -> None:
    space, x = slim(resnet(), torch.randn(2, 3, 8, 8)), torch.randn(2, 3, 8, 8)
    space.eval()
    before = space(x)
    for seed in range(3):
        build(space, sample(space, generator=torch.Generator().manual_seed(seed)))
        assert torch.equal(space(x), before)
    assert nn.utils.parametrize.is_parametrized(space.fc)


def test_build_refuses_another_spaces_architecture() -> None:
    with pytest.raises(ArchitectureError, match="another space"):
        build(Mixed(), Architecture({"op": 0}))
    with pytest.raises(ArchitectureError, match="'op'"):
        build(nn.Sequential(OpChoice([nn.ReLU()], name="op")), Architecture({"op": 1}))


def test_open_inputs_are_decided_by_their_heaviest_candidates() -> None:
    edges = [
        OpChoice({"none": nn.Identity(), "tanh": nn.Tanh()}, name=f"edge{i}", barred=("none",)) for i in range(3)
    ]
    space = InputChoice(3, name="inputs", keep=2, edges=edges)
    relax(space, Open, where=lambda choice: isinstance(choice, InputChoice))
    relax(space, Softmax, where=lambda choice: isinstance(choice, OpChoice))
    with torch.no_grad():  # edge 0 is mostly "none", which counts for nothing
        for edge, logits in zip(edges, ([9.0, 0.0], [0.0, 1.0], [0.0, 0.5]), strict=True):
            edge.relaxation.logits.copy_(torch.tensor(logits))
    assert dict(decide(space)) == {"inputs": (1, 2), "edge0": 1, "edge1": 1, "edge2": 1}


def test_what_is_traced_is_plain_and_equal() -> None:
    """A module of one of our classes in a user's network, and a user's in ours."""

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.choice = OpChoice([nn.Linear(4, 4), nn.Tanh()], name="inner")

        def forward(self, x: Tensor) -> Tensor:
            return self.choice(x) if x.shape[0] else x  # not traceable

    inner = Mine()
    ours = InputChoice(2, name="inputs", edges=[inner, nn.Linear(4, 4)])

    class Ours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inputs = ours

        def forward(self, x: Tensor) -> Tensor:
            return self.inputs([x, x.tanh()]) + x

    Ours.__module__ = "archgrad.spaces.made_up"
    space = nn.Sequential(Ours(), nn.ReLU())
    x = torch.randn(3, 4)
    for architecture in (Architecture({"inputs": (0,), "inner": 0}), Architecture({"inputs": (1,), "inner": 1})):
        built = build(space, architecture)
        assert torch.equal(built(x), hold(space, architecture)(x))
        assert not any(type(m).__module__.startswith("archgrad") for m in built.modules())
        assert built[0].graph._tracer_cls is None  # or it could only be unpickled where archgrad is
