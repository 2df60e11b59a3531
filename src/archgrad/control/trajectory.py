"""The trajectory that control improves step by step: its state, the gains around it, and its report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from archgrad import files
from archgrad.choices.architecture import Architecture
from archgrad.control.dynamics_model import DynamicsModel
from archgrad.control.ilqr import Candidate, Gains, backward_pass, jacobians_along, smooth_jacobians
from archgrad.control.system import Cost, Policy, System, Trajectory
from archgrad.copy_and_run import in_mode
from archgrad.costs.count import params
from archgrad.errors import NonFiniteError, RunError
from archgrad.extract.discretize import build
from archgrad.results.record import conditions
from archgrad.results.result import Found
from archgrad.run.run import Run

LOAD_CONTROL = """import torch, safetensors.torch
dynamics = torch.export.load("network.pt2").module()    # needs torch alone: (states [B, n], actions [B, m]) to states
control = safetensors.torch.load_file("control.safetensors")    # states [T, n], actions [T, m], feedback [T, m, n]
# action at step t in state x:  actions[t] + feedback[t] @ (x - states[t]), clipped
"""


class TrajectorySearch:
    """The state of a search for a trajectory.

    Attributes:
        start: the rollout without action.
        current, best: trajectory and cost; they differ after a restart.
        stalled: steps in a row without a better trajectory than `current`.
        costs: (real rollouts, cost of the best) at first and after each step.
    """

    def __init__(self) -> None:
        empty = Trajectory(torch.empty(0, 0), torch.empty(0, 0), 0)
        self.start = self.current = self.best = Candidate(empty, math.inf, 0.0)
        self.stalled = 0
        self.costs: list[tuple[int, float]] = []

    def begin(self, system: System, trajectory: Trajectory) -> None:
        """Begin with the rollout without action."""
        self.start = self.current = self.best = Candidate(trajectory, system.cost.of(trajectory), 0.0)
        self.costs = [(1, self.best.cost)]
        if not math.isfinite(self.best.cost):
            raise NonFiniteError(
                f"{system.name} without action is not finite, or ends before its horizon of {system.horizon} (after "
                f"{trajectory.length} states). Give a shorter horizon, or a start at which the system is stable."
            )

    def accept(self, candidate: Candidate | None) -> float:
        """Go on from a better trajectory, if there is one; returns by how much the cost fell."""
        if candidate is None:
            self.stalled += 1
            return 0.0
        gain, self.current, self.stalled = self.current.cost - candidate.cost, candidate, 0
        if candidate.cost < self.best.cost:
            self.best = candidate
        return gain

    def restart(self) -> None:
        """Go back to the rollout without action; the best trajectory stays."""
        self.current, self.stalled = self.start, 0

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs."""
        candidates = {"start": self.start, "current": self.current, "best": self.best}
        rows = {
            name: [c.trajectory.states, c.trajectory.actions, c.cost, c.step_size] for name, c in candidates.items()
        }
        return {**rows, "stalled": self.stalled, "costs": self.costs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        for name in ("start", "current", "best"):
            states, actions, cost, step_size = state[name]
            setattr(self, name, Candidate(Trajectory(states, actions, len(states)), cost, step_size))
        self.stalled, self.costs = state["stalled"], list(state["costs"])


def open_loop(actions: Tensor) -> Policy:
    """The policy of these actions [T, m], whatever the state."""
    return lambda t, x: actions[t]


def gains_around(model: DynamicsModel, trajectory: Trajectory, run: Run, *, cost: Cost, sigma: float) -> Gains:
    """The gains around a trajectory, with Jacobians of the model smoothed along time by `sigma` steps."""
    states, actions = run.to_device((trajectory.states.float(), trajectory.actions.float()))
    jacobians = smooth_jacobians(jacobians_along(model.step, states, actions), sigma)
    return backward_pass(jacobians, *cost.expand(trajectory))


def report_control(
    model: DynamicsModel,
    search: TrajectorySearch,
    run: Run,
    *,
    system: System,
    gains: Gains,
    architecture: Architecture,
    record: Mapping[str, Any],
) -> Found:
    """The result of control; a run with a folder also gets control.safetensors.

    Args:
        model: the network with its scale.
        search: has the best trajectory, as measured.
        run: begun; it is finished here.
        system: the controlled system.
        gains: feedback around the trajectory.
        architecture: of the inner network.
        record: what the method adds to the report.
    """
    network = in_mode(build(model, Architecture({})).cpu())
    trajectory, cost, rollouts = search.best.trajectory, search.best.cost, search.costs[-1][0]
    size = params().of(network)
    full = {
        "after": {
            "score": -cost, "cost": cost, "cost_at_first": search.costs[0][1], "rollouts": rollouts, "params": size,
        },
        "control": {
            "states": trajectory.states.tolist(), "actions": trajectory.actions.tolist(), "low": system.low.tolist(),
            "high": system.high.tolist(), "costs": [list(row) for row in search.costs],
        },
        **conditions(run, score="score"),
        "load": LOAD_CONTROL,
        **record,
    }  # fmt: skip
    example = (trajectory.states[:1].float(), trajectory.actions[:1].float())
    costs = {"params": size, "rollouts": rollouts}
    found = Found(architecture, network, -cost, costs, run.history, full, example)
    if run.folder and run.rank == 0:
        found.save(run.folder)
        tensors = {"states": trajectory.states, "actions": trajectory.actions, "feedback": gains.feedback}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        files.write_bytes(run.folder / "control.safetensors", safetensors.torch.save(contiguous), RunError)
    run.finish()
    return found
