"""Exploration by single paths: a policy draws them, short training on the supernet's weights judges them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from archgrad.choices.access import choices, trainable, using
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.policies import Categorical, Reinforce, Uniform
from archgrad.errors import ConfigError
from archgrad.methods.radars.offload import OffloadedSupernet, moved
from archgrad.run.nonfinite import largest
from archgrad.run.resource_errors import watched
from archgrad.run.run import Run
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Batch
from archgrad.training.recipe import OptimizerFactory, Recipe
from archgrad.training.step import autocast, load_batch, take_step


class ShrinkingPolicy:
    """A policy of independent choices whose candidates are dropped for good.

    Args:
        supernet: whose space is decided; barred candidates are never drawn.
        rate: of Adam on the logits.
        bonus: of the entropy, in reward.

    Attributes:
        active: A_l, {site: candidates not dropped}.
        learner: the policy gradient.
    """

    def __init__(self, supernet: OffloadedSupernet, *, rate: float, bonus: float) -> None:
        barred = {site: supernet.barred(site) for site in supernet.sites}
        self.active = {site: [i for i in range(n) if i not in barred[site]] for site, n in supernet.sites.items()}
        self._below = {site: [0] * size for site, size in supernet.sites.items()}
        self._policy = Categorical(supernet.space, condition=self._allowed)
        self._even = Uniform(supernet.space, condition=self._allowed)
        self._places = {one.name: place for place, one in enumerate(self._policy.decisions)}
        self.learner = Reinforce(self._policy, rate=rate, bonus=bonus, decay=0.95)

    def _allowed(self, name: str, earlier: Mapping[str, Pick]) -> list[int] | None:
        return self.active.get(name)

    def probabilities(self) -> dict[str, list[float]]:
        """pi_l(o), 0 for what was dropped."""
        found = {}
        for site, some in self.active.items():
            place = self._places[site]
            found[site] = self._policy.decisions[place].log_p(self._policy.theta[place], some).exp().tolist()
        return found

    def draw(self, generator: torch.Generator, *, uniform: bool = False) -> Architecture:
        """A path, by pi or evenly."""
        return (self._even if uniform else self._policy).sample(generator)

    def learn(self, path: Architecture, reward: float) -> None:
        """One step of the policy on one path, if all of it is still active."""
        if all(path[site] in some for site, some in self.active.items()):
            self.learner.step([path], [reward])

    def feed_back(self, site: str, some: Sequence[int], mixing: Tensor, strength: float) -> None:
        """theta_l[S_l] += strength * (log w - mean over S_l of log w), w the mixing weights of a search."""
        row = mixing[list(some)].clamp_min(1e-30).log()
        with torch.no_grad():
            self._policy.theta[self._places[site]][list(some)] += strength * (row - row.mean()).double().cpu()

    def prune(self, least: float, patience: int, *, spare: Mapping[str, int]) -> None:
        """Drop what was below least / n_l, n_l the site's size, in so many rounds in a row; the likeliest stays."""
        for site, row in self.probabilities().items():
            best = max(self.active[site], key=row.__getitem__)
            for i in list(self.active[site]):
                low = row[i] < least / len(row)
                self._below[site][i] = self._below[site][i] + 1 if low else 0
                if self._below[site][i] >= patience and i not in (best, spare.get(site)):
                    self.active[site].remove(i)

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs."""
        return {
            "policy": self._policy.state_dict(), "learner": self.learner.state_dict(),
            "active": self.active, "below": self._below,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self._policy.load_state_dict(state["policy"])
        self.learner.load_state_dict(state["learner"])
        self.active = {site: list(some) for site, some in state["active"].items()}
        self._below = {site: list(counts) for site, counts in state["below"].items()}


class SinglePathTrainer:
    """Trains one path at a time on the weights of a supernet, and teaches the policy what each was worth.

    The reward of a path is exp(-loss) on a validation batch: the geometric mean of the right classes' probabilities.

    Args:
        supernet: with everything put away.
        policy: draws the paths.
        shares: tasks for weights and rewards.
        run: its generator "paths" is drawn from.
        optimizer: from weights to their optimizer; what it keeps of a candidate is put away with it.

    Raises:
        ConfigError: the run has several processes, which would write the same files.
    """

    def __init__(
        self,
        supernet: OffloadedSupernet,
        policy: ShrinkingPolicy,
        shares: tuple[Classification, Classification],
        run: Run,
        *,
        optimizer: OptimizerFactory,
    ) -> None:
        if run.world > 1:
            raise ConfigError(
                f"paths are explored by one process, since candidates are kept in files, and the run has "
                f"{run.world}: give Run(devices=1)"
            )
        self.supernet, self.policy, self.shares, self.run = supernet, policy, shares, run
        self._make = optimizer
        self._optimizer: Optimizer | None = None
        self._momentum: dict[Tensor, Any] = {}  # what optimizers keep of the parameters that all paths share
        self._path = Architecture({})
        self._generator = run.generator("paths")

    def explore(self, *, steps: int, episodes: int, warm_up: int, phase: str, time_fraction: float) -> None:
        """So many episodes in one phase of the run: draw a path, train it, reward it, put it away.

        Args:
            steps: of the weights, divided evenly among the episodes.
            episodes: paths drawn.
            warm_up: of them the first so many are drawn evenly and teach nothing.
            phase: name in the history.
            time_fraction: of a budget in seconds.
        """
        self.supernet.pin()
        self.run.register_state(paths=self)
        first, second = (task.stream(seed=self.run.seed) for task in self.shares)
        space = self.supernet.space
        for step in self.run.steps(steps, phase=phase, time_fraction=time_fraction):
            episode = step * episodes // steps
            if self._optimizer is None:
                self._hold(self.policy.draw(self._generator, uniform=episode < warm_up))
            assert self._optimizer is not None
            space.train()
            held = trainable(space)
            batch = load_batch(first, step, self.run)
            loss = take_step(self._optimizer, self.run, functools.partial(self._loss, batch))
            figures: dict[str, float | Tensor] = {"loss": loss}
            if (step + 1) * episodes // steps > episode or step + 1 == steps:
                with torch.no_grad(), watched(self.run):
                    judged = self._loss(self.run.to_device(second(step)))
                # Before the path is put away: what is on file is good.
                self.run.check_finite({"validation loss": judged, "weights": largest(held)})
                reward = float(torch.exp(-judged))
                if episode >= warm_up:
                    self.policy.learn(self._path, reward)
                self.offload()
                figures["reward"] = reward
            self.run.log(figures, step=step)
        self.offload()
        self.supernet.pin()

    @property
    def space(self) -> nn.Module:
        """What of the space is held now."""
        return self.supernet.space

    def _loss(self, batch: Batch) -> Tensor:
        space = self.supernet.space
        given = {}
        for name, (choice, *_) in choices(space).items():
            given[name] = choice.picked(self._path[name]).float().to(self.run.device)
        with using(space, given), autocast(self.run):
            return self.shares[0].loss(space, batch)

    def _hold(self, path: Architecture) -> None:
        """Build a path, and an optimizer for it that goes on where it was with each parameter."""
        self._path = path
        self.supernet.load(self._support(), self._momentum)
        self._optimizer = Recipe(optimizer_factory=self._make).optimizer(self.supernet.space)
        self._optimizer.state.update(self._momentum)

    def offload(self) -> None:
        """Let go of the path, if one is held."""
        if self._optimizer is not None:
            kept = self._optimizer.state
            self.supernet.offload(self._support(), kept)
            self._momentum = {p: kept[p] for p in trainable(self.supernet.space) if p in kept}
            self._path, self._optimizer = Architecture({}), None

    def _support(self) -> dict[str, list[int]]:
        """The candidates of the path; choices of inputs have none."""
        return {site: [i] for site in self.supernet.sites if isinstance(i := self._path.get(site), int)}

    def state_dict(self) -> dict[str, Any]:
        """The policy, the path that is held with its weights and momentum, and which files hold the others'."""
        kept = self._optimizer.state if self._optimizer is not None else self._momentum
        momentum = {name: dict(kept[p]) for name, p in self.supernet.space.named_parameters() if p in kept}
        return {
            "policy": self.policy.state_dict(), "supernet": self.supernet.state_dict(), "path": self._path.to_json(),
            "space": self.supernet.space.state_dict(), "momentum": momentum,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.supernet.empty(self._support())
        self._path, self._optimizer, self._momentum = Architecture({}), None, {}
        self.policy.load_state_dict(state["policy"])
        self.supernet.load_state_dict(state["supernet"])
        if path := Architecture.from_json(state["path"]):
            self._hold(path)
        self.supernet.space.load_state_dict(state["space"])
        kept = self._optimizer.state if self._optimizer is not None else self._momentum
        for name, parameter in self.supernet.space.named_parameters():
            if name in state["momentum"]:
                kept[parameter] = moved(state["momentum"][name], self.supernet.device)
