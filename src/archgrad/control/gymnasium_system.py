"""An environment of gymnasium as a system to control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from archgrad.control.system import Cost, Policy, Trajectory, check_system
from archgrad.errors import ConfigError, DataError, MissingExtra

if TYPE_CHECKING:
    import gymnasium


class GymnasiumSystem:
    """A gymnasium environment with continuous actions, reset to the same state before each rollout.

    The observation is the state. An episode that ends before the horizon is a failed rollout: the network learns from
    it, and its trajectory is not accepted.

    Args:
        env: the environment, or its name, such as "Pendulum-v1".
        cost: of a trajectory; the environment's reward is not read, since it has no gradient.
        horizon: T, the number of states; default: the length that the environment registers.
        seed: of each reset.

    Attributes:
        start, low, high: first state [n] and bounds of the actions [m].
        rollouts: number of rollouts so far.

    Raises:
        ConfigError: actions or observations are no vectors of numbers, or there is no horizon.
        MissingExtra: gymnasium is not installed; it comes with the extra `rl`.

    Example:
        >>> from archgrad.control import Cost, GymnasiumSystem
        >>> system = GymnasiumSystem("Pendulum-v1", Cost(lambda x, u: 1.0 - x[0]), horizon=20)
        >>> list(system.start.shape), system.low.tolist()
        ([3], [-2.0])
    """

    def __init__(
        self, env: str | gymnasium.Env[Any, Any], cost: Cost, *, horizon: int | None = None, seed: int = 0
    ) -> None:
        self.env: Any = _make(env) if isinstance(env, str) else env
        self.name = self.env.spec.id if self.env.spec else type(self.env.unwrapped).__name__
        self.cost, self.seed, self.rollouts = cost, seed, 0
        length = horizon if horizon is not None or not self.env.spec else self.env.spec.max_episode_steps
        if length is None:
            raise ConfigError(f"{self.name} registers no length. Give horizon=....")
        self.horizon: int = length
        action: Any = self.env.action_space
        observation: Any = self.env.observation_space
        if type(action).__name__ != "Box" or len(action.shape) != 1:
            raise ConfigError(
                f"{self.name} has the actions {action}. Control by gradients takes continuous ones, "
                f"a Box of one dimension."
            )
        if type(observation).__name__ != "Box" or len(observation.shape) != 1:
            raise ConfigError(
                f"{self.name} has the observations {observation}. Take an environment whose "
                f"observation is its state, a Box of one dimension, or flatten it."
            )
        self.low, self.high = (torch.tensor(v).double() for v in (action.low, action.high))
        self.start = _state(self.env.reset(seed=seed)[0])
        check_system(self)

    def __repr__(self) -> str:
        return f"GymnasiumSystem({self.name}, horizon={self.horizon})"

    def rollout(self, policy: Policy) -> Trajectory:
        """Try a policy from the same first state; counts the rollout.

        Raises:
            DataError: the environment raised an error, which is named.
        """
        self.rollouts += 1
        states = torch.full((self.horizon, len(self.start)), torch.nan, dtype=torch.float64)
        actions = torch.zeros((self.horizon, len(self.low)), dtype=torch.float64)
        t, ended = 0, False
        try:
            x = _state(self.env.reset(seed=self.seed)[0])
            for t in range(self.horizon):
                states[t], actions[t] = x, torch.clamp(policy(t, x), self.low, self.high)
                if t + 1 == self.horizon or ended or not bool(torch.isfinite(x).all()):
                    break
                observed, _, terminated, truncated, _ = self.env.step(actions[t].numpy().astype(np.float32))
                x, ended = _state(observed), bool(terminated or truncated)
        except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, OSError, AssertionError) as error:
            raise DataError(
                f"{self.name} raised {type(error).__name__} in step {t} of rollout {self.rollouts}: {error}. The "
                f"run's folder holds what was measured. Repair the environment and run the same program again."
            ) from error
        return Trajectory(states, actions, t + 1)


def _make(name: str) -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise MissingExtra("gymnasium", "rl") from error
    try:
        return gymnasium.make(name)
    except gymnasium.error.Error as error:
        raise ConfigError(f"gymnasium cannot make {name!r}: {error}") from error


def _state(observed: object) -> Tensor:
    return torch.as_tensor(np.asarray(observed, dtype=np.float64))
