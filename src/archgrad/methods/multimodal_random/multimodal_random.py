"""Multimodal random search: an encoder for each input and their fusion, found together, with no hand work.

Paper: Alletto, Huang, Francois-Lavet, Nakata, Rabusseau, "RandomNet: towards fully automatic neural architecture
design for multimodal learning", arXiv 2003.01181 (2020). Its full text was not at hand: known is the abstract, that
encoders and fusion are sampled from one large space, and come close to the state of the art. Implemented:

    for i in 1 ... n:  draw an architecture evenly; over the limit: draw again
    train all by one recipe, with successive halving: the best third goes on, for three times the steps
    the best k by validation accuracy: train anew on training and validation data; report their mean on the test

It is `archgrad.random_search(halving=...)` but for the last line; the parts are shared (`trials/random_sampling.py`,
`trials/successive_halving.py`). The space is `archgrad.fusion`, though any with OpChoice and InputChoice will do.

What the paper leaves open, and what is done here: the space, which is ours; n (default 40); halving, its eta of 3,
and one cosine of the rate a round; AdamW at 0.002; k = 3; half of the steps for the k. What is handed back is the
best by validation accuracy, whatever the test says.

Checked against: closed forms of the best of n draws, hand counts under the limit, a planted answer, in the tests.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import asdict

import torch
from torch import nn

from archgrad.choices.access import choices, using
from archgrad.choices.policies import Prior, Uniform
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError
from archgrad.methods.multimodal_random.intervention_card import card, departures
from archgrad.results.record import heading
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.lifecycle import predict_peak_memory, prepare_supernet, split_steps, train_and_report
from archgrad.supernets.prior import recorded
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import description
from archgrad.training.recipe import OptimizerFactory, adamw
from archgrad.trials.random_sampling import best_so_far, chance_of_top, drawn, expected_best, ranking
from archgrad.trials.successive_halving import Halving, finals, halved

ROUNDS = Halving(eta=3, least=3)
RECIPE = functools.partial(adamw, learning_rate=2e-3)


def multimodal_random(
    space: nn.Module,
    task: Classification,
    run: Run,
    *,
    limit: Limit | None = None,
    prior: Prior | None = None,
    halving: Halving = ROUNDS,
    finalists: int = 3,
    refused_count: bool = False,
    search_fraction: float = 0.5,
    optimizer: OptimizerFactory = RECIPE,
) -> Found:
    """Search encoders and fusion at random; the algorithm is on top of this file.

    Args:
        space: a network with OpChoice and InputChoice, such as `archgrad.fusion`; it is not changed.
        task: trained and validated on; its test part is read once for each finalist and once for what is handed back.
        run: epochs of search and final training together (default 60), trials (default 40), seed, folder, device.
        limit: on any cost.
        prior: logits that architectures are drawn from, in place of evenly.
        halving: how trials are dropped.
        finalists: k.
        refused_count: whether what is drawn over the limit counts as one of the trials.
        search_fraction: share of the steps that is searched in, below 1; the rest is for the finalists.
        optimizer: from weights to their optimizer.

    Returns:
        The best by validation accuracy. `record["finalists"]` has the test scores of all k, their mean and spread.

    Raises:
        ChoiceError: the space has no choice, or has gates.
        ConfigError: no finalist, or no steps left for one.
        LimitError: no network of the space meets the limit; the message says the lowest reachable.
        NonFiniteError: the loss became NaN or infinite.
    """
    if type(finalists) is not int or finalists < 1 or search_fraction >= 1.0:
        raise ConfigError(
            f"finalists={finalists}, search_fraction={search_fraction}: give 1 or more, and a share of the steps for "
            f"them"
        )
    space = prepare_supernet(space, run, needs="multimodal random search")
    with using(space, {name: torch.ones(same[0].size) for name, same in choices(space).items()}):
        task.check(space)  # every candidate, before anything long starts
    steps, rest = split_steps(run, task, search_fraction)
    constraint = ArchitectureConstraint(space, limit) if limit else None
    settings = {
        "limit": limit and limit.record(), "prior": recorded(prior), "halving": asdict(halving),
        "finalists": finalists, "refused_count": refused_count, "search_fraction": search_fraction,
    }  # fmt: skip
    run.begin("multimodal_random", settings)
    if constraint:
        constraint.fit_surrogate(run)

    predict_peak_memory(space, task, run, optimizer=optimizer, drawn=5)
    tried = drawn(Uniform(space, prior=prior), run, run.trials or 40, constraint, refused_count=refused_count)
    rows, used = halved(
        space, task, run, tried, halving=halving, steps=steps, time_fraction=search_fraction, optimizer=optimizer
    )
    best = run.compute_once("best", lambda: ranking(rows, tried, constraint, count=finalists))
    scores, network = finals(
        space,
        task,
        run,
        [tried[i] for i in best],
        steps=max(0, rest + steps - used),
        time_fraction=1.0 - search_fraction,
        optimizer=optimizer,
    )
    mean, spread = statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0
    run.note(
        f"Test accuracy of the best {len(scores)} on validation data, each trained anew on training and validation "
        f"data: mean {mean:.4f}, spread {spread:.4f}. What is handed back is the best on validation data."
    )
    first = [row["score"] for row in rows]
    record = {
        **heading(multimodal_random, settings, f"{type(space).__name__} searched at random"),
        "trials": rows, "best_so_far": best_so_far(first),
        "finalists": {"trials": best, "scores": scores, "mean": mean, "spread": spread},
        "chances": {
            "expected_best_of_half": expected_best(first, max(1, len(first) // 2)),
            "chance_of_top_5_percent": chance_of_top(0.05, len(first)),
        },
        "card": card(space, run, options=departures(multimodal_random, settings), data=description(task)),
    }  # fmt: skip
    return train_and_report(
        space,
        tried[best[0]],
        task,
        run,
        steps=0,
        optimizer=optimizer,
        constraint=constraint,
        record=record,
        trained=network,
    )
