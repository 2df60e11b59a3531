"""The search loop of DARTS: the mixture of all candidates, its logits trained on other data than its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from archgrad.choices.access import logits, relax
from archgrad.choices.modules import InputChoice
from archgrad.choices.policies import Prior
from archgrad.choices.relaxations import Open, Softmax
from archgrad.choices.subsets import without_topology
from archgrad.run.run import Run
from archgrad.supernets.bilevel import alternate, logit_rate, mixed, split_task
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.prior import warm_start
from archgrad.tasks.task import Batch, Task
from archgrad.training.compiled_steps import compiled
from archgrad.training.schedules import Schedule, constant, cosine
from archgrad.training.step import Computed

# From a training batch, a validation batch and the loss of the logits, to that loss and its gradient.
MixtureGradient = Callable[[Batch, Batch, Callable[[Batch], Tensor]], tuple[Tensor, Sequence[Tensor | None]]]


def relax_as_mixture(space: nn.Module, relaxation: Callable[[int], nn.Module] = Softmax) -> None:
    """Relax a space in place as DARTS does: a softmax over operations, all inputs of a node at full strength.

    Choices with a distribution over subsets keep it. `relaxation` is for operations and for nodes of one input.
    """
    relax(space, relaxation, where=without_topology)
    relax(space, Open, where=lambda c: isinstance(c, InputChoice) and c.keep > 1 and without_topology(c))


def descend_mixture(
    space: nn.Module,
    task: Task,
    run: Run,
    *,
    weights: Optimizer,
    steps: int,
    constraint: ArchitectureConstraint | None = None,
    weights_fraction: float = 0.5,
    rate: float | None = None,
    schedule: Schedule = cosine,
    time_fraction: float = 1.0,
    gradient: MixtureGradient | None = None,
    prior: Prior | None = None,
) -> None:
    """Draw logits from N(0, 1e-3^2), then alternate steps of logits and weights, as the header of `darts.py` says.

    Args:
        space: relaxed by `relax_as_mixture`.
        task: `Splittable`, so that weights and logits are trained on separate data.
        run: the space and both optimizers are registered in it.
        weights: the optimizer of the weights.
        steps: of the weights.
        constraint: the limit; max(0, expected cost / bound - 1) is added to the loss of the logits.
        weights_fraction: part of the training data that the weights are trained on.
        rate: of Adam on the logits; default: as published, higher for short searches.
        schedule: of the weights' learning rate.
        time_fraction: of a budget in seconds.
        gradient: of the logits; default: that of the validation loss at the present weights, first order.
        prior: logits to begin with.
    """
    for logit in logits(space):
        nn.init.normal_(logit, std=1e-3)
    warm_start(space, prior)
    group = {"params": logits(space), "lr": rate or logit_rate(3e-4, steps)}
    architecture = Adam([group], betas=(0.5, 0.999), weight_decay=1e-3)

    # What a gradient of the caller's does with the graph of the loss, a compiled one may not allow.
    of_network = compiled(task.loss, space, run, logits(space)) if gradient is None else task.loss

    def loss_of(batch: Batch) -> Tensor:
        loss = of_network(space, batch)
        return loss if constraint is None else loss + constraint.excess(mixed(space)).to(loss)

    def architecture_loss(train: Batch, valid: Batch) -> Computed:
        return loss_of(valid) if gradient is None else gradient(train, valid, loss_of)

    run.register_state(space=space, weights=weights, architecture=architecture)
    alternate(
        space, split_task(task, weights_fraction), run, weights=weights, architecture=architecture, steps=steps,
        weight_loss=task.loss, architecture_loss=architecture_loss,
        schedules=(schedule, constant), time_fraction=time_fraction,
    )  # fmt: skip
