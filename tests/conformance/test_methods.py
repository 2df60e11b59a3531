"""Every method on one tiny task with a planted best answer. A new method is one line in METHODS."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from planted import GOOD, limit, space, task

import archgrad as ag
from archgrad.errors import LimitError

METHODS = {
    "dnal": functools.partial(ag.dnal, pretrained=True, round_to=1, gate_epochs=3),
    "dnal, joint": functools.partial(ag.dnal, pretrained=True, round_to=1, gate_epochs=3, joint=True),
    "dnal, from scratch": functools.partial(ag.dnal, round_to=1, gate_epochs=2),
}
every_method = pytest.mark.parametrize("name", METHODS)
HERE = Path(__file__).parent


def quiet(**settings: object) -> ag.Run:
    return ag.Run(**{"epochs": 6, "seed": 3, "device": "cpu", "progress": False, **settings})


@pytest.mark.parametrize("name", [n for n in METHODS if "scratch" not in n])
def test_finds_the_planted_answer(name: str) -> None:
    found = METHODS[name](space(), task(), quiet(), limit=limit())
    assert list(found.architecture.values()) == [GOOD]
    assert found.score is not None and found.score > 0.9


@every_method
def test_same_seed_same_result_and_another_seed_another(name: str) -> None:
    first, again, other = (
        METHODS[name](space(), task(), quiet(seed=s), limit=limit()).network.state_dict() for s in (3, 3, 4)
    )
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert first.keys() == other.keys()
    assert not all(first[k].shape == other[k].shape and torch.equal(first[k], other[k]) for k in first)


@every_method
def test_leaves_the_space_as_it_was(name: str) -> None:
    given = space()
    before = {k: v.clone() for k, v in given.state_dict().items()}
    METHODS[name](given, task(), quiet(), limit=limit())
    after = given.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@every_method
@pytest.mark.parametrize("fraction", [1.0, 0.6, 0.3])
def test_obeys_its_limit_on_a_recount(name: str, fraction: float) -> None:
    cost = ag.macs(torch.zeros(1, 8))
    found = METHODS[name](space(), task(), quiet(), limit=limit(fraction))
    assert cost.of(found.network) <= fraction * cost.of(space())
    assert cost.of(found.network) > (fraction - 0.2) * cost.of(space())


@every_method
def test_refuses_a_limit_that_nothing_meets_and_says_what_is_reachable(name: str) -> None:
    with pytest.raises(LimitError, match="lowest reachable is 10 "):
        METHODS[name](space(), task(), quiet(), limit=limit(0.01))


@every_method
def test_stops_on_a_budget_of_steps(name: str) -> None:
    run = quiet(epochs=None, steps=40)
    METHODS[name](space(), task(), run, limit=limit())
    assert sum(1 for row in run.history if "loss" in row) == 40


@every_method
def test_architecture_survives_json_and_builds_the_same_network(name: str, tmp_path: Path) -> None:
    found = METHODS[name](space(), task(), quiet(folder=tmp_path / "run"), limit=limit())
    loaded = ag.Architecture.load(tmp_path / "run" / "architecture.json")
    assert loaded == found.architecture
    network = ag.build(space(), loaded)
    safetensors.torch.load_model(network, tmp_path / "run" / "network.safetensors")
    x = torch.randn(5, 8)
    assert torch.equal(network.eval()(x), found.network(x))
    plain = torch.export.load(tmp_path / "run" / "network.pt2").module()
    assert torch.allclose(plain(x), found.network(x), atol=1e-5)
    assert json.loads((tmp_path / "run" / "record.json").read_text())["after"]["macs"] == found.costs["macs"]


def launch(name: str, folder: Path, *, delay: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(HERE / "run_one.py"), name, str(folder), str(delay)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


KILLED_IN = {"dnal": ("gates", "finetune"), "dnal, joint": ("gates",)}


@pytest.mark.parametrize("name", KILLED_IN)
def test_resumes_exactly_after_being_killed(name: str, tmp_path: Path) -> None:
    for phase in KILLED_IN[name]:
        folder = tmp_path / phase
        process = launch(name, folder, delay=0.05)
        wait_for(folder / "history.jsonl", f'"{phase}"', process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "network.safetensors").exists(), "it was to be killed in mid-run"
        again = launch(name, folder, delay=0.0)
        assert again.wait(120) == 0, again.stderr.read()
        again.stderr.close()
        process.stderr.close()
    whole = METHODS[name](space(), task(), quiet(), limit=limit())
    for phase in KILLED_IN[name]:
        resumed = safetensors.torch.load_file(tmp_path / phase / "network.safetensors")
        assert all(torch.equal(resumed[k], v) for k, v in whole.network.state_dict().items())


def wait_for(path: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if path.exists() and path.read_text().count(text) >= 3:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError(f"{text} never came")
