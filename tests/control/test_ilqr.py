"""iLQR against closed forms, the two systems, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from archgrad.control import ilqr
from archgrad.control.benchmark_systems import cart_pole, vehicle
from archgrad.control.ilqr import (
    Candidate,
    backward_pass,
    classical_ilqr,
    jacobians_along,
    line_search,
    smooth_jacobians,
)
from archgrad.control.system import Cost, Equations, Trajectory, quadratic_cost, scattered_points
from archgrad.errors import ConfigError, NonFiniteError

A = torch.tensor([[1.0, 0.1], [-0.2, 0.9]], dtype=torch.float64)
B = torch.tensor([[0.0], [0.5]], dtype=torch.float64)
WIDE = torch.tensor([1e3], dtype=torch.float64)


def linear(*, horizon: int = 20, bound: Tensor = WIDE, weights: tuple[float, ...] = (1.0, 0.5, 0.3)) -> Equations:
    return Equations(
        name="linear", step=lambda x, u: A @ x + B @ u, cost=quadratic_cost(weights, (0.0,) * 3, (3.0, 2.0, 0.3)),
        start=torch.tensor([1.0, -2.0]), low=-bound, high=bound, horizon=horizon,
    )  # fmt: skip


def least_squares(system: Equations) -> float:
    """The lowest J of the linear system: a quadratic in all actions at once, minimized by one solve."""
    count = system.horizon

    def total(flat: Tensor) -> Tensor:
        x, j = system.start, torch.zeros((), dtype=torch.float64)
        for t in range(count):
            u = flat[t : t + 1]
            j = j + (system.cost.stage if t + 1 < count else system.cost.last or system.cost.stage)(x, u)
            x = system.step(x, u)
        return j

    zero = torch.zeros(count, dtype=torch.float64)
    slope = torch.func.grad(total)(zero)
    best = -torch.linalg.solve(torch.func.jacrev(torch.func.grad(total))(zero), slope)
    return float(total(best))


@pytest.mark.parametrize("seed", [0, 1])
def test_one_iteration_solves_a_linear_quadratic_problem_from_any_start(seed: int) -> None:
    system = linear()
    start = torch.randn(20, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = classical_ilqr(system, start=start, iterations=1)
    assert found.cost == pytest.approx(least_squares(system), rel=1e-12)
    assert found.costs[0] > 1.1 * found.cost, "the start was not the solution"
    assert system.rollouts == 0 and found.simulated == 2


def test_the_promised_change_is_the_true_one_and_gains_are_those_of_the_riccati_equation() -> None:
    system = linear()
    first = system.simulate(lambda t, x: torch.ones(1).double())
    jacobians = jacobians_along(system.step, first.states, first.actions)
    torch.testing.assert_close(jacobians[3], torch.cat([A, B], 1))
    gains = backward_pass(jacobians, *system.cost.expand(first))
    for size in (1.0, 0.3):
        after = system.cost.of(system.simulate(gains.policy(first, size)))
        promised = size * gains.linear + size**2 / 2 * gains.quadratic
        assert after - system.cost.of(first) == pytest.approx(promised, rel=1e-9)
    # The last but one step by hand: the value beyond is the last cost's, 2 diag(3, 2), whose action is 0.
    last = 2.0 * torch.diag(torch.tensor([3.0, 2.0], dtype=torch.float64))
    hand = -torch.linalg.solve(0.6 + B.T @ last @ B, B.T @ last @ A)
    torch.testing.assert_close(gains.feedback[-2], hand)


def test_without_slope_there_is_no_step_and_with_it_there_is() -> None:
    system = linear()
    still = Trajectory(torch.zeros(20, 2).double(), torch.zeros(20, 1).double(), 20)
    jacobians = jacobians_along(system.step, still.states, still.actions)
    assert torch.equal(backward_pass(jacobians, *system.cost.expand(still)).offsets, torch.zeros(20, 1).double())
    moved = Trajectory(still.states + 1.0, still.actions, 20)
    assert float(backward_pass(jacobians, *system.cost.expand(moved)).offsets.abs().max()) > 0.1


@pytest.mark.parametrize("system", [vehicle(), cart_pole()], ids=lambda one: one.name)
def test_jacobians_are_the_differences_of_the_step(system: Equations) -> None:
    around = scattered_points(system)
    found = jacobians_along(system.step, around.states, around.actions)
    n = len(system.start)
    for t in (0, 7):
        z = around.points[t]
        for i in range(len(z)):
            e = torch.zeros_like(z).index_fill(0, torch.tensor(i), 1e-6)
            high, low = (system.step((z + s * e)[:n], (z + s * e)[n:]) for s in (1.0, -1.0))
            torch.testing.assert_close(found[t, :, i], (high - low) / 2e-6, atol=1e-6, rtol=1e-5)


def test_smoothing_leaves_what_is_constant_and_sigma_0_leaves_everything() -> None:
    noisy = torch.randn(30, 2, 3, dtype=torch.float64)
    assert torch.equal(smooth_jacobians(noisy, 0.0), noisy)
    constant = noisy[:1].expand(30, 2, 3).contiguous()
    torch.testing.assert_close(smooth_jacobians(constant, 5.0), constant)
    assert float(smooth_jacobians(noisy, 5.0).diff(dim=0).abs().mean()) < 0.2 * float(noisy.diff(dim=0).abs().mean())


def test_first_costs_and_what_classical_ilqr_reaches() -> None:
    found = classical_ilqr(vehicle())
    assert found.costs[0] == pytest.approx(24970.1102, abs=1e-4)
    assert found.cost == pytest.approx(10191.695, abs=1e-2)
    assert all(later < earlier for earlier, later in zip(found.costs, found.costs[1:], strict=False))
    assert bool((found.trajectory.actions.abs() <= torch.tensor([0.6, 3.0])).all())


@pytest.mark.parametrize(("added", "cost", "iterations"), [(0.0, 1354.3825, 89), (3e-8, 1354.411, 86)])
def test_the_cart_pole_is_swung_up(
    added: float, cost: float, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is added to Q_uu decides the second digit behind the point; with 3e-8 it is that of another program."""
    monkeypatch.setattr(ilqr, "backward_pass", lambda *given, damping: backward_pass(*given, damping=damping + added))
    found = classical_ilqr(cart_pole())
    assert found.costs[0] == pytest.approx(100166.6151, abs=1e-4)
    assert (found.cost, found.iterations) == (pytest.approx(cost, abs=1e-2), pytest.approx(iterations, abs=5))
    assert abs(float(found.trajectory.states[-1, 0])) < 0.05
    actions = found.trajectory.actions
    again = cart_pole().simulate(lambda t, x: actions[t])
    assert cart_pole().cost.of(again) == pytest.approx(found.cost, rel=1e-9)


def test_damping_takes_over_where_no_step_helps() -> None:
    found = classical_ilqr(linear(), damping=1.0)
    assert found.cost == pytest.approx(least_squares(linear()), rel=1e-4)
    assert found.iterations > 1


def test_a_last_action_without_weight_gives_no_step_and_no_error() -> None:
    system = linear()
    system.cost = quadratic_cost((1.0, 0.5, 0.3), (0.0,) * 3, (3.0, 2.0, 0.0))
    found = classical_ilqr(system)
    assert math.isfinite(found.cost) and float(found.trajectory.actions[-1]) == 0.0


def test_a_cost_that_is_not_convex_is_descended() -> None:
    system = linear(bound=torch.tensor([1.0]).double())
    system.cost = Cost(lambda x, u: (3.0 * x[0]).cos() + 0.1 * (x**2).sum() - 0.01 * (u**2).sum())
    found = classical_ilqr(system, damping=1.0, iterations=40)
    assert found.cost < found.costs[0] - 1.0


def test_actions_that_are_all_at_their_limits() -> None:
    bound = torch.tensor([0.01], dtype=torch.float64)
    system = linear(bound=bound)
    found = classical_ilqr(system)
    assert bool((found.trajectory.actions[:-2].abs() == bound).all())
    fixed = linear(bound=torch.zeros(1).double())
    assert classical_ilqr(fixed).cost == pytest.approx(fixed.cost.of(fixed.simulate(lambda t, x: torch.ones(1))))


def test_a_horizon_of_one_has_an_action_and_no_dynamics() -> None:
    system = linear(horizon=1)
    system.cost = Cost(lambda x, u: ((u - 2.0) ** 2).sum() + x @ x)
    found = classical_ilqr(system)
    assert float(found.trajectory.actions) == pytest.approx(2.0) and found.cost == pytest.approx(5.0)


def test_what_blows_up_is_passed_over_by_the_line_search_and_refused_at_the_start() -> None:
    system = linear()
    around = system.simulate(lambda t, x: torch.zeros(1).double())
    gains = backward_pass(jacobians_along(system.step, around.states, around.actions), *system.cost.expand(around))
    seen = []

    def fragile(policy: object) -> Trajectory:
        seen.append(policy)
        good = system.simulate(policy)  # type: ignore[arg-type]
        return Trajectory(good.states * torch.nan, good.actions, 20) if len(seen) < 3 else good

    better = line_search(fragile, system.cost, Candidate(around, system.cost.of(around), 0.0), gains=gains)
    assert better is not None and better.step_size == 0.25
    system.step = lambda x, u: x * 1e200
    with pytest.raises(NonFiniteError, match="first trajectory of linear is not finite"):
        classical_ilqr(system)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (lambda x, u: float(x[0]) ** 2 * u.sum(), "cannot be differentiated"),
        (lambda x, u: torch.from_numpy(x.numpy()).sum() + u.sum(), "cannot be differentiated"),
        (lambda x, u: (x.detach() ** 2).sum() + (u**2).sum(), "gradient by state 0 is off"),
        (lambda x, u: x, "cannot be differentiated"),
    ],
)
def test_a_cost_without_gradient_is_refused(stage: object, message: str) -> None:
    cost = Cost(stage)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        cost.check(scattered_points(linear(bound=torch.ones(1).double())))


def test_a_cost_with_a_kink_is_taken() -> None:
    Cost(lambda x, u: x.abs().sum() + u.clamp(min=0.0).sum()).check(
        scattered_points(linear(bound=torch.ones(1).double()))
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"horizon": 0}, "horizon=0"),
        ({"low": torch.ones(1), "high": -torch.ones(1)}, "each low at most its high"),
        ({"start": torch.tensor([math.nan, 0.0])}, "finite state"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    given = {"start": torch.zeros(2), "low": -torch.ones(1), "high": torch.ones(1), "horizon": 5} | wrong
    with pytest.raises(ConfigError, match=message):
        Equations(name="x", step=lambda x, u: x, cost=quadratic_cost((1, 1, 1), (0, 0, 0)), **given)  # type: ignore[arg-type]


def test_classical_ilqr_needs_equations() -> None:
    with pytest.raises(ConfigError, match="no equations"):
        classical_ilqr(object())  # type: ignore[arg-type]
