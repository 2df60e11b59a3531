"""A network for the dynamics of a system, and the rollouts that it is fitted to."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.control.system import Policy, System, Trajectory
from archgrad.control.transitions import Pairs, Transitions
from archgrad.errors import NonFiniteError
from archgrad.run.run import Run
from archgrad.tasks.task import stable_seed
from archgrad.training.schedules import cosine
from archgrad.training.step import load_batch, take_step

HELD = 1  # the place of the rollout that is held out: the first random one


class Dynamics(nn.Module):
    """x' = x + drift + size * network((z - center) / spread), z being the state beside the action.

    Args:
        network: from scaled z [B, n + m] to the scaled change of the state [B, n].
        states, actions: n and m.
    """

    center: Tensor
    spread: Tensor
    drift: Tensor
    size: Tensor

    def __init__(self, network: nn.Module, *, states: int, actions: int) -> None:
        super().__init__()
        self.network = network
        for name, length in (("center", states + actions), ("drift", states)):
            self.register_buffer(name, torch.zeros(length))
        for name, length in (("spread", states + actions), ("size", states)):
            self.register_buffer(name, torch.ones(length))

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """The states [B, n] one step after states [B, n] and actions [B, m]."""
        scaled = (torch.cat([states, actions], -1) - self.center) / self.spread
        change: Tensor = self.drift + self.size * self.network(scaled)
        return states + change

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """The same for one state [n] and action [m]; in eval mode, so that examples do not mix."""
        after: Tensor = self.eval()(state[None], action[None])
        return after[0]

    def rescale(self, pairs: Pairs) -> None:
        """Take center, spread, drift and size from points [N, n + m] and changes [N, n]."""
        points, changes = pairs
        for name, values in (("center", points.mean(0)), ("drift", changes.mean(0))):
            getattr(self, name).copy_(values)
        # What never moves has no spread to divide by.
        for name, values in (("spread", points.std(0)), ("size", changes.std(0))):
            getattr(self, name).copy_(torch.where(values > 1e-8, values, torch.ones_like(values)))

    def scaled(self, pairs: Pairs) -> Pairs:
        """Inputs and targets of the inner network, in float32 on the CPU."""
        center, spread, drift, size = (b.cpu().double() for b in (self.center, self.spread, self.drift, self.size))
        return ((pairs[0] - center) / spread).float(), ((pairs[1] - drift) / size).float()


class Experience:
    """All rollouts of a system in a run: tried, counted, and kept to learn from.

    Attributes:
        used: real rollouts of this run.
        kept: those that are learnt from.
    """

    def __init__(self, system: System, run: Run) -> None:
        self.system, self._run = system, run
        self.used = 0
        self.kept: list[Trajectory] = []

    def rollout(self, policy: Policy) -> Trajectory:
        """Try a policy; whatever comes of it is learnt from, unless it blew up."""
        tried = self.system.rollout(policy)
        self.used += 1
        seen = tried.states[: tried.length]
        if tried.length < len(tried.states) and bool(torch.isfinite(seen).all()):
            self._run.note(f"Some episodes of {self.system.name} ended before the horizon; none of them is accepted.")
        if not bool(torch.isfinite(seen).all()):
            at = int((~torch.isfinite(seen)).any(1).nonzero()[0])
            self._run.note(
                f"Rollout {self.used} of {self.system.name} was NaN or infinite from step {at} on; such rollouts are "
                f"neither learnt from nor accepted."
            )
        elif tried.length > 1:
            self.kept.append(tried)
        return tried

    def pairs(self, wanted: Callable[[int], bool] = lambda place: True) -> Pairs:
        """Points [N, n + m] and the changes of the state [N, n] that followed; none across the ends of rollouts."""
        chosen = [one for place, one in enumerate(self.kept) if wanted(place)]
        if not chosen:
            raise NonFiniteError(
                f"of {self.used} rollouts of {self.system.name} none stayed finite: there is nothing to learn from. "
                f"Give bounds of the actions that it stands, or a shorter horizon"
            )
        points = torch.cat([one.points[: one.length - 1] for one in chosen])
        return points, torch.cat([one.states[1 : one.length] - one.states[: one.length - 1] for one in chosen])

    def task(self, dynamics: Dynamics, *, batch_size: int) -> Transitions:
        """The regression of what was seen so far, on the dynamics' scale, which is set by it.

        The first random rollout is held out; what is near the best trajectory is all learnt from.
        """
        dynamics.rescale(self.pairs())
        several = len(self.kept) > 1
        train = self.pairs(lambda place: place != HELD or not several)
        parts = (dynamics.scaled(part) for part in (train, self.pairs(lambda place: place == HELD or not several)))
        return Transitions(*parts, batch_size=batch_size)

    def state_dict(self) -> dict[str, Any]:
        """All rollouts, and how many there were."""
        return {
            "used": self.used, "lengths": [one.length for one in self.kept],
            "states": [one.states for one in self.kept], "actions": [one.actions for one in self.kept],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` left off; the system's count goes along."""
        self.system.rollouts += state["used"] - self.used
        self.used = state["used"]
        parts = zip(state["states"], state["actions"], state["lengths"], strict=True)
        self.kept = [Trajectory(x, u, length) for x, u, length in parts]


def refit(
    dynamics: Dynamics, task: Transitions, run: Run, *, optimizer: torch.optim.Optimizer, rates: list[float],
    steps: int, number: int,
) -> float:  # fmt: skip
    """Train on, within one step of the run; the learning rate falls to nothing each time."""
    network, batches = dynamics.network.train(), task.stream(seed=stable_seed(run.seed, "refit", number))
    loss = torch.tensor(math.nan)
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * cosine(step / steps)
        loss = take_step(optimizer, run, functools.partial(task.loss, network, load_batch(batches, step, run)))
    return float(loss)
