"""DNAL: slim a network by one deterministic gate per channel.

Paper: Guo, Wu, Kittler, Feng, "Differentiable neural architecture learning for efficient neural network design",
arXiv 2103.02126, Pattern Recognition 126:108448 (2022). Implemented, L being the task's loss:

    stage 1   w* = argmin_w  L(w)                                              gates open
    stage 2   s* = argmin_s  L(w*, g(s; scale_k)) + lambda * sum sigmoid(s),   scale_k: 1 -> 1e4 over K epochs
    derive    keep the channels with sigmoid(1e4 * s) > 0.9
    stage 3   w  = argmin_w  L(w)                                              without the other channels

What the paper leaves open, or its code does otherwise, and what is done here:
- lambda only means something together with the number of gate steps: given as `sparsity` = lambda x steps
  (published ImageNet runs: 2.5 to 10, worked out from the authors' scripts).
- CIFAR schedules were not published. Learning rates follow half a cosine in stages 1 and 3.
- All weights rest in stage 2; the authors' code lets fully connected layers go on training.
- Gates of a residual sum are shared and channels are removed exactly; a block may lose its whole branch.
- No layer dies unless a skip replaces it. The gradient of the gates is clipped at norm 1, since its factor
  `scale` reaches 1e4. BatchNorm is recalibrated before anything is scored.

Ours: `limit`. The sum is replaced by a pressure along kappa, the cost of each channel, that keeps the expected cost
at the limit (see `GateOptimizer`); the gates' learning rate is 0.1 instead of 0.01, or the pressure drowns the task's
gradient; what is derived is the largest architecture under the limit in the order of s. Measured latency is
searched through MACs as its surrogate, and decided on the clock. Ours: `joint`, weights go on training in stage 2,
under one learning-rate schedule for all stages.

Checked against: the closed forms, the drift law and the separable problem, in the tests.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from archgrad.choices.access import logits, relax
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.relaxations import ScaledSigmoid
from archgrad.costs.count import macs
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError
from archgrad.extract.discretize import build
from archgrad.gates.gate_optimizer import GateOptimizer, entry_logits
from archgrad.gates.selection import GateConstraint, WidthRounding, above, gates, undone, uniform, whole
from archgrad.results.record import heading
from archgrad.results.result import Found, assemble
from archgrad.run.run import Run
from archgrad.supernets.lifecycle import predict_peak_memory
from archgrad.tasks.classification import Classification
from archgrad.training.fit import optimize, recalibrate
from archgrad.training.recipe import OptimizerFactory, Recipe, sgd
from archgrad.training.schedules import Schedule, consecutive, constant, cosine

SCALE = (1.0, 1e4)
# A gate is open where sigmoid(1e4 * s) > 0.9, that is s > ln(9) / 1e4.
UNDECIDED = math.log(0.9 / (1.0 - 0.9)) / SCALE[1]
RATE, RATE_UNDER_LIMIT = 0.01, 0.1
# Under a limit no layer keeps less than this part of the width that uniform scaling would leave it.
FLOOR = 0.5


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
    optimizer: OptimizerFactory = sgd,
) -> Found:
    """Slim a network to its useful channels, under a limit if one is given; the algorithm is on top of this file.

    Args:
        space: a network with gates, from `archgrad.slim`; it is not changed.
        task: what it is trained and scored on; its test part is read once, at the end.
        run: epochs of all stages together (default 60), seed, folder, device.
        limit: for instance `archgrad.macs(x).at_most(fraction=0.5)`.
        sparsity: lambda x number of gate steps; without a limit.
        reg: "count", the published sum of sigmoid(s), or "scaled", the sum of sigmoid(scale * s).
        pretrained: the space holds trained weights: stage 1 is skipped.
        joint: ours: weights go on training in stage 2, in the same backward pass.
        gate_epochs: K; default a sixth of all epochs, at most 10 (with `joint` a half).
        round_to: widths are multiples of this; default 8, less for narrow layers; 1 for any width.
        optimizer: from weights to their optimizer.

    Raises:
        LimitError: no network of the space meets the limit; the message says the lowest reachable.
        NonFiniteError: the loss became NaN or infinite.
    """
    rounding = WidthRounding(round_to)
    gates(space)  # a space of anything else is refused
    task.check(space)
    constraint = GateConstraint(space, limit, rounding) if limit else None
    settings = {
        "limit": limit and {"cost": limit.cost.name, "bound": limit.bound, "fraction": limit.fraction},
        "sparsity": sparsity, "reg": reg, "pretrained": pretrained, "joint": joint, "gate_epochs": gate_epochs,
        "round_to": round_to,
    }  # fmt: skip
    first, second, third = _stages(run, task, settings)
    run.begin("dnal", settings)
    space = copy.deepcopy(space).to(run.device)

    predict_peak_memory(space, task, run, optimizer=optimizer)
    rates = consecutive(cosine, first, second, third) if joint else (cosine, constant, cosine)

    _train(space, task, run, make=optimizer, steps=first, phase="weights", schedule=rates[0])
    before = build(space, whole(space))
    _decide(
        space, task, run, make=optimizer, steps=second, constraint=constraint, settings=settings, schedule=rates[1]
    )
    architecture = _derived(space, run, constraint=constraint, rounding=rounding)
    network = build(space, architecture)
    recalibrate(network, task, run)
    run.log({f"derived_{name}": value for name, value in task.evaluate(network).items()})
    _train(network, task, run, make=optimizer, steps=third, phase="finetune", schedule=rates[2])

    networks = {"before": before, "after": network}
    record = heading(dnal, settings, f"{type(space).__name__} slimmed by DNAL")
    record["limit"] = constraint and constraint.record(network)
    found = assemble(space, architecture, networks, task=task, run=run, example=task.example, record=record)
    run.finish()
    return found


def _train(
    network: nn.Module,
    task: Classification,
    run: Run,
    *,
    make: OptimizerFactory,
    steps: int,
    phase: str,
    schedule: Schedule,
) -> None:
    """Stages 1 and 3."""
    if steps:
        optimizer = Recipe(optimizer_factory=make).optimizer(network)
        run.register_state(network=network, optimizer=optimizer)
        optimize(
            network, task, run, optimizer=optimizer, steps=steps, phase=phase, schedule=schedule, time_fraction=0.4
        )


def _decide(
    space: nn.Module,
    task: Classification,
    run: Run,
    *,
    make: OptimizerFactory,
    steps: int,
    constraint: GateConstraint | None,
    settings: dict[str, Any],
    schedule: Schedule,
) -> None:
    """Stage 2."""
    relax(space, ScaledSigmoid)
    scaled = settings["reg"] == "scaled"
    gate_optimizer = GateOptimizer(space, task, strength=settings["sparsity"] / steps, scaled=scaled, scale=SCALE)
    if constraint:
        gate_optimizer.set_target(*_counted(constraint, task, run))
    rate = RATE_UNDER_LIMIT if constraint else RATE
    group = {"params": logits(space), "lr": rate, "weight_decay": 0.0, "clip": 1.0, "steady": True}
    optimizer: Optimizer = torch.optim.SGD([group], momentum=0.9)
    if settings["joint"]:
        for one in _sgd_groups(Recipe(optimizer_factory=make).optimizer(space)):
            optimizer.add_param_group(one)
    run.register_state(space=space, optimizer=optimizer, gate_optimizer=gate_optimizer)
    epochs = math.ceil(steps / task.steps_per_epoch)
    optimize(
        space, task, run, optimizer=optimizer, steps=steps, phase="gates", objective=gate_optimizer.objective,
        schedule=schedule, time_fraction=0.2, on_step=gate_optimizer.project,
        on_epoch=lambda epoch: gate_optimizer.on_epoch(epoch, of=epochs, optimizer=optimizer),
    )  # fmt: skip


def _sgd_groups(made: Optimizer) -> list[dict[str, Any]]:
    if not isinstance(made, torch.optim.SGD):
        raise ConfigError(
            f"joint=True trains weights and gates in one SGD, and optimizer= gives a {type(made).__name__}; give an "
            f"SGD, such as functools.partial(archgrad.sgd, learning_rate=0.01), or leave joint out"
        )
    return made.param_groups


def _derived(
    space: nn.Module, run: Run, *, constraint: GateConstraint | None, rounding: WidthRounding
) -> Architecture:
    """What stays: all gates above the threshold, or the largest set under the limit in the order of s."""

    def picks() -> dict[str, Pick]:
        scores = entry_logits(space)
        if constraint is None:
            return dict(above(space, scores, UNDECIDED, rounding))
        return dict(constraint.largest(scores, floor=FLOOR * constraint.width()))

    # Remembered, since a measured limit may decide otherwise when the clock is read again.
    remembered = run.compute_once("architecture", picks)
    architecture = Architecture({name: tuple(pick) for name, pick in remembered.items()})
    exact = above(space, entry_logits(space), UNDECIDED, WidthRounding(1))
    if whole_again := undone(space, architecture, exact):
        run.note(
            f"rounding widths left {len(whole_again)} layers whole that were to be cut "
            f"({', '.join(whole_again[:5])}); round_to=1 cuts them, at the price of widths that hardware likes less"
        )
    return architecture


def _stages(run: Run, task: Classification, settings: dict[str, Any]) -> tuple[int, int, int]:
    """Steps of the three stages; together they are the run's constraint."""
    per_epoch, epochs = task.steps_per_epoch, settings["gate_epochs"]
    total = run.total_steps(per_epoch, default_epochs=60)
    default = total // 2 if settings["joint"] else min(10 * per_epoch, max(total // 6, 1))
    second = default if epochs is None else epochs * per_epoch
    if not 0 < second < total:
        raise ConfigError(
            f"{second} gate steps of {total} steps in all: give gate_epochs from 1 to "
            f"{max((total - 1) // per_epoch, 1)}, or a larger budget (epochs or steps of the Run)"
        )
    first = 0 if settings["pretrained"] else int(0.3 * (total - second))
    return first, second, total - first - second


def _counted(constraint: GateConstraint, task: Classification, run: Run) -> tuple[GateConstraint, float]:
    """A budget whose expected cost has a gradient, and where to keep that; MACs stand in for a measured cost."""
    if constraint.counter is not None:
        return constraint, constraint.bound
    surrogate = GateConstraint(constraint.space, macs(task.example).at_most(fraction=1.0), constraint.rounding)
    bound = run.compute_once(
        "macs_for_the_limit", lambda: surrogate.of(uniform(constraint.space, constraint.width(), constraint.rounding))
    )
    return surrogate, bound
