"""Training a network by a recipe: `fit`, the phase of training that methods share, and the loop beneath both."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from archgrad.argument_types import checked
from archgrad.copy_and_run import copied, evaluating, in_mode, require_values
from archgrad.errors import ConfigError
from archgrad.files import shown
from archgrad.run.device import seconds_per_call
from archgrad.run.loop import watched
from archgrad.run.run import Run
from archgrad.tasks.batch_checks import explained
from archgrad.tasks.task import Batch, Checkable, Task, evaluate, remarks, require
from archgrad.training.averaging import moving_average, take_average
from archgrad.training.compiled_steps import Objective, compiled
from archgrad.training.drop_path import DropPathRamp
from archgrad.training.epoch_scores import EpochScores
from archgrad.training.recipe import Recipe
from archgrad.training.schedules import Schedule, constant
from archgrad.training.step import autocast, load_batch, take_step


def optimize(
    network: nn.Module,
    task: Task,
    run: Run,
    *,
    optimizer: Optimizer,
    steps: int,
    phase: str | None,
    objective: Objective | None = None,
    schedule: Schedule = constant,
    accumulate: int = 1,
    time_fraction: float = 1.0,
    before_step: Callable[[int, float], Mapping[str, float] | None] | None = None,
    on_step: Callable[[int], None] | None = None,
    seed: int | None = None,
) -> Tensor:
    """Minimize `objective(network, batch)` for one phase of a run; resumes exactly.

    Without a phase, it runs inside one step of another loop, or inside `run.compute_once`: it takes all `steps`,
    logs nothing, and is done again as a whole after a stop.

    Args:
        network: in training mode throughout; on the run's device.
        task: gives the batches and, by default, the objective.
        run: gives the budget; register what it saves (`run.register_state`) before this.
        optimizer: its learning rates are scaled by the schedule, but for parameter groups marked
            `"steady": True`; a group's `"clip"` is the largest norm of its gradient.
        steps: steps of the optimizer in this phase, where the budget is not in seconds alone.
        phase: its name in the history, or None.
        objective: the loss []; default: the task's.
        schedule: from progress in [0, 1] through the phase to a factor on the learning rates.
        accumulate: batches a step.
        time_fraction: this phase's part of a budget in seconds.
        before_step: called with the step and the progress before each step, also the first after a resume; the
            figures that it returns are logged.
        on_step: called after each step.
        seed: of the order of the batches; default: the run's.

    Returns:
        The loss [] of the last step of this process; NaN where it took none.

    Raises:
        NonFiniteError: the loss or a gradient became NaN or infinite; no step is taken on it.
        ResourceError: memory ran out, or a worker of the data loader died.
    """
    loss_of = objective or task.loss
    stream = task.stream(seed=run.seed if seed is None else seed, rank=run.rank, world=run.world)
    rates, loss = [group["lr"] for group in optimizer.param_groups], torch.tensor(math.nan)
    for step in run.steps(steps, phase=phase, time_fraction=time_fraction) if phase else range(steps):
        progress = run.progress if phase else step / steps
        network.train()
        with watched(run):  # of schedules and metrics of the user's
            factor = schedule(progress)
            if not isinstance(factor, SupportsFloat):
                raise ConfigError(
                    f"the schedule gave {shown(factor)} at progress {progress:g}; give a function from progress in "
                    f"[0, 1] to a number, such as archgrad.warm_up_cosine()"
                )
            figures = (before_step(step, progress) if before_step else None) or {}
        # The groups are new ones once a resumed run has restored the optimizer.
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate if group.get("steady") else rate * factor
        numbers = range(step * accumulate, (step + 1) * accumulate)
        batches = [load_batch(stream, number, run) for number in numbers]
        loss = take_step(optimizer, run, *(functools.partial(loss_of, network, batch) for batch in batches))
        del batches
        if on_step:
            on_step(step)
        if phase:
            run.log_step({"loss": loss, "lr": optimizer.param_groups[0]["lr"]}, figures, step=step)
    if not phase:
        run.check_unread()
    return loss


def steps_per_epoch(task: Task, accumulate: int = 1) -> int:
    """Steps of the optimizer in one pass over the training part."""
    return math.ceil(task.steps_per_epoch / accumulate)


def seconds_per_step(
    network: nn.Module, task: Task, run: Run, recipe: Recipe, *, objective: Objective | None = None
) -> float:
    """The time of a training step, measured on a copy of the network; for `run.total_steps(measure_step=...)`."""
    trial = copied(network).to(run.device)
    optimizer, loss_of, stream = recipe.optimizer(trial), objective or task.loss, task.stream(seed=run.seed)

    def step() -> None:
        trial.train()
        batches = [load_batch(stream, number, run) for number in range(recipe.accumulate)]
        take_step(optimizer, run, *(functools.partial(loss_of, trial, batch) for batch in batches))

    return seconds_per_call(step, device=run.device)


def check_recipe(recipe: Recipe, network: nn.Module) -> None:
    """Refuse, before a run begins, a recipe that cannot train this network.

    Raises:
        ModelError: the network has no parameter that requires a gradient.
        ConfigError: the recipe drops paths, and the network has no place for it.
    """
    recipe.optimizer(network)
    if recipe.drop_path:
        DropPathRamp(network, recipe.drop_path)


def train(
    network: nn.Module,
    task: Task,
    run: Run,
    recipe: Recipe,
    *,
    steps: int,
    phase: str,
    objective: Objective | None = None,
    time_fraction: float = 1.0,
    scored: bool = True,
    brief: bool = False,
) -> None:
    """Train a network in place by a recipe, for one phase of a run; resumes exactly.

    Args:
        network: on the run's device.
        task: gives the batches and, by default, the objective.
        run: begun; what this phase saves is registered here.
        recipe: how.
        steps: steps of the optimizer in this phase.
        phase: its name in the history.
        objective: the loss []; default: the task's.
        time_fraction: this phase's part of a budget in seconds.
        scored: whether the network is scored after each epoch; a supernet whose choices are drawn anew for each batch
            has no score.
        brief: one of many short trainings, for which nothing is compiled.

    Raises:
        ConfigError: the recipe drops paths, and the network has no place for it; `torch.compile` fails on it.
        NonFiniteError: the loss became NaN or infinite.
    """
    if recipe.best_epoch and not scored:
        raise ConfigError("Recipe(best_epoch=True) was given, and a supernet has no score to choose an epoch by")
    optimizer = recipe.optimizer(network)
    ramp = DropPathRamp(network, recipe.drop_path) if recipe.drop_path else None
    averaged = moving_average(network, recipe.average) if recipe.average else None
    per_epoch = steps_per_epoch(task, recipe.accumulate)
    epochs = EpochScores(network, task, per_epoch, keep=recipe.best_epoch) if scored else None
    extra = {name: part for name, part in (("averaged", averaged), ("epochs", epochs)) if part is not None}
    run.register_state(network=network, optimizer=optimizer, **extra)
    held = dict(network.named_parameters())

    def before_step(step: int, progress: float) -> Mapping[str, float]:
        if ramp:
            ramp.set(progress)
        return epochs.before_step(step) if epochs else {}

    try:
        optimize(
            network, task, run, optimizer=optimizer, steps=steps, phase=phase,
            objective=compiled(objective or task.loss, network, run) if not (brief or ramp) else objective,
            schedule=recipe.schedule, accumulate=recipe.accumulate, time_fraction=time_fraction,
            before_step=before_step,
            on_step=(lambda step: averaged.update_parameters(network)) if averaged else None,
        )  # fmt: skip
    finally:
        if ramp:
            ramp.undo()
    if replaced := [name for name, parameter in network.named_parameters() if held.get(name) is not parameter]:
        run.note(
            f"{type(network).__name__} replaced {', '.join(replaced[:5])} by other parameters while it was trained: "
            f"these were not trained. Change parameters in place (with torch.no_grad(): parameter.copy_(...))"
        )
    if epochs and steps:
        with watched(run):
            figures = epochs.end()
        run.log(figures)
    if recipe.average and averaged:
        _take_average(network, averaged, task, run, decay=recipe.average)


def _take_average(network: nn.Module, averaged: AveragedModel, task: Task, run: Run, *, decay: float) -> None:
    taken = max(1, int(averaged.n_averaged))
    if (left := decay ** (taken - 1)) > 0.05:
        run.note(
            f"average={decay} over {taken} steps leaves a weight of {left:.2f} on the first weights: give at "
            f"most {0.01 ** (1 / taken):.3g} for a run of this length"
        )
    take_average(network, averaged)
    recalibrate(network, task, run)


@checked
def fit(
    network: nn.Module, task: Task, run: Run, *, recipe: Recipe = Recipe(), auxiliary: float = 0.0
) -> dict[str, float]:
    """Train a plain network on a task; returns what it scores on the validation part.

    Args:
        network: trained in place.
        task: what it is judged on.
        run: epochs (default 30), seed, folder, device, precision.
        recipe: optimizer, schedule, averaging and the like.
        auxiliary: weight of the loss of auxiliary logits, for a network that returns (logits, auxiliary logits) in
            training mode; the loss is loss(logits) + auxiliary * loss(auxiliary logits).

    Raises:
        ConfigError: an option out of its range, or one that the network has no place for.
        ModelError: the network has nothing to train, or does not fit the data.
        NonFiniteError: the loss became NaN or infinite.

    Example:
        >>> import torch, archgrad as ag
        >>> task = ag.Classification.load("digits")
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> figures = ag.fit(network, task, ag.Run(steps=2, progress=False))
        >>> sorted(figures)
        ['accuracy', 'loss']
    """
    if not 0.0 <= auxiliary < math.inf:
        raise ConfigError(f"auxiliary={auxiliary!r} was given. Allowed is a number of at least 0, such as 0.4.")
    require(task, method="fit")
    objective = _auxiliary(task, auxiliary) if auxiliary else None
    check_recipe(recipe, network)
    if isinstance(task, Checkable):
        task.check(_Main(network, auxiliary) if auxiliary else network)
    if objective:
        _try(objective, network, task, run)
    size = sum(p.numel() for p in network.parameters())
    settings = {"network": type(network).__name__, "parameters": size, "auxiliary": auxiliary}
    run.begin("fit", settings | {"recipe": recipe.record()}, task=task, network=network)
    network.to(run.device)
    steps = run.total_steps(
        steps_per_epoch(task, recipe.accumulate), default_epochs=30,
        measure_step=lambda: seconds_per_step(network, task, run, recipe, objective=objective),
    )  # fmt: skip
    train(network, task, run, recipe, steps=steps, phase="fit", objective=objective)
    figures = evaluate(task, network)
    run.log({f"valid_{name}": value for name, value in figures.items()})
    for remark in run.compute_once("remarks", lambda: remarks(task, network)):
        run.note(remark)
    run.finish()
    return figures


class _Answer(nn.Module):
    """A network that has answered already: a task's loss of logits that are there."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        return self.logits


class _Main(nn.Module):
    """A network of several outputs in training mode as one of its first output alone, which keeps the others."""

    def __init__(self, network: nn.Module, weight: float) -> None:
        super().__init__()
        self.network, self.weight = network, weight
        self.others: list[Tensor] = []

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        output = self.network(*inputs, **named)
        if not self.training:
            return output  # type: ignore[no-any-return]
        if not (isinstance(output, tuple | list) and len(output) > 1 and all(isinstance(o, Tensor) for o in output)):
            kinds = [type(o).__name__ for o in output] if isinstance(output, tuple | list) else type(output).__name__
            raise ConfigError(
                f"auxiliary={self.weight} was given, but in training mode {type(self.network).__name__} returns "
                f"{kinds}. Allowed is a tuple (logits, auxiliary logits): give the network an auxiliary head, or "
                "leave auxiliary at 0."
            )
        self.others = list(output[1:])
        first: Tensor = output[0]
        return first


def _auxiliary(task: Task, weight: float) -> Objective:
    """The task's loss plus its loss of the auxiliary logits."""

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        main = _Main(network, weight)
        loss = task.loss(main, batch)
        return loss + weight * torch.stack([task.loss(_Answer(logits), batch) for logits in main.others]).sum()

    return objective


def _try(objective: Objective, network: nn.Module, task: Task, run: Run) -> None:
    """Compute the objective once on a copy, so that what cannot be trained fails before the run begins."""
    trial = in_mode(copied(network).to(run.device), training=True)
    accelerators = [run.device] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices=accelerators), torch.no_grad(), autocast(run):
        objective(trial, run.to_device(task.stream(seed=run.seed)(0)))


@checked
def recalibrate(network: nn.Module, task: Task, run: Run, *, batches: int = 50) -> None:
    """Estimate every BatchNorm's running statistics anew, as the plain mean over some training batches.

    After gates close or channels go, the statistics gathered before are those of another network. A supernet is run
    as its choices stand, in eval mode: BatchNorm in candidates that do not run keeps the statistics it has.

    Args:
        network: changed in place; its parameters and modes stay.
        task: gives the batches.
        run: gives their order and the device.
        batches: how many; fewer where an epoch is shorter, but at least 8 of them if so many are asked for.

    Raises:
        ModelError: the network does not fit the task.
        ResourceError: memory ran out, or a worker of the data loader died.

    Example:
        >>> import torch, archgrad as ag
        >>> task = ag.Classification.load("digits")
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 10))
        >>> ag.recalibrate(network, task, ag.Run(device="cpu"), batches=2)
        >>> int(network[1].num_batches_tracked)
        2
    """
    require(task, method="recalibrate")
    require_values(network)
    stream = task.stream(seed=run.seed)

    def forward(number: int) -> None:
        batch = load_batch(stream, number, run)
        # What runs on the first batch fits the task; what happens after that is told as in training.
        fits = explained(f"the loss of {type(task).__name__} fails with {type(network).__name__}", batch)
        with fits if not number else contextlib.nullcontext(), watched(run):
            task.loss(network, batch)

    steps = range(min(batches, max(task.steps_per_epoch, 8)))
    estimate_statistics(network, (functools.partial(forward, number) for number in steps))


def estimate_statistics(network: nn.Module, forwards: Iterable[Callable[[], object]]) -> None:
    """Set every BatchNorm's running statistics to the plain mean over some forward passes, in eval mode otherwise.

    BatchNorm that no pass runs keeps its statistics; parameters and modes stay.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = {m: m.momentum for m in norms}
    before = {m: {name: buffer.clone() for name, buffer in m.named_buffers(recurse=False)} for m in norms}
    with evaluating(network):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        try:
            for forward in forwards:
                forward()
        finally:
            for norm, momentum in momenta.items():
                norm.momentum = momentum
                if norm.num_batches_tracked == 0:
                    norm.load_state_dict(before[norm], strict=False)
