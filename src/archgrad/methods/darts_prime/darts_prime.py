"""DARTS-PRIME: DARTS with a schedule that waits for the weights, and a pull of the mixture to discrete weights.

Paper: Maile, Lecarpentier, Luga, Wilson, "DARTS-PRIME: regularization and scheduling improve constrained optimization
in differentiable NAS", arXiv 2106.11655 (2021). Its first two versions are called "On constrained optimization in
differentiable neural architecture search". Implemented, alpha being the logits, a the mixing weights, disc(a) the
zeros and ones of the architecture that they point at, Fbar the averaged squared norm of the weights' gradient:

    if the architecture is due (Fbar < theta; or every fth step):
        alpha: descend L_valid(w, a) + c (rho / 2) |a - disc(a)|                        proximity, c: share passed
                 or L_valid(w, a) + (rho / 2) |a - Z + U|, Z and U moving every 10      ADMM
        theta = theta m^-f,   else theta = theta m                                      m = 1.05
    w: descend L_train(w, a)
    clipped activation (v1, v2): a = clip(alpha, 0, 1), without "none", nodes normalized; what falls to 0 stays out
    derive: DARTS's rule

Each part is one that any gradient method takes: `choices/clipped.py`, `dynamic_schedule.py`,
`regularizers.py`.
First order. The weights get 1 - 1 / (1 + f) of the training data, the architecture the rest.

What the paper leaves open, or its code does otherwise, and what is done here:
- Norms are not squared, as in the authors' code. U follows the activated weights, as the penalty does; `on="logits"`
  is the code's. Updates come after 10 steps of the architecture, where the code's counter makes it 9.
- Every choice keeps its heaviest candidate, at a weight of at least 0.01, so that no node loses all; the code has
  no such guard. Clipped logits have no weight decay, which would drive them out of the support.
- The published rate of the logits, 3e-4, is raised in short searches, so that logits travel 6, clipped ones 1. Ours.
- The node norms are the supernet's alone: what was found is trained without.
- `limit` as in DARTS. Ours. Under one the dead candidates may come back at the decision.

Checked against: closed forms of the norms' gradients, enumeration of disc, and `darts` bit for bit, in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam

from archgrad.choices.access import choices, logits, restrict
from archgrad.choices.clipped import Clipped, normalize_nodes
from archgrad.choices.policies import Prior
from archgrad.choices.relaxations import Softmax
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError
from archgrad.extract.discretize import decide
from archgrad.methods.darts_prime.dynamic_schedule import DynamicSchedule, weights_fraction_of
from archgrad.methods.darts_prime.regularizers import Admm, Proximity, regularized
from archgrad.results.record import heading
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.bilevel import TRAVEL, EverySteps, alternate, logit_rate, mixed
from archgrad.supernets.constraint import ArchitectureConstraint, refuse_measured, scores
from archgrad.supernets.darts_loop import relax_as_mixture
from archgrad.supernets.lifecycle import predict_peak_memory, prepare_supernet, split_steps, train_and_report
from archgrad.supernets.prior import recorded, warm_start
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Batch, arguments
from archgrad.training.recipe import OptimizerFactory, Recipe, darts_sgd, sgd
from archgrad.training.schedules import cosine


@dataclass(frozen=True)
class Constraint:
    """What pulls the mixture to a discrete architecture, and when.

    Attributes:
        activation: "softmax" (v3) or "clipped" (v1, v2).
        schedule: "dynamic" or "static".
        f: steps of the weights for one of the architecture; a whole number for the static schedule.
        threshold: theta at the beginning; below the first squared gradients the architecture waits, above them it
            begins at once.
        regularizer: "proximity", "admm" or "none".
        rho: its weight.
        adjusted: proximity weighed entry by entry, in place of all alike.
        on: what ADMM's targets follow: "activated" weights, or "logits" as in the authors' code.
    """

    activation: Literal["softmax", "clipped"] = "softmax"
    schedule: Literal["dynamic", "static"] = "dynamic"
    f: float = 10
    threshold: float = 1.0
    regularizer: Literal["proximity", "admm", "none"] = "proximity"
    rho: float = 0.1
    adjusted: bool = False
    on: Literal["activated", "logits"] = "activated"

    def __post_init__(self) -> None:
        allowed = {
            "activation": ("softmax", "clipped"), "schedule": ("dynamic", "static"),
            "regularizer": ("proximity", "admm", "none"),
        }  # fmt: skip
        for name, names in allowed.items():
            if getattr(self, name) not in names:
                raise ConfigError(f"{name}={getattr(self, name)!r} was given; allowed are {', '.join(names)}")

    def pace(self) -> DynamicSchedule | EverySteps:
        """A new schedule of the architecture's steps."""
        if self.schedule == "dynamic":
            return DynamicSchedule(self.f, threshold=self.threshold)
        return EverySteps(self.f)  # type: ignore[arg-type]

    def term(self, space: nn.Module, run: Run) -> Proximity | Admm:
        """A new regularizer of a relaxed space; of weight 0 for "none"."""
        if self.regularizer == "admm":
            return Admm(space, rho=self.rho, on=self.on)
        rho = self.rho if self.regularizer == "proximity" else 0.0
        return Proximity(space, rho=rho, progress=lambda: run.progress, adjusted=self.adjusted)


def darts_prime(
    space: nn.Module,
    task: Classification,
    run: Run,
    *,
    limit: Limit | None = None,
    prior: Prior | None = None,
    constraint: Constraint = Constraint(),
    search_fraction: float = 0.5,
    weights_fraction: float | None = None,
    pressure: float = 1.0,
    rate: float | None = None,
    optimizer: OptimizerFactory = darts_sgd,
    train_optimizer: OptimizerFactory = sgd,
) -> Found:
    """Search a supernet by gradient descent, constrained to discrete weights; the algorithm is on top of this file.

    Args:
        space: a network with OpChoice and InputChoice, such as `archgrad.darts_cells()`; it is not changed.
        task: what networks are trained and scored on; its test part is read once, at the end.
        run: epochs of search and training together (default 60), seed, folder, device.
        limit: for instance `archgrad.macs(x).at_most(3e6)`; not on a measured cost.
        prior: logits to begin with, such as `archgrad.prior(...)` from scores of untrained networks.
        constraint: activation, schedule and regularizer.
        search_fraction: share of the steps that is searched in; the rest trains what was found, from fresh weights.
        weights_fraction: part of the training data that the weights are trained on; default: 1 - 1 / (1 + f).
        pressure: of the limit's penalty, pressure * max(0, expected cost / bound - 1).
        rate: of Adam on the logits; default as published, raised for short searches.
        optimizer: of the supernet's weights.
        train_optimizer: of the weights of what was found.

    Raises:
        ChoiceError: the space has no choice, or has gates.
        ConfigError: an option out of its range.
        LimitError: the cost is measured, or no network of the space meets the limit.
        NonFiniteError: the loss became NaN or infinite.
    """
    refuse_measured(limit, method="DARTS-PRIME")
    given, space, clipped = (
        space,
        prepare_supernet(space, run, needs="DARTS-PRIME"),
        constraint.activation == "clipped",
    )
    _relaxed(space, task, run, clipped=clipped)
    update_schedule, term = constraint.pace(), constraint.term(space, run)
    steps, rest = split_steps(run, task, search_fraction)
    limit_constraint = ArchitectureConstraint(space, limit) if limit else None
    settings = {
        "limit": limit and limit.record(),
        "constraint": asdict(constraint),
        "search_fraction": search_fraction,
        "weights_fraction": weights_fraction,
        "pressure": pressure,
        "rate": rate,
        "prior": recorded(prior),
    }
    run.begin("darts_prime", settings)
    weights_fraction = weights_fraction_of(constraint.f) if weights_fraction is None else weights_fraction
    _start(space, clipped=clipped)
    warm_start(space, prior)
    predict_peak_memory(space, task, run, optimizer=optimizer)

    made = Recipe(optimizer_factory=optimizer).optimizer(space)
    moves = max(1.0, steps / (constraint.f + (constraint.schedule == "dynamic")))
    travel = 1.0 if clipped else TRAVEL
    group = {"params": logits(space), "lr": rate or logit_rate(3e-4, moves, travel=travel), "steady": True}
    decided = Adam([group], betas=(0.5, 0.999), weight_decay=0.0 if clipped else 1e-3)

    def gradient(train: Batch, valid: Batch) -> tuple[Tensor, Sequence[Tensor | None]]:
        loss = task.loss(space, valid)
        if limit_constraint:
            loss = loss + pressure * limit_constraint.excess(mixed(space)).to(loss)
        return loss, torch.autograd.grad(loss, logits(space), allow_unused=True)

    run.register_state(space=space, weights=made, architecture=decided, update_schedule=update_schedule, term=term)
    alternate(
        space,
        task.split(weights_fraction),
        run,
        weights=made,
        architecture=decided,
        steps=steps,
        weight_loss=task.loss,
        architecture_gradient=regularized(gradient, term, space),
        update_schedule=update_schedule,
        schedule=cosine,
        time_fraction=search_fraction,
    )
    if limit_constraint:
        _revive(space, given)
    architecture = limit_constraint.best_feasible(scores(space)) if limit_constraint else decide(space)
    title = f"{type(space).__name__} searched by DARTS-PRIME"
    record = heading(darts_prime, settings, title)
    return train_and_report(
        space,
        architecture,
        task,
        run,
        steps=rest,
        optimizer=train_optimizer,
        constraint=limit_constraint,
        record=record,
        fresh=given if clipped else None,
    )


def _relaxed(space: nn.Module, task: Classification, run: Run, *, clipped: bool) -> None:
    """Relax the space, in place; clipped, without candidates that are barred, and with norms behind its nodes."""
    relax_as_mixture(space, Clipped if clipped else Softmax)
    task.check(space)
    if clipped:
        restrict(space, {name: same[0].pickable for name, same in choices(space).items()})
        example = run.to_device(task.example)
        normalize_nodes(space, *arguments(example))


def _start(space: nn.Module, *, clipped: bool) -> None:
    """Logits of 1e-3 N(0, 1), or, clipped, an even share of 1 for what is alive and 1e-4 N(0, 1)."""
    for logit in logits(space):
        nn.init.normal_(logit, std=1e-4 if clipped else 1e-3)
    for choice, *_ in choices(space).values():
        if isinstance(choice.relaxation, Clipped):
            with torch.no_grad():
                choice.relaxation.logits.add_(1.0 / int(choice.live.sum())).mul_(choice.live)


def _revive(space: nn.Module, given: nn.Module) -> None:
    """Let live what lived before the search: its weight is 0, so that only a limit chooses it."""
    before = choices(given)
    for name, same in choices(space).items():
        for choice in same:
            choice.live.copy_(before[name][0].live)
