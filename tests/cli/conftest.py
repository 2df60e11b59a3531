"""A small network, small data, and the command line run in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from archgrad.cli.app import app

MODEL = """
import os, signal
import torch
from torch import nn

CALLS = [0]

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, classes)

    def forward(self, x):
        if self.training and "JOB_STOP_AT" in os.environ:
            CALLS[0] += 1
            if CALLS[0] == int(os.environ["JOB_STOP_AT"]):
                os.kill(os.getpid(), int(os.environ["JOB_STOP_BY"]))
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.second(x)).mean((2, 3)))

class Wide(Net):
    def __init__(self, classes=3):
        super().__init__(classes)
        self.last = nn.Linear(16, classes)

def talks(classes):
    print("made by talks")
    return Net(classes)

def fails():
    raise LookupError("no such thing")

def needs(width):
    return Net()

class Breaks(Net):
    def forward(self, x):
        raise ZeroDivisionError("in forward")

instance = Net()
number = 3
"""

SPACE = """
import os, signal
import torch
from torch import nn
from archgrad import OpChoice

CALLS = [0]

def conv(width, kernel):
    return nn.Sequential(nn.Conv2d(8, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width))

class Space(nn.Module):
    def __init__(self, in_channels, classes, second=("one", "three", "skip")):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, padding=1)
        kinds = {"one": conv(8, 1), "three": conv(8, 3), "skip": nn.Identity(), "wide": conv(16, 3)}
        self.first = OpChoice({name: kinds[name] for name in ("one", "three", "skip")}, name="op")
        self.second = OpChoice({name: kinds[name] for name in second}, name="op" if len(second) < 3 else "last")
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        if self.training and "JOB_STOP_AT" in os.environ:
            CALLS[0] += 1
            if CALLS[0] == int(os.environ["JOB_STOP_AT"]):
                os.kill(os.getpid(), int(os.environ["JOB_STOP_BY"]))
        return self.head(self.second(torch.relu(self.first(self.stem(x)))).mean((2, 3)))

def differ(in_channels, classes):
    return Space(in_channels, classes, second=("one", "wide", "skip"))

def namesakes(in_channels, classes):
    return Space(in_channels, classes, second=("one", "skip"))

def five(in_channels):
    return Space(in_channels, 5)
"""


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.py, space.py and data.npz."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "net.py").write_text(MODEL)
    (folder / "space.py").write_text(SPACE)
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = rng.normal(size=(90, 1, 8, 8)) + y[:, None, None, None]
    np.savez(folder / "data.npz", x=x.astype(np.float32), y=y)
    return folder


def invoke(*arguments: str | Path) -> Result:
    """The command line, in this process; what it raises and does not explain fails the test."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="archgrad")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def cli() -> Callable[..., Result]:
    return invoke


@pytest.fixture
def refused() -> Callable[..., str]:
    """Run a command that must end with status 2 and a message; returns the message."""

    def run(*arguments: str | Path) -> str:
        result = invoke(*arguments)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        assert result.stdout == ""
        return " ".join(result.stderr.split())

    return run


@pytest.fixture(scope="session")
def slimmed(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `archgrad slim`."""
    out = tmp_path_factory.mktemp("slimmed") / "run"
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        result = invoke("slim", f"{place / 'net.py'}:Net", place / "data.npz", *SLIM, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session")
def searched(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `archgrad search`, by UNAS in the factorized cells."""
    out = tmp_path_factory.mktemp("searched") / "run"
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        result = invoke("search", "--data", place / "data.npz", *SEARCH, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"archgrad train {out}/architecture.json DATA --cells 20" in result.stdout
    return out


SEARCH = [
    *("--cells", "3", "--channels", "2", "--steps", "8", "--batch-size", "18", "--threads", "1", "--no-onnx"),
]
SLIM = ["--limit", "macs=0.5", "--epochs", "6", "--batch-size", "18", "--threads", "1", "--no-onnx"]


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting for the clock takes seconds, and is not what most tests are about."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)


@pytest.fixture(autouse=True)
def same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(scope="session")
def trained_weights(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained weights of Net on data.npz."""
    out = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        result = invoke(
            "train", f"{place / 'net.py'}:Net", place / "data.npz", "--epochs", "10", "--batch-size", "18",
            "--optimizer", "adam", "--no-onnx", "--out", out,
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    return out / "network.safetensors"
