"""Search loops over a supernet: weights on one share of the training data, architecture on the other, in turns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from archgrad.choices.access import choices, logits
from archgrad.choices.clipped import prune
from archgrad.choices.modules import OpChoice
from archgrad.choices.subsets import Subsets
from archgrad.extract.discretize import decide, discretised, strengths
from archgrad.run.resource_errors import watched
from archgrad.run.run import Run
from archgrad.supernets.update_schedule import ALWAYS, Pace
from archgrad.tasks.task import Batch, Task
from archgrad.training.fit import autocast, take_step
from archgrad.training.schedules import Schedule, constant

Value = TypeVar("Value")
TRAVEL = 6.0
# From a training and a validation batch to a loss and its gradient with respect to the logits, in their order.
ArchitectureGradient = Callable[[Batch, Batch], tuple[Tensor, Sequence[Tensor | None]]]


def logit_rate(published: float, steps: float, *, travel: float = TRAVEL) -> float:
    """Adam's rate for logits: as published, or as much more as takes them `travel` far in so few steps.

    Adam moves a logit by at most about its rate a step. 6 is what DARTS's 3e-4 allows in its 19,500 steps.
    """
    return max(published, travel / steps)


def alternate(
    space: nn.Module,
    shares: tuple[Task, Task],
    run: Run,
    *,
    weights: Optimizer,
    architecture: Optimizer,
    steps: int,
    weight_loss: Callable[[nn.Module, Batch], Tensor],
    architecture_gradient: ArchitectureGradient,
    pace: Pace = ALWAYS,
    schedule: Schedule = constant,
    share: float = 1.0,
    figures: Callable[[], dict[str, float]] | None = None,
) -> None:
    """An architecture step where one is due, then a weight step, for one phase of a run; resumes exactly.

    Candidates of clipped choices whose weight has come to 0 are dropped after each step (`prune`).

    Args:
        space: relaxed; in training mode throughout.
        shares: the tasks that give the batches for the weights and for the architecture.
        run: keeps whatever the caller named (`run.keep`) before this.
        weights, architecture: optimisers of the weights and of the logits; a group's `"clip"` is the largest norm
            of its gradient, and groups marked `"steady"` keep their rate.
        steps: length of the phase, counted in weight steps.
        weight_loss: what the weights descend.
        architecture_gradient: from a batch of each share to a loss and its gradient with respect to `logits(space)`.
        pace: when the architecture takes a step; keep one that has a state.
        schedule: from progress in [0, 1] to a factor on all learning rates.
        share: this phase's part of a budget in seconds.
        figures: more for the history, asked for before each epoch.

    Raises:
        NonFiniteError: a loss or a gradient became NaN or infinite; no step is taken on it.
        ResourceError: memory ran out, or a worker of the data loader died.
    """
    first, second = (share.stream(seed=run.seed, rank=run.rank, world=run.world) for share in shares)
    decided = logits(space)
    trained = [p for group in weights.param_groups for p in group["params"]]
    rates = [group["lr"] for group in (*weights.param_groups, *architecture.param_groups)]
    for step in run.steps(steps, phase="search", share=share):
        shown = _shown(space, figures) if step % shares[0].steps_per_epoch == 0 else {}
        # The groups are new ones once a resumed run has restored the optimisers.
        for group, rate in zip((*weights.param_groups, *architecture.param_groups), rates, strict=True):
            group["lr"] = rate if group.get("steady") else rate * schedule(step / steps)
        space.train()
        number = pace.due(step)
        shown |= pace.figures()
        with watched(run):
            train = run.to_device(first(step))
            if number is not None:
                valid = run.to_device(second(number))
                decide_on = functools.partial(_computed, run, functools.partial(architecture_gradient, train, valid))
                loss, gradients = decide_on()
                run.check_finite({"architecture loss": loss}, again=decide_on)
                take_step(architecture, decided, gradients, run)
                shown["architecture_loss"] = float(loss.detach())
                # What lies before the first logits was not gone back through, and would be held during the next pass.
                del loss, gradients, decide_on, valid
            descend_on = functools.partial(_computed, run, functools.partial(weight_loss, space, train))
            loss = descend_on()
            run.check_finite({"loss": loss}, again=descend_on)
            take_step(weights, trained, torch.autograd.grad(loss, trained, allow_unused=True), run, shown=pace.saw)
            del descend_on, train
        prune(space)
        run.log({"loss": loss.detach(), "lr": weights.param_groups[0]["lr"], **shown}, step=step)
    run.log(_shown(space, figures), step=steps)


def _computed(run: Run, compute: Callable[[], Value]) -> Value:
    with autocast(run):
        return compute()


def _shown(space: nn.Module, more: Callable[[], dict[str, float]] | None) -> dict[str, float]:
    return state(space) | (more() if more else {})


def mixed(space: nn.Module) -> dict[str, Tensor]:
    """The present mixing weights of every relaxed choice, [size], with gradient."""
    found = {name: same[0].mixing() for name, same in choices(space).items()}
    return {name: row for name, row in found.items() if row is not None}


def state(space: nn.Module) -> dict[str, float]:
    """What the history shows of a relaxed space.

    The mean entropy of the choices, each one's weights divided by their sum, or that of its distribution over
    subsets; the Euclidean distance of all weights from those of the architecture that they point at; the weight of
    each candidate, or the probability of each input of being kept.
    """
    found = {
        name: same[0] for name, same in choices(space).items()
        if isinstance(same[0].relaxation, Subsets)
        or (same[0].relaxation is not None and len(list(same[0].relaxation.parameters())) == 1)
    }  # fmt: skip
    if not found:
        return {}
    rows, figures, entropies = strengths(space), dict[str, float](), []
    target = discretised(space, decide(space))
    for name, choice in found.items():
        if isinstance(choice.relaxation, Subsets):
            entropies.append(float(choice.relaxation.entropy(choice.live).detach()))
        else:
            entropies.append(float(torch.special.entr(rows[name] / rows[name].sum()).sum()))
        labels = choice.labels if isinstance(choice, OpChoice) else range(choice.size)
        for label, weight in zip(labels, rows[name].tolist(), strict=True):
            figures[f"weight/{name}/{label}"] = weight
    distance = torch.cat([rows[name] - target[name] for name in found]).norm()
    return {"entropy": sum(entropies) / len(entropies), "distance": float(distance), **figures}
