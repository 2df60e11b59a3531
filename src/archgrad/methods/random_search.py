"""Random search: the baseline that every search has to beat at equal cost.

Paper: Li, Talwalkar, "Random search and reproducibility for neural architecture search", arXiv 1902.07638 (UAI 2019).
Implemented, both on the steps that any other method of ours would search in:

    apart    draw n architectures, train each from fresh weights for steps / n, keep the best on validation data
    shared   train the supernet, a uniformly drawn architecture a step; draw n, recalibrate each, keep the best

Under a limit what is over it is drawn again. What was kept is trained from fresh weights on the rest of the budget.
On a task that scores architectures itself, such as a table, an architecture is looked up in place of trained.

What the paper leaves open, and what is done here: n is `trials` of the Run (default 10 trained apart, 50 with shared
weights, 1000 looked up); validation accuracy decides, equal ones by the order they were drawn in.

Checked against: a search with a planted answer, in the tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.access import choices, sample, using, weights
from archgrad.choices.architecture import Architecture
from archgrad.choices.policies import Prior, Uniform
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError, LimitError
from archgrad.search.card import heading
from archgrad.search.fit import MakeOptimiser, descend, sgd
from archgrad.search.found import Found
from archgrad.search.prior import recorded
from archgrad.search.run import Run
from archgrad.search.schedules import cosine
from archgrad.search.supernet import conclude, divided, foresee, supernet
from archgrad.search.trials import Archive, Trial, evaluator, rounds
from archgrad.search.within import Within
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Batch, Scored

MISSES = 500  # draws in a row that are over the limit, or known, before the space is taken for exhausted


def random_search(
    space: nn.Module,
    task: Classification | Scored,
    run: Run,
    *,
    limit: Limit | None = None,
    prior: Prior | None = None,
    shared: bool = False,
    search: float = 0.5,
    optimiser: MakeOptimiser = sgd,
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
        search: share of the steps that is searched in; the rest trains what was found, from fresh weights.
        optimiser: from weights to their optimiser.

    Raises:
        ChoiceError: the space has no choice, or has gates.
        ConfigError: shared weights where nothing is trained.
        LimitError: no network of the space meets the limit; the message says the lowest reachable.
        NonFiniteError: the loss became NaN or infinite.
    """
    space = supernet(space, run, needs="random search")
    if not isinstance(task, Scored):
        with using(space, {name: torch.ones(same[0].size) for name, same in choices(space).items()}):
            task.check(space)  # every candidate, before anything long starts
    elif shared:
        raise ConfigError(f"shared=True trains a supernet, and a {type(task).__name__} trains nothing; leave it out")
    steps, rest = divided(run, task, search)
    within = Within(space, limit) if limit else None
    trials = run.trials or (1000 if isinstance(task, Scored) else 50 if shared else 10)
    settings = {
        "limit": limit and limit.record(), "shared": shared, "search": search, "prior": recorded(prior),
    }  # fmt: skip
    policy = Uniform(space, prior=prior)
    run.begin("random_search", settings)
    if within:
        within.begin(run)

    drawn = [
        Architecture.from_json(text) for text in run.remember("drawn", lambda: _drawn(policy, run, trials, within))
    ]
    if shared and not isinstance(task, Scored):
        _train_shared(space, task, run, steps=steps, share=search, optimiser=optimiser)
    elif not isinstance(task, Scored):
        foresee(space, task, run, optimiser=optimiser, drawn=5)
    evaluate = evaluator(
        space, task, run, trials=len(drawn), steps=steps, share=search, optimiser=None if shared else optimiser
    )  # fmt: skip
    archive = Archive()
    run.keep(archive=archive)
    for number in rounds(task, run, len(drawn), share=1.0):
        score = evaluate(drawn[number], number)
        archive.add(Trial(drawn[number], score, {}))
        if isinstance(task, Scored):
            run.log({"score": score})
    rows = [{"architecture": dict(one.architecture), "score": one.score} for one in archive.trials.values()]
    best = run.remember("best", lambda: _best(rows, drawn, within))
    record = {
        **heading(random_search, settings, f"{type(space).__name__} searched at random"),
        "trials": rows,
    }  # fmt: skip
    return conclude(
        space, drawn[best], task, run, steps=rest, optimiser=optimiser, within=within, record=record
    )  # fmt: skip


def _best(rows: list[dict[str, Any]], drawn: list[Architecture], within: Within | None) -> int:
    """The place of the highest score, of the first to be drawn; where a limit is measured, of what still keeps it."""
    order = sorted(range(len(rows)), key=lambda i: (-rows[i]["score"], i))
    kept = next((i for i in order if within is None or within.holds(drawn[i])), None)
    if kept is None:
        raise LimitError(
            "none of the architectures tried kept its limit when measured again: the clock is too noisy for a limit "
            "this tight; raise it, or measure on a quieter machine"
        )
    return kept


def _drawn(policy: Uniform, run: Run, trials: int, within: Within | None) -> list[str]:
    """Different architectures under the limit, as JSON; fewer where the space has no more."""
    generator, found, missed = run.generator("architectures"), dict[Architecture, None](), 0
    while len(found) < trials and missed < MISSES:
        architecture = policy.sample(generator)
        if architecture in found or (within and within.price(architecture) > within.bound):
            missed += 1
        else:
            found[architecture], missed = None, 0
    if within and not found:
        raise LimitError(
            f"none of {MISSES} architectures drawn at random takes at most {within.bound:,.6g} "
            f"{within.cost.unit}, though some of the space do; raise the limit, or use a method that steers, such "
            f"as archgrad.unas"
        )
    return [architecture.to_json() for architecture in found]


def _train_shared(
    space: nn.Module, task: Classification, run: Run, *, steps: int, share: float, optimiser: MakeOptimiser
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
        foresee(space, task, run, optimiser=optimiser)
    made = optimiser(weights(space))
    run.keep(space=space, optimiser=made)
    descend(
        space, task, run, optimiser=made, steps=steps, phase="supernet", objective=loss, schedule=cosine, share=share
    )  # fmt: skip
