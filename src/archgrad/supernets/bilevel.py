"""The bilevel search loop: the weights are trained on one part of the training data, the architecture on the rest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from archgrad.choices.access import decisions, logits, trainable
from archgrad.choices.clipped_relaxation import Clipped, prune
from archgrad.choices.decide import decision_weights, nearest_discrete
from archgrad.choices.modules import Choice, OpChoice
from archgrad.choices.subsets import Subsets
from archgrad.errors import ConfigError
from archgrad.run.run import Run
from archgrad.tasks.task import Batch, Splittable, Task
from archgrad.training.compiled_steps import compiled
from archgrad.training.schedules import Schedule, constant
from archgrad.training.step import Computed, load_batch, take_step

TRAVEL = 6.0
# From a training and a validation batch to a loss of the logits, or to a loss and its gradient with respect to
# `logits(space)`, in their order.
ArchitectureLoss = Callable[[Batch, Batch], Computed]


class UpdateSchedule(Protocol):
    """Decides before each step of the weights whether the architecture takes one.

    `progress` is the used fraction of the search's budget, in [0, 1].
    """

    def next_batch(self, step: int, progress: float) -> int | None:
        """The number of the batch for a step of the architecture, or None for no step; called once a step."""
        ...

    def observe(self, gradients: Sequence[Tensor | None]) -> None:
        """Called with the gradients of each step of the weights, before they are clipped."""
        ...

    def figures(self) -> dict[str, float]:
        """What the history shows of each step."""
        ...


@dataclass(frozen=True)
class EverySteps:
    """The static schedule: one step of the architecture in `n` steps of the weights, floor(steps / n) in all.

    Attributes:
        n: f; 1 is DARTS.
        warm_up: fraction of the search at its beginning in which the architecture takes no step.
    """

    n: int = 1
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        if type(self.n) is not int or self.n < 1 or not 0.0 <= self.warm_up < 1.0:
            raise ConfigError(
                f"EverySteps(n={self.n!r}, warm_up={self.warm_up!r}) was given; allowed are a whole number n from 1 "
                f"and a fraction warm_up from 0 to below 1"
            )

    def next_batch(self, step: int, progress: float) -> int | None:
        """step // n at every nth step after the warm-up."""
        return step // self.n if progress >= self.warm_up and step % self.n == self.n - 1 else None

    def observe(self, gradients: Sequence[Tensor | None]) -> None:
        """Nothing."""

    def figures(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: this schedule has no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


ALWAYS = EverySteps()


def logit_rate(published: float, steps: float, *, travel: float = TRAVEL) -> float:
    """Adam's learning rate for logits: the published one, higher where that is needed to move them by `travel`.

        max(published, travel / steps)

    Adam moves a logit by at most about its rate a step. 6 is what DARTS's 3e-4 allows in its 19,500 steps.
    """
    return max(published, travel / steps)


def split_task(task: Task, weights_fraction: float) -> tuple[Task, Task]:
    """The tasks for weights and architecture, on disjoint training data; the task has to be `Splittable`."""
    assert isinstance(task, Splittable), "verified by `require` before the run begins"
    return task.split(weights_fraction)


def alternate(
    space: nn.Module,
    tasks: tuple[Task, Task],
    run: Run,
    *,
    weights: Optimizer,
    architecture: Optimizer,
    steps: int,
    weight_loss: Callable[[nn.Module, Batch], Tensor],
    architecture_loss: ArchitectureLoss,
    update_schedule: UpdateSchedule = ALWAYS,
    schedules: tuple[Schedule, Schedule] = (constant, constant),
    time_fraction: float = 1.0,
    figures: Callable[[], dict[str, float]] | None = None,
) -> None:
    """A step of the architecture where one is due, then a step of the weights, for a phase "search"; resumes exactly.

    Candidates of clipped choices whose weight has fallen to 0 are dropped after each step (`prune`).

    Args:
        space: relaxed; in training mode throughout.
        tasks: they give the batches for the weights and for the architecture.
        run: register what it saves (`run.register_state`) before this.
        weights, architecture: optimizers of the weights and of the logits; a group's `"clip"` is the largest norm
            of its gradient.
        steps: length of the phase, counted in steps of the weights, where the budget is not in seconds alone.
        weight_loss: what the weights minimize.
        architecture_loss: from a batch of each task to what the logits minimize, or to that and its gradient with
            respect to `logits(space)`.
        update_schedule: when the architecture takes a step; register one that has a state.
        schedules: of the weights and of the logits, from progress in [0, 1] to a factor on their learning rates.
        time_fraction: this phase's part of a budget in seconds.
        figures: called before each epoch for more figures to log.

    Raises:
        NonFiniteError: a loss or a gradient became NaN or infinite; no step is taken on it.
        ResourceError: memory ran out, or a worker of the data loader died.
    """
    first, second = (task.stream(seed=run.seed, rank=run.rank, world=run.world) for task in tasks)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in (weights, architecture)]
    order = {logit: place for place, logit in enumerate(logits(space))}
    places = [order[logit] for group in architecture.param_groups for logit in group["params"]]
    weight_loss = compiled(weight_loss, space, run, trainable(space))
    clipped = any(isinstance(choice.relaxation, Clipped) for choice in decisions(space).values())
    for step in run.steps(steps, phase="search", time_fraction=time_fraction):
        epoch_figures = _epoch_figures(space, architecture, figures) if step % tasks[0].steps_per_epoch == 0 else {}
        # The groups are new ones once a resumed run has restored the optimizers.
        for optimizer, schedule, at_first in zip((weights, architecture), schedules, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, at_first, strict=True):
                group["lr"] = rate * schedule(run.progress)
        space.train()
        number = update_schedule.next_batch(step, run.progress)
        step_figures: dict[str, float | Tensor] = dict(update_schedule.figures())
        train = load_batch(first, step, run)
        if number is not None:
            valid = load_batch(second, number, run)
            on_architecture = functools.partial(_in_order, architecture_loss, train, valid, places)
            loss = take_step(architecture, run, on_architecture, name="architecture loss")
            step_figures["architecture_loss"] = loss
            # The part of the graph before the first logits was not freed, and would stay during the next pass.
            del on_architecture, valid
        on_weights = functools.partial(weight_loss, space, train)
        loss = take_step(weights, run, on_weights, observe=update_schedule.observe)
        del on_weights, train
        if clipped:
            prune(space)
        run.log_step({"loss": loss, "lr": weights.param_groups[0]["lr"], **step_figures}, epoch_figures, step=step)
    # Time may have ended the phase, so the last record says how many steps there were.
    taken = int(run.history[-1]["step"] or 0) + 1 if steps and run.history else steps
    run.log(_epoch_figures(space, architecture, figures), step=taken)


def _in_order(compute: ArchitectureLoss, train: Batch, valid: Batch, places: Sequence[int]) -> Computed:
    """A loss; where it comes with its gradient, that in the order of the optimizer's parameters."""
    computed = compute(train, valid)
    return (computed[0], [computed[1][place] for place in places]) if isinstance(computed, tuple) else computed


def _epoch_figures(
    space: nn.Module, architecture: Optimizer, more: Callable[[], dict[str, float]] | None
) -> dict[str, float]:
    taken = max((float(kept.get("step", 0)) for kept in architecture.state.values()), default=0.0)
    return relaxation_figures(space) | {"architecture_steps": taken} | (more() if more else {})


def mixed(space: nn.Module) -> dict[str, Tensor]:
    """The present mixing weights of every relaxed choice, [size], with gradient."""
    rows = {name: choice.mixing() for name, choice in decisions(space).items()}
    return {name: row for name, row in rows.items() if row is not None}


def relaxation_figures(space: nn.Module) -> dict[str, float]:
    """What the history shows of a relaxed space.

    `entropy`: the mean over choices, of each one's weights divided by their sum, or of its distribution over subsets.
    `distance`: the Euclidean distance of all weights from those of the architecture that they point at.
    `weight/CHOICE/LABEL`: the weight of each candidate, or the probability of each input to be kept.
    """
    relaxed = {name: choice for name, choice in decisions(space).items() if _shows(choice)}
    if not relaxed:
        return {}
    rows, figures, entropies = decision_weights(space), dict[str, float](), []
    target = nearest_discrete(space)
    for name, choice in relaxed.items():
        if isinstance(choice.relaxation, Subsets):
            entropies.append(float(choice.relaxation.entropy(choice.live).detach()))
        else:
            entropies.append(float(torch.special.entr(rows[name] / rows[name].sum()).sum()))
        labels = choice.labels if isinstance(choice, OpChoice) else range(choice.size)
        for label, weight in zip(labels, rows[name].tolist(), strict=True):
            figures[f"weight/{name}/{label}"] = weight
    distance = torch.cat([rows[name] - target[name] for name in relaxed]).norm()
    return {"entropy": sum(entropies) / len(entropies), "distance": float(distance), **figures}


def _shows(choice: Choice) -> bool:
    relaxation = choice.relaxation
    return isinstance(relaxation, Subsets) or (relaxation is not None and len(list(relaxation.parameters())) == 1)
