"""`archgrad search --method freenas`: without data, with a table beside it, stopped and resumed, and refusals."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import archgrad as ag
from archgrad.cli.commands.methods import described
from archgrad.tasks.tabular_benchmark import Tabular

SMALL = ("--space", "nasbench201", "--cells", "1", "--channels", "2", "--size", "8", "--threads", "1", "--no-onnx")
OWN = """
import os, signal
import torch
from torch import nn
from archgrad import OpChoice

CALLS = [0]

class Space(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.first, self.second = (OpChoice(self.kinds(), name=name) for name in ("first", "second"))
        self.head = nn.Linear(8, classes)

    def kinds(self):
        return {"one": nn.Conv2d(8, 8, 1), "three": nn.Conv2d(8, 8, 3, padding=1), "skip": nn.Identity()}

    def forward(self, x):
        CALLS[0] += 1
        if CALLS[0] == int(os.environ.get("JOB_STOP_AT", -1)):
            os.kill(os.getpid(), signal.SIGTERM)
        return self.head(torch.relu(self.second(torch.relu(self.first(self.stem(x))))).mean((2, 3)))

def nan(in_channels, classes):
    space = Space(in_channels, classes)
    nn.init.constant_(space.head.weight, float("nan"))
    return space

def half(in_channels, classes):
    return Space(in_channels, classes).half()

def meta(in_channels, classes):
    return Space(in_channels, classes).to("meta")

class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.choice = OpChoice({"skip": nn.Identity(), "relu": nn.ReLU()}, name="choice")

    def forward(self, x):
        return self.choice(x)
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a space, data, and tables, whole and not."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "own.py").write_text(OWN)
    codes = np.array(list(itertools.product(range(5), repeat=6)))
    accuracy = 40 + np.array([0.0, 3.0, 5.0, 8.0, 2.0])[codes].sum(1)
    np.savez(folder / "table.npz", ops=codes, cifar10_test_e200=accuracy)
    np.savez(folder / "part.npz", ops=codes[:40], cifar10_test_e200=accuracy[:40])
    (folder / "damaged.npz").write_bytes((folder / "table.npz").read_bytes()[:5000])
    np.savez(folder / "data.npz", x=np.ones((30, 1, 8, 8), np.float32), y=np.arange(30) % 3)
    return folder


def free(cli: Callable, *arguments: object, out: Path) -> dict:
    result = cli("search", "--method", "freenas", *arguments, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_freenas_is_listed() -> None:
    (row,) = [row for row in described() if row["name"] == "freenas"]
    assert "without data" in row["purpose"] and "2106.11542" in row["paper"]


def test_without_data_the_folder_holds_everything(tmp_path: Path, cli: Callable) -> None:
    record = free(cli, *SMALL, "--seeds", "2", "--rounds", "3", "--classes", "7", out=tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "command.json", "architecture.json", "network.safetensors", "network.pt2", "record.json", "history.jsonl",
        "report.html", "run.json", "cell.svg",
    }  # fmt: skip
    assert record["settings"] | {"rounds": 3, "norm": "off", "seeds": 2} == record["settings"]
    assert record["space"]["classes"] == 7 and len(record["draws"]) == 2
    assert "not the best network" in " ".join(record["notes"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Scores of the candidates, untrained" in page and "One candidate" in page and "What was found" not in page
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1] and all(0 <= row["agreement"] <= 1 for row in rows)
    again = cli("resume", tmp_path / "run", "--json")
    assert json.loads(again.stdout) == record
    found = ag.freenas(
        (torch.manual_seed(0), ag.nasbench201_cells(channels=2, cells=1, classes=7))[1],
        ag.Run(seed=0, device="cpu", progress=False),
        example=torch.ones(1, 3, 8, 8), rounds=3, seeds=2,
    )  # fmt: skip
    assert found.record["scores"] == record["scores"]


def test_of_data_only_the_shape_counts(bench: Path, tmp_path: Path, cli: Callable) -> None:
    given = ("--space", "nasbench201", "--cells", "1", "--channels", "2", "--seeds", "1", "--threads", "1")
    given = (*given, "--no-onnx")
    record = free(cli, *given, "--data", bench / "data.npz", out=tmp_path / "data")
    assert (record["space"]["classes"], record["space"]["in_channels"]) == (3, 1)
    bare = free(cli, *given, "--size", "8", "--classes", "3", "--in-channels", "1", out=tmp_path / "bare")
    assert record["scores"] == bare["scores"]


@pytest.mark.parametrize("space", ["darts", "mobile", "own"])
def test_freenas_in_every_space(bench: Path, tmp_path: Path, cli: Callable, space: str) -> None:
    size = ("--size", "16", "--cells", "3" if space == "darts" else "1", "--channels", "2")
    kind = f"{bench / 'own.py'}:Space" if space == "own" else space
    given = ("--space", kind, *(size if space != "own" else ()), "--limit", "macs=0.8", "--seeds", "1")
    record = free(cli, *given, "--threads", "1", "--no-onnx", out=tmp_path / "run")
    assert record["space"]["kind"] == kind and record["limit"]["reached"] <= record["limit"]["bound"]
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()


def test_a_table_judges_and_does_not_decide(bench: Path, tmp_path: Path, cli: Callable) -> None:
    record = free(cli, *SMALL, "--seeds", "1", "--table", bench / "table.npz", out=tmp_path / "table")
    bare = free(cli, *SMALL, "--seeds", "1", out=tmp_path / "bare")
    assert record["architecture_text"] == bare["architecture_text"] and record["scores"] == bare["scores"]
    table = Tabular.load(bench / "table.npz")
    against = record["against"]
    assert against["found"][1] == table.score(record["architecture_text"])
    assert against["networks"] == 15625 and len(against["score"]) == len(against["accuracy"]) == 1000
    # Here the accuracies are sums over edges, and the scores nearly follow their order.
    assert against["spearman"] > 0.3
    assert {one["name"] for one in record["baselines"]} >= {"norm=off", "norm=train", "mean of all cells"}
    assert any("had no part in the decision" in note for note in record["notes"])
    page = (tmp_path / "table" / "report.html").read_text()
    assert "Scores of the cells against the table" in page and "The diamond is what was found" in page
    again = cli("resume", tmp_path / "table", "--json")
    assert json.loads(again.stdout) == record


def test_a_stopped_freenas_resumes_to_the_same_bits(bench: Path, tmp_path: Path, cli: Callable) -> None:
    given = ("search", "--method", "freenas", "--space", f"{bench / 'own.py'}:Space", "--threads", "1", "--no-onnx")
    command = [sys.executable, "-m", "archgrad", *given, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "JOB_STOP_AT": "7"}
    stopped = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert stopped.returncode == 143, stopped.stderr
    assert f"archgrad resume {tmp_path / 'run'}" in stopped.stderr
    assert not (tmp_path / "run" / "architecture.json").exists()
    assert cli("resume", tmp_path / "run").exit_code == 0
    assert cli(*given, "--out", tmp_path / "whole").exit_code == 0
    for name in ("network.safetensors", "architecture.json", "history.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", "3"], "epochs=3 is for methods that train, and freenas trains nothing"),
        (["--augment", "flip"], "augment=flip is for methods that train"),
        (["--rounds", "0"], "--rounds: 0 was given"),
        (["--norm", "of"], "'of' is not one of 'off', 'eval', 'train'"),
        (["--trials", "3"], "trials=3 goes with --method monas"),
        (["--method", "darts", "--norm", "eval", "--data", "x"], "norm=eval goes with --method freenas"),
        (["--method", "darts"], "DATA is missing"),
        (["--data", "x.npz", "--classes", "3"], "classes=3 goes without data; 'x.npz' says both"),
        (["--table-data", "cifar10"], "table_data=cifar10 goes with a table"),
        (["--limit", "macs=10"], "at most 10 MACs"),
        (["--device", "cuda:9"], "device='cuda:9' was given"),
    ],
)
def test_freenas_options_that_are_refused(
    tmp_path: Path, refused: Callable[..., str], options: list[str], said: str
) -> None:
    message = refused("search", "--method", "freenas", *SMALL, "--out", tmp_path / "run", *options)
    assert said in message.replace("│ ", "")
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("part.npz", "has 40 of 15,625 cells"),
        ("damaged.npz", "is damaged or not a .npz file"),
        ("data.npz", "has neither 'arch' (strings) nor 'ops'"),
        ("nowhere.npz", "no such file"),
    ],
)
def test_tables_that_freenas_refuses(
    bench: Path, tmp_path: Path, refused: Callable[..., str], file: str, said: str
) -> None:
    message = refused("search", "--method", "freenas", *SMALL, "--table", bench / file, "--out", tmp_path / "run")
    assert said in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("nan", "'head.weight' has NaN or infinite values"),
        ("half", "is torch.float16"),
        ("meta", "is on the meta device and has no values"),
        ("Bare", "has no weights of two or more dimensions"),
        ("None", "has no 'None'"),
    ],
)
def test_spaces_that_freenas_refuses(
    bench: Path, tmp_path: Path, refused: Callable[..., str], space: str, said: str
) -> None:
    given = ("--space", f"{bench / 'own.py'}:{space}", "--out", tmp_path / "run")
    assert said in refused("search", "--method", "freenas", *given)
