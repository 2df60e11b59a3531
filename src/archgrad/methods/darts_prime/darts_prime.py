"""DARTS-PRIME: DARTS with a schedule that waits for the weights, and a pull of the mixture to discrete weights.

Paper: Maile, Lecarpentier, Luga, Wilson, "DARTS-PRIME: regularization and scheduling improve constrained optimization
in differentiable NAS", arXiv 2106.11655 (2021). Its first two versions are called "On constrained optimization in
differentiable neural architecture search". Implemented, alpha being the logits, a the mixing weights, disc(a) the
zeros and ones of the architecture that they point at, Fbar the averaged squared norm of the weights' gradient:

    if the architecture is due (Fbar < theta; or every fth step):
        alpha: descend L_valid(w, a) + c (rho / 2) |a - disc(a)|                        proximity, c: share passed
                 or L_valid(w, a) + (rho / 2) |a - Z + U|, Z and U moving every 10      ADMM
        theta = theta m^-f,   else theta = theta m                                      m = 1.05
    w: descend L_train(w, a)
    clipped activation (v1, v2): a = clip(alpha, 0, 1), without "none", nodes normalized; what falls to 0 stays out
    derive: DARTS's rule (`finalists=None`); by default few architectures are trained apart

Each part is one that any gradient method takes: `choices/clipped_relaxation.py`, `dynamic_schedule.py`,
`regularizers.py`.
First order. The weights get 1 - 1 / (1 + f) of the training data, the architecture the rest.

What the paper leaves open, or its code does otherwise, and what is done here:
- Norms are not squared, as in the authors' code. U follows the activated weights, as the penalty does; `on="logits"`
  is the code's. Updates come after 10 steps of the architecture, where the code's counter makes it 9.
- Every choice keeps its heaviest candidate, at a weight of at least 0.01, so that no node loses all; the code has
  no such guard. Clipped logits have no weight decay, which drives them out of the support (`decay=1e-3`: the code's).
- s is a constant in the gradient of the adjusted proximity; the code differentiates it too (`through`).
- The published rate of the logits, 3e-4, is raised in short searches, so that logits can go as far as in the
  published 50 epochs: at f = 10 in 3,200 steps of theirs, at most 1. Ours.
- The node norms are the supernet's alone: what was found is trained without.
- `limit` as in DARTS. Ours. Under one the dead candidates may come back at the decision.

Checked against: closed forms of the norms' gradients, enumeration of disc, and `darts` bit for bit, in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam

from archgrad.argument_types import checked
from archgrad.choices.access import choices, decisions, logits, restrict
from archgrad.choices.architecture import Architecture
from archgrad.choices.clipped_relaxation import Clipped, normalize_nodes
from archgrad.choices.decide import decide
from archgrad.choices.policies import Prior
from archgrad.choices.relaxations import Softmax
from archgrad.costs.limits import Limit
from archgrad.methods.darts_prime.dynamic_schedule import weights_fraction_of
from archgrad.methods.darts_prime.options import DartsPrimeTerms
from archgrad.methods.darts_prime.regularizers import regularized
from archgrad.results.record import heading, settings_record
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.bilevel import TRAVEL, alternate, logit_rate, mixed, split_task
from archgrad.supernets.constraint import ArchitectureConstraint, scores
from archgrad.supernets.darts_loop import relax_as_mixture
from archgrad.supernets.lifecycle import (
    check_candidates,
    check_search,
    predict_peak_memory,
    prepare_supernet,
    split_steps,
)
from archgrad.supernets.prior import warm_start
from archgrad.tasks.task import Batch, Splittable, Task, arguments
from archgrad.training.compiled_steps import compiled
from archgrad.training.recipe import Recipe, darts_sgd
from archgrad.training.schedules import constant
from archgrad.trials.finalists import Ending, Finalists

RECIPE = Recipe(optimizer_factory=darts_sgd)


@dataclass(frozen=True)
class DartsPrimeSettings:
    """What a DARTS-PRIME run is begun with; see `darts_prime`."""

    limit: Limit | None
    prior: Prior | None
    terms: DartsPrimeTerms
    search_fraction: float
    weights_fraction: float
    rate: float | None
    finalists: Finalists | None
    search_recipe: Recipe
    recipe: Recipe


@checked
def darts_prime(
    space: nn.Module,
    task: Task,
    run: Run,
    *,
    limit: Limit | None = None,
    prior: Prior | None = None,
    terms: DartsPrimeTerms = DartsPrimeTerms(),
    search_fraction: float = 0.5,
    weights_fraction: float | None = None,
    rate: float | None = None,
    finalists: Finalists | None = Finalists(),
    search_recipe: Recipe = RECIPE,
    recipe: Recipe = Recipe(),
) -> Found:
    """Search a supernet by gradient descent, constrained to discrete weights; the algorithm is on top of this file.

    Args:
        space: a network with OpChoice and InputChoice, such as `archgrad.darts_cells()`; it is not changed.
        task: what networks are trained and scored on; its test part is read once, at the end.
        run: epochs of search and training together (default 60), seed, folder, device.
        limit: for instance `archgrad.macs(x).at_most(3e6)`; not on a measured cost.
        prior: logits to begin with, such as `archgrad.prior(...)` from scores of untrained networks.
        terms: activation, schedule and regularizer.
        search_fraction: part of the budget that is searched in; the rest trains the result from fresh weights.
        weights_fraction: part of the training data that the weights are trained on; default: 1 - 1 / (1 + f).
        rate: of Adam on the logits; default: as published, higher for short searches.
        finalists: how the search ends; None: with the heaviest architecture, as published.
        search_recipe: optimizer, schedule and clip of the supernet's weights.
        recipe: how the result is trained.

    Raises:
        ChoiceError: the space has no choice, or has gates.
        ConfigError: the task lacks what the method needs, an option out of its range, or a search that is too short.
        LimitError: the cost is measured, or no network of the space meets the limit.
        NonFiniteError: the loss became NaN or infinite.

    Example:
        >>> import torch, archgrad as ag
        >>> layer = ag.OpChoice({"relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh()}, name="layer")
        >>> space = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), layer, torch.nn.Linear(8, 10))
        >>> found = ag.darts_prime(space, ag.Classification.load("digits"), ag.Run(steps=8, progress=False))
        >>> found.architecture["layer"] in (0, 1)
        True
    """
    settings = DartsPrimeSettings(
        limit, prior, terms, search_fraction,
        weights_fraction=weights_fraction_of(terms.f) if weights_fraction is None else weights_fraction,
        rate=rate, finalists=finalists, search_recipe=search_recipe, recipe=recipe,
    )  # fmt: skip
    check_search(
        task, Splittable, method="DARTS-PRIME", search_fraction=search_fraction, search_recipe=search_recipe,
        differentiable=limit,
    )  # fmt: skip
    original, space = space, prepare_supernet(space, run, needs="DARTS-PRIME")
    _relax(space, task, run, settings)
    update_schedule, term = terms.update_schedule(), terms.term(space, run)
    constraint, weights = ArchitectureConstraint(space, limit) if limit else None, search_recipe.optimizer(space)
    run.begin("darts_prime", settings_record(settings), task=task, network=space)

    _draw_logits(space, clipped=terms.clipped)
    warm_start(space, prior)
    steps, rest = split_steps(
        run, task, search_fraction, search_recipe=search_recipe, recipe=recipe, network=space, passes=2
    )
    ending = Ending(finalists, steps, search_fraction)
    steps = ending.search_steps
    run.require_steps(steps, phase="search", least=terms.least_steps)
    predict_peak_memory(space, task, run, optimizer=search_recipe.optimizer_factory)
    architecture, loss_of = _optimizer(space, settings, steps=steps), compiled(task.loss, space, run, logits(space))

    def architecture_loss(train: Batch, valid: Batch) -> Tensor:
        loss = loss_of(space, valid)
        return loss + terms.pressure * constraint.excess(mixed(space)).to(loss) if constraint else loss

    run.register_state(
        space=space, weights=weights, architecture=architecture, update_schedule=update_schedule, term=term
    )
    alternate(
        space, split_task(task, settings.weights_fraction), run, weights=weights, architecture=architecture,
        steps=steps, weight_loss=task.loss, architecture_loss=regularized(architecture_loss, term, space),
        update_schedule=update_schedule, schedules=(search_recipe.schedule, constant),
        time_fraction=ending.search_time,
    )  # fmt: skip
    return ending.report(
        space, _heaviest(space, original, constraint), task, run, steps=rest, recipe=recipe, constraint=constraint,
        fresh=original if terms.clipped else None,
        record=heading(darts_prime, settings_record(settings), f"{type(space).__name__} searched by DARTS-PRIME"),
    )  # fmt: skip


def _optimizer(space: nn.Module, settings: DartsPrimeSettings, *, steps: int) -> Adam:
    """Adam on the logits, as published; in short searches they can go as far as in the published 50 epochs.

    In these, DARTS takes 19,500 steps on one half of the data, and DARTS-PRIME more on its larger part.
    """
    terms = settings.terms
    published = logit_rate(3e-4, steps, travel=2.0 * weights_fraction_of(terms.f) * TRAVEL)
    group = {"params": logits(space), "lr": settings.rate or published}
    return Adam([group], betas=(0.5, 0.999), weight_decay=terms.weight_decay)


def _relax(space: nn.Module, task: Task, run: Run, settings: DartsPrimeSettings) -> None:
    """Relax the space, in place; clipped: without barred candidates, and with norms after its nodes."""
    clipped = settings.terms.clipped
    relax_as_mixture(space, Clipped if clipped else Softmax)
    check_candidates(space, task, settings.recipe)
    if clipped:
        restrict(space, {name: choice.pickable for name, choice in decisions(space).items()})
        example = run.to_device(task.example)
        normalize_nodes(space, *arguments(example))


def _draw_logits(space: nn.Module, *, clipped: bool) -> None:
    """Draw logits from N(0, 1e-3^2); clipped ones of n live candidates from N(1 / n, 1e-4^2)."""
    for logit in logits(space):
        nn.init.normal_(logit, std=1e-4 if clipped else 1e-3)
    for choice in decisions(space).values():
        if isinstance(choice.relaxation, Clipped):
            with torch.no_grad():
                choice.relaxation.logits.add_(1.0 / int(choice.live.sum())).mul_(choice.live)


def _heaviest(space: nn.Module, original: nn.Module, constraint: ArchitectureConstraint | None) -> Architecture:
    if constraint is None:
        return decide(space)
    _revive(space, original)
    return constraint.best_feasible(scores(space))


def _revive(space: nn.Module, original: nn.Module) -> None:
    """Make candidates live that died in the search: their weight is 0, so that only a limit picks them."""
    before = choices(original)
    for name, same in choices(space).items():
        for choice in same:
            choice.live.copy_(before[name][0].live)
