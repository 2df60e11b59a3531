"""Memory, disk, workers and clocks that fail: the run says what to do, and goes on from its last good state."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import archgrad as ag
from archgrad.errors import DataError, ModelError, ResourceError, RunError
from archgrad.run.checkpointing import check_disk_space
from archgrad.run.failures import explain
from archgrad.run.loop import watched
from archgrad.run.run import Run
from archgrad.training.fit import optimize
from archgrad.training.recipe import sgd

ROWS = 40


class Numbers(Dataset[tuple[Tensor, int]]):
    """Ends its worker process once 60 rows are read, where there is a file to count them."""

    def __init__(self, fuse: Path | None = None) -> None:
        self.fuse = fuse
        self.x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
        self.targets = [int(x.sum() > 0) for x in self.x]

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.fuse is not None and self.fuse.exists() and torch.utils.data.get_worker_info() is not None:
            with self.fuse.open("ab") as file:
                file.write(b".")
            if self.fuse.stat().st_size > 60:
                os._exit(1)
        return self.x[index], self.targets[index]


def begun(folder: Path | None, network: nn.Module, *, steps: int = 8, **settings: Any) -> tuple[Run, Any]:
    """A run that is begun, and the optimizer that it keeps."""
    run = Run(
        **{
            "folder": folder,
            "device": "cpu",
            "progress": False,
            "output": ag.Output(checkpoint_seconds=0),
            **settings,
        }
    )
    run.begin("test", {})
    made = sgd(network.parameters())
    run.register_state(network=network, optimizer=made)
    return run, made


def trained(
    folder: Path | None,
    *,
    data: Any = None,
    objective: Callable[[nn.Module, Any], Tensor] | None = None,
    width: int = 4,
) -> list[Tensor]:
    """Weights after eight steps."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
    task = ag.Classification(data) if data else ag.Classification(Numbers(), batch_size=10)
    run, made = begun(folder, network)
    try:
        optimize(network, task, run, optimizer=made, steps=8, phase="fit", objective=objective)
    finally:
        run.close()
    return [p.detach() for p in network.parameters()]


def exhausted(error: Callable[[], object], at: int) -> Callable[[nn.Module, Any], Tensor]:
    """A loss that asks for too much at a step."""
    calls = [0]

    def loss(network: nn.Module, batch: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == at + 1:
            error()
        return nn.functional.cross_entropy(network(batch[0]), batch[1])

    return loss


def on_a_gpu() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            lambda: torch.empty(2**60, dtype=torch.uint8),
            r"Memory ran out \(torch tried to allocate 1,073,741,824\.00 GiB\)",
        ),
        (lambda: bytearray(2**60), r"Memory ran out \(MemoryError\)"),
        (on_a_gpu, r"The memory of the GPU ran out \(CUDA out of memory\)"),
    ],
)
def test_memory_that_runs_out_says_where_and_what_to_lower(
    tmp_path: Path, error: Callable[[], object], told: str
) -> None:
    whole = trained(None)
    with pytest.raises(ResourceError, match=told) as caught:
        trained(tmp_path / "run", objective=exhausted(error, at=3))
    for part in ("in phase 'fit' at step 3", "batch", "channels", "radars", "0000-fit-0000000003.safetensors"):
        assert part in str(caught.value)
    assert all(map(torch.equal, trained(tmp_path / "run"), whole)), "nothing is lost"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv"
        ),
        RuntimeError("[../gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer"),
        torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1"),
    ],
)
def test_a_process_that_is_gone_or_silent_is_told(error: RuntimeError) -> None:
    assert re.match(r"Another process of this run died, or did not answer within 30 minutes \(", explain(error))


def test_other_errors_are_not_taken_for_it() -> None:
    assert explain(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) == ""
    assert explain(ValueError("DataLoader worker")) == ""
    with pytest.raises(ZeroDivisionError):
        trained(None, objective=exhausted(lambda: 1 / 0, at=1))


def test_a_batch_that_is_cut_off_with_its_worker_is_told_too() -> None:
    source = "def fetch(error):\n    raise error\n"
    scope: dict[str, Any] = {}
    exec(compile(source, torch.utils.data.dataloader.__file__, "exec"), scope)
    for error, told in (
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (EOFError(), True),
        (FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0."), False),
    ):
        with pytest.raises(type(error)) as caught:
            scope["fetch"](error)
        assert bool(explain(caught.value)) == told
    assert explain(ConnectionResetError(104, "elsewhere")) == ""


def loader(fuse: Path | None) -> DataLoader[Any]:
    return DataLoader(Numbers(fuse), batch_size=10, shuffle=True, num_workers=2)


def test_a_worker_that_dies_ends_the_run_which_then_goes_on(tmp_path: Path) -> None:
    fuse = tmp_path / "fuse"
    whole = trained(None, data=loader(None))
    fuse.touch()
    with pytest.raises(ResourceError, match=r"worker process of the data loader died .*num_workers=0") as caught:
        trained(tmp_path / "run", data=loader(fuse))
    assert re.search(r"in phase 'fit' at step \d\. The last good state is .*safetensors", str(caught.value))
    fuse.unlink()
    assert all(map(torch.equal, trained(tmp_path / "run", data=loader(fuse)), whole))


def test_a_worker_whose_death_is_told_while_its_trace_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch raises in its handler of SIGCHLD, wherever the program is."""

    def interrupted(_: object) -> None:
        raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly")

    monkeypatch.setattr(traceback, "walk_tb", interrupted)
    with pytest.raises(ResourceError, match=r"worker process of the data loader died \(DataLoader worker"):  # noqa: SIM117
        with watched(Run(progress=False)):
            raise ConnectionResetError("reset by peer")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("a tmpfs can be mounted by root alone")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_stops_the_run_which_then_goes_on(small_disk: Path) -> None:
    width = 20_000  # 0.56 MB of weights, and as much of momentum
    whole, ballast = trained(None, width=width), small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb") as file:
            file.write(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize))

    with pytest.raises(RunError, match=r"No space left on device.*What was saved before is intact.*Make room"):
        trained(small_disk / "run", width=width, objective=exhausted(fill, at=3))
    ballast.unlink()
    assert all(map(torch.equal, trained(small_disk / "run", width=width), whole))


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(small_disk: Path) -> None:
    with pytest.raises(RunError, match=r"takes 2\.81 MB .*3 states, .* need 9\.4\d MB\. Nothing was begun"):
        trained(small_disk / "run", width=100_000)
    assert not (small_disk / "run" / "checkpoints").exists()


def test_a_disk_that_is_short_is_noted(small_disk: Path) -> None:
    network = nn.Linear(1000, 400)  # 1.6 MB
    run, _ = begun(small_disk / "run", network)
    next(run.steps(3))
    assert ["networks written at the end may not" in note for note in run.notes] == [True]


def test_room_is_asked_for_by_the_size_of_the_state(tmp_path: Path) -> None:
    assert check_disk_space(tmp_path / "absent", {"a": [torch.zeros(4)]}) == ""
    with pytest.raises(RunError, match=r"takes 4,400,000,000\.00 MB"):
        check_disk_space(tmp_path, {"a": [torch.empty(1).expand(11 * 10**14)], "b": torch.zeros(0)})


def test_clocks_that_are_set_back_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, folder = trained(None), tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        trained(folder, objective=exhausted(lambda: 1 / 0, at=4))
    record = (folder / "run.json").read_text()
    (folder / "run.json").write_text(re.sub(r'"started": "\d+', '"started": "2999', record))
    for path in folder.rglob("*"):
        os.utime(path, (4e9, 4e9))
    backwards = iter(range(2**31, 0, -(10**5)))
    monkeypatch.setattr(time, "time", lambda: float(next(backwards)))
    assert all(map(torch.equal, trained(folder), whole))


def test_a_budget_in_seconds_follows_the_clock_that_is_never_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: -1e9)
    run = Run(device="cpu", progress=False, seconds=0.05)
    run.begin("test", {})
    run.register_state(network=nn.Linear(1, 1))
    began = time.monotonic()
    taken = sum(1 for _ in run.steps(10**9) if time.sleep(0.001) is None)
    assert taken >= 1 and time.monotonic() - began < 30


@pytest.mark.parametrize("place", ["/proc/archgrad", "/dev/null/run"])
def test_a_folder_that_cannot_be_written_in_is_refused(place: str) -> None:
    if not Path(place).parent.exists():
        pytest.skip("no such file system here")
    run = Run(folder=place, device="cpu", progress=False)
    with pytest.raises(RunError, match="Choose a folder that can be written to"):
        run.begin("test", {})


class Odd(torch.utils.data.Dataset[Any]):
    """A dataset that raises at one sample."""

    def __init__(self, error: BaseException, *, at: int) -> None:
        self.error, self.at = error, at

    def __len__(self) -> int:
        return 200  # of which a fingerprint takes 32, and not the 13th

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.at:
            raise self.error
        return torch.full((3,), float(index)), index % 2


def trained_on(dataset: Any, folder: Path, network: nn.Module | None = None) -> None:
    good = Odd(ValueError(), at=-1)
    task = ag.Classification(dataset, good, Odd(ValueError(), at=-1), classes=2, batch_size=8)
    ag.fit(network or nn.Linear(3, 2), task, ag.Run(steps=25, folder=folder, device="cpu", progress=False))


@pytest.mark.parametrize("error", [KeyError("x"), OSError("gone"), ZeroDivisionError(), NotImplementedError("no")])
def test_what_a_dataset_raises_stays_and_says_where(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught:
        trained_on(Odd(error, at=13), tmp_path)
    assert caught.value is error and any("__getitem__" in str(entry) for entry in caught.traceback)
    notes = " ".join(caught.value.__notes__)
    assert "sample 13 of the dataset" in notes and "archgrad was in phase 'fit' at step" in notes
    assert "The last good state is" in notes


class WithoutText(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class OtherNotes(Exception):
    __notes__ = "no list"  # type: ignore[assignment]


class WithoutNotes(Exception):
    def add_note(self, note: str, /) -> None:
        raise RuntimeError("no notes")


@pytest.mark.parametrize("kind", [WithoutText, OtherNotes, WithoutNotes])
@pytest.mark.parametrize("place", ["dataset", "network", "metric", "on_log"])
def test_errors_that_say_nothing_and_take_no_notes_stay_what_they_are(
    kind: type[Exception], place: str, tmp_path: Path
) -> None:
    error, calls = kind(), dict.fromkeys(("network", "metric", "on_log"), 0)

    def fails(here: str, after: int) -> None:
        calls[here] += 1
        if here == place and calls[here] > after:
            raise error

    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            fails("network", 9)
            return super().forward(x)

    def metric(output: Tensor, target: Tensor) -> Tensor:
        fails("metric", 0)
        return output.argmax(1) == target

    data = Odd(error if place == "dataset" else ValueError(), at=13 if place == "dataset" else -1)
    output = ag.Output(on_log=lambda record: fails("on_log", 0))
    with pytest.raises(kind) as caught:
        task = ag.Supervised(data, loss=nn.functional.cross_entropy, metrics={"m": metric}, score="m", batch_size=8)
        ag.fit(Net(3, 2), task, ag.Run(steps=25, folder=tmp_path, device="cpu", progress=False, output=output))
    assert caught.value is error


def test_what_a_metric_raises_of_any_kind_says_where() -> None:
    def metric(output: Tensor, target: Tensor) -> Tensor:
        raise OSError("gone")

    task = ag.Supervised(
        Odd(ValueError(), at=-1), loss=nn.functional.cross_entropy, metrics={"m": metric}, score="m", batch_size=8
    )
    with pytest.raises(OSError, match="gone") as caught:
        task.check(nn.Linear(3, 2))
    assert "called metric 'm'" in " ".join(caught.value.__notes__)


def test_a_stop_iteration_of_a_dataset_ends_no_loop_in_silence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="StopIteration at sample 13"):
        trained_on(Odd(StopIteration(), at=13), tmp_path)


def test_an_error_of_forward_says_where_the_run_was(tmp_path: Path) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(3, 2), 0

        def forward(self, x: Tensor) -> Any:
            self.calls += self.training
            if self.calls > 3:
                raise ZeroDivisionError("late")
            return self.layer(x)

    with pytest.raises(ZeroDivisionError, match="late") as caught:
        trained_on(Odd(ValueError(), at=-1), tmp_path, Late())
    assert "archgrad was in phase 'fit' at step" in " ".join(caught.value.__notes__)


def test_one_sample_a_batch_before_batchnorm_is_refused_before_training(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    task = ag.Classification(Odd(ValueError(), at=-1), classes=2, batch_size=1)
    with pytest.raises(ModelError, match="fails in training mode"):
        ag.fit(network, task, ag.Run(steps=2, folder=tmp_path, device="cpu", progress=False))
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("error", [ResourceError("full"), ZeroDivisionError("user's"), MemoryError()])
def test_a_folder_whose_run_failed_is_free_while_the_error_lives(tmp_path: Path, error: Exception) -> None:
    """A notebook keeps the last traceback, and with it the Run: the same cell again goes on all the same."""

    def fitted(folder: Path | None, at: int = -1) -> tuple[list[Tensor], Run]:
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        run, made = begun(folder, network)

        def objective(network: nn.Module, batch: Any) -> Tensor:
            if "step 5" in run.location and at == 5:
                raise error
            return nn.functional.cross_entropy(network(batch[0]), batch[1])

        task = ag.Classification(Numbers(), batch_size=10)
        optimize(network, task, run, optimizer=made, steps=8, phase="fit", objective=objective)
        run.finish()
        return [p.detach() for p in network.parameters()], run

    whole, _ = fitted(None)
    kept: list[Exception] = []
    try:
        fitted(tmp_path / "run", at=5)
    except (ResourceError, ZeroDivisionError) as caught:
        kept.append(caught)
    weights, _ = fitted(tmp_path / "run")
    assert kept and all(map(torch.equal, weights, whole))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    kept.clear()
    gc.collect()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
