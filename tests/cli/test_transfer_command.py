"""archgrad transfer: its table, its JSON, resuming, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from archgrad.cli.inputs.data import load
from archgrad.cli.schemas.transfer import TransferOptions

torch.set_num_threads(1)
FEW = [
    *("--steps", "60", "--batch-size", "10", "--threads", "1", "--shots", "2", "--shots", "3", "--draws", "2"),
    *("--restarts", "1", "--shot-steps", "5", "--limit", "params=0.6", "--no-onnx"),
]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    rng, y = np.random.default_rng(1), np.arange(60) % 4
    x = rng.normal(size=(60, 1, 8, 8)) - y[:, None, None, None]
    np.savez(folder / "few.npz", x=x.astype(np.float32), y=y)
    np.savez(folder / "small.npz", x=x[:, :, :4, :4].astype(np.float32), y=y)
    return folder


def test_it_prints_a_table_and_the_same_as_json_and_report(
    place: Path, target: Path, tmp_path: Path, cli: Callable[..., Result], no_onnx: None
) -> None:
    out = tmp_path / "run"
    told = ["transfer", f"{place / 'net.py'}:Net", place / "data.npz", target / "few.npz", *FEW, "--out", out]
    first = cli(*told)
    assert first.exit_code == 0, first.output
    assert "2 shots" in first.stdout and "whole network, fine-tuned" in first.stdout
    record = json.loads(cli(*told, "--json").stdout)
    assert record["method"] == "transfer" and len(record["baselines"]) == 6
    assert record == json.loads((out / "record.json").read_text())
    assert (out / "network.pt2").exists() and (out / "search" / "report.html").exists()
    assert "random mask" in cli("report", out).stdout
    assert "random mask" in (out / "report.html").read_text()


def test_normalization_is_the_users_on_both_sides(tmp_path: Path) -> None:
    images, y = np.random.default_rng(2).integers(0, 255, (60, 1, 8, 8)).astype(np.uint8), np.arange(60) % 3
    path = tmp_path / "images.npz"
    np.savez(path, x=images, y=y)
    told = {"model": "net.py:Net", "data": str(path), "target": str(path)}
    options = TransferOptions.model_validate(told | {"normalize": "0.5/0.25"})
    for part in (options.data, options.target):
        assert load(part, options).splits["normalization"] == {"mean": [0.5], "std": [0.25]}
    assert load(str(path), TransferOptions.model_validate(told)).splits["normalization"]["mean"] != [0.5]


def test_it_resumes_in_the_search_and_gives_what_an_unbroken_run_gives(
    place: Path, target: Path, tmp_path: Path, cli: Callable[..., Result], no_onnx: None
) -> None:
    told = [f"{place / 'net.py'}:Net", str(place / "data.npz"), str(target / "few.npz"), *FEW]
    code = "import sys; sys.modules['onnxscript'] = None; from archgrad.cli.app import main; main()"
    stopped = subprocess.run(
        [sys.executable, "-c", code, "transfer", *told, "--out", str(tmp_path / "broken")],
        env={**os.environ, "JOB_STOP_AT": "30", "JOB_STOP_BY": str(int(signal.SIGTERM))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert stopped.returncode == 143, stopped.stderr
    assert f"archgrad resume {tmp_path / 'broken'}" in stopped.stderr
    resumed = json.loads(cli("resume", tmp_path / "broken", "--json").stdout)
    whole = json.loads(cli("transfer", *told, "--out", tmp_path / "whole", "--json").stdout)
    assert resumed["baselines"] == whole["baselines"] and resumed["after"] == whole["after"]


def test_what_it_refuses(place: Path, target: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    def message(*more: str, data: str = "few.npz") -> str:
        net = f"{place / 'net.py'}:Net"
        return refused("transfer", net, place / "data.npz", target / data, "--out", tmp_path / "no", *more)

    assert "process" in message("--process", "again") and "redraw" in message("--process", "again")
    assert "90 shots of each class" in message("--shots", "90")
    assert "source has inputs of shape [1, 8, 8], the target of [1, 4, 4]" in message(data="small.npz")
    assert "give --weights FILE" in message("--process", "frozen")
    assert "whole numbers above 0" in message("--shots", "0")
    assert "no such file or folder" in message(data="none.npz")
    assert not (tmp_path / "no" / "run.json").exists()
