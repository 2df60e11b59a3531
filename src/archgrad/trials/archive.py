"""What was tried: each architecture's score and what it takes, and the best of them in every respect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from archgrad.choices.architecture import Architecture
from archgrad.choices.policies import Uniform
from archgrad.costs.limits import Cost, Limit
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Scored
from archgrad.trials.pareto import front, hypervolume


@dataclass(frozen=True)
class Trial:
    """One architecture that was tried: its score, higher is better, and what it takes, by the costs' names."""

    architecture: Architecture
    score: float
    costs: Mapping[str, float]


def price(constraint: ArchitectureConstraint, architecture: Architecture, run: Run) -> float:
    """What an architecture takes; what is read off a clock is read once in the life of a run."""
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
        self.costs = {name: one.cost for name, one in self._constraints.items()}
        self.lowest: dict[str, float] = {}
        self.highest: dict[str, float] = {}

    def begin(self, run: Run) -> None:
        """Find the lowest and highest, once in the run's life where that takes measuring."""
        self._run = run
        for name, one in self._constraints.items():
            one.fit_surrogate(run, key=f"prices of {name}")
            self.lowest[name], self.highest[name] = one.lowest, one.bound

    def of(self, architecture: Architecture) -> dict[str, float]:
        """{cost: what the architecture takes}."""
        return {name: price(one, architecture, self._run) for name, one in self._constraints.items()}

    def scaled(self, prices: Mapping[str, float]) -> dict[str, float]:
        """Prices on the way from the lowest to the highest, in [0, 1]."""
        found = {}
        for name, value in prices.items():
            span = self.highest[name] - self.lowest[name]
            found[name] = min(max((value - self.lowest[name]) / span, 0.0), 1.0) if span > 0.0 else 0.0
        return found


def control(
    space: nn.Module,
    task: Classification | Scored,
    run: Run,
    *,
    tried: Archive,
    prices: ArchitectureCosts,
    constraint: ArchitectureConstraint | None,
) -> Archive:
    """Random trials to hold a search against: of as many even draws as it made trials those that keep its limit.

    Made where scores and costs are looked up or counted; trained or measured they would take what the search did.
    """
    beside = Archive()
    if not isinstance(task, Scored) or any(cost.measured for cost in prices.costs.values()):
        return beside
    policy, generator = Uniform(space), run.generator("control")
    run.register_state(beside=beside)
    for _ in run.steps(len(tried), phase="control"):
        one = policy.sample(generator)
        if constraint is None or price(constraint, one, run) <= constraint.bound:
            beside.add(tried[one] if one in tried else Trial(one, task.score(one), prices.of(one)))
    return beside


class Archive:
    """All trials of a search by architecture, in the order they were made."""

    def __init__(self) -> None:
        self.trials: dict[Architecture, Trial] = {}

    def __len__(self) -> int:
        return len(self.trials)

    def __contains__(self, architecture: object) -> bool:
        return architecture in self.trials

    def __getitem__(self, architecture: Architecture) -> Trial:
        return self.trials[architecture]

    def add(self, trial: Trial) -> None:
        """Take in a trial."""
        self.trials[trial.architecture] = trial

    def front(self, costs: Sequence[str]) -> list[Trial]:
        """The trials that none beats in score and all these costs."""
        listed = list(self.trials.values())
        return [listed[i] for i in front([_point(trial, costs) for trial in listed])]

    def hypervolume(self, costs: Sequence[str], *, score: float, bounds: Mapping[str, float]) -> float:
        """Volume between the front and a corner, in units of score times those of the costs.

        Args:
            costs: which.
            score: of the corner: scores below it add nothing.
            bounds: of the corner: {cost: what takes more adds nothing}.
        """
        points = [_point(trial, costs) for trial in self.trials.values()]
        return hypervolume(points, (-score, *(bounds[name] for name in costs)))

    def record(
        self, costs: Mapping[str, Cost], *, found: Architecture, control: Archive | None = None
    ) -> list[dict[str, Any]]:
        """For the report, for each cost: all trials, and which of them are on the front of score and that cost.

        Args:
            costs: which.
            found: what was handed back.
            control: random trials to show beside.
        """
        chosen = next((i for i, architecture in enumerate(self.trials) if architecture == found), None)
        parts = [
            {"cost": name, "unit": cost.unit, **self._against(name), "found": chosen} for name, cost in costs.items()
        ]
        if control:
            parts = [{**part, "random": control._against(part["cost"])} for part in parts]
        return parts

    def _against(self, cost: str) -> dict[str, Any]:
        listed = list(self.trials.values())
        return {
            "costs": [trial.costs[cost] for trial in listed], "scores": [trial.score for trial in listed],
            "front": front([_point(trial, [cost]) for trial in listed]),
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """All trials."""
        return {"trials": [[one.architecture.to_json(), one.score, dict(one.costs)] for one in self.trials.values()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.trials = {}
        for text, score, costs in state["trials"]:
            self.add(Trial(Architecture.from_json(text), score, dict(costs)))


def _point(trial: Trial, costs: Sequence[str]) -> tuple[float, ...]:
    return (-trial.score, *(trial.costs[name] for name in costs))
