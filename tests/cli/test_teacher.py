"""--distill: what teaches, what is refused, and what the report says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

Refused = Callable[..., str]
SMALL = ("--steps", "10", "--batch-size", "18", "--no-onnx")


pytestmark = pytest.mark.usefixtures("no_onnx")


@pytest.fixture
def net(place: Path) -> str:
    return f"{place / 'net.py'}:Net"


@pytest.mark.parametrize("command", ["slim by itself", "slim by another", "train", "search"])
def test_every_command_that_trains_takes_a_teacher(
    command: str, net: str, place: Path, trained_weights: Path, tmp_path: Path, cli: Callable
) -> None:
    teacher, data, out = (
        ("--teacher", net, "--teacher-weights", trained_weights),
        place / "data.npz",
        tmp_path / "run",
    )
    arguments = {
        "slim by itself": ("slim", net, data, "--weights", trained_weights, "--limit", "macs=0.5"),
        "slim by another": ("slim", net, data, *teacher, "--limit", "macs=0.5"),
        "train": ("train", net, data, *teacher),
        "search": ("search", "--data", data, "--space", f"{place / 'space.py'}:Space", "--method", "random_search",
                   "--trials", "2", *teacher),
    }[command]  # fmt: skip
    result = cli(*arguments, *SMALL, "--distill", "--temperature", "2", "--distill-weight", "0.3", "--out", out)
    assert result.exit_code == 0, result.output
    record = json.loads((out / "record.json").read_text())
    assert record["data"]["distillation"]["temperature"] == 2
    assert record["data"]["distillation"]["weight"] == 0.3
    # The data are easy: the teacher is at its best, so the student may be level with it.
    said = [note for note in record["notes"] if "the teacher is no better" in note]
    assert len(said) <= 1


def test_the_report_says_where_the_teacher_is_no_better(
    net: str, place: Path, trained_weights: Path, tmp_path: Path, cli: Callable
) -> None:
    # A teacher of weights that are half noise knows less than the student will.
    state = safetensors.torch.load_file(trained_weights)
    torch.manual_seed(0)
    state["last.weight"] += 0.8 * state["last.weight"].std() * torch.randn_like(state["last.weight"])
    safetensors.torch.save_file(state, tmp_path / "worse.safetensors")
    out = tmp_path / "run"
    result = cli(
        "train", net, place / "data.npz", "--distill", "--teacher", net, "--teacher-weights",
        tmp_path / "worse.safetensors", "--distill-weight", "0.1", "--epochs", "10", "--batch-size", "18",
        "--optimizer", "adam", "--no-onnx", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "the teacher is no better than the network it taught" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--teacher", "NET"], "teacher=NET goes with --distill"),
        (["--temperature", "2"], "temperature=2.0 goes with --distill"),
        (["--distill"], "distill was given without a teacher"),
        (["--distill", "--teacher-weights", "w.pt"], "goes with --teacher MODEL"),
        (["--distill", "--teacher", "NET", "--distill-weight", "0"], "--distill-weight"),
        (["--distill", "--teacher", "NET", "--teacher-weights", "w.pt"], "there is no such file"),
        (["--distill", "--teacher", "NET"], "the teacher cannot be trained"),
        (["--distill", "--teacher", "FIVE"], "the teacher cannot be used"),
    ],
)
def test_teachers_that_make_no_sense_are_refused(
    options: list[str], said: str, net: str, place: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "five.py").write_text(
        "import torch\nfive = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))\n"
    )
    names = {"NET": net, "FIVE": f"{tmp_path / 'five.py'}:five"}
    given = [names.get(option, option) for option in options]
    message = refused("train", net, place / "data.npz", *SMALL, *given, "--out", tmp_path / "run")
    assert said.replace("NET", net) in message
    assert not (tmp_path / "run" / "run.json").exists()


def test_slim_without_weights_has_no_teacher_of_its_own(
    net: str, place: Path, tmp_path: Path, refused: Refused
) -> None:
    message = refused("slim", net, place / "data.npz", *SMALL, "--distill", "--out", tmp_path / "run")
    assert "or --weights FILE, and MODEL itself is the teacher" in message
