"""iLQR: a linear-quadratic problem around a trajectory, solved backwards, and the step along its solution.

    Q_t = C_t + F_t' V F_t        q_t = c_t + F_t' v            V = 0, v = 0 beyond the end
    K_t = -Q_uu^-1 Q_ux           k_t = -Q_uu^-1 q_u
    V = Q_xx + Q_xu K + K' Q_ux + K' Q_uu K        v = q_x + Q_xu k + K' q_u + K' Q_uu k
    u_t = clip(u_t + K_t (x_t - x_t) + a k_t),  a = 1, g, g^2, ...: the first that lowers the cost

F [T, n, n + m] are Jacobians of the dynamics, c [T, n + m] and C [T, n + m, n + m] derivatives of the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.func import jacrev, vmap

from archgrad.control.system import Cost, Policy, Step, Trajectory

FLOOR = 1e-9  # of the eigenvalues of Q_uu, beside the largest


class Gains(NamedTuple):
    """A solution: feedback K [T, m, n], steps k [T, m], and the promised change a * linear + a^2 / 2 * quadratic."""

    feedback: Tensor
    steps: Tensor
    linear: float
    quadratic: float

    @property
    def finite(self) -> bool:
        """Whether nothing overflowed."""
        return bool(torch.isfinite(self.feedback).all() and torch.isfinite(self.steps).all())

    def policy(self, around: Trajectory, size: float) -> Policy:
        """u_t = u_t + K_t (x - x_t) + size * k_t."""
        open_loop = around.actions + size * self.steps

        def act(t: int, x: Tensor) -> Tensor:
            return open_loop[t] + self.feedback[t] @ (x - around.states[t])

        return act


class Better(NamedTuple):
    """A trajectory that costs less, what it costs, and the size of the step to it."""

    trajectory: Trajectory
    cost: float
    size: float


def smooth(jacobians: Tensor, sigma: float) -> Tensor:
    """Jacobians [T, n, n + m] averaged along time by a Gaussian of `sigma` steps; 0 leaves them as they are."""
    if sigma == 0.0 or len(jacobians) < 2:
        return jacobians
    return torch.from_numpy(gaussian_filter1d(jacobians.numpy(), sigma, axis=0))


def derivatives(step: Step, states: Tensor, actions: Tensor) -> Tensor:
    """Jacobians [T, n, n + m] of a step by (state, action) at states [T, n] and actions [T, m], in one call."""
    by_state, by_action = vmap(jacrev(step, argnums=(0, 1)))(states, actions)
    return torch.cat([by_state, by_action], -1).detach().cpu().double()


@np.errstate(over="ignore", invalid="ignore")  # what overflows is told by the gains
def backward(jacobians: Tensor, slopes: Tensor, curvatures: Tensor, *, damping: float = 0.0) -> Gains:
    """Solve the linear-quadratic problem; the equations are on top of this file.

    Eigenvalues of Q_uu count by their size, above a floor, so that an action without weight or a cost that is not
    convex gives a step and no error; `damping` is added to them (Levenberg-Marquardt). Gains that overflow are NaN.

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
        whole, part = second[t], first[t]
        if t + 1 < steps:
            whole = whole + dynamics[t].T @ value @ dynamics[t]
            part = part + dynamics[t].T @ slope
        if not (np.isfinite(whole).all() and np.isfinite(part).all()):
            feedback[t], offsets[t] = np.nan, np.nan
            break
        q_x, q_u = part[:n], part[n:]
        q_xx, q_ux, q_uu = whole[:n, :n], whole[n:, :n], whole[n:, n:]
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


def sizes(shrink: float, trials: int) -> Iterator[float]:
    """1, g, g^2, ...: what a line search tries."""
    return (shrink**i for i in range(trials))


def line_search(
    rollout: Callable[[Policy], Trajectory],
    cost: Cost,
    around: Better,
    *,
    gains: Gains,
    shrink: float = 0.5,
    trials: int = 10,
) -> Better | None:
    """The first step that lowers the cost, sizes 1, g, g^2, ...; None where none does.

    Trajectories that are not finite are passed over.
    """
    for size in sizes(shrink, trials) if gains.finite else ():
        tried = rollout(gains.policy(around.trajectory, size))
        reached = cost.of(tried)
        if reached < around.cost:
            return Better(tried, reached, size)
    return None
