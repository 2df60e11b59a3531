"""Proximity and ADMM: closed forms of values and gradients, disc by hand, convergence, states, refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.clipped_relaxation import Clipped
from archgrad.choices.decide import decide, discretized
from archgrad.choices.modules import Choice
from archgrad.choices.relaxations import Open, Softmax
from archgrad.errors import ConfigError
from archgrad.methods.darts_prime.regularizers import Admm, Proximity, discrete, norms, regularized, weighed


def labels(relaxation: type[nn.Module] = Clipped, *, names: tuple[str, ...] = ("normal.2", "reduce.2")) -> nn.Module:
    """Decisions alone, of three candidates each."""
    return ag.relax(nn.ModuleList([ag.OpChoice(("a", "b", "c"), name=name) for name in names]), relaxation)


def put(space: nn.Module, *rows: list[float]) -> None:
    with torch.no_grad():
        for logit, row in zip(ag.logits(space), rows, strict=True):
            logit.copy_(torch.tensor(row))


def value(term: Tensor) -> float:
    return term.item()


def cells() -> nn.Module:
    space = ag.relax(ag.darts_cells(channels=2, cells=3, in_channels=1, classes=2), Softmax)

    def several(choice: Choice) -> bool:
        return isinstance(choice, ag.InputChoice)

    return ag.relax(space, Open, where=several)


def test_disc_of_a_published_cell_has_8_ones_two_inputs_a_node_and_is_idempotent() -> None:
    space = cells()
    torch.manual_seed(0)
    for logit in ag.logits(space):
        nn.init.normal_(logit)
    target = discrete(space, weighed(space))
    for kind in ("normal", "reduce"):
        rows = {name: row for name, row in target.items() if name.startswith(kind)}
        assert sum(int(row.sum()) for row in rows.values()) == 8
        for node in range(2, 6):
            assert sum(bool(rows[f"{kind}.{node}.{j}"].any()) for j in range(node)) == 2
        assert not any(row[0] for row in rows.values()), "none is never picked"
    again = discrete(space, target)
    assert all(torch.equal(again[name], row) for name, row in target.items())
    by_space = discretized(space, decide(space))
    assert all(torch.equal(by_space[name], row) for name, row in target.items())
    assert any(not torch.equal(row, weighed(space)[name].detach()) for name, row in target.items())


def test_of_equals_the_first_is_taken() -> None:
    space = labels()
    put(space, [1.0, 1.0, 1.0], [0.2, 0.9, 0.9])
    assert dict(decide(space)) == {"normal.2": 0, "reduce.2": 1}


def test_proximity_is_half_of_rho_times_the_norm_of_each_kind_and_its_gradient_the_direction() -> None:
    space, c, rho = labels(), 0.3, 0.8
    put(space, [0.2, 0.7, 0.1], [0.5, 0.4, 0.3])
    away = [torch.tensor([0.2, -0.3, 0.1]), torch.tensor([-0.5, 0.4, 0.3])]
    term = Proximity(space, rho=rho, progress=lambda: c)()
    assert term.item() == pytest.approx(c * rho / 2 * sum(float(x.norm()) for x in away))
    found = torch.autograd.grad(term, ag.logits(space))
    for gradient, x in zip(found, away, strict=True):
        assert torch.allclose(gradient, c * rho / 2 * x / x.norm())
        assert not torch.allclose(gradient, c * rho * x), "the norm is not squared"


def test_choices_of_one_kind_share_a_norm() -> None:
    one = {"normal.2": torch.tensor([3.0]), "normal.3": torch.tensor([4.0])}
    assert float(norms(one)) == 5.0
    assert float(norms({"normal.2": one["normal.2"], "reduce.2": one["normal.3"]})) == 7.0
    assert float(norms({"2.0": one["normal.2"], "3.0": one["normal.3"]})) == 5.0, "one cell is one kind"


def test_proximity_is_0_where_discrete_and_at_the_start_and_only_there() -> None:
    space = labels()
    put(space, [0.0, 1.0, 0.0], [1.0, 0.0, 0.0])
    term = Proximity(space, rho=0.1, progress=lambda: 0.5)()
    gradients = torch.autograd.grad(term, ag.logits(space))
    assert value(term) == 0.0 and all(torch.equal(g, torch.zeros(3)) for g in gradients), "no NaN either"
    put(space, [0.0, 0.9, 0.0], [1.0, 0.0, 0.0])
    assert value(Proximity(space, rho=0.1, progress=lambda: 0.5)()) > 0.0
    assert value(Proximity(space, rho=0.1, progress=lambda: 0.0)()) == 0.0


def test_the_adjusted_form_leaves_even_mixtures_alone_at_first() -> None:
    space = labels(Softmax)
    put(space, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    start, end = (Proximity(space, rho=0.1, progress=lambda c=c: c, adjusted=True)() for c in (0.0, 1.0))
    plain = Proximity(space, rho=0.1, progress=lambda: 1.0)()
    assert value(start) == pytest.approx(0.0, abs=1e-7) and torch.equal(end, plain) and value(plain) > 0.0


def descended(term: Admm | None, goal: Tensor, space: nn.Module, steps: int = 1500) -> Tensor:
    """|a - goal|^2 and a term, by gradient descent."""
    optimizer = torch.optim.SGD(ag.logits(space), lr=0.02)
    for _ in range(steps):
        loss = sum((row - goal).square().sum() for row in weighed(space).values())
        loss = loss + (term() if term else 0.0)
        for logit, gradient in zip(ag.logits(space), torch.autograd.grad(loss, ag.logits(space)), strict=True):
            logit.grad = gradient
        optimizer.step()
    return weighed(space)["c"].detach()


def test_admm_comes_to_the_nearest_discrete_point_and_descent_alone_does_not() -> None:
    goal = torch.tensor([0.3, 0.6, 0.1])
    corners = [torch.eye(3)[i] for i in range(3)]
    nearest = min(corners, key=lambda corner: float((corner - goal).norm()))
    space, short = labels(names=("c",)), labels(names=("c",))
    found = descended(Admm(space, rho=4.0, every=50), goal, space)
    assert (found - nearest).abs().max() < 0.01
    hurried = descended(Admm(short, rho=4.0, every=10), goal, short)
    assert 0.1 < (hurried - nearest).abs().max() < 0.3, "U moves before a has come to rest"
    alone = descended(None, goal, labels(names=("c",)))
    assert torch.allclose(alone, goal, atol=1e-3)


@pytest.mark.parametrize(("on", "relaxation"), list(itertools.product(["activated", "logits"], [Clipped, Softmax])))
def test_admms_target_is_discrete_from_the_first_update_on(on: str, relaxation: type[nn.Module]) -> None:
    space = labels(relaxation)
    put(space, [0.3, 0.5, 0.2], [0.1, 0.2, 0.4])
    term = Admm(space, rho=0.1, every=3, on=on)  # type: ignore[arg-type]
    began = [value(term()) for _ in range(3)]
    if on == "activated" or relaxation is Clipped:
        assert began == [0.0] * 3, "the target is where it stands"
    for call in range(20):
        term()
        assert all(sorted(row.tolist()) == [0.0, 0.0, 1.0] for row in term.target.values())
        assert call or all(row.any() for row in term.dual.values())


def test_admms_updates_are_those_of_the_equations() -> None:
    space = labels(names=("c",))
    put(space, [0.3, 0.5, 0.2])
    term, a, dual = Admm(space, rho=0.5, every=1, discount=0.2), torch.tensor([0.3, 0.5, 0.2]), torch.zeros(3)
    term()
    for _ in range(3):
        found = term()
        z = torch.eye(3)[(a + dual).argmax()]
        dual = 0.2 * dual + a - z
        assert torch.allclose(term.dual["c"], dual)
        assert found.item() == pytest.approx(0.25 * float((a - z + dual).norm()))


def test_admm_looks_at_the_live_support_alone() -> None:
    space = labels(names=("c",))
    put(space, [0.3, 0.5, 0.2])
    ag.restrict(space, {"c": [0, 1]})
    term = Admm(space, rho=0.5, every=1)
    term()
    term()
    assert term.dual["c"][2] == 0.0 and term.dual["c"][0] != 0.0


def test_admms_state_goes_on_where_it_was() -> None:
    def moved(term: Admm, space: nn.Module, steps: range) -> list[float]:
        values = []
        for step in steps:
            put(space, [0.3 + 0.01 * step, 0.5, 0.2], [0.1, 0.2, 0.4 - 0.01 * step])
            values.append(value(term()))
        return values

    whole_space, space = labels(), labels()
    whole = moved(Admm(whole_space, rho=0.1, every=4), whole_space, range(30))
    first = Admm(space, rho=0.1, every=4)
    moved(first, space, range(14))
    second, fresh = Admm(space, rho=0.1, every=4), Admm(space, rho=0.1, every=4)
    second.load_state_dict(first.state_dict())
    assert moved(second, space, range(14, 30)) == whole[14:]
    assert moved(fresh, space, range(14, 30)) != whole[14:]


def test_any_architecture_gradient_takes_a_term() -> None:
    space = labels()
    put(space, [0.2, 0.7, 0.1], [0.5, 0.4, 0.3])
    term = Proximity(space, rho=0.8, progress=lambda: 1.0)
    own = torch.autograd.grad(term(), ag.logits(space))
    batch = (torch.zeros(1), torch.zeros(1))
    loss, gradients = regularized(lambda train, valid: (torch.tensor(2.0), [torch.ones(3), None]), term, space)(
        batch, batch
    )
    assert value(loss) == pytest.approx(2.0 + value(term()))
    assert torch.equal(gradients[0], 1.0 + own[0]) and torch.equal(gradients[1], own[1])


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf])
def test_a_negative_weight_is_refused(rho: float) -> None:
    space = labels()
    with pytest.raises(ConfigError, match="rho="):
        Proximity(space, rho=rho, progress=lambda: 0.0)
    with pytest.raises(ConfigError, match="rho="):
        Admm(space, rho=rho)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"discount": 1.5}, {"on": "both"}])
def test_what_makes_no_admm_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Admm(labels(), rho=0.1, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("c", [0.0, 0.4, 1.0])
def test_the_gradient_of_the_adjusted_form_goes_through_its_scale_only_where_asked(c: float) -> None:
    found = {}
    for through in (False, True):
        space = ag.relax(nn.Sequential(ag.OpChoice([nn.ReLU(), nn.Tanh(), nn.Identity()], name="op")), ag.softmax)
        (logit,) = ag.logits(space)
        with torch.no_grad():
            logit.copy_(torch.tensor([0.3, -0.2, 0.9]))
        term = Proximity(space, rho=1.0, progress=lambda: c, adjusted=True, through=through)
        value = term()
        (found[through],) = torch.autograd.grad(value, [logit])
        if through:  # the whole derivative
            for k in range(3):
                sides = []
                for sign in (1.0, -1.0):
                    with torch.no_grad():
                        logit[k] += sign * 1e-2
                        sides.append(float(term()))
                        logit[k] -= sign * 1e-2
                assert float(found[True][k]) == pytest.approx((sides[0] - sides[1]) / 2e-2, abs=1e-3)
    assert torch.allclose(found[False], found[True], atol=1e-6) == (c == 1.0), "s is 1 at the end"
