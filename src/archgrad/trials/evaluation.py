"""Trials: architectures tried one by one in this process, or side by side by workers; same scores either way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

from torch import Tensor, nn

from archgrad.choices.architecture import Architecture
from archgrad.extract.discretize import build
from archgrad.run.run import Run
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Batch, Scored
from archgrad.training.fit import optimize, recalibrate
from archgrad.training.recipe import OptimizerFactory, Recipe
from archgrad.training.schedules import cosine
from archgrad.trials.workers import Job, Outcome, RunTrial, Workers


class Evaluate(Protocol):
    """What tries an architecture. Trials share nothing but this, and the randomness of each is its own."""

    def ahead(self, trials: Mapping[int, Architecture]) -> None:
        """Say which trials, by number, will be asked for, so that workers can begin with them."""
        ...

    def __call__(self, architecture: Architecture, number: int) -> float:
        """The score of trial `number`, counted from 0."""
        ...

    def close(self) -> None:
        """There will be no more."""
        ...


def perfect(task: Classification | Scored) -> float:
    """What a network without fault scores on a task."""
    return task.perfect if isinstance(task, Scored) else 1.0


def evaluator(
    space: nn.Module,
    task: Classification | Scored,
    run: Run,
    *,
    trials: int,
    steps: int,
    time_fraction: float,
    optimizer: OptimizerFactory | None,
) -> Evaluate:
    """How architectures are tried on a task: looked up where it scores them itself, else trained; here or by workers.

    Args:
        space: the supernet.
        task: what they are tried on.
        run: begun.
        trials: how many there will be at most.
        steps: of training, of all trials together; each takes at least one.
        time_fraction: of a budget in seconds, of all trials together.
        optimizer: from fresh weights to their optimizer; None tries the supernet's weights as they are.

    Raises:
        ConfigError: there are workers, and the space, task or optimizer cannot be sent to them.
    """
    part = 0 if isinstance(task, Scored) or optimizer is None else steps

    def job(architecture: Architecture, number: int) -> Job:
        taken = steps_of(number, trials=trials, steps=part) if part else 0
        taken = affordable(taken, run, used=taken_by(number, trials=trials, steps=part))
        return Job(f"trial-{number}", architecture, steps=taken, time_fraction=time_fraction / trials)

    if run.workers:
        return _Elsewhere(run, task, trial_runner(space, task, run, optimizer=optimizer), job)
    return _Here(space, task, run, job, optimizer=optimizer)


class _Here:
    """Trials one after another in this process: those that train are phases of the run."""

    def __init__(
        self, space: nn.Module, task: Classification | Scored, run: Run, job: Callable[[Architecture, int], Job], *,
        optimizer: OptimizerFactory | None,
    ) -> None:  # fmt: skip
        self.space, self.task, self.run, self.job, self.optimizer = space, task, run, job, optimizer

    def ahead(self, trials: Mapping[int, Architecture]) -> None:
        pass

    def __call__(self, architecture: Architecture, number: int) -> float:
        if isinstance(self.task, Scored):
            return self.task.score(architecture)
        job = self.job(architecture, number)
        network = alone(self.space, self.task, self.run, job, optimizer=self.optimizer)
        return scored(self.task.evaluate(network), self.run)

    def close(self) -> None:
        pass


class _Elsewhere:
    """Trials side by side in other processes."""

    def __init__(
        self, run: Run, task: Classification | Scored, run_trial: RunTrial, job: Callable[[Architecture, int], Job]
    ) -> None:
        self.run, self.task, self.workers, self.job = run, task, Workers(run, run_trial), job

    def ahead(self, trials: Mapping[int, Architecture]) -> None:
        self.workers.ahead([self.job(architecture, number) for number, architecture in trials.items()])

    def __call__(self, architecture: Architecture, number: int) -> float:
        figures = self.workers.result(self.job(architecture, number)).figures
        return next(iter(figures.values())) if isinstance(self.task, Scored) else scored(figures, self.run)

    def close(self) -> None:
        self.workers.close()


def scored(figures: Mapping[str, float], run: Run, *, more: Mapping[str, float] = MappingProxyType({})) -> float:
    """Log a trial's figures, and more beside; the first of them is its score."""
    run.log({**{f"trial_{name}": value for name, value in figures.items()}, **more})
    return next(iter(figures.values()))


def alone(
    space: nn.Module,
    task: Classification,
    run: Run,
    job: Job,
    *,
    optimizer: OptimizerFactory | None,
    network: nn.Module | None = None,
) -> nn.Module:
    """An architecture's network trained by itself, in a phase "trial", with the randomness of (seed, job's name).

    Args:
        space: the supernet.
        task: trained on.
        run: begun.
        job: what and how long.
        optimizer: from weights to their optimizer; None takes the supernet's weights and recalibrates them.
        network: to go on with, in place of a fresh one.
    """
    with run.isolated_rng(job.name):
        if network is None:
            network = build(space, job.architecture, weights="fresh" if optimizer else "inherit").to(run.device)
        if job.weights is not None:
            network.load_state_dict(job.weights)
        if optimizer is None:
            recalibrate(network, task, run, batches=8)
            return network
        made = Recipe(optimizer_factory=optimizer).optimizer(network)
        run.register_state(network=network, optimizer=made)
        optimize(
            network, Later(task, job.first), run, optimizer=made, steps=job.steps, phase="trial", schedule=cosine,
            time_fraction=job.time_fraction,
        )  # fmt: skip
    return network


@dataclass(frozen=True)
class _Apart:
    """What workers take with them: they try as `alone` does, in a run of their own in memory."""

    space: nn.Module
    task: Classification | Scored
    optimizer: OptimizerFactory | None
    seed: int
    device: str
    precision: str
    seconds: float | None

    def __call__(self, job: Job) -> Outcome:
        if isinstance(self.task, Scored):
            return {"score": self.task.score(job.architecture)}, {}
        seconds = self.seconds and self.seconds * job.time_fraction
        run = Run(seed=self.seed, device=self.device, precision=self.precision, seconds=seconds, progress=False)
        run.begin("trial", {})
        space = self.space.to(run.device)
        network = alone(space, self.task, run, replace(job, time_fraction=1.0), optimizer=self.optimizer)
        weights = {name: value.cpu() for name, value in network.state_dict().items()} if job.keep else {}
        return self.task.evaluate(network), weights


def trial_runner(
    space: nn.Module, task: Classification | Scored, run: Run, *, optimizer: OptimizerFactory | None
) -> RunTrial:
    """How workers try an architecture; the space is copied to the CPU for the way."""
    return _Apart(
        copy.deepcopy(space).cpu(), task, optimizer, seed=run.seed, device=run.device.type, precision=run.precision,
        seconds=run.seconds,
    )  # fmt: skip


class Later:
    """A task whose batches begin further on: for a network that has seen the first ones."""

    def __init__(self, task: Classification, first: int) -> None:
        self.task, self.first = task, first
        self.steps_per_epoch, self.example = task.steps_per_epoch, task.example

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Callable[[int], Batch]:
        """As the task's, from the step `first`."""
        stream = self.task.stream(seed=seed, rank=rank, world=world)
        return lambda step: stream(self.first + step)

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """As the task's."""
        return self.task.loss(network, batch)

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        """As the task's."""
        return self.task.evaluate(network, part)


def steps_of(number: int, *, trials: int, steps: int) -> int:
    """How many of all steps are trial `number`'s."""
    return max(1, (number + 1) * steps // trials - number * steps // trials)


def taken_by(count: int, *, trials: int, steps: int) -> int:
    """How many steps the first `count` trials take together."""
    return sum(steps_of(number, trials=trials, steps=steps) for number in range(count))


def affordable(steps: int, run: Run, *, used: int) -> int:
    """The steps of a trial that the run's budget of steps leaves, once so many are used; here or by a worker."""
    return steps if run.max_steps is None else max(0, min(steps, run.max_steps - used))


def rounds(task: Classification | Scored, run: Run, count: int, *, time_fraction: float) -> Iterable[int]:
    """The numbers 0 to count - 1, for a loop of trials.

    Trials that train here are phases of their own: a resumed program passes through the finished ones. Those that
    are looked up or made by workers are the steps of one phase; what the loop carries is registered before it.
    """
    looked_up = isinstance(task, Scored)
    one = looked_up or run.workers
    return run.steps(count, phase="search", time_fraction=time_fraction, counted=looked_up) if one else range(count)
