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
- Under a budget in seconds, scale_k grows after each tenth of the time of stage 2.

Ours: `limit`. The sum is replaced by a pressure along kappa, the cost of each channel, that keeps the expected cost
at the limit (see `GateOptimizer`). The gates' learning rate is 0.1 instead of 0.01, since at 0.01 the pressure drowns
the task's gradient. What is derived is the largest architecture under the limit in the order of s. For a measured
cost, MACs are the surrogate in the search, and a measurement decides. Ours: `joint`, weights go on training in
stage 2, under one learning-rate schedule for all stages.

Checked against: the closed forms, the drift law and the separable problem, in the tests.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from archgrad.choices.access import relax
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.relaxations import ScaledSigmoid
from archgrad.copy_and_run import copied
from archgrad.costs.count import macs
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError
from archgrad.extract.discretize import build
from archgrad.gates.gate_optimizer import (
    RATE_UNDER_LIMIT,
    SCALE,
    GateOptimizer,
    entry_logits,
    logit_optimizer,
    stand_in,
)
from archgrad.gates.selection import FLOOR, GateConstraint, WidthRounding, above_threshold, full, gates, left_full
from archgrad.results.record import heading, settings_record
from archgrad.results.result import Found, assemble
from archgrad.run.run import Run
from archgrad.supernets.lifecycle import predict_peak_memory
from archgrad.tasks.task import Checkable, Task, evaluate, require
from archgrad.training.fit import check_recipe, optimize, recalibrate, seconds_per_step, steps_per_epoch, train
from archgrad.training.recipe import Recipe
from archgrad.training.schedules import Schedule, consecutive, constant

# A gate is open where sigmoid(1e4 * s) > 0.9, that is s > ln(9) / 1e4.
_OPEN = math.log(0.9 / (1.0 - 0.9)) / SCALE[1]
_RATE = 0.01  # of the logits, as published
_ROUNDS = 10  # the most epochs of stage 2 by default, and the rounds of the scale under a budget in seconds


@dataclass(frozen=True)
class DnalSettings:
    """The options of `dnal`: what a run is begun with, and what its record shows."""

    limit: Limit | None
    sparsity: float
    reg: Literal["count", "scaled"]
    pretrained: bool
    joint: bool
    gate_epochs: int | None
    round_to: int | None
    recipe: Recipe


@dataclass(frozen=True)
class _Stages:
    """Steps of the three stages, and in how many rounds the scale of the gates grows."""

    steps: tuple[int, int, int]
    rounds: int

    def time_fraction(self, stage: int) -> float:
        """The part of a stage in a budget of seconds."""
        return self.steps[stage] / sum(self.steps)


def dnal(
    space: nn.Module,
    task: Task,
    run: Run,
    *,
    limit: Limit | None = None,
    sparsity: float = 3.0,
    reg: Literal["count", "scaled"] = "count",
    pretrained: bool = False,
    joint: bool = False,
    gate_epochs: int | None = None,
    round_to: int | None = None,
    recipe: Recipe = Recipe(),
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
        recipe: trains the weights in stages 1 and 3, and with `joint` in stage 2, there without its `average`,
            `drop_path` and `best_epoch`.

    Raises:
        ChoiceError: the space has choices that are no gates.
        ConfigError: the task lacks something, or a stage would have no steps.
        LimitError: no network of the space meets the limit; the message says the lowest reachable.
        NonFiniteError: the loss became NaN or infinite.

    Example:
        >>> import torch, archgrad as ag
        >>> task = ag.Classification.load("digits")
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Linear(32, 10))
        >>> half = ag.macs(task.example).at_most(fraction=0.5)
        >>> found = ag.dnal(ag.slim(net, task.example), task, ag.Run(steps=8, progress=False), limit=half)
        >>> found.costs["macs"] <= 0.5 * ag.macs(task.example).of(net)
        True
    """
    settings = DnalSettings(limit, sparsity, reg, pretrained, joint, gate_epochs, round_to, recipe)
    rounding = WidthRounding(round_to)
    require(task, method="dnal")
    gates(space)  # a space of anything else is refused
    if isinstance(task, Checkable):
        task.check(space)
    check_recipe(recipe, space)
    constraint = GateConstraint(space, limit, rounding) if limit is not None else None
    run.begin("dnal", settings_record(settings))
    space = copied(space).to(run.device)
    predict_peak_memory(space, task, run, optimizer=recipe.optimizer_factory)
    stages = _stages(space, task, run, settings)
    parts = consecutive(recipe.schedule, *stages.steps) if joint else (recipe.schedule, constant, recipe.schedule)
    first, _, third = stages.steps
    if first:
        part = replace(recipe, schedule=parts[0])
        train(space, task, run, part, steps=first, phase="weights", time_fraction=stages.time_fraction(0))
    before = build(space, full(space))
    _train_gates(space, task, run, stages, settings=settings, constraint=constraint, schedule=parts[1])
    architecture = _derived(space, run, constraint=constraint, rounding=rounding)
    network = build(space, architecture)
    recalibrate(network, task, run)
    run.log({f"derived_{name}": value for name, value in evaluate(task, network).items()})
    train(network, task, run, replace(recipe, schedule=parts[2]), steps=third, phase="finetune")

    networks = {"before": before, "after": network}
    record = heading(dnal, settings_record(settings), f"{type(space).__name__} slimmed by DNAL")
    record["limit"] = constraint and constraint.record(network)
    found = assemble(space, architecture, networks, task=task, run=run, example=task.example, record=record)
    run.finish()
    return found


def _train_gates(
    space: nn.Module, task: Task, run: Run, stages: _Stages, *, settings: DnalSettings,
    constraint: GateConstraint | None, schedule: Schedule,
) -> None:  # fmt: skip
    """Stage 2."""
    relax(space, ScaledSigmoid)
    steps = stages.steps[1]
    gate_optimizer = GateOptimizer(
        space, task, strength=settings.sparsity / steps, scaled=settings.reg == "scaled", scale=SCALE,
        rounds=stages.rounds,
    )  # fmt: skip
    if constraint:
        gate_optimizer.set_target(*_differentiable(constraint, task, run))
    optimizer = logit_optimizer(space, RATE_UNDER_LIMIT if constraint else _RATE)
    if settings.joint:
        settings.recipe.add_weights(optimizer, space)
    run.register_state(space=space, optimizer=optimizer, gate_optimizer=gate_optimizer)
    optimize(
        space, task, run, optimizer=optimizer, steps=steps, phase="gates", objective=gate_optimizer.objective,
        schedule=schedule, accumulate=settings.recipe.accumulate, time_fraction=stages.time_fraction(1),
        before_step=functools.partial(gate_optimizer.grow_scale, optimizer=optimizer), on_step=gate_optimizer.project,
    )  # fmt: skip


def _derived(
    space: nn.Module, run: Run, *, constraint: GateConstraint | None, rounding: WidthRounding
) -> Architecture:
    """What stays: all gates above the threshold, or the largest set under the limit in the order of s."""

    def picks() -> dict[str, Pick]:
        scores = entry_logits(space)
        if constraint is None:
            return dict(above_threshold(space, scores, _OPEN, rounding))
        return dict(constraint.best_feasible(scores, floor=FLOOR * constraint.uniform_width()))

    # Remembered, since a measured limit may decide otherwise when it is measured again.
    remembered = run.compute_once("architecture", picks)
    architecture = Architecture({name: tuple(pick) for name, pick in remembered.items()})
    exact = above_threshold(space, entry_logits(space), _OPEN, WidthRounding(1))
    if uncut := left_full(space, architecture, exact):
        run.note(
            f"rounding widths left {len(uncut)} layers whole that were to be cut ({', '.join(uncut[:5])}); "
            f"round_to=1 cuts them, at the price of widths that hardware likes less"
        )
    return architecture


def _stages(space: nn.Module, task: Task, run: Run, settings: DnalSettings) -> _Stages:
    """How the run's budget is divided into the three stages."""
    per_epoch, epochs = steps_per_epoch(task, settings.recipe.accumulate), settings.gate_epochs
    total = run.total_steps(
        per_epoch, default_epochs=60, measure_step=lambda: seconds_per_step(space, task, run, settings.recipe)
    )
    default = total // 2 if settings.joint else min(_ROUNDS * per_epoch, max(total // 6, 1))
    second = default if epochs is None else epochs * per_epoch
    if not 0 < second < total:
        run.withdraw()
        fewer = f"gate_epochs from 1 to {(total - 1) // per_epoch}, or " if epochs and total > per_epoch else ""
        raise ConfigError(
            f"{max(second, 1)} of {total} steps would train the gates: give {fewer}a larger budget of the Run"
        )
    timed = run.seconds is not None and run.epochs is None and run.max_steps is None
    rounds = epochs or (_ROUNDS if timed else math.ceil(second / per_epoch))
    if timed:
        run.require_steps(second, phase="gates", least=rounds)
    first = 0 if settings.pretrained else int(0.3 * (total - second))
    return _Stages((first, second, total - first - second), rounds)


def _differentiable(constraint: GateConstraint, task: Task, run: Run) -> tuple[GateConstraint, float]:
    """A constraint whose expected cost has a gradient, and its bound; MACs stand in for a measured cost."""
    if constraint.counter is not None:
        return constraint, constraint.bound
    surrogate = GateConstraint(constraint.space, macs(task.example).at_most(fraction=1.0), constraint.rounding)
    # Measured once in a run's life, so that a resumed run aims at the same bound.
    return surrogate, run.compute_once("macs_for_the_limit", lambda: stand_in(constraint, surrogate))
