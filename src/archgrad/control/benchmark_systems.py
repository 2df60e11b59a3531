"""Two systems whose equations are known, and iLQR on them: what control without a model is held against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from archgrad.control.gymnasium_system import Environment
from archgrad.control.ilqr import Better, backward, derivatives, line_search, smooth
from archgrad.control.system import Cost, Equations, Policy, System, Trajectory
from archgrad.errors import ConfigError, NonFiniteError

__all__ = [
    "Cost", "Environment", "Equations", "Policy", "Solution", "System", "Trajectory", "cart_pole", "classical_ilqr",
    "quadratic", "still", "vehicle",
]  # fmt: skip

LARGEST_DAMPING = 1e10


def quadratic(weights: Sequence[float], target: Sequence[float], last: Sequence[float] | None = None) -> Cost:
    """The cost sum of w_i (z_i - target_i)^2 over z = (state, action), with other weights for the last step."""
    goal = torch.tensor(target, dtype=torch.float64)

    def weighed(given: Sequence[float]) -> Tensor:
        return torch.tensor(given, dtype=torch.float64)

    w = weighed(weights)
    v = weighed(last or weights)
    return Cost(
        lambda x, u: (w * (torch.cat([x, u]) - goal) ** 2).sum(),
        lambda x, u: (v * (torch.cat([x, u]) - goal) ** 2).sum(),
    )


def vehicle(*, horizon: int = 150) -> Equations:
    """A car that starts upright on the lane's side and is to drive along y = -10 at speed 8.

    State (x, y, heading, speed), action (steering in [-0.6, 0.6], acceleration in [-3, 3]); 0.1 s a step, wheelbase
    3 m. Source: the example of the authors of neural iLQR (arXiv 2011.10737), as read in their code.
    """
    h, base = 0.1, 3.0

    def step(x: Tensor, u: Tensor) -> Tensor:
        travel = h * x[3]
        across = travel * u[0].sin()
        along = base + travel * u[0].cos() - (base**2 - across**2).sqrt()
        change = torch.stack([along * x[2].cos(), along * x[2].sin(), (across / base).asin(), h * u[1]])
        return x + change

    cost = quadratic((0, 1, 1, 1, 10, 10), (0, -10, 0, 8, 0, 0))
    start = torch.tensor([0.0, 0.0, math.pi / 2, 0.0], dtype=torch.float64)
    bound = torch.tensor([0.6, 3.0], dtype=torch.float64)
    return Equations(
        name="vehicle", step=step, cost=cost, start=start, low=-bound, high=bound, horizon=horizon,
    )  # fmt: skip


def cart_pole(*, horizon: int = 150) -> Equations:
    """A pole that hangs from a cart and is to be swung up.

    State (angle, its rate, position, speed), action a force in [-10, 10] N; 0.02 s a step. The pole stands at angle
    0. Source: as `vehicle`. The last action weighs 1e-9, since it has no effect.
    """
    cart, pole, length, h, g = 1.0, 0.1, 0.5, 0.02, 9.8

    def step(x: Tensor, u: Tensor) -> Tensor:
        sin, cos, total = x[0].sin(), x[0].cos(), cart + pole
        pull = (u[0] + pole * length * x[1] ** 2 * sin) / total
        turn = (g * sin - cos * pull) / (length * (4.0 / 3.0 - pole * cos**2 / total))
        push = pull - pole * length * turn * cos / total
        return x + h * torch.stack([x[1], turn, x[3], push])

    cost = quadratic((1, 0.1, 1, 1, 0.1), (0,) * 5, (1e4, 1e3, 0, 0, 1e-9))
    start = torch.tensor([math.pi, 0.0, 0.0, 0.0], dtype=torch.float64)
    bound = torch.tensor([10.0], dtype=torch.float64)
    return Equations(
        name="cart_pole", step=step, cost=cost, start=start, low=-bound, high=bound, horizon=horizon,
    )  # fmt: skip


def still(system: System) -> Policy:
    """The policy of no action: zeros, or the bound that is nearest to them."""
    return lambda t, x: torch.zeros_like(system.low)


@dataclass(frozen=True)
class Solution:
    """What iLQR found.

    Attributes:
        cost: J of the trajectory.
        trajectory: states and actions.
        costs: J at the start and after each iteration.
        simulated: rollouts of the equations that it took; none of them is a real one.
    """

    cost: float
    trajectory: Trajectory
    costs: list[float] = field(default_factory=list)
    simulated: int = 0

    @property
    def iterations(self) -> int:
        """How many steps were taken."""
        return len(self.costs) - 1


def classical_ilqr(
    system: Equations,
    *,
    iterations: int = 500,
    damping: float = 0.0,
    smoothing: float = 0.0,
    threshold: float = 1e-6,
    shrink: float = 0.5,
    trials: int = 10,
    start: Tensor | None = None,
) -> Solution:
    """iLQR on the exact equations; the algorithm is on top of `archgrad.control.ilqr`.

    Args:
        system: its equations are the model; nothing is counted as a real rollout.
        iterations: at most.
        damping: what is added to Q_uu at first (Levenberg-Marquardt): halved after a step, four times as much where
            no step helps. 0: none, and the search ends where no step helps.
        smoothing: sigma of the Gaussian that averages the Jacobians along time, in steps.
        threshold: a gain below this ends the search.
        shrink, trials: of the line search.
        start: actions [T, m] to begin with; default: none.

    Raises:
        ConfigError: no equations, or a cost that cannot be differentiated.
        NonFiniteError: the first trajectory is not finite.
    """
    if not isinstance(system, Equations):
        raise ConfigError(
            f"{getattr(system, 'name', system)} has no equations; classical iLQR needs "
            f"archgrad.control.benchmark_systems.Equations, and archgrad.nnilqr what can be tried out alone"
        )
    taken = 0

    def simulate(policy: Policy) -> Trajectory:
        nonlocal taken
        taken += 1
        return system.simulate(policy)

    first = simulate(still(system) if start is None else lambda t, x: start[t])
    now = Better(first, system.cost.of(first), 0.0)
    if not math.isfinite(now.cost):
        raise NonFiniteError(
            f"the first trajectory of {system.name} is not finite: give actions to begin with (start=...), a shorter "
            f"horizon, or smaller steps of time"
        )
    costs = [now.cost]
    while len(costs) <= iterations:
        jacobians = smooth(derivatives(system.step, now.trajectory.states, now.trajectory.actions), smoothing)
        slopes, curvatures = system.cost.expand(now.trajectory)
        gains = backward(jacobians, slopes, curvatures, damping=damping)
        better = line_search(simulate, system.cost, now, gains=gains, shrink=shrink, trials=trials)
        if better is None:
            if not 0.0 < damping < LARGEST_DAMPING:
                break
            damping *= 4.0
            continue
        gain, now, damping = now.cost - better.cost, better, damping / 2.0
        costs.append(now.cost)
        if gain < threshold:
            break
    return Solution(now.cost, now.trajectory, costs, taken)
