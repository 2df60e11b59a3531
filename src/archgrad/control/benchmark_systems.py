"""The two benchmark systems of the authors of neural iLQR, by their equations: a vehicle and a cart-pole."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from archgrad.control.system import Equations, quadratic_cost


def vehicle(*, horizon: int = 150) -> Equations:
    """A car that starts at rest across the lane and is to drive along y = -10 m at 8 m/s.

    State (x, y, heading, speed), action (steering in [-0.6, 0.6] rad, acceleration in [-3, 3] m/s^2); 0.1 s a step,
    wheelbase 3 m. Source: the example of the authors of neural iLQR (arXiv 2011.10737), as read in their code.

    Args:
        horizon: T, number of states.

    Example:
        >>> from archgrad.control import vehicle
        >>> len(vehicle().start), vehicle().horizon
        (4, 150)
    """
    h, base = 0.1, 3.0

    def step(x: Tensor, u: Tensor) -> Tensor:
        travel = h * x[3]
        across = travel * u[0].sin()
        along = base + travel * u[0].cos() - (base**2 - across**2).sqrt()
        change = torch.stack([along * x[2].cos(), along * x[2].sin(), (across / base).asin(), h * u[1]])
        return x + change

    cost = quadratic_cost((0, 1, 1, 1, 10, 10), (0, -10, 0, 8, 0, 0))
    start = torch.tensor([0.0, 0.0, math.pi / 2, 0.0], dtype=torch.float64)
    bound = torch.tensor([0.6, 3.0], dtype=torch.float64)
    return Equations(
        name="vehicle", step=step, cost=cost, start=start, low=-bound, high=bound, horizon=horizon,
    )  # fmt: skip


def cart_pole(*, horizon: int = 150) -> Equations:
    """A pole that hangs from a cart and is to be swung up.

    State (angle, its rate, position, speed), action (force in [-10, 10] N); 0.02 s a step. The pole is upright at
    angle 0. The last action weighs 1e-9, since it has no effect. Source: as `vehicle`.

    Args:
        horizon: T, number of states.

    Example:
        >>> from archgrad.control import cart_pole
        >>> len(cart_pole().start), float(cart_pole().high)
        (4, 10.0)
    """
    cart, pole, length, h, g = 1.0, 0.1, 0.5, 0.02, 9.8

    def step(x: Tensor, u: Tensor) -> Tensor:
        sin, cos, total = x[0].sin(), x[0].cos(), cart + pole
        pull = (u[0] + pole * length * x[1] ** 2 * sin) / total
        turn = (g * sin - cos * pull) / (length * (4.0 / 3.0 - pole * cos**2 / total))
        push = pull - pole * length * turn * cos / total
        return x + h * torch.stack([x[1], turn, x[3], push])

    cost = quadratic_cost((1, 0.1, 1, 1, 0.1), (0,) * 5, (1e4, 1e3, 0, 0, 1e-9))
    start = torch.tensor([math.pi, 0.0, 0.0, 0.0], dtype=torch.float64)
    bound = torch.tensor([10.0], dtype=torch.float64)
    return Equations(
        name="cart_pole", step=step, cost=cost, start=start, low=-bound, high=bound, horizon=horizon,
    )  # fmt: skip
