"""The inner method of RADARS by default: DARTS of first order in a subspace."""

from __future__ import annotations

from torch import nn

from archgrad.choices.decide import decide
from archgrad.costs.limits import Limit
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint, scores
from archgrad.supernets.darts_loop import descend_mixture, relax_as_mixture
from archgrad.supernets.lifecycle import prepare_supernet, split_steps, train_and_report
from archgrad.supernets.likeliest import that_reads_its_input
from archgrad.tasks.task import Task
from archgrad.training.recipe import Recipe


def inner_darts(
    space: nn.Module,
    task: Task,
    run: Run,
    /,
    *,
    limit: Limit | None,
    search_fraction: float,
    weights_fraction: float,
    search_recipe: Recipe,
) -> Found:
    """DARTS of first order for `supernets/nested.py`, with limits on measured costs too.

    Args:
        space: it is not changed.
        task: of the outer method, without its test part.
        run: a part of the outer method's.
        limit: on what is found; a surrogate stands in for a measured cost.
        search_fraction: part of the run's steps.
        weights_fraction: part of the training data that the weights are trained on.
        search_recipe: of the supernet's weights.
    """
    space = prepare_supernet(space, run, needs="DARTS")
    relax_as_mixture(space)
    steps, rest = split_steps(run, task, search_fraction)
    constraint = ArchitectureConstraint(space, limit) if limit is not None else None
    if constraint:
        constraint.fit_surrogate(run)
    descend_mixture(
        space, task, run, weights=search_recipe.optimizer(space), steps=steps, constraint=constraint,
        weights_fraction=weights_fraction, schedule=search_recipe.schedule,
    )  # fmt: skip
    heaviest = constraint.decide(scores(space), run) if constraint else decide(space)
    architecture = that_reads_its_input(space, heaviest, task, run, constraint)
    return train_and_report(
        space, architecture, task, run, steps=rest, recipe=Recipe(), constraint=constraint, record={}
    )
