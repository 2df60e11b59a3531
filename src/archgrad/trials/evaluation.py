"""Trials: architectures tried one by one in this process, or in parallel by workers; the scores are the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor, nn

from archgrad.choices.architecture import Architecture
from archgrad.copy_and_run import copied
from archgrad.errors import ModelError, NonFiniteError
from archgrad.extract.discretize import build
from archgrad.run.run import Run
from archgrad.tasks.task import Batch, Scored, Task, evaluate, higher_is_better
from archgrad.training.fit import recalibrate, train
from archgrad.training.recipe import Recipe
from archgrad.trials.job import Job, Outcome, RunTrial, checked, reason_of_failure
from archgrad.trials.workers import Workers


class Evaluate(Protocol):
    """Tries architectures. Trials share nothing, and each has randomness of its own."""

    def ahead(self, trials: Mapping[int, Architecture]) -> None:
        """Name trials, by number, that will be asked for, so that workers can begin with them."""
        ...

    def __call__(self, architecture: Architecture, number: int) -> Outcome:
        """What came of trial `number`, counted from 0."""
        ...

    def close(self) -> None:
        """End the workers, if there are any."""
        ...


def evaluator(
    space: nn.Module,
    task: Task | Scored,
    run: Run,
    *,
    trials: int,
    steps: int,
    time_fraction: float,
    recipe: Recipe | None,
) -> Evaluate:
    """How architectures are tried on a task: looked up where it scores them itself, else trained; here or by workers.

    Args:
        space: the supernet.
        task: what they are tried on.
        run: begun.
        trials: how many there will be at most.
        steps: of training, of all trials together; each takes at least one.
        time_fraction: of a budget in seconds, of all trials together.
        recipe: how fresh weights are trained; None tries the supernet's weights as they are.

    Raises:
        ConfigError: there are workers, and the space, task or recipe cannot be sent to them.
    """
    training = 0 if isinstance(task, Scored) or recipe is None else steps

    def job(architecture: Architecture, number: int) -> Job:
        own = steps_of(number, trials=trials, steps=training) if training else 0
        own = within_budget(own, run, used=steps_before(number, trials=trials, steps=training))
        return Job(f"trial-{number}", architecture, steps=own, time_fraction=time_fraction / trials)

    if run.workers:
        return _Elsewhere(run, task, trial_runner(space, task, run, recipe=recipe), job)
    return _Here(space, task, run, job, recipe=recipe)


class _Here:
    """Trials one after another in this process: those that train are phases of the run."""

    def __init__(
        self, space: nn.Module, task: Task | Scored, run: Run, job: Callable[[Architecture, int], Job], *,
        recipe: Recipe | None,
    ) -> None:  # fmt: skip
        self.space, self.task, self.run, self.job, self.recipe = space, task, run, job, recipe

    def ahead(self, trials: Mapping[int, Architecture]) -> None:
        pass

    def __call__(self, architecture: Architecture, number: int) -> Outcome:
        task, job = self.task, self.job(architecture, number)
        if isinstance(task, Scored):
            return attempt(self.run, lambda: {"score": task.score(architecture)})
        outcome = attempt(
            self.run,
            lambda: evaluate(task, train_trial(self.space, task, self.run, job, recipe=self.recipe)),
            key=job.name,
        )
        log(outcome, self.run)
        return outcome

    def close(self) -> None:
        pass


class _Elsewhere:
    """Trials in parallel in other processes."""

    def __init__(
        self, run: Run, task: Task | Scored, run_trial: RunTrial, job: Callable[[Architecture, int], Job]
    ) -> None:
        self.run, self.task, self.workers, self.job = run, task, Workers(run, run_trial), job

    def ahead(self, trials: Mapping[int, Architecture]) -> None:
        self.workers.ahead([self.job(architecture, number) for number, architecture in trials.items()])

    def __call__(self, architecture: Architecture, number: int) -> Outcome:
        outcome = self.workers.result(self.job(architecture, number))
        if not isinstance(self.task, Scored):
            log(outcome, self.run)
        return outcome

    def close(self) -> None:
        self.workers.close()


def attempt(run: Run, trial: Callable[[], Mapping[str, float]], *, key: str = "") -> Outcome:
    """The figures of a trial in this process, or why it failed.

    Args:
        run: begun.
        trial: from nothing to the figures, the score first.
        key: a failure is remembered under this name, since a resumed run passes through a finished phase without
            training again; empty where nothing is trained.
    """
    try:
        outcome = checked(Outcome(dict(trial())))
    except Exception as error:  # a user's network may raise anything
        if (reason := reason_of_failure(error)) is None:
            raise
        outcome = Outcome(failed=reason)
    if key and (failed := run.compute_once(f"failure of {key}", lambda: outcome.failed)):
        return Outcome(failed=failed)
    return outcome


def log(outcome: Outcome, run: Run, more: Mapping[str, float] = MappingProxyType({})) -> None:
    """Log a trial's figures, or that it failed, and whatever is in `more`."""
    figures = {f"trial_{name}": value for name, value in outcome.figures.items()}
    run.log({**(figures or {"trial_failed": 1.0}), **more})


def report_failures(rows: Sequence[Mapping[str, Any]], run: Run) -> None:
    """Note how many trials failed.

    Args:
        rows: of all trials; of a failed one `failed` says why.
        run: begun.

    Raises:
        NonFiniteError: every trial failed, each by a number that is NaN or infinite.
        ModelError: every trial failed.
    """
    reasons = [str(row["failed"]) for row in rows if row.get("failed")]
    if not reasons:
        return
    if len(reasons) < len(rows):
        run.note(f"{len(reasons)} of {len(rows)} trials failed and were not ranked. The first: {reasons[0]}")
        return
    kind = NonFiniteError if all(reason.startswith("NonFiniteError") for reason in reasons) else ModelError
    raise kind(
        f"all {len(rows)} trials failed, so that there is nothing to hand back. Make sure that a network of the "
        f"space trains on the task (archgrad.fit), then search again in a new folder. The first failure: {reasons[0]}"
    )


def train_trial(
    space: nn.Module,
    task: Task,
    run: Run,
    job: Job,
    *,
    recipe: Recipe | None,
    network: nn.Module | None = None,
) -> nn.Module:
    """An architecture's network trained by itself, in a phase "trial", with the randomness of (seed, job's name).

    Args:
        space: the supernet.
        task: trained on.
        run: begun.
        job: what and how long.
        recipe: how; None takes the supernet's weights and recalibrates them.
        network: to go on with, in place of a fresh one.
    """
    with run.isolated_rng(job.name):
        if network is None:
            # Drawing weights that are replaced must not move the randomness of the training.
            with run.isolated_rng("replaced") if job.weights else contextlib.nullcontext():
                network = build(space, job.architecture, weights="fresh" if recipe else "inherit").to(run.device)
        if job.weights is not None:
            network.load_state_dict(job.weights)
        if recipe is None:
            recalibrate(network, task, run, batches=8)
        else:
            later = Later(task, job.first * recipe.accumulate)
            train(
                network, later, run, recipe, steps=job.steps, phase="trial", time_fraction=job.time_fraction,
                brief=True,
            )  # fmt: skip
    return network


@dataclass(frozen=True)
class _WorkerTrial:
    """What workers take with them: they try as `train_trial` does, in a run of their own in memory."""

    space: nn.Module
    task: Task | Scored
    recipe: Recipe | None
    seed: int
    device: str
    precision: str
    seconds: float | None
    time_alone: bool

    def __call__(self, job: Job) -> Outcome:
        if isinstance(self.task, Scored):
            return Outcome({"score": self.task.score(job.architecture)})
        seconds = self.seconds and self.seconds * job.time_fraction
        run = Run(seed=self.seed, device=self.device, precision=self.precision, seconds=seconds, progress=False)
        run.begin("trial", {})
        if self.time_alone:
            run.total_steps(self.task.steps_per_epoch, default_epochs=1)  # from now on, time ends phases
        space = self.space.to(run.device)
        network = train_trial(space, self.task, run, replace(job, time_fraction=1.0), recipe=self.recipe)
        figures = evaluate(self.task, network)
        return Outcome(figures, network.cpu().state_dict() if job.keep else {})


def trial_runner(space: nn.Module, task: Task | Scored, run: Run, *, recipe: Recipe | None) -> RunTrial:
    """How workers try an architecture; the space is copied to the CPU for the transport."""
    return _WorkerTrial(
        copied(space).cpu(), task, recipe, seed=run.seed, device=run.device.type, precision=run.precision,
        seconds=run.seconds, time_alone=run.seconds is not None and not (run.epochs or run.max_steps),
    )  # fmt: skip


class Later:
    """A task whose batches begin further on: for a network that has seen the first ones."""

    def __init__(self, task: Task, first: int) -> None:
        self.task, self.first = task, first
        self.steps_per_epoch, self.example = task.steps_per_epoch, task.example
        self.higher_is_better = higher_is_better(task)

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


def steps_before(count: int, *, trials: int, steps: int) -> int:
    """How many steps the first `count` trials take together."""
    return sum(steps_of(number, trials=trials, steps=steps) for number in range(count))


def within_budget(steps: int, run: Run, *, used: int) -> int:
    """The steps of a trial that the run's budget of steps leaves after `used` steps; here or by a worker."""
    return steps if run.max_steps is None else max(0, min(steps, run.max_steps - used))


def trial_numbers(task: Task | Scored, run: Run, count: int) -> Iterable[int]:
    """The numbers 0 to count - 1, for a loop of trials.

    Trials that train in this process are phases of their own: a resumed program passes through the finished ones.
    Those that are looked up or made by workers are the steps of one phase; register what the loop carries before it.
    """
    looked_up = isinstance(task, Scored)
    if not looked_up and not run.workers:
        return range(count)
    return run.steps(count, phase="search", counted=looked_up)
