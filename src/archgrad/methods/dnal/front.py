"""DNAL for several budgets in one run: the pressure descends from the largest budget to the smallest.

Ours, made of DNAL's parts under a limit; see `dnal.py`:

    whole       the weights are trained to their end, unless they are given trained: what the others are held against;
                s begins in the order of their magnitude
    for each budget, the largest first:
        gates       w and s together on L, at full learning rates, s held at the budget, the scale growing anew;
                    they begin where the budget before has left them
        finalists   the widths of the gates and uniform widths, for a short while; the better stays
        training    w = argmin_w L(w) without the other channels, the learning rate falling: this budget's network,
                    whose weights go back to their places in the space

So each network is slimmed from the trained one before it, and what one has learnt the next ones have. From the second
budget on all rates are half of the recipe's: at full rates a few steps throw away what they cannot win back.

Checked against: exact resume from stages of every kind and budgets on a recount, in the tests. The script
benchmarks/slim_front.py sets it beside separate runs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from archgrad.argument_types import checked
from archgrad.copy_and_run import in_mode
from archgrad.costs.limits import Cost, Limit
from archgrad.errors import ConfigError
from archgrad.extract.discretize import build, write_back
from archgrad.gates.gate_optimizer import ROUNDS_UNDER_LIMIT
from archgrad.gates.importance import begin_by_magnitude
from archgrad.gates.selection import GateConstraint, full
from archgrad.gates.width_rounding import RoundTo
from archgrad.methods.dnal.under_limit import (
    FEWEST,
    FRESH,
    Candidate,
    Choice,
    SlimSettings,
    Stage,
    begin,
    choose_widths,
    cut,
    derived,
    train_gates,
)
from archgrad.results.front import Front, FrontPoint
from archgrad.results.record import conditions, heading, settings_record, widths
from archgrad.results.result import LOAD_SLIM, Found, keep, measured
from archgrad.run.run import Run
from archgrad.spaces.slim.slimmable import frozen
from archgrad.tasks.task import Task, evaluate, higher_is_better
from archgrad.training.fit import seconds_per_step, steps_per_epoch, train
from archgrad.training.given_weights import note_loss
from archgrad.training.recipe import OptimizerFactory, Recipe
from archgrad.trials.pareto import front as not_dominated

# Parts of the steps: of the whole network, where it is trained, of the first budget, and of each of the others.
_WHOLE, _FIRST, _OTHER = 1.75, 1.75, 1.0
_GATES = 0.15  # of a budget's steps
_FINALIST = 0.15  # of a budget's other steps, each
_LATER = 0.5  # of the learning rates, for all budgets but the first


@dataclass(frozen=True, kw_only=True)
class FrontSettings(SlimSettings):
    """The options of `slim_front`: what a run is begun with, and what its record shows."""

    limits: tuple[Limit, ...]


class _Steps(NamedTuple):
    """Of one budget: its gates, each finalist, the training after them, and of all trainings of the run."""

    gates: int
    finalist: int
    train: int
    run: int

    def stage(self, steps: int) -> Stage:
        return Stage(steps, steps / self.run)


@checked
def slim_front(
    space: nn.Module,
    task: Task,
    run: Run,
    *,
    cost: Cost,
    fractions: Sequence[float] = (0.75, 0.5, 0.25),
    pretrained: bool = False,
    round_to: RoundTo = None,
    recipe: Recipe = Recipe(),
    check_weights: bool = True,
) -> Front:
    """Slim a network to several budgets in one run; the algorithm is on top of this file.

    Args:
        space: a network with gates, from `archgrad.slim`; it is not changed.
        task: what it is trained and scored on; each network reads its test part once, at the end.
        run: epochs of all networks together (default 60), seed, folder, device.
        cost: what is bounded, for instance `archgrad.macs(x)`.
        fractions: the budgets, as fractions of what the whole network takes.
        pretrained: the space holds trained weights. Otherwise the whole network is trained first, for about a third.
        round_to: widths are multiples of this; 1 for any width. Default 8, less for narrow layers; under a limit on
            latency "auto", what is measured to suit its runtime here.
        recipe: trains the weights; beside the gates without its `average`, `drop_path` and `best_epoch`.
        check_weights: stop where trained weights score near chance, before anything is trained.

    Raises:
        ChoiceError: the space has choices that are no gates.
        ConfigError: no fractions or the same twice, a task that lacks something, or stages without a step.
        ModelError: the network does not fit the task, or its trained weights score near chance.
        LimitError: a fraction out of (0, 1], or one that no network of the space keeps.
        NonFiniteError: the loss became NaN or infinite.

    Example:
        >>> import torch, archgrad as ag
        >>> task = ag.Classification.load("digits")
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Linear(32, 10))
        >>> space, run = ag.slim(net, task.example), ag.Run(steps=12, progress=False)
        >>> front = ag.slim_front(space, task, run, cost=ag.macs(task.example), fractions=(0.5, 0.25))
        >>> [point.costs["macs"] <= point.fraction * front.whole.costs["macs"] for point in front.points]
        [True, True]
    """
    settings = FrontSettings(limits=_limits(cost, fractions), pretrained=pretrained, round_to=round_to, recipe=recipe)
    space, constraints, given = begin(
        space, task, run, settings.limits, method="slim_front", settings=settings, check_weights=check_weights
    )
    of_whole, plan = _plan(space, task, run, settings)
    if of_whole:
        run.note(FRESH)
        train(space, task, run, recipe, steps=of_whole, phase="weights", time_fraction=of_whole / plan[0].run)
    begin_by_magnitude(space)
    networks, tried = [Candidate(full(space), build(space, full(space)))], list[Choice]()
    for constraint, limit, steps in zip(constraints, settings.limits, plan, strict=True):
        choice = _descend(space, task, run, constraint, steps=steps, settings=settings, limit=limit)
        note_loss(choice.best.network, task, run, given)
        networks.append(choice.best)
        tried.append(choice)
    front = _front(space, networks, tried, task=task, run=run, cost=cost, settings=settings)
    front.record.update(given=given, rounding=constraints[0].rounding.measured)
    if run.folder and run.rank == 0:
        front.save(run.folder)
    run.finish()
    return front


def _limits(cost: Cost, fractions: Sequence[float]) -> tuple[Limit, ...]:
    fractions = tuple(fractions)
    if not fractions or len(set(fractions)) < len(fractions):
        raise ConfigError(
            f"fractions={fractions!r} was given. Allowed is a list of different fractions of what the whole network "
            f"takes, such as (0.75, 0.5, 0.25)."
        )
    limits = [Limit(cost, fraction=fraction) for fraction in fractions]
    return tuple(sorted(limits, key=lambda limit: -(limit.fraction or 0.0)))


def _plan(space: nn.Module, task: Task, run: Run, settings: FrontSettings) -> tuple[int, list[_Steps]]:
    """The steps of the whole network's training, and of each budget."""
    recipe = settings.recipe
    total = run.total_steps(
        steps_per_epoch(task, recipe.accumulate), default_epochs=60,
        measure_step=lambda: seconds_per_step(space, task, run, recipe),
    )  # fmt: skip
    parts = [0.0 if settings.pretrained else _WHOLE, _FIRST, *[_OTHER] * (len(settings.limits) - 1)]
    of_whole, *budgets = (int(total * part / sum(parts)) for part in parts)
    budgets[-1] = total - of_whole - sum(budgets[:-1])
    if min(budgets) < 2:
        run.withdraw()
        raise ConfigError(
            f"{total} steps are too few for a front of {len(budgets)} networks: give the Run some epochs for each, "
            f"or give fewer fractions"
        )
    plan = []
    for steps in budgets:
        of_gates = max(1, int(_GATES * steps))
        finalist = int(_FINALIST * (steps - of_gates))
        finalist = finalist if finalist >= FEWEST else 0
        plan.append(_Steps(of_gates, finalist, steps - of_gates - 2 * finalist, total))
    if run.seconds is not None and run.epochs is None and run.max_steps is None:
        run.require_steps(min(steps.gates for steps in plan), phase="gates", least=ROUNDS_UNDER_LIMIT)
    return of_whole, plan


def _descend(
    space: nn.Module, task: Task, run: Run, constraint: GateConstraint, *, steps: _Steps, settings: FrontSettings,
    limit: Limit,
) -> Choice:  # fmt: skip
    """One budget: its network, whose weights the space goes on with, and logits as the gates leave them."""
    recipe, suffix = settings.recipe, f"-{limit.fraction:g}"
    if limit is not settings.limits[0]:
        recipe = replace(recipe, optimizer_factory=functools.partial(_slower, recipe.optimizer_factory))
    train_gates(
        space, task, run, constraint=constraint, recipe=recipe, stage=steps.stage(steps.gates), suffix=suffix
    )  # fmt: skip
    candidate = cut(space, derived(space, run, constraint=constraint, suffix=suffix), task, run)
    choice = choose_widths(
        space, task, run, candidate, constraint=constraint, recipe=recipe, stage=steps.stage(steps.finalist),
        suffix=suffix,
    )  # fmt: skip
    last = limit is settings.limits[-1]
    train(
        choice.best.network, task, run, recipe, steps=steps.train, phase=f"train{suffix}",
        time_fraction=1.0 if last else steps.train / steps.run,
    )  # fmt: skip
    if not last:
        write_back(space, *choice.best)
    return choice


def _slower(optimizer_factory: OptimizerFactory, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer with `_LATER` of its learning rates."""
    optimizer = optimizer_factory(parameters)
    for group in optimizer.param_groups:
        group["lr"] = _LATER * group["lr"]
    return optimizer


def _front(
    space: nn.Module, networks: Sequence[Candidate], tried: Sequence[Choice], *, task: Task, run: Run, cost: Cost,
    settings: FrontSettings,
) -> Front:  # fmt: skip
    """Score, measure and record the whole network and those of the budgets."""
    example = run.to_device(task.example)
    names = ["whole", *(f"{cost.name}-{limit.fraction:g}" for limit in settings.limits)]
    by_name = {name: in_mode(candidate.network) for name, candidate in zip(names, networks, strict=True)}
    valid = run.compute_once("valid", lambda: {name: evaluate(task, net) for name, net in by_name.items()})
    reached = run.compute_once("costs", lambda: {name: cost.of(net) for name, net in by_name.items()})
    for name, candidate in zip(names[1:], networks[1:], strict=True):
        keep(*candidate, run, place=name)
    columns, score = measured(by_name, task, run, example)
    judged = next(iter(valid["whole"]))
    title = f"{type(space).__name__} slimmed by DNAL"
    about = {
        **heading(slim_front, settings_record(settings), f"{title} to {len(tried)} budgets"),
        **conditions(run, task, score=judged),
        "frozen": [{"name": name, "reason": reason} for name, reason in frozen(space).items()],
    }
    points = []
    for place, (name, candidate) in enumerate(zip(names, networks, strict=True)):
        limit = settings.limits[place - 1] if place else None
        record = {
            **about,
            "title": f"{title}: {name}",
            "load": LOAD_SLIM,
            "layers": widths(space, candidate.architecture),
            "before": columns["whole"],
            "after": columns[name],
        }
        if limit:
            bound = limit.resolve(reached["whole"])
            record["limit"] = {"cost": cost.name, "unit": cost.unit, "bound": bound, "reached": reached[name]}
            record["finalists"] = tried[place - 1].scores
        costs = {key: columns[name][key] for key in ("params", "macs") if key in columns[name]}
        found = Found(
            candidate.architecture,
            by_name[name],
            columns[name].get(score or ""),
            costs | {cost.name: reached[name]},
            run.history,
            record,
            example,
        )
        fraction = limit.fraction if limit and limit.fraction else 1.0
        points.append(FrontPoint(fraction, next(iter(valid[name].values())), found))
    rows = [
        {"name": name, f"valid_{judged}": point.valid, **columns[name], cost.name: reached[name]}
        for name, point in zip(names, points, strict=True)
    ]
    better = higher_is_better(task)
    picture = run.compute_once("fronts", lambda: _picture(points, tried, cost, higher_is_better=better))
    return Front(cost.name, points[0], tuple(points[1:]), better, about | {"baselines": rows, "fronts": [picture]})


def _picture(
    points: Sequence[FrontPoint], tried: Sequence[Choice], cost: Cost, *, higher_is_better: bool
) -> dict[str, Any]:
    """Validation score against cost of all networks; beside them uniform widths after their short trial."""

    def drawn(costs: list[float], scores: list[float]) -> dict[str, Any]:
        goals = [(x, -y if higher_is_better else y) for x, y in zip(costs, scores, strict=True)]
        return {"costs": costs, "scores": scores, "front": not_dominated(goals)}

    picture: dict[str, Any] = {"cost": cost.name, "unit": cost.unit, "found": None}
    picture |= drawn([point.costs[cost.name] for point in points], [point.valid for point in points])
    if uniform := [(choice.uniform.network, choice.scores["uniform"]) for choice in tried if choice.uniform]:
        controls = drawn([cost.of(network) for network, _ in uniform], [score for _, score in uniform])
        picture["random"] = {"label": "uniform widths, trained as finalists alone", **controls}
    return picture
