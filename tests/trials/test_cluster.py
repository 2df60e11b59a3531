"""Trials on a real Ray cluster of two nodes of this machine, one of which is killed in mid-trial."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_workers import TASK, same, search, space
from torch import nn

import archgrad as ag
from archgrad.choices.architecture import Architecture
from archgrad.errors import RunError
from archgrad.run.run import Run
from archgrad.trials.job import Job, Outcome
from archgrad.trials.workers import Workers

ray = pytest.importorskip("ray", reason="Ray is not installed: the extra ray brings it")
utilities = pytest.importorskip("ray.cluster_utils", reason="this Ray starts no clusters for tests")
HERE = str(Path(__file__).parent)


class Where:
    """A recipe that tells where it ran; the first trial on the second node says so and never ends."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def __call__(self, job: Job) -> Outcome:
        node = ray.get_runtime_context().get_node_id()
        (self.notes / f"{job.name} {node} {time.monotonic_ns()}").touch()
        if node == (self.notes / "second").read_text() and not (self.notes / "killed").exists():
            time.sleep(300)
        return Outcome({"score": float(job.architecture["n"])})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = utilities.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    path = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    ray.init(address=made.address, runtime_env={"env_vars": {"PYTHONPATH": path}}, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_node_that_is_killed_in_mid_trial_costs_no_trial_and_doubles_none(cluster: Any, tmp_path: Path) -> None:
    second = cluster.add_node(num_cpus=1)
    (tmp_path / "second").write_text(second.node_id)
    asked = [Job(f"trial-{i}", Architecture({"n": i})) for i in range(6)]
    run = Run(workers="ray", folder=tmp_path / "run", device="cpu", progress=False)
    run.begin("test", {})
    run.register_state()
    for _ in run.steps(1):
        workers = Workers(run, Where(tmp_path))
        workers.ahead(asked)
        for _ in range(600):
            if any(second.node_id in path.name for path in tmp_path.glob("trial-*")):
                break
            time.sleep(0.1)
        else:
            raise AssertionError("no trial came to the second node")
        cluster.remove_node(second, allow_graceful=False)
        (tmp_path / "killed").touch()
        found = [workers.result(job).figures["score"] for job in asked]
        workers.close()
    run.close()
    assert found == [0, 1, 2, 3, 4, 5]
    lines = (tmp_path / "run" / "trials.jsonl").read_text().splitlines()
    assert len(lines) == len({line.split(",")[0] for line in lines}) == 6
    tries = [path.name.split()[0] for path in tmp_path.glob("trial-*")]
    assert len(tries) == 7, "one was begun twice, on the node that was killed and on the other"


def test_a_search_on_the_cluster_is_the_search_without(cluster: Any) -> None:
    assert same(search(None, None), search(None, "ray"))


class Mortal(nn.Module):
    """A layer that kills its worker in the middle of a training, once and not in the program itself."""

    def __init__(self, notes: str, program: int) -> None:
        super().__init__()
        self.notes, self.program, self.steps = notes, program, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        died = any(Path(self.notes).iterdir())
        if os.getpid() != self.program and self.steps == 2 and not died:
            (Path(self.notes) / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x


@pytest.mark.slow  # a worker that is begun again loads torch
def test_workers_that_are_killed_while_they_train_change_nothing(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "deaths").mkdir()

    def searched(workers: str | None) -> ag.Found:
        run = ag.Run(epochs=12, trials=4, seed=5, workers=workers, device="cpu", progress=False)
        return ag.random_search(nn.Sequential(Mortal(str(tmp_path / "deaths"), os.getpid()), space()), TASK, run)

    alone, killed = searched(None), searched("ray")
    assert len(list((tmp_path / "deaths").iterdir())) == 1
    assert same(alone, killed)


@pytest.mark.slow  # Ray's client tries for half a minute
@pytest.mark.filterwarnings("ignore:Ray Client connection timed out")
def test_no_cluster_at_an_address_is_told(cluster: Any) -> None:
    ray.shutdown()
    run = ag.Run(epochs=2, trials=2, workers="ray://127.0.0.1:9", device="cpu", progress=False)
    with pytest.raises(RunError, match=r"No Ray cluster answers at 'ray://127.0.0.1:9'"):
        ag.random_search(space(), TASK, run)
