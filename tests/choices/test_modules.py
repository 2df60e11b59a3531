"""OpChoice, InputChoice and Gate: what they compute, what they execute, what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from archgrad.choices.access import hold, restrict, using
from archgrad.choices.architecture import Architecture
from archgrad.choices.gate import Gate
from archgrad.choices.modules import Choice, InputChoice, OpChoice
from archgrad.choices.relaxations import Held, ScaledSigmoid, Softmax
from archgrad.errors import ArchitectureError, ChoiceError


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Bomb(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("a dead candidate was executed")


def with_logits(choice: Choice, values: list[float], relaxation: type = Softmax) -> Choice:
    choice.relaxation = relaxation(choice.size)
    with torch.no_grad():
        choice.relaxation.logits.copy_(torch.tensor(values))
    return choice


def test_a_mixture_is_the_weighted_sum() -> None:
    choice = with_logits(OpChoice([Times(1), Times(2), Times(5)], name="op"), [0.3, -1.0, 2.0])
    x = torch.randn(2, 3)
    w = torch.softmax(torch.tensor([0.3, -1.0, 2.0]), 0)
    assert torch.allclose(choice(x), (w[0] + 2 * w[1] + 5 * w[2]) * x)


def test_the_gradient_reaches_the_logits() -> None:
    choice = with_logits(OpChoice([Times(1), Times(2)], name="op"), [0.0, 0.0])
    choice(torch.ones(1)).sum().backward()
    # y = w0 + 2 w1 and dw/dl = w0 w1 (1, -1) at even weights.
    assert choice.relaxation.logits.grad.tolist() == pytest.approx([-0.25, 0.25])


def test_a_dead_candidate_is_never_executed() -> None:
    choice = with_logits(OpChoice([Times(3), Bomb(), Bomb()], name="op"), [0.0, 9.0, 9.0])
    with pytest.raises(AssertionError, match="dead candidate"):
        choice(torch.ones(2))
    restrict(choice, {"op": [0]})
    assert choice(torch.ones(2)).tolist() == [3.0, 3.0]


def test_a_dead_input_does_not_spoil_the_sum() -> None:
    choice = with_logits(InputChoice(3, name="in", keep=2), [1.0, 0.0, 2.0])
    restrict(choice, {"in": [0, 2]})
    nan = torch.full((2,), float("nan"))
    w = torch.softmax(torch.tensor([1.0, 2.0]), 0)
    assert torch.allclose(choice([torch.ones(2), nan, 3 * torch.ones(2)]), (w[0] + 3 * w[1]) * torch.ones(2))


def test_an_input_choice_sums_what_is_kept() -> None:
    choice = InputChoice(3, name="in", keep=2)
    choice.relaxation = Held(choice.picked((0, 2)))
    assert choice([torch.ones(2), 10 * torch.ones(2), 100 * torch.ones(2)]).tolist() == [101.0, 101.0]
    with pytest.raises(ChoiceError, match="takes 3 inputs, given 2"):
        choice([torch.ones(2)] * 2)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_a_gate_scales_its_dimension(dim: int) -> None:
    x = torch.randn(3, 3, 3)
    gate = with_logits(Gate(3, name="gate", dim=dim), [1.0, -2.0, 0.5], ScaledSigmoid)
    factors = torch.sigmoid(torch.tensor([1.0, -2.0, 0.5]))
    shape = [1, 1, 1]
    shape[dim] = 3
    assert torch.allclose(gate(x), x * factors.view(shape))


def test_a_gate_with_places_scales_blocks_and_leaves_strangers() -> None:
    gate = Gate(2, name="gate", places=torch.tensor([0, 0, -1, 1]))
    gate.relaxation = Held(torch.tensor([False, True]))
    assert gate(torch.ones(1, 4)).tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_a_gate_without_a_relaxation_is_open() -> None:
    x, gate = torch.randn(2, 3), Gate(3, name="gate")
    assert gate(x) is x
    restrict(gate, {"gate": [0, 2]})
    assert torch.equal(gate(x), x * torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize("choice", [OpChoice([Times(1)], name="op"), InputChoice(1, name="op")], ids=["op", "in"])
def test_an_undecided_choice_says_what_to_do(choice: Choice) -> None:
    with pytest.raises(ChoiceError, match=r"'op' is undecided: relax .* or hold"):
        choice(torch.ones(2)) if isinstance(choice, OpChoice) else choice([torch.ones(2)])


def test_candidates_of_different_shape_are_refused() -> None:
    choice = with_logits(OpChoice([nn.Linear(3, 2), nn.Identity()], name="op"), [0.0, 0.0])
    with pytest.raises(ChoiceError, match=r"'op' differ in output shape \(Linear: \(1, 2\), Identity: \(1, 3\)\)"):
        choice(torch.ones(1, 3))


def test_what_cannot_be_a_choice_is_refused() -> None:
    with pytest.raises(ChoiceError, match="0 candidates"):
        OpChoice([], name="op")
    with pytest.raises(ChoiceError, match="0 candidates"):
        Gate(0, name="gate")
    with pytest.raises(ChoiceError, match="needs a name"):
        Gate(3, name="")
    for keep in (0, 4):
        with pytest.raises(ChoiceError, match=f"keeps {keep} of 3 inputs"):
            InputChoice(3, name="in", keep=keep)
    with pytest.raises(ChoiceError, match="'op' holds a function; give"):
        OpChoice({"f": with_logits, "g": nn.ReLU()}, name="op")
    with pytest.raises(ChoiceError, match="'in' holds the class ReLU"):
        InputChoice(2, name="in", edges=[nn.ReLU, nn.ReLU()])


WRONG = [
    (OpChoice([Times(1), Times(2)], name="c"), [2, (0,), ()]),
    (InputChoice(3, name="c", keep=2), [0, (0,), (0, 1, 2), (0, 3), ()]),
    (Gate(3, name="c"), [1, (), (3,), (0, 1, 2, 3)]),
]


@pytest.mark.parametrize(("choice", "pick"), [(c, p) for c, picks in WRONG for p in picks], ids=repr)
def test_a_pick_of_another_choice_is_refused(choice: Choice, pick: int | tuple[int, ...]) -> None:
    with pytest.raises(ArchitectureError, match="'c'"):
        choice.picked(pick)


def test_samples_are_live_and_cover_all() -> None:
    g = torch.Generator().manual_seed(0)
    op = OpChoice([Times(i) for i in range(4)], name="op")
    restrict(op, {"op": [0, 2, 3]})
    assert {op.sampled(g) for _ in range(60)} == {0, 2, 3}
    inputs = InputChoice(4, name="in", keep=2)
    restrict(inputs, {"in": [0, 1, 3]})
    assert {inputs.sampled(g) for _ in range(60)} == {(0, 1), (0, 3), (1, 3)}
    gate = Gate(3, name="gate")
    assert {gate.sampled(g) for _ in range(300)} == {(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)}


def test_samples_of_an_operation_are_uniform() -> None:
    g = torch.Generator().manual_seed(0)
    op = OpChoice([Times(i) for i in range(3)], name="op")
    draws = torch.tensor([op.sampled(g) for _ in range(3000)])
    # Standard deviation of each count is about 26.
    assert bool(((torch.bincount(draws) - 1000).abs() < 110).all())


def test_an_input_runs_through_its_edge_and_only_where_it_counts() -> None:
    ran: list[int] = []

    class Edge(nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

        def forward(self, x: Tensor) -> Tensor:
            ran.append(self.index)
            return (self.index + 1) * x

    space = InputChoice(3, name="inputs", keep=2, edges=[Edge(i) for i in range(3)])
    with using(space, {"inputs": torch.tensor([1.0, 0.0, 0.5])}):
        assert space([torch.ones(2)] * 3).tolist() == [2.5, 2.5]
    assert ran == [0, 2]
    held = hold(space, Architecture({"inputs": (1, 2)}))
    assert held([torch.ones(2)] * 3).tolist() == [5.0, 5.0]
    with pytest.raises(ChoiceError, match="3 inputs and 2 edges"):
        InputChoice(3, name="inputs", edges=[nn.Identity()] * 2)


def test_weights_may_differ_from_image_to_image() -> None:
    space = OpChoice([nn.Identity(), nn.Tanh()], name="op")
    rows = torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.0, 1.0]])
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    with using(space, {"op": rows}):
        together = space(x)
    for i, row in enumerate(rows):
        with using(space, {"op": row}):
            assert torch.allclose(space(x[i : i + 1]), together[i : i + 1])
    assert space.override is None


def test_a_weight_of_zero_with_a_gradient_is_run() -> None:
    space = OpChoice([nn.Identity(), nn.Tanh()], name="op")
    weights = torch.tensor([1.0, 0.0], requires_grad=True)
    with using(space, {"op": weights}):
        y = space(torch.ones(3)).sum()
    assert torch.autograd.grad(y, weights)[0][1] == pytest.approx(3 * math.tanh(1.0))


def test_barred_candidates_mix_but_are_not_sampled() -> None:
    space = OpChoice({"none": nn.Identity(), "tanh": nn.Tanh(), "relu": nn.ReLU()}, name="op", barred=("none",))
    generator = torch.Generator().manual_seed(0)
    assert {space.sampled(generator) for _ in range(50)} == {1, 2}
    with pytest.raises(ChoiceError, match="bars"):
        OpChoice({"a": nn.Tanh()}, name="op", barred=("b",))
    with pytest.raises(ChoiceError, match="bars all"):
        OpChoice({"a": nn.Tanh()}, name="op", barred=("a",))


def test_given_weights_of_another_size_are_refused() -> None:
    space = OpChoice([nn.Identity(), nn.Tanh()], name="op")
    with pytest.raises(ChoiceError, match="2 entries"), using(space, {"op": torch.ones(3)}):
        pass
    with pytest.raises(ChoiceError, match="no choice is named 'other'"), using(space, {"other": torch.ones(2)}):
        pass


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 2), (3,)])
@pytest.mark.parametrize("relaxed", [False, True])
def test_a_gate_on_another_number_of_channels_is_refused(shape: tuple[int, ...], relaxed: bool) -> None:
    dim = 2 if len(shape) == 3 else 1
    gate = Gate(3, name="gate", dim=dim)
    if relaxed:
        gate = with_logits(gate, [0.0, 1.0, 2.0], ScaledSigmoid)
    else:
        gate.live[0] = False
    with pytest.raises(ChoiceError, match=rf"'gate' has factors for 3 channels along dimension {dim}"):
        gate(torch.ones(shape))


class Recurrent(nn.Module):
    """A layer that returns a tuple, as torch's recurrent layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("weights", [torch.tensor([0.5, 0.5]), torch.tensor([0.4, 0.6], requires_grad=True)])
def test_a_candidate_that_returns_no_tensor_is_named(weights: Tensor) -> None:
    space = OpChoice({"gru": Recurrent(), "linear": nn.Linear(3, 3)}, name="layer")
    with using(space, {"layer": weights}), pytest.raises(ChoiceError, match="Recurrent, returns a tuple"):
        space(torch.ones(2, 3))


def test_weights_of_examples_need_the_batch_in_front() -> None:
    space = OpChoice([nn.Flatten(0, 1), nn.Flatten(0, 1)], name="layer")
    with using(space, {"layer": torch.rand(2, 2)}), pytest.raises(ChoiceError, match=r"for 2 examples.*\(6, 4\)"):
        space(torch.ones(2, 3, 4))
