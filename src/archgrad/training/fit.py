"""Train the weights of a network: the loop that every method shares, and `fit` for a plain network."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Adam, AdamW, Optimizer

from archgrad.choices.access import trainable
from archgrad.errors import ConfigError, ModelError
from archgrad.run.resource_errors import watched
from archgrad.run.run import Run
from archgrad.tasks.task import Batch, Task, arguments
from archgrad.training.averaging import moving_average, take_average
from archgrad.training.drop_path import DropPathRamp
from archgrad.training.schedules import Schedule, constant, cosine

Objective = Callable[[nn.Module, Batch], Tensor]
MakeOptimiser = Callable[[Iterable[nn.Parameter]], Optimizer]


def sgd(parameters: Iterable[nn.Parameter], *, learning_rate: float = 0.05, weight_decay: float = 5e-4) -> Optimizer:
    """SGD with Nesterov momentum 0.9; for other rates: `functools.partial(sgd, learning_rate=0.01)`."""
    return SGD(parameters, lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def sgd_of_darts(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """DARTS's optimiser of a supernet's weights: SGD, rate 0.025, momentum 0.9, decay 3e-4, clipped at 5."""
    return SGD([{"params": list(parameters), "clip": 5.0}], lr=0.025, momentum=0.9, weight_decay=3e-4)


def adamw(
    parameters: Iterable[nn.Parameter], *, learning_rate: float = 1e-3, weight_decay: float = 0.05
) -> Optimizer:
    """AdamW whose weight decay leaves parameters of at most one dimension out: biases, and scales of norms."""
    given = list(parameters)
    decayed, other = [p for p in given if p.ndim > 1], [p for p in given if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": other, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=learning_rate)


def adam(parameters: Iterable[nn.Parameter], *, learning_rate: float = 0.01) -> Optimizer:
    """Adam without weight decay, at a rate for few steps."""
    return Adam(parameters, lr=learning_rate)


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
    before_step: Callable[[int], None] | None = None,
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
        before_step: called before each step, also the first after a resume.
        each_step: called after each optimiser step.
        each_epoch: called before each epoch; the figures that it returns are logged.

    Raises:
        NonFiniteError: the loss or a gradient became NaN or infinite; no step is taken on it.
        ResourceError: memory ran out, or a worker of the data loader died.
    """
    loss_of = objective or task.loss
    batches = task.stream(seed=run.seed, rank=run.rank, world=run.world)
    rates = [group["lr"] for group in optimiser.param_groups]
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    for step in run.steps(steps, phase=phase, share=share):
        extra = each_epoch(step // task.steps_per_epoch) if each_epoch and step % task.steps_per_epoch == 0 else {}
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate if group.get("steady") else rate * schedule(step / steps)
        network.train()
        if before_step:
            before_step(step)
        with watched(run):
            batch = run.to_device(batches(step))
            loss = _computed(loss_of, network, batch, run)
            run.check_finite({"loss": loss}, again=functools.partial(_computed, loss_of, network, batch, run))
            take_step(optimiser, trained, torch.autograd.grad(loss, trained, allow_unused=True), run)
            del batch
        if each_step:
            each_step(step)
        run.log({"loss": loss.detach(), "lr": optimiser.param_groups[0]["lr"], **extra}, step=step)


def _computed(loss_of: Objective, network: nn.Module, batch: Batch, run: Run) -> Tensor:
    with autocast(run):
        return loss_of(network, batch)


def autocast(run: Run) -> AbstractContextManager[object]:
    """Where losses are computed: under the run's precision."""
    # Fabric takes seconds to import; plain float32 does not need it.
    return nullcontext() if run.precision == "32-true" else run.fabric.autocast()


def for_weights(optimiser: MakeOptimiser, network: nn.Module) -> Optimizer:
    """An optimiser of all weights of a network that require a gradient.

    Raises:
        ModelError: there are none.
    """
    found = trainable(network)
    if not found:
        raise ModelError(
            f"{type(network).__name__} has no parameter that requires a gradient, so there is nothing to train; "
            f"leave some of them trainable (requires_grad_(True))"
        )
    return optimiser(found)


def take_step(
    optimiser: Optimizer,
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor | None],
    run: Run,
    *,
    shown: Callable[[Sequence[Tensor | None]], None] | None = None,
) -> None:
    """One step on these gradients: averaged over processes, clipped by the `"clip"` of each group, then forgotten.

    `shown` is called with them before they are clipped. Raises NonFiniteError when one is NaN or infinite.
    """
    # The networks are not wrapped, so that any gradient can be taken of them.
    gradients = run.mean(gradients)
    run.check_gradients(parameters, gradients)
    if shown:
        shown(gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for group in optimiser.param_groups:
        if "clip" in group:
            nn.utils.clip_grad_norm_(group["params"], group["clip"])
    optimiser.step()
    optimiser.zero_grad()


def fit(
    network: nn.Module,
    task: Task,
    run: Run,
    *,
    optimiser: MakeOptimiser = sgd,
    schedule: Schedule = cosine,
    clip: float | None = None,
    auxiliary: float = 0.0,
    drop_path: float = 0.0,
    average: float | None = None,
) -> dict[str, float]:
    """Train a plain network on a task; returns what it scores on the validation part.

    Args:
        network: trained in place.
        task: what it is judged on.
        run: epochs (default 30), seed, folder, device, precision.
        optimiser: from parameters to their optimiser, for instance `adamw` or `functools.partial(sgd, ...)`.
        schedule: from progress in [0, 1] to a factor on the learning rate; default: cosine with a short warm-up.
        clip: largest norm of the gradient of all weights together.
        auxiliary: weight of the loss of auxiliary logits, for a network that returns (logits, auxiliary logits) in
            training mode; the loss is loss(logits) + auxiliary * loss(auxiliary logits).
        drop_path: probability to drop a path in the modules named `drop_path`, which grows to this value:
            drop_path * epoch / epochs in epoch 0, 1, ...; afterwards the modules have the probability they had.
        average: decay of an exponential moving average of the weights, one step of 1 - average after each training
            step. The network ends up with the averaged weights and with BatchNorm statistics estimated for them
            (`recalibrate`); other buffers are those of the last step.

    Raises:
        ConfigError: an option out of its range, or one that the network has no place for.
        NonFiniteError: the loss became NaN or infinite.
    """
    options = _checked(clip=clip, auxiliary=auxiliary, drop_path=drop_path, average=average)
    ramp = DropPathRamp(network, drop_path) if drop_path else None
    objective = _auxiliary(task, auxiliary) if auxiliary else None
    if objective:
        _try(objective, network, task, run)
    recipe = {"optimiser": _described(optimiser), "schedule": _described(schedule), **options}
    size = sum(p.numel() for p in network.parameters())
    run.begin("fit", {"network": type(network).__name__, "parameters": size, **recipe})
    network.to(run.device)
    steps = run.total_steps(task.steps_per_epoch, default_epochs=30)
    made = for_weights(optimiser, network)
    if clip:
        # A group's "clip" would bound each group alone.
        made.register_step_pre_hook(functools.partial(_clip, clip))
    averaged = moving_average(network, average) if average else None
    run.keep(network=network, optimiser=made, **({"average": averaged} if averaged else {}))
    epochs = math.ceil(steps / task.steps_per_epoch)
    try:
        descend(
            network, task, run, optimiser=made, steps=steps, phase="fit", objective=objective, schedule=schedule,
            before_step=(lambda step: ramp.turn(step // task.steps_per_epoch, of=epochs)) if ramp else None,
            each_step=(lambda step: averaged.update_parameters(network)) if averaged else None,
        )  # fmt: skip
    finally:
        if ramp:
            ramp.undo()
    if average and averaged:
        taken = max(1, int(averaged.n_averaged))
        if (left := average ** (taken - 1)) > 0.05:
            run.note(
                f"average={average} over {taken} steps leaves a weight of {left:.2f} on the first weights: give at "
                f"most {0.01 ** (1 / taken):.3g} for a run of this length"
            )
        take_average(network, averaged)
        recalibrate(network, task, run)
    figures = task.evaluate(network)
    run.log({f"valid_{name}": value for name, value in figures.items()})
    run.finish()
    return figures


def _checked(
    *, clip: float | None, auxiliary: float, drop_path: float, average: float | None
) -> dict[str, float | None]:
    """The options as they are recorded; ConfigError for one out of its range."""
    rules: dict[str, tuple[Any, Callable[[float], bool], str]] = {
        "clip": (clip, lambda x: 0 < x < math.inf, "a number above 0, such as 5.0, or None"),
        "auxiliary": (auxiliary, lambda x: 0 <= x < math.inf, "a number of at least 0, such as 0.4"),
        "drop_path": (drop_path, lambda x: 0 <= x < 1, "a probability of at least 0 and below 1, such as 0.2"),
        "average": (average, lambda x: 0 < x < 1, "a number above 0 and below 1, such as 0.999, or None"),
    }
    for name, (value, fits, rule) in rules.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        absent = value is None and name in ("clip", "average")
        if not absent and not (number and fits(value)):
            raise ConfigError(f"{name}={value!r} was given. Allowed is {rule}.")
    return {name: value for name, (value, _, _) in rules.items()}


def _described(function: Callable[..., Any]) -> str:
    """A function's name, with the plain values that functools.partial binds: what a resumed run is compared by."""
    if not isinstance(function, functools.partial):
        return str(getattr(function, "__qualname__", type(function).__qualname__))
    bound = [("", value) for value in function.args] + [
        (f"{name}=", value) for name, value in function.keywords.items()
    ]
    plain = (str, int, float, tuple, type(None))
    listed = ", ".join(
        f"{name}{value if isinstance(value, plain) else type(value).__name__}" for name, value in bound
    )
    return f"{_described(function.func)}({listed})"


def _clip(largest: float, optimiser: Optimizer, args: object, kwargs: object) -> None:
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], largest)


class _Answer(nn.Module):
    """A network that has answered already: a task's loss of logits that are there."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.logits


def _auxiliary(task: Task, weight: float) -> Objective:
    """The task's loss plus its loss of the auxiliary logits."""

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        inputs = batch[0]
        output = network(*arguments(inputs))
        if not (isinstance(output, tuple | list) and len(output) > 1 and all(isinstance(o, Tensor) for o in output)):
            given = [type(o).__name__ for o in output] if isinstance(output, tuple | list) else type(output).__name__
            raise ConfigError(
                f"auxiliary={weight} was given, but in training mode {type(network).__name__} returns {given}. "
                "Allowed is a tuple (logits, auxiliary logits): give the network an auxiliary head, or leave "
                "auxiliary at 0."
            )
        main, *others = (task.loss(_Answer(logits), batch) for logits in output)
        return main + weight * torch.stack(others).sum()

    return objective


def _try(objective: Objective, network: nn.Module, task: Task, run: Run) -> None:
    """Compute the objective once on a copy, so that what cannot be trained fails before the run begins."""
    trial = copy.deepcopy(network).to(run.device).train()
    accelerators = [run.device] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices=accelerators), torch.no_grad(), autocast(run):
        objective(trial, run.to_device(task.stream(seed=run.seed)(0)))


def recalibrate(network: nn.Module, task: Task, run: Run, *, batches: int = 50) -> None:
    """Estimate every BatchNorm's running statistics anew, as the plain mean over some training batches.

    After gates close or channels go, the statistics gathered before are those of another network. A supernet is run
    as its choices stand, in eval mode: BatchNorm in candidates that do not run keeps the statistics it has.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = {m: m.momentum for m in norms}
    before = {m: {name: buffer.clone() for name, buffer in m.named_buffers(recurse=False)} for m in norms}
    modes = {m: m.training for m in network.modules()}
    stream = task.stream(seed=run.seed)
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    try:
        with torch.no_grad():
            for step in range(min(batches, max(task.steps_per_epoch, 8))):
                inputs = run.to_device(stream(step))[0]
                network(*arguments(inputs))
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
            if norm.num_batches_tracked == 0:
                norm.load_state_dict(before[norm], strict=False)
        for module, mode in modes.items():
            module.training = mode
