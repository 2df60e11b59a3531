"""Stopping and resuming with real processes and real signals. Run as a program, this file is one such run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from archgrad.errors import RunError
from archgrad.run.output import Output
from archgrad.run.run import Run, Stopped

STEPS = 30
Report = Callable[[str, int], None]


def train(run: Run, network: nn.Module, optimizer: torch.optim.Optimizer, *, step: int) -> None:
    """One step that draws from every source of randomness."""
    noise = torch.from_numpy(np.random.randn(16, 6)).float() * random.random()
    x = torch.randn(16, 6, generator=run.generator("data")) + 0.1 * noise
    if step > 10:
        x = x + 0.1 * torch.randn(16, 6, generator=run.generator("late"))
    loss = (network(x) - x.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    run.log({"loss": loss, "lr": 0.05}, step=step)


def small(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, hidden), nn.BatchNorm1d(hidden), nn.Dropout(0.3), nn.Linear(hidden, 1))


def program(folder: Path | None, report: Report, *, checkpoint_seconds: float = 0.02, pause: float = 0.0) -> Any:
    """Two phases, the second's network shaped by the first's result; returns all that must be exact."""
    run = Run(
        seed=3, folder=folder, device="cpu", progress=False, output=Output(checkpoint_seconds=checkpoint_seconds)
    )
    run.begin("two phases", {"lr": 0.05, "hidden": 8})
    first = small(8)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(first.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    run.register_state(network=first, optimizer=optimizer, schedule=schedule)
    for step in run.steps(STEPS, phase="first"):
        train(run, first, optimizer, step=step)
        schedule.step()
        report("first", step)
        time.sleep(pause)
    weight = next(iter(first.parameters()))
    hidden = 4 + int(weight.detach().abs().sum() * 1000) % 7
    hidden += random.randrange(3) + int(torch.randint(3, ())) + run.compute_once("measured", lambda: len("abc"))
    run.log({"hidden": hidden})
    second = small(hidden)
    optimizer = torch.optim.Adam(second.parameters())
    run.register_state(network=second, optimizer=optimizer)
    for step in run.steps(STEPS, phase="second"):
        train(run, second, optimizer, step=step)
        report("second", step)
        time.sleep(pause)
        if step == STEPS - 3:
            break
    run.register_state(network=second)
    for step in run.steps(3, phase="third"):
        torch.nn.init.normal_(second[0].weight)  # type: ignore[index, arg-type, unused-ignore]
        report("third", step)
    run.finish()
    return result(run, [*first.state_dict().values(), *second.state_dict().values(), torch.rand(3)])


def result(run: Run, tensors: list[torch.Tensor]) -> Any:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.numpy().tobytes())
    draws = [np.random.rand(), random.random()]
    history = [{key: value for key, value in record.items() if key != "time"} for record in run.history]
    return json.loads(json.dumps({"weights": digest.hexdigest(), "draws": draws, "history": history}))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    try:
        found = program(folder, lambda phase, step: print(phase, step, flush=True), pause=0.01)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(stopped.exit_status) from None
    assert "lightning_fabric" not in sys.modules
    (folder / "result.json").write_text(json.dumps(found))


def quiet(phase: str, step: int) -> None:
    """Tell nobody."""


@pytest.fixture(scope="module")
def whole() -> Any:
    """The result of a run that nothing stops, in memory."""
    torch.set_num_threads(1)
    return program(None, quiet)


def forked(folder: Path, report: Report, **options: float) -> int:
    """Run the program in a forked process; returns its pid."""
    pid = os.fork()
    if pid == 0:
        code = 70
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, under which these tests may run, ignores it
        try:
            (folder.parent / "result.json").write_text(json.dumps(program(folder, report, **options)))
            code = 0
        except Stopped as stopped:
            code = stopped.exit_status
        finally:
            os._exit(code)
    return pid


def at(phase: str, step: int, number: int) -> Report:
    """Sends this process a signal at a step."""

    def report(now: str, there: int) -> None:
        if (now, there) == (phase, step):
            os.kill(os.getpid(), number)

    return report


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def resumed(folder: Path) -> Any:
    assert ended(forked(folder, quiet)) == 0
    found = json.loads((folder.parent / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("time")
    assert lines == found["history"], "the file holds what memory holds"
    return found


def test_a_folder_changes_no_result(tmp_path: Path, whole: Any) -> None:
    found = resumed(tmp_path / "run")
    assert found == whole
    assert resumed(tmp_path / "run") == whole, "a finished run gives its result again"


def test_the_comparison_can_fail(whole: Any) -> None:
    torch.set_num_threads(1)

    def disturb(phase: str, step: int) -> None:
        if (phase, step) == ("first", 20):
            torch.rand(1)

    assert program(None, disturb)["weights"] != whole["weights"]


def test_a_new_process_resumes_exactly_after_kill_9(tmp_path: Path, whole: Any) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-W", "error", __file__, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if line == "first 20\n":
                process.kill()
    assert process.returncode == -signal.SIGKILL
    again = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert not again.stdout.startswith("first 0\n"), "it goes on, it does not start anew"
    assert again.stdout.startswith("first ")
    assert json.loads((folder / "result.json").read_text()) == whole


@pytest.mark.parametrize(
    ("phase", "step"),
    [("first", 0), ("first", STEPS - 1), ("second", 0), ("second", STEPS - 3), ("third", 2)],
)
def test_kill_9_at_a_step(tmp_path: Path, whole: Any, phase: str, step: int) -> None:
    assert ended(forked(tmp_path / "run", at(phase, step, signal.SIGKILL))) == -signal.SIGKILL
    assert resumed(tmp_path / "run") == whole


def test_kill_9_again_and_again_at_any_moment(tmp_path: Path, whole: Any) -> None:
    waits = random.Random(1)
    kills = 0
    for _ in range(200):
        pid = forked(tmp_path / "run", quiet, checkpoint_seconds=0.0)
        time.sleep(waits.uniform(0.005, 0.06))
        os.kill(pid, signal.SIGKILL)
        if ended(pid) == 0:
            break
        kills += 1
    assert kills >= 3
    assert resumed(tmp_path / "run") == whole


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_exits(tmp_path: Path, whole: Any, number: int, status: int) -> None:
    folder = tmp_path / "run"
    assert ended(forked(folder, at("second", 7, number), checkpoint_seconds=1000.0)) == status
    assert (folder / "checkpoints" / "0001-second-0000000008.safetensors").exists()
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    assert resumed(folder) == whole


def test_a_signal_in_the_last_step_or_before_a_break_is_not_lost(tmp_path: Path, whole: Any) -> None:
    for place in (("first", STEPS - 1), ("second", STEPS - 3)):
        folder = tmp_path / place[0] / "run"
        folder.parent.mkdir()
        assert ended(forked(folder, at(*place, signal.SIGTERM))) == 143
        assert resumed(folder) == whole


@pytest.mark.parametrize("damage", ["cut", "flip", "end"])
def test_a_damaged_newest_checkpoint_falls_back_exactly(tmp_path: Path, whole: Any, damage: str) -> None:
    folder = tmp_path / "run"
    place = ("third", 0) if damage == "end" else ("second", 15)
    assert ended(forked(folder, at(*place, signal.SIGKILL), checkpoint_seconds=0.0)) == -signal.SIGKILL
    pattern = "*first-end*" if damage == "end" else "*second*"
    newest = sorted((folder / "checkpoints").glob(pattern))[-1]
    raw = bytearray(newest.read_bytes())
    raw[-20] ^= 8
    newest.write_bytes(raw[:-1] if damage == "cut" else raw)
    assert resumed(folder) == whole


def started(**options: Any) -> Run:
    run = Run(device="cpu", progress=False, **options)
    run.begin("test", {})
    run.register_state(network=nn.Linear(1, 1))
    return run


def test_a_fallback_is_noted(tmp_path: Path) -> None:
    run = started(folder=tmp_path / "run", output=Output(checkpoint_seconds=0))
    steps = run.steps(10)
    for _ in range(5):
        next(steps)
    run.close()
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    newest.write_bytes(b"")
    again = started(folder=tmp_path / "run")
    assert next(again.steps(10)) == 3
    assert [newest.name in note for note in again.notes] == [True]


def test_a_damaged_end_makes_later_phases_void(tmp_path: Path) -> None:
    run = started(folder=tmp_path / "run", output=Output(checkpoint_seconds=0))
    for phase in ("a", "b"):
        assert len(list(run.steps(4, phase=phase))) == 4
    run.close()
    (tmp_path / "run" / "checkpoints" / "0000-a-end.safetensors").write_bytes(b"")
    again = started(folder=tmp_path / "run")
    steps = again.steps(4, phase="a")
    assert next(steps) == 0
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == ["0000-a-0000000000.safetensors"]
    assert "later phases are void" in again.notes[-1]


def test_a_break_ends_the_phase_for_good_once_the_program_goes_on(tmp_path: Path) -> None:
    run = started(folder=tmp_path / "run")
    for step in run.steps(10, phase="a"):
        if step == 3:
            break
    next(steps := run.steps(10, phase="b"))
    run.close()
    del steps
    again = started(folder=tmp_path / "run")
    assert list(again.steps(10, phase="a")) == []
    assert next(again.steps(10, phase="b")) == 0


def test_an_error_in_the_loop_ends_no_phase(tmp_path: Path) -> None:
    run = started(folder=tmp_path / "run", output=Output(checkpoint_seconds=0))
    with pytest.raises(ZeroDivisionError):
        for step in run.steps(10):
            if step == 3:
                raise ZeroDivisionError
    run.close()
    assert list(started(folder=tmp_path / "run").steps(10)) == [3, 4, 5, 6, 7, 8, 9]


@contextlib.contextmanager
def small_files(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_stops_the_run_which_then_goes_on(tmp_path: Path) -> None:
    run = Run(folder=tmp_path / "run", device="cpu", progress=False, output=Output(checkpoint_seconds=0))
    run.begin("test", {})
    run.register_state(network=nn.Linear(100, 100))
    taken = []
    with pytest.raises(RunError, match="goes on from the last checkpoint"):
        for step in run.steps(5):
            taken.append(step)
            if step == 2:
                limit = small_files(20_000)
                limit.__enter__()
    limit.__exit__(None, None, None)
    run.close()
    again = Run(folder=tmp_path / "run", device="cpu", progress=False)
    again.begin("test", {})
    again.register_state(network=nn.Linear(100, 100))
    assert (taken, list(again.steps(5))) == ([0, 1, 2], [2, 3, 4])


def test_handlers_come_back_however_the_loop_ends() -> None:
    before = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    run = started()
    for _ in run.steps(3, phase="a"):
        assert signal.getsignal(signal.SIGTERM) != before[1]
    for _ in run.steps(3, phase="b"):
        break
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(ZeroDivisionError):
        for _ in run.steps(3, phase="c"):
            raise ZeroDivisionError
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_stopped_says_where_and_how_and_a_second_interrupt_is_immediate(tmp_path: Path) -> None:
    run = started(folder=tmp_path / "run")
    with pytest.raises(Stopped, match=r"SIGINT in phase 'search' after 1 steps.*same program") as caught:
        for _ in run.steps(3):
            signal.raise_signal(signal.SIGINT)
    assert (caught.value.signal, caught.value.exit_status) == (signal.SIGINT, 130)
    assert str(tmp_path / "run") in str(caught.value)
    assert isinstance(caught.value, KeyboardInterrupt)
    with pytest.raises(Stopped, match="Nothing is saved"):
        for _ in started().steps(3):
            signal.raise_signal(signal.SIGTERM)
    after = []
    with pytest.raises(KeyboardInterrupt) as second:
        for _ in started().steps(3):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            after.append(1)
    assert not isinstance(second.value, Stopped)
    assert after == []


def test_a_loop_in_a_thread_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[object] = []

    def loop() -> None:
        found.extend((step, signal.getsignal(signal.SIGTERM)) for step in started().steps(2))

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert found == [(0, before), (1, before)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
