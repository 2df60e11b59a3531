"""Pruning for transfer: a sub-network chosen apart from its weights, to be trained again where data are few.

Paper: Colombo, Gao, "Differentiable Architecture Pruning for Transfer Learning", arXiv 2107.03375 (2021). A
RECONSTRUCTION: only the abstract was read, and no code is public. It says that architecture is optimized apart from
its weights, for any low complexity, as a penalized choice of a subset, by a two-temperature relaxation. Everything
below is ours and agrees with that. For N parts (gate entries) with cost c, sum of c = 1:

    min over a in {0,1}^N of  E_w[L(a, w)] + gamma <c, a>
    forward   a = sigmoid(M theta);    backward   da/dtheta := sigmoid_m'(theta),   0 < m << M
    rounds    w <- drawn afresh (redraw), kept (cotrain) or as given (frozen)
              A: weight_steps of the optimizer on w, a fixed, on one share of the training part
              B: gate_steps on the other share:  theta <- theta - rate N (dL/da + gamma c) sigmoid_m'(theta)
    decide    a* = 1[theta > 0]; under a limit the largest theta, until one part more would exceed it
    train     on the network without the other parts: fresh weights after redraw, else those of the search

The paper's constants, models, data and theorem are not known to us. What is claimed: the direction is one of
descent; for F linear in a it is the gradient of F(sigmoid_m), and ends in the global optimum; for F multilinear in
a, a binary point with dF/da_i (1 - 2 a_i) >= 0 for all i is one that no single flip improves.

Ours: parts by magnitudes of weights, or by squared gradients in the gates, averaged over the rounds (`statistic`); no
layer dies unless a skip replaces it, as in DNAL; under a limit none keeps less than half of its uniform width; the
penalty is linear in a, each part's cost with everything open, a limit exact; early stop. The transfer itself, with
its rivals, is `archgrad.transfer`. Checked against: exact relations, enumeration, planted inputs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.access import logits, relax, trainable
from archgrad.choices.architecture import Architecture
from archgrad.choices.relaxations import TwoTemperature
from archgrad.copy_and_run import copied
from archgrad.costs.count import Macs, Params, macs
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError
from archgrad.extract.discretize import build
from archgrad.gates.gate_optimizer import entry_logits
from archgrad.gates.selection import FLOOR, GateConstraint, above_threshold, full, gates
from archgrad.gates.width_rounding import WidthRounding
from archgrad.methods.pruning_transfer.gate_pruning import Evidence, Signs, charges, mixing_weights, redraw
from archgrad.results.record import heading, settings_record
from archgrad.results.result import Found, assemble
from archgrad.run.run import Run
from archgrad.tasks.task import Batch, Checkable, Splittable, Task, require
from archgrad.training.compiled_steps import compiled
from archgrad.training.fit import check_recipe, recalibrate, seconds_per_step, steps_per_epoch, train
from archgrad.training.given_weights import score_given, weights_record
from archgrad.training.recipe import Recipe, adam
from archgrad.training.step import load_batch, take_step

Process = Literal["redraw", "cotrain", "frozen"]


@dataclass(frozen=True)
class PruningTerms:
    """What the search of the parts is made of; all defaults are ours.

    Attributes:
        hard, soft: M and m. At M = 50 what is off learns too little to come back; 10 did better in a trial.
        start, noise: theta begins at start + noise * normal. At the defaults every part is decided for, and is
            passed on at sigmoid(M start) = 0.62 of its strength: gates come to be binary as theta moves away from 0.
        statistic: what the parts are chosen by: "theta" (the rule above); or ours, with all gates open at 1 and
            averaged over the rounds: "magnitude" of the weights that each round ends with, divided by each gate's
            mean, or the squared "gradient" of the loss in the gates. Both need a limit.
        rate: of theta, times N.
        weight_steps, gate_steps: of a round; `frozen` has no weight steps.
        held_out: share of the training part that the gates are decided on.
        clip: theta stays in [-1, 1], so that every part can be revisited.
        patience: stop once no part changed for so many rounds, counted from the first change; None never does.
    """

    hard: float = 10.0
    soft: float = 1.0
    start: float = 0.05
    noise: float = 0.01
    statistic: Literal["theta", "magnitude", "gradient"] = "theta"
    rate: float = 0.01
    weight_steps: int = 20
    gate_steps: int = 5
    held_out: float = 0.3
    clip: bool = False
    patience: int | None = None


@dataclass(frozen=True)
class PruningSettings:
    """The options of `pruning_transfer`: what a run is begun with, and what its record shows."""

    limit: Limit | None
    gamma: float
    cost: str | None
    process: Process
    terms: PruningTerms
    round_to: int
    search_fraction: float
    recipe: Recipe

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma < float("inf"):
            raise ConfigError(f"gamma={self.gamma}: the penalty's weight is a finite number of at least 0, such as 1")
        if not 0.0 < self.search_fraction <= 1.0:
            raise ConfigError(f"search_fraction={self.search_fraction}: give a share of the steps above 0, at most 1")
        if (statistic := self.terms.statistic) not in ("theta", "magnitude", "gradient"):
            raise ConfigError(f"statistic={statistic!r}: allowed are 'theta', 'magnitude' and 'gradient'")
        if statistic != "theta" and self.limit is None:
            raise ConfigError(f"statistic={statistic!r} orders the parts and has no threshold: give a limit")
        least = {"weight_steps": 0, "gate_steps": 1, "patience": 1, "noise": 0, "rate": 0}
        for name, low in least.items():
            if (value := getattr(self.terms, name)) is not None and not value >= low:
                raise ConfigError(f"{name}={value!r}: allowed is {low} or more")
        TwoTemperature(1, hard=self.terms.hard, soft=self.terms.soft)  # raises where these make no sense


@checked
def pruning_transfer(
    space: nn.Module,
    task: Task,
    run: Run,
    *,
    limit: Limit | None = None,
    gamma: float = 0.3,
    cost: Macs | Params | None = None,
    process: Process = "redraw",
    terms: PruningTerms = PruningTerms(),
    round_to: int = 1,
    search_fraction: float = 0.5,
    recipe: Recipe = Recipe(optimizer_factory=adam),
) -> Found:
    """Prune a network to parts that are good with many weights; the algorithm is on top of this file.

    Args:
        space: a network with gates, from `archgrad.slim`, with `inputs=True` on input features too; not changed.
        task: the large source task; its test part is read once, at the end.
        run: epochs of search and training together (default 60), seed, folder.
        limit: an exact constraint, for instance `archgrad.params().at_most(fraction=0.1)`; the penalty acts besides.
        gamma: weight of the penalty; without a limit it alone decides how much stays.
        cost: what the penalty charges; default: the limit's cost (MACs for a measured one), else each part alike.
        process: what happens to the weights before each round: "redraw", "cotrain" or "frozen".
        terms: of the search.
        round_to: widths are multiples of this.
        search_fraction: share of the budget that the search takes; the rest trains the result.
        recipe: trains the result. Its optimizer and `clip` also train the weights in the search, at a constant rate.

    Raises:
        ConfigError: an option out of its range, a task without `split`, or too few steps for a step of the gates.
        LimitError: no network of the space meets the limit; the message says the lowest reachable.
        NonFiniteError: a loss became NaN or infinite.

    Example:
        >>> import torch, archgrad as ag
        >>> task = ag.Classification.load("digits")
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.Linear(32, 10))
        >>> tenth = ag.params().at_most(fraction=0.1)
        >>> run = ag.Run(steps=60, progress=False)
        >>> found = ag.pruning_transfer(ag.slim(net, task.example), task, run, limit=tenth)
    """
    terms = replace(terms, weight_steps=0) if process == "frozen" else terms
    charged = cost.name if cost else None
    settings = PruningSettings(limit, gamma, charged, process, terms, round_to, search_fraction, recipe)
    rounding = WidthRounding(round_to)
    require(task, Splittable, method="pruning_transfer")
    gates(space)  # a space of anything else is refused
    if isinstance(task, Checkable):
        task.check(space)
    check_recipe(recipe, space)
    constraint = GateConstraint(space, limit, rounding) if limit is not None else None
    assert isinstance(task, Splittable)
    halves = task.split(1.0 - terms.held_out)
    if cost is None and constraint:
        cost = constraint.cost if isinstance(constraint.cost, Macs | Params) else macs(task.example)
    begun_with = settings_record(settings) | weights_record(space, given=process == "frozen")
    run.begin("pruning_transfer", begun_with, task=task, network=space)
    space = copied(space).to(run.device)
    given = score_given(space, task, run, check=False) if process == "frozen" else None
    first, second = _split_steps(space, task, run, settings)
    networks = {"before": build(space, full(space))} if process == "frozen" else {}
    charge = gamma * charges(space, cost).to(run.device)
    _search(space, halves, run, charge=charge, settings=settings, steps=first)
    architecture = _derived(space, run, constraint=constraint, rounding=rounding)
    network = build(space, architecture, weights="fresh" if process == "redraw" else "inherit")
    if second:
        train(network, task, run, recipe, steps=second, phase="train")
    recalibrate(network, task, run)

    networks = {**networks, "after": network}
    record = heading(pruning_transfer, settings_record(settings), f"{type(space).__name__} pruned for transfer")
    record |= {"limit": constraint and constraint.record(network), "given": given}
    found = assemble(space, architecture, networks, task=task, run=run, example=task.example, record=record)
    run.finish()
    return found


def _search(
    space: nn.Module, halves: tuple[Task, Task], run: Run, *, charge: Tensor, settings: PruningSettings, steps: int
) -> None:
    """The rounds, as one loop of steps, so that a run can be stopped and resumed inside any of them."""
    terms = settings.terms
    relax(space, functools.partial(TwoTemperature, hard=terms.hard, soft=terms.soft))
    thetas, draws = logits(space), run.generator("gates")
    counted = terms.statistic != "theta"
    for theta in thetas:
        drawn = terms.start + terms.noise * torch.randn(theta.shape, generator=draws)
        theta.data.copy_(torch.ones_like(drawn) if counted else drawn)
    for_weights, for_gates = (half.stream(seed=run.seed, rank=run.rank, world=run.world) for half in halves)
    twin, signs, evidence = build(space, full(space)), Signs(), Evidence(space, terms.statistic)
    weight_optimizer = settings.recipe.optimizer(space)
    gate_optimizer = torch.optim.SGD(thetas, lr=0.0 if counted else terms.rate * len(charge))
    run.register_state(
        space=space, weights=weight_optimizer, gates=gate_optimizer, signs=signs, evidence=evidence
    )  # fmt: skip

    weight_loss = compiled(halves[0].loss, space, run, trainable(space))
    network_loss = compiled(halves[1].loss, space, run, thetas)

    def gate_loss(batch: Batch) -> Tensor:
        loss = network_loss(space, batch)
        return loss if counted else loss + charge @ mixing_weights(space)

    for step in run.steps(steps, phase="gates", time_fraction=settings.search_fraction):
        number, place = divmod(step, terms.weight_steps + terms.gate_steps)
        figures: dict[str, float] = {}
        if place == 0:
            figures = signs.observe(torch.cat(list(thetas)))
            if terms.patience and signs.unchanged >= terms.patience:
                break
            if settings.process == "redraw":
                redraw(space, twin)
                weight_optimizer.state.clear()
        space.train()
        if place < terms.weight_steps:
            batch = load_batch(for_weights, number * terms.weight_steps + place, run)
            loss = take_step(weight_optimizer, run, functools.partial(weight_loss, space, batch))
        else:
            batch = load_batch(for_gates, number * terms.gate_steps + place - terms.weight_steps, run)
            evidence.observe_weights(first=place == terms.weight_steps)
            loss = take_step(
                gate_optimizer, run, functools.partial(gate_loss, batch), observe=evidence.observe_gradients
            )  # fmt: skip
            for theta in thetas if terms.clip else ():
                theta.data.clamp_(-1.0, 1.0)
        run.log_step({"loss": loss}, figures, step=step)
    if counted:
        evidence.decide()


def _derived(
    space: nn.Module, run: Run, *, constraint: GateConstraint | None, rounding: WidthRounding
) -> Architecture:
    """The parts with theta > 0, or the largest theta under the limit."""
    scores = entry_logits(space)

    def derive() -> Architecture:
        if constraint is None:
            return above_threshold(space, scores, 0.0, rounding)
        return constraint.best_feasible(scores, floor=FLOOR * constraint.uniform_width())

    # Remembered, since a measured limit may decide otherwise when it is measured again.
    remembered = run.compute_once("architecture", lambda: dict(derive()))
    return Architecture({name: tuple(pick) for name, pick in remembered.items()})


def _split_steps(space: nn.Module, task: Task, run: Run, settings: PruningSettings) -> tuple[int, int]:
    """Steps of the search and of the training of its result; together they are the run's budget."""
    total = run.total_steps(
        steps_per_epoch(task, settings.recipe.accumulate), default_epochs=60,
        measure_step=lambda: seconds_per_step(space, task, run, settings.recipe),
    )  # fmt: skip
    first = round(settings.search_fraction * total)
    if first <= settings.terms.weight_steps:
        run.withdraw()
        raise ConfigError(
            f"search_fraction={settings.search_fraction} of {total} steps are {first}, and a round begins with "
            f"weight_steps={settings.terms.weight_steps}. Give a larger budget (epochs, steps or seconds of the "
            f"Run), a larger share (at most 1), or fewer weight_steps."
        )
    return first, total - first
