"""Random search: the baseline that every search has to beat at equal cost.

Paper: Li, Talwalkar, "Random search and reproducibility for neural architecture search", arXiv 1902.07638 (UAI 2019).
Implemented, each on the steps that any other method of ours would search in:

    one by one   draw n architectures, train each from fresh weights for steps / n, keep the best on validation data
    halving      the same, but all are trained a little, the best of them further, and so on: `successive_halving`
    shared       train the supernet, a uniformly drawn architecture a step; draw n, recalibrate each, keep the best;
                 by default the few of the lowest validation loss are trained apart (`finalists=None`: published)

Under a limit, architectures over it are drawn again. The best is trained from fresh weights on the rest of the
budget. On a task that scores architectures itself, such as a table, an architecture is looked up in place of trained.

What the paper leaves open, and what is done here: n is `trials` of the Run (default 10 trained one by one, 50 with
shared weights, 1000 looked up); the score on the validation part decides, of equal ones the first that was drawn. A
trial that fails, by an exception of its network, a loss or a score that is NaN or infinite, is recorded and left out.

Checked against: a search with a planted answer, in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.access import decisions, sample, using
from archgrad.choices.architecture import Architecture
from archgrad.choices.policies import Prior, Uniform
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError
from archgrad.results.record import heading, settings_record
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.lifecycle import (
    check_candidates,
    predict_peak_memory,
    prepare_supernet,
    split_steps,
)
from archgrad.tasks.task import Batch, Scored, Task, higher_is_better, require
from archgrad.training.fit import train
from archgrad.training.recipe import Recipe
from archgrad.trials.archive import Archive, Trial
from archgrad.trials.evaluation import evaluator, report_failures, steps_before, trial_numbers
from archgrad.trials.finalists import Ending, Finalists
from archgrad.trials.random_sampling import draw_architectures, ranking
from archgrad.trials.successive_halving import Halving, successive_halving


@dataclass(frozen=True)
class RandomSearchSettings:
    """What a random search is begun with; see `random_search`."""

    limit: Limit | None
    prior: Prior | None
    shared: bool
    halving: Halving | None
    refused_count: bool
    search_fraction: float
    finalists: Finalists | None
    search_recipe: Recipe
    recipe: Recipe


@checked
def random_search(
    space: nn.Module,
    task: Task | Scored,
    run: Run,
    *,
    limit: Limit | None = None,
    prior: Prior | None = None,
    shared: bool = False,
    halving: Halving | None = None,
    refused_count: bool = False,
    search_fraction: float = 0.5,
    finalists: Finalists | None = Finalists(),
    search_recipe: Recipe = Recipe(),
    recipe: Recipe = Recipe(),
) -> Found:
    """Search a supernet's architectures at random; the algorithm is on top of this file.

    Args:
        space: a network with OpChoice and InputChoice; it is not changed.
        task: what networks are trained and scored on; its test part is read once, at the end. Or one that scores
            architectures itself, such as `archgrad.Tabular`: the network handed back then has fresh weights.
        run: epochs of search and training together (default 60), trials, seed, folder, device.
        limit: on any cost.
        prior: logits that architectures are drawn from, in place of uniformly: `archgrad.prior(...)`.
        shared: try architectures with the weights of one supernet.
        halving: train all a little, the best of them further, and so on, for the same steps together.
        refused_count: whether a draw over the limit counts as one of the trials.
        search_fraction: part of the budget that is searched in; the rest trains the result from fresh weights.
        finalists: how a search with shared weights ends; None: with the best score, as published.
        search_recipe: how the weights of a shared supernet are trained.
        recipe: how networks are trained, those tried one by one and the one that is handed back.

    Raises:
        ChoiceError: the space has no choice, or has gates.
        ConfigError: the task lacks what the method needs; shared weights or halving where no networks are trained.
        LimitError: no network of the space meets the limit; the message says the lowest reachable.
        ModelError, NonFiniteError: every trial failed, or the training of the result did.

    Example:
        >>> import torch, archgrad as ag
        >>> layer = ag.OpChoice({"relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh()}, name="layer")
        >>> space = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), layer, torch.nn.Linear(8, 10))
        >>> task, run = ag.Classification.load("digits"), ag.Run(steps=8, trials=2, progress=False)
        >>> found = ag.random_search(space, task, run)
        >>> len(found.record["trials"])
        2
    """
    settings = RandomSearchSettings(
        limit, prior, shared, halving, refused_count, search_fraction, finalists=finalists if shared else None,
        search_recipe=search_recipe, recipe=recipe,
    )  # fmt: skip
    if not isinstance(task, Scored):
        require(task, method="random search")
    elif shared:
        raise ConfigError(f"shared=True trains a supernet, and a {type(task).__name__} trains nothing; leave it out")
    if halving and (shared or isinstance(task, Scored)):
        raise ConfigError("halving trains networks one by one: leave it out with shared=True, and on a table")
    space = prepare_supernet(space, run, needs="random search")
    if not isinstance(task, Scored):
        check_candidates(space, task, recipe)
    steps, rest = split_steps(
        run, task, search_fraction, search_recipe=search_recipe if shared else recipe, recipe=recipe
    )
    ending = Ending(settings.finalists, steps, search_fraction)
    constraint = ArchitectureConstraint(space, limit) if limit is not None else None
    apart = halving or Halving()  # its floor of no steps affords all
    trials = run.trials or (1000 if isinstance(task, Scored) else 50 if shared else apart.affordable(10, steps))
    run.begin("random_search", settings_record(settings), task=task, network=space)
    if constraint:
        constraint.fit_surrogate(run)

    drawn = draw_architectures(Uniform(space, prior=prior), run, trials, constraint, refused_count=refused_count)
    if shared and not isinstance(task, Scored):
        _train_shared(space, task, run, settings, ending)
        rows, used = _one_by_one(space, task, run, drawn, settings, steps=steps), steps
    elif not isinstance(task, Scored):
        predict_peak_memory(space, task, run, optimizer=recipe.optimizer_factory, drawn=5)
    if halving and not isinstance(task, Scored):
        rows, used, _ = successive_halving(
            space, task, run, drawn, halving=halving, steps=steps, time_fraction=search_fraction, recipe=recipe
        )
    elif not shared:
        rows = _one_by_one(space, task, run, drawn, settings, steps=steps)
        used = steps_before(len(drawn), trials=len(drawn), steps=steps)
    report_failures(rows, run)
    best = run.compute_once("best", lambda: ranking(rows, drawn, constraint, higher=higher_is_better(task))[0])
    heads = heading(random_search, settings_record(settings), f"{type(space).__name__} searched at random")
    left, record = max(0, rest + steps - used), {**heads, "trials": rows}
    tried = [architecture for architecture, row in zip(drawn, rows, strict=True) if not row.get("failed")]
    return ending.report(
        space, drawn[best], task, run, steps=left, recipe=recipe, constraint=constraint, record=record, draws=tried
    )  # fmt: skip


def _one_by_one(
    space: nn.Module, task: Task | Scored, run: Run, drawn: Sequence[Architecture], settings: RandomSearchSettings, *,
    steps: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Every architecture by itself: trained, looked up, or with the weights of a shared supernet."""
    evaluate = evaluator(
        space, task, run, trials=len(drawn), steps=steps, time_fraction=settings.search_fraction,
        recipe=None if settings.shared else settings.recipe,
    )  # fmt: skip
    archive = Archive()
    run.register_state(archive=archive)
    evaluate.ahead(dict(enumerate(drawn)))
    for number in trial_numbers(task, run, len(drawn)):
        outcome = evaluate(drawn[number], number)
        archive.add(Trial(drawn[number], outcome.score, failed=outcome.failed))
        if isinstance(task, Scored) and not outcome.failed:
            run.log({"score": outcome.score})
    evaluate.close()
    return [trial.record() for trial in archive.trials.values()]


def _train_shared(space: nn.Module, task: Task, run: Run, settings: RandomSearchSettings, ending: Ending) -> None:
    """Train the supernet's weights, at an architecture drawn uniformly for each step."""
    generator, recipe = run.generator("paths"), settings.search_recipe

    def masks(network: nn.Module, architecture: Architecture) -> dict[str, Tensor]:
        return {
            name: choice.picked(architecture[name]).float().to(run.device)
            for name, choice in decisions(network).items()
        }

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        with using(network, masks(network, sample(network, generator=generator))):
            return task.loss(network, batch)

    with using(space, masks(space, sample(space, generator=torch.Generator().manual_seed(run.seed)))):
        predict_peak_memory(space, task, run, optimizer=recipe.optimizer_factory)
    train(
        space, task, run, recipe, steps=ending.search_steps, phase="supernet", objective=loss,
        time_fraction=ending.search_time, scored=False,
    )  # fmt: skip
