"""The optimization of scaled-sigmoid gates: their objective, their growing scale, and the limit that they keep."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from archgrad.choices.access import logits
from archgrad.choices.architecture import Architecture
from archgrad.choices.relaxations import ScaledSigmoid, TwoTemperature
from archgrad.gates.selection import GateConstraint, gates, uniform
from archgrad.gates.width_rounding import WidthRounding
from archgrad.tasks.task import Batch, Task
from archgrad.training.schedules import geometric

SCALE = (1.0, 1e4)  # first and last, of the gates
SPREAD = 0.2  # of the logits at the beginning, under a limit
# Logits that begin spread over 0.2 need no softer gates, and are decided at no harder ones.
SCALE_UNDER_LIMIT, ROUNDS_UNDER_LIMIT = (10.0, 400.0), 4  # of the gates, and in how many rounds it grows
RATE = 0.01  # of the logits, as published
RATE_UNDER_LIMIT = 0.1  # at the published rate the pressure drowns the task's gradient
_FARTHEST = 1e6  # no limit needs a larger move, in logits
_NARROWER = 0.75  # of its width a layer would keep at most without rounding; a step more or less is no news
_BISECTIONS = 8  # the expected cost ends within a fraction of a percent of the bound


class GateOptimizer:
    """What happens to a space's gates around each step of their torch optimizer.

    Without a limit the objective is the task's loss + strength * sum of sigmoid(s), s the logits of all gates
    (sigmoid(scale * s) if `scaled`). Under a limit it is the loss alone, and after each step, and where the scale
    has grown, all logits move alike until the expected cost is at the bound:

        s <- s + nu,   nu such that cost(sigmoid(scale * s)) = bound

    Bisection finds nu, since the cost grows with it. It is the published regularizer with a lambda that is chosen
    anew in each step: near s = 0 the sum of sigmoid(s) has the same slope for every entry. The defaults are those
    under a limit.

    Args:
        space: relaxed with `ScaledSigmoid`.
        task: its loss is the objective; None where the loss is computed elsewhere.
        strength: lambda.
        scaled: which regularizer.
        scale: first and last value of the gates' scale.
        rounds: in how many steps it grows, each after an equal part of the phase.
    """

    def __init__(
        self,
        space: nn.Module,
        task: Task | None,
        *,
        strength: float = 0.0,
        scaled: bool = False,
        scale: tuple[float, float] = SCALE_UNDER_LIMIT,
        rounds: int = ROUNDS_UNDER_LIMIT,
    ) -> None:
        self.relaxations: list[ScaledSigmoid] = []
        for gate in gates(space).values():
            assert isinstance(gate.relaxation, ScaledSigmoid)
            self.relaxations.append(gate.relaxation)
        self.task, self.strength, self.scaled, self.scale, self.rounds = task, strength, scaled, scale, rounds
        self.constraint: GateConstraint | None = None
        self.bound = 0.0
        self.was_open = torch.zeros(0, dtype=torch.bool)
        self.rounds_begun = 0

    def __repr__(self) -> str:
        return f"<GateOptimizer, {len(self.relaxations)} gates, strength {self.strength:g}>"

    def set_target(self, constraint: GateConstraint, bound: float) -> None:
        """From now on, keep the expected cost at `bound`; the constraint's cost has to be counted, not measured."""
        self.constraint, self.bound = constraint, bound

    def objective(self, network: nn.Module, batch: Batch) -> Tensor:
        """The task's loss and, without a limit, the regularizer."""
        assert self.task is not None
        loss = self.task.loss(network, batch)
        if self.constraint is not None:
            return loss
        s = self._logits() * self.relaxations[0].scale if self.scaled else self._logits()
        return loss + self.strength * s.sigmoid().sum()

    def grow_scale(self, step: int, progress: float, *, optimizer: Optimizer) -> dict[str, float]:
        """Before each step: where a round begins, set its scale, clear the logits' momentum and keep the limit.

        Round k of K begins at progress k / K, with the scale first * (last / first)^((k + 1) / K).

        Args:
            step: not used.
            progress: through the phase, in [0, 1).
            optimizer: of the logits.

        Returns:
            Figures to log; none inside a round.
        """
        # A step that lies on the boundary belongs to the next round, whatever rounding did to its progress.
        begun = min(int(progress * self.rounds + 1e-9) + 1, self.rounds)
        if begun <= self.rounds_begun:
            return {}
        self.rounds_begun = begun
        scale = geometric(*self.scale, step=begun - 1, of=self.rounds)
        for relaxation in self.relaxations:
            relaxation.scale.fill_(scale)
            optimizer.state.pop(relaxation.logits, None)
        logits = self._logits().detach().cpu()
        # Before the first round nothing is decided: logits of 0 stand for the whole network.
        is_open = logits > 0 if len(self.was_open) else logits >= 0
        flips = int((is_open != self.was_open).sum()) if len(self.was_open) else 0
        self.was_open = is_open
        figures = {"scale": scale, "flips": float(flips), "open_gates": float(is_open.sum())}
        if self.constraint is not None:
            figures[f"expected_{self.constraint.name}"] = float(self._cost(is_open.double()))
            # At another scale the same logits cost something else: at a larger one next to nothing.
            self._move_onto_the_bound(logits.double(), float(torch.tensor(scale)))  # as the gates hold it
        return figures

    def project(self, step: int) -> None:
        """Move all logits alike until the expected cost is at the bound.

        Where even open gates stay under it, the limit asks for nothing, and nothing is moved.
        """
        if self.constraint is None:
            return
        # One transfer for both, since an accelerator is waited for.
        *entries, scale = torch.cat([self._logits(), self.relaxations[0].scale.view(1)]).tolist()
        self._move_onto_the_bound(torch.tensor(entries, dtype=torch.float64), scale)

    def _move_onto_the_bound(self, s: Tensor, scale: float) -> None:
        """Move the logits, of which `s` is a copy on the CPU, at the scale that the gates have."""

        def is_over(nu: float) -> bool:
            return float(self._cost(torch.sigmoid(scale * (s + nu)))) > self.bound

        with torch.no_grad():
            # Outwards from no move at all until the root lies between two points, then inwards.
            near, far, over = 0.0, 0.1 / scale, is_over(0.0)
            far = -far if over else far
            while is_over(far) == over and abs(far) < _FARTHEST:
                near, far = far, 4.0 * far
            if not over and not is_over(far):
                return
            low, high = min(near, far), max(near, far)
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                low, high = (low, middle) if is_over(middle) else (middle, high)
            for relaxation in self.relaxations:
                relaxation.logits.add_(low)

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs beyond the logits and scales, which the space keeps."""
        return {"was_open": self.was_open, "rounds_begun": self.rounds_begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.was_open, self.rounds_begun = state["was_open"], state["rounds_begun"]

    def _cost(self, mixing: Tensor) -> Tensor:
        assert self.constraint is not None
        return self.constraint.expected(mixing)

    def _logits(self) -> Tensor:
        return torch.cat([r.logits for r in self.relaxations])


def published_logit_optimizer(space: nn.Module) -> torch.optim.SGD:
    """The optimizer of the gates' logits without a limit: SGD with momentum, at a steady rate."""
    group = {"params": logits(space), "lr": RATE, "weight_decay": 0.0, "steady": True}
    return torch.optim.SGD([group], momentum=0.9)


def limited_logit_optimizer(space: nn.Module, learning_rate: float = RATE_UNDER_LIMIT) -> torch.optim.SGD:
    """The optimizer of the gates' logits under a limit: SGD with momentum, at a steady rate, on changed gradients.

    From the gradient of each gate of several entries its mean is taken off. That mean asks for another scale of the
    whole layer: BatchNorm behind its reader takes it away, so that it is 0 there, while a layer that the classifier
    reads would grow at the expense of all others. Then the gradient of all logits is clipped at norm 1, since its
    factor, the scale, reaches 400.
    """
    rows = logits(space)
    group = {"params": rows, "lr": learning_rate, "weight_decay": 0.0, "steady": True}
    optimizer = torch.optim.SGD([group], momentum=0.9)
    optimizer.register_step_pre_hook(functools.partial(_center_and_clip, rows))
    return optimizer


def _center_and_clip(rows: list[nn.Parameter], *hooked: object) -> None:
    for row in rows:
        if row.grad is not None and row.numel() > 1:
            row.grad = row.grad - row.grad.mean()
    nn.utils.clip_grad_norm_(rows, 1.0)


def stand_in(constraint: GateConstraint, counted: GateConstraint) -> float:
    """The counted cost of the widest uniform widths that keep a constraint on a measured cost."""
    return counted.price(uniform(constraint.space, constraint.uniform_width(), constraint.rounding))


def entry_logits(space: nn.Module) -> dict[str, Tensor]:
    """For each gate its logits, [entries], detached and on the CPU."""
    logits = {}
    for name, gate in gates(space).items():
        assert isinstance(gate.relaxation, ScaledSigmoid | TwoTemperature)
        logits[name] = gate.relaxation.logits.detach().cpu()
    return logits


def left_full(space: nn.Module, rounded: Architecture, exact: Architecture, rounding: WidthRounding) -> list[str]:
    """The gates that rounding left full, and that would lose a good part of their entries without it."""
    return [
        name for name, gate in gates(space).items()
        if rounding.step(gate) > 1 and len(rounded[name]) == gate.size  # type: ignore[arg-type]
        and len(exact[name]) <= _NARROWER * gate.size  # type: ignore[arg-type]
    ]  # fmt: skip
