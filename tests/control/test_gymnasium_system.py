"""gymnasium environments as systems: a real one, and ones that fail."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from archgrad.control.gymnasium_system import GymnasiumSystem
from archgrad.control.ilqr import classical_ilqr
from archgrad.control.system import Cost
from archgrad.errors import ConfigError, DataError, MissingExtra

COST = Cost(lambda x, u: (1.0 - x[0]) + 0.1 * x[2] ** 2 + 0.01 * u[0] ** 2)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtra, match=r"archgrad\[rl\]"):
        GymnasiumSystem("Pendulum-v1", COST)


gymnasium: Any = pytest.importorskip("gymnasium", reason="gymnasium comes with the extra rl")


class Fragile(gymnasium.Env):
    """A point that is pushed; it fails as it is told to in step 3."""

    def __init__(self, failure: str = "", space: Any = None) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
        self.action_space = space or gymnasium.spaces.Box(-1.0, 1.0, (1,))
        self.failure = failure

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.x, self.t = np.ones(1, np.float32), 0
        return self.x, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.x = self.x + 0.1 * action
        if self.t == 3 and self.failure == "raises":
            raise RuntimeError("the cable is out")
        if self.t == 3 and self.failure == "nan":
            self.x = self.x * np.nan
        return self.x, 0.0, self.t == 3 and self.failure == "ends", False, {}


SQUARE = Cost(lambda x, u: x @ x + 0.1 * u @ u)


def none(t: int, x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1)


def test_the_pendulum_is_tried_counted_and_starts_anew_each_time() -> None:
    system = GymnasiumSystem("Pendulum-v1", COST, horizon=30, seed=3)
    first, again = system.rollout(none), system.rollout(none)
    assert system.rollouts == 2 and torch.equal(first.states, again.states) and first.finite
    assert torch.equal(first.states[0], system.start) and first.states.shape == (30, 3)
    COST.check(first)
    hard = system.rollout(lambda t, x: torch.tensor([100.0]))
    assert bool((hard.actions == 2.0).all()) and COST.of(hard) != COST.of(first)
    assert GymnasiumSystem("Pendulum-v1", COST).horizon == 200
    with pytest.raises(ConfigError, match="no equations"):
        classical_ilqr(system)  # type: ignore[arg-type]


def test_an_error_is_named_with_its_step() -> None:
    with pytest.raises(DataError, match="Fragile raised RuntimeError in step 2 of rollout 1: the cable is out"):
        GymnasiumSystem(Fragile("raises"), SQUARE, horizon=6).rollout(none)


@pytest.mark.parametrize(("failure", "length"), [("nan", 4), ("ends", 4), ("", 6)])
def test_what_turns_nan_or_ends_early_costs_infinitely_much(failure: str, length: int) -> None:
    tried = GymnasiumSystem(Fragile(failure), SQUARE, horizon=6).rollout(none)
    assert tried.length == length and tried.finite == (not failure)
    assert (SQUARE.of(tried) == float("inf")) == bool(failure)
    assert bool(torch.isfinite(tried.states[:3]).all())


def test_an_episode_that_ends_with_the_horizon_is_whole() -> None:
    assert GymnasiumSystem(Fragile("ends"), SQUARE, horizon=4).rollout(none).finite


@pytest.mark.parametrize("space", [gymnasium.spaces.Discrete(3), gymnasium.spaces.Box(-1, 1, (2, 2))])
def test_actions_that_are_no_vector_are_refused(space: Any) -> None:
    with pytest.raises(ConfigError, match="continuous ones, a Box of one dimension"):
        GymnasiumSystem(Fragile(space=space), SQUARE, horizon=6)


def test_an_unknown_name_and_a_missing_horizon_are_refused() -> None:
    with pytest.raises(ConfigError, match="Pendulums"):
        GymnasiumSystem("Pendulums-v1", SQUARE)
    with pytest.raises(ConfigError, match=r"Give horizon="):
        GymnasiumSystem(Fragile(), SQUARE)
