"""Playing by levels: what is seen, what is refused, failures by name, and states that play again."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import archgrad as ag
from archgrad.errors import ConfigError, DataError, RunError

gymnasium = pytest.importorskip("gymnasium", reason="comes with the extra rl")

from archgrad.rl.pixel_game import PixelGame  # noqa: E402
from archgrad.rl.procgen import NAMES, Procgen  # noqa: E402
from archgrad.rl.task import FIRST_TEST_LEVEL, as_input  # noqa: E402
from archgrad.rl.vector_environment import LevelWrapper, ReplayableVectorEnv  # noqa: E402

SMALL = functools.partial(PixelGame, size=6, gems=2, traps=1, blocks=1, max_steps=10)


class Broken(PixelGame):
    """Fails in its fifth step, in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.taken = how, 0
        if how == "image":
            self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (8, 8, 3), np.float32)

    def step(self, action: int) -> tuple[object, float, bool, bool, dict[str, object]]:
        seen, reward, ended, cut, more = super().step(action)
        self.taken += 1
        broken = self.taken == 5
        if broken and self.how == "raises":
            raise ZeroDivisionError("the physics gave up")
        reward = float("nan") if broken and self.how == "reward" else reward
        if self.how == "image":
            seen = np.full((8, 8, 3), np.nan if broken else 0.5, dtype=np.float32)
        return seen, reward, ended, cut, more


class Endless(PixelGame):
    """Pays 1 a step and never ends."""

    def step(self, action: int) -> tuple[object, float, bool, bool, dict[str, object]]:
        return self._image(), 1.0, False, False, {}


class Late(PixelGame):
    """Pays 1 in each of its first five steps, and 100 in each of five others."""

    def reset(self, **given: object) -> tuple[object, dict[str, object]]:
        self.taken = 0
        return super().reset(**given)

    def step(self, action: int) -> tuple[object, float, bool, bool, dict[str, object]]:
        self.taken += 1
        return self._image(), 1.0 if self.taken <= 5 else 100.0, self.taken == 10, False, {}


def at_random(actions: int = 4, seed: int = 0) -> object:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randint(actions, (len(x),), generator=generator)


def test_images_come_channels_first_and_scaled() -> None:
    task = ag.Reinforcement(SMALL, num_envs=3)
    env = task.vector_env(seed=0)
    assert (task.actions, task.example.shape, env.images.shape) == (4, (1, 3, 6, 6), (3, 3, 6, 6))
    assert env.images.dtype == torch.uint8 and float(as_input(env.images).max()) <= 1.0
    env = LevelWrapper(SMALL(), first_level=0, num_levels=200)
    first, _ = env.reset(seed=0)
    again, _ = env.reset(seed=0)
    assert np.array_equal(first, again)
    assert not np.array_equal(again, env.reset()[0])


def test_levels_of_training_and_of_judging_are_disjoint_and_a_level_is_an_episode() -> None:
    drawn: dict[str, set[int]] = {"train": set(), "test": set()}

    class Noted(PixelGame):
        def reset(self, *, seed: int | None = None, options: object = None) -> tuple[object, dict[str, object]]:
            assert seed is not None
            drawn[self.part].add(seed)
            return super().reset(seed=seed)

    for part in drawn:
        Noted.part = part
        task = ag.Reinforcement(Noted, num_envs=4, train_levels=5)
        drawn[part].clear()
        task.evaluate(at_random(), part, episodes=40)
    assert drawn["train"] <= set(range(5)) and len(drawn["train"]) == 5
    assert min(drawn["test"]) >= FIRST_TEST_LEVEL and len(drawn["test"]) >= 40
    assert np.array_equal(PixelGame().reset(seed=3)[0], PixelGame().reset(seed=3)[0])


def test_returns_count_whole_episodes_as_many_from_each_environment() -> None:
    task = ag.Reinforcement(Endless, num_envs=4, max_episode_steps=7)
    assert task.evaluate(at_random(), episodes=8) == {
        "return": 7.0,
        "return_std": 0.0,
        "episodes": 8.0,
        "length": 7.0,
    }
    first, again = (ag.Reinforcement(SMALL, num_envs=4).evaluate(at_random(), episodes=16) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(("longest", "mean"), [(5, 5.0), (7, 205.0), (10, 505.0), (99, 505.0)])
def test_what_is_left_of_an_episode_that_was_cut_short_is_no_episode(longest: int, mean: float) -> None:
    figures = ag.Reinforcement(Late, num_envs=3, max_episode_steps=longest).evaluate(at_random(), episodes=9)
    assert figures == {"return": mean, "return_std": 0.0, "episodes": 9.0, "length": float(min(longest, 10))}


def test_a_cut_episode_shows_its_last_image_and_an_ended_one_too() -> None:
    task = ag.Reinforcement(functools.partial(PixelGame, max_steps=3, traps=0), num_envs=2)
    env = task.vector_env(seed=0)
    for _ in range(2):
        env.step(torch.tensor([0, 1]))
    step = env.step(torch.tensor([0, 1]))
    assert step.truncated.all() and not step.terminated.any()
    assert not torch.equal(step.final_images, env.images), "what is seen is the next level"


def test_a_state_is_played_again_and_one_that_is_not_is_refused() -> None:
    task = ag.Reinforcement(SMALL, num_envs=3)
    env, other = task.vector_env(seed=5), task.vector_env(seed=6)
    act = at_random()
    for _ in range(30):
        env.step(act(env.images))
    other.load_state_dict(env.state_dict())
    assert torch.equal(env.images, other.images)
    assert torch.equal(env.step(torch.tensor([1, 2, 3])).rewards, other.step(torch.tensor([1, 2, 3])).rewards)

    class Moody(PixelGame):
        def reset(self, *, seed: int | None = None, options: object = None) -> tuple[object, dict[str, object]]:
            return super().reset(seed=int(np.random.default_rng().integers(2**31)))

    moody = ag.Reinforcement(Moody, num_envs=3).vector_env(seed=0)
    with pytest.raises(RunError, match="Moody did not play the same again"):
        moody.load_state_dict(moody.state_dict())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", "raised ZeroDivisionError: the physics gave up"),
        ("reward", "the reward of"),
        ("image", "the image of"),
    ],
)
def test_an_environment_that_fails_is_named(how: str, said: str) -> None:
    env = ag.Reinforcement(functools.partial(Broken, how), num_envs=2).vector_env(seed=3)
    with pytest.raises(DataError, match=rf"Broken.*, step 5 after the seed 3.*{said}"):
        for _ in range(5):
            env.step(torch.tensor([0, 0]))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ("CartPole-v1", r"observes Box.*Allowed is an image"),
        ("NoSuchGame-v0", "gymnasium cannot make 'NoSuchGame-v0'"),
        (lambda: 3, "returned a int. It has to return a gymnasium.Env"),
        (lambda: 1 // 0, "which makes the environment, raised ZeroDivisionError"),
    ],
)
def test_an_environment_without_images_is_refused(make: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        ag.Reinforcement(make)


def test_actions_that_the_algorithm_cannot_take_are_refused() -> None:
    class Steered(PixelGame):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))

    with pytest.raises(DataError, match=r"acts in Box.*Discrete.*policy_kwargs"):
        ag.Reinforcement(Steered)


def test_a_vector_of_another_kind_is_refused() -> None:
    envs = gymnasium.vector.SyncVectorEnv([PixelGame] * 2)
    with pytest.raises(DataError, match=r"AutoresetMode\.SAME_STEP"):
        ReplayableVectorEnv(envs, name="PixelGame", channels="last", seed=0)


@pytest.mark.parametrize(
    "given",
    [{"num_envs": 0}, {"train_levels": 0}, {"train_levels": FIRST_TEST_LEVEL + 1}, {"max_episode_steps": 1.5}],
)
def test_numbers_out_of_range_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        ag.Reinforcement(PixelGame, **given)


def test_channels_first_and_grey_images() -> None:
    grey = ag.Reinforcement(lambda: gymnasium.wrappers.GrayscaleObservation(PixelGame()), num_envs=2)
    assert grey.example.shape == (1, 1, 8, 8) and grey.vector_env(seed=0).images.shape == (2, 1, 8, 8)
    with pytest.raises(ConfigError, match="channels='middle'"):
        ag.Reinforcement(PixelGame, channels="middle")


def test_the_game_pays_for_gems_and_ends_on_traps() -> None:
    game = PixelGame(size=5, gems=8, traps=0, blocks=0)
    game.reset(seed=0)
    assert game.observation_space.contains(game.render())
    player = game._player
    game._gems = {(player[0] + d, player[1] + r) for d, r in ((-1, 0), (1, 0), (0, -1), (0, 1))}
    game._traps = {(3, 3)} - {player}
    paid = game.step(0 if player[0] > 1 else 1)[1]
    assert paid == 1.0
    with pytest.raises(ConfigError, match="do not fit"):
        PixelGame(size=4)


def test_procgen_plays_and_is_played_again() -> None:
    pytest.importorskip("procgen", reason="comes with the extra procgen")
    task = ag.Reinforcement(Procgen("coinrun"), num_envs=3, train_levels=10)
    env = task.vector_env(seed=1)
    assert (task.name, task.actions, env.images.shape) == ("coinrun", 15, (3, 3, 64, 64))
    act = at_random(15)
    images = []
    for _ in range(20):
        step = env.step(act(env.images))
        images.append(env.images)
    assert step.rewards.shape == (3,) and not step.truncated.any()
    assert len({image.numpy().tobytes() for image in images}) == 20, "something moves"
    other = task.vector_env(seed=2)
    assert not torch.equal(other.images, env.images)
    other.load_state_dict(env.state_dict())
    assert torch.equal(other.images, env.images)
    assert not torch.equal(task.vector_env(seed=1, part="test").images, task.vector_env(seed=1).images), (
        "other levels"
    )
    for one in (env, other):
        one.close()


def test_there_are_sixteen_games_and_no_other() -> None:
    assert len(NAMES) == 16
    with pytest.raises(ConfigError, match="no game 'pong'"):
        Procgen("pong")


def test_what_makes_the_environments_is_compared_when_a_run_is_resumed() -> None:
    class Maker:
        def __init__(self, gems: int) -> None:
            self.gems = gems

        def __call__(self) -> PixelGame:
            return PixelGame(size=6, gems=self.gems, traps=1, blocks=1, max_steps=10)

    makes = [
        Maker,
        lambda gems: lambda: SMALL(gems=gems),
        lambda gems: functools.partial(SMALL, gems=gems),
    ]
    for make in makes:
        two, same, three = (ag.Reinforcement(make(gems), num_envs=2) for gems in (2, 2, 3))
        assert (two.splits, two.fingerprint()) == (same.splits, same.fingerprint())
        assert two.fingerprint() != three.fingerprint()


STEPPED: list[int] = []


class Counting(PixelGame):
    """Counts its steps in its class and in this module."""

    taken, gems = 0, 2

    def __init__(self) -> None:
        super().__init__(size=6, gems=self.gems, traps=1, blocks=1, max_steps=10)

    def reset(self, **given: object) -> tuple[object, dict[str, object]]:
        assert Counting.taken >= len(STEPPED)
        return super().reset(**given)

    def step(self, action: int) -> tuple[object, float, bool, bool, dict[str, object]]:
        Counting.taken += 1
        STEPPED.append(action)
        return super().step(action)


def test_what_environments_count_while_they_are_played_is_no_part_of_a_run() -> None:
    tasks = [ag.Reinforcement(env, num_envs=2) for env in (Counting, lambda: [Counting()][0])]
    before = [task.fingerprint() for task in tasks]
    for task in tasks:
        task.vector_env(seed=0).step(torch.zeros(2).long())
    assert Counting.taken and STEPPED
    assert before == [task.fingerprint() for task in tasks]
