"""The task of an agent: to play an environment of images, on training levels and on levels that it has never seen."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from archgrad.errors import ConfigError, DataError, MissingExtra
from archgrad.fingerprint import described
from archgrad.tasks.task import stable_seed

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.vector import VectorEnv

    from archgrad.rl.vector_environment import Channels, ReplayableVectorEnv

Part = Literal["train", "test"]
# From images [E, C, H, W] in [0, 1] to actions [E].
Policy = Callable[[Tensor], Tensor]
SEEDS = 2**31 - 1
# Training levels lie below it, test levels from it on.
FIRST_TEST_LEVEL = 10_000_000


def as_input(images: Tensor) -> Tensor:
    """Images [B, C, H, W] as a network takes them: float32, bytes scaled to [0, 1]."""
    return images.float() / 255.0 if images.dtype == torch.uint8 else images


@runtime_checkable
class VectorEnvMaker(Protocol):
    """Makes vector environments that have levels of their own, such as `archgrad.rl.Procgen`.

    Attributes:
        name: of the environment.
    """

    name: str

    def make_vec(self, *, num_envs: int, first_level: int, num_levels: int) -> VectorEnv:
        """`num_envs` environments of `num_levels` levels from `first_level` on, in AutoresetMode.SAME_STEP."""
        ...


class Reinforcement:
    """An environment to play, with levels to learn on and levels that no training sees.

    A level is the seed that an episode is reset with. Levels 0 to `train_levels` - 1 are for training; `evaluate` on
    the part "test" draws from levels that are not among them.

    Args:
        env: an id of gymnasium, a callable that makes an environment, or a `VectorEnvMaker`. Observations are images
            [H, W, C] or [H, W]; the action space is Discrete.
        num_envs: environments that are stepped together.
        train_levels: number of training levels. None: all levels there are; the part "test" is then not unseen.
        max_episode_steps: evaluation leaves an episode after this many steps, and does not count the rest of it.
        channels: "last", or "first" for images [C, H, W].

    Attributes:
        name: of the environment.
        actions: number of actions.
        example: [1, C, H, W], an input of the network; all zeros.
        splits: a record of the above.

    Raises:
        ConfigError: a number is out of range.
        DataError: the environment cannot be made, or its observations or actions are of another kind.
        MissingExtra: gymnasium is not installed.

    Example:
        >>> import archgrad as ag
        >>> from archgrad.rl import PixelGame
        >>> task = ag.Reinforcement(PixelGame, num_envs=4, train_levels=200)
        >>> task.actions, list(task.example.shape)
        (4, [1, 3, 8, 8])
    """

    def __init__(
        self,
        env: str | Callable[[], gymnasium.Env[Any, Any]] | VectorEnvMaker,
        *,
        num_envs: int = 32,
        train_levels: int | None = 200,
        max_episode_steps: int = 1000,
        channels: Channels = "last",
    ) -> None:
        if importlib.util.find_spec("gymnasium") is None:
            raise MissingExtra("gymnasium", "rl")
        numbers = {"num_envs": num_envs, "train_levels": train_levels, "max_episode_steps": max_episode_steps}
        for name, value in numbers.items():
            if not (value is None and name == "train_levels") and (type(value) is not int or value < 1):
                raise ConfigError(f"{name}={value!r} was given. Allowed is a whole number from 1 up.")
        if train_levels is not None and train_levels > FIRST_TEST_LEVEL:
            raise ConfigError(
                f"train_levels={train_levels} was given. Levels from {FIRST_TEST_LEVEL} on are for tests: give fewer."
            )
        if channels not in ("first", "last"):
            raise ConfigError(f"channels={channels!r} was given. Allowed are 'first' and 'last'.")
        self.num_envs, self.train_levels = num_envs, train_levels
        self.max_episode_steps, self.channels = max_episode_steps, channels
        self._env = env
        named = env if isinstance(env, str) else getattr(env, "name", getattr(env, "__name__", None))
        self.name = described(env, written=True) if named is None else str(named)
        self.actions, shape = self._check_spaces()
        self.example = torch.zeros(1, *shape)
        self.splits: dict[str, Any] = {
            "environment": self.name, "train_levels": train_levels, "first_test_level": FIRST_TEST_LEVEL,
            "input_shape": list(shape), "actions": self.actions, "num_envs": num_envs,
            "max_episode_steps": max_episode_steps,
        }  # fmt: skip

    def fingerprint(self) -> dict[str, str]:
        """What makes the environments, in words: what a resumed run is compared by.

        Attributes of classes count as their source gives them, since environments may count steps there.
        """
        return {"made by": described(self._env, written=True)}

    def __repr__(self) -> str:
        shape = list(self.example.shape[1:])
        return f"<Reinforcement, {self.name}: images {shape}, {self.actions} actions, {self.num_envs} environments>"

    def vector_env(self, *, seed: int, part: Part = "train", num_envs: int | None = None) -> ReplayableVectorEnv:
        """Environments of a part, reset with a seed."""
        from archgrad.rl.vector_environment import ReplayableVectorEnv

        env = self._make_vec(part, num_envs or self.num_envs)
        return ReplayableVectorEnv(env, name=self.name, channels=self.channels, seed=seed)

    def evaluate(self, policy: Policy, part: Part = "test", *, episodes: int = 64, seed: int = 0) -> dict[str, float]:
        """Undiscounted returns of whole episodes: mean, standard deviation, number, and mean length in steps.

        Every environment plays equally many episodes, so that short ones do not count more often.

        Args:
            policy: from images [E, C, H, W] in [0, 1] to actions [E].
            part: "train", or "test" for levels that no training sees.
            episodes: the least number of episodes.
            seed: of the levels.
        """
        num_envs = min(self.num_envs, episodes)
        per_env = math.ceil(episodes / num_envs)
        env = self.vector_env(seed=stable_seed("evaluate", part, seed) % SEEDS, part=part, num_envs=num_envs)
        rows: list[Tensor] = []
        for number in range(per_env):
            if number:  # anew, since what is left of an episode that was cut short is no episode
                env.reset(stable_seed("evaluate", part, seed, number) % SEEDS)
            returns, lengths, playing = torch.zeros(num_envs), torch.zeros(num_envs), torch.ones(num_envs).bool()
            while bool(playing.any()):
                step = env.step(policy(as_input(env.images)))
                returns, lengths = returns + step.rewards * playing, lengths + playing
                playing &= ~step.done & (lengths < self.max_episode_steps)
            rows.append(torch.stack([returns, lengths], dim=1))
        env.close()
        figures = torch.cat(rows).double()
        mean, length = figures.mean(dim=0).tolist()
        spread = float(figures[:, 0].std(correction=1)) if len(figures) > 1 else 0.0
        return {"return": mean, "return_std": spread, "episodes": float(len(figures)), "length": length}

    def record_frames(self, policy: Policy, *, part: Part = "test", steps: int = 60, seed: int = 0) -> Tensor:
        """What one environment shows over some steps: [steps, H, W, C], uint8 or float32."""
        env = self.vector_env(seed=stable_seed("film", part, seed) % SEEDS, part=part, num_envs=1)
        frames = []
        for _ in range(steps):
            frames.append(env.images[0])
            env.step(policy(as_input(env.images)))
        env.close()
        return torch.stack(frames).movedim(1, -1)

    def _make_vec(self, part: Part, num_envs: int) -> VectorEnv:
        from archgrad.rl.vector_environment import make_vector_env

        first, count = (
            (FIRST_TEST_LEVEL, SEEDS - FIRST_TEST_LEVEL) if part == "test" else (0, self.train_levels or SEEDS)
        )
        if isinstance(self._env, VectorEnvMaker):
            return self._env.make_vec(num_envs=num_envs, first_level=first, num_levels=count)
        return make_vector_env(self._factory(), num_envs=num_envs, first_level=first, num_levels=count)

    def _factory(self) -> Callable[[], gymnasium.Env[Any, Any]]:
        import gymnasium

        assert not isinstance(self._env, VectorEnvMaker)
        if not isinstance(self._env, str):
            return self._env
        name = self._env
        return lambda: gymnasium.make(name, disable_env_checker=True)

    def _check_spaces(self) -> tuple[int, tuple[int, int, int]]:
        """Number of actions and shape (C, H, W) of the images. Raises DataError for other spaces."""
        import gymnasium
        from gymnasium.spaces import Box, Discrete

        try:
            env = self._make_vec("train", 1)
        except gymnasium.error.Error as error:
            raise DataError(f"gymnasium cannot make {self.name!r}: {error}") from error
        observed, acted = env.single_observation_space, env.single_action_space
        env.close()
        if not isinstance(observed, Box) or len(observed.shape) not in (2, 3):
            raise DataError(
                f"{self.name} observes {observed}. Allowed is an image, a Box of shape [H, W, C] or [H, W]. Wrap the "
                f"environment so that it gives one, for instance by gymnasium.wrappers.AddRenderObservation."
            )
        if not isinstance(acted, Discrete) or acted.start != 0:
            raise DataError(
                f"{self.name} acts in {acted}. The PPO of this library takes Discrete actions from 0. Wrap the "
                f"environment, or search with an algorithm that takes such actions: archgrad.rl.policy_kwargs puts "
                f"a supernet into those of Stable-Baselines3."
            )
        height, width, channels = observed.shape if len(observed.shape) == 3 else (*observed.shape, 1)
        if len(observed.shape) == 3 and self.channels == "first":
            channels, height, width = observed.shape
        return int(acted.n), (channels, height, width)
