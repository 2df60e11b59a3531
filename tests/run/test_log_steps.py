"""Training steps are logged every n steps, so that a long run takes little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import torch
from torch import nn

from archgrad.run.output import Output
from archgrad.run.run import Run


def started(**options: object) -> Run:
    run = Run(device="cpu", progress=False, **options)  # type: ignore[arg-type]
    run.begin("test", {})
    run.register_state(network=nn.Linear(1, 1))
    return run


def logged(run: Run, n: int, *, phase: str = "fit", left_at: int | None = None) -> list[int]:
    """The steps of a phase that are logged; every 7th has a figure more."""
    for step in run.steps(n, phase=phase):
        run.log_step({"loss": torch.tensor(float(step))}, {"epoch": 1.0} if step and step % 7 == 0 else {}, step=step)
        if step == left_at:
            break
    records = [record for record in run.history if record["phase"] == phase]
    assert all(record["loss"] == record["step"] for record in records)
    return [record["step"] for record in records]


def test_every_nth_step_and_the_last_and_what_is_there_now_and_then() -> None:
    run = started(output=Output(log_every=5))
    assert logged(run, 13) == [0, 5, 7, 10, 12]
    assert logged(run, 8, phase="more") == [0, 5, 7]
    assert logged(run, 30, phase="left", left_at=11) == [0, 5, 7, 10, 11]
    assert logged(run, 0, phase="none") == []
    assert [record["step"] for record in run.history if "epoch" in record] == [7, 7, 7]
    assert logged(started(output=Output(log_every=1)), 9) == list(range(9))


def test_by_default_every_tenth_and_fewer_in_long_phases() -> None:
    assert logged(started(), 25) == [0, 7, 10, 14, 20, 21, 24]
    assert [Output().interval(n) for n in (1, 10_999, 20_000, 5_000_000)] == [10, 10, 20, 5000]


@pytest.mark.parametrize("stop", [3, 5, 12, 13])
def test_a_resumed_run_logs_the_same_steps(tmp_path: Path, stop: int) -> None:
    run = started(folder=tmp_path, output=Output(log_every=5, checkpoint_seconds=0))
    for step in run.steps(14, phase="fit"):
        if step == stop:
            run.close()
            break
        run.log_step({"loss": torch.tensor(float(step))}, {"epoch": 1.0} if step == 7 else {}, step=step)
    assert logged(started(folder=tmp_path, output=Output(log_every=5)), 14) == [0, 5, 7, 10, 13]


def test_a_long_run_takes_little_memory() -> None:
    run, loss = started(), torch.tensor(0.5)
    tracemalloc.start()
    for step in run.steps(100_000, phase="fit"):
        run.log_step({"loss": loss, "lr": 0.1}, step=step)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(run.history) == 1001
    assert size < 1.5e6, "each step as a dict would take over 4e7"
