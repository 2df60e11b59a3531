"""Systems to control: processes that can be tried out, their trajectories, and the cost of a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from archgrad.errors import ConfigError

# From a step t and a state [n] to an action [m].
Policy = Callable[[int, Tensor], Tensor]
# From a state [n] and an action [m] to the next state [n].
StepFunction = Callable[[Tensor, Tensor], Tensor]
# From a state [n] and an action [m] to a cost [].
StageCost = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Trajectory:
    """States and actions of one rollout, in float64.

    Attributes:
        states: [T, n].
        actions: [T, m]; the last one has no effect on the states.
        length: number of states that were reached: T, unless the process ended before. Later states are NaN.
    """

    states: Tensor
    actions: Tensor
    length: int

    @property
    def finite(self) -> bool:
        """Whether the whole horizon was reached, and every number is finite."""
        return bool(torch.isfinite(self.states).all() and torch.isfinite(self.actions).all())

    @property
    def points(self) -> Tensor:
        """States beside actions, [T, n + m]."""
        return torch.cat([self.states, self.actions], 1)


@dataclass(frozen=True)
class Cost:
    """The cost of a trajectory: J = sum over t < T - 1 of stage(x_t, u_t), plus last(x, u) for the last step.

    Attributes:
        stage: from one state [n] and one action [m] to a number [], in torch operations.
        last: the same for the last step; None: as all others.

    Example:
        >>> import torch
        >>> from archgrad.control import Cost, Trajectory
        >>> cost = Cost(lambda x, u: (x**2).sum() + 0.1 * (u**2).sum())
        >>> cost.of(Trajectory(torch.ones(3, 2), torch.zeros(3, 1), 3))
        6.0
    """

    stage: StageCost
    last: StageCost | None = None

    def of(self, trajectory: Trajectory) -> float:
        """J; infinite where a number is not finite or the horizon was not reached."""
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

            def joint(z: Tensor, cost: StageCost = cost) -> Tensor:
                return cost(z[:n], z[n:])

            z = torch.cat([x, u], 1)
            try:
                first.append(vmap(grad(joint))(z))
                second.append(vmap(jacrev(grad(joint)))(z))
            except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
                raise ConfigError(
                    f"the cost cannot be differentiated ({type(error).__name__}: {str(error).splitlines()[0]}). It "
                    f"takes a state [{n}] and an action [{u.shape[1]}] and returns one number, by torch operations "
                    f"alone: no .item(), float(...) or numpy inside."
                ) from error
        return torch.cat(first).detach(), torch.cat(second).detach()

    def check(self, trajectory: Trajectory) -> None:
        """Compare the gradient with finite differences of the cost along a trajectory.

        Raises:
            ConfigError: they differ, or the cost has no gradient.
        """
        slopes = self.expand(trajectory)[0]
        n, total = trajectory.states.shape[1], trajectory.points
        for i in range(total.shape[1]):
            step = 1e-5 * (1.0 + total[:, i].abs())
            ends = [total.index_add(1, torch.tensor([i]), (sign * step)[:, None]) for sign in (1.0, -1.0)]
            high, low = (self._each(Trajectory(z[:, :n], z[:, n:], len(z))) for z in ends)
            slope = (high - low) / (2.0 * step)
            # At a kink now and then, the two differ for a good reason; the median leaves that out.
            off = (slope - slopes[:, i]).abs().median()
            if float(off) > 1e-3 * (1.0 + float(slope.abs().median())):
                kind = f"state {i}" if i < n else f"action {i - n}"
                raise ConfigError(
                    f"the cost's gradient by {kind} is off its finite differences by {float(off):.3g} (slope "
                    f"{float(slope.median()):.3g}). Something in it hides from autograd, such as .detach() or a new "
                    f"tensor. Write the cost in torch operations on its two arguments."
                )

    def _each(self, trajectory: Trajectory) -> Tensor:
        return torch.cat([vmap(cost)(x, u) for cost, x, u in self._parts(trajectory)])

    def _parts(self, trajectory: Trajectory) -> list[tuple[StageCost, Tensor, Tensor]]:
        x, u = trajectory.states, trajectory.actions
        return [(self.stage, x[:-1], u[:-1])] * (len(x) > 1) + [(self.last or self.stage, x[-1:], u[-1:])]


def quadratic_cost(weights: Sequence[float], target: Sequence[float], last: Sequence[float] | None = None) -> Cost:
    """The cost sum_i w_i (z_i - target_i)^2 of z = (state, action) in each step.

    Args:
        weights: w, n + m numbers.
        target: n + m numbers.
        last: the weights of the last step; None: as all others.

    Example:
        >>> import torch
        >>> from archgrad.control import quadratic_cost
        >>> cost = quadratic_cost(weights=(1.0, 0.1), target=(2.0, 0.0))
        >>> round(float(cost.stage(torch.tensor([1.0]), torch.tensor([3.0]))), 6)
        1.9
    """
    goal = torch.tensor(target, dtype=torch.float64)

    def stage(w: Tensor) -> StageCost:
        return lambda x, u: (w * (torch.cat([x, u]) - goal) ** 2).sum()

    return Cost(*(stage(torch.tensor(w, dtype=torch.float64)) for w in (weights, last or weights)))


def _finite(cost: float) -> float:
    return cost if cost == cost else float("inf")


class System(Protocol):
    """A process that starts at one state and can be tried out, one rollout after another.

    Attributes:
        name: for messages.
        start: the first state, [n].
        low, high: bounds of the action, [m].
        horizon: T, the number of states in a rollout.
        cost: of a trajectory.
        rollouts: number of rollouts so far.
    """

    name: str
    start: Tensor
    low: Tensor
    high: Tensor
    horizon: int
    cost: Cost
    rollouts: int

    def rollout(self, policy: Policy) -> Trajectory:
        """Try a policy, from (t, state [n]) to an action [m], which is clipped; counts the rollout."""
        ...


@dataclass(kw_only=True)
class Equations:
    """A system that is given by its equations.

    Attributes:
        name: for messages.
        step: from a state [n] and an action [m] to the next state [n], in torch operations.
        cost: of a trajectory.
        start: the first state, [n].
        low, high: bounds of the action, [m]; may be infinite.
        horizon: T, the number of states.
        rollouts: number of rollouts so far.

    Raises:
        ConfigError: the bounds, the horizon or the start make no sense.

    Example:
        >>> import torch
        >>> from archgrad.control import Equations, quadratic_cost
        >>> one = torch.ones(1)
        >>> system = Equations(
        ...     name="integrator", step=lambda x, u: x + u, cost=quadratic_cost((1, 0.1), target=(0, 0)),
        ...     start=one, low=-one, high=one, horizon=5)
        >>> system.rollout(lambda t, x: -0.5 * x).states[:3].flatten().tolist()
        [1.0, 0.5, 0.25]
    """

    name: str
    step: StepFunction
    cost: Cost
    start: Tensor
    low: Tensor
    high: Tensor
    horizon: int
    rollouts: int = 0

    def __post_init__(self) -> None:
        self.start, self.low, self.high = (
            torch.as_tensor(values).double() for values in (self.start, self.low, self.high)
        )
        check_system(self)

    def rollout(self, policy: Policy) -> Trajectory:
        """Try a policy; counts the rollout."""
        self.rollouts += 1
        return self.simulate(policy)

    def simulate(self, policy: Policy) -> Trajectory:
        """A rollout of the equations as a model; not counted."""
        x, states, actions = self.start, [], []
        with torch.no_grad():
            for t in range(self.horizon):
                u = torch.clamp(policy(t, x), self.low, self.high)
                states.append(x)
                actions.append(u)
                if t + 1 < self.horizon:
                    x = self.step(x, u)
        return Trajectory(torch.stack(states), torch.stack(actions), self.horizon)


def check_system(system: System) -> None:
    """Raise ConfigError where the bounds, the horizon or the start of a system make no sense."""
    if system.horizon < 1:
        raise ConfigError(
            f"horizon={system.horizon} was given. Allowed is the number of states of a trajectory, 1 or more."
        )
    if system.low.shape != system.high.shape or system.low.ndim != 1 or bool((system.low > system.high).any()):
        raise ConfigError(
            f"low={system.low.tolist()} and high={system.high.tolist()} were given. Allowed are two vectors of one "
            f"length, each low at most its high."
        )
    if system.start.ndim != 1 or not bool(torch.isfinite(system.start).all()):
        raise ConfigError(f"start={system.start.tolist()} was given. Allowed is one finite state [n].")


def scattered_points(system: System) -> Trajectory:
    """Random states around the start and random actions, [32, ...]: to look at the cost without a rollout."""
    generator = torch.Generator().manual_seed(0)
    shape = (32, len(system.start) + len(system.low))
    scattered = torch.rand(shape, generator=generator, dtype=torch.float64)
    states = system.start + (scattered[:, : len(system.start)] - 0.5) * (1.0 + system.start.abs())
    actions = system.low + (system.high - system.low) * scattered[:, len(system.start) :]
    return Trajectory(states, actions, len(states))
