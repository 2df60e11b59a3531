"""What is to be controlled: a process that can be tried out, and what a trajectory of it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from archgrad.errors import ConfigError

Policy = Callable[[int, Tensor], Tensor]
Step = Callable[[Tensor, Tensor], Tensor]
Stage = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Trajectory:
    """What happened in one rollout, in float64.

    Attributes:
        states: [T, n].
        actions: [T, m]; the last one has no effect on the states.
        length: states that were reached, T unless the process ended before; those behind are NaN.
    """

    states: Tensor
    actions: Tensor
    length: int

    @property
    def finite(self) -> bool:
        """Whether all of the horizon was reached, by finite states."""
        return bool(torch.isfinite(self.states).all() and torch.isfinite(self.actions).all())

    @property
    def points(self) -> Tensor:
        """States beside actions, [T, n + m]."""
        return torch.cat([self.states, self.actions], 1)


@dataclass(frozen=True)
class Cost:
    """What a trajectory costs: J = sum over t < T - 1 of stage(x_t, u_t), and last(x, u) of the last step.

    Attributes:
        stage: from one state [n] and one action [m] to a number, in torch operations.
        last: the same for the last step; None: as all others.
    """

    stage: Stage
    last: Stage | None = None

    def of(self, trajectory: Trajectory) -> float:
        """J; infinite where a state is not finite or the horizon was not reached."""
        if not trajectory.finite:
            return float("inf")
        return _finite(sum(float(vmap(cost)(x, u).sum()) for cost, x, u in self._parts(trajectory)))

    def expand(self, trajectory: Trajectory) -> tuple[Tensor, Tensor]:
        """Gradients [T, n + m] and Hessians [T, n + m, n + m] of the cost of each step.

        Raises:
            ConfigError: the cost cannot be differentiated.
        """
        n = trajectory.states.shape[1]
        first, second = [], []
        for cost, x, u in self._parts(trajectory):

            def joint(z: Tensor, cost: Stage = cost) -> Tensor:
                return cost(z[:n], z[n:])

            z = torch.cat([x, u], 1)
            try:
                first.append(vmap(grad(joint))(z))
                second.append(vmap(jacrev(grad(joint)))(z))
            except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
                raise ConfigError(
                    f"the cost cannot be differentiated ({type(error).__name__}: {str(error).splitlines()[0]}); it "
                    f"takes a state [{n}] and an action [{u.shape[1]}] and returns one number, by torch operations "
                    f"alone: no .item(), float(...) or numpy inside"
                ) from error
        return torch.cat(first).detach(), torch.cat(second).detach()

    def check(self, trajectory: Trajectory) -> None:
        """Hold the gradient against differences of the cost along a trajectory.

        Raises:
            ConfigError: they differ, or there is no gradient.
        """
        slopes = self.expand(trajectory)[0]
        n, total = trajectory.states.shape[1], trajectory.points
        for i in range(total.shape[1]):
            step = 1e-5 * (1.0 + total[:, i].abs())
            ends = [total.index_add(1, torch.tensor([i]), (sign * step)[:, None]) for sign in (1.0, -1.0)]
            high, low = (self._each(Trajectory(z[:, :n], z[:, n:], len(z))) for z in ends)
            slope = (high - low) / (2.0 * step)
            # Of one kink in a while the difference knows more than the gradient: the median tells.
            off = (slope - slopes[:, i]).abs().median()
            if float(off) > 1e-3 * (1.0 + float(slope.abs().median())):
                kind = f"state {i}" if i < n else f"action {i - n}"
                raise ConfigError(
                    f"the cost's gradient by {kind} is off its differences by {float(off):.3g} (slope "
                    f"{float(slope.median()):.3g}): something in it hides from autograd, such as .detach() or a "
                    f"tensor made anew; write the cost in torch operations on the state and the action given"
                )

    def _each(self, trajectory: Trajectory) -> Tensor:
        return torch.cat([vmap(cost)(x, u) for cost, x, u in self._parts(trajectory)])

    def _parts(self, trajectory: Trajectory) -> list[tuple[Stage, Tensor, Tensor]]:
        x, u = trajectory.states, trajectory.actions
        return [(self.stage, x[:-1], u[:-1])] * (len(x) > 1) + [(self.last or self.stage, x[-1:], u[-1:])]


def _finite(cost: float) -> float:
    return cost if cost == cost else float("inf")


class System(Protocol):
    """A process that starts at one state and can be tried out, one rollout after another.

    `start` [n] is where it starts, `low` and `high` [m] bound its actions, `horizon` is T, `cost` what a trajectory
    costs, and `rollouts` counts how often it was tried.
    """

    name: str
    start: Tensor
    low: Tensor
    high: Tensor
    horizon: int
    cost: Cost
    rollouts: int

    def rollout(self, policy: Policy) -> Trajectory:
        """Try a policy, from (t, state [n]) to an action [m], which is clipped; counted."""
        ...


@dataclass(kw_only=True)
class Equations:
    """A system by its equations.

    Attributes:
        name: for messages.
        step: from a state [n] and an action [m] to the next state [n], in torch operations.
        cost: of a trajectory.
        start: the first state, [n].
        low, high: bounds of the action, [m]; may be infinite.
        horizon: T, the number of states.
        rollouts: how often it was tried out.

    Raises:
        ConfigError: bounds or a horizon that make no sense.
    """

    name: str
    step: Step
    cost: Cost
    start: Tensor
    low: Tensor
    high: Tensor
    horizon: int
    rollouts: int = 0

    def __post_init__(self) -> None:
        self.start, self.low, self.high = (torch.as_tensor(one).double() for one in (self.start, self.low, self.high))
        check(self)

    def rollout(self, policy: Policy) -> Trajectory:
        """Try a policy; counted."""
        self.rollouts += 1
        return self.simulate(policy)

    def simulate(self, policy: Policy) -> Trajectory:
        """The same by the equations as a model; not counted."""
        x, states, actions = self.start, [], []
        with torch.no_grad():
            for t in range(self.horizon):
                u = torch.clamp(policy(t, x), self.low, self.high)
                states.append(x)
                actions.append(u)
                if t + 1 < self.horizon:
                    x = self.step(x, u)
        return Trajectory(torch.stack(states), torch.stack(actions), self.horizon)


def check(system: System) -> None:
    """Raise ConfigError where the numbers of a system make no sense."""
    if system.horizon < 1:
        raise ConfigError(f"horizon={system.horizon}: give the number of states of a trajectory, 1 or more")
    if system.low.shape != system.high.shape or system.low.ndim != 1 or bool((system.low > system.high).any()):
        raise ConfigError(
            f"actions between low={system.low.tolist()} and high={system.high.tolist()}: give two vectors of one "
            f"length, each low at most its high"
        )
    if system.start.ndim != 1 or not bool(torch.isfinite(system.start).all()):
        raise ConfigError(f"start={system.start.tolist()}: give one finite state [n]")


def probe(system: System) -> Trajectory:
    """Points scattered around the start and the middle of the actions, for a look at the cost without a rollout."""
    generator = torch.Generator().manual_seed(0)
    shape = (32, len(system.start) + len(system.low))
    scattered = torch.rand(shape, generator=generator, dtype=torch.float64)
    states = system.start + (scattered[:, : len(system.start)] - 0.5) * (1.0 + system.start.abs())
    actions = system.low + (system.high - system.low) * scattered[:, len(system.start) :]
    return Trajectory(states, actions, len(states))
