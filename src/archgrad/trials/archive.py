"""The trials of a search: each architecture's score and costs, and the Pareto front of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from archgrad.choices.architecture import Architecture
from archgrad.choices.policies import Uniform
from archgrad.costs.limits import Cost, Limit
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.tasks.task import Scored, Task
from archgrad.trials.pareto import front, hypervolume


@dataclass(frozen=True)
class Trial:
    """One architecture that was tried.

    Attributes:
        architecture: what was tried.
        score: what it scored; NaN where the trial failed.
        costs: what it takes, by the costs' names.
        failed: why the trial failed; empty where it did not.
    """

    architecture: Architecture
    score: float
    costs: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""

    def record(self) -> dict[str, Any]:
        """`architecture` and `score` as JSON; of a failed trial the score is None, and `failed` says why."""
        row = {"architecture": dict(self.architecture), "score": None if self.failed else self.score}
        return row | ({"failed": self.failed} if self.failed else {})


def price(constraint: ArchitectureConstraint, architecture: Architecture, run: Run) -> float:
    """What an architecture takes; a measured price is measured once in the life of a run."""
    if not (constraint.measured and constraint.cost.measured):
        return constraint.price(architecture)
    key = f"{constraint.cost.name} of {sorted(architecture.items())}"
    return float(run.compute_once(key, lambda: constraint.price(architecture)))


class ArchitectureCosts:
    """What architectures of one space take by several costs, each asked once.

    Args:
        space: the supernet.
        costs: any, measured ones too.

    Attributes:
        lowest, highest: {cost: of the cheapest, of the dearest network of the space, as far as known}; for costs
            that networks are asked for only after `begin`.
    """

    def __init__(self, space: nn.Module, costs: Iterable[Cost]) -> None:
        self._constraints = {cost.name: ArchitectureConstraint(space, Limit(cost, fraction=1.0)) for cost in costs}
        self.costs = {name: constraint.cost for name, constraint in self._constraints.items()}
        self.lowest: dict[str, float] = {}
        self.highest: dict[str, float] = {}

    def begin(self, run: Run) -> None:
        """Find the lowest and highest, once in the run's life where that takes measuring."""
        self._run = run
        for name, constraint in self._constraints.items():
            constraint.fit_surrogate(run, key=f"prices of {name}")
            self.lowest[name], self.highest[name] = constraint.lowest, constraint.bound

    def of(self, architecture: Architecture) -> dict[str, float]:
        """{cost: what the architecture takes}."""
        return {name: price(constraint, architecture, self._run) for name, constraint in self._constraints.items()}

    def scaled(self, prices: Mapping[str, float]) -> dict[str, float]:
        """Prices on the way from the lowest to the highest, in [0, 1]."""
        scaled = {}
        for name, value in prices.items():
            span = self.highest[name] - self.lowest[name]
            scaled[name] = min(max((value - self.lowest[name]) / span, 0.0), 1.0) if span > 0.0 else 0.0
        return scaled


def random_control(
    space: nn.Module,
    task: Task | Scored,
    run: Run,
    *,
    tried: Archive,
    prices: ArchitectureCosts,
    constraint: ArchitectureConstraint | None,
) -> Archive:
    """Random trials to compare a search with: as many uniform draws as it made trials, less those over its limit.

    They are made only where scores and costs are looked up or counted, and so take no training and no measuring.
    """
    control = Archive()
    if not isinstance(task, Scored) or any(cost.measured for cost in prices.costs.values()):
        return control
    policy, generator = Uniform(space), run.generator("control")
    run.register_state(control=control)
    for _ in run.steps(len(tried), phase="control"):
        drawn = policy.sample(generator)
        if constraint is None or price(constraint, drawn, run) <= constraint.bound:
            score = tried[drawn].score if drawn in tried else task.score(drawn)
            failed = "" if math.isfinite(score) else f"its score is {score}"
            control.add(Trial(drawn, score, prices.of(drawn), failed))
    return control


class Archive:
    """All trials of a search by architecture, in the order they were made.

    Args:
        higher: whether a higher score is better.
    """

    def __init__(self, *, higher: bool = True) -> None:
        self.trials: dict[Architecture, Trial] = {}
        self.higher = higher

    def __len__(self) -> int:
        return len(self.trials)

    def __contains__(self, architecture: object) -> bool:
        return architecture in self.trials

    def __getitem__(self, architecture: Architecture) -> Trial:
        return self.trials[architecture]

    def add(self, trial: Trial) -> None:
        """Add a trial."""
        self.trials[trial.architecture] = trial

    def succeeded(self) -> list[Trial]:
        """The trials that did not fail."""
        return [trial for trial in self.trials.values() if not trial.failed]

    def front(self, costs: Sequence[str]) -> list[Trial]:
        """The trials that no other dominates in score and all these costs."""
        trials = self.succeeded()
        return [trials[i] for i in front([self._point(trial, costs) for trial in trials])]

    def hypervolume(self, costs: Sequence[str], *, score: float, bounds: Mapping[str, float]) -> float:
        """Volume between the front and a reference point, in units of score times those of the costs.

        Args:
            costs: which.
            score: of the reference point: worse scores add nothing.
            bounds: of the reference point: {cost: bound}; what takes more adds nothing.
        """
        points = [self._point(trial, costs) for trial in self.succeeded()]
        return hypervolume(points, (-score if self.higher else score, *(bounds[name] for name in costs)))

    def record(
        self, costs: Mapping[str, Cost], *, found: Architecture, control: Archive | None = None
    ) -> list[dict[str, Any]]:
        """For the report, for each cost: the trials that did not fail, and which are on the front of score and cost.

        Args:
            costs: which.
            found: what was handed back.
            control: random trials to show with them.
        """
        trials = self.succeeded()
        chosen = next((i for i, trial in enumerate(trials) if trial.architecture == found), None)
        parts = [
            {"cost": name, "unit": cost.unit, **self._against(name), "found": chosen} for name, cost in costs.items()
        ]
        if control:
            parts = [{**part, "random": control._against(part["cost"])} for part in parts]
        return parts

    def _against(self, cost: str) -> dict[str, Any]:
        trials = self.succeeded()
        return {
            "costs": [trial.costs[cost] for trial in trials], "scores": [trial.score for trial in trials],
            "front": front([self._point(trial, [cost]) for trial in trials]),
        }  # fmt: skip

    def _point(self, trial: Trial, costs: Sequence[str]) -> tuple[float, ...]:
        return (-trial.score if self.higher else trial.score, *(trial.costs[name] for name in costs))

    def state_dict(self) -> dict[str, Any]:
        """All trials."""
        return {
            "trials": [[t.architecture.to_json(), t.score, dict(t.costs), t.failed] for t in self.trials.values()]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.trials = {}
        for text, score, costs, failed in state["trials"]:
            self.add(Trial(Architecture.from_json(text), score, dict(costs), failed))
