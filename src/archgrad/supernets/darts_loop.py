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
from archgrad.supernets.constraint import Within, scores
from archgrad.supernets.lifecycle import conclude, divided, supernet
from archgrad.supernets.prior import warm_start
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Batch
from archgrad.training.fit import MakeOptimiser, for_weights, sgd_of_darts
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
    within: Within | None = None,
    pressure: float = 1.0,
    share: float = 0.5,
    rate: float | None = None,
    part: float = 1.0,
    gradient: MixtureGradient | None = None,
    prior: Prior | None = None,
) -> None:
    """Logits from N(0, 1e-3^2), then a step of each in turns; see the algorithm on top of `methods/darts.py`.

    Args:
        space: relaxed by `relax_as_mixture`.
        task: divided into shares for the weights and for the logits.
        run: keeps the space and both optimisers.
        weights: the optimiser of the weights.
        steps: of the weights.
        within: the limit, whose excess is penalised.
        pressure: of the penalty, pressure * max(0, expected cost / bound - 1).
        share: of the training data that the weights are trained on.
        rate: of Adam on the logits; default as published, raised for short searches.
        part: of a budget in seconds.
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
        return loss if within is None else loss + pressure * within.excess(mixed(space)).to(loss)

    def descended(train: Batch, valid: Batch) -> tuple[Tensor, Sequence[Tensor | None]]:
        if gradient is not None:
            return gradient(train, valid, loss_of)
        loss = loss_of(valid)
        return loss, torch.autograd.grad(loss, logits(space), allow_unused=True)

    run.keep(space=space, weights=weights, architecture=decided)
    alternate(
        space, task.halves(share), run, weights=weights, architecture=decided, steps=steps,
        weight_loss=task.loss, architecture_gradient=descended, schedule=cosine, share=part,
    )  # fmt: skip


def search_mixture(
    space: nn.Module,
    task: Classification,
    run: Run,
    /,
    *,
    limit: Limit | None,
    search: float,
    share: float = 0.5,
    optimiser: MakeOptimiser = sgd_of_darts,
) -> Found:
    """DARTS of first order inside another method (`supernets/nested.py`), limits on measured costs included.

    Args:
        space: it is not changed.
        task: of the other method, without its test part.
        run: a part of the other method's.
        limit: on what is found; a surrogate stands in where it is measured.
        search: share of the run's steps.
        share: of the training data that the weights are trained on.
        optimiser: of the supernet's weights.
    """
    space = supernet(space, run, needs="DARTS")
    relax_as_mixture(space)
    steps, rest = divided(run, task, search)
    within = Within(space, limit) if limit else None
    if within:
        within.begin(run)
    descend_mixture(space, task, run, weights=for_weights(optimiser, space), steps=steps, within=within, share=share)
    architecture = within.best(scores(space)) if within else decide(space)
    return conclude(space, architecture, task, run, steps=rest, optimiser=optimiser, within=within, record={})
