"""Exploration of a space by single paths: a policy draws them, short training on the shelf's weights judges them."""

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
from archgrad.methods.radars.offload import Shelf, moved
from archgrad.run.nonfinite import largest
from archgrad.run.resource_errors import watched
from archgrad.run.run import Run
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Batch
from archgrad.training.fit import MakeOptimiser, autocast, for_weights, take_step


class Shrinking:
    """A policy of independent choices whose candidates are dropped for good.

    Args:
        shelf: whose space is decided; barred candidates are never drawn.
        rate: of Adam on the logits.
        bonus: of the entropy, in reward.

    Attributes:
        active: A_l, {site: candidates not dropped}.
        learner: the policy gradient.
    """

    def __init__(self, shelf: Shelf, *, rate: float, bonus: float) -> None:
        barred = {site: shelf.barred(site) for site in shelf.sites}
        self.active = {site: [i for i in range(n) if i not in barred[site]] for site, n in shelf.sites.items()}
        self._below = {site: [0] * size for site, size in shelf.sites.items()}
        self._policy = Categorical(shelf.space, condition=self._allowed)
        self._even = Uniform(shelf.space, condition=self._allowed)
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


class Paths:
    """Trains one path at a time on the weights of a shelf, and teaches the policy what each was worth.

    The reward of a path is exp(-loss) on a validation batch: the geometric mean of the right classes' probabilities.

    Args:
        shelf: with everything put away.
        policy: draws the paths.
        shares: tasks for weights and rewards.
        run: its generator "paths" is drawn from.
        optimiser: from weights to their optimiser; what it keeps of a candidate is put away with it.

    Raises:
        ConfigError: the run has several processes, which would write the same files.
    """

    def __init__(
        self, shelf: Shelf, policy: Shrinking, shares: tuple[Classification, Classification], run: Run, *,
        optimiser: MakeOptimiser,
    ) -> None:  # fmt: skip
        if run.world > 1:
            raise ConfigError(
                f"paths are explored by one process, since candidates are kept in files, and the run has "
                f"{run.world}: give Run(devices=1)"
            )
        self.shelf, self.policy, self.shares, self.run = shelf, policy, shares, run
        self._make = optimiser
        self._optimiser: Optimizer | None = None
        self._momentum: dict[Tensor, Any] = {}  # what optimisers keep of the parameters that all paths share
        self._path = Architecture({})
        self._generator = run.generator("paths")

    def explore(self, *, steps: int, episodes: int, warm_up: int, phase: str, share: float) -> None:
        """So many episodes in one phase of the run: draw a path, train it, reward it, put it away.

        Args:
            steps: of the weights, divided evenly among the episodes.
            episodes: paths drawn.
            warm_up: of them the first so many are drawn evenly and teach nothing.
            phase: name in the history.
            share: of a budget in seconds.
        """
        self.shelf.settle()
        self.run.keep(paths=self)
        first, second = (task.stream(seed=self.run.seed) for task in self.shares)
        space = self.shelf.space
        for step in self.run.steps(steps, phase=phase, share=share):
            episode = step * episodes // steps
            if self._optimiser is None:
                self._hold(self.policy.draw(self._generator, uniform=episode < warm_up))
            assert self._optimiser is not None
            space.train()
            held = trainable(space)
            with watched(self.run):
                batch = self.run.to_device(first(step))
                loss = self._loss(batch)
                self.run.check_finite({"loss": loss}, again=functools.partial(self._loss, batch))
                take_step(self._optimiser, held, torch.autograd.grad(loss, held, allow_unused=True), self.run)
            figures: dict[str, float | Tensor] = {"loss": loss.detach()}
            if (step + 1) * episodes // steps > episode or step + 1 == steps:
                with torch.no_grad(), watched(self.run):
                    judged = self._loss(self.run.to_device(second(step)))
                # Before the path is put away: what is on file is good.
                self.run.check_finite({"validation loss": judged, "weights": largest(held)})
                reward = float(torch.exp(-judged))
                if episode >= warm_up:
                    self.policy.learn(self._path, reward)
                self.put_away()
                figures["reward"] = reward
            self.run.log(figures, step=step)
        self.put_away()
        self.shelf.settle()

    @property
    def space(self) -> nn.Module:
        """What of the space is held now."""
        return self.shelf.space

    def _loss(self, batch: Batch) -> Tensor:
        space = self.shelf.space
        given = {}
        for name, (choice, *_) in choices(space).items():
            given[name] = choice.picked(self._path[name]).float().to(self.run.device)
        with using(space, given), autocast(self.run):
            return self.shares[0].loss(space, batch)

    def _hold(self, path: Architecture) -> None:
        """Build a path, and an optimiser for it that goes on where it was with each parameter."""
        self._path = path
        self.shelf.take_up(self._support(), self._momentum)
        self._optimiser = for_weights(self._make, self.shelf.space)
        self._optimiser.state.update(self._momentum)

    def put_away(self) -> None:
        """Let go of the path, if one is held."""
        if self._optimiser is not None:
            kept = self._optimiser.state
            self.shelf.put_away(self._support(), kept)
            self._momentum = {p: kept[p] for p in trainable(self.shelf.space) if p in kept}
            self._path, self._optimiser = Architecture({}), None

    def _support(self) -> dict[str, list[int]]:
        """The candidates of the path; choices of inputs have none."""
        return {site: [i] for site in self.shelf.sites if isinstance(i := self._path.get(site), int)}

    def state_dict(self) -> dict[str, Any]:
        """The policy, the path that is held with its weights and momentum, and which files hold the others'."""
        kept = self._optimiser.state if self._optimiser is not None else self._momentum
        momentum = {name: dict(kept[p]) for name, p in self.shelf.space.named_parameters() if p in kept}
        return {
            "policy": self.policy.state_dict(), "shelf": self.shelf.state_dict(), "path": self._path.to_json(),
            "space": self.shelf.space.state_dict(), "momentum": momentum,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.shelf.empty(self._support())
        self._path, self._optimiser, self._momentum = Architecture({}), None, {}
        self.policy.load_state_dict(state["policy"])
        self.shelf.load_state_dict(state["shelf"])
        if path := Architecture.from_json(state["path"]):
            self._hold(path)
        self.shelf.space.load_state_dict(state["space"])
        kept = self._optimiser.state if self._optimiser is not None else self._momentum
        for name, parameter in self.shelf.space.named_parameters():
            if name in state["momentum"]:
                kept[parameter] = moved(state["momentum"][name], self.shelf.device)
