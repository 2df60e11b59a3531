"""DNAL: slim a network by one deterministic gate per channel.

Paper: Guo, Wu, Kittler, Feng, "Differentiable neural architecture learning for efficient neural network design",
arXiv 2103.02126, Pattern Recognition 126:108448 (2022).

Implemented: the three stages (weights; gates by a scaled sigmoid whose scale grows geometrically; weights of the
slimmed network), the regulariser on the unscaled sigmoid, threshold 0.9, decoupled weight and gate steps, the
optimiser of the gates made anew each epoch.

What the paper leaves open, or its code does otherwise, and what is done here:
- The regulariser's weight only means something together with the number of gate steps: given as
  `sparsity` = weight x steps (published ImageNet runs: 2.5 to 10).
- CIFAR schedules were not published. Learning rates follow half a cosine in stages 1 and 3.
- All weights rest in stage 2; the authors' code lets fully connected layers go on training.
- Gates of a residual sum are shared and channels are removed exactly; a block may lose its whole branch.
- No layer dies unless a skip replaces it. The gradient of the gates is clipped at norm 1, since its factor
  `scale` reaches 1e4. BatchNorm is recalibrated before anything is scored.
- `limit`, `joint` and `distil` are ours: see `dnal`.

Checked against: the closed forms, the drift law and the separable problem in the tests.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from archgrad.choices.access import logits, relax, weights
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.relaxations import ScaledSigmoid
from archgrad.costs.count import macs
from archgrad.costs.limits import Limit
from archgrad.derive.discretise import build
from archgrad.errors import ConfigError
from archgrad.search.fit import MakeOptimiser, cosine, descend, recalibrate, sgd
from archgrad.search.found import Found, assemble
from archgrad.search.run import Run
from archgrad.search.schedules import geometric
from archgrad.search.selection import Budget, Rounded, above, gates
from archgrad.spaces.slim import frozen
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Batch

SCALE = (1.0, 1e4)
# A gate is open where sigmoid(1e4 * s) > 0.9, that is s > ln(9) / 1e4.
UNDECIDED = math.log(0.9 / (1.0 - 0.9)) / SCALE[1]
# With a limit, s moves at most this far a step at scale 1, and less as the scale grows.
MOVE = 0.05


def dnal(
    space: nn.Module,
    task: Classification,
    run: Run,
    *,
    limit: Limit | None = None,
    sparsity: float = 3.0,
    reg: Literal["count", "scaled"] = "count",
    pretrained: bool = False,
    joint: bool = False,
    gate_epochs: int | None = None,
    round_to: int | None = None,
    optimiser: MakeOptimiser | None = None,
) -> Found:
    """Slim a network to its useful channels, under a limit if one is given.

        stage 1   w* = argmin_w  L(w)                                         gates open
        stage 2   s* = argmin_s  L(w*, g(s; scale_k)) + lambda * sum sigmoid(s),   scale_k = 1 -> 1e4 over K epochs
        derive    keep what sigmoid(1e4 * s) > 0.9
        stage 3   w  = argmin_w  L(w), on the network without the closed channels

    With a limit, the sum is replaced by a pressure along kappa, the cost of each channel: after each gate step
    all s move along kappa until the expected cost, at the present scale, equals the limit (one Newton step of the
    Lagrange multiplier), and the derived architecture is the largest under the limit in the order of s.

    Args:
        space: a network with gates, from `archgrad.slim`; it is not changed.
        task: what it is trained and scored on; its test part is read once, at the end.
        run: epochs of all stages together (default 60), seed, folder, device.
        limit: for instance `archgrad.macs(x).at_most(fraction=0.5)`; measured latency is searched through MACs
            as its surrogate, and checked on the clock.
        sparsity: lambda x number of gate steps, without a limit.
        reg: "count", the published sum of sigmoid(s); "scaled", the sum of sigmoid(scale * s).
        pretrained: the space holds trained weights: stage 1 is skipped.
        joint: ours: weights go on training in stage 2, in the same backward pass.
        gate_epochs: K; default a sixth of all epochs, at most 10 (with `joint` a half).
        round_to: widths are multiples of this; default 8, less for narrow layers; 1 for any width.
        optimiser: of the weights; default `sgd()`.

    Returns:
        The slimmed network, fine-tuned, with its report.

    Raises:
        LimitError: no network of the space meets the limit; the message says the lowest reachable.
        NonFiniteError: the loss became NaN or infinite.

    Source: DNAL (arXiv 2103.02126), sections on the scaled sigmoid and the three stages.
    """
    rounded = Rounded(round_to)
    full = {name: tuple(range(gate.size)) for name, gate in gates(space).items()}
    task.check(space)
    budget = Budget(space, limit, rounded) if limit else None
    settings = {
        "limit": limit and {"cost": limit.cost.name, "bound": limit.bound, "fraction": limit.fraction},
        "sparsity": sparsity, "reg": reg, "pretrained": pretrained, "joint": joint, "gate_epochs": gate_epochs,
        "round_to": round_to,
    }  # fmt: skip
    run.begin("dnal", settings)
    space = copy.deepcopy(space).to(run.device)
    make = optimiser or sgd()
    first, second, third = _stages(run, task, pretrained=pretrained, joint=joint, gate_epochs=gate_epochs)

    if first:
        trained = make(space.parameters())
        run.keep(space=space, optimiser=trained)
        descend(space, task, run, optimiser=trained, steps=first, phase="weights", schedule=cosine, share=0.3)
    before = build(space, Architecture(full))

    relax(space, ScaledSigmoid)
    stage = _Gates(space, task, strength=sparsity / second, reg=reg)
    if budget:
        stage.aim(*_counted(budget, task, run))
    group = {"params": logits(space), "lr": 0.01, "weight_decay": 0.0, "clip": 1.0, "steady": True}
    gating = torch.optim.SGD([group], momentum=0.9)
    if joint:
        gating.add_param_group(make(weights(space)).param_groups[0])
    run.keep(space=space, optimiser=gating, gates=stage)
    descend(
        space, task, run, optimiser=gating, steps=second, phase="gates", objective=stage.objective, share=0.2,
        schedule=cosine, each_step=stage.press,
        each_epoch=lambda epoch: stage.turn(epoch, math.ceil(second / task.steps_per_epoch), gating),
    )  # fmt: skip

    def derived() -> dict[str, Pick]:
        scores = {n: g.relaxation.logits.detach().cpu() for n, g in gates(space).items()}
        return dict(budget.largest(scores) if budget else above(space, scores, UNDECIDED, rounded))

    # Remembered, since a measured limit may decide otherwise when the clock is read again.
    picks = run.remember("architecture", derived)
    architecture = Architecture({n: tuple(p) for n, p in picks.items()})
    network = build(space, architecture)
    recalibrate(network, task, run)
    run.log({f"derived_{name}": value for name, value in task.evaluate(network).items()})

    tuned = make(network.parameters())
    run.keep(network=network, optimiser=tuned)
    descend(network, task, run, optimiser=tuned, steps=third, phase="finetune", schedule=cosine, share=0.5)
    found = assemble(
        space, architecture, {"before": before, "after": network}, task=task, run=run, example=task.example,
        record=_record(space, budget, network, settings),
    )  # fmt: skip
    run.finish()
    return found


class _Gates:
    """Stage 2: the gates' objective, the growing scale, and the pressure of a limit."""

    def __init__(self, space: nn.Module, task: Classification, *, strength: float, reg: str) -> None:
        self.task, self.strength, self.reg = task, strength, reg
        self.relaxations = [gate.relaxation for gate in gates(space).values()]
        self.budget: Budget | None = None
        self.fraction = 1.0
        self.was_open = torch.zeros(0, dtype=torch.bool)

    def aim(self, budget: Budget, fraction: float) -> None:
        """From now on, keep the expected cost at this fraction of the full one."""
        self.budget, self.fraction = budget, fraction
        ones = torch.ones(sum(r.logits.numel() for r in self.relaxations), dtype=torch.float64, requires_grad=True)
        (kappa,) = torch.autograd.grad(self._cost(ones), ones)
        self.kappa = kappa / kappa.mean()

    def objective(self, network: nn.Module, batch: Batch) -> Tensor:
        """The task's loss and, without a limit, the published regulariser."""
        loss = self.task.loss(network, batch)
        if self.budget is not None:
            return loss
        scale = self.relaxations[0].scale if self.reg == "scaled" else 1.0
        return loss + self.strength * (scale * self._logits()).sigmoid().sum()

    def turn(self, epoch: int, of: int, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        """Before each epoch: the next scale, momentum afresh; returns what the history shows."""
        scale = geometric(*SCALE, step=epoch, of=of)
        for relaxation in self.relaxations:
            relaxation.scale.fill_(scale)
            optimiser.state.pop(relaxation.logits, None)
        now = self._logits().detach().cpu() > 0
        flips = int((now != self.was_open).sum()) if len(self.was_open) else 0
        self.was_open = now
        cost = {} if self.budget is None else {f"expected_{self.budget.cost.name}": self._cost(now.double())}
        return {"scale": scale, "flips": flips, "open_gates": int(now.sum()), **cost}

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs beyond the logits and scales, which the space keeps."""
        return {"was_open": self.was_open}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.was_open = state["was_open"]

    def press(self, step: int) -> None:
        """After each gate step: move all s along kappa until the expected cost is at the limit."""
        if self.budget is None:
            return
        s = self._logits().detach().cpu().double().requires_grad_()
        scale = float(self.relaxations[0].scale)
        cost = self._cost(torch.sigmoid(scale * s)) / self.budget.reference
        (slope,) = torch.autograd.grad(cost, s)
        along = float(slope @ self.kappa)
        wanted = (self.fraction - float(cost.detach())) / max(along, 1e-12)
        move = max(-MOVE / scale, min(MOVE / scale, wanted)) * self.kappa
        with torch.no_grad():
            for relaxation, part in zip(self.relaxations, move.split([r.logits.numel() for r in self.relaxations]), strict=True):
                relaxation.logits += part.to(relaxation.logits)

    def _cost(self, mixing: Tensor) -> Tensor:
        assert self.budget is not None and self.budget.counter is not None
        return self.budget.counter.at(mixing)

    def _logits(self) -> Tensor:
        return torch.cat([r.logits for r in self.relaxations])


def _stages(run: Run, task: Classification, *, pretrained: bool, joint: bool, gate_epochs: int | None) -> tuple[int, int, int]:
    """Steps of the three stages; together they are the run's budget."""
    per_epoch = task.steps_per_epoch
    total = run.total_steps(per_epoch, default_epochs=60)
    default = total // 2 if joint else min(10 * per_epoch, max(total // 6, 1))
    second = default if gate_epochs is None else gate_epochs * per_epoch
    if not 0 < second < total:
        raise ConfigError(
            f"{second} gate steps of {total} steps in all: give gate_epochs from 1 to {max(total // per_epoch - 1, 1)}, "
            f"or a larger budget (epochs or steps of the Run)"
        )
    first = 0 if pretrained else int(0.3 * (total - second))
    return first, second, total - first - second


def _counted(budget: Budget, task: Classification, run: Run) -> tuple[Budget, float]:
    """The budget whose expected cost has a gradient, and the fraction to aim at."""
    if budget.counter is not None:
        return budget, budget.bound / budget.reference
    surrogate = macs(task.example).at_most(fraction=1.0)
    fraction = run.remember("macs_for_the_limit", lambda: budget.as_counted_fraction(surrogate))
    return Budget(budget.space, surrogate, budget.rounded), fraction


def _record(space: nn.Module, budget: Budget | None, network: nn.Module, settings: dict[str, Any]) -> dict[str, Any]:
    limit = None
    if budget:
        cost = budget.cost
        limit = {"cost": cost.name, "unit": cost.unit, "bound": budget.bound, "reached": cost.of(network)}
    return {
        "method": "dnal",
        "title": f"{type(space).__name__} slimmed by DNAL",
        "settings": settings,
        "limit": limit,
        "frozen": [{"name": n, "reason": r} for n, r in frozen(space).items()],
    }
