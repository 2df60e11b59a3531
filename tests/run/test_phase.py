"""What a run allows and refuses, apart from stopping and resuming."""

from __future__ import annotations

import math
import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from archgrad.errors import ChoiceError, ConfigError, NonFiniteError, RunError
from archgrad.run import loop
from archgrad.run.output import Output
from archgrad.run.run import Run


def started(**options: Any) -> Run:
    run = Run(device="cpu", progress=False, **options)
    run.begin("test", {})
    run.register_state(network=nn.Linear(1, 1))
    return run


def test_the_step_budget_counts_all_phases() -> None:
    run = started(steps=7)
    assert run.total_steps(10, default_epochs=3) == 7
    assert list(run.steps(5, phase="a")) == [0, 1, 2, 3, 4]
    assert list(run.steps(5, phase="b")) == [0, 1]
    assert list(run.steps(5, phase="c")) == []
    assert Run(device="cpu").total_steps(10, default_epochs=3) == 30
    assert Run(device="cpu", seconds=9).total_steps(10, default_epochs=3) == 30
    assert Run(device="cpu", epochs=2).total_steps(10, default_epochs=3) == 20
    assert Run(device="cpu", epochs=2, steps=50).total_steps(10, default_epochs=3) == 20
    assert Run(device="cpu", epochs=2, steps=5).total_steps(10, default_epochs=3) == 5


def test_the_seconds_budget_has_shares_and_survives_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=time.monotonic() + 1e6)  # later than any state is due
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def taken(run: Run, phase: str, *, at_most: int = 10**6, share: float = 1.0) -> int:
        """Steps of a second each."""
        count = 0
        for _ in run.steps(10**6, phase=phase, time_fraction=share):
            clock.now += 1.0
            count += 1
            if count == at_most:
                run.close()
                break
        return count

    settings = {"folder": tmp_path / "run", "seconds": 12, "output": Output(checkpoint_seconds=0)}
    run = started(**settings)
    assert taken(run, "a", share=0.25) == 3
    assert taken(run, "b", at_most=4) == 4
    again = started(**settings)
    assert taken(again, "a", share=0.25) == 0
    assert taken(again, "b") == 6, "what the first process used up to its last state is counted"
    assert taken(again, "c") == 0, "nothing is left for a third phase"


def test_misuse_is_explained(tmp_path: Path) -> None:
    run = Run(device="cpu", progress=False)
    with pytest.raises(RunError, match=r"Call run\.begin first"):
        run.steps(3)
    with pytest.raises(RunError, match=r"Call run\.begin first"):
        run.compute_once("x", lambda: 1)
    with pytest.raises(RunError, match=r"Call run\.begin first"):
        run.log({"loss": 1.0})
    run.begin("test", {})
    with pytest.raises(RunError, match="that is running"):
        run.begin("test", {})
    with pytest.raises(ChoiceError, match=r"before run\.register_state"):
        run.steps(3)
    with pytest.raises(ChoiceError, match=r"run\.register_state\(space=\.\.\.\) was given a int"):
        run.register_state(space=3)  # type: ignore[arg-type]
    run.register_state()
    for wrong in ({"n": -1}, {"n": 2, "phase": "a/b"}, {"n": 2, "time_fraction": 0.0}):
        with pytest.raises(ConfigError):
            run.steps(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ChoiceError, match="still open"):
        for _ in run.steps(2, phase="a"):
            run.steps(2, phase="b")
    with pytest.raises(ChoiceError, match="inside a loop"):
        for _ in run.steps(2, phase="a"):
            run.register_state()
    run.finish()
    with pytest.raises(RunError, match="that is finished"):
        run.steps(2)


def test_another_program_in_the_folder_is_told_apart(tmp_path: Path) -> None:
    run = started(folder=tmp_path / "run")
    next(steps := run.steps(3))
    run.close()
    del steps

    def again() -> Run:
        found = Run(folder=tmp_path / "run", device="cpu", progress=False)
        found.begin("test", {})
        return found

    for parts, call, text in (
        ({"other": nn.Linear(1, 1)}, {"n": 3}, r"holds the parts \['network'\].*named \['other'\]"),
        ({"network": nn.Linear(2, 1)}, {"n": 3}, "does not fit the part 'network'"),
        ({"network": nn.Linear(1, 1)}, {"n": 4}, "with 3 steps, and the program is at phase 'search' with 4"),
        ({"network": nn.Linear(1, 1)}, {"n": 3, "phase": "fit"}, "phase 'fit'"),
    ):
        changed = again()
        changed.register_state(**parts)
        with pytest.raises(RunError, match=text):
            next(changed.steps(**call))  # type: ignore[arg-type]
        changed.close()


def test_check_finite_names_the_figure_and_the_last_good_state(tmp_path: Path) -> None:
    run = started(folder=tmp_path / "run", output=Output(checkpoint_seconds=0))
    run.check_finite({"loss": 1.0, "weight": torch.ones(3)})
    with pytest.raises(NonFiniteError) as caught:
        for step in run.steps(5):
            weight = torch.tensor([1.0, float("inf") if step == 2 else 0.0])
            run.check_finite({"loss": torch.tensor(0.5), "weight": weight})
    message = str(caught.value)
    for part in (
        "weight",
        "'search' at step 2",
        "0000-search-0000000002.safetensors",
        "learning rate",
        "32-true",
    ):
        assert part in message
    assert "loss" not in message


def test_remember_computes_once_and_leaves_randomness_alone(tmp_path: Path) -> None:
    def measure() -> list[float]:
        return [torch.rand(1).item(), float(np.random.rand()), random.random(), time.perf_counter()]

    run = started(folder=tmp_path / "run")
    state = torch.get_rng_state()
    value = run.compute_once("ms", measure)
    assert torch.equal(torch.get_rng_state(), state)
    assert run.compute_once("ms", measure) == value
    run.close()
    assert started(folder=tmp_path / "run").compute_once("ms", measure) == value
    with pytest.raises(RunError, match="not JSON"):
        started().compute_once("ms", object)
    run = started(folder=tmp_path / "run")
    assert math.isnan(run.compute_once("score", lambda: math.nan))
    run.close()
    assert math.isnan(started(folder=tmp_path / "run").compute_once("score", lambda: 0.0))


def test_generators_are_apart_and_from_the_seed() -> None:
    def draw(seed: int, name: str) -> float:
        return torch.rand(1, generator=Run(seed=seed, device="cpu").generator(name)).item()

    assert draw(1, "a") == draw(1, "a")
    assert len({draw(1, "a"), draw(1, "b"), draw(2, "a")}) == 3


def test_creation_touches_nothing_random() -> None:
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    run = Run(device="cpu", seed=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    run.begin("test", {})
    first = (torch.rand(1).item(), np.random.rand(), random.random())
    Run(device="cpu", seed=5).begin("test", {})
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == first


def test_a_generator_that_is_first_asked_for_inside_compute_once_begins_anew_behind_it() -> None:
    def drawn(run: Run) -> float:
        return float(torch.rand(1, generator=run.generator("late")))

    runs = [Run(device="cpu", progress=False) for _ in range(2)]
    for run in runs:
        run.begin("test", {})
    runs[0].compute_once("figure", lambda: drawn(runs[0]))
    assert drawn(runs[0]) == drawn(runs[1])


def test_two_threads_cannot_train_at_once() -> None:
    inside, ended = threading.Event(), threading.Event()

    def train() -> None:
        for _ in started().steps(2):
            inside.set()
            ended.wait(30)

    thread = threading.Thread(target=train)
    thread.start()
    inside.wait(30)
    run = started()
    with pytest.raises(RunError, match=r"Another thread .* in phase 'search' at step 0\).* one after the other"):
        list(run.steps(2))
    ended.set()
    thread.join()
    assert list(started().steps(2)) == [0, 1]


def test_a_run_within_a_run_and_one_after_another_are_of_one_thread() -> None:
    for _ in (outer := started()).steps(2):
        assert list(started().steps(2)) == [0, 1]
        assert "step" in outer.location
    thread = threading.Thread(target=lambda: list(started().steps(2)))
    thread.start()
    thread.join()


def test_runs_in_turns_leave_no_trace_in_their_thread() -> None:
    first, second = started(), started()
    assert len(list(zip(first.steps(2), second.steps(2), strict=True))) == 2
    raised: list[Exception] = []

    def train() -> None:
        try:
            list(started().steps(1))
        except RunError as error:
            raised.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert not raised
