"""iLQR: the linear-quadratic problem around a trajectory, its solution backwards in time, and the line search.

    Q_t = C_t + F_t' V F_t        q_t = c_t + F_t' v            V = 0, v = 0 beyond the end
    K_t = -Q_uu^-1 Q_ux           k_t = -Q_uu^-1 q_u
    V = Q_xx + Q_xu K + K' Q_ux + K' Q_uu K        v = q_x + Q_xu k + K' q_u + K' Q_uu k
    u_t = clip(u^_t + K_t (x_t - x^_t) + a k_t),  a = 1, g, g^2, ...: the first that lowers the cost

x^, u^ are the trajectory, F [T, n, n + m] the Jacobians of the dynamics at it, c [T, n + m] and C [T, n + m, n + m]
the gradients and Hessians of the cost.

Source: Li, Todorov, "Iterative linear quadratic regulator design for nonlinear biological movement systems" (2004).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.func import jacrev, vmap

from archgrad.control.system import Cost, Equations, Policy, StepFunction, Trajectory
from archgrad.errors import ConfigError, NonFiniteError

FLOOR = 1e-9  # of the eigenvalues of Q_uu, relative to the largest
LARGEST_DAMPING = 1e10


class Gains(NamedTuple):
    """Feedback K [T, m, n], offsets k [T, m], and the predicted change of J, a * linear + a^2 / 2 * quadratic."""

    feedback: Tensor
    offsets: Tensor
    linear: float
    quadratic: float

    @property
    def finite(self) -> bool:
        """Whether nothing overflowed."""
        return bool(torch.isfinite(self.feedback).all() and torch.isfinite(self.offsets).all())

    def policy(self, around: Trajectory, size: float) -> Policy:
        """u = u^_t + K_t (x - x^_t) + size * k_t."""
        open_loop = around.actions + size * self.offsets

        def act(t: int, x: Tensor) -> Tensor:
            return open_loop[t] + self.feedback[t] @ (x - around.states[t])

        return act


class Candidate(NamedTuple):
    """A trajectory, its cost, and the size of the step that led to it."""

    trajectory: Trajectory
    cost: float
    step_size: float


def smooth_jacobians(jacobians: Tensor, sigma: float) -> Tensor:
    """Jacobians [T, n, n + m] averaged along time by a Gaussian of `sigma` steps; 0 leaves them as they are."""
    if sigma == 0.0 or len(jacobians) < 2:
        return jacobians
    return torch.from_numpy(gaussian_filter1d(jacobians.numpy(), sigma, axis=0))


def jacobians_along(step: StepFunction, states: Tensor, actions: Tensor) -> Tensor:
    """Jacobians [T, n, n + m] of a step function by (state, action), at states [T, n] and actions [T, m]."""
    by_state, by_action = vmap(jacrev(step, argnums=(0, 1)))(states, actions)
    return torch.cat([by_state, by_action], -1).detach().cpu().double()


@np.errstate(over="ignore", invalid="ignore")  # `Gains.finite` tells
def backward_pass(jacobians: Tensor, slopes: Tensor, curvatures: Tensor, *, damping: float = 0.0) -> Gains:
    """Solve the linear-quadratic problem; the equations are on top of this file.

    Eigenvalues of Q_uu are replaced by their absolute values above a floor, so that an action without weight or a
    cost that is not convex gives a step and no error. `damping` is added to them (Levenberg-Marquardt). Gains that
    overflow are NaN.

    Args:
        jacobians: F [T, n, n + m], the last unused; or [T - 1, n, n + m].
        slopes: c [T, n + m].
        curvatures: C [T, n + m, n + m].
        damping: 0 or more.
    """
    dynamics, first, second = (tensor.double().numpy() for tensor in (jacobians, slopes, curvatures))
    n, steps = dynamics.shape[1], len(first)
    value, slope = np.zeros((n, n)), np.zeros(n)
    feedback, offsets = np.zeros((steps, first.shape[1] - n, n)), np.zeros((steps, first.shape[1] - n))
    linear = quadratic = 0.0
    for t in range(steps - 1, -1, -1):
        q_zz, q_z = second[t], first[t]
        if t + 1 < steps:
            q_zz = q_zz + dynamics[t].T @ value @ dynamics[t]
            q_z = q_z + dynamics[t].T @ slope
        if not (np.isfinite(q_zz).all() and np.isfinite(q_z).all()):
            feedback[t], offsets[t] = np.nan, np.nan
            break
        q_x, q_u = q_z[:n], q_z[n:]
        q_xx, q_ux, q_uu = q_zz[:n, :n], q_zz[n:, :n], q_zz[n:, n:]
        weights, axes = np.linalg.eigh(0.5 * (q_uu + q_uu.T))
        weights = np.maximum(np.abs(weights), FLOOR * max(1.0, np.abs(weights).max())) + damping
        inverse = (axes / weights) @ axes.T
        gain, offset = -inverse @ q_ux, -inverse @ q_u
        value = q_xx + q_ux.T @ gain + gain.T @ q_ux + gain.T @ q_uu @ gain
        value = 0.5 * (value + value.T)
        slope = q_x + q_ux.T @ offset + gain.T @ q_u + gain.T @ q_uu @ offset
        linear, quadratic = linear + offset @ q_u, quadratic + offset @ q_uu @ offset
        feedback[t], offsets[t] = gain, offset
    return Gains(torch.from_numpy(feedback), torch.from_numpy(offsets), float(linear), float(quadratic))


def line_search(
    rollout: Callable[[Policy], Trajectory],
    cost: Cost,
    around: Candidate,
    *,
    gains: Gains,
    shrink: float = 0.5,
    trials: int = 10,
) -> Candidate | None:
    """The first of the step sizes 1, g, g^2, ... that lowers the cost; None where none does.

    Args:
        rollout: tries a policy.
        cost: of a trajectory; infinite where it is not finite.
        around: the present trajectory.
        gains: around it.
        shrink: g.
        trials: number of step sizes, each a rollout.
    """
    for size in (shrink**i for i in range(trials)) if gains.finite else ():
        tried = rollout(gains.policy(around.trajectory, size))
        reached = cost.of(tried)
        if reached < around.cost:
            return Candidate(tried, reached, size)
    return None


@dataclass(frozen=True)
class IlqrResult:
    """The result of iLQR on exact equations.

    Attributes:
        cost: J of the trajectory.
        trajectory: states and actions.
        costs: J at the start and after each iteration.
        simulated: number of rollouts of the equations; none of them is a real one.
    """

    cost: float
    trajectory: Trajectory
    costs: list[float] = field(default_factory=list)
    simulated: int = 0

    @property
    def iterations(self) -> int:
        """The number of steps that were taken."""
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
) -> IlqrResult:
    """iLQR on exact equations; the algorithm is on top of this file.

    Args:
        system: its equations are the model; nothing counts as a real rollout.
        iterations: the largest number of steps.
        damping: added to Q_uu at first (Levenberg-Marquardt), halved after a step, and four times as much where no
            step helps. 0: none; the search then ends where no step helps.
        smoothing: sigma of the Gaussian that averages the Jacobians along time, in steps.
        threshold: a smaller decrease of J ends the search.
        shrink, trials: of the line search.
        start: actions [T, m] to begin with; default: zeros.

    Raises:
        ConfigError: the system has no equations, or its cost cannot be differentiated.
        NonFiniteError: the first trajectory is not finite.

    Example:
        >>> from archgrad.control import cart_pole, classical_ilqr
        >>> result = classical_ilqr(cart_pole(horizon=20), iterations=3)
        >>> result.cost < result.costs[0]
        True
    """
    if not isinstance(system, Equations):
        raise ConfigError(
            f"{getattr(system, 'name', system)} has no equations: classical iLQR needs archgrad.control.Equations. "
            f"For a system that can only be tried out, take archgrad.nnilqr."
        )
    simulated = 0

    def simulate(policy: Policy) -> Trajectory:
        nonlocal simulated
        simulated += 1
        return system.simulate(policy)

    first = simulate(lambda t, x: torch.zeros_like(system.low) if start is None else start[t])
    now = Candidate(first, system.cost.of(first), 0.0)
    if not math.isfinite(now.cost):
        raise NonFiniteError(
            f"the first trajectory of {system.name} is not finite. Give actions to begin with (start=...), a shorter "
            f"horizon, or smaller steps of time."
        )
    costs = [now.cost]
    while len(costs) <= iterations:
        jacobians = smooth_jacobians(
            jacobians_along(system.step, now.trajectory.states, now.trajectory.actions), smoothing
        )
        slopes, curvatures = system.cost.expand(now.trajectory)
        gains = backward_pass(jacobians, slopes, curvatures, damping=damping)
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
    return IlqrResult(now.cost, now.trajectory, costs, simulated)
