"""Trials by workers: the same results, each counted once, whatever dies. As a program, this file is one search."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.errors import ConfigError, MissingExtra, NonFiniteError, RunError
from archgrad.run.run import Run
from archgrad.trials.job import Job, Outcome
from archgrad.trials.journal import Journal
from archgrad.trials.workers import RETRIES, Workers

G = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=G)
TASK = ag.Classification((X, (X[:, 0] > 0).long()), batch_size=20)


def space() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(4, n), nn.Dropout(0.2), nn.Linear(n, 2)) for n in range(1, 10)]
        return nn.Sequential(ag.OpChoice(dict(zip("abcdefghi", layers, strict=True)), name="n"))


class Told:
    """A recipe that notes every try in a folder, and does what the name of the trial says."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def __call__(self, job: Job) -> Outcome:
        (self.notes / f"{job.name} {time.monotonic_ns()}").touch()
        tries = len(list(self.notes.glob(f"{job.name} *")))
        if "dies" in job.name or ("falters" in job.name and tries == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if "slow" in job.name and tries == 1:
            time.sleep(60)
        if "nan" in job.name:
            raise NonFiniteError("loss became NaN")
        if "missing" in job.name:
            raise MissingExtra("thing", "things")
        weights = {"w": torch.full((2,), float(job.architecture["n"]))}
        return Outcome({"score": float(job.architecture["n"])}, weights if job.keep else {})


def jobs(*names: str, keep: bool = False) -> list[Job]:
    return [Job(name, ag.Architecture({"n": i}), keep=keep) for i, name in enumerate(names)]


def begun(folder: Path | None, workers: int | str = 2) -> Iterator[tuple[Run, int]]:
    run = Run(workers=workers, folder=folder, device="cpu", progress=False)
    run.begin("test", {})
    run.register_state()
    for step in run.steps(1):
        yield run, step
    run.close()


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def test_a_worker_that_dies_is_replaced_and_every_trial_counts_once(tmp_path: Path) -> None:
    asked = jobs("one", "two-falters", "three", "four-falters", "five", keep=True)
    for run, _ in begun(tmp_path / "run"):
        workers = Workers(run, Told(tmp_path))
        workers.ahead(asked)
        found = [workers.result(job) for job in asked]
        workers.close()
    assert [done.figures["score"] for done in found] == [0, 1, 2, 3, 4]
    assert torch.equal(found[3].weights["w"], torch.full((2,), 3.0))
    assert sorted(row["trial"] for row in rows(tmp_path / "run")) == sorted(job.name for job in asked)
    assert len(list(tmp_path.glob("two-falters *"))) >= 2, "twice, and more where it was beside one that died"
    again = [Run(workers=1, folder=tmp_path / "run", device="cpu", progress=False)]
    again[0].begin("test", {})
    known = Workers(again[0], Told(tmp_path / "nowhere"))  # which would fail to note a try
    assert torch.equal(known.result(asked[4]).weights["w"], found[4].weights["w"])
    (tmp_path / "run" / "trials" / "three.safetensors").write_bytes(b"damaged")
    assert known._journal.outcome(asked[2]) is None, "its weights are lost: it is tried again"
    other = Job("one", ag.Architecture({"n": 7}), keep=True)
    assert known._journal.outcome(other) is None, "a trial of another architecture"


def test_a_trial_that_kills_every_worker_ends_the_run_and_the_others_are_kept(tmp_path: Path) -> None:
    asked = jobs("good", "dies")
    with pytest.raises(RunError, match=rf"died {RETRIES + 1} times in trial 'dies'.*\{{'n': 1\}}"):
        for run, _ in begun(tmp_path / "run", workers=1):
            workers = Workers(run, Told(tmp_path))
            workers.ahead(asked)
            for job in asked:
                workers.result(job)
    assert [row["trial"] for row in rows(tmp_path / "run")] == ["good"]
    assert len(list(tmp_path.glob("dies *"))) == RETRIES + 1


def test_a_failure_of_the_network_is_a_result_and_any_other_error_is_raised(tmp_path: Path) -> None:
    for run, _ in begun(tmp_path / "run", workers=1):
        outcome = Workers(run, Told(tmp_path)).result(*jobs("nan"))
        assert outcome.failed == "NonFiniteError: loss became NaN" and not outcome.figures and outcome.score != 0
        with pytest.raises(MissingExtra, match="thing is not installed"):
            Workers(run, Told(tmp_path)).result(*jobs("missing"))
    (row,) = rows(tmp_path / "run")
    assert row["failed"] == outcome.failed and row["figures"] == {}


def test_the_package_travels_by_its_name() -> None:
    """As what a class in a program of the user's refers to: import archgrad as ag."""
    assert cloudpickle.loads(cloudpickle.dumps(ag)) is ag


def test_what_cannot_travel_is_refused_at_once() -> None:
    lock = threading.Lock()
    for run, _ in begun(None):
        with pytest.raises(ConfigError, match="cannot be sent to another process"):
            Workers(run, lambda job: Outcome({"score": float(lock.locked())}))


@pytest.mark.parametrize("given", [0, -1, True, 1.5, "rays", "ray://", "ray://a b"])
def test_wrong_workers_are_refused(given: object) -> None:
    with pytest.raises(ConfigError, match="workers="):
        Run(workers=given)  # type: ignore[arg-type]


def search(folder: Path | None, workers: int | str | None, *, trials: int = 6) -> ag.Found:
    run = ag.Run(
        epochs=8, trials=trials, seed=5, folder=folder, workers=workers, device="cpu", progress=False,
        output=ag.Output(checkpoint_seconds=0.0),
    )  # fmt: skip
    return ag.random_search(space(), TASK, run)


def test_trials_of_another_run_are_not_taken_for_its_own(tmp_path: Path) -> None:
    first, second = jobs("first", "second", keep=True)
    for value, name in enumerate(("one", "other")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"id": name}))
        journal = Journal(folder)
        for job in (first, second):
            weights = {"w": torch.full((2,), float(value))}
            journal.write(job, Outcome({"score": float(value)}, weights, "here", seconds=1.0, failed=""))
    kept = tmp_path / "one" / "trials"
    assert Journal(tmp_path / "one").outcome(first).figures == {"score": 0.0}  # type: ignore[union-attr]
    shutil.copy(kept / "second.safetensors", kept / "first.safetensors")
    assert Journal(tmp_path / "one").outcome(first) is None, "weights of another trial"
    shutil.copy(tmp_path / "other" / "trials" / "second.safetensors", kept)
    assert Journal(tmp_path / "one").outcome(second) is None, "weights of another run"
    shutil.copy(tmp_path / "other" / "trials.jsonl", tmp_path / "one")
    shutil.copytree(tmp_path / "other" / "trials", kept, dirs_exist_ok=True)
    assert Journal(tmp_path / "one").outcome(first) is None, "figures of another run"


def same(one: ag.Found, other: ag.Found) -> bool:
    weights = one.network.state_dict().items()
    return one.record["trials"] == other.record["trials"] and all(
        torch.equal(value, other.network.state_dict()[name]) for name, value in weights
    )


def test_stopped_in_mid_trial_it_goes_on_elsewhere_with_more_workers_to_the_same_end(tmp_path: Path) -> None:
    here = search(None, None)
    command = [sys.executable, __file__, str(tmp_path / "run")]
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        before = len(rows(tmp_path / "run")) if (tmp_path / "run" / "trials.jsonl").exists() else 0
        for _ in range(1200):
            path = tmp_path / "run" / "trials.jsonl"
            if path.exists() and len(rows(tmp_path / "run")) > before:
                break
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == (143 if number == signal.SIGTERM else -9), process.stderr.read()
        process.stderr.close()
    with (tmp_path / "run" / "trials.jsonl").open("a") as file:
        file.write('{"trial": "trial-4", "archi')  # the machine went away between two writes
    kept = {row["trial"]: row["where"] for row in map(json.loads, path.read_text().splitlines()[:-1])}
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    resumed = search(tmp_path / "moved", 2)
    assert same(here, resumed)
    found = {row["trial"]: row["where"] for row in rows(tmp_path / "moved")}
    assert sorted(found) == [f"trial-{i}" for i in range(6)]
    assert kept.items() <= found.items(), "what was finished before was not paid for again"
    with pytest.raises(RunError, match="workers"):
        search(tmp_path / "moved", None)


def test_goals_and_halving_give_with_workers_what_they_give_without() -> None:
    from archgrad.methods.monas.monas import MonasTerms
    from archgrad.trials.successive_halving import Halving

    def monas(workers: int | None) -> ag.Found:
        run = ag.Run(steps=14, trials=6, seed=5, workers=workers, device="cpu", progress=False)
        return ag.monas(space(), TASK, run, terms=MonasTerms(samples=3))

    def halved(workers: int | None) -> ag.Found:
        run = ag.Run(epochs=8, trials=6, seed=5, workers=workers, device="cpu", progress=False)
        return ag.multimodal_random(space(), TASK, run, halving=Halving())  # weights travel back, too

    def short(workers: int | None) -> ag.Found:
        run = ag.Run(steps=5, trials=8, seed=5, workers=workers, device="cpu", progress=False)
        return ag.random_search(space(), TASK, run)

    assert same(short(None), short(1)), "fewer steps than trials"
    assert same(monas(None), monas(2))
    assert same(halved(None), halved(2))


@pytest.mark.parametrize("work", ["idle", "asleep", "busy"])
def test_workers_end_within_seconds_of_a_killed_program(work: str) -> None:
    program = f"""
import os, time
from archgrad.trials.workers import _Local
pool = _Local(1, b"")
print(pool._processes.submit(os.getpid).result(), flush=True)
if {work!r} == "asleep":
    pool._processes.submit(time.sleep, 600)
elif {work!r} == "busy":
    pool._processes.submit(exec, "while True: pass")
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        time.sleep(0.5)
        parent.kill()
    ended = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < ended:
        time.sleep(0.1)
    gone = not Path(f"/proc/{worker}").exists()
    if not gone:
        os.kill(worker, signal.SIGKILL)
    assert gone


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        search(Path(sys.argv[1]), 1)
    except ag.Stopped as stopped:
        sys.exit(stopped.exit_status)
