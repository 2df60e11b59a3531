"""Successive halving: all trials are trained a little, the best of them on, the best of these on, and so forth.

Source: Jamieson, Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", arXiv
1502.07943.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from archgrad.choices.architecture import Architecture
from archgrad.errors import ConfigError
from archgrad.extract.discretize import build
from archgrad.run.run import Run
from archgrad.tasks.task import Task, evaluate, higher_is_better
from archgrad.training.recipe import Recipe
from archgrad.trials.evaluation import attempt, log, train_trial, trial_runner, within_budget
from archgrad.trials.job import Job, Outcome
from archgrad.trials.workers import Workers


class Tried(NamedTuple):
    """What came of successive halving.

    Attributes:
        rows: for each architecture {"architecture", "score", "round", "steps"}, and "failed" where it did: the score
            and number, from 0, of the last round that it was in, and the steps that it was trained for.
        used: the steps of all.
        networks: those of the last round, by place, trained.
    """

    rows: list[dict[str, Any]]
    used: int
    networks: Mapping[int, nn.Module]


@dataclass(frozen=True)
class Halving:
    """Rounds in which each trial left is trained to r, eta r, eta^2 r, ... steps; the best 1 / eta of a round go on.

    Attributes:
        eta: one of so many trials goes on.
        least: the fewest trials that a round has.
        floor: fewest steps of a trial in the first round, where the number of trials is left open: with less, the
            first round would choose what learns fast. Fewer trials are made then.
    """

    eta: int = 3
    least: int = 1
    floor: int = 0

    def __post_init__(self) -> None:
        lowest = {"eta": 2, "least": 1, "floor": 0}
        if any(type(value := getattr(self, name)) is not int or value < low for name, low in lowest.items()):
            raise ConfigError(f"{self}: give an eta from 2, a least from 1, a floor from 0, each whole")

    def counts(self, trials: int) -> list[int]:
        """How many trials are in each round."""
        counts = [trials]
        while (n := math.ceil(counts[-1] / self.eta)) >= self.least and n < counts[-1]:
            counts.append(n)
        return counts

    def affordable(self, trials: int, total: int) -> int:
        """The most trials, up to `trials`, that have `floor` steps each in the first round of `total` together."""
        fits = (n for n in range(trials, 1, -1) if min(self.steps(n, total)[0]) >= self.floor)
        return next(fits, 1)

    def steps(self, trials: int, total: int) -> list[list[int]]:
        """For each round how many more steps each of its trials takes: 1 or more, and `total` all together."""
        counts = self.counts(trials)
        more = [1, *(self.eta**j - self.eta ** (j - 1) for j in range(1, len(counts)))]
        weights = [w for w, n in zip(more, counts, strict=True) for _ in range(n)]
        ends = [round(total * passed / sum(weights)) for passed in itertools.accumulate(weights, initial=0)]
        each = iter(max(1, b - a) for a, b in itertools.pairwise(ends))
        return [list(itertools.islice(each, n)) for n in counts]


def successive_halving(
    space: nn.Module,
    task: Task,
    run: Run,
    architectures: Sequence[Architecture],
    *,
    halving: Halving,
    steps: int,
    time_fraction: float,
    recipe: Recipe,
) -> Tried:
    """Try architectures by successive halving, each from fresh weights of its own, which go on from round to round.

    In every round the learning rate follows the whole schedule, so that the networks compared have settled. A trial
    that fails goes on to no further round.

    Args:
        space: the supernet.
        task: trained and validated on.
        run: begun; a trial's training in a round is a phase "trial" of its own.
        architectures: what is tried.
        halving: the rounds.
        steps: of training, of all trials together.
        time_fraction: of a budget in seconds, of all together.
        recipe: how; each round begins with a new optimizer.
    """
    plan = halving.steps(len(architectures), steps)
    total, used, sign = sum(map(sum, plan)), 0, 1.0 if higher_is_better(task) else -1.0
    best = -math.inf
    rows: list[dict[str, Any]] = [{"architecture": dict(architecture), "steps": 0} for architecture in architectures]
    left = list(range(len(architectures)))
    run_round = (_Elsewhere if run.workers else _Here)(space, task, run, recipe=recipe)
    for number, each in enumerate(plan):
        left = [i for i in left if not rows[i].get("failed")]
        left = sorted(sorted(left, key=lambda i: (-sign * rows[i].get("score", 0.0), i))[: len(each)])
        before = itertools.accumulate(each, initial=used)
        jobs = {
            i: Job(
                f"round-{number}-trial-{i}",
                architectures[i],
                steps=within_budget(more, run, used=spent),
                first=rows[i]["steps"],
                time_fraction=time_fraction * more / total,
            )
            for i, more, spent in zip(left, each, before, strict=False)
        }
        used += sum(each[: len(jobs)])
        for i, outcome in run_round(jobs):
            best = best if outcome.failed else max(best, sign * outcome.score)
            log(outcome, run, {"round": number} | ({"best": sign * best} if best > -math.inf else {}))
            rows[i] |= {"score": outcome.score, "round": number, "steps": rows[i]["steps"] + jobs[i].steps}
            rows[i] |= {"score": None, "failed": outcome.failed} if outcome.failed else {}
    return Tried(rows, used, run_round.close())


class _Here:
    """Rounds of trials in this process: each trial of a round is a phase of the run."""

    def __init__(self, space: nn.Module, task: Task, run: Run, *, recipe: Recipe) -> None:
        self.space, self.task, self.run, self.recipe = space, task, run, recipe
        self._networks: dict[int, nn.Module] = {}

    def __call__(self, jobs: Mapping[int, Job]) -> Iterator[tuple[int, Outcome]]:
        """What came of each trial of a round, in order."""
        self._networks = {i: network for i, network in self._networks.items() if i in jobs}
        for i, job in jobs.items():
            yield i, attempt(self.run, functools.partial(self._figures, i, job), key=job.name)

    def _figures(self, i: int, job: Job) -> dict[str, float]:
        self._networks[i] = train_trial(
            self.space, self.task, self.run, job, recipe=self.recipe, network=self._networks.get(i)
        )
        return evaluate(self.task, self._networks[i])

    def close(self) -> Mapping[int, nn.Module]:
        """The networks of the last round."""
        return self._networks


class _Elsewhere:
    """Rounds of trials by workers: each round is a phase, and a trial's weights travel."""

    def __init__(self, space: nn.Module, task: Task, run: Run, *, recipe: Recipe) -> None:
        self.space, self.run = space, run
        self._workers = Workers(run, trial_runner(space, task, run, recipe=recipe))
        self._jobs, self._weights = dict[int, Job](), dict[int, dict[str, Tensor]]()

    def __call__(self, jobs: Mapping[int, Job]) -> Iterator[tuple[int, Outcome]]:
        """What came of each trial of a round, in order."""
        wanted = [replace(job, weights=self._weights.get(i), keep=True) for i, job in jobs.items()]
        self.run.register_state()
        for step in self.run.steps(len(wanted), phase="trials", counted=False):
            self._workers.ahead(wanted)
            self._workers.result(wanted[step])
        outcomes = {i: self._workers.result(job) for i, job in zip(jobs, wanted, strict=True)}
        self._jobs, self._weights = dict(jobs), {i: outcome.weights for i, outcome in outcomes.items()}
        yield from outcomes.items()

    def close(self) -> Mapping[int, nn.Module]:
        """End the workers; the networks of the last round."""
        self._workers.close()
        networks = {
            i: build(self.space, self._jobs[i].architecture) for i, weights in self._weights.items() if weights
        }
        for i, network in networks.items():
            network.load_state_dict(self._weights[i])
        return networks
