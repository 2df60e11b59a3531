"""The search of DARTS: the logits of a mixture of all candidates, on the other share of the data than its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from archgrad.choices.access import logits, relax
from archgrad.choices.modules import InputChoice
from archgrad.choices.policies import Prior
from archgrad.choices.relaxations import Open, Softmax
from archgrad.choices.subsets import without_topology
from archgrad.costs.limits import Limit
from archgrad.extract.discretize import decide
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.bilevel import alternate, logit_rate, mixed
from archgrad.supernets.constraint import ArchitectureConstraint, scores
from archgrad.supernets.lifecycle import prepare_supernet, split_steps, train_and_report
from archgrad.supernets.prior import warm_start
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Batch
from archgrad.training.recipe import OptimizerFactory, Recipe, darts_sgd
from archgrad.training.schedules import cosine

# From a training batch, a validation batch and the loss of the logits, to that loss and its gradient.
MixtureGradient = Callable[[Batch, Batch, Callable[[Batch], Tensor]], tuple[Tensor, Sequence[Tensor | None]]]


def relax_as_mixture(space: nn.Module, relaxation: Callable[[int], nn.Module] = Softmax) -> None:
    """A softmax, or another, for every choice without a topology; inputs of a node that keeps several are all in."""
    relax(space, relaxation, where=without_topology)
    relax(space, Open, where=lambda c: isinstance(c, InputChoice) and c.keep > 1 and without_topology(c))


def descend_mixture(
    space: nn.Module,
    task: Classification,
    run: Run,
    *,
    weights: Optimizer,
    steps: int,
    constraint: ArchitectureConstraint | None = None,
    pressure: float = 1.0,
    weights_fraction: float = 0.5,
    rate: float | None = None,
    time_fraction: float = 1.0,
    gradient: MixtureGradient | None = None,
    prior: Prior | None = None,
) -> None:
    """Logits from N(0, 1e-3^2), then a step of each in turns; see the algorithm on top of `methods/darts.py`.

    Args:
        space: relaxed by `relax_as_mixture`.
        task: divided into shares for the weights and for the logits.
        run: keeps the space and both optimizers.
        weights: the optimizer of the weights.
        steps: of the weights.
        constraint: the limit, whose excess is penalized.
        pressure: of the penalty, pressure * max(0, expected cost / bound - 1).
        weights_fraction: of the training data that the weights are trained on.
        rate: of Adam on the logits; default as published, raised for short searches.
        time_fraction: of a budget in seconds.
        gradient: of the logits; default: that of the validation loss at the present weights, first order.
        prior: logits to begin with.
    """
    for logit in logits(space):
        nn.init.normal_(logit, std=1e-3)
    warm_start(space, prior)
    group = {"params": logits(space), "lr": rate or logit_rate(3e-4, steps), "steady": True}
    decided = Adam([group], betas=(0.5, 0.999), weight_decay=1e-3)

    def loss_of(batch: Batch) -> Tensor:
        loss = task.loss(space, batch)
        return loss if constraint is None else loss + pressure * constraint.excess(mixed(space)).to(loss)

    def descended(train: Batch, valid: Batch) -> tuple[Tensor, Sequence[Tensor | None]]:
        if gradient is not None:
            return gradient(train, valid, loss_of)
        loss = loss_of(valid)
        return loss, torch.autograd.grad(loss, logits(space), allow_unused=True)

    run.register_state(space=space, weights=weights, architecture=decided)
    alternate(
        space, task.split(weights_fraction), run, weights=weights, architecture=decided, steps=steps,
        weight_loss=task.loss, architecture_gradient=descended, schedule=cosine, time_fraction=time_fraction,
    )  # fmt: skip


def search_mixture(
    space: nn.Module,
    task: Classification,
    run: Run,
    /,
    *,
    limit: Limit | None,
    search_fraction: float,
    weights_fraction: float = 0.5,
    optimizer: OptimizerFactory = darts_sgd,
) -> Found:
    """DARTS of first order inside another method (`supernets/nested.py`), limits on measured costs included.

    Args:
        space: it is not changed.
        task: of the other method, without its test part.
        run: a part of the other method's.
        limit: on what is found; a surrogate stands in where it is measured.
        search_fraction: share of the run's steps.
        weights_fraction: of the training data that the weights are trained on.
        optimizer: of the supernet's weights.
    """
    space = prepare_supernet(space, run, needs="DARTS")
    relax_as_mixture(space)
    steps, rest = split_steps(run, task, search_fraction)
    constraint = ArchitectureConstraint(space, limit) if limit else None
    if constraint:
        constraint.fit_surrogate(run)
    descend_mixture(
        space,
        task,
        run,
        weights=Recipe(optimizer_factory=optimizer).optimizer(space),
        steps=steps,
        constraint=constraint,
        weights_fraction=weights_fraction,
    )
    architecture = constraint.best_feasible(scores(space)) if constraint else decide(space)
    return train_and_report(
        space, architecture, task, run, steps=rest, optimizer=optimizer, constraint=constraint, record={}
    )
