"""Successive halving: all trials are trained a little, the best of them on, the best of these on, and so forth.

Source: Jamieson, Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", arXiv
1502.07943.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from archgrad.choices.architecture import Architecture
from archgrad.errors import ConfigError
from archgrad.extract.discretize import build
from archgrad.run.run import Run
from archgrad.tasks.classification import Classification
from archgrad.training.fit import optimize, recalibrate
from archgrad.training.recipe import OptimizerFactory, Recipe
from archgrad.training.schedules import cosine
from archgrad.trials.evaluation import affordable, alone, scored, trial_runner
from archgrad.trials.workers import Job, Workers


@dataclass(frozen=True)
class Halving:
    """Behind a round that took every trial left to r, eta r, eta^2 r, ... steps, the best 1 / eta go on.

    Attributes:
        eta: of how many trials one goes on.
        least: the fewest trials that a round has.
    """

    eta: int = 3
    least: int = 1

    def __post_init__(self) -> None:
        if not (type(self.eta) is int and self.eta >= 2 and type(self.least) is int and self.least >= 1):
            raise ConfigError(f"eta={self.eta!r}, least={self.least!r}: give an eta from 2 and a least from 1")

    def counts(self, trials: int) -> list[int]:
        """How many trials are in each round."""
        counts = [trials]
        while (n := math.ceil(counts[-1] / self.eta)) >= self.least and n < counts[-1]:
            counts.append(n)
        return counts

    def steps(self, trials: int, total: int) -> list[list[int]]:
        """For each round how many more steps each of its trials takes: 1 or more, and `total` all together."""
        counts = self.counts(trials)
        more = [1, *(self.eta**j - self.eta ** (j - 1) for j in range(1, len(counts)))]
        weights = [w for w, n in zip(more, counts, strict=True) for _ in range(n)]
        ends = [round(total * passed / sum(weights)) for passed in itertools.accumulate(weights, initial=0)]
        each = iter(max(1, b - a) for a, b in itertools.pairwise(ends))
        return [list(itertools.islice(each, n)) for n in counts]


def halved(
    space: nn.Module,
    task: Classification,
    run: Run,
    architectures: Sequence[Architecture],
    *,
    halving: Halving,
    steps: int,
    time_fraction: float,
    optimizer: OptimizerFactory,
) -> tuple[list[dict[str, Any]], int]:
    """Try architectures by successive halving, each from fresh weights of its own, which go on from round to round.

    In every round the rate falls from its height to 0 along the schedule, so that what is compared has settled.

    Args:
        space: the supernet.
        task: trained and validated on.
        run: begun; a trial's training in a round is a phase "trial" of its own.
        architectures: what is tried.
        halving: the rounds.
        steps: of training, of all trials together.
        time_fraction: of a budget in seconds, of all together.
        optimizer: from weights to their optimizer, a new one in each round.

    Returns:
        For each architecture {"architecture", "score", "round", "steps"}: the score and number of the last round that
        it was in, counted from 0, and the steps that it was trained for; and the steps of all.

    Raises:
        NonFiniteError: a loss became NaN or infinite.
    """
    plan = halving.steps(len(architectures), steps)
    total, highest, used = sum(map(sum, plan)), -math.inf, 0
    rows: list[dict[str, Any]] = [{"architecture": dict(one), "steps": 0} for one in architectures]
    left = list(range(len(architectures)))
    train = _Elsewhere if run.workers else _Here
    rounds = train(space, task, run, optimizer=optimizer)
    for number, each in enumerate(plan):
        left = sorted(sorted(left, key=lambda i: (-rows[i].get("score", 0.0), i))[: len(each)])
        before = itertools.accumulate(each, initial=used)
        jobs = {
            i: Job(
                f"round-{number}-trial-{i}",
                architectures[i],
                steps=affordable(more, run, used=spent),
                first=rows[i]["steps"],
                time_fraction=time_fraction * more / total,
            )
            for i, more, spent in zip(left, each, before, strict=False)
        }
        used += sum(each)
        for i, figures in rounds(jobs, last=number + 1 == len(plan)):
            more = {"round": number, "best": max(highest, next(iter(figures.values())))}
            score = scored(figures, run, more=more)
            highest = max(highest, score)
            rows[i] |= {"score": score, "round": number, "steps": rows[i]["steps"] + jobs[i].steps}
    rounds.close()
    return rows, total


class _Here:
    """Rounds of trials in this process: each trial of a round is a phase of the run."""

    def __init__(self, space: nn.Module, task: Classification, run: Run, *, optimizer: OptimizerFactory) -> None:
        self.space, self.task, self.run, self.optimizer = space, task, run, optimizer
        self._networks: dict[int, nn.Module] = {}

    def __call__(self, jobs: Mapping[int, Job], *, last: bool) -> Iterator[tuple[int, dict[str, float]]]:
        """The figures of each trial of a round, in order."""
        self._networks = {i: network for i, network in self._networks.items() if i in jobs}
        for i, job in jobs.items():
            self._networks[i] = alone(
                self.space, self.task, self.run, job, optimizer=self.optimizer, network=self._networks.get(i)
            )  # fmt: skip
            yield i, self.task.evaluate(self._networks[i])

    def close(self) -> None:
        """The last round is over."""
        self._networks = {}


class _Elsewhere:
    """Rounds of trials by workers: each round is a phase, and a trial's weights travel."""

    def __init__(self, space: nn.Module, task: Classification, run: Run, *, optimizer: OptimizerFactory) -> None:
        self.run, self._workers = run, Workers(run, trial_runner(space, task, run, optimizer=optimizer))
        self._weights: dict[int, dict[str, Tensor]] = {}

    def __call__(self, jobs: Mapping[int, Job], *, last: bool) -> Iterator[tuple[int, dict[str, float]]]:
        """The figures of each trial of a round, in order."""
        asked = [replace(job, weights=self._weights.get(i), keep=not last) for i, job in jobs.items()]
        found: dict[int, dict[str, float]] = {}
        self.run.register_state()
        for step in self.run.steps(len(asked), phase="trials", counted=False):
            self._workers.ahead(asked)
            self._workers.result(asked[step])
        for i, job in zip(jobs, asked, strict=True):
            done = self._workers.result(job)
            self._weights[i], found[i] = done.weights, done.figures
        self._weights = {i: self._weights[i] for i in jobs}
        yield from found.items()

    def close(self) -> None:
        """The last round is over."""
        self._workers.close()


def finals(
    space: nn.Module,
    task: Classification,
    run: Run,
    architectures: Sequence[Architecture],
    *,
    steps: int,
    time_fraction: float,
    optimizer: OptimizerFactory,
) -> tuple[list[float], nn.Module]:
    """Train the best few anew, on the training and validation parts together, and score each on the test part.

    Args:
        space: the supernet.
        task: the test part is read once for each.
        run: begun; each is a phase "train".
        architectures: the best first.
        steps: of all together.
        time_fraction: of a budget in seconds, of all together.
        optimizer: from weights to their optimizer.

    Returns:
        Test scores, and the network of the first.
    """
    whole, count = task.with_validation(), len(architectures)
    scores: list[float] = []
    networks: list[nn.Module] = []
    for i, architecture in enumerate(architectures):
        network = build(space, architecture, weights="fresh").to(run.device)
        made, part = (
            Recipe(optimizer_factory=optimizer).optimizer(network),
            (i + 1) * steps // count - i * steps // count,
        )
        run.register_state(network=network, optimizer=made)
        optimize(
            network,
            whole,
            run,
            optimizer=made,
            steps=part,
            phase="train",
            schedule=cosine,
            time_fraction=time_fraction / count,
        )
        recalibrate(network, whole, run)
        figures = task.evaluate(network, "test")
        run.log({f"test_{name}": value for name, value in figures.items()})
        scores.append(next(iter(figures.values())))
        networks = networks or [network]
    return scores, networks[0]
