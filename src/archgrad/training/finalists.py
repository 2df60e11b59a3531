"""The last decision of a search: few networks, each trained for a while, and the validation part decides."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from archgrad.run.run import Run
from archgrad.tasks.task import Task, evaluate, higher_is_better
from archgrad.training.fit import recalibrate, train
from archgrad.training.recipe import Recipe


def finalists(
    networks: Mapping[str, nn.Module],
    task: Task,
    run: Run,
    recipe: Recipe,
    *,
    steps: int,
    time_fraction: float = 1.0,
    fresh: bool = False,
) -> dict[str, dict[str, float]]:
    """Train each network in place for the same number of steps, a phase each; resumes exactly.

    Args:
        networks: by name, a word each; on the run's device.
        task: gives batches, loss and score.
        run: begun.
        recipe: of each training, with its whole schedule.
        steps: of each.
        time_fraction: of each, in a budget of seconds.
        fresh: whether their weights are untrained, so that statistics of theirs say nothing yet.

    Returns:
        The figures of each on the validation part, the score first.
    """
    found = {}
    for name, network in networks.items():
        if not fresh:
            recalibrate(network, task, run)
        phase = f"finalist_{name}"
        train(network, task, run, recipe, steps=steps, phase=phase, time_fraction=time_fraction, brief=True)
        figures = evaluate(task, network)
        run.log({f"valid_{key}": value for key, value in figures.items()})
        found[name] = figures
    return found


def best(scores: Mapping[str, float], task: Task) -> str:
    """The name of the best score by the task's direction; the first of equals."""
    choose = max if higher_is_better(task) else min
    return choose(scores, key=lambda name: scores[name])
