"""RL-DARTS on the pixel game: what it leaves, the same seed, budgets, a killed run, an environment that fails."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from families.checks import assert_plain
from torch import nn

import archgrad as ag
from archgrad.errors import ChoiceError, ConfigError, DataError, ModelError
from archgrad.report import page
from archgrad.rl import rollouts
from archgrad.rl.ppo import PpoTerms
from archgrad.run import device, loop

pytest.importorskip("gymnasium", reason="comes with the extra rl")

from archgrad.rl.pixel_game import PixelGame

ROOT = Path(__file__).parents[2]
TINY = PpoTerms(rollout_steps=8, minibatch_size=16, epochs=1, reseed_every=2)
STEPS = 5 * 8 * 4


class Delayed(PixelGame):
    """The game, slowed down, and failing at a step of one environment where wanted."""

    delay = 0.0
    fails_at: int | None = None
    taken = 0

    def __init__(self) -> None:
        super().__init__(size=6, gems=2, traps=1, blocks=1, max_steps=9)

    def step(self, action: int) -> tuple[object, float, bool, bool, dict[str, object]]:
        time.sleep(self.delay)
        Delayed.taken += 1
        if Delayed.taken == Delayed.fails_at:
            raise OSError("the simulator is gone")
        return super().step(action)


def space(norm: str = "none") -> nn.Module:
    torch.manual_seed(7)
    return ag.impala_cells(size=6, depths=(4,), nodes=2, features=8, norm=norm)


def found_by(run: ag.Run, **settings: object) -> ag.Found:
    task = ag.Reinforcement(Delayed, num_envs=4, train_levels=20)
    given = {"environment_steps": STEPS, "terms": TINY, "episodes": 4, "baselines": False, **settings}
    return ag.rl_darts(given.pop("space", None) or space(), task, run, **given)


def quiet(**settings: object) -> ag.Run:
    return ag.Run(**{"seed": 3, "device": "cpu", "progress": False, **settings})


def states(found: ag.Found) -> dict[str, torch.Tensor]:
    return found.network.state_dict()


def test_what_it_leaves(tmp_path: Path) -> None:
    hand_made = ag.impala_network(size=6, depths=(4,), features=8)
    found = found_by(quiet(folder=tmp_path), baselines=True, random_cells=2, hand_made=hand_made, channels=8)
    record = json.loads((tmp_path / "record.json").read_text())
    assert [one["name"] for one in record["baselines"]] == [
        "supernet", "random cell", "random cell 2", "hand-made encoder"
    ]  # fmt: skip
    for one in (record["after"], *record["baselines"]):
        assert {"return_unseen", "return_unseen_std", "return_train", "return_train_std", "params"} <= set(one)
        assert one["environment_steps"] == STEPS
    assert found.score == record["after"]["return_unseen"]
    phases = {row["phase"] for row in found.history}
    assert {"search", "train", "random", "random-2", "hand-made"} <= phases
    for name in phases - {None}:
        rows = [row for row in found.history if row["phase"] == name]
        assert len(rows) == 5 and rows[-1]["environment_steps"] == STEPS
    search = [row for row in found.history if row["phase"] == "search"]
    assert search[0]["entropy"] == pytest.approx(1.609, abs=1e-3)
    assert all(row["gradient_norm_logits"] > 0 for row in search)
    assert all(abs(row["ratio_off_by"]) < 1e-5 for row in found.history if "ratio_off_by" in row)
    assert (
        record["cells"][0]["environment_steps"] == 32 and record["cells"][-1]["cell"] == record["architecture_text"]
    )
    assert_plain(found.network)
    logits, value = found.network(torch.rand(3, 3, 6, 6))
    assert logits.shape == (3, 4) and value.shape == (3,)
    plain = torch.export.load(tmp_path / "network.pt2").module()
    x = torch.rand(1, 3, 6, 6)
    assert torch.allclose(plain(x)[0], found.network(x)[0], atol=1e-5)
    assert ag.Architecture.load(tmp_path / "architecture.json") == found.architecture
    text = (tmp_path / "report.html").read_text()
    assert "data:image/gif;base64," in text and "The cell over the search" in text and "hand-made encoder" in text
    assert len(text) < 600_000 and page.page(record, found.history)
    assert "return unseen" in found.report()


def test_the_space_and_the_encoder_given_stay_as_they_were() -> None:
    given, hand_made = space(), ag.impala_network(size=6, depths=(4,), features=8)
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (given, hand_made)]
    found_by(quiet(), space=given, baselines=True, hand_made=hand_made)
    for module, kept in zip((given, hand_made), before, strict=True):
        assert all(torch.equal(v, kept[k]) for k, v in module.state_dict().items())
    assert not ag.logits(given)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_same_seed_same_result_and_another_seed_another(norm: str) -> None:
    first, again, other = (states(found_by(quiet(seed=s), space=space(norm))) for s in (3, 3, 4))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(k in other and torch.equal(first[k], other[k]) for k in first if first[k].shape == other[k].shape)


def test_it_stops_on_steps() -> None:
    run = quiet(steps=4)
    found_by(run)
    assert sum("loss" in row for row in run.history) == 4


class Clock:
    """Stands still but for a second a rollout."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, begin = Clock(), rollouts.RolloutCollector.collect

    def collect(self: rollouts.RolloutCollector, agent: nn.Module) -> object:
        clock.now += 1.0
        return begin(self, agent)

    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(device, "time", clock)
    monkeypatch.setattr(rollouts.RolloutCollector, "collect", collect)
    monkeypatch.setattr(importlib.import_module("archgrad.rl.rl_darts"), "latencies", lambda *_, **__: {"after": {}})
    return clock


@pytest.mark.parametrize(
    ("seconds", "environment_steps", "updates"),
    [(6, None, 3), (20, 2 * 32, 2), (4, 10**6, 2)],
    ids=["seconds alone", "steps within seconds", "seconds within steps"],
)
def test_each_phase_lasts_its_part_of_the_seconds_or_the_steps_that_were_asked_for(
    clock: Clock, seconds: int, environment_steps: int | None, updates: int
) -> None:
    run = quiet(seconds=float(seconds))
    found_by(run, environment_steps=environment_steps)
    phases = [row["phase"] for row in run.history if "loss" in row]
    assert phases == ["search"] * updates + ["train"] * updates


def test_seconds_that_do_not_suffice_for_two_updates_of_each_phase_are_refused(clock: Clock, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seconds=3"):
        found_by(quiet(seconds=3.0, folder=tmp_path / "run"), environment_steps=None)
    found_by(quiet(seconds=4.0, folder=tmp_path / "run"), environment_steps=None)


PROGRAM = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
import test_rl_darts as t
t.Delayed.delay = float(sys.argv[2])
t.found_by(t.quiet(folder=sys.argv[1], output=t.ag.Output(checkpoint_seconds=0.0)))
"""


@pytest.mark.parametrize("phase", ["search", "train"])
def test_resumes_exactly_after_being_killed(phase: str, tmp_path: Path) -> None:
    program = PROGRAM.format(paths=[str(Path(__file__).parent), str(ROOT / "tests")])

    def launch(delay: float) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(delay)], stderr=subprocess.PIPE)

    process = launch(0.01)
    for _ in range(1200):
        history = tmp_path / "history.jsonl"
        # In the third rollout: one behind a reseeding, so that there is something to be played again.
        if history.exists() and history.read_text().count(f'"{phase}"') >= 3:
            break
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "network.safetensors").exists(), "it was to be killed in mid-run"
    again = launch(0.0)
    _, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    resumed, whole = safetensors.torch.load_file(tmp_path / "network.safetensors"), states(found_by(quiet()))
    assert all(torch.equal(resumed[k], v) for k, v in whole.items())


def test_an_environment_that_fails_is_named_and_the_run_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Delayed, "taken", 0)
    monkeypatch.setattr(Delayed, "fails_at", 75)
    run = quiet(folder=tmp_path, output=ag.Output(checkpoint_seconds=0.0))
    with pytest.raises(
        DataError, match=r"Delayed, step \d+ .* raised OSError: the simulator is gone.*last checkpoint"
    ):
        found_by(run)
    run.close()
    monkeypatch.setattr(Delayed, "fails_at", None)
    again = quiet(folder=tmp_path, output=ag.Output(checkpoint_seconds=0.0))
    resumed, whole = states(found_by(again)), states(found_by(quiet()))
    assert all(torch.equal(resumed[k], v) for k, v in whole.items())


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"random_cells": 0}, ConfigError, "random_cells=0: give 1 or more"),
        ({"environment_steps": 10}, ConfigError, "less than one rollout of 8 steps in 4 environments"),
        ({"space": nn.Linear(2, 2)}, ChoiceError, "no choice to search"),
        ({"space": ag.impala_cells(size=9, depths=(2,), features=2)}, ModelError, "does not run on images"),
        ({"scale": 0.0}, ChoiceError, "scale 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        found_by(quiet(), **settings)


def test_the_example_loop_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("my_loop", ROOT / "examples" / "search_in_my_rl_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PixelGame", functools.partial(PixelGame, gems=1, traps=12, max_steps=5))
    monkeypatch.setattr(sys, "argv", ["search_in_my_rl_loop.py", "--updates", "3"])
    module.main()
    assert "normal 0:" in capsys.readouterr().out
