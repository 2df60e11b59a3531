"""The trials of MONAS: what architectures are rewarded with, each tried once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from archgrad.choices.architecture import Architecture
from archgrad.errors import LimitError
from archgrad.methods.monas.rewards import Reward
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.tasks.task import Scored, Task, higher_is_better
from archgrad.trials.archive import ArchitectureCosts, Archive, Trial, price
from archgrad.trials.evaluation import Evaluate


class RewardedTrials:
    """The rewards of architectures; each is tried once, and not at all where its price alone earns the lowest.

    Args:
        evaluate: tries an architecture.
        prices: of the reward's and the further costs.
        constraint: the limit; what is over it earns the lowest reward untried.
        task: says what a perfect score is, and which scores are better.
        run: begun.
        reward: from accuracy and costs to a number.

    Attributes:
        archive: all trials.
        refused: draws that were not tried.
        idle: updates in a row without a new trial.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        prices: ArchitectureCosts,
        constraint: ArchitectureConstraint | None,
        *,
        task: Task | Scored,
        run: Run,
        reward: Reward,
    ) -> None:
        self.evaluate, self.prices, self.constraint, self.run = evaluate, prices, constraint, run
        self.reward, self.perfect = reward, task.perfect if isinstance(task, Scored) else 1.0
        self.archive = Archive(higher=higher_is_better(task))
        self.refused = 0
        self.idle = 0

    def __call__(self, drawn: Sequence[Architecture]) -> list[float]:
        """The rewards of one draw of the policy."""
        before = len(self.archive)
        fresh = dict.fromkeys(a for a in drawn if a not in self.archive and self._allowed_costs(a) is not None)
        self.evaluate.ahead(dict(enumerate(fresh, start=before)))
        rewards = [self._earned(architecture) for architecture in drawn]
        self.idle = self.idle + 1 if len(self.archive) == before else 0
        return rewards

    def _earned(self, architecture: Architecture) -> float:
        if architecture not in self.archive:
            costs = self._allowed_costs(architecture)
            if costs is None:
                self.refused += 1
                return self.reward.lowest
            outcome = self.evaluate(architecture, len(self.archive))
            self.archive.add(Trial(architecture, outcome.score, costs, outcome.failed))
            if not outcome.failed:
                # The front is drawn from these while the search goes on.
                better = "higher" if self.archive.higher else "lower"
                figures = {f"tried/{better}": outcome.score} | {f"tried/{name}": cost for name, cost in costs.items()}
                self.run.log(figures)
        return self.value(self.archive[architecture])

    def _allowed_costs(self, architecture: Architecture) -> dict[str, float] | None:
        """What an architecture takes; None where it is over a bound, and earns the lowest reward untried."""
        if self.constraint is not None and price(self.constraint, architecture, self.run) > self.constraint.bound:
            return None
        costs = self.prices.of(architecture)
        return costs if self.reward.allows(costs) else None

    def value(self, trial: Trial) -> float:
        """The reward of a trial."""
        if trial.failed:
            return self.reward.lowest
        return self.reward(self._accuracy(trial.score), trial.costs, self.prices.scaled(trial.costs))

    def _accuracy(self, score: float) -> float:
        """The score as a share of a perfect one; see the header for scores that are none."""
        first = next(trial.score for trial in self.archive.trials.values() if not trial.failed)
        if self.archive.higher and first > 0.0:
            return max(score / self.perfect, 0.0)
        gain = (score - first if self.archive.higher else first - score) / (abs(first) or self.perfect)
        return 1.0 / (1.0 + math.exp(-min(max(gain, -30.0), 30.0)))

    def best(self) -> Architecture:
        """What earned most, of equal ones the better score; where a limit is measured, of what still keeps it."""
        sign = -1.0 if self.archive.higher else 1.0
        ranked = sorted(self.archive.succeeded(), key=lambda trial: (-self.value(trial), sign * trial.score))
        if not ranked or self.value(ranked[0]) <= self.reward.lowest:
            better = max if self.archive.higher else min
            best = f"{better(trial.score for trial in ranked):.4g}" if ranked else "none, since nothing was tried"
            raise LimitError(
                f"nothing earned more than the lowest reward, {self.reward.lowest:g}: {len(ranked)} architectures "
                f"were tried (best score: {best}) and {self.refused} draws were over a bound. Ease the goals of "
                f"{self.reward.record()}, give more trials or a prior, or take a reward that says how far off a "
                f"network is: archgrad.methods.monas.rewards.soft"
            )
        for trial in ranked:
            if self.constraint is None or self.constraint.is_feasible(trial.architecture):
                return trial.architecture
        raise LimitError(
            "none of the architectures tried kept the limit when it was measured again: timings on this machine vary "
            "too much for a limit this tight; raise it, or measure on a machine without other work"
        )

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs where the trials are steps of one phase."""
        return {"archive": self.archive.state_dict(), "refused": self.refused, "idle": self.idle}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.archive.load_state_dict(state["archive"])
        self.refused, self.idle = state["refused"], state["idle"]
