"""What DNAL does for one limit: gates trained with the weights, what they derive, uniform widths as their rival."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from archgrad.choices.access import relax
from archgrad.choices.architecture import Architecture
from archgrad.choices.relaxations import ScaledSigmoid
from archgrad.copy_and_run import copied
from archgrad.costs.count import macs
from archgrad.costs.latency import Latency
from archgrad.costs.limits import Limit
from archgrad.errors import ArchgradError
from archgrad.extract.discretize import build
from archgrad.gates.gate_optimizer import (
    ROUNDS_UNDER_LIMIT,
    GateOptimizer,
    entry_logits,
    limited_logit_optimizer,
    stand_in,
)
from archgrad.gates.selection import FLOOR, GateConstraint, full, gates, uniform
from archgrad.gates.width_rounding import RoundTo, WidthRounding
from archgrad.methods.dnal.narrowed import scale_as_fresh
from archgrad.results.record import settings_record
from archgrad.run.run import Run
from archgrad.supernets.lifecycle import predict_peak_memory
from archgrad.tasks.task import Checkable, Task, evaluate, require
from archgrad.training.compiled_steps import compiled
from archgrad.training.finalists import best, finalists
from archgrad.training.fit import check_recipe, optimize, recalibrate
from archgrad.training.given_weights import score_given, weights_record
from archgrad.training.joined_optimizer import JoinedOptimizer
from archgrad.training.recipe import Recipe
from archgrad.training.schedules import warm_up

RISING = warm_up(0.4)  # the learning rates of a first training under a limit
FRESH = (
    "the weights are fresh: where a training is short, a network of uniform width, trained for as long as this run "
    "takes, is often as good, and a transformer of uniform width better. "
    "Slimming pays most on trained weights (pretrained=True, or --weights)"
)
FEWEST = 30  # steps of a finalist; with fewer the validation part cannot tell two apart, and the gates alone decide


@dataclass(frozen=True, kw_only=True)
class SlimSettings:
    """The options that `dnal` and `slim_front` share."""

    pretrained: bool
    round_to: RoundTo
    recipe: Recipe


def begin(
    space: nn.Module, task: Task, run: Run, limits: Sequence[Limit | Sequence[Limit]], *, method: str,
    settings: SlimSettings, check_weights: bool,
) -> tuple[nn.Module, list[GateConstraint], dict[str, float] | None]:  # fmt: skip
    """Refuse what cannot work and begin the run.

    Returns:
        A copy of the space on the run's device, a constraint for each limit, and what given weights score.
    """
    require(task, method=method)
    gates(space)  # a space of anything else is refused
    if isinstance(task, Checkable):
        task.check(space)
    check_recipe(settings.recipe, space)
    listed: list[Limit] = []
    for limit in limits:
        listed += [limit] if isinstance(limit, Limit) else limit
    asks = settings.round_to in ("auto", None) and any(isinstance(one.cost, Latency) for one in listed)
    if not asks:  # refusals come before the run begins, but what is measured is measured once in its life
        constraints = _constraints(space, limits, WidthRounding.asked(settings.round_to, space, listed))
    begun_with = settings_record(settings) | weights_record(space, given=settings.pretrained)
    run.begin(method, begun_with, task=task, network=space)
    if asks:
        try:
            rounding = WidthRounding.asked(settings.round_to, space, listed, once=run.compute_once)
            constraints = _constraints(space, limits, rounding)
        except ArchgradError:
            run.withdraw()
            raise
    space = copied(space).to(run.device)
    given = score_given(space, task, run, check=check_weights) if settings.pretrained else None
    predict_peak_memory(space, task, run, optimizer=settings.recipe.optimizer_factory)
    return space, constraints, given


def _constraints(
    space: nn.Module, limits: Sequence[Limit | Sequence[Limit]], rounding: WidthRounding
) -> list[GateConstraint]:
    return [GateConstraint(space, limit, rounding) for limit in limits]


class Stage(NamedTuple):
    """How long one training of a stage takes.

    Attributes:
        steps: of the optimizer.
        time_fraction: in a budget of seconds.
    """

    steps: int
    time_fraction: float


class Candidate(NamedTuple):
    """An architecture and its network, on the run's device."""

    architecture: Architecture
    network: nn.Module


class Choice(NamedTuple):
    """What the finalists came to.

    Attributes:
        best: the candidate that stays.
        scores: of "gates" and "uniform" on the validation part; empty where the gates alone decided.
        uniform: the rival, where it was tried.
    """

    best: Candidate
    scores: dict[str, float]
    uniform: Candidate | None


def train_gates(
    space: nn.Module, task: Task, run: Run, *, constraint: GateConstraint, recipe: Recipe, stage: Stage,
    suffix: str = "", narrower: bool = False,
) -> None:  # fmt: skip
    """Train weights and logits together in place, with the expected cost held at the limit, as the scale grows.

    Args:
        space: of gates alone; relaxed here unless it is.
        task: its loss is the objective.
        run: begun.
        constraint: a measured one is stood in for by MACs.
        recipe: of the weights.
        stage: how long.
        suffix: of the phase's name, and of what is computed once.
        narrower: the space is a part of the one that the constraint is on.
    """
    if not all(isinstance(gate.relaxation, ScaledSigmoid) for gate in gates(space).values()):
        relax(space, ScaledSigmoid)
    gate_optimizer = GateOptimizer(space, task, rounds=min(ROUNDS_UNDER_LIMIT, stage.steps))
    aim, bound = _differentiable(constraint, task, run, suffix)
    if narrower:
        aim = _on(space, aim, bound)
        bound = aim.bound
    if bound >= aim.price(full(space)):
        run.note("the whole network keeps the limit, which asks for nothing")
    gate_optimizer.set_target(aim, bound)
    of_logits = limited_logit_optimizer(space)
    optimizer = JoinedOptimizer(recipe.optimizer(space), of_logits)
    run.register_state(space=space, optimizer=optimizer, gate_optimizer=gate_optimizer)
    optimize(
        space, task, run, optimizer=optimizer, steps=stage.steps, phase=f"gates{suffix}",
        objective=compiled(gate_optimizer.objective, space, run),
        accumulate=recipe.accumulate, time_fraction=stage.time_fraction,
        before_step=functools.partial(gate_optimizer.grow_scale, optimizer=of_logits), on_step=gate_optimizer.project,
    )  # fmt: skip


def derived(space: nn.Module, run: Run, *, constraint: GateConstraint, suffix: str = "") -> Architecture:
    """The largest architecture under the limit in the order of the logits."""
    scores = entry_logits(space)
    return remembered(
        run, f"architecture{suffix}",
        lambda: constraint.best_feasible(scores, floor=FLOOR * constraint.uniform_width()),
    )  # fmt: skip


def choose_widths(
    space: nn.Module, task: Task, run: Run, of_gates: Candidate, *, constraint: GateConstraint, recipe: Recipe,
    stage: Stage, suffix: str = "",
) -> Choice:  # fmt: skip
    """Train the widths of the gates and uniform ones for a short while; the better on the validation part stays.

    Args:
        space: whose weights uniform widths take, of each gate the entries of the highest logits.
        task: gives loss and score.
        run: begun.
        of_gates: what the gates derive; trained in place.
        constraint: that uniform widths keep too.
        recipe: of each training.
        stage: how long each is trained; with fewer than `FEWEST` steps the gates alone decide.
        suffix: of the phases' names, and of what is computed once.
    """
    if stage.steps < FEWEST:
        return Choice(of_gates, {}, None)
    architecture = _uniform(space, run, constraint, suffix)
    candidates = {"gates": of_gates, "uniform": Candidate(architecture, build(space, architecture))}
    figures = finalists(
        {f"{name}{suffix}": candidate.network for name, candidate in candidates.items()}, task, run, recipe,
        steps=stage.steps, time_fraction=stage.time_fraction,
    )  # fmt: skip
    scores = {name: next(iter(each.values())) for name, each in zip(candidates, figures.values(), strict=True)}
    return Choice(candidates[best(scores, task)], scores, candidates["uniform"])


def cut(
    space: nn.Module, architecture: Architecture, task: Task, run: Run, *, searched: nn.Module | None = None
) -> Candidate:
    """The network of an architecture, with BatchNorm recalibrated; its validation scores are logged.

    Where the narrower network `searched` gave the weights, which so short a run has hardly trained, they are scaled
    to this size (`scale_as_fresh`).
    """
    network = build(space, architecture)
    if searched is not None:
        with run.isolated_rng("cut"):
            scale_as_fresh(network, searched)
    recalibrate(network, task, run)
    run.log({f"derived_{name}": value for name, value in evaluate(task, network).items()})
    return Candidate(architecture, network)


def _uniform(space: nn.Module, run: Run, constraint: GateConstraint, suffix: str) -> Architecture:
    """Uniform widths under the limit; of each gate the entries of the highest logits."""
    scores = entry_logits(space)
    return remembered(
        run, f"uniform{suffix}",
        lambda: uniform(space, constraint.uniform_width(), constraint.rounding, scores),
    )  # fmt: skip


def remembered(run: Run, key: str, find: Callable[[], Architecture]) -> Architecture:
    """Found once in a run's life, since a measured limit may decide otherwise when it is measured again."""
    picks = run.compute_once(key, lambda: dict(find()))
    return Architecture({name: tuple(pick) for name, pick in picks.items()})


def _on(space: nn.Module, aim: GateConstraint, bound: float) -> GateConstraint:
    """The same bounds on a narrower network."""
    bounds = [(part.cost, part.bound) for part in aim.parts] or [(aim.cost, bound)]
    return GateConstraint(space, [Limit(cost, bound=each) for cost, each in bounds], aim.rounding)


def _differentiable(constraint: GateConstraint, task: Task, run: Run, suffix: str) -> tuple[GateConstraint, float]:
    """A constraint whose expected cost has a gradient, and its bound; MACs stand in for a measured cost."""
    if constraint.counted:
        return constraint, constraint.bound
    costs = " and ".join(part.name for part in constraint.parts) or constraint.name
    run.note(f"networks are built and asked for their {costs}, which may take a while", kept=False)
    surrogate = GateConstraint(constraint.space, macs(task.example).at_most(fraction=1.0), constraint.rounding)
    # Measured once in a run's life, so that a resumed run aims at the same bound.
    return surrogate, run.compute_once(f"macs_for_the_limit{suffix}", lambda: stand_in(constraint, surrogate))
