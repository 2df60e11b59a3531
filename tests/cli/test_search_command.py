"""`archgrad search`: what it writes and prints, and every input that it refuses."""

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
from conftest import SEARCH

import archgrad
from archgrad.spaces.nasbench201 import nasbench201_cells

Refused = Callable[..., str]


def test_the_folder_holds_everything(searched: Path) -> None:
    names = {path.name for path in searched.iterdir()}
    assert names >= {
        "command.json", "architecture.json", "network.safetensors", "network.pt2", "record.json",
        "history.jsonl", "report.html", "run.json",
    }  # fmt: skip
    assert json.loads((searched / "command.json").read_text())["command"] == "search"
    record = json.loads((searched / "record.json").read_text())
    assert record["method"] == "unas"
    assert record["space"] == {
        "kind": "darts", "cells": 3, "channels": 2, "classes": 3, "in_channels": 1, "factorized": True,
        "stem": "cifar",
    }  # fmt: skip
    assert "darts (factorized, 3 cells, 2 channels)" in (searched / "report.html").read_text()
    network = torch.export.load(searched / "network.pt2").module()
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_json_prints_one_object_and_nothing_else(place: Path, tmp_path: Path, cli: Callable, no_onnx: None) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"data: {place / 'data.npz'}\nmethod: darts\nspace: nasbench201\nchannels: 8\ncells: 1\nbatch-size: 18\n"
        "limit: {macs: 0.5}\nsearch-fraction: 1.0\nonnx: false\n"
    )
    result = cli(
        "search", "--config", config, "--channels", "2", "--steps", "2", "--augment", "flip,cutout=2", "--json",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["method"], record["settings"]["search_fraction"]) == ("darts", 1.0)
    assert record["space"] == {"kind": "nasbench201", "cells": 1, "channels": 2, "classes": 3, "in_channels": 1}
    assert record["data"]["augmentation"] == ["flip()", "cutout(2)"]
    space = nasbench201_cells(cells=1, channels=2, classes=3, in_channels=1)
    found = archgrad.build(space, archgrad.Architecture.load(tmp_path / "run" / "architecture.json"))
    counted = archgrad.macs(torch.zeros(1, 1, 8, 8)).of(found)
    assert record["after"]["macs"] == counted <= record["limit"]["bound"]
    assert record == json.loads((tmp_path / "run" / "record.json").read_text())


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["--method", "random_search", "--trials", "2", "--space", "nasbench201", "--cells", "1"], "nasbench201"),
        (["--method", "random_search", "--shared", "--trials", "3", "--published", "--cells", "2"], "darts"),
        (["--method", "multimodal_random", "--trials", "3", "--space", "nasbench201", "--cells", "1"], "nasbench201"),
        (["--space", "mobile", "--cells", "1"], "mobile"),
        (["--method", "radars", "--memory-gib", "0.5", "--space", "nasbench201", "--cells", "1"], "nasbench201"),
        (
            ["--method", "monas", "--alpha", "0.5", "--trials", "2", "--space", "nasbench201", "--cells", "1"],
            "nasbench201",
        ),
    ],
)
def test_methods_and_spaces(
    place: Path, tmp_path: Path, cli: Callable, no_onnx: None, options: list[str], kind: str
) -> None:
    result = cli(
        "search", *options, "--data", place / "data.npz", "--channels", "2", "--steps", "8", "--batch-size", "18",
        "--no-onnx", "--json", "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["space"]["kind"] == kind
    assert (record["space"]["classes"], record["space"]["in_channels"]) == (3, 1)
    assert record["space"].get("factorized") == {"darts": False}.get(kind)
    if "--memory-gib" in options:
        assert record["settings"]["memory"]["bound"] == 2**29 == record["rounds"][0]["bound_bytes"]
    if "--alpha" in options:
        assert record["settings"]["reward"] == {"form": "mixed", "alpha": 0.5, "shares": {"macs": 1.0}}
    if "--trials" in options:
        assert len(record["trials"]) == int(options[options.index("--trials") + 1])


def test_a_search_under_a_measured_limit(place: Path, tmp_path: Path, cli: Callable, no_onnx: None) -> None:
    result = cli(
        "search", "--space", f"{place / 'space.py'}:Space", "--data", place / "data.npz", "--steps", "8",
        "--batch-size", "18", "--limit", "latency_ms=1000", "--no-onnx", "--json", "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["limit"]["cost"] == "latency"
    assert record["space"] == {"kind": f"{place / 'space.py'}:Space", "classes": 3}
    again = cli("resume", tmp_path / "run", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == record


def test_stopped_and_resumed_is_the_search_never_stopped(
    place: Path, tmp_path: Path, cli: Callable, no_onnx: None
) -> None:
    arguments = [
        *("search", "--space", f"{place / 'space.py'}:Space", "--data", place / "data.npz", "--steps", "12"),
        *("--batch-size", "18", "--limit", "macs=0.9", "--threads", "1", "--no-onnx", "--out"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "JOB_STOP_AT": "9", "JOB_STOP_BY": str(int(signal.SIGTERM))}
    command = [sys.executable, "-m", "archgrad", *map(str, [*arguments, tmp_path / "run"])]
    stopped = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert stopped.returncode == 143, stopped.stderr
    assert f"archgrad resume {tmp_path / 'run'}" in stopped.stderr
    assert not (tmp_path / "run" / "architecture.json").exists()
    assert cli("resume", tmp_path / "run").exit_code == 0
    assert cli(*arguments, tmp_path / "whole").exit_code == 0
    for name in ("network.safetensors", "architecture.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--method", "unass"],
            "'unass' was given. Did you mean unas? Allowed are unas, darts, darts_prime",
        ),
        (["--method", "dnal"], "dnal slims a network that you have: archgrad slim"),
        (
            ["--space", "dart"],
            "space 'dart' is not known. Did you mean darts? Allowed are darts, nasbench201, mobile",
        ),
        (["--space", "timm:resnet18"], "is not known"),
        (["--trials", "3"], "trials=3 goes with --method monas"),
        (["--method", "darts", "--shared"], "shared goes with --method random_search"),
        (["--workers", "2"], "workers=2 goes with --method monas or multimodal_random or random_search"),
        (["--method", "monas", "--workers", "0"], "--workers: '0' was given"),
        (["--method", "monas", "--workers", "rays"], "--workers: 'rays' was given"),
        (["--alpha", "0.5"], "alpha=0.5 goes with --method monas"),
        (["--method", "monas", "--alpha", "1.5"], "--alpha: 1.5 was given"),
        (["--memory-gib", "2"], "memory_gib=2.0 goes with --method radars"),
        (["--method", "radars", "--memory-gib", "1e-6"], "the least bound that works is"),
        (["--space", "mobile", "--factorized"], "only the space darts has a factorized and a published form"),
        (["--published"], "UNAS samples one candidate for each choice"),
        (["--method", "darts", "--limit", "latency_ms=4"], "archgrad.unas, which measures sampled networks"),
        (["--space", "nasbench201", "--limit", "macs=100"], "at most 100 MACs: the lowest reachable is"),
        (["--limit", "macs=0"], "a fraction is above 0"),
        (["--cells", "0"], "--cells: 0 was given"),
        (["--channels", "0"], "--channels: 0 was given"),
        (["--search-fraction", "0"], "--search-fraction: 0.0 was given"),
        (["--search-fraction", "1.5"], "--search-fraction: 1.5 was given"),
        (["--device", "tpu"], "device='tpu' was given"),
    ],
)
def test_options_that_are_refused(
    place: Path, tmp_path: Path, refused: Refused, options: list[str], said: str
) -> None:
    message = refused("search", "--data", place / "data.npz", *SEARCH, "--out", tmp_path / "run", *options)
    assert said in message
    # So that the same command with other options may take the folder.
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("net.py:Net", "has no choice to search"),
        ("space.py:differ", "candidates of choice 'last' differ in output shape (one: (2, 8, 8, 8), wide: (2, 16"),
        ("space.py:namesakes", "choices named 'op' are one decision, but differ: OpChoice of 3 ['one', 'three"),
        ("space.py:five", "the network's output is [2, 5], but the data has 3 classes"),
        ("space.py:Spaces", "has no 'Spaces'. It defines conv, Space"),
        ("none.py:Space", "there is no file"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["unas", "random_search"])
def test_spaces_that_are_refused(
    place: Path, tmp_path: Path, refused: Refused, space: str, said: str, method: str
) -> None:
    message = refused(
        "search", "--method", method, "--space", str(place / space), "--data", place / "data.npz", "--steps", "2",
        "--batch-size", "18", "--out", tmp_path / "run",
    )  # fmt: skip
    assert said in message


def test_a_space_of_ones_own_has_its_own_size(place: Path, tmp_path: Path, refused: Refused) -> None:
    space = f"{place / 'space.py'}:Space"
    message = refused("search", "--space", space, "--data", place / "data.npz", *SEARCH, "--out", tmp_path / "run")
    assert "cells and channels are for darts, nasbench201, mobile" in message


def test_data_that_is_refused(tmp_path: Path, refused: Refused) -> None:
    np.savez(tmp_path / "vectors.npz", x=np.zeros((30, 7), np.float32), y=np.arange(30) % 3)
    message = refused("search", "--data", tmp_path / "vectors.npz", "--out", tmp_path / "run")
    assert "the space darts takes images [B, C, H, W], and the data's samples have the shapes [[1, 7]]" in message
    assert "DATA is missing" in refused("search", "--out", tmp_path / "run")
    assert "no such file or folder" in refused("search", "--data", tmp_path / "none", "--out", tmp_path / "run")


def test_a_folder_with_another_run_is_refused(searched: Path, place: Path, refused: Refused) -> None:
    message = refused("search", "--data", place / "data.npz", *SEARCH, "--seed", "1", "--out", searched)
    assert f"{searched} holds another run. It differs in" in message
    assert "seed (given 1, there 0)" in message
    # What a refused command must not do.
    assert (searched / "run.json").exists()
