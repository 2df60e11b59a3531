"""Exploration by single paths: a policy draws them, and short training on the supernet's weights rewards them."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from archgrad.choices.access import decisions, trainable, using
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.policies import Categorical, Reinforce, Uniform
from archgrad.copy_and_run import in_mode
from archgrad.errors import ConfigError
from archgrad.methods.radars.offload import OffloadedSupernet, moved
from archgrad.run.loop import watched
from archgrad.run.nonfinite import largest
from archgrad.run.run import Run
from archgrad.tasks.task import Batch, Task
from archgrad.training.recipe import Recipe
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
        self._light = {site: [0] * size for site, size in supernet.sites.items()}
        self._episodes: list[tuple[dict[str, int], float]] = []  # since advantages were last added up
        self._advantage = {site: [0.0] * size for site, size in supernet.sites.items()}
        self._drawn = {site: [0] * size for site, size in supernet.sites.items()}
        self._policy = Categorical(supernet.space, condition=self._allowed)
        self._even = Uniform(supernet.space, condition=self._allowed)
        self._places = {decision.name: place for place, decision in enumerate(self._policy.decisions)}
        self.learner = Reinforce(self._policy, rate=rate, bonus=bonus, decay=0.95)

    def __repr__(self) -> str:
        return f"<ShrinkingPolicy, {sum(map(len, self.active.values()))} candidates of {len(self.active)} choices>"

    def _allowed(self, name: str, earlier: Mapping[str, Pick]) -> list[int] | None:
        return self.active.get(name)

    def probabilities(self) -> dict[str, list[float]]:
        """pi_l(o), 0 for what was dropped."""
        rows = {}
        for site, some in self.active.items():
            place = self._places[site]
            rows[site] = self._policy.decisions[place].log_p(self._policy.theta[place], some).exp().tolist()
        return rows

    def draw(self, generator: torch.Generator, *, uniform: bool = False) -> Architecture:
        """A path, by pi or evenly."""
        return (self._even if uniform else self._policy).sample(generator)

    def learn(self, path: Architecture, reward: float) -> None:
        """One step of the policy on one path, if all of it is still active."""
        if all(path[site] in some for site, some in self.active.items()):
            self.learner.step([path], [reward])

    def note(self, path: Architecture, reward: float) -> None:
        """Keep what an episode showed, for `prune_unrewarded`; the policy learns nothing from it."""
        self._episodes.append(({site: i for site in self.active if isinstance(i := path[site], int)}, reward))

    def feed_back(self, site: str, some: Sequence[int], mixing: Tensor, strength: float) -> None:
        """theta_l[S_l] += strength * (log w - mean over S_l of log w), w the mixing weights of a search."""
        row = mixing[list(some)].clamp_min(1e-30).log()
        with torch.no_grad():
            self._policy.theta[self._places[site]][list(some)] += strength * (row - row.mean()).double().cpu()

    def prune(self, least: float, patience: int, *, spare: Mapping[str, int]) -> None:
        """Drop what was below least / n_l, n_l the site's size, in so many rounds in a row; the likeliest stays."""
        for site, row in self.probabilities().items():
            best = max(self.active[site], key=row.__getitem__)
            low = {i: row[i] < least / len(row) for i in self.active[site]}
            self._drop(site, low, self._below[site], patience, kept=(best, spare.get(site)))

    def prune_unrewarded(self, standard_errors: float, *, spare: Mapping[str, int]) -> None:
        """Drop what lowers the reward by more than so many standard errors; of each site the best stays.

        The advantage of an episode is its reward less the mean since the last call, in standard deviations. That of a
        candidate is the mean over all n episodes that it took part in; its standard error is 1 / sqrt(n).
        """
        rewards = [reward for _, reward in self._episodes] or [0.0]
        mean, deviation = statistics.fmean(rewards), max(statistics.pstdev(rewards), 1e-12)
        for path, reward in self._episodes:
            for site, i in path.items():
                self._advantage[site][i] += (reward - mean) / deviation
                self._drawn[site][i] += 1
        self._episodes = []
        for site, some in self.active.items():
            errors = {i: self._advantage[site][i] / max(self._drawn[site][i], 1) ** 0.5 for i in some}
            kept = (max(errors, key=errors.__getitem__), spare.get(site))
            self.active[site] = [i for i in some if errors[i] >= -standard_errors or i in kept]

    def prune_searched(
        self, searched: Mapping[str, Mapping[int, float]], least: float, patience: int, *, spare: Mapping[str, int]
    ) -> None:
        """Drop what weighed less than least / k in so many searches in a row, k candidates being in the subspace.

        Args:
            searched: for each site the mixing weight of each candidate that was in it; the heaviest stays.
            least: lambda, as in `prune`.
            patience: r.
            spare: a candidate of each site that stays whatever it weighs.
        """
        for site, row in searched.items():
            best, total = max(row, key=row.__getitem__), sum(row.values())
            low = {i: weight < least / len(row) * total for i, weight in row.items() if i in self.active[site]}
            self._drop(site, low, self._light[site], patience, kept=(best, spare.get(site)))

    def _drop(
        self, site: str, low: Mapping[int, bool], counts: list[int], patience: int, *, kept: tuple[int | None, ...]
    ) -> None:  # fmt: skip
        for i, is_low in low.items():
            counts[i] = counts[i] + 1 if is_low else 0
            if counts[i] >= patience and i not in kept and len(self.active[site]) > 1:
                self.active[site].remove(i)

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs."""
        return {
            "policy": self._policy.state_dict(), "learner": self.learner.state_dict(),
            "active": self.active, "below": self._below, "light": self._light,
            "episodes": self._episodes, "advantage": self._advantage, "drawn": self._drawn,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._policy.load_state_dict(state["policy"])
        self.learner.load_state_dict(state["learner"])
        self.active = {site: list(some) for site, some in state["active"].items()}
        self._below = {site: list(counts) for site, counts in state["below"].items()}
        self._light = {site: list(counts) for site, counts in state["light"].items()}
        self._episodes = [(dict(path), reward) for path, reward in state["episodes"]]
        self._advantage = {site: list(sums) for site, sums in state["advantage"].items()}
        self._drawn = {site: list(counts) for site, counts in state["drawn"].items()}


class SinglePathTrainer:
    """Trains one path at a time on the weights of a supernet, and updates the policy by the reward of each.

    The reward of a path is exp(-loss) on a validation batch.

    Args:
        supernet: with all candidates offloaded.
        policy: draws the paths.
        tasks: for weights and rewards.
        run: its generator "paths" is drawn from.
        recipe: optimizer and clip of the weights; the optimizer's state of a candidate is offloaded with it.

    Raises:
        ConfigError: the run has several processes, which would write the same files.
    """

    def __init__(
        self,
        supernet: OffloadedSupernet,
        policy: ShrinkingPolicy,
        tasks: tuple[Task, Task],
        run: Run,
        *,
        recipe: Recipe,
    ) -> None:
        if run.world > 1:
            raise ConfigError(
                f"paths are explored by one process, since candidates are kept in files, and the run has "
                f"{run.world}: give Run(devices=1)"
            )
        self.supernet, self.policy, self.tasks, self.run, self.recipe = supernet, policy, tasks, run, recipe
        self._optimizer: Optimizer | None = None
        self._momentum: dict[Tensor, Any] = {}  # the optimizer's state of the parameters that all paths share
        self._path, self._uniform = Architecture({}), False
        self._generator = run.generator("paths")

    def __repr__(self) -> str:
        return f"<SinglePathTrainer: {self.policy!r}>"

    def explore(self, *, steps: int, episodes: int, warm_up: float, phase: str, time_fraction: float) -> None:
        """Explore in one phase of the run; each episode draws a path, trains it, rewards it, and offloads it.

        Args:
            steps: of the weights, divided evenly among the episodes.
            episodes: paths drawn.
            warm_up: part of the phase in which paths are drawn uniformly and do not update the policy.
            phase: name in the history.
            time_fraction: of a budget in seconds.
        """
        self.supernet.pin()
        self.run.register_state(paths=self)
        stream = self.tasks[0].stream(seed=self.run.seed)
        for step in self.run.steps(steps, phase=phase, time_fraction=time_fraction):
            episode = step * episodes // steps
            if self._optimizer is None:
                self._uniform = self.run.progress < warm_up
                self._load(self.policy.draw(self._generator, uniform=self._uniform))
            assert self._optimizer is not None
            self.supernet.space.train()
            batch = load_batch(stream, step, self.run)
            loss = take_step(self._optimizer, self.run, functools.partial(self._loss, self.tasks[0], batch))
            figures: dict[str, float | Tensor] = {"loss": loss}
            if (step + 1) * episodes // steps > episode or step + 1 == steps:
                figures["reward"] = self._end_episode(step)
            self.run.log_step({"loss": loss}, {k: float(v) for k, v in figures.items() if k == "reward"}, step=step)
        self.offload()
        self.supernet.pin()

    def _end_episode(self, step: int) -> float:
        """Reward the path, update the policy by it, and offload the path."""
        batch = load_batch(self.tasks[1].stream(seed=self.run.seed), step, self.run)
        with torch.no_grad(), watched(self.run):
            loss = self._loss(self.tasks[1], batch)
        # Before the path is offloaded, so that no file ever holds NaN.
        self.run.check_finite({"validation loss": loss, "weights": largest(trainable(self.supernet.space))})
        reward = float(torch.exp(-loss))
        self.policy.note(self._path, reward)
        if not self._uniform:
            self.policy.learn(self._path, reward)
        self.offload()
        return reward

    def reward(self, network: nn.Module) -> float:
        """exp(-loss) of a plain network on the first validation batch."""
        batch = load_batch(self.tasks[1].stream(seed=self.run.seed), 0, self.run)
        with torch.no_grad(), watched(self.run), autocast(self.run):
            return float(torch.exp(-self.tasks[1].loss(in_mode(network), batch)))

    def _loss(self, task: Task, batch: Batch) -> Tensor:
        space = self.supernet.space
        masks = {
            name: choice.picked(self._path[name]).float().to(self.run.device)
            for name, choice in decisions(space).items()
        }
        with using(space, masks), autocast(self.run):
            return task.loss(space, batch)

    def _load(self, path: Architecture) -> None:
        """Build a path, and an optimizer for it that continues with the state of each parameter."""
        self._path = path
        self.supernet.load(self._support(), self._momentum)
        self._optimizer = self.recipe.optimizer(self.supernet.space)
        self._optimizer.state.update(self._momentum)

    def offload(self) -> None:
        """Offload the path, if one is loaded."""
        if self._optimizer is not None:
            states = self._optimizer.state
            self.supernet.offload(self._support(), states)
            self._momentum = {p: states[p] for p in trainable(self.supernet.space) if p in states}
            self._path, self._optimizer = Architecture({}), None

    def _support(self) -> dict[str, list[int]]:
        """The candidates of the path; choices of inputs have none."""
        return {site: [i] for site in self.supernet.sites if isinstance(i := self._path.get(site), int)}

    def state_dict(self) -> dict[str, Any]:
        """The policy, the loaded path with its weights and momentum, and which files hold those of the others."""
        states = self._optimizer.state if self._optimizer is not None else self._momentum
        momentum = {name: dict(states[p]) for name, p in self.supernet.space.named_parameters() if p in states}
        return {
            "policy": self.policy.state_dict(), "supernet": self.supernet.state_dict(), "path": self._path.to_json(),
            "uniform": self._uniform, "space": self.supernet.space.state_dict(), "momentum": momentum,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.supernet.empty(self._support())
        self._path, self._optimizer, self._momentum = Architecture({}), None, {}
        self._uniform = bool(state["uniform"])
        self.policy.load_state_dict(state["policy"])
        self.supernet.load_state_dict(state["supernet"])
        if path := Architecture.from_json(state["path"]):
            self._load(path)
        self.supernet.space.load_state_dict(state["space"])
        states = self._optimizer.state if self._optimizer is not None else self._momentum
        for name, parameter in self.supernet.space.named_parameters():
            if name in state["momentum"]:
                states[parameter] = moved(state["momentum"][name], self.supernet.device)
