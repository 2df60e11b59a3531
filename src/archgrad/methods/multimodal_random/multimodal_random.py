"""Multimodal random search: an encoder for each input and their fusion, found together, with no hand work.

Paper: Alletto, Huang, Francois-Lavet, Nakata, Rabusseau, "RandomNet: towards fully automatic neural architecture
design for multimodal learning", arXiv 2003.01181 (2020). Its full text was not at hand: known is the abstract, that
encoders and fusion are sampled from one large space, and come close to the state of the art. Implemented:

    for i in 1 ... n:  draw an architecture uniformly; over the limit: draw again
    train all by one recipe, with successive halving: the best third goes on, for three times the steps
    the best k by validation score: train on, on training and validation data; report their mean on the test

It is `archgrad.random_search(halving=...)` but for the last line; they share `archgrad.trials`. The space is
`archgrad.fusion`, though any with OpChoice and InputChoice will do.

What the paper leaves open, and what is done here: the space, which is ours; n (default 40, fewer where a trial would
have less than 100 steps in the first round); halving down to two, its eta of 3, and one cosine of the rate a round;
AdamW at 0.002; k = 1, for the training of others than the best is thrown away; two thirds of the steps for it, which
goes on from its trial's weights. What is handed back is the best by validation score, whatever the test says. A task
that cannot join the two parts trains the k on its training part.

Checked against: closed forms of the best of n draws, hand counts under the limit, a planted answer, in the tests.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from torch import nn

from archgrad.argument_types import checked
from archgrad.choices.policies import Prior, Uniform
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError
from archgrad.extract.discretize import build
from archgrad.methods.multimodal_random.intervention_card import card, departures
from archgrad.results.record import heading, settings_record
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.lifecycle import (
    check_candidates,
    predict_peak_memory,
    prepare_supernet,
    split_steps,
    train_and_report,
)
from archgrad.tasks.task import Task, description, evaluate, higher_is_better, require
from archgrad.training.fit import recalibrate, train
from archgrad.training.recipe import Recipe, adamw
from archgrad.trials.evaluation import report_failures
from archgrad.trials.random_sampling import best_so_far, chance_of_top, draw_architectures, expected_best, ranking
from archgrad.trials.successive_halving import Halving, successive_halving

ROUNDS = Halving(eta=3, least=2, floor=100)
TRIALS = 40
RECIPE = Recipe(optimizer_factory=functools.partial(adamw, learning_rate=2e-3))


@runtime_checkable
class Joinable(Protocol):
    """A task that can train on its training and validation parts together, as `archgrad.Classification` can."""

    def with_validation(self) -> Task:
        """The task whose training part holds the validation part too."""
        ...


@dataclass(frozen=True)
class MultimodalRandomSettings:
    """What a multimodal random search is begun with; see `multimodal_random`."""

    limit: Limit | None
    prior: Prior | None
    halving: Halving
    finalists: int
    refused_count: bool
    search_fraction: float
    recipe: Recipe


@checked
def multimodal_random(
    space: nn.Module,
    task: Task,
    run: Run,
    *,
    limit: Limit | None = None,
    prior: Prior | None = None,
    halving: Halving = ROUNDS,
    finalists: int = 1,
    refused_count: bool = False,
    search_fraction: float = 0.35,
    recipe: Recipe = RECIPE,
) -> Found:
    """Search encoders and fusion at random; the algorithm is on top of this file.

    Args:
        space: a network with OpChoice and InputChoice, such as `archgrad.fusion`; it is not changed.
        task: trained and validated on; its test part is read once for each finalist and once for the result.
        run: epochs of search and final training together (default 60), trials (default 40, or as many as have
            `halving.floor` steps each in the first round), seed, folder, device.
        limit: on any cost.
        prior: logits that architectures are drawn from, in place of uniformly.
        halving: how trials are dropped.
        finalists: k.
        refused_count: whether a draw over the limit counts as one of the trials.
        search_fraction: part of the budget that is searched in, below 1; the rest is for the finalists.
        recipe: how all networks are trained; default: AdamW at 0.002.

    Returns:
        The best by validation score. `record["finalists"]` has the test scores of all k, their mean and standard
        deviation.

    Raises:
        ChoiceError: the space has no choice, or has gates.
        ConfigError: the task lacks what the method needs, no finalist, or no steps left for one.
        LimitError: no network of the space meets the limit; the message says the lowest reachable.
        ModelError, NonFiniteError: every trial failed, or the training of a finalist did.

    Example:
        >>> import torch, archgrad as ag
        >>> x, y = torch.rand(40, 3), torch.arange(40) % 2
        >>> task = ag.Classification(ag.Modalities({"a": x + y[:, None], "b": x}, y), batch_size=20)
        >>> space = ag.fusion(task.example, classes=2, features=4, widths={"4": (4,)})
        >>> found = ag.multimodal_random(space, task, ag.Run(steps=6, trials=2, progress=False), finalists=1)
        >>> len(found.record["trials"])
        2
    """
    if finalists < 1 or search_fraction >= 1.0:
        raise ConfigError(
            f"finalists={finalists}, search_fraction={search_fraction}: give 1 or more finalists, and a "
            f"search_fraction below 1, which leaves a part of the budget for them"
        )
    settings = MultimodalRandomSettings(limit, prior, halving, finalists, refused_count, search_fraction, recipe)
    require(task, method="multimodal random search")
    space = prepare_supernet(space, run, needs="multimodal random search")
    check_candidates(space, task, recipe)
    steps, rest = split_steps(run, task, search_fraction, search_recipe=recipe, recipe=recipe)
    constraint = ArchitectureConstraint(space, limit) if limit is not None else None
    run.begin("multimodal_random", settings_record(settings), task=task, network=space)
    if constraint:
        constraint.fit_surrogate(run)

    predict_peak_memory(space, task, run, optimizer=recipe.optimizer_factory, drawn=5)
    policy, higher = Uniform(space, prior=prior), higher_is_better(task)
    trials = run.trials or max(halving.least, halving.affordable(TRIALS, steps))
    if not run.trials and trials < TRIALS:
        run.note(
            f"{steps} steps of search try {trials} networks, not {TRIALS}, so that each has {halving.floor} steps "
            "before any is left out; give more steps, or Run(trials=)."
        )
    drawn = draw_architectures(policy, run, trials, constraint, refused_count=refused_count)
    rounds = replace(halving, least=max(halving.least, finalists))  # finalists go on from the weights of the last
    rows, used, networks = successive_halving(
        space, task, run, drawn, halving=rounds, steps=steps, time_fraction=search_fraction, recipe=recipe
    )
    report_failures(rows, run)
    best = run.compute_once("best", lambda: ranking(rows, drawn, constraint, higher=higher, count=finalists))
    if left := [i for i in best if i not in networks]:
        run.note(f"Trials {left} left before the last round, and are finalists from fresh weights.")
    kept = [networks.get(i) or build(space, drawn[i], weights="fresh") for i in best]
    scores = _train_finalists(kept, task, run, settings, steps=max(0, rest + steps - used))
    return train_and_report(
        space, drawn[best[0]], task, run, steps=0, recipe=recipe, constraint=constraint, trained=kept[0],
        record=_record(space, task, run, settings, rows=rows, best=best, scores=scores),
    )  # fmt: skip


def _train_finalists(
    networks: Sequence[nn.Module], task: Task, run: Run, settings: MultimodalRandomSettings, *, steps: int
) -> list[float]:
    """Train the best few on in place, the best first, each in a phase "train"; their test scores."""
    joined, count = task.with_validation() if isinstance(task, Joinable) else task, len(networks)
    scores: list[float] = []
    for i, network in enumerate(networks):
        network.to(run.device)
        train(
            network, joined, run, settings.recipe, steps=(i + 1) * steps // count - i * steps // count, phase="train",
            time_fraction=(1.0 - settings.search_fraction) / count,
        )  # fmt: skip
        recalibrate(network, joined, run)
        figures = evaluate(task, network, "test")
        run.log({f"test_{name}": value for name, value in figures.items()})
        scores.append(next(iter(figures.values())))
    return scores


def _record(
    space: nn.Module,
    task: Task,
    run: Run,
    settings: MultimodalRandomSettings,
    *,
    rows: Sequence[dict[str, Any]],
    best: Sequence[int],
    scores: Sequence[float],
) -> dict[str, Any]:
    mean, spread = statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0
    if len(scores) > 1:
        run.note(
            f"Test scores of the best {len(scores)} on validation data, after more training"
            f"{' on training and validation data together' if isinstance(task, Joinable) else ''}: mean {mean:.4f}, "
            f"standard deviation {spread:.4f}. What is handed back is the best on validation data."
        )
    tried, higher = [row["score"] for row in rows if not row.get("failed")], higher_is_better(task)
    options = settings_record(settings)
    return {
        **heading(multimodal_random, options, f"{type(space).__name__} searched at random"),
        "trials": list(rows), "best_so_far": best_so_far(tried, higher=higher),
        "finalists": {"trials": list(best), "scores": list(scores), "mean": mean, "spread": spread},
        "chances": {
            "expected_best_of_half": expected_best(tried, max(1, len(tried) // 2), higher=higher),
            "chance_of_top_5_percent": chance_of_top(0.05, len(tried)),
        },
        "card": card(space, run, options=departures(multimodal_random, options), data=description(task)),
    }  # fmt: skip
