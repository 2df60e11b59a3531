"""The games of Procgen, by the package procgen2 (extra `procgen`), as vector environments of gymnasium.

Source: Cobbe, Hesse, Hilton, Schulman, "Leveraging procedural generation to benchmark reinforcement learning"
(arXiv 1912.01588).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from archgrad.errors import ConfigError, MissingExtra

try:
    from gymnasium.spaces import Box, Discrete
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise MissingExtra("gymnasium", "rl") from error

NAMES = (
    *("bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot"),
    *("heist", "jumper", "leaper", "maze", "miner", "ninja", "plunder", "starpilot"),
)
Mode = Literal["easy", "hard"]


@dataclass(frozen=True)
class Procgen:
    """One of the sixteen games, for `archgrad.Reinforcement`: images [64, 64, 3], 15 actions, levels by seed.

    Attributes:
        name: of the game.
        mode: "easy" or "hard".

    Raises:
        ConfigError: there is no such game or mode.
        MissingExtra: procgen2 is not installed.

    Example:
        >>> import archgrad as ag
        >>> from archgrad.rl import Procgen
        >>> task = ag.Reinforcement(Procgen("coinrun"), train_levels=200)  # doctest: +SKIP
    """

    name: str
    mode: Mode = "easy"

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(f"Procgen has no game {self.name!r}. Its games are {', '.join(NAMES)}.")
        if self.mode not in ("easy", "hard"):
            raise ConfigError(f"mode={self.mode!r} was given. Allowed are 'easy' and 'hard'.")
        if importlib.util.find_spec("procgen") is None:
            raise MissingExtra("procgen2", "procgen")

    def make_vec(self, *, num_envs: int, first_level: int, num_levels: int) -> VectorEnv[Any, Any, Any]:
        """`num_envs` environments of `num_levels` levels from `first_level` on."""
        return ProcgenVectorEnv(
            self.name, mode=self.mode, num_envs=num_envs, first_level=first_level, num_levels=num_levels
        )


class ProcgenVectorEnv(VectorEnv[Any, Any, Any]):
    """A game in several environments; each begins its next level in the step in which one ends.

    Procgen does not say why a level ended, so that no episode counts as truncated.

    Args:
        name: of the game.
        mode: "easy" or "hard".
        num_envs: number of environments.
        first_level: the lowest level.
        num_levels: number of levels.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, name: str, *, mode: Mode, num_envs: int, first_level: int, num_levels: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space = Box(0, 255, (64, 64, 3), np.uint8)
        self.single_action_space = Discrete(15)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._options = {
            "env_name": name, "distribution_mode": mode, "start_level": first_level, "num_levels": num_levels,
        }  # fmt: skip
        self._make = _maker()
        self._game: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin anew; the seed decides which levels come."""
        self.close_extras()
        # A game takes its seed where it is made, which takes it some 10 ms.
        self._game = self._make(num=self.num_envs, rand_seed=seed, **self._options)
        return self._game.observe()[1]["rgb"], {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step in each environment."""
        self._game.act(np.asarray(actions, dtype=np.int32))
        rewards, seen, first = self._game.observe()
        return seen["rgb"], rewards, first, np.zeros_like(first), {}

    def close_extras(self) -> None:
        """Close the game."""
        if self._game is not None:
            self._game.close()
            self._game = None


def _maker() -> Any:
    # Its package reads a file that it leaves open, and the old gym under it tells the user to leave gym.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        from procgen import ProcgenGym3Env

        return ProcgenGym3Env
