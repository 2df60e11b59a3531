"""Train the weights of a network: the loop that every method shares, and `fit` for a plain network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Optimizer

from archgrad.search.run import Run
from archgrad.search.schedules import Schedule, constant, cosine
from archgrad.tasks.task import Batch, Task

Objective = Callable[[nn.Module, Batch], Tensor]
MakeOptimiser = Callable[[Iterable[nn.Parameter]], Optimizer]


def sgd(parameters: Iterable[nn.Parameter], *, learning_rate: float = 0.05, weight_decay: float = 5e-4) -> Optimizer:
    """SGD with Nesterov momentum 0.9; for other rates: `functools.partial(sgd, learning_rate=0.01)`."""
    return SGD(parameters, lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def descend(
    network: nn.Module,
    task: Task,
    run: Run,
    *,
    optimiser: Optimizer,
    steps: int,
    phase: str,
    objective: Objective | None = None,
    schedule: Schedule = constant,
    share: float = 1.0,
    each_step: Callable[[int], None] | None = None,
    each_epoch: Callable[[int], dict[str, float]] | None = None,
) -> None:
    """Minimise `objective(network, batch)` by the optimiser for one phase of a run; resumes exactly.

    Args:
        network: in training mode throughout; on the run's device.
        task: gives the batches and, by default, the objective.
        run: gives the budget; what it keeps is up to the caller (`run.keep`) before this.
        optimiser: its learning rates are scaled by the schedule, but for parameter groups marked
            `"steady": True`; a group's `"clip"` is the largest norm of its gradient.
        steps: length of the phase.
        phase: its name in the history.
        objective: the loss; default: the task's.
        schedule: from progress in [0, 1] to a factor on the learning rates.
        share: this phase's part of a budget in seconds.
        each_step: called after each optimiser step.
        each_epoch: called before each epoch; the figures that it returns are logged.

    Raises:
        NonFiniteError: the loss became NaN or infinite; no step is taken on it.
    """
    loss_of = objective or task.loss
    batches = task.stream(seed=run.seed, rank=run.rank, world=run.world)
    rates = [group["lr"] for group in optimiser.param_groups]
    watched = [p for group in optimiser.param_groups for p in group["params"]]
    for step in run.steps(steps, phase=phase, share=share):
        extra = each_epoch(step // task.steps_per_epoch) if each_epoch and step % task.steps_per_epoch == 0 else {}
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate if group.get("steady") else rate * schedule(step / steps)
        network.train()
        with _autocast(run):
            loss = loss_of(network, run.to_device(batches(step)))
        run.check_finite({"loss": loss})
        gradients = torch.autograd.grad(loss, watched, allow_unused=True)
        for parameter, gradient in zip(watched, _averaged(gradients, run), strict=True):
            parameter.grad = gradient
        for group in optimiser.param_groups:
            if "clip" in group:
                nn.utils.clip_grad_norm_(group["params"], group["clip"])
        optimiser.step()
        optimiser.zero_grad()
        if each_step:
            each_step(step)
        run.log({"loss": loss.detach(), "lr": optimiser.param_groups[0]["lr"], **extra}, step=step)


def _autocast(run: Run) -> AbstractContextManager[object]:
    # Fabric takes seconds to import; plain float32 does not need it.
    return nullcontext() if run.precision == "32-true" else run.fabric.autocast()


def _averaged(gradients: Sequence[Tensor | None], run: Run) -> Sequence[Tensor | None]:
    """The mean over all processes; the networks are not wrapped, so that any gradient can be taken of them."""
    if run.world == 1:
        return gradients
    return [None if g is None else run.fabric.all_reduce(g, reduce_op="mean") for g in gradients]  # type: ignore[misc]


def fit(
    network: nn.Module,
    task: Task,
    run: Run,
    *,
    optimiser: MakeOptimiser = sgd,
    schedule: Schedule = cosine,
) -> dict[str, float]:
    """Train a plain network on a task; returns what it scores on the validation part.

    Args:
        network: trained in place.
        task: what it is judged on.
        run: epochs (default 30), seed, folder, device.
        optimiser: from parameters to their optimiser.
        schedule: from progress in [0, 1] to a factor on the learning rate; default: cosine with a short warm-up.

    Raises:
        NonFiniteError: the loss became NaN or infinite.
    """
    run.begin("fit", {"network": type(network).__name__, "parameters": sum(p.numel() for p in network.parameters())})
    network.to(run.device)
    steps = run.total_steps(task.steps_per_epoch, default_epochs=30)
    made = optimiser(p for p in network.parameters() if p.requires_grad)
    run.keep(network=network, optimiser=made)
    descend(network, task, run, optimiser=made, steps=steps, phase="fit", schedule=schedule)
    figures = task.evaluate(network)
    run.log({f"valid_{name}": value for name, value in figures.items()})
    run.finish()
    return figures


def recalibrate(network: nn.Module, task: Task, run: Run, *, batches: int = 50) -> None:
    """Estimate every BatchNorm's running statistics anew, as the plain mean over some training batches.

    After gates close or channels go, the statistics gathered before are those of another network.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = {m: m.momentum for m in norms}
    modes = {m: m.training for m in network.modules()}
    stream = task.stream(seed=run.seed)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    network.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        for step in range(min(batches, max(task.steps_per_epoch, 8))):
            inputs = run.to_device(stream(step))[0]
            network(*inputs) if isinstance(inputs, tuple) else network(inputs)
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
