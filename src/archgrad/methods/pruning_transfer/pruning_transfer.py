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

Ours: no layer dies unless a skip replaces it, as in DNAL; under a limit none keeps less than half of its uniform
width; the penalty is linear in a, each part's cost with everything open, a limit exact; early stop. The transfer
itself, with its rivals, is `archgrad.transfer`. Checked against: exact relations, enumeration, planted inputs.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from archgrad.choices.access import logits, relax
from archgrad.choices.architecture import Architecture
from archgrad.choices.relaxations import TwoTemperature
from archgrad.costs.count import Macs, Params, macs
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError
from archgrad.extract.discretize import build
from archgrad.gates.gate_optimizer import entry_logits
from archgrad.gates.selection import GateConstraint, WidthRounding, above, gates, whole
from archgrad.methods.pruning_transfer.gate_pruning import FLOOR, Signs, charges, opening, redraw
from archgrad.results.record import heading
from archgrad.results.result import Found, assemble
from archgrad.run.run import Run
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Batch
from archgrad.training.fit import optimize, recalibrate
from archgrad.training.recipe import OptimizerFactory, Recipe, adam
from archgrad.training.schedules import cosine
from archgrad.training.step import load_batch, take_step

Process = Literal["redraw", "cotrain", "frozen"]


@dataclass(frozen=True)
class PruningTerms:
    """What the search of the parts is made of; all defaults are ours.

    Attributes:
        hard, soft: M and m. At M = 50 what is off learns too little to come back; 10 did better in a trial.
        start, noise: theta begins at start + noise * normal: all parts on.
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
    rate: float = 0.01
    weight_steps: int = 20
    gate_steps: int = 5
    held_out: float = 0.3
    clip: bool = False
    patience: int | None = None


def pruning_transfer(
    space: nn.Module,
    task: Classification,
    run: Run,
    *,
    limit: Limit | None = None,
    gamma: float = 0.3,
    cost: Macs | Params | None = None,
    process: Process = "redraw",
    terms: PruningTerms = PruningTerms(),
    round_to: int = 1,
    search_fraction: float = 0.5,
    optimizer: OptimizerFactory = adam,
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
        search_fraction: share of the steps that the search takes; the rest trains the result.
        optimizer: from weights to their optimizer.

    Raises:
        ConfigError: an unknown process, a negative gamma, or too few steps for a step of the gates.
        LimitError: no network of the space meets the limit; the message says the lowest reachable.
        NonFiniteError: a loss became NaN or infinite.
    """
    rounding, terms = WidthRounding(round_to), _checked(terms, process, gamma)
    gates(space)  # a space of anything else is refused
    task.check(space)
    constraint = GateConstraint(space, limit, rounding) if limit else None
    settings = {
        "limit": limit and {"cost": limit.cost.name, "bound": limit.bound, "fraction": limit.fraction},
        "gamma": gamma, "cost": cost and cost.name, "process": process, "terms": asdict(terms),
        "round_to": round_to, "search_fraction": search_fraction,
    }  # fmt: skip
    (first, second), shares = _stages(run, task, terms, search_fraction), task.split(1.0 - terms.held_out)
    if cost is None and constraint:
        cost = constraint.cost if isinstance(constraint.cost, Macs | Params) else macs(task.example)
    run.begin("pruning_transfer", settings)
    space = copy.deepcopy(space).to(run.device)
    networks = {"before": build(space, whole(space))} if process == "frozen" else {}
    charge = gamma * charges(space, cost).to(run.device)
    _decide(
        space,
        shares,
        run,
        charge=charge,
        terms=terms,
        process=process,
        steps=first,
        time_fraction=search_fraction,
        make=optimizer,
    )
    architecture = _derived(space, run, constraint=constraint, rounding=rounding)
    network = build(space, architecture, weights="fresh" if process == "redraw" else "inherit")
    if second:
        made = Recipe(optimizer_factory=optimizer).optimizer(network)
        run.register_state(network=network, optimizer=made)
        optimize(
            network,
            task,
            run,
            optimizer=made,
            steps=second,
            phase="train",
            schedule=cosine,
            time_fraction=1 - search_fraction,
        )
    recalibrate(network, task, run)

    networks = {**networks, "after": network}
    record = heading(pruning_transfer, settings, f"{type(space).__name__} pruned for transfer")
    record["limit"] = constraint and constraint.record(network)
    found = assemble(space, architecture, networks, task=task, run=run, example=task.example, record=record)
    run.finish()
    return found


def _decide(
    space: nn.Module,
    shares: tuple[Classification, Classification],
    run: Run,
    *,
    charge: torch.Tensor,
    terms: PruningTerms,
    process: Process,
    steps: int,
    time_fraction: float,
    make: OptimizerFactory,
) -> None:
    """The rounds, as one loop of steps, so that a run can be stopped and resumed inside any of them."""
    relax(space, functools.partial(TwoTemperature, hard=terms.hard, soft=terms.soft))
    decided, draws = logits(space), run.generator("gates")
    for theta in decided:
        theta.data.copy_(terms.start + terms.noise * torch.randn(theta.shape, generator=draws))
    first, second = (one.stream(seed=run.seed, rank=run.rank, world=run.world) for one in shares)
    twin = build(space, whole(space))
    weight_steps, gate_steps, signs = terms.weight_steps, terms.gate_steps, Signs()
    on_weights = Recipe(optimizer_factory=make).optimizer(space)
    on_gates = torch.optim.SGD(decided, lr=terms.rate * len(charge))
    run.register_state(space=space, weights=on_weights, gates=on_gates, signs=signs)
    for step in run.steps(steps, phase="gates", time_fraction=time_fraction):
        number, place = divmod(step, weight_steps + gate_steps)
        shown: dict[str, float] = {}
        if place == 0:
            shown = signs.turn(torch.cat(list(decided)))
            if terms.patience and signs.unchanged >= terms.patience:
                break
            if process == "redraw":
                redraw(space, twin)
                on_weights.state.clear()
        space.train()
        gating = place >= weight_steps
        turn = number * (gate_steps if gating else weight_steps) + place - (weight_steps if gating else 0)
        batch = load_batch(second if gating else first, turn, run)

        def loss_of(batch: Batch = batch, gating: bool = gating) -> Tensor:
            loss = shares[0].loss(space, batch)
            return loss + charge @ opening(space) if gating else loss

        loss = take_step(on_gates if gating else on_weights, run, loss_of)
        if gating and terms.clip:
            for theta in decided:
                theta.data.clamp_(-1.0, 1.0)
        run.log_step({"loss": loss}, shown, step=step)


def _derived(
    space: nn.Module, run: Run, *, constraint: GateConstraint | None, rounding: WidthRounding
) -> Architecture:
    """The parts with theta > 0, or the largest theta under the limit."""
    scores = entry_logits(space)

    def decided() -> Architecture:
        return (
            constraint.largest(scores, floor=FLOOR * constraint.width())
            if constraint
            else above(space, scores, 0.0, rounding)
        )

    # Remembered, since a measured limit may decide otherwise when the clock is read again.
    remembered = run.compute_once("architecture", lambda: dict(decided()))
    return Architecture({name: tuple(pick) for name, pick in remembered.items()})


def _checked(terms: PruningTerms, process: str, gamma: float) -> PruningTerms:
    if process not in get_args(Process):
        raise ConfigError(f"process={process!r}: allowed are {', '.join(map(repr, get_args(Process)))}")
    if not 0.0 <= gamma < float("inf"):
        raise ConfigError(f"gamma={gamma}: the penalty's weight is a finite number of at least 0, such as 1")
    least = {"weight_steps": 0, "gate_steps": 1, "patience": 1, "noise": 0, "rate": 0}
    for name, low in least.items():
        if (value := getattr(terms, name)) is not None and not value >= low:
            raise ConfigError(f"{name}={value!r}: allowed is {low} or more")
    TwoTemperature(1, hard=terms.hard, soft=terms.soft)  # refuses what makes no sense before the run begins
    return replace(terms, weight_steps=0) if process == "frozen" else terms


def _stages(run: Run, task: Classification, terms: PruningTerms, search_fraction: float) -> tuple[int, int]:
    """Steps of the search and of the training of its result; together they are the run's constraint."""
    total = run.total_steps(task.steps_per_epoch, default_epochs=60)
    first = round(search_fraction * total) if 0.0 < search_fraction <= 1.0 else 0
    if first <= terms.weight_steps:
        raise ConfigError(
            f"search_fraction={search_fraction} of {total} steps are {first}; a round begins with "
            f"weight_steps={terms.weight_steps}: give a larger budget (epochs or steps of the "
            f"Run), a larger share (at most 1), or fewer weight_steps"
        )
    return first, total - first
