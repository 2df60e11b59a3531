"""The rounds of RADARS: explore, prune, choose a subspace, exploit it, feed back."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from archgrad.choices.access import decisions
from archgrad.choices.architecture import Architecture
from archgrad.choices.decide import decision_weights
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError, LimitError
from archgrad.methods.radars.inner_darts import inner_darts
from archgrad.methods.radars.offload import OffloadedSupernet, Support
from archgrad.methods.radars.single_path import ShrinkingPolicy, SinglePathTrainer
from archgrad.methods.radars.subspaces import Priced, fitting, refuse_below_a_path
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.bilevel import split_task
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.nested import Inner, search_inside
from archgrad.tasks.task import Task, higher_is_better
from archgrad.training.recipe import Recipe
from archgrad.trials.finalists import Finalists


@dataclass(frozen=True)
class RadarsTerms:
    """Numbers of the exploration and of the bound.

    Attributes:
        rounds: T.
        exploring: part of a round's budget that explores.
        warm_up: part of the first round's exploration in which paths are drawn uniformly.
        rate: of Adam on the policy's logits.
        bonus: lambda_H, in reward.
        episode_steps: fewest steps of the weights in an episode, before the path is rewarded.
        least: p_min * n_l: a candidate is pruned whose probability is below least / n_l after `patience`
            explorations in a row, or whose mixing weight is below least / k_l after so many searches of a subspace.
        patience: r; 1 prunes from the first round on.
        standard_errors: ours: a candidate is pruned whose episodes were rewarded below the mean by more than so many
            standard errors, after an exploration, and by nothing else; None: the rule of `least` and `patience`.
        feedback: lambda_f.
        slack: part of the bound that is planned for; the rest is for what allocators round up.
        passes: forward passes whose activations the inner method holds at once: 2 for UNAS, or DARTS's second order.
    """

    rounds: int = 3
    exploring: float = 0.5
    warm_up: float = 0.3
    rate: float = 0.05
    bonus: float = 1e-3
    episode_steps: int = 4
    least: float = 0.2
    patience: int = 1
    standard_errors: float | None = None
    feedback: float = 0.5
    slack: float = 0.9
    passes: int = 1

    def __post_init__(self) -> None:
        if wrong := [x for x in (self.exploring, self.warm_up, self.slack) if not 0.0 < x <= 1.0]:
            raise ConfigError(f"exploring, warm_up or slack of RadarsTerms is {wrong[0]}: give numbers in (0, 1]")
        if (fewest := min(self.rounds, self.patience, self.passes, self.episode_steps)) < 1:
            raise ConfigError(f"rounds, patience, passes or episode_steps of RadarsTerms is {fewest}: give 1 or more")
        if self.standard_errors is not None and not self.standard_errors >= 0.0:
            raise ConfigError(
                f"standard_errors of RadarsTerms is {self.standard_errors}: give None, or a number from 0"
            )


@dataclass(frozen=True)
class RadarsSettings:
    """What a RADARS run is begun with; see `radars`."""

    limit: Limit | None
    memory: Limit | None
    inner: Inner | None
    terms: RadarsTerms
    search_fraction: float
    weights_fraction: float
    finalists: Finalists | None
    search_recipe: Recipe
    recipe: Recipe


class Rounds:
    """All rounds of one run, and what they share: prices, policy, paths, the bound.

    Attributes:
        prices: of all candidates.
        everything: {site: all its candidates}.
        rows: what the record shows of each round.
    """

    def __init__(
        self,
        supernet: OffloadedSupernet,
        task: Task,
        run: Run,
        settings: RadarsSettings,
        constraint: ArchitectureConstraint | None,
    ) -> None:
        self.supernet, self.task, self.run, self.constraint = supernet, task, run, constraint
        self.settings, self.terms = settings, settings.terms
        recipe, terms, parts = settings.search_recipe, settings.terms, split_task(task, settings.weights_fraction)
        self.inner = settings.inner or functools.partial(
            inner_darts, weights_fraction=settings.weights_fraction, search_recipe=recipe
        )
        self.priced = Priced(supernet, parts[0], run, optimizer=recipe.optimizer_factory, passes=terms.passes)
        self.prices = self.priced.table()
        self.everything = {site: list(range(size)) for site, size in supernet.sites.items()}
        self.policy = ShrinkingPolicy(supernet, rate=terms.rate, bonus=terms.bonus)
        self.paths = SinglePathTrainer(supernet, self.policy, parts, run, recipe=recipe)
        self.bound = self.room = math.inf
        self.rows: list[dict[str, Any]] = []

    def bind(self, bound_bytes: float) -> None:
        """Take up the bound, if every single path fits."""
        self.bound, self.room = bound_bytes, self.terms.slack * bound_bytes
        refuse_below_a_path(self.priced, self.prices, bound_bytes, slack=self.terms.slack)

    def path(self, architecture: Architecture) -> dict[str, int]:
        """The candidate of each site."""
        return {site: pick for site in self.supernet.sites if isinstance(pick := architecture[site], int)}

    def run_all(self, steps: int, fraction: float) -> list[Architecture]:
        """All rounds in a share of the budget; what they found, the best score first, of equal ones the first."""
        terms, everything = self.terms, self.everything
        sign = 1.0 if higher_is_better(self.task) else -1.0
        scores, left = dict[Architecture, float](), steps
        limit = Limit(self.constraint.cost, self.constraint.bound) if self.constraint else None
        fits = self.prices.of(everything) <= self.room and self.priced.peak_bytes(everything) <= self.room
        for t in range(terms.rounds):
            exploring, support = 0 if fits else max(1, round(terms.exploring * steps / terms.rounds)), everything
            if not fits:
                self._explore(t, min(exploring, left), fraction * terms.exploring / terms.rounds)
                support = fitting(
                    self.priced, self.prices, self.policy.probabilities(), bound_bytes=self.room,
                    allowed=self.policy.active, first=self._first(),
                )  # fmt: skip
            left -= min(exploring, left)
            last = fits or t == terms.rounds - 1 or support == self.policy.active
            exploiting = left if last else min(left, max(1, round(steps / terms.rounds) - exploring))
            left -= exploiting
            self._show(t, support)
            found, searched = search_inside(
                self.inner, functools.partial(self.supernet.taken, support), self.task, self.run, steps=exploiting,
                name=f"exploit-{t}", limit=limit,
                time_fraction=fraction if fits else fraction * (1 - terms.exploring) / terms.rounds,
            )  # fmt: skip
            self._feed_back(searched, support, found)
            score = sign * (found.score or 0.0)
            scores[found.architecture] = max(score, scores.get(found.architecture, -math.inf))
            if last:
                break
        return sorted(scores, key=scores.__getitem__, reverse=True)

    def _explore(self, t: int, steps: int, time_fraction: float) -> None:
        most = round(10 * math.sqrt(sum(self.supernet.sites.values())))
        episodes = max(1, min(steps // self.terms.episode_steps, 200, most))
        self.paths.explore(
            steps=steps, episodes=episodes, warm_up=0.0 if t else self.terms.warm_up, phase=f"explore-{t}",
            time_fraction=time_fraction,
        )  # fmt: skip
        if self.terms.standard_errors is None:
            self.policy.prune(self.terms.least, self.terms.patience, spare=self._spare())
        else:
            self.policy.prune_unrewarded(self.terms.standard_errors, spare=self._spare())

    def _spare(self) -> dict[str, int]:
        """What stays whatever its worth: the cheapest architecture under the limit."""
        return self.path(self.constraint.cheapest) if self.constraint else {}

    def _first(self) -> dict[str, int]:
        """The likeliest candidate of each site; under a limit those of the likeliest architecture that keeps it."""
        chances = self.policy.probabilities()
        if self.constraint is None:
            return {site: max(self.policy.active[site], key=row.__getitem__) for site, row in chances.items()}
        logs = {site: torch.tensor(row).clamp_min(1e-30).log() for site, row in chances.items()}
        others = {name: torch.zeros(choice.size) for name, choice in decisions(self.constraint.space).items()}
        path = self.path(self.constraint.decide(others | logs, self.run, name="first path"))
        dropped = any(i not in self.policy.active[site] for site, i in path.items())
        return self.path(self.constraint.cheapest) if dropped else path

    def _show(self, t: int, support: Support) -> None:
        """Record the subspace and what it takes; a step of it is measured first."""
        peak = self.priced.peak_bytes(support)
        measured = self.run.compute_once(f"measured-{t}", lambda: self.priced.measured_bytes(support))
        if measured > self.bound:
            raise LimitError(
                f"a step of the subspace of round {t} takes {measured:,} bytes, over the bound of {self.bound:,.0f}, "
                f"though {peak:,} were predicted: give a smaller RadarsTerms.slack (now {self.terms.slack:g})"
            )
        row = {"predicted_peak_bytes": peak, "measured_peak_bytes": measured, "bound_bytes": self.bound}
        row |= {"candidates": sum(map(len, support.values())), "active": sum(map(len, self.policy.active.values()))}
        self.run.log({"round": t, **row})
        kept = {"left": self.policy.active, "support": support}
        self.rows.append(row | {part: {site: list(some) for site, some in of.items()} for part, of in kept.items()})

    def _feed_back(self, searched: nn.Module, support: Support, found: Found) -> None:
        self.supernet.put_back(searched, support)
        mixing = decision_weights(searched)
        for site, some in support.items():
            self.policy.feed_back(site, some, mixing[site], self.terms.feedback)
        if self.terms.standard_errors is None:
            weights = {site: {i: float(mixing[site][i]) for i in some} for site, some in support.items()}
            self.policy.prune_searched(weights, self.terms.least, self.terms.patience, spare=self._spare())
        self.policy.learn(found.architecture, self.paths.reward(found.network))
