"""Clipped weights: no competition, the gradient at the ends, permanence, survivors, norms behind nodes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices, restrict
from archgrad.choices.clipped_relaxation import FLOOR, Clipped, normalize_nodes, prune
from archgrad.choices.decide import decide
from archgrad.choices.modules import Choice
from archgrad.choices.relaxations import Open, Softmax
from archgrad.errors import ChoiceError


class Counted(nn.Module):
    """x times a factor; counts its runs."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.runs = factor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x * self.factor


def space_of(logits: list[float]) -> nn.Sequential:
    space = ag.relax(nn.Sequential(ag.OpChoice([Counted(float(i)) for i in range(len(logits))], name="c")), Clipped)
    with torch.no_grad():
        ag.logits(space)[0].copy_(torch.tensor(logits))
    return space


def jacobian(relaxation: nn.Module, at: Tensor) -> Tensor:
    live = torch.ones(len(at), dtype=torch.bool)
    return torch.autograd.functional.jacobian(
        lambda x: torch.func.functional_call(relaxation, {"logits": x}, (live,)), at
    )  # type: ignore[no-any-return]


def test_a_weight_depends_on_its_own_logit_alone_and_a_softmax_does_not() -> None:
    at = torch.tensor([0.2, 0.5, 0.9])
    assert torch.equal(jacobian(Clipped(3), at), torch.eye(3))
    competing = jacobian(Softmax(3), at)
    assert (competing - competing.diag().diag()).abs().max() > 0.05


def test_the_gradient_is_0_outside_and_1_at_the_very_ends() -> None:
    """So that a logit at 0 may grow again: that it stays dead is `prune`'s doing."""
    slopes = jacobian(Clipped(5), torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1])).diag()
    assert slopes.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_what_died_stays_at_0_over_random_steps_and_is_never_run() -> None:
    space = space_of([0.3, -0.2, 0.5, 0.0])
    prune(space)
    optimizer = torch.optim.Adam(ag.logits(space), lr=0.05, betas=(0.5, 0.999))
    generator = torch.Generator().manual_seed(0)
    (choice,) = (same[0] for same in choices(space).values())
    dead = ~choice.live
    assert dead.tolist() == [False, True, False, True]
    for _ in range(100):
        ag.logits(space)[0].grad = torch.randn(4, generator=generator)
        optimizer.step()
        prune(space)
        assert not choice.ready()[dead].any() and not choice.live[dead].any()
        space(torch.ones(2))
        dead = ~choice.live
    assert [op.runs > 0 for op in choice.candidates] == [True, False, True, False]


def test_without_pruning_a_weight_comes_back() -> None:
    space = space_of([0.3, 0.0])
    ag.logits(space)[0].grad = torch.tensor([0.0, -1.0])
    torch.optim.SGD(ag.logits(space), lr=0.1).step()
    assert choices(space)["c"][0].ready()[1] > 0


def test_a_choice_keeps_its_heaviest_candidate() -> None:
    space = space_of([-0.3, -0.1, -0.2])
    prune(space)
    assert choices(space)["c"][0].live.tolist() == [False, True, False]
    assert ag.logits(space)[0][1].item() == pytest.approx(FLOOR)
    assert decide(space)["c"] == 1


def test_a_node_keeps_as_many_inputs_as_it_needs_and_an_operation_that_may_be_picked() -> None:
    inputs = ag.InputChoice(3, name="i", keep=2)
    op = ag.OpChoice({"none": Counted(0.0), "x": Counted(1.0)}, name="o", barred=["none"])
    space = ag.relax(nn.ModuleList([inputs, op]), Clipped)
    with torch.no_grad():
        for logit in ag.logits(space):
            logit.copy_(torch.tensor([0.5, -0.2, -0.1][: len(logit)]))
    prune(space)
    assert inputs.live.tolist() == [True, False, True]
    assert op.live.tolist() == [True, True]
    assert decide(space)["o"] == 1


def test_the_support_is_saved_with_the_space() -> None:
    space, other = space_of([0.3, -0.2, 0.5]), space_of([0.3, 0.3, 0.3])
    prune(space)
    other.load_state_dict(space.state_dict())
    assert choices(other)["c"][0].live.tolist() == [True, False, True]


def test_other_relaxations_are_left_alone() -> None:
    space = ag.relax(space_of([0.1, 0.1]), Softmax)
    with torch.no_grad():
        ag.logits(space)[0].copy_(torch.tensor([-1.0, -2.0]))
    prune(space)
    assert choices(space)["c"][0].live.all() and ag.logits(space)[0].tolist() == [-1.0, -2.0]


def test_masking_all_candidates_is_refused() -> None:
    space = space_of([0.3, 0.2])
    with pytest.raises(ChoiceError, match="nothing would be left alive"):
        restrict(space, {"c": torch.zeros(2, dtype=torch.bool)})
    choices(space)["c"][0].live.zero_()
    with pytest.raises(ChoiceError, match="restrict it to at least one"):
        space(torch.ones(2))


@pytest.mark.parametrize("factorized", [False, True])
def test_nodes_are_normalized_and_the_derived_network_computes_the_same(factorized: bool) -> None:
    torch.manual_seed(0)
    space = ag.darts_cells(
        channels=2, cells=3, in_channels=1, classes=3, nodes=2, factorized=factorized, operations=3
    )

    def several(choice: Choice) -> bool:
        return isinstance(choice, ag.InputChoice) and choice.keep > 1

    ag.relax(ag.relax(space, Clipped), Open, where=several)
    x = torch.randn(6, 1, 8, 8)
    before = sum(p.numel() for p in space.parameters())
    normalize_nodes(space, x)
    made = [m for m in space.modules() if type(m) is nn.Sequential and len(m) == 2 and _holds_choices(m[0])]
    assert len(made) == 6 and all(not m[1].affine for m in made)
    assert sum(p.numel() for p in space.parameters()) == before
    outputs: list[Tensor] = []
    for node in made:
        node.register_forward_hook(lambda _, __, y: outputs.append(y))
    space.train()(x)
    means = torch.stack([y.mean((0, 2, 3)).abs().max() for y in outputs])
    assert means.max() < 1e-5, "a node's output is normalized"
    architecture = decide(space)
    held, network = ag.hold(space, architecture).eval(), ag.build(space, architecture).eval()
    assert torch.allclose(held(x), network(x), atol=1e-6)
    assert not any(type(m).__module__.startswith("archgrad") for m in network.modules())


def _holds_choices(module: nn.Module) -> bool:
    return any(isinstance(inner, Choice) for inner in module.modules())
