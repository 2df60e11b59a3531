"""Random search: the baseline that every search has to beat at equal cost.

Paper: Li, Talwalkar, "Random search and reproducibility for neural architecture search", arXiv 1902.07638 (UAI 2019).
Implemented, both on the steps that any other method of ours would search in:

    apart    draw n architectures, train each from fresh weights for steps / n, keep the best on validation data
    halving  apart, but all are trained a little, the best of them on, and so forth; see `successive_halving`
    shared   train the supernet, a uniformly drawn architecture a step; draw n, recalibrate each, keep the best

Under a limit what is over it is drawn again. What was kept is trained from fresh weights on the rest of the budget.
On a task that scores architectures itself, such as a table, an architecture is looked up in place of trained.

What the paper leaves open, and what is done here: n is `trials` of the Run (default 10 trained apart, 50 with shared
weights, 1000 looked up); validation accuracy decides, equal ones by the order they were drawn in.

Checked against: a search with a planted answer, in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.access import choices, sample, using
from archgrad.choices.architecture import Architecture
from archgrad.choices.policies import Prior, Uniform
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError
from archgrad.results.record import heading
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.lifecycle import predict_peak_memory, prepare_supernet, split_steps, train_and_report
from archgrad.supernets.prior import recorded
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Batch, Scored
from archgrad.training.fit import optimize
from archgrad.training.recipe import OptimizerFactory, Recipe, sgd
from archgrad.training.schedules import cosine
from archgrad.trials.archive import Archive, Trial
from archgrad.trials.evaluation import evaluator, rounds, taken_by
from archgrad.trials.random_sampling import drawn, ranking
from archgrad.trials.successive_halving import Halving, halved


def random_search(
    space: nn.Module,
    task: Classification | Scored,
    run: Run,
    *,
    limit: Limit | None = None,
    prior: Prior | None = None,
    shared: bool = False,
    halving: Halving | None = None,
    refused_count: bool = False,
    search_fraction: float = 0.5,
    optimizer: OptimizerFactory = sgd,
) -> Found:
    """Search a supernet's architectures at random; the algorithm is on top of this file.

    Args:
        space: a network with OpChoice and InputChoice; it is not changed.
        task: what networks are trained and scored on; its test part is read once, at the end. Or what scores
            architectures itself, such as `archgrad.Tabular`: the network handed back then has fresh weights.
        run: epochs of search and training together (default 60), trials, seed, folder, device.
        limit: on any cost.
        prior: logits that architectures are drawn from, in place of evenly: `archgrad.prior(...)`.
        shared: try architectures with the weights of one supernet.
        halving: train all a little, the best of them on, and so forth, for the same steps together.
        refused_count: whether what is drawn over the limit counts as one of the trials.
        search_fraction: share of the steps that is searched in; the rest trains what was found, from fresh weights.
        optimizer: from weights to their optimizer.

    Raises:
        ChoiceError: the space has no choice, or has gates.
        ConfigError: shared weights or halving where nothing is trained apart.
        LimitError: no network of the space meets the limit; the message says the lowest reachable.
        NonFiniteError: the loss became NaN or infinite.
    """
    space = prepare_supernet(space, run, needs="random search")
    if not isinstance(task, Scored):
        with using(space, {name: torch.ones(same[0].size) for name, same in choices(space).items()}):
            task.check(space)  # every candidate, before anything long starts
    elif shared:
        raise ConfigError(f"shared=True trains a supernet, and a {type(task).__name__} trains nothing; leave it out")
    if halving and (shared or isinstance(task, Scored)):
        raise ConfigError("halving trains every network apart: leave it out with shared=True, and on a table")
    steps, rest = split_steps(run, task, search_fraction)
    constraint = ArchitectureConstraint(space, limit) if limit else None
    trials = run.trials or (1000 if isinstance(task, Scored) else 50 if shared else 10)
    settings = {
        "limit": limit and limit.record(),
        "shared": shared,
        "search_fraction": search_fraction,
        "prior": recorded(prior),
        "halving": halving and asdict(halving),
        "refused_count": refused_count,
    }
    policy = Uniform(space, prior=prior)
    run.begin("random_search", settings)
    if constraint:
        constraint.fit_surrogate(run)

    tried = drawn(policy, run, trials, constraint, refused_count=refused_count)
    if shared and not isinstance(task, Scored):
        _train_shared(space, task, run, steps=steps, time_fraction=search_fraction, optimizer=optimizer)
    elif not isinstance(task, Scored):
        predict_peak_memory(space, task, run, optimizer=optimizer, drawn=5)
    if halving and not isinstance(task, Scored):
        rows, used = halved(
            space, task, run, tried, halving=halving, steps=steps, time_fraction=search_fraction, optimizer=optimizer
        )  # fmt: skip
        rest = max(0, rest + steps - used)
    else:
        rows = _each(
            space,
            task,
            run,
            tried,
            steps=steps,
            time_fraction=search_fraction,
            optimizer=None if shared else optimizer,
        )
        if not shared:
            rest = max(0, rest + steps - taken_by(len(tried), trials=len(tried), steps=steps))
    best = run.compute_once("best", lambda: ranking(rows, tried, constraint)[0])
    record = {
        **heading(random_search, settings, f"{type(space).__name__} searched at random"),
        "trials": rows,
    }  # fmt: skip
    return train_and_report(
        space, tried[best], task, run, steps=rest, optimizer=optimizer, constraint=constraint, record=record
    )  # fmt: skip


def _each(
    space: nn.Module,
    task: Classification | Scored,
    run: Run,
    tried: Sequence[Architecture],
    *,
    steps: int,
    time_fraction: float,
    optimizer: OptimizerFactory | None,
) -> list[dict[str, Any]]:
    """Every architecture by itself: trained apart, looked up, or with the supernet's weights (no optimizer)."""
    evaluate = evaluator(
        space, task, run, trials=len(tried), steps=steps, time_fraction=time_fraction, optimizer=optimizer
    )
    archive = Archive()
    run.register_state(archive=archive)
    evaluate.ahead(dict(enumerate(tried)))
    for number in rounds(task, run, len(tried), time_fraction=1.0):
        score = evaluate(tried[number], number)
        archive.add(Trial(tried[number], score, {}))
        if isinstance(task, Scored):
            run.log({"score": score})
    evaluate.close()
    return [{"architecture": dict(one.architecture), "score": one.score} for one in archive.trials.values()]


def _train_shared(
    space: nn.Module, task: Classification, run: Run, *, steps: int, time_fraction: float, optimizer: OptimizerFactory
) -> None:
    """Weights of the supernet, at an architecture drawn uniformly for each step."""
    generator = run.generator("paths")

    def masks(network: nn.Module, architecture: Architecture) -> dict[str, Tensor]:
        found = choices(network).items()
        return {name: same[0].picked(architecture[name]).float().to(run.device) for name, same in found}

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        with using(network, masks(network, sample(network, generator=generator))):
            return task.loss(network, batch)

    with using(space, masks(space, sample(space, generator=torch.Generator().manual_seed(run.seed)))):
        predict_peak_memory(space, task, run, optimizer=optimizer)
    made = Recipe(optimizer_factory=optimizer).optimizer(space)
    run.register_state(space=space, optimizer=made)
    optimize(
        space,
        task,
        run,
        optimizer=made,
        steps=steps,
        phase="supernet",
        objective=loss,
        schedule=cosine,
        time_fraction=time_fraction,
    )
