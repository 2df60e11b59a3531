"""A learned model of the dynamics of a system, and the rollouts that it is fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.control.system import Policy, System, Trajectory
from archgrad.control.transitions import Pairs, Transitions
from archgrad.errors import NonFiniteError
from archgrad.run.run import Run

VALIDATION = 1  # the index of the rollout that validates: the first random one


class DynamicsModel(nn.Module):
    """x' = x + shift + size * network((z - center) / spread) of z = (state, action).

    Args:
        network: from scaled z [B, n + m] to the scaled change of the state [B, n].
        states, actions: n and m.
    """

    center: Tensor
    spread: Tensor
    shift: Tensor
    size: Tensor

    def __init__(self, network: nn.Module, *, states: int, actions: int) -> None:
        super().__init__()
        self.network = network
        for name, length in (("center", states + actions), ("shift", states)):
            self.register_buffer(name, torch.zeros(length))
        for name, length in (("spread", states + actions), ("size", states)):
            self.register_buffer(name, torch.ones(length))

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """The states [B, n] one step after states [B, n] and actions [B, m]."""
        scaled = (torch.cat([states, actions], -1) - self.center) / self.spread
        change: Tensor = self.shift + self.size * self.network(scaled)
        return states + change

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """The same for one state [n] and one action [m]; in eval mode, so that examples do not mix."""
        after: Tensor = self.eval()(state[None], action[None])
        return after[0]

    def rescale(self, pairs: Pairs) -> None:
        """Take center, spread, shift and size from points [N, n + m] and changes of the state [N, n]."""
        points, changes = pairs
        for name, values in (("center", points.mean(0)), ("shift", changes.mean(0))):
            getattr(self, name).copy_(values)
        # What never changes has no spread to divide by.
        for name, values in (("spread", points.std(0)), ("size", changes.std(0))):
            getattr(self, name).copy_(torch.where(values > 1e-8, values, torch.ones_like(values)))

    def scaled(self, pairs: Pairs) -> Pairs:
        """Inputs and targets of `network`, in float32 on the CPU."""
        center, spread, shift, size = (b.cpu().double() for b in (self.center, self.spread, self.shift, self.size))
        return ((pairs[0] - center) / spread).float(), ((pairs[1] - shift) / size).float()


class Experience:
    """All rollouts of a system in a run.

    Attributes:
        used: number of real rollouts in this run.
        trajectories: those that the model learns from.
    """

    def __init__(self, system: System, run: Run) -> None:
        self.system, self._run = system, run
        self.used = 0
        self.trajectories: list[Trajectory] = []

    def rollout(self, policy: Policy) -> Trajectory:
        """Try a policy. The model learns from the trajectory, unless it is NaN or infinite."""
        trajectory = self.system.rollout(policy)
        self.used += 1
        states = trajectory.states[: trajectory.length]
        finite = torch.isfinite(states)
        if trajectory.length < len(trajectory.states) and bool(finite.all()):
            self._run.note(f"Some episodes of {self.system.name} ended before the horizon; none of them is accepted.")
        if not bool(finite.all()):
            at = int((~finite).any(1).nonzero()[0])
            self._run.note(
                f"Rollout {self.used} of {self.system.name} was NaN or infinite from step {at} on. The model does "
                f"not learn from such rollouts, and none of them is accepted."
            )
        elif trajectory.length > 1:
            self.trajectories.append(trajectory)
        return trajectory

    def pairs(self, chosen_by: Callable[[int], bool] = lambda index: True) -> Pairs:
        """Points [N, n + m] and the changes of the state [N, n] that followed, within the chosen rollouts."""
        chosen = [trajectory for index, trajectory in enumerate(self.trajectories) if chosen_by(index)]
        if not chosen:
            raise NonFiniteError(
                f"none of {self.used} rollouts of {self.system.name} stayed finite, so that there is nothing to "
                f"learn from. Give tighter bounds of the actions, or a shorter horizon."
            )
        points = torch.cat([t.points[: t.length - 1] for t in chosen])
        return points, torch.cat([t.states[1 : t.length] - t.states[: t.length - 1] for t in chosen])

    def task(self, model: DynamicsModel, *, batch_size: int) -> Transitions:
        """The regression of all transitions so far, on the model's scale, which is set by them.

        The first random rollout validates; every rollout near the best trajectory is for training.
        """
        model.rescale(self.pairs())
        several = len(self.trajectories) > 1
        train = self.pairs(lambda index: index != VALIDATION or not several)
        valid = self.pairs(lambda index: index == VALIDATION or not several)
        return Transitions(model.scaled(train), model.scaled(valid), batch_size=batch_size)

    def state_dict(self) -> dict[str, Any]:
        """All trajectories, and the number of rollouts."""
        columns = ("states", "actions", "length")
        return {"used": self.used} | {name: [getattr(t, name) for t in self.trajectories] for name in columns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; the system's own count of rollouts goes along."""
        self.system.rollouts += state["used"] - self.used
        self.used = state["used"]
        rows = zip(state["states"], state["actions"], state["length"], strict=True)
        self.trajectories = [Trajectory(states, actions, length) for states, actions, length in rows]
