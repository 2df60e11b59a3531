"""relax, hold, restrict, sample, logits, weights: on a space, and on any module that contains one."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, hold, logits, relax, restrict, sample, weights
from archgrad.choices.architecture import Architecture
from archgrad.choices.gate import Gate
from archgrad.choices.modules import InputChoice, OpChoice
from archgrad.choices.relaxations import ScaledSigmoid, Softmax, softmax
from archgrad.errors import ArchitectureError, ChoiceError


class Cell(nn.Module):
    """Two cells of one name, a choice of inputs, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first = OpChoice({"mix": nn.Linear(4, 4), "bend": nn.Tanh(), "pass": nn.Identity()}, name="normal")
        self.second = OpChoice({"mix": nn.Linear(4, 4), "bend": nn.Sigmoid(), "pass": nn.ReLU()}, name="normal")
        self.inputs = InputChoice(3, name="inputs", keep=2)
        self.gate = Gate(4, name="gate")

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(a)
        return self.gate(self.inputs([x, a, b]))


class Agent(nn.Module):
    """Somebody's module that contains a space."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.policy = encoder, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.policy(self.encoder(x))


ARCHITECTURE = Architecture({"normal": 1, "inputs": (0, 2), "gate": (1, 3)})


def test_choices_are_found_by_name_in_order() -> None:
    agent = Agent(Cell())
    found = choices(agent)
    assert list(found) == ["normal", "inputs", "gate"]
    assert found["normal"] == [agent.encoder.first, agent.encoder.second]
    assert choices(nn.Linear(2, 2)) == {}
    gate = Gate(2, name="itself")
    assert choices(gate) == {"itself": [gate]}


@pytest.mark.parametrize("other", [Gate(2, name="a"), OpChoice([nn.ReLU()] * 3, name="a")], ids=["kind", "size"])
def test_choices_of_one_name_must_agree(other: nn.Module) -> None:
    space = nn.ModuleList([OpChoice([nn.ReLU(), nn.Tanh()], name="a"), other])
    with pytest.raises(ChoiceError, match="'a' are one decision, but differ"):
        choices(space)


def test_relax_gives_one_relaxation_to_each_name() -> None:
    space = Cell()
    assert relax(space, softmax) is space
    assert space.first.relaxation is space.second.relaxation
    assert space.first.relaxation is not space.inputs.relaxation
    assert [p.shape[0] for p in logits(space)] == [3, 3, 4]
    relax(space, ScaledSigmoid)
    assert all(isinstance(c.relaxation, ScaledSigmoid) for same in choices(space).values() for c in same)
    with pytest.raises(ChoiceError, match="no choice to relax"):
        relax(nn.Linear(2, 2), softmax)


def test_the_shared_relaxation_survives_copies_and_files() -> None:
    space = relax(Cell(), softmax)
    copied = copy.deepcopy(space)
    assert copied.first.relaxation is copied.second.relaxation
    assert copied.first.relaxation is not space.first.relaxation
    with torch.no_grad():
        space.first.relaxation.logits.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert copied.second.relaxation.logits.tolist() == [0, 0, 0]
    state = {k: v.clone() for k, v in space.state_dict().items()}
    copied.load_state_dict(load(save(state)))
    assert copied.first.relaxation is copied.second.relaxation
    assert copied.second.relaxation.logits.tolist() == [1, 2, 3]
    x = torch.randn(3, 4)
    assert torch.equal(copied(x), space(x))


def test_training_one_moves_all() -> None:
    agent = relax(Agent(Cell()), softmax)
    optimizer = torch.optim.SGD(logits(agent), lr=1.0)
    before = [p.clone() for p in weights(agent)]
    agent(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    moved = agent.encoder.first.relaxation.logits
    assert bool((moved != 0).any())
    assert torch.equal(moved, agent.encoder.second.relaxation.logits)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(agent), strict=True))


def test_logits_and_weights_part_all_parameters() -> None:
    agent = Agent(Cell())
    assert logits(agent) == []
    assert len(weights(agent)) == len(list(agent.parameters()))
    relax(agent, softmax)
    architecture, rest = logits(agent), weights(agent)
    assert len(architecture) == 3
    assert {id(p) for p in architecture} | {id(p) for p in rest} == {id(p) for p in agent.parameters()}
    assert not {id(p) for p in architecture} & {id(p) for p in rest}
    assert {id(p) for p in agent.policy.parameters()} <= {id(p) for p in rest}


def test_hold_is_bit_identical_to_the_picked_operations_alone() -> None:
    space, x = relax(Cell(), softmax), torch.randn(5, 4)
    for pick in range(3):
        held = hold(space, Architecture({"normal": pick, "inputs": (0, 2), "gate": (1, 3)}))
        a = space.first.candidates[pick](x)
        b = space.second.candidates[pick](a)
        assert torch.equal(held(x), (x + b) * torch.tensor([0.0, 1.0, 0.0, 1.0]))


def test_hold_of_one_operation_in_training_equals_it_alone() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    space = OpChoice([nn.Conv2d(3, 4, 3), body], name="op")
    held = hold(space, Architecture({"op": 1})).train()
    x = torch.randn(4, 3, 6, 6)
    alone = copy.deepcopy(body).train()
    a, b = held(x), alone(x)
    assert torch.equal(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    assert torch.equal(held.candidates[1][0].weight.grad, alone[0].weight.grad)
    assert torch.equal(held.candidates[1][1].running_mean, alone[1].running_mean)
    assert held.candidates[0].weight.grad is None


def test_hold_leaves_the_space_alone() -> None:
    agent = relax(Agent(Cell()), softmax)
    state = {k: v.clone() for k, v in agent.state_dict().items()}
    held = hold(agent, ARCHITECTURE)
    assert logits(held) == []
    assert all(torch.equal(v, agent.state_dict()[k]) for k, v in state.items())
    assert all(bool(c.live.all()) for same in choices(agent).values() for c in same)
    assert isinstance(agent.encoder.first.relaxation, Softmax)
    assert held.encoder.first.live.tolist() == [False, True, False]
    assert held.encoder.second.live.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("picks", "says"),
    [
        ({"normal": 1, "inputs": (0, 2)}, r"lacks \['gate'\]"),
        ({**ARCHITECTURE, "extra": 0}, r"has \['extra'\]"),
        ({**ARCHITECTURE, "normal": 3}, "'normal'"),
        ({**ARCHITECTURE, "normal": (1,)}, "'normal'"),
        ({**ARCHITECTURE, "inputs": (0,)}, "keeps 2"),
        ({**ARCHITECTURE, "gate": ()}, "'gate'"),
        ({**ARCHITECTURE, "gate": (0, 4)}, "0 to 3"),
    ],
)
def test_hold_refuses_another_spaces_architecture(picks: dict[str, int | tuple[int, ...]], says: str) -> None:
    with pytest.raises(ArchitectureError, match=says):
        hold(Cell(), Architecture(picks))


def test_hold_refuses_what_is_dead() -> None:
    """A held network computes the architecture or nothing; it may not compute another one in silence."""
    space = Cell()
    restrict(space, {"normal": [0, 2]})
    with pytest.raises((ArchitectureError, ChoiceError), match="normal"):
        hold(space, ARCHITECTURE)
    space = Cell()
    restrict(space, {"gate": [0, 1]})
    with pytest.raises((ArchitectureError, ChoiceError), match="gate"):
        hold(space, ARCHITECTURE)


def test_restrict_only_narrows() -> None:
    space = Cell()
    restrict(space, {"gate": [0, 1, 3], "normal": torch.tensor([True, True, False])})
    assert space.gate.live.tolist() == [True, True, False, True]
    assert space.first.live.tolist() == space.second.live.tolist() == [True, True, False]
    restrict(space, {"gate": torch.tensor([1, 2])})
    assert space.gate.live.tolist() == [False, True, False, False]
    restrict(space, {"gate": torch.ones(4, dtype=torch.bool)})
    assert space.gate.live.tolist() == [False, True, False, False]
    assert set(sample(space)["gate"]) == {1}


@pytest.mark.parametrize(
    ("support", "says"),
    [
        ({"nothing": [0]}, "no choice is named 'nothing'"),
        ({"gate": [4]}, "0 to 3"),
        ({"gate": [-1]}, "0 to 3"),
        ({"gate": ["first"]}, "by index; given .'first'"),
        ({"gate": [0.5]}, "by index"),
        ({"gate": []}, "nothing would be left alive"),
        ({"gate": torch.zeros(4, dtype=torch.bool)}, "nothing would be left alive"),
        ({"gate": torch.ones(3, dtype=torch.bool)}, "gate"),
    ],
)
def test_restrict_refuses(support: dict[str, list[int] | Tensor], says: str) -> None:
    space = Cell()
    with pytest.raises(ChoiceError, match=says):
        restrict(space, support)
    assert all(bool(c.live.all()) for same in choices(space).values() for c in same)


def test_a_refused_restriction_changes_nothing() -> None:
    space = Cell()
    with pytest.raises(ChoiceError):
        restrict(space, {"normal": [0], "gate": []})
    assert all(bool(c.live.all()) for same in choices(space).values() for c in same)


def test_samples_fit_and_follow_the_generator() -> None:
    agent = Agent(Cell())
    draws = [sample(agent, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 2
    for architecture in draws:
        assert torch.isfinite(hold(agent, architecture)(torch.randn(2, 4))).all()
    with pytest.raises(ChoiceError, match="no choice to sample"):
        sample(nn.ReLU())


def test_a_relaxed_gate_in_a_loop_of_ones_own() -> None:
    """Weights and architecture in one optimizer, as in anybody's training loop."""
    torch.manual_seed(0)
    agent = relax(Agent(Cell()), softmax)
    optimizer = torch.optim.Adam([{"params": weights(agent)}, {"params": logits(agent), "lr": 0.1}])
    x, y = torch.randn(32, 4), torch.randn(32, 2)
    losses = []
    for _ in range(20):
        loss = (agent(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_wrong_pick_is_answered_by_what_is_allowed_and_a_misspelt_name_by_the_nearest() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x)

    space = ag.slim(nn.Sequential(nn.Linear(8, 8), Residual(), Residual(), nn.Linear(8, 2)), torch.zeros(1, 8))
    good = dict(ag.sample(space))
    (branch, *_), (width, *_) = (
        [n for n, same in choices(space).items() if (same[0].vanishing is not None) == vanishing]
        for vanishing in (True, False)
    )
    for name, pick, told in (
        (branch, 0, r"the pick is 0; allowed is \(0,\), which keeps the branch, or \(\), which removes it, such as"),
        (width, 3, r"the pick is 3; allowed is a tuple of one or more different indices .* such as \(3,\)"),
        (width, (), r"the pick is \(\); allowed is a tuple of one or more"),
    ):
        with pytest.raises(ag.ArchitectureError, match=told):
            ag.build(space, ag.Architecture(good | {name: pick}))
    misspelt = branch[:-1] + "x"
    given = {n: pick for n, pick in good.items() if n != branch} | {misspelt: (0,)}
    with pytest.raises(ag.ArchitectureError, match=f"did you mean {branch!r} by {misspelt!r}"):
        ag.build(space, ag.Architecture(given))
    with pytest.raises(ag.ChoiceError, match=f"no choice is named {misspelt!r}.*Did you mean {branch!r}"):
        ag.restrict(space, {misspelt: [0]})


def test_restrict_takes_a_mask_as_a_list() -> None:
    space = Cell()
    restrict(space, {"gate": [True, False, True, False]})
    assert choices(space)["gate"][0].live.tolist() == [True, False, True, False]
    with pytest.raises(ChoiceError, match="gate"):
        restrict(space, {"gate": [True, False]})


def test_restrict_leaves_as_many_inputs_as_are_kept() -> None:
    space = InputChoice(3, name="inputs", keep=2)
    with pytest.raises(ChoiceError, match="keeps 2 inputs, and 1 would be left"):
        restrict(space, {"inputs": [0]})
    restrict(space, {"inputs": torch.tensor([0, 2])})
    assert sample(space)["inputs"] == (0, 2)
