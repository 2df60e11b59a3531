"""What control by a learnt network is made of: the best trajectory so far, its gains, and the result on record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from archgrad import files
from archgrad.choices.architecture import Architecture
from archgrad.control.dynamics_model import Dynamics
from archgrad.control.ilqr import Better, Gains, backward, derivatives, smooth
from archgrad.control.system import Cost, Policy, System, Trajectory
from archgrad.costs.count import params
from archgrad.errors import NonFiniteError, RunError
from archgrad.extract.discretize import build
from archgrad.results.record import conditions
from archgrad.results.result import Found
from archgrad.run.run import Run

LOAD = """import torch, safetensors.torch
dynamics = torch.export.load("network.pt2").module()    # needs torch alone: (states [B, n], actions [B, m]) to states
control = safetensors.torch.load_file("control.safetensors")    # states [T, n], actions [T, m], feedback [T, m, n]
# action at step t in state x:  actions[t] + feedback[t] @ (x - states[t]), clipped
"""


class TrajectoryPlan:
    """Where the search stands, and the best trajectory of all.

    Attributes:
        now, best: trajectory and cost; they differ after a fresh start.
        idle: steps in a row without a better trajectory than `now`.
        costs: (real rollouts, cost of the best) at first and after each step.
    """

    def __init__(self) -> None:
        self.start = self.now = self.best = Better(Trajectory(torch.empty(0, 0), torch.empty(0, 0), 0), math.inf, 0.0)
        self.idle = 0
        self.costs: list[tuple[int, float]] = []

    def first(self, system: System, tried: Trajectory) -> None:
        """Begin with the rollout without action."""
        self.start = self.now = self.best = Better(tried, system.cost.of(tried), 0.0)
        self.costs = [(1, self.best.cost)]
        if not math.isfinite(self.best.cost):
            raise NonFiniteError(
                f"{system.name} without action is not finite, or ends before its horizon of {system.horizon} (after "
                f"{tried.length} states): give a shorter horizon, or a system that stands it"
            )

    def take(self, better: Better | None) -> float:
        """Go on from what is better; returns by how much."""
        if better is None:
            self.idle += 1
            return 0.0
        gain, self.now, self.idle = self.now.cost - better.cost, better, 0
        if better.cost < self.best.cost:
            self.best = better
        return gain

    def again(self) -> None:
        """Start afresh, from the rollout without action; the best stays."""
        self.now, self.idle = self.start, 0

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs."""
        parts = {"start": self.start, "now": self.now, "best": self.best}
        held = {name: [b.trajectory.states, b.trajectory.actions, b.cost, b.size] for name, b in parts.items()}
        return {**held, "idle": self.idle, "costs": self.costs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        for name in ("start", "now", "best"):
            states, actions, cost, size = state[name]
            setattr(self, name, Better(Trajectory(states, actions, len(states)), cost, size))
        self.idle, self.costs = state["idle"], list(state["costs"])


def open_loop(actions: Tensor) -> Policy:
    """The policy of these actions [T, m], whatever the state."""
    return lambda t, x: actions[t]


def solve(dynamics: Dynamics, around: Trajectory, run: Run, *, cost: Cost, sigma: float) -> Gains:
    """The gains around a trajectory, with Jacobians of the network smoothed along time by `sigma` steps."""
    states, actions = run.to_device((around.states.float(), around.actions.float()))
    jacobians = smooth(derivatives(dynamics.step, states, actions), sigma)
    return backward(jacobians, *cost.expand(around))


def piloted(
    dynamics: Dynamics,
    plan: TrajectoryPlan,
    run: Run,
    *,
    system: System,
    gains: Gains,
    space: nn.Module,
    architecture: Architecture,
    record: Mapping[str, Any],
) -> Found:
    """Record what control reached, and write it where the run has a folder: control.safetensors besides.

    Args:
        dynamics: the network with its scale.
        plan: the best trajectory, as measured.
        run: begun; it is finished here.
        system: what was controlled.
        gains: feedback around the trajectory.
        space: the inner network as it was given.
        architecture: of the inner network.
        record: what the method adds to the report.
    """
    network = build(dynamics, Architecture({})).cpu().eval()
    around, cost, rollouts = plan.best.trajectory, plan.best.cost, plan.costs[-1][0]
    size = params().of(network)
    full = {
        "after": {
            "score": -cost, "cost": cost, "cost_at_first": plan.costs[0][1], "rollouts": rollouts, "params": size,
        },
        "control": {
            "states": around.states.tolist(), "actions": around.actions.tolist(), "low": system.low.tolist(),
            "high": system.high.tolist(), "costs": [list(one) for one in plan.costs],
        },
        **conditions(run, score="score"),
        "load": LOAD,
        **record,
    }  # fmt: skip
    example = (around.states[:1].float(), around.actions[:1].float())
    costs = {"params": size, "rollouts": rollouts}
    found = Found(architecture, network, -cost, costs, run.history, full, example)
    if run.folder and run.rank == 0:
        found.save(run.folder)
        tensors = {"states": around.states, "actions": around.actions, "feedback": gains.feedback}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        files.write_bytes(run.folder / "control.safetensors", safetensors.torch.save(contiguous), RunError)
    run.finish()
    return found
