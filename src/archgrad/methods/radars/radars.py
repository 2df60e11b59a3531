"""RADARS: search any space under a bound on memory, by exploring it path by path and descending in what fits.

Paper: Yan, Jiang, Hu, Shi, "RADARS: memory efficient reinforcement learning aided differentiable neural architecture
search", arXiv 2109.05691 (ASP-DAC 2022). Its full text was not at hand: the abstract and a survey say that a learner
by reinforcement explores and prunes, that a differentiable method runs in the subspace that is left, that the two
alternate, and that the memory is bounded whatever the size of the space. All else is reconstructed. Implemented, with
sites l, policy pi_l, active candidates A_l, subspace S_l, price table m[l, o] and bound B:

    refuse B if the dearest single path does not fit;  if all fits, S = all and there is nothing to explore
    for each round:
        explore:  draw paths a ~ pi on A; build a alone, its weights from file; train it; R(a); step of the policy
                  grad = (R - b) sum_l grad log pi_l(a_l) + lambda_H sum_l grad H(pi_l)
        prune:    drop o from A_l where pi_l(o) < 0.2 / n_l in 2 rounds in a row
        choose:   S = argmax_l of pi_l, then pairs (l, o) by pi_l(o) / m[l, o], while M(S) <= 0.9 B
        exploit:  a differentiable method searches S; its weights go back to file
        feed back: theta_l[S_l] += 0.5 (log w_l - mean log w_l), w its mixing weights;  a step on what it found
    derive: the architecture of the round that scored best on validation data; trained from fresh weights

What is open, and what is done here, all of it ours:
- M(S) goes by a prediction of the peak; pairs are taken out again where it is too high, as when measured.
- The reward is exp(-loss) on a validation batch; the first episodes are drawn uniformly and do not update the policy.
  Choices of inputs are not shrunk: paths draw them too, and the inner method has all of them.
- `limit` bounds what is found; it prices the whole space, whose candidates are built once for that, on the device.

Checked against: counted bytes, the policy gradient by enumeration, DARTS where all fits, a planted answer: the tests.
"""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from archgrad.choices.access import decisions
from archgrad.choices.architecture import Architecture
from archgrad.choices.decide import decision_weights
from archgrad.costs.limits import Limit
from archgrad.costs.memory import PeakMemory, available_bytes
from archgrad.errors import ConfigError, LimitError
from archgrad.methods.radars.inner_darts import inner_darts
from archgrad.methods.radars.offload import OffloadedSupernet, Support
from archgrad.methods.radars.single_path import ShrinkingPolicy, SinglePathTrainer
from archgrad.methods.radars.subspaces import Priced, fitting, refuse_below_a_path
from archgrad.results.record import heading, settings_record
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.supernets.bilevel import split_task
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.lifecycle import (
    prepare_supernet,
    refuse_fraction,
    refuse_unfit,
    split_steps,
    train_and_report,
)
from archgrad.supernets.nested import Inner, search_inside
from archgrad.tasks.task import Splittable, Task, higher_is_better, require
from archgrad.training.recipe import Recipe, darts_sgd

RECIPE = Recipe(optimizer_factory=darts_sgd)


@dataclass(frozen=True)
class RadarsTerms:
    """Numbers of the exploration and of the bound.

    Attributes:
        rounds: T.
        exploring: part of a round's budget that explores.
        warm_up: part of the first round's exploration in which paths are drawn uniformly.
        rate: of Adam on the policy's logits.
        bonus: lambda_H, in reward.
        least: p_min * n_l, below which a candidate is pruned, in `patience` rounds in a row.
        patience: r.
        feedback: lambda_f.
        slack: part of the bound that is planned for; the rest is for what allocators round up.
        passes: forward passes whose activations the inner method holds at once: 2 for UNAS, or DARTS's second order.
    """

    rounds: int = 3
    exploring: float = 0.5
    warm_up: float = 0.3
    rate: float = 0.05
    bonus: float = 1e-3
    least: float = 0.2
    patience: int = 2
    feedback: float = 0.5
    slack: float = 0.9
    passes: int = 1

    def __post_init__(self) -> None:
        if wrong := [x for x in (self.exploring, self.warm_up, self.slack) if not 0.0 < x <= 1.0]:
            raise ConfigError(f"exploring, warm_up or slack of RadarsTerms is {wrong[0]}: give numbers in (0, 1]")
        if (fewest := min(self.rounds, self.patience, self.passes)) < 1:
            raise ConfigError(f"rounds, patience or passes of RadarsTerms is {fewest}: give 1 or more")


@dataclass(frozen=True)
class RadarsSettings:
    """What a RADARS run is begun with; see `radars`."""

    limit: Limit | None
    memory: Limit | None
    inner: Inner | None
    terms: RadarsTerms
    search_fraction: float
    weights_fraction: float
    search_recipe: Recipe
    recipe: Recipe


def radars(
    space: nn.Module,
    task: Task,
    run: Run,
    *,
    limit: Limit | None = None,
    memory: Limit | None = None,
    inner: Inner | None = None,
    terms: RadarsTerms = RadarsTerms(),
    search_fraction: float = 0.5,
    weights_fraction: float = 0.5,
    search_recipe: Recipe = RECIPE,
    recipe: Recipe = Recipe(),
) -> Found:
    """Search a space of any size under a bound on memory; the algorithm is on top of this file.

    Args:
        space: a network with OpChoice; it is not changed. Candidates may be `Lazy`, so that few are ever built.
        task: what networks are trained and scored on; its test part is read once, at the end.
        run: epochs of search and training together (default 60), seed, folder (of the candidates' files too), device.
        limit: on what is found, for instance `archgrad.macs(x).at_most(3e6)`.
        memory: on the search: `archgrad.peak_memory(x).at_most(gib=2.0)`; default: what the device has available.
        inner: the method that searches the subspaces, such as `archgrad.unas`; default: DARTS, first order.
        terms: numbers of the exploration.
        search_fraction: part of the budget that is searched in; the rest trains the result from fresh weights.
        weights_fraction: part of the training data that weights are trained on while searching.
        search_recipe: optimizer and clip of the weights; its schedule is that of the default inner method, since
            exploration keeps its learning rate.
        recipe: how the result is trained.

    Raises:
        ChoiceError: the space has no choice of operations, has gates, or choices of labels alone.
        ConfigError: the task lacks what the method needs, or an option out of its range.
        LimitError: no network meets the limit; a single path does not fit into memory; the message says what does.
        NonFiniteError: a loss became NaN or infinite.

    Example:
        >>> import torch, archgrad as ag
        >>> layer = ag.OpChoice({"relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh()}, name="layer")
        >>> space = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), layer, torch.nn.Linear(8, 10))
        >>> found = ag.radars(space, ag.Classification.load("digits"), ag.Run(steps=8, progress=False))
        >>> found.architecture["layer"] in (0, 1)
        True
    """
    settings = RadarsSettings(
        limit, memory, inner, terms, search_fraction, weights_fraction=weights_fraction, search_recipe=search_recipe,
        recipe=recipe,
    )  # fmt: skip
    require(task, Splittable, method="RADARS")
    if memory and not isinstance(memory.cost, PeakMemory):
        raise LimitError(f"memory= bounds the search by archgrad.peak_memory(x).at_most(...), not {memory.cost.name}")
    refuse_fraction(search_fraction)
    refuse_unfit(space, needs="RADARS")
    search_recipe.check_plain("search_recipe")
    constraint = ArchitectureConstraint(prepare_supernet(space, run, needs="RADARS"), limit) if limit else None
    folder = run.folder / "candidates" if run.folder else None
    with OffloadedSupernet(space, device=run.device, folder=folder, seed=run.seed) as supernet:
        rounds = _Rounds(supernet, task, run, settings, constraint)
        if memory:
            rounds.bind(memory.resolve(rounds.prices.of(rounds.everything)))
        run.begin("radars", settings_record(settings))
        if not memory:
            rounds.bind(
                run.compute_once("available_bytes", lambda: available_bytes(run.device)) or sys.float_info.max
            )
        if constraint:
            constraint.fit_surrogate(run)
        path = supernet.taken({site: [0] for site in supernet.sites})
        steps, rest = split_steps(
            run, task, search_fraction, search_recipe=search_recipe, recipe=recipe, network=path
        )
        architecture = rounds.run_all(steps)
        space = supernet.taken({site: [i] for site, i in rounds.path(architecture).items()})
        title = f"{type(space).__name__} searched by RADARS"
        return train_and_report(
            space, architecture, task, run, steps=rest, recipe=recipe, constraint=constraint,
            record=heading(radars, settings_record(settings), title) | {"rounds": rounds.rows},
        )  # fmt: skip


class _Rounds:
    """What the rounds share: prices, policy, paths, the bound."""

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

    def run_all(self, steps: int) -> Architecture:
        """All rounds; returns the architecture that scored best, of equal ones the first."""
        terms, fraction, everything = self.terms, self.settings.search_fraction, self.everything
        sign = 1.0 if higher_is_better(self.task) else -1.0
        best, left = (-math.inf, Architecture({})), steps
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
            best = max(best, (sign * (found.score or 0.0), found.architecture), key=lambda pair: pair[0])
            if last:
                break
        return best[1]

    def _explore(self, t: int, steps: int, time_fraction: float) -> None:
        episodes = max(1, min(steps, 200, round(10 * math.sqrt(sum(self.supernet.sites.values())))))
        self.paths.explore(
            steps=steps, episodes=episodes, warm_up=0.0 if t else self.terms.warm_up, phase=f"explore-{t}",
            time_fraction=time_fraction,
        )  # fmt: skip
        spare = self.path(self.constraint.cheapest) if self.constraint else {}
        self.policy.prune(self.terms.least, self.terms.patience, spare=spare)

    def _first(self) -> dict[str, int]:
        """The likeliest candidate of each site; under a limit those of the likeliest architecture that keeps it."""
        chances = self.policy.probabilities()
        if self.constraint is None:
            return {site: max(self.policy.active[site], key=row.__getitem__) for site, row in chances.items()}
        logs = {site: torch.tensor(row).clamp_min(1e-30).log() for site, row in chances.items()}
        others = {name: torch.zeros(choice.size) for name, choice in decisions(self.constraint.space).items()}
        path = self.path(self.constraint.best_feasible(others | logs))
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
        self.policy.learn(found.architecture, self.paths.reward(found.network))
