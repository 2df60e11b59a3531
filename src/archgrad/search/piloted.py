"""What a method of control ends with: the network of the dynamics made plain, the controls and the figures recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
import torch

from archgrad.choices.architecture import Architecture
from archgrad.costs.count import params
from archgrad.derive.discretise import build
from archgrad.search.dynamics import Dynamics
from archgrad.search.found import Found
from archgrad.search.run import Run
from archgrad.tasks.planning import Better, Gains
from archgrad.tasks.systems import System

LOAD = """import torch, safetensors.torch
dynamics = torch.export.load("network.pt2").module()    # needs torch alone: (states [B, n], actions [B, m]) to states
control = safetensors.torch.load_file("control.safetensors")    # states [T, n], actions [T, m], feedback [T, m, n]
# action at step t in state x:  actions[t] + feedback[t] @ (x - states[t]), clipped
"""


def piloted(
    dynamics: Dynamics,
    architecture: Architecture,
    system: System,
    run: Run,
    *,
    best: Better,
    gains: Gains,
    costs: Sequence[tuple[int, float]],
    record: Mapping[str, Any],
    rollouts: int,
) -> Found:
    """Record what control reached, and write it where the run has a folder: control.safetensors besides.

    Args:
        dynamics: the network with its scale.
        architecture: of the inner network.
        system: what was controlled.
        run: begun; it is finished here.
        best: the trajectory, as measured.
        gains: feedback around it.
        costs: (real rollouts, J) after each step.
        record: what the method adds to the report.
        rollouts: real ones in all.
    """
    network = build(dynamics, Architecture({})).cpu().eval()
    around = best.trajectory
    after = {
        "score": -best.cost, "cost": best.cost, "cost_at_first": costs[0][1], "rollouts": rollouts,
        "params": params().of(network),
    }  # fmt: skip
    full = {
        "after": after,
        "control": {
            "states": around.states.tolist(), "actions": around.actions.tolist(), "low": system.low.tolist(),
            "high": system.high.tolist(), "costs": [list(one) for one in costs],
        },
        "run": {"seed": run.seed, "trials": run.trials, "seconds": run.seconds},
        "versions": {"torch": torch.__version__},
        "device": str(run.device),
        "notes": list(run.notes),
        "load": LOAD,
        **record,
    }  # fmt: skip
    example = (around.states[:1].float(), around.actions[:1].float())
    found = Found(
        architecture, network, -best.cost, {"params": after["params"], "rollouts": rollouts}, run.history, full, example
    )  # fmt: skip
    if run.folder and run.rank == 0:
        found.save(run.folder)
        tensors = {"states": around.states, "actions": around.actions, "feedback": gains.feedback}
        safetensors.torch.save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, str(run.folder / "control.safetensors")
        )
    run.finish()
    return found
