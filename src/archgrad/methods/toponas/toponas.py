"""TopoNAS: the topology of a cell as a variable of its own, searched together with the operations.

Paper: Huang, You, Yang, Tu, Wang, Qian, Zhang, "Explicitly learning topology for differentiable neural architecture
search", arXiv 2011.09300 (2020). Implemented, alpha being the logits of operations, beta those of subsets of inputs,
C_j the subsets of K inputs of node j, w the weights:

    x_j = sum_i q_ij sum_o softmax(alpha_ij)_o op_o(x_i),   q_ij = sum over c in C_j that hold i of p_j(c; beta)
    alpha, beta: descend L_valid(w, alpha, beta) + lambda_t sum_j PA_j
    w: descend L_train(w, alpha, beta)                      one step of each, in turns, after a warm-up of w alone
    derive: the likeliest subset of each node, and on its edges the heaviest operations (`finalists=None`); by default
            few architectures are trained apart

Only the paper's abstract was at hand. Reconstructed, and marked so on its page here: both forms of p (a table over
subsets, or factorized), and both readings of the passive-aggressive regularizer PA ("mass": the probability that a
node keeps a wrong number of inputs; "margin": the lead of the likeliest subset).

What is left open, and what is done here:
- Factorized form, PA on the mass, lambda from 0 to 1 along the search; no temperature by default.
- q multiplies edges without division by K, so that a certain node sums as the derived one does.
- "none" is dead while searching: an edge is absent by topology alone.
- Optimizers as DARTS has them; no weight decay on beta, which would pull it to uniform.
- The logits' rate is raised in short searches, and `limit` is a penalty and a last selection, as in our DARTS. Ours.

Checked against: enumeration of subsets, limits of temperature, a planted topology, in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.optim import Adam

from archgrad.argument_types import checked
from archgrad.choices.access import logits, relax
from archgrad.choices.decide import decide
from archgrad.choices.policies import Prior
from archgrad.choices.relaxations import Softmax
from archgrad.choices.subsets import Keep, topologies, topology, without_topology
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError
from archgrad.methods.toponas.topology_schedule import PassiveAggressive, figures, set_temperature
from archgrad.results.record import heading, settings_record
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.bilevel import EverySteps, alternate, logit_rate, mixed, split_task
from archgrad.supernets.constraint import ArchitectureConstraint, scores
from archgrad.supernets.lifecycle import (
    check_candidates,
    check_search,
    predict_peak_memory,
    prepare_supernet,
    split_steps,
)
from archgrad.supernets.prior import warm_start
from archgrad.tasks.task import Batch, Splittable, Task
from archgrad.training.compiled_steps import compiled
from archgrad.training.recipe import Recipe, darts_sgd
from archgrad.training.schedules import constant
from archgrad.trials.finalists import Ending, Finalists

RECIPE = Recipe(optimizer_factory=darts_sgd)


@dataclass(frozen=True)
class ToponasTerms:
    """The topology and its regularizer.

    Attributes:
        form: of p: "factorized", one logit an input, or "table", one a subset.
        keep: inputs that a node keeps, or (fewest, most) to leave their number free; default: that of the space.
        regularizer: "mass", "margin", "none", or by default "mass" for the factorized form, "none" for the table.
        tolerance: of "mass".
        margin: of "margin".
        weight: lambda, at its end.
        ramp: part of the search of the architecture over which lambda grows from 0.
        temperature: of p, at the beginning and at the end, geometric in between.
        warm_up: part of the search, at its beginning, in which only the weights are trained.
        pressure: of the limit's penalty.
    """

    form: Literal["factorized", "table"] = "factorized"
    keep: Keep | None = None
    regularizer: Literal["mass", "margin", "none"] | None = None
    tolerance: float = 0.05
    margin: float = 0.5
    weight: float = 1.0
    ramp: float = 1.0
    temperature: tuple[float, float] = (1.0, 1.0)
    warm_up: float = 0.2
    pressure: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("ramp", self.ramp), ("warm_up", self.warm_up)):
            if not 0.0 <= value < 1.0 and (name, value) != ("ramp", 1.0):
                raise ConfigError(f"{name}={value}: give a part of the search, from 0 to below 1 (ramp: to 1)")
        if not all(0.0 < temperature < math.inf for temperature in self.temperature):
            raise ConfigError(
                f"temperatures from {self.temperature[0]} to {self.temperature[1]}: give two finite numbers above 0, "
                f"such as 1 and 0.1"
            )

    def progress(self, progress: float) -> float:
        """The used fraction of the search of the architecture, after the warm-up, at that of the whole search."""
        return max(0.0, progress - self.warm_up) / (1.0 - self.warm_up)


@dataclass(frozen=True)
class ToponasSettings:
    """What a TopoNAS run is begun with; see `toponas`."""

    limit: Limit | None
    prior: Prior | None
    terms: ToponasTerms
    search_fraction: float
    weights_fraction: float
    rate: float | None
    finalists: Finalists | None
    search_recipe: Recipe
    recipe: Recipe


@checked
def toponas(
    space: nn.Module,
    task: Task,
    run: Run,
    *,
    limit: Limit | None = None,
    prior: Prior | None = None,
    terms: ToponasTerms = ToponasTerms(),
    search_fraction: float = 0.5,
    weights_fraction: float = 0.5,
    rate: float | None = None,
    finalists: Finalists | None = Finalists(),
    search_recipe: Recipe = RECIPE,
    recipe: Recipe = Recipe(),
) -> Found:
    """Search topology and operations of a supernet by gradient; the algorithm is on top of this file.

    Args:
        space: a network with InputChoice, and with OpChoice on their edges, such as `archgrad.darts_cells()`; it is
            not changed.
        task: what networks are trained and scored on; its test part is read once, at the end.
        run: epochs of search and training together (default 60), seed, folder, device.
        limit: for instance `archgrad.macs(x).at_most(3e6)`; not on a measured cost.
        prior: logits to begin with, such as `archgrad.prior(...)` from scores of untrained networks.
        terms: the topology and its regularizer.
        search_fraction: part of the budget that is searched in; the rest trains the result from fresh weights.
        weights_fraction: part of the training data that the weights are trained on while searching.
        rate: of Adam on the logits; default: 3e-4, higher for short searches.
        finalists: how the search ends; None: with the likeliest architecture, as published.
        search_recipe: optimizer, schedule and clip of the supernet's weights.
        recipe: how the result is trained.

    Raises:
        ChoiceError: the space has no InputChoice, has gates, or nodes of fewer inputs than are to be kept.
        ConfigError: the task lacks what the method needs, a number out of range, or a search that is too short.
        LimitError: the cost is measured, or no network of the space meets the limit.
        NonFiniteError: the loss became NaN or infinite.

    Example:
        >>> import torch, archgrad as ag
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inputs, self.head = ag.InputChoice(3, keep=2, name="inputs"), torch.nn.Linear(64, 10)
        ...     def forward(self, x):
        ...         x = x.flatten(1)
        ...         return self.head(self.inputs([x, x.square(), x.sin()]))
        >>> found = ag.toponas(Net(), ag.Classification.load("digits"), ag.Run(steps=8, progress=False))
        >>> len(found.architecture["inputs"])
        2
    """
    settings = ToponasSettings(
        limit, prior, terms, search_fraction, weights_fraction, rate=rate, finalists=finalists,
        search_recipe=search_recipe, recipe=recipe,
    )  # fmt: skip
    check_search(
        task, Splittable, method="TopoNAS", search_fraction=search_fraction, search_recipe=search_recipe,
        differentiable=limit,
    )  # fmt: skip
    space = prepare_supernet(topology(space, form=terms.form, keep=terms.keep), run, needs="TopoNAS")
    relax(space, Softmax, where=without_topology)
    check_candidates(space, task, recipe)
    constraint = ArchitectureConstraint(space, limit) if limit is not None else None
    architecture_loss = _architecture_loss(space, task, run, terms=terms, constraint=constraint)
    weights = search_recipe.optimizer(space)
    run.begin("toponas", settings_record(settings), task=task, network=space)

    steps, rest = split_steps(
        run, task, search_fraction, search_recipe=search_recipe, recipe=recipe, network=space, passes=2
    )
    ending = Ending(finalists, steps, search_fraction)
    steps = ending.search_steps
    run.require_steps(steps, phase="search", warm_up=terms.warm_up, least=1)
    architecture = _optimizer(space, rate or logit_rate(3e-4, (1.0 - terms.warm_up) * steps))
    warm_start(space, prior)
    set_temperature(space, *terms.temperature, 0.0)
    predict_peak_memory(space, task, run, optimizer=search_recipe.optimizer_factory)

    run.register_state(space=space, weights=weights, architecture=architecture)
    alternate(
        space, split_task(task, weights_fraction), run, weights=weights, architecture=architecture, steps=steps,
        weight_loss=task.loss, architecture_loss=architecture_loss,
        update_schedule=EverySteps(warm_up=terms.warm_up), schedules=(search_recipe.schedule, constant),
        time_fraction=ending.search_time, figures=lambda: figures(space),
    )  # fmt: skip
    set_temperature(space, *terms.temperature, 1.0)
    derived = constraint.best_feasible(scores(space, logarithms=True)) if constraint else decide(space)
    return ending.report(
        space, derived, task, run, steps=rest, recipe=recipe, constraint=constraint,
        record=heading(toponas, settings_record(settings), f"{type(space).__name__} searched by TopoNAS"),
    )  # fmt: skip


def _architecture_loss(
    space: nn.Module, task: Task, run: Run, *, terms: ToponasTerms, constraint: ArchitectureConstraint | None
) -> Callable[[Batch, Batch], Tensor]:
    regularizer, task_loss = _regularizer(space, terms, run), compiled(task.loss, space, run, logits(space))

    def loss_of(train: Batch, valid: Batch) -> Tensor:
        set_temperature(space, *terms.temperature, terms.progress(run.progress))
        loss = task_loss(space, valid)
        if regularizer is not None:
            loss = loss + regularizer().to(loss)
        if constraint is not None:
            loss = loss + terms.pressure * constraint.excess(mixed(space)).to(loss)
        return loss

    return loss_of


def _regularizer(space: nn.Module, terms: ToponasTerms, run: Run) -> PassiveAggressive | None:
    reading = terms.regularizer or ("mass" if terms.form == "factorized" else "none")
    if reading == "none":
        return None
    return PassiveAggressive(
        space, reading=reading, tolerance=terms.tolerance, margin=terms.margin, weight=terms.weight,
        progress=lambda: terms.progress(run.progress), ramp=terms.ramp,
    )  # fmt: skip


def _optimizer(space: nn.Module, rate: float) -> Adam:
    """Adam as DARTS has it; the logits of the topology are not decayed."""
    topological = {p for distribution, _ in topologies(space).values() for p in distribution.parameters()}
    operations = [p for p in logits(space) if p not in topological]
    for logit in operations:
        nn.init.normal_(logit, std=1e-3)
    groups = [
        {"params": operations, "weight_decay": 1e-3},
        {"params": [p for p in logits(space) if p in topological], "weight_decay": 0.0},
    ]
    return Adam([group for group in groups if group["params"]], lr=rate, betas=(0.5, 0.999))
