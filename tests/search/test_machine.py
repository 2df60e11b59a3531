"""Fabric and several processes. Run under torchrun, this file is a program of two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from archgrad.errors import ConfigError
from archgrad.search.run import Run, Stopped


def test_one_process_on_the_cpu_does_without_fabric() -> None:
    code = (
        "import sys; from archgrad.search.run import Run; run = Run(device='cpu', progress=False); "
        "run.begin('test', {}); run.keep(); list(run.steps(2)); run.finish(); "
        "print(run.device, run.rank, run.world); "
        "assert not {'lightning_fabric', 'tensorboard', 'matplotlib'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "cpu 0 1\n"
    assert found.stderr == ""


def test_fabric_is_launched_with_what_was_asked() -> None:
    run = Run(device="cpu", precision="bf16-mixed")
    assert run.fabric is run.fabric
    assert (run.fabric.device, run.fabric.world_size) == (torch.device("cpu"), 1)
    with run.fabric.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16


def test_batches_move_whole() -> None:
    batch = ((torch.ones(2), [torch.zeros(1)]), {"target": torch.tensor(3)}, "name")
    run = Run(device="cpu")
    moved = run.to_device(batch)
    assert isinstance(moved[0], tuple)
    assert isinstance(moved[0][1], list)
    assert torch.equal(moved[1]["target"], torch.tensor(3))
    assert moved[2] == "name"


def test_torchrun_decides_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    Run(device="cpu", processes=4)
    with pytest.raises(ConfigError, match="torchrun started 4"):
        Run(device="cpu", processes=2)


def program(folder: Path, stop: int) -> None:
    """Two processes train one network on different data; one alone gets a signal at step `stop`."""
    torch.set_num_threads(1)
    run = Run(folder=folder, device="cpu", progress=False, checkpoint_seconds=1000)
    run.begin("two", {})
    network = run.fabric.setup_module(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    optimiser = run.fabric.setup_optimizers(torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9))
    run.keep(network=network, optimiser=optimiser)
    for step in run.steps(8):
        draw = torch.Generator().manual_seed(100 * step + run.rank)
        loss = network(torch.randn(8, 4, generator=draw)).square().mean()
        optimiser.zero_grad()
        run.fabric.backward(loss)
        optimiser.step()
        run.log({"loss": loss})
        if step == stop and run.rank == 1:
            signal.raise_signal(signal.SIGTERM)
    run.finish()
    weights = [value.tolist() for value in network.state_dict().values()]
    (folder / f"rank{run.rank}.json").write_text(json.dumps(weights))


def test_two_processes_stop_together_and_resume_exactly(tmp_path: Path) -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-port=0",
        __file__,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(folder: str, stop: int) -> int:
        command = [*torchrun, str(tmp_path / folder), str(stop)]
        return subprocess.run(
            command, check=False, env=environment, capture_output=True, timeout=120
        ).returncode

    assert start("stopped", 3) != 0
    kept = [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()]
    assert sorted(kept) == ["0000-search-0000000000.safetensors", "0000-search-0000000004.safetensors"]
    assert start("stopped", -1) == 0
    assert start("whole", -1) == 0
    results = [
        (tmp_path / place / f"rank{rank}.json").read_text()
        for place in ("stopped", "whole")
        for rank in (0, 1)
    ]
    assert len(set(results)) == 1
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "stopped" / "history.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(8))


if __name__ == "__main__":
    try:
        program(Path(sys.argv[1]), int(sys.argv[2]))
    except Stopped as stopped:
        raise SystemExit(stopped.exit_status) from None
