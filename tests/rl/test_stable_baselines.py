"""Supernets in Stable-Baselines3: both kinds of algorithms search, save and load."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.errors import ChoiceError, ModelError

gymnasium = pytest.importorskip("gymnasium", reason="comes with the extra rl")
pytest.importorskip("stable_baselines3", reason="comes with the extra rl")

from stable_baselines3 import DQN, PPO, SAC  # noqa: E402

from archgrad.rl.pixel_game import PixelGame  # noqa: E402
from archgrad.rl.stable_baselines import SearchLogger, policy_kwargs, supernet_of  # noqa: E402

GAME = functools.partial(PixelGame, size=6, gems=2, traps=1, blocks=0, max_steps=10)


@pytest.fixture
def space() -> nn.Module:
    return ag.impala_cells(size=6, depths=(4,), nodes=2, features=8)


def ppo(space: nn.Module, **settings: object) -> PPO:
    given = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu", **settings}
    return PPO("CnnPolicy", GAME(), policy_kwargs=policy_kwargs(space, weight_decay=1e-2), **given)


def test_ppo_moves_weights_and_logits_and_leaves_the_space_alone(space: nn.Module) -> None:
    model = ppo(space)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(64, callback=SearchLogger())
    assert all(float(p.detach().abs().max()) > 0 for p in ag.logits(supernet_of(model)))
    assert sum(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True)) > 10
    assert not ag.logits(space), "it was not relaxed"
    weights, logits = model.policy.optimizer.param_groups
    assert (weights["weight_decay"], logits["weight_decay"]) == (1e-2, 0.0)
    assert {id(p) for p in logits["params"]} == {id(p) for p in ag.logits(model.policy)}
    found = ag.derive(supernet_of(model))
    assert found.network(torch.rand(2, 3, 6, 6)).shape == (2, 8)


def test_the_watch_logs_entropy_and_both_norms(space: nn.Module, tmp_path: Path) -> None:
    from stable_baselines3.common.logger import configure

    model = ppo(space)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(96, callback=SearchLogger())
    model.logger.close()
    text = (tmp_path / "progress.csv").read_text()
    assert all(
        f"architecture/{name}" in text for name in ("entropy", "gradient_norm_logits", "gradient_norm_weights")
    )
    assert "architecture/weight/normal.2.1/conv_3x3" in text


def test_dqn_searches_and_its_target_follows(space: nn.Module) -> None:
    model = DQN(
        "CnnPolicy", GAME(), policy_kwargs=policy_kwargs(space), buffer_size=200, learning_starts=16, batch_size=8,
        target_update_interval=41, seed=0, device="cpu",
    )  # fmt: skip
    own, target = ag.logits(model.q_net), ag.logits(model.q_net_target)
    assert not {id(p) for p in own} & {id(p) for p in target}
    model.learn(38, callback=SearchLogger())
    assert all(float(p.detach().abs().max()) > 0 for p in own)
    assert not any(float(p.detach().abs().max()) for p in target), "a while behind"
    model.learn(4, reset_num_timesteps=False)
    assert all(float(p.detach().abs().max()) > 0 for p in target)
    assert supernet_of(model) is model.q_net.features_extractor.supernet


def test_sac_searches_by_actor_and_critic(space: nn.Module) -> None:
    class Steered(PixelGame):
        def __init__(self) -> None:
            super().__init__(size=6, gems=2, traps=1, blocks=0, max_steps=10)
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

        def step(self, action: np.ndarray) -> tuple[object, float, bool, bool, dict[str, object]]:
            return super().step(min(3, int(2 * (float(action[0]) + 1))))

    model = SAC(
        "CnnPolicy", Steered(), policy_kwargs=policy_kwargs(space), buffer_size=100, learning_starts=8, batch_size=8,
        seed=0, device="cpu",
    )  # fmt: skip
    model.learn(24, callback=SearchLogger())
    assert supernet_of(model) is model.actor.features_extractor.supernet
    for part in (model.actor, model.critic):
        assert all(float(p.detach().abs().max()) > 0 for p in ag.logits(part))


def test_a_saved_model_goes_on(space: nn.Module, tmp_path: Path) -> None:
    model = ppo(space)
    model.learn(32)
    model.save(tmp_path / "model.zip")
    again = PPO.load(tmp_path / "model.zip", env=GAME(), device="cpu")
    logits = [p.detach().clone() for p in ag.logits(supernet_of(again))]
    assert all(torch.equal(a, b) for a, b in zip(logits, ag.logits(supernet_of(model)), strict=True))
    again.learn(32)
    assert not any(torch.equal(a, b) for a, b in zip(logits, ag.logits(supernet_of(again)), strict=True))


def test_any_supernet_will_do() -> None:
    space = nn.Sequential(
        nn.Flatten(),
        ag.OpChoice({"one": nn.Linear(108, 8), "two": nn.Sequential(nn.Linear(108, 8), nn.ReLU())}, name="op"),
    )  # fmt: skip
    model = ppo(space)
    model.learn(32)
    assert set(ag.decide(supernet_of(model))) == {"op"}


def test_what_does_not_fit_is_refused(space: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"does not run on images of shape \[3, 8, 8\]"):
        PPO("CnnPolicy", PixelGame(), policy_kwargs=policy_kwargs(space))
    with pytest.raises(ChoiceError, match="has no choice to search"):
        policy_kwargs(nn.Linear(2, 2))
    with pytest.raises(ChoiceError, match="has no supernet"):
        supernet_of(PPO("MlpPolicy", "CartPole-v1", device="cpu"))
