"""An agent's task: to play an environment of images; on some levels it learns, on others it is judged."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from archgrad.errors import ConfigError, DataError, MissingExtra
from archgrad.tasks.task import stable_seed

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.vector import VectorEnv

    from archgrad.rl.vector_environment import Channels, Players

Part = Literal["train", "test"]
# From images [E, C, H, W] to actions [E].
Act = Callable[[Tensor], Tensor]
ALL = 2**31 - 1
# Levels that no training sees are from here on.
UNSEEN = 10_000_000


def as_input(images: Tensor) -> Tensor:
    """Images as a network takes them: float32, bytes scaled to [0, 1]."""
    return images.float() / 255.0 if images.dtype == torch.uint8 else images


@runtime_checkable
class Games(Protocol):
    """A maker of environments that has levels of its own, such as `archgrad.rl.procgen.Procgen`."""

    name: str

    def vector(self, *, envs: int, first: int, count: int) -> VectorEnv:
        """So many environments side by side, of `count` levels from `first` on, that begin anew in the same step."""
        ...


class Reinforcement:
    """An environment to be played, with levels to learn on and levels that are never learnt on.

    A level is the seed that an episode is reset with: levels 0 to `train_levels` - 1 are for training; `evaluate` on
    the part "test" draws from levels that are not among them.

    Args:
        make: an id of gymnasium's, what makes an environment when called, or `Games`. Images are observed,
            [H, W, C] or [H, W], and actions are of the space Discrete.
        envs: environments that are played side by side.
        train_levels: None to train on all that there are: the part "test" is then not unseen.
        longest: steps after which an episode is left, when judging.
        channels: "first" for images [C, H, W].

    Attributes:
        name: of the environment.
        actions: how many there are.
        example: [1, C, H, W], an input of the network, all 0.
        splits: a record of the above.

    Raises:
        ConfigError: a number out of range.
        DataError: the environment cannot be made, or observes or does something else.
        MissingExtra: gymnasium is not installed.
    """

    def __init__(
        self,
        make: str | Callable[[], gymnasium.Env[Any, Any]] | Games,
        *,
        envs: int = 32,
        train_levels: int | None = 200,
        longest: int = 1000,
        channels: Channels = "last",
    ) -> None:
        if importlib.util.find_spec("gymnasium") is None:
            raise MissingExtra("gymnasium", "rl")
        numbers = {"envs": envs, "train_levels": train_levels, "longest": longest}
        for name, value in numbers.items():
            if not (value is None and name == "train_levels") and (type(value) is not int or value < 1):
                raise ConfigError(f"{name}={value!r}: give a whole number from 1 up")
        if train_levels is not None and train_levels > UNSEEN:
            raise ConfigError(
                f"train_levels={train_levels}: levels from {UNSEEN} on are kept for judging; give fewer"
            )
        if channels not in ("first", "last"):
            raise ConfigError(f"channels={channels!r}: allowed are 'first' and 'last'")
        self.envs, self.train_levels, self.longest, self.channels = envs, train_levels, longest, channels
        self._make = make
        self.name = make if isinstance(make, str) else str(getattr(make, "name", getattr(make, "__name__", make)))
        self.actions, shape = self._spaces()
        self.example = torch.zeros(1, *shape)
        self.splits: dict[str, Any] = {
            "environment": self.name, "train_levels": train_levels, "unseen_levels_from": UNSEEN,
            "input_shape": list(shape), "actions": self.actions, "environments": envs, "longest": longest,
        }  # fmt: skip

    def players(self, *, seed: int, part: Part = "train", envs: int | None = None) -> Players:
        """Environments of a part, begun with a seed."""
        from archgrad.rl.vector_environment import Players

        return Players(self._vector(part, envs or self.envs), name=self.name, channels=self.channels, seed=seed)

    def evaluate(self, act: Act, part: Part = "test", *, episodes: int = 64, seed: int = 0) -> dict[str, float]:
        """Returns of whole episodes, undiscounted: their mean, standard deviation and number, and their mean length.

        Every environment plays equally many, so that short episodes do not count more often.

        Args:
            act: from images [E, C, H, W] in [0, 1] to actions [E].
            part: "train", or "test" for levels that no training sees.
            episodes: at least.
            seed: of the levels.
        """
        envs = min(self.envs, episodes)
        each = math.ceil(episodes / envs)
        players = self.players(seed=stable_seed("evaluate", part, seed) % ALL, part=part, envs=envs)
        returns, lengths = torch.zeros(envs), torch.zeros(envs)
        done: list[list[tuple[float, float]]] = [[] for _ in range(envs)]
        while any(len(one) < each for one in done):
            step = players.step(act(as_input(players.seen)))
            returns, lengths = returns + step.rewards, lengths + 1
            over = step.ended | step.cut
            # What is left here goes on under another count, which is left in turn.
            for i in (over | (lengths >= self.longest)).nonzero().flatten().tolist():
                done[i].append((float(returns[i]), float(lengths[i])))
                returns[i] = lengths[i] = 0.0
        players.close()
        figures = torch.tensor([pair for one in done for pair in one[:each]], dtype=torch.float64)
        mean, length = figures.mean(dim=0).tolist()
        spread = float(figures[:, 0].std(correction=1)) if len(figures) > 1 else 0.0
        return {"return": mean, "return_std": spread, "episodes": float(len(figures)), "length": length}

    def film(self, act: Act, *, part: Part = "test", steps: int = 60, seed: int = 0) -> Tensor:
        """What is seen in one environment over some steps: [steps, H, W, C], uint8 or float32."""
        players = self.players(seed=stable_seed("film", part, seed) % ALL, part=part, envs=1)
        frames = []
        for _ in range(steps):
            frames.append(players.seen[0])
            players.step(act(as_input(players.seen)))
        players.close()
        return torch.stack(frames).movedim(1, -1)

    def _vector(self, part: Part, envs: int) -> VectorEnv:
        from archgrad.rl.vector_environment import side_by_side

        first, count = (UNSEEN, ALL - UNSEEN) if part == "test" else (0, self.train_levels or ALL)
        if isinstance(self._make, Games):
            return self._make.vector(envs=envs, first=first, count=count)
        return side_by_side(self._maker(), envs=envs, first=first, count=count)

    def _maker(self) -> Callable[[], gymnasium.Env[Any, Any]]:
        import gymnasium

        assert not isinstance(self._make, Games)
        if not isinstance(self._make, str):
            return self._make
        name = self._make
        return lambda: gymnasium.make(name, disable_env_checker=True)

    def _spaces(self) -> tuple[int, tuple[int, int, int]]:
        """Number of actions and shape [C, H, W] of the images."""
        import gymnasium
        from gymnasium.spaces import Box, Discrete

        try:
            one = self._vector("train", 1)
        except gymnasium.error.Error as error:
            raise DataError(f"gymnasium cannot make {self.name!r}: {error}") from error
        seen, done = one.single_observation_space, one.single_action_space
        one.close()
        if not isinstance(seen, Box) or len(seen.shape) not in (2, 3):
            raise DataError(
                f"{self.name} observes {seen}: allowed is an image, a Box of shape [H, W, C] or [H, W]. Wrap the "
                f"environment so that it gives one, for instance by gymnasium.wrappers.AddRenderObservation"
            )
        if not isinstance(done, Discrete) or done.start != 0:
            raise DataError(
                f"{self.name} acts in {done}: the PPO of this library takes Discrete actions from 0. Wrap the "
                f"environment, or put the supernet into an algorithm that takes such actions: "
                f"archgrad.rl.stable_baselines"
            )
        height, width, channels = seen.shape if len(seen.shape) == 3 else (*seen.shape, 1)
        if len(seen.shape) == 3 and self.channels == "first":
            channels, height, width = seen.shape
        return int(done.n), (channels, height, width)
