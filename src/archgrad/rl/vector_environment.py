"""Environments that are played side by side: levels by seed, images, errors by name, a state that can be saved."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from torch import Tensor

from archgrad.errors import DataError, RunError, one_line

Channels = Literal["first", "last"]


class Levelled(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose episodes are each one of some levels: a level is the seed that an episode is reset with.

    Args:
        env: whose `reset(seed=...)` says what comes.
        first: the first level.
        count: of levels; each episode draws one of them.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, first: int, count: int) -> None:
        super().__init__(env)
        self.first, self.count = first, count
        self._draws = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A seed says which levels this and all later episodes are."""
        if seed is not None:
            self._draws = np.random.default_rng(seed)
        return self.env.reset(seed=self.first + int(self._draws.integers(self.count)), options=options)


def side_by_side(make: Callable[[], gymnasium.Env[Any, Any]], *, envs: int, first: int, count: int) -> VectorEnv:
    """Environments of ordinary make, played in step; an episode's last step gives the first image of the next.

    Raises DataError where `make` fails, or makes something else.
    """

    def one() -> gymnasium.Env[Any, Any]:
        name = getattr(make, "__name__", type(make).__name__)
        with _Named(lambda: f"{name}, which makes the environment,", passed=gymnasium.error.Error):
            env = make()
        if not isinstance(env, gymnasium.Env):
            raise DataError(f"{name} makes a {type(env).__name__}; it has to make a gymnasium.Env")
        return Levelled(env, first=first, count=count)

    return SyncVectorEnv([one] * envs, autoreset_mode=AutoresetMode.SAME_STEP)


@dataclass(frozen=True)
class Step:
    """What one step of E environments gave.

    Attributes:
        rewards: [E], float32.
        ended: [E] bool: the episode is over.
        cut: [E] bool: the episode was cut short and would have gone on.
        last: [E, C, H, W], what was seen before a new episode began; where none began, what is seen now.
    """

    rewards: Tensor
    ended: Tensor
    cut: Tensor
    last: Tensor


class Players:
    """E environments and what is seen in them. Its state is the seed and all actions since, which are played again.

    Exact, if the environments are functions of their seed and actions; it is checked when a state is loaded.

    Args:
        envs: reset in the same step in which an episode ends.
        name: of the environment, for messages.
        channels: where the images have theirs.
        seed: to begin with.
    """

    def __init__(self, envs: VectorEnv, *, name: str, channels: Channels, seed: int) -> None:
        if envs.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise DataError(
                f"{name}: its vector environment begins new episodes by "
                f"{envs.metadata.get('autoreset_mode')}; make it with AutoresetMode.SAME_STEP"
            )
        self.envs, self.name, self.channels, self.size = envs, name, channels, envs.num_envs
        self.begin(seed)

    def begin(self, seed: int) -> None:
        """New episodes in all environments, the same for the same seed."""
        self.seed, self.actions = seed, list[Tensor]()
        with self._named():
            seen, _ = self.envs.reset(seed=seed)
        self.seen = self._images(seen)

    def step(self, actions: Tensor) -> Step:
        """One step in each environment; `seen` is what is seen behind it.

        Args:
            actions: [E] int64.

        Raises:
            DataError: an environment failed, or a reward or image is not finite.
        """
        self.actions.append(actions.to(torch.int16))
        with self._named():
            seen, rewards, ended, cut, more = self.envs.step(actions.numpy())
        self.seen = last = self._images(seen)
        if "final_obs" in more:
            last = last.clone()
            for i in np.flatnonzero(more["_final_obs"]):
                last[i] = self._images(np.asarray(more["final_obs"][i])[None])[0]
        paid = torch.from_numpy(np.asarray(rewards, dtype=np.float32).copy())
        self._check("reward", paid)
        return Step(paid, torch.from_numpy(np.array(ended)), torch.from_numpy(np.array(cut)), last)

    def state_dict(self) -> dict[str, Any]:
        """The seed and the actions since, and a sum to know the images by."""
        played = torch.stack(self.actions) if self.actions else torch.zeros(0, self.size, dtype=torch.int16)
        return {"seed": self.seed, "actions": played, "sum": self._sum()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Play the same again.

        Raises:
            RunError: the environments gave something else than before.
        """
        self.begin(state["seed"])
        for actions in state["actions"]:
            self.step(actions.long())
        if self._sum() != state["sum"]:
            raise RunError(
                f"{self.name} did not play the same again: from the seed {self.seed} and the same "
                f"{len(self.actions)} actions it came to other images. Exact resume needs an environment that is "
                f"decided by reset(seed=...) and its actions; begin anew in another folder"
            )

    def close(self) -> None:
        """Let go of the environments."""
        self.envs.close()

    def _sum(self) -> int:
        return zlib.crc32(self.seen.numpy().tobytes())

    def _images(self, seen: Any) -> Tensor:
        """[E, C, H, W], uint8 or float32."""
        array = np.asarray(seen)
        images = torch.from_numpy(array.copy() if array.dtype == np.uint8 else array.astype(np.float32))
        images = images.unsqueeze(-1) if images.dim() == 3 else images
        images = images.movedim(-1, 1) if self.channels == "last" or array.ndim == 3 else images
        self._check("image", images)
        return images.contiguous()

    def _check(self, what: str, values: Tensor) -> None:
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            where = (~torch.isfinite(values)).flatten(1 if values.dim() > 1 else 0)
            broken = int(where.any(-1).nonzero()[0]) if where.dim() > 1 else int(where.nonzero()[0])
            raise DataError(f"{self._place()}: the {what} of environment {broken} is NaN or infinite. {_AFTER}")

    def _place(self) -> str:
        return f"{self.name}, step {len(self.actions)} after the seed {self.seed}"

    def _named(self) -> _Named:
        return _Named(self._place)


_AFTER = "Mend the environment; a run with a folder then goes on from its last checkpoint when it is run again"


class _Named:
    """What an environment raises in the block is raised again with its name and place, but for what is passed."""

    def __init__(self, place: Callable[[], str], *, passed: type[Exception] | tuple[()] = ()) -> None:
        self.place, self.passed = place, passed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, self.passed):
            raise DataError(f"{self.place()} raised {one_line(error)}. {_AFTER}") from error
