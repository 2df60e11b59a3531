"""Budgets of steps and of seconds as one progress, by a clock of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from archgrad.errors import ConfigError, RunError
from archgrad.run import checkpointing, device, loop
from archgrad.run.device import seconds_per_call
from archgrad.run.output import Output
from archgrad.run.run import Run


class Clock:
    """Stands still until it is moved on."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(checkpointing, "time", clock)
    monkeypatch.setattr(device, "time", clock)
    return clock


def started(**options: Any) -> Run:
    run = Run(device="cpu", progress=False, **options)
    run.begin("test", {})
    run.register_state(network=nn.Linear(1, 1))
    return run


def walked(run: Run, clock: Clock, n: int, *, step_seconds: float, **options: Any) -> list[float]:
    """The progress at each step of a phase whose steps take so long."""
    found = []
    for _ in run.steps(n, **options):
        found.append(run.progress)
        clock.now += step_seconds
        assert run.progress == found[-1], "the same throughout a step"
    return found


def test_without_seconds_progress_goes_by_steps(clock: Clock) -> None:
    run = started()
    assert walked(run, clock, 4, step_seconds=9.0) == [0.0, 0.25, 0.5, 0.75]
    assert run.progress == 0.0


def test_seconds_alone_end_a_phase_and_nothing_else_does(clock: Clock) -> None:
    run = started(seconds=100.0)
    total = run.total_steps(10, default_epochs=3, measure_step=lambda: 2.0)
    assert total == 50
    assert walked(run, clock, 25, step_seconds=5.0, phase="search", time_fraction=0.5) == [i / 10 for i in range(10)]
    assert walked(run, clock, 25, step_seconds=0.5, phase="train") == [i / 100 for i in range(100)]
    assert walked(run, clock, 25, step_seconds=0.5, phase="more") == []


def test_a_schedule_comes_to_its_end_in_seconds_alone(clock: Clock) -> None:
    run = started(seconds=60.0)
    n = run.total_steps(1000, default_epochs=100)
    assert n == 100_000, "without a measurement, what the default says"
    assert walked(run, clock, n, step_seconds=0.5)[-1] == pytest.approx(1.0, abs=0.01)


def test_the_last_phase_takes_what_earlier_ones_left(clock: Clock) -> None:
    run = started(seconds=100.0)
    run.total_steps(10, default_epochs=3)
    for _ in run.steps(5, phase="search", time_fraction=0.5):
        clock.now += 10.0
        break
    assert len(walked(run, clock, 5, step_seconds=10.0, phase="fit", time_fraction=0.3)) == 3
    assert len(walked(run, clock, 5, step_seconds=10.0, phase="train")) == 6


def test_whichever_budget_ends_first(clock: Clock) -> None:
    run = started(seconds=100.0, steps=8)
    assert run.total_steps(10, default_epochs=3, measure_step=lambda: pytest.fail("not needed")) == 8
    assert walked(run, clock, 8, step_seconds=5.0) == [i / 8 for i in range(8)]
    run = started(seconds=100.0, epochs=1)
    assert walked(run, clock, run.total_steps(40, default_epochs=3), step_seconds=10.0) == [i / 10 for i in range(10)]


def test_progress_never_falls_and_survives_a_stop(clock: Clock, tmp_path: Path) -> None:
    options: dict[str, Any] = {"folder": tmp_path / "run", "seconds": 10.0, "output": Output(checkpoint_seconds=0.0)}
    run = started(**options)
    run.total_steps(10, default_epochs=3)
    steps, found = run.steps(30), []
    for seconds in (1.0, 3.0, -2.0, 3.0):  # a clock that goes back
        next(steps)
        found.append(run.progress)
        clock.now += seconds
    next(steps)
    assert [*found, run.progress] == [0.0, 0.1, 0.4, 0.4, 0.5]
    run.close()
    clock.now += 1000.0
    again = started(**options)
    again.total_steps(10, default_epochs=3)
    assert walked(again, clock, 30, step_seconds=1.0) == [0.5, 0.6, 0.7, 0.8, 0.9]


def test_numbers_that_are_no_forecast_are_kept(clock: Clock) -> None:
    run = started(seconds=100.0)
    assert len(walked(run, clock, 4, step_seconds=1.0, phase="own")) == 4, "no forecast was asked for"
    run.total_steps(10, default_epochs=3)
    assert len(walked(run, clock, 4, step_seconds=1.0, phase="trials", counted=False)) == 4
    assert walked(run, clock, 0, step_seconds=1.0, phase="none") == []
    assert len(walked(run, clock, 4, step_seconds=1.0, phase="train")) == 92


def test_a_step_is_measured_once_in_a_run(tmp_path: Path) -> None:
    times = iter([0.5, 0.1])
    for _ in range(2):
        run = started(folder=tmp_path / "run", seconds=60)
        assert run.total_steps(10, default_epochs=3, measure_step=lambda: next(times)) == 120
        run.close()
    with pytest.raises(RunError, match=r"Call run\.begin first"):
        Run(seconds=60, progress=False).total_steps(10, default_epochs=3, measure_step=lambda: 1.0)


def test_seconds_per_call_is_a_median_after_a_first_call(clock: Clock) -> None:
    times = iter([50.0, 3.0, 1.0, 2.0])

    def call() -> None:
        clock.now += next(times)

    assert seconds_per_call(call, device=torch.device("cpu")) == 2.0


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        (
            {"seconds": 120.0},
            r"budget of seconds=120 leaves about 20 .* search, of which 1 .* 95%.*Give Run\(seconds=600\)",
        ),
        ({"epochs": 2, "seconds": 60.0}, r"epochs=2 and seconds=60 leaves.*Run\(epochs=10, seconds=300\)"),
        ({}, r"The default budget leaves.*Give Run\(epochs=\.\.\.\)"),
    ],
)
def test_a_search_without_sense_is_refused_and_its_folder_is_free(
    tmp_path: Path, budget: dict[str, Any], told: str
) -> None:
    run = started(folder=tmp_path / "run", **budget)
    run.compute_once("step_seconds", lambda: 6.0)
    run.log({"predicted": 1.0})
    run.require_steps(20, phase="search", warm_up=0.5)
    with pytest.raises(ConfigError, match=told):
        run.require_steps(20, phase="search", warm_up=0.95)
    again = started(folder=tmp_path / "run", seconds=3600)
    assert again.compute_once("step_seconds", lambda: 5.0) == 5.0
    assert again.history == []


def test_what_was_trained_is_never_withdrawn(tmp_path: Path) -> None:
    run = started(folder=tmp_path / "run", seconds=9)
    list(run.steps(3))
    run.withdraw()
    assert (tmp_path / "run" / "run.json").exists()
    again = started(folder=tmp_path / "run", seconds=9)
    with pytest.raises(ConfigError, match="leaves about 1 training steps"):
        again.require_steps(1, phase="search")
    assert list(started(folder=tmp_path / "run", seconds=9).steps(3)) == []
