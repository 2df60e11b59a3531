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
- No layer dies unless a skip replaces it. BatchNorm is recalibrated before anything is scored.
- Under a budget in seconds, scale_k grows after each tenth of the time of stage 2.

Ours, wherever a `limit` is given without `sparsity`:

    fresh       weights that are not trained, in a run too short for finalists: stages 1 and 2 have the network of
                uniform width that takes twice what the limit allows, in place of the whole one, and hand weights and
                s back to it (`narrowed`)
    stage 1     a short training of all weights, unless they are trained
    stage 2     s begins in the order of the weights' magnitude, evenly spread in each gate. w and s together on L, in
                the same backward pass; the mean over a gate is taken off its gradient (`limited_logit_optimizer`),
                and all s move alike to keep the expected cost at the limit. scale_k: 25, 63, 159, 400
    finalists   where there are 30 steps for each, the widths of the gates and uniform widths, each the largest under
                the limit, are cut and trained for a short while; the better on the validation part stays
    stage 3     w = argmin_w L(w), at full learning rates again

For a measured cost, MACs are the surrogate in stage 2, and a measurement decides. With `limit` and `sparsity`, the
stages are the published ones, and what is derived is the largest architecture under the limit in the order of s.

Checked against: the closed forms, the drift law and the separable problem, in the tests.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from archgrad.argument_types import checked
from archgrad.choices.access import logits, relax
from archgrad.choices.architecture import Architecture
from archgrad.choices.relaxations import ScaledSigmoid
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError
from archgrad.extract.discretize import build
from archgrad.gates.gate_optimizer import (
    ROUNDS_UNDER_LIMIT,
    SCALE,
    GateOptimizer,
    entry_logits,
    left_full,
    published_logit_optimizer,
)
from archgrad.gates.importance import begin_by_magnitude
from archgrad.gates.selection import FLOOR, GateConstraint, above_threshold, full
from archgrad.gates.width_rounding import RoundTo, WidthRounding
from archgrad.methods.dnal.narrowed import carry_back, narrowed, widths_to_search
from archgrad.methods.dnal.under_limit import (
    FEWEST,
    FRESH,
    RISING,
    SlimSettings,
    Stage,
    begin,
    choose_widths,
    cut,
    derived,
    remembered,
    train_gates,
)
from archgrad.report.numbers import amount, counted
from archgrad.results.record import heading, settings_record
from archgrad.results.result import Found, assemble
from archgrad.run.run import Run
from archgrad.tasks.task import Task
from archgrad.training.compiled_steps import compiled
from archgrad.training.fit import optimize, seconds_per_step, steps_per_epoch, train
from archgrad.training.given_weights import note_loss
from archgrad.training.recipe import Recipe

_SPARSITY = 3.0  # of the published form
# A gate is open where sigmoid(1e4 * s) > 0.9, that is s > ln(9) / 1e4.
_OPEN = math.log(0.9 / (1.0 - 0.9)) / SCALE[1]
_MOST_EPOCHS = 10  # of stage 2 as published
_FIRST, _SECOND, _FINALIST = 0.1, 0.1, 0.04  # shares of the budget under a limit: stages 1 and 2, each finalist


@dataclass(frozen=True, kw_only=True)
class DnalSettings(SlimSettings):
    """The options of `dnal`: what a run is begun with, and what its record shows."""

    limit: Limit | Sequence[Limit] | None
    sparsity: float | None
    reg: Literal["count", "scaled"]
    gate_epochs: int | None

    @property
    def published(self) -> bool:
        """Whether the gates are trained as published, by the regularizer."""
        return self.limit is None or self.sparsity is not None


@dataclass(frozen=True)
class _Stages:
    """Steps of the three stages and of each finalist, and in how many rounds the scale of the gates grows."""

    first: int
    second: int
    finalist: int
    third: int
    rounds: int

    def stage(self, steps: int) -> Stage:
        """A stage of so many steps, and their part in a budget of seconds."""
        return Stage(steps, steps / (self.first + self.second + 2 * self.finalist + self.third))


@checked
def dnal(
    space: nn.Module,
    task: Task,
    run: Run,
    *,
    limit: Limit | Sequence[Limit] | None = None,
    sparsity: float | None = None,
    reg: Literal["count", "scaled"] = "count",
    pretrained: bool = False,
    gate_epochs: int | None = None,
    round_to: RoundTo = None,
    recipe: Recipe = Recipe(),
    check_weights: bool = True,
) -> Found:
    """Slim a network to its useful channels, under a limit if one is given; the algorithm is on top of this file.

    Args:
        space: a network with gates, from `archgrad.slim`; it is not changed.
        task: what it is trained and scored on; its test part is read once, at the end.
        run: epochs of all stages together (default 60), seed, folder, device.
        limit: for instance `archgrad.macs(x).at_most(fraction=0.5)`, or a list of several that all hold.
        sparsity: lambda x number of gate steps, of the published form; default 3 without a limit.
        reg: "count", the published sum of sigmoid(s), or "scaled", the sum of sigmoid(scale * s).
        pretrained: the space holds trained weights: they are scored as they stand, and stage 1 is skipped.
        gate_epochs: of stage 2; default a tenth of all; as published a sixth, at most 10.
        round_to: widths are multiples of this; 1 for any width. Default 8, less for narrow layers; under a limit on
            latency "auto", what is measured to suit its runtime here.
        recipe: trains the weights; in stage 2, under a limit, without its `average`, `drop_path` and `best_epoch`.
        check_weights: stop where trained weights score near chance, before anything is trained.

    Raises:
        ChoiceError: the space has choices that are no gates.
        ConfigError: the task lacks something, or a stage would have no steps.
        ModelError: the network does not fit the task, or its trained weights score near chance.
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
    settings = DnalSettings(
        limit=limit, sparsity=sparsity, reg=reg, pretrained=pretrained, gate_epochs=gate_epochs, round_to=round_to,
        recipe=recipe,
    )  # fmt: skip
    limits = [] if limit is None else [limit]
    space, constraints, given = begin(
        space, task, run, limits, method="dnal", settings=settings, check_weights=check_weights
    )
    constraint = constraints[0] if constraints else None
    rounding = constraint.rounding if constraint else WidthRounding.asked(round_to, space, [])
    stages = _stages(space, task, run, settings)
    before, searched = _search(space, task, run, constraint=constraint, settings=settings, stages=stages)
    architecture = _derived(space, run, constraint=constraint, rounding=rounding)
    candidate = cut(space, architecture, task, run, searched=searched)
    record = heading(dnal, settings_record(settings), f"{type(space).__name__} slimmed by DNAL")
    if constraint and stages.finalist:
        choice = choose_widths(
            space, task, run, candidate, constraint=constraint, recipe=recipe, stage=stages.stage(stages.finalist)
        )
        candidate, record["finalists"] = choice.best, choice.scores
        if candidate is choice.uniform:
            run.note("uniform widths scored better than those of the gates on the validation part, and were taken")
    architecture, network = candidate
    train(network, task, run, recipe, steps=stages.third, phase="finetune")
    note_loss(network, task, run, given)

    record |= {"limit": constraint and constraint.record(network), "rounding": rounding.measured, "given": given}
    networks = {"before": before, "after": network}
    found = assemble(
        space, architecture, networks, task=task, run=run, example=task.example, record=record,
        untrained=not (pretrained or settings.published),
    )  # fmt: skip
    run.finish()
    return found


def _search(
    space: nn.Module, task: Task, run: Run, *, constraint: GateConstraint | None, settings: DnalSettings,
    stages: _Stages,
) -> tuple[nn.Module, nn.Module | None]:  # fmt: skip
    """Stages 1 and 2, whose weights and logits end in the space.

    Returns:
        The whole network as stage 2 found it, and the narrower one that was searched in its place, trained.
    """
    ours = None if settings.published else constraint
    searched = None
    if stages.first and ours and not stages.finalist:
        architecture = remembered(run, "searched", lambda: widths_to_search(ours))
        with run.isolated_rng("searched"):
            searched = narrowed(space, architecture, run.to_device(task.example))
        if searched:
            cost = amount(ours.price(architecture), ours.unit)
            run.note(f"in place of the whole network one of uniform width is searched, of {cost}", kept=False)
    inner = searched.space if searched else space
    if stages.first:
        if constraint:
            run.note(FRESH)
        part = replace(settings.recipe, schedule=RISING) if ours else settings.recipe
        time = stages.stage(stages.first).time_fraction
        train(inner, task, run, part, steps=stages.first, phase="weights", time_fraction=time)
    before = build(space, full(space))
    second = stages.stage(stages.second)
    if not ours:
        _train_gates_as_published(space, task, run, second, settings=settings, rounds=stages.rounds)
        return before, None
    begin_by_magnitude(inner)
    train_gates(
        inner, task, run, constraint=ours, recipe=settings.recipe, stage=second, narrower=searched is not None
    )  # fmt: skip
    return before, carry_back(space, searched) if searched else None


def _train_gates_as_published(
    space: nn.Module, task: Task, run: Run, stage: Stage, *, settings: DnalSettings, rounds: int
) -> None:
    """Stage 2, the weights at rest."""
    relax(space, ScaledSigmoid)
    strength = (_SPARSITY if settings.sparsity is None else settings.sparsity) / stage.steps
    gate_optimizer = GateOptimizer(
        space, task, strength=strength, scaled=settings.reg == "scaled", scale=SCALE, rounds=rounds
    )
    optimizer = published_logit_optimizer(space)
    run.register_state(space=space, optimizer=optimizer, gate_optimizer=gate_optimizer)
    optimize(
        space, task, run, optimizer=optimizer, steps=stage.steps, phase="gates",
        objective=compiled(gate_optimizer.objective, space, run, logits(space)),
        accumulate=settings.recipe.accumulate, time_fraction=stage.time_fraction,
        before_step=functools.partial(gate_optimizer.grow_scale, optimizer=optimizer),
    )  # fmt: skip


def _derived(
    space: nn.Module, run: Run, *, constraint: GateConstraint | None, rounding: WidthRounding
) -> Architecture:
    """What stays: all gates above the threshold, or the largest set under the limit in the order of s."""
    scores = entry_logits(space)
    if constraint is None:
        architecture, exact = (above_threshold(space, scores, _OPEN, r) for r in (rounding, WidthRounding(1)))
    else:
        architecture = exact = derived(space, run, constraint=constraint)
        free = constraint.unrounded()
        if free.counted:  # what a measured limit would leave is not asked for: that takes minutes
            exact = free.best_feasible(scores, floor=FLOOR * free.uniform_width())
    if uncut := left_full(space, architecture, exact, rounding):
        more = f" and {len(uncut) - 5} more" if len(uncut) > 5 else ""
        run.note(
            f"{counted(len(uncut), 'layer')} stayed whole ({', '.join(uncut[:5])}{more}), because widths are rounded "
            f"to multiples that run fast; round_to=1 would have cut them, to widths that run less well"
        )
    return architecture


def _stages(space: nn.Module, task: Task, run: Run, settings: DnalSettings) -> _Stages:
    """How the run's budget is divided into the stages."""
    per_epoch, epochs = steps_per_epoch(task, settings.recipe.accumulate), settings.gate_epochs
    total = run.total_steps(
        per_epoch, default_epochs=60, measure_step=lambda: seconds_per_step(space, task, run, settings.recipe)
    )
    default = min(_MOST_EPOCHS * per_epoch, total // 6) if settings.published else int(_SECOND * total)
    default = max(default, 1)
    second = default if epochs is None else epochs * per_epoch
    if not 0 < second < total:
        run.withdraw()
        fewer = f"gate_epochs from 1 to {(total - 1) // per_epoch}, or " if epochs and total > per_epoch else ""
        raise ConfigError(
            f"{max(second, 1)} of {total} steps would train the gates: give {fewer}a larger budget of the Run"
        )
    timed = run.seconds is not None and run.epochs is None and run.max_steps is None
    published_rounds = _MOST_EPOCHS if timed else epochs or math.ceil(second / per_epoch)
    rounds = published_rounds if settings.published else ROUNDS_UNDER_LIMIT
    if timed:
        run.require_steps(second, phase="gates", least=rounds)
    first = int((0.3 * (total - second)) if settings.published else _FIRST * total)
    first = 0 if settings.pretrained else min(first, total - second - 1)
    finalist = 0 if settings.published else int(_FINALIST * total)
    finalist = finalist if finalist >= FEWEST and first + second + 2 * finalist < total else 0
    return _Stages(first, second, finalist, total - first - second - 2 * finalist, min(rounds, second))
