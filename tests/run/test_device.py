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
from archgrad.run.output import Output
from archgrad.run.run import Run, Stopped


def test_one_process_on_the_cpu_does_without_fabric() -> None:
    code = (
        "import sys; from archgrad.run.run import Run; run = Run(device='cpu', progress=False); "
        "run.begin('test', {}); run.register_state(); list(run.steps(2)); run.finish(); "
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
    Run(device="cpu", devices=4)
    with pytest.raises(ConfigError, match="torchrun started 4"):
        Run(device="cpu", devices=2)


def program(folder: Path, stop: int) -> None:
    """Two processes train one network on different data; one alone gets a signal at step `stop`."""
    run = Run(folder=folder, device="cpu", progress=False, output=Output(checkpoint_seconds=1000))
    run.begin("two", {})
    network = run.fabric.setup_module(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    optimizer = run.fabric.setup_optimizers(torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9))
    run.register_state(network=network, optimizer=optimizer)
    for step in run.steps(8):
        draw = torch.Generator().manual_seed(100 * step + run.rank)
        loss = network(torch.randn(8, 4, generator=draw)).square().mean()
        optimizer.zero_grad()
        run.fabric.backward(loss)
        optimizer.step()
        run.log({"loss": loss})
        if step == stop and run.rank == 1:
            signal.raise_signal(signal.SIGTERM)
    value = run.compute_once("rank", lambda: run.rank)
    run.finish()
    weights = [value.tolist() for value in network.state_dict().values()]
    (folder / f"rank{run.rank}.json").write_text(json.dumps([value, run.world, weights]))


def main(place: Path) -> None:
    torch.set_num_threads(1)
    try:
        program(place / "stopped", 3)
    except Stopped:
        (place / f"stopped{os.environ['RANK']}").touch()
    program(place / "stopped", -1)
    program(place / "whole", -1)


def test_two_processes_stop_together_and_resume_exactly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path)], env=environment, capture_output=True, check=False, timeout=120, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "stopped0").exists()
    assert (tmp_path / "stopped1").exists()
    ranks = [("stopped", 0), ("stopped", 1), ("whole", 0), ("whole", 1)]
    found = [(tmp_path / place / f"rank{rank}.json").read_text() for place, rank in ranks]
    assert len(set(found)) == 1
    assert json.loads(found[0])[:2] == [0, 2]
    record = json.loads((tmp_path / "stopped" / "run.json").read_text())
    assert (record["status"], len(record["resumed"])) == ("finished", 1)
    lines = (tmp_path / "stopped" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(8))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
