"""The network of the dynamics, its scale, and the rollouts that it learns from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.control.dynamics_model import DynamicsModel, Experience
from archgrad.control.ilqr import Candidate, jacobians_along
from archgrad.control.system import Equations, Policy, Trajectory, quadratic_cost
from archgrad.control.trajectory import TrajectorySearch, gains_around
from archgrad.errors import NonFiniteError

A = torch.tensor([[1.0, 0.1], [-0.2, 0.9]], dtype=torch.float64)
B = torch.tensor([[0.0], [0.5]], dtype=torch.float64)
ONE = torch.ones(1, dtype=torch.float64)


def linear(*, bound: float = 100.0) -> Equations:
    return Equations(
        name="linear", step=lambda x, u: A @ x + B @ u, cost=quadratic_cost((1.0, 0.5, 0.3), (0.0,) * 3),
        start=torch.tensor([1.0, -2.0]), low=-bound * ONE, high=bound * ONE, horizon=20,
    )  # fmt: skip


def waves(t: int, x: torch.Tensor) -> torch.Tensor:
    return torch.sin(torch.tensor([3.0 * t]).double())


def exact() -> DynamicsModel:
    """The linear system as a network behind a scale that is none of its own."""
    dynamics = DynamicsModel(nn.Linear(3, 2), states=2, actions=1)
    seen = Experience(linear(), ag.Run(device="cpu", progress=False))
    seen.rollout(waves)
    dynamics.rescale(seen.pairs())
    change = torch.cat([A - torch.eye(2), B], 1).float()
    with torch.no_grad():
        dynamics.network.weight.copy_(change * dynamics.spread / dynamics.size[:, None])
        dynamics.network.bias.copy_((change @ dynamics.center - dynamics.shift) / dynamics.size)
    return dynamics


def test_with_the_exact_network_one_step_is_the_solution() -> None:
    run, system, dynamics = ag.Run(device="cpu", progress=False), linear(), exact()
    first = system.simulate(waves)
    torch.testing.assert_close(
        jacobians_along(dynamics.step, first.states.float(), first.actions.float())[4], torch.cat([A, B], 1),
        atol=1e-5, rtol=0.0,
    )  # fmt: skip
    gains = gains_around(dynamics, first, run, cost=system.cost, sigma=5.0)
    after = system.simulate(gains.policy(first, 1.0))
    again = gains_around(dynamics, after, run, cost=system.cost, sigma=0.0)
    assert float(again.offsets.abs().max()) < 1e-4, "nothing is left to improve"
    assert system.cost.of(after) < 0.9 * system.cost.of(first)


def test_the_step_is_the_batch_and_batch_norm_does_not_mix_examples() -> None:
    network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
    dynamics = DynamicsModel(network, states=2, actions=1)
    x, u = torch.randn(5, 2), torch.randn(5, 1)
    dynamics.train()
    jacobians = jacobians_along(dynamics.step, x, u)
    alone = jacobians_along(dynamics.step, x[2:3], u[2:3])
    torch.testing.assert_close(jacobians[2:3], alone)
    for i in range(2):
        step = 1e-2 * torch.eye(2)[i]
        slope = (dynamics.step(x[0] + step, u[0]) - dynamics.step(x[0] - step, u[0])) / 2e-2
        torch.testing.assert_close(slope.double(), jacobians[0, :, i], atol=1e-3, rtol=1e-3)


def test_transitions_are_counted_none_across_the_ends_of_rollouts() -> None:
    system = linear()
    seen = Experience(system, ag.Run(device="cpu", progress=False))
    for _ in range(3):
        seen.rollout(waves)
    points, changes = seen.pairs()
    assert points.shape == (3 * 19, 3) and system.rollouts == seen.used == 3
    torch.testing.assert_close(points[:, :2] + changes, points[:, :2] @ A.T + points[:, 2:] @ B.T)
    task = seen.task(DynamicsModel(nn.Linear(3, 2), states=2, actions=1), batch_size=512)
    assert task.splits["train"]["size"] == 2 * 19 and task.splits["valid"]["size"] == 19


class Fails(Equations):
    """Its rollouts end or blow up as they are told to."""

    fates: tuple[str, ...] = ()

    def rollout(self, policy: Policy) -> Trajectory:
        tried = Equations.rollout(self, policy)
        fate = self.fates[self.rollouts - 1]
        if fate:
            tried.states[5:] = torch.nan
        return Trajectory(tried.states, tried.actions, 5 if fate == "ends" else 20)


def test_what_blew_up_is_not_learnt_from_and_what_ended_early_is_until_then() -> None:
    given = vars(linear()) | {"rollouts": 0}
    system = Fails(**given)
    run = ag.Run(device="cpu", progress=False)
    seen = Experience(system, run)
    system.fates = ("nan", "ends", "nan")
    seen.rollout(waves)
    with pytest.raises(NonFiniteError, match="none of 1 rollouts of linear stayed finite"):
        seen.pairs()
    seen.rollout(waves)
    seen.rollout(waves)
    assert seen.used == 3 and len(seen.pairs()[0]) == 4
    assert any("Rollout 1 of linear was NaN or infinite from step 5 on" in note for note in run.notes)
    assert any("ended before the horizon" in note for note in run.notes)


def test_what_is_saved_is_restored_with_the_count_of_the_system() -> None:
    system, other = linear(), linear()
    seen = Experience(system, ag.Run(device="cpu", progress=False))
    plan = TrajectorySearch()
    plan.begin(system, seen.rollout(waves))
    assert plan.accept(None) == 0.0 and plan.stalled == 1
    assert plan.accept(Candidate(seen.trajectories[0], 1.0, 0.5)) > 0.0 and plan.stalled == 0
    plan.restart()
    restored, planned = Experience(other, ag.Run(device="cpu", progress=False)), TrajectorySearch()
    restored.load_state_dict(seen.state_dict())
    planned.load_state_dict(plan.state_dict())
    assert other.rollouts == 1 and torch.equal(restored.pairs()[0], seen.pairs()[0])
    assert planned.best.cost == 1.0 < planned.current.cost == plan.costs[0][1] and planned.costs == plan.costs
