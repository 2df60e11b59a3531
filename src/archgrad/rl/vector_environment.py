"""Environments stepped together: levels by seed, images as tensors, a state that can be saved and restored."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from torch import Tensor

from archgrad.errors import DataError, RunError, one_line

Channels = Literal["first", "last"]
_RESUME = "Repair the environment and run the program again: a run with a folder goes on from its last checkpoint"


class LevelWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment each of whose episodes is a level: the seed that the episode is reset with.

    Args:
        env: an environment whose `reset(seed=...)` decides the episode.
        first_level: the lowest level.
        num_levels: number of levels; each episode draws one of them.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, first_level: int, num_levels: int) -> None:
        super().__init__(env)
        self.first_level, self.num_levels = first_level, num_levels
        self._generator = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode. A seed decides which levels this and all later episodes are."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        level = self.first_level + int(self._generator.integers(self.num_levels))
        return self.env.reset(seed=level, options=options)


def make_vector_env(
    make: Callable[[], gymnasium.Env[Any, Any]], *, num_envs: int, first_level: int, num_levels: int
) -> VectorEnv:
    """Environments of an ordinary `make`, stepped together and reset in the step in which an episode ends.

    Raises:
        DataError: `make` fails, or returns something else than an environment.
    """

    def make_one() -> gymnasium.Env[Any, Any]:
        name = getattr(make, "__name__", type(make).__name__)
        with _reported(lambda: f"{name}, which makes the environment,", passed=gymnasium.error.Error):
            env = make()
        if not isinstance(env, gymnasium.Env):
            raise DataError(f"{name} returned a {type(env).__name__}. It has to return a gymnasium.Env.")
        return LevelWrapper(env, first_level=first_level, num_levels=num_levels)

    return SyncVectorEnv([make_one] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


@dataclass(frozen=True)
class EnvStep:
    """The result of one step of E environments.

    Attributes:
        rewards: [E], float32.
        terminated: [E] bool: the episode has ended.
        truncated: [E] bool: the episode was cut short and would have gone on.
        final_images: [E, C, H, W], the last image of an episode that is over; the present image in all others.
    """

    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    final_images: Tensor

    @property
    def done(self) -> Tensor:
        """[E] bool: the episode is over, for either reason."""
        return self.terminated | self.truncated


class ReplayableVectorEnv:
    """E environments whose state is their seed and all actions since; they are played again to restore it.

    Exact where the environments are functions of their seed and actions. This is verified when a state is loaded.

    Args:
        env: reset in the step in which an episode ends.
        name: of the environment, for messages.
        channels: which axis of the images holds their channels.
        seed: to begin with.

    Attributes:
        images: the present images [E, C, H, W], uint8 or float32.
        num_envs: E.

    Raises:
        DataError: the environments are reset at another time, or the first reset fails.
    """

    def __init__(self, env: VectorEnv, *, name: str, channels: Channels, seed: int) -> None:
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise DataError(
                f"{name}: its vector environment has the autoreset mode {env.metadata.get('autoreset_mode')}. Make "
                f"it with AutoresetMode.SAME_STEP."
            )
        self.env, self.name, self.channels, self.num_envs = env, name, channels, env.num_envs
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Begin new episodes in all environments, the same for the same seed."""
        self.seed, self.actions = seed, list[Tensor]()
        with _reported(self._place):
            observations, _ = self.env.reset(seed=seed)
        self.images = self._as_images(observations)

    def step(self, actions: Tensor) -> EnvStep:
        """Take one step in each environment.

        Args:
            actions: [E] int64.

        Raises:
            DataError: an environment failed, or a reward or image is not finite.
        """
        self.actions.append(actions.to(torch.int16))
        with _reported(self._place):
            observations, rewards, terminated, truncated, infos = self.env.step(actions.numpy())
        self.images = final_images = self._as_images(observations)
        if "final_obs" in infos:
            final_images = final_images.clone()
            for i in np.flatnonzero(infos["_final_obs"]):
                final_images[i] = self._as_images(np.asarray(infos["final_obs"][i])[None])[0]
        reward_tensor = torch.from_numpy(np.asarray(rewards, dtype=np.float32).copy())
        self._check_finite("reward", reward_tensor)
        ended, cut = (torch.from_numpy(np.array(flag)) for flag in (terminated, truncated))
        return EnvStep(reward_tensor, terminated=ended, truncated=cut, final_images=final_images)

    def state_dict(self) -> dict[str, Any]:
        """The seed, the actions since, and a checksum of the present images."""
        actions = torch.stack(self.actions) if self.actions else torch.zeros(0, self.num_envs, dtype=torch.int16)
        return {"seed": self.seed, "actions": actions, "checksum": self._checksum()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Play the same again.

        Raises:
            RunError: the environments came to other images than before.
        """
        self.reset(state["seed"])
        for actions in state["actions"]:
            self.step(actions.long())
        if self._checksum() != state["checksum"]:
            raise RunError(
                f"{self.name} did not play the same again: the seed {self.seed} and the same {len(self.actions)} "
                f"actions led to other images. Exact resume needs an environment that is decided by "
                f"reset(seed=...) and its actions. Begin anew in another folder."
            )

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def _checksum(self) -> int:
        return zlib.crc32(self.images.numpy().tobytes())

    def _as_images(self, observations: Any) -> Tensor:
        """[E, C, H, W], uint8 or float32."""
        array = np.asarray(observations)
        images = torch.from_numpy(array.copy() if array.dtype == np.uint8 else array.astype(np.float32))
        images = images.unsqueeze(-1) if images.dim() == 3 else images
        images = images.movedim(-1, 1) if self.channels == "last" or array.ndim == 3 else images
        self._check_finite("image", images)
        return images.contiguous()

    def _check_finite(self, what: str, values: Tensor) -> None:
        if not values.is_floating_point() or bool(torch.isfinite(values).all()):
            return
        broken = (~torch.isfinite(values)).reshape(len(values), -1).any(-1)
        index = int(broken.nonzero()[0])
        raise DataError(f"{self._place()}: the {what} of environment {index} is NaN or infinite. {_RESUME}.")

    def _place(self) -> str:
        return f"{self.name}, step {len(self.actions)} after the seed {self.seed}"


@contextmanager
def _reported(place: Callable[[], str], *, passed: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Raise what an environment raises as a DataError that names its place; errors of `passed` stay as they are."""
    try:
        yield
    except passed:
        raise
    except Exception as error:  # a user's environment may raise anything
        raise DataError(f"{place()} raised {one_line(error)}. {_RESUME}.") from error
