"""Steering scaled-sigmoid gates: their objective, the growing scale, and the pressure of a limit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from archgrad.choices.relaxations import ScaledSigmoid, TwoTemperature
from archgrad.gates.selection import GateConstraint, gates
from archgrad.tasks.task import Batch, Task
from archgrad.training.schedules import geometric

FARTHEST = 1e6  # no limit lies farther, in logits
STEPS = 8  # of bisection: the expected cost ends within a fraction of a percent of the bound


class GateOptimizer:
    """What happens to a space's gates around each step of their optimizer.

    Without a limit the objective is the task's loss + strength * sum of sigmoid(s), s the logits of all gates
    (sigmoid(scale * s) if `scaled`). Under a limit it is the loss alone, and after each step all logits move
    along kappa, the cost of each entry with everything open, until the expected cost is where the limit wants it:

        s <- s + nu * kappa,   nu such that cost(sigmoid(scale * s)) = bound

    which is found by bisection, since the cost grows with nu. It is the step that the Lagrange multiplier of
    "expected cost = bound" takes.

    Args:
        space: relaxed with `ScaledSigmoid`.
        task: its loss is the objective.
        strength: lambda.
        scaled: which regularizer.
        scale: first and last value of the gates' scale.
    """

    def __init__(
        self, space: nn.Module, task: Task, *, strength: float, scaled: bool, scale: tuple[float, float]
    ) -> None:
        self.relaxations: list[ScaledSigmoid] = []
        for gate in gates(space).values():
            assert isinstance(gate.relaxation, ScaledSigmoid)
            self.relaxations.append(gate.relaxation)
        self.task, self.strength, self.scaled, self.scale = task, strength, scaled, scale
        self.constraint: GateConstraint | None = None
        self.bound = 0.0
        self.kappa = torch.zeros(0)
        self.was_open = torch.zeros(0, dtype=torch.bool)

    def set_target(self, constraint: GateConstraint, bound: float) -> None:
        """From now on, keep the expected cost at `bound`; the budget's cost has to be a counted one."""
        self.constraint, self.bound = constraint, bound
        entries = torch.ones(sum(r.logits.numel() for r in self.relaxations), dtype=torch.float64)
        (kappa,) = torch.autograd.grad(self._cost(entries.requires_grad_()), entries)
        self.kappa = kappa / kappa.mean()

    def objective(self, network: nn.Module, batch: Batch) -> Tensor:
        """The task's loss and, without a limit, the regularizer."""
        loss = self.task.loss(network, batch)
        if self.constraint is not None:
            return loss
        s = self._logits() * self.relaxations[0].scale if self.scaled else self._logits()
        return loss + self.strength * s.sigmoid().sum()

    def on_epoch(self, epoch: int, *, of: int, optimizer: Optimizer) -> dict[str, float]:
        """Before each epoch: the next scale, and momentum afresh; returns what the history shows."""
        scale = geometric(*self.scale, step=epoch, of=of)
        for relaxation in self.relaxations:
            relaxation.scale.fill_(scale)
            optimizer.state.pop(relaxation.logits, None)
        now = self._logits().detach().cpu() > 0
        flips = int((now != self.was_open).sum()) if len(self.was_open) else 0
        self.was_open = now
        figures = {"scale": scale, "flips": float(flips), "open_gates": float(now.sum())}
        if self.constraint is not None:
            figures[f"expected_{self.constraint.cost.name}"] = float(self._cost(now.double()))
        return figures

    def project(self, step: int) -> None:
        """After each gate step: move all logits along kappa towards the limit."""
        if self.constraint is None:
            return
        s, scale = self._logits().detach().cpu().double(), float(self.relaxations[0].scale)

        def over(nu: float) -> bool:
            return float(self._cost(torch.sigmoid(scale * (s + nu * self.kappa)))) > self.bound

        with torch.no_grad():
            # Outwards from no move at all until the root lies between two points, then inwards.
            near, far, high = 0.0, 0.1 / scale, over(0.0)
            far = -far if high else far
            while over(far) == high and abs(far) < FARTHEST:
                near, far = far, 4.0 * far
            low, top = min(near, far), max(near, far)
            for _ in range(STEPS):
                middle = (low + top) / 2
                low, top = (low, middle) if over(middle) else (middle, top)
            sizes = [r.logits.numel() for r in self.relaxations]
            for relaxation, part in zip(self.relaxations, torch.split(low * self.kappa, sizes), strict=True):
                relaxation.logits.add_(part.to(relaxation.logits))

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs beyond the logits and scales, which the space keeps."""
        return {"was_open": self.was_open}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.was_open = state["was_open"]

    def _cost(self, mixing: Tensor) -> Tensor:
        assert self.constraint is not None and self.constraint.counter is not None
        return self.constraint.counter.at(mixing)

    def _logits(self) -> Tensor:
        return torch.cat([r.logits for r in self.relaxations])


def entry_logits(space: nn.Module) -> dict[str, Tensor]:
    """For each gate its logits, [entries], detached and on the CPU."""
    found = {}
    for name, gate in gates(space).items():
        assert isinstance(gate.relaxation, ScaledSigmoid | TwoTemperature)
        found[name] = gate.relaxation.logits.detach().cpu()
    return found
