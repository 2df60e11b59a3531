"""UNAS: search by an unbiased gradient, for differentiable losses and for what can only be measured.

Paper: Vahdat, Mallya, Liu, Kautz, "UNAS: differentiable architecture search meets reinforcement learning",
arXiv 1912.07651 (CVPR 2020). Implemented, z being one-hot picks drawn from p(z) = prod softmax(alpha), zeta their
Gumbel-softmax relaxation, zeta~ its conditional sample of the same noise:

    L(z) = l_train(z) + 0.5 |l_valid(z) - l_train(z)| + 0.2 S(z),      c(zeta) the same at zeta
    L_T(z) = beta_t max(0, T(z) / T_max - 1),   T measured,            c_T(zeta) with a ridge surrogate of T
    alpha: descend along (L(z) - c(zeta)) grad log p(z) + grad c(zeta) - grad c(zeta~), which is unbiased; L_T alike
    w: descend l_train(zeta)                                           alone at first, then after each step of alpha
    derive: the likeliest pick of every choice (`finalists=None`); by default few architectures are trained apart
S counts nodes whose two branches are the same, in spaces that know it.

What the paper leaves open, or its code does otherwise, and what is done here:
- The authors' code takes the absolute value of each pair of images (`gap="pairwise"`), which prefers networks that
  answer always the same where little is learnt yet, as a test shows. The default is the difference of the two batch
  means ("batch").
- One-hots are exact, log p(z) is that of the softened logits that are sampled from, uniforms are clamped at 1e-12.
- One architecture a batch by default, with a decaying baseline, since images that share a BatchNorm but not an
  architecture bias the gradient a little and cost every operation; `per_image=True` is the published form.
- The penalty is relative to the bound (beta 1 is the published 0.1 per ms at its 10 ms); the surrogate is refitted.
- Relaxed weights below 0.05 are left out of weight steps, as in the authors' code.
- The weights are trained alone in three quarters of the search (published: in 15 to 57 %): before they have learnt
  something, the objective ranks architectures against their worth. The logits' schedule begins after it.
- They are trained at samples of the uniform policy throughout (`weights_at="policy"`: published). At samples of the
  searched one they confirm what it prefers, and short searches end in skip connections.
- The logits' rate, 1e-3 (2e-3 on CIFAR), falls to 0.3 (0.15) of itself in the authors' code, here to 0 (`floor`), and
  is raised in short searches; SGD trains the weights, not Adam (`adam_of_unas`). Ours.
- The architecture under the limit is sought among the likeliest and measured again. Ours.

Checked against: enumeration (bias, with controls that fail), a search with a planted answer, in the tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import Adam, Optimizer

from archgrad.argument_types import checked
from archgrad.choices.access import logits, relax
from archgrad.choices.architecture import Architecture
from archgrad.choices.decide import decide
from archgrad.choices.policies import Prior
from archgrad.choices.relaxations import Softmax
from archgrad.choices.subsets import without_topology
from archgrad.costs.limits import Limit
from archgrad.methods.unas.objective import BlackBox, LimitPenalty, Objective, Sampler, UnasTerms
from archgrad.results.record import heading, settings_record
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.bilevel import EverySteps, alternate, logit_rate, split_task
from archgrad.supernets.constraint import ArchitectureConstraint, scores
from archgrad.supernets.lifecycle import (
    check_candidates,
    check_search,
    predict_peak_memory,
    prepare_supernet,
    split_steps,
)
from archgrad.supernets.prior import warm_start
from archgrad.tasks.task import PerSample, Splittable, Task
from archgrad.training.recipe import Recipe
from archgrad.trials.finalists import Ending, Finalists


@dataclass(frozen=True)
class UnasSettings:
    """What a UNAS run is begun with; see `unas`."""

    limit: Limit | None
    prior: Prior | None
    black_box: BlackBox | None
    terms: UnasTerms
    search_fraction: float
    weights_fraction: float
    finalists: Finalists | None
    search_recipe: Recipe
    recipe: Recipe


def adam_of_unas(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The published optimizer of the weights: Adam, rate 3e-4, decay 3e-4, gradient clipped at 5."""
    return Adam([{"params": list(parameters), "clip": 5.0}], lr=3e-4, weight_decay=3e-4)


@checked
def unas(
    space: nn.Module,
    task: Task,
    run: Run,
    *,
    limit: Limit | None = None,
    prior: Prior | None = None,
    black_box: BlackBox | None = None,
    terms: UnasTerms = UnasTerms(),
    search_fraction: float = 0.5,
    weights_fraction: float = 0.9,
    finalists: Finalists | None = Finalists(),
    search_recipe: Recipe = Recipe(),
    recipe: Recipe = Recipe(),
) -> Found:
    """Search a supernet by sampling it; the algorithm is on top of this file.

    Args:
        space: OpChoice and InputChoice of one input (`archgrad.darts_cells(factorized=True)`), or of several by
            distributions over subsets (`archgrad.choices.subsets.topology`); it is not changed.
        task: what networks are trained and scored on; its test part is read once, at the end.
        run: epochs of search and training together (default 60), seed, folder, device.
        limit: on any cost, measured ones included: `archgrad.latency(x, device="cpu").at_most(ms=4.0)`.
        prior: logits to begin with, such as `archgrad.prior(...)` from scores of untrained networks.
        black_box: from (network, validation batch) to a loss [], or [B] for each image, without gradient: the 0-1
            error, or a figure from a device. It is added to the objective.
        terms: the rest of the objective, and its estimator.
        search_fraction: part of the budget that is searched in; the rest trains the result from fresh weights.
        weights_fraction: part of the training data that the weights are trained on while searching.
        finalists: how the search ends; None: with the likeliest architecture, as published.
        search_recipe: optimizer, schedule and clip of the supernet's weights.
        recipe: how the result is trained.

    Raises:
        ChoiceError: the space has no choice, or has gates, or a choice of several inputs without distribution.
        ConfigError: the task lacks what the method needs, or the search is too short for a step of the architecture.
        LimitError: no network of the space meets the limit; the message says the lowest reachable.
        NonFiniteError: the loss became NaN or infinite.

    Example:
        >>> import torch, archgrad as ag
        >>> layer = ag.OpChoice({"relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh()}, name="layer")
        >>> space = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), layer, torch.nn.Linear(8, 10))
        >>> found = ag.unas(space, ag.Classification.load("digits"), ag.Run(steps=8, progress=False))
        >>> found.architecture["layer"] in (0, 1)
        True
    """
    settings = UnasSettings(
        limit, prior, black_box, terms, search_fraction, weights_fraction=weights_fraction,
        finalists=finalists, search_recipe=search_recipe, recipe=recipe,
    )  # fmt: skip
    abilities = [Splittable, PerSample] if terms.per_sample else [Splittable]
    check_search(task, *abilities, method="UNAS", search_fraction=search_fraction, search_recipe=search_recipe)
    space = prepare_supernet(space, run, needs="UNAS", single=True)
    relax(space, Softmax, where=without_topology)
    warm_start(space, prior)
    check_candidates(space, task, recipe, per_sample=terms.per_sample)
    constraint = ArchitectureConstraint(space, limit) if limit is not None else None
    weights = search_recipe.optimizer(space)
    run.begin("unas", settings_record(settings), task=task, network=space)

    steps, rest = split_steps(
        run, task, search_fraction, search_recipe=search_recipe, recipe=recipe, network=space, passes=4
    )
    ending = Ending(finalists, steps, search_fraction)
    steps = ending.search_steps
    run.require_steps(steps, phase="search", warm_up=terms.warm_up, least=1)
    if constraint:
        constraint.fit_surrogate(run)
    predict_peak_memory(
        space, task, run, optimizer=search_recipe.optimizer_factory, passes=1 if terms.gap == "none" else 2
    )
    architecture = Adam(
        logits(space), lr=terms.rate or logit_rate(1e-3, (1.0 - terms.warm_up) * steps), weight_decay=1e-6
    )
    sampler = Sampler(space, run, temperature=terms.temperature, softening=terms.softening)
    penalty = LimitPenalty(sampler, constraint, beta=lambda: terms.beta(run.progress)) if constraint else None
    objective = Objective(space, task, sampler, terms=terms, black_box=black_box, penalty=penalty)
    run.register_state(space=space, weights=weights, architecture=architecture, objective=objective)
    alternate(
        space, split_task(task, weights_fraction), run, weights=weights, architecture=architecture, steps=steps,
        weight_loss=objective.weight_loss, architecture_loss=objective.gradient,
        update_schedule=EverySteps(warm_up=terms.warm_up), schedules=terms.schedules(search_recipe.schedule),
        time_fraction=ending.search_time, figures=objective.figures,
    )  # fmt: skip
    return ending.report(
        space, _derived(space, run, constraint), task, run, steps=rest, recipe=recipe, constraint=constraint,
        record=heading(unas, settings_record(settings), f"{type(space).__name__} searched by UNAS"),
    )  # fmt: skip


def _derived(space: nn.Module, run: Run, constraint: ArchitectureConstraint | None) -> Architecture:
    """The likeliest architecture, under the limit if there is one; computed once, since a measured limit may vary."""
    if constraint is None:
        return decide(space)
    likely = scores(space, logarithms=True)
    return constraint.decide(likely, run)
