"""DARTS: mix all candidates by a softmax, and descend the validation loss in the logits.

Paper: Liu, Simonyan, Yang, "DARTS: differentiable architecture search", arXiv 1806.09055 (ICLR 2019). A baseline
here. Implemented, alpha being the logits of all choices and w the weights of the supernet:

    alpha = alpha - rate grad_alpha L_valid(w - xi grad_w L_train(w, alpha), alpha)     xi = 0: first order
    w     = w - xi grad_w L_train(w, alpha)                                             one step of each, in turns
    derive: each operation the heaviest of its choice; each node the two inputs whose heaviest operations weigh most

Inputs of a node are mixed at full strength, unless the space comes with distributions over subsets of them. The
training data is divided in halves, one for w and one for alpha. Second order takes the paper's finite difference for
the mixed derivative, with radius 0.01 / |grad_w' L_valid|.

What the paper leaves open, or is done otherwise here:
- Nodes keep the inputs of their heaviest operations, "none" left out, as in the authors' code.
- The published rate of the logits, 3e-4, is raised in searches shorter than the published 19,500 steps, so that
  they can move as far. Ours.
- By default few architectures are trained apart at the end. `finalists=None` is the published form. Ours.
- `limit` is ours: a penalty on the expected cost while searching, and the heaviest architecture under the limit at
  the end. The cost needs a gradient: a measured one is refused, since nothing here samples networks.

Checked against: enumeration and the closed form of the second-order step, in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from archgrad.argument_types import checked
from archgrad.choices.access import logits, trainable
from archgrad.choices.decide import decide
from archgrad.choices.policies import Prior
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError
from archgrad.results.record import heading, settings_record
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint, scores
from archgrad.supernets.darts_loop import descend_mixture, relax_as_mixture
from archgrad.supernets.lifecycle import (
    check_candidates,
    check_search,
    predict_peak_memory,
    prepare_supernet,
    split_steps,
)
from archgrad.tasks.task import Batch, Splittable, Task
from archgrad.training.recipe import Recipe, darts_sgd
from archgrad.trials.finalists import Ending, Finalists

RADIUS = 0.01
RECIPE = Recipe(optimizer_factory=darts_sgd)


@dataclass(frozen=True)
class DartsSettings:
    """What a DARTS run is begun with; see `darts`."""

    limit: Limit | None
    prior: Prior | None
    second_order: bool
    search_fraction: float
    weights_fraction: float
    rate: float | None
    finalists: Finalists | None
    search_recipe: Recipe
    recipe: Recipe


@checked
def darts(
    space: nn.Module,
    task: Task,
    run: Run,
    *,
    limit: Limit | None = None,
    prior: Prior | None = None,
    second_order: bool = False,
    search_fraction: float = 0.5,
    weights_fraction: float = 0.5,
    rate: float | None = None,
    finalists: Finalists | None = Finalists(),
    search_recipe: Recipe = RECIPE,
    recipe: Recipe = Recipe(),
) -> Found:
    """Search a supernet by gradient descent on the validation loss; the algorithm is on top of this file.

    Args:
        space: a network with OpChoice and InputChoice, such as `archgrad.darts_cells()`, or what
            `archgrad.choices.subsets.topology` makes of it; it is not changed.
        task: what networks are trained and scored on; its test part is read once, at the end.
        run: epochs of search and training together (default 60), seed, folder, device.
        limit: for instance `archgrad.macs(x).at_most(3e6)`; not on a measured cost.
        prior: logits to begin with, such as `archgrad.prior(...)` from scores of untrained networks.
        second_order: differentiate through one step of the weights.
        search_fraction: part of the budget that is searched in; the rest trains the result from fresh weights.
        weights_fraction: part of the training data that the weights are trained on while searching.
        rate: of Adam on the logits; default: as published, higher for short searches.
        finalists: how the search ends; None: with the heaviest architecture, as published.
        search_recipe: optimizer, schedule and clip of the supernet's weights.
        recipe: how the result is trained.

    Raises:
        ChoiceError: the space has no choice, or has gates.
        ConfigError: the task lacks what the method needs, or an option out of its range.
        LimitError: the cost is measured, or no network of the space meets the limit.
        NonFiniteError: the loss became NaN or infinite.

    Example:
        >>> import torch, archgrad as ag
        >>> layer = ag.OpChoice({"relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh()}, name="layer")
        >>> space = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), layer, torch.nn.Linear(8, 10))
        >>> found = ag.darts(space, ag.Classification.load("digits"), ag.Run(steps=8, progress=False))
        >>> found.architecture["layer"] in (0, 1)
        True
    """
    settings = DartsSettings(
        limit, prior, second_order, search_fraction, weights_fraction, rate=rate, finalists=finalists,
        search_recipe=search_recipe, recipe=recipe,
    )  # fmt: skip
    check_search(
        task, Splittable, method="DARTS", search_fraction=search_fraction, search_recipe=search_recipe,
        differentiable=limit,
    )  # fmt: skip
    space = prepare_supernet(space, run, needs="DARTS")
    relax_as_mixture(space)
    check_candidates(space, task, recipe)
    constraint = ArchitectureConstraint(space, limit) if limit is not None else None
    weights = search_recipe.optimizer(space)
    if second_order and not isinstance(weights, SGD):
        raise ConfigError(
            f"second_order=True differentiates through a step of SGD, and search_recipe gives a "
            f"{type(weights).__name__}; give an SGD, or leave second_order out"
        )
    run.begin("darts", settings_record(settings), task=task, network=space)

    steps, rest = split_steps(
        run, task, search_fraction, search_recipe=search_recipe, recipe=recipe, network=space,
        passes=5 if second_order else 2,
    )  # fmt: skip
    ending = Ending(finalists, steps, search_fraction)
    run.require_steps(ending.search_steps, phase="search", least=1)
    predict_peak_memory(space, task, run, optimizer=search_recipe.optimizer_factory, passes=2 if second_order else 1)

    def ahead(train: Batch, valid: Batch, loss_of: Callable[[Batch], Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        return unrolled(space, lambda: task.loss(space, train), lambda: loss_of(valid), weights, mean=run.mean)

    descend_mixture(
        space, task, run, weights=weights, steps=ending.search_steps, constraint=constraint,
        weights_fraction=weights_fraction, rate=rate, schedule=search_recipe.schedule,
        time_fraction=ending.search_time, gradient=ahead if second_order else None, prior=prior,
    )  # fmt: skip
    heaviest = constraint.decide(scores(space), run) if constraint else decide(space)
    return ending.report(
        space, heaviest, task, run, steps=rest, recipe=recipe, constraint=constraint,
        record=heading(darts, settings_record(settings), f"{type(space).__name__} searched by DARTS"),
    )  # fmt: skip


def unrolled(
    space: nn.Module,
    train: Callable[[], Tensor],
    valid: Callable[[], Tensor],
    optimizer: Optimizer,
    *,
    mean: Callable[[list[Tensor]], Sequence[Tensor | None]] = list,
) -> tuple[Tensor, list[Tensor]]:
    """The validation loss one step of the weights ahead, and its gradient with respect to the logits.

        w' = w - xi (momentum buffer + grad_w L_train + decay w),   xi the present learning rate
        gradient = grad_alpha L_valid(w') - xi (grad_alpha L_train(w+) - grad_alpha L_train(w-)) / (2 e)
        w+- = w +- e v,   v = grad_w' L_valid(w'),   e = 0.01 / |v|

    `mean` takes gradients over all processes. The weights are left as they were.
    """
    group = optimizer.param_groups[0]
    weights, alpha = trainable(space), logits(space)
    before = [p.detach().clone() for p in weights]
    ahead = _gradients(train(), weights, mean)
    with torch.no_grad():
        for p, g in zip(weights, ahead, strict=True):
            buffer = optimizer.state.get(p, {}).get("momentum_buffer")
            moved = g + group["weight_decay"] * p + (0.0 if buffer is None else group["momentum"] * buffer)
            p.sub_(group["lr"] * moved)
    loss = valid()
    direct, v = _gradients(loss, alpha), _gradients(loss, weights, mean)
    radius = RADIUS / float(torch.stack([g.norm() for g in v]).norm().clamp_min(1e-12))
    sides = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for p, old, g in zip(weights, before, v, strict=True):
                p.copy_(old + sign * radius * g)
        sides.append(_gradients(train(), alpha))
    with torch.no_grad():
        for p, old in zip(weights, before, strict=True):
            p.copy_(old)
    mixed = [(plus - minus) / (2.0 * radius) for plus, minus in zip(*sides, strict=True)]
    return loss, [g - group["lr"] * m for g, m in zip(direct, mixed, strict=True)]


def _gradients(
    loss: Tensor, of: Sequence[Tensor], mean: Callable[[list[Tensor]], Sequence[Tensor | None]] = list
) -> list[Tensor]:
    own = torch.autograd.grad(loss, of, allow_unused=True, retain_graph=True)
    averaged = mean([torch.zeros_like(p) if g is None else g for p, g in zip(of, own, strict=True)])
    return [g for g in averaged if g is not None]
