"""train, export, report, methods, demo, and the front door."""

from __future__ import annotations

import json
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import safetensors.torch
import torch

import archgrad


def test_an_architecture_is_trained_from_fresh_weights(
    slimmed: Path, place: Path, tmp_path: Path, cli: Callable, no_onnx: None
) -> None:
    result = cli(
        "train", slimmed / "architecture.json", place / "data.npz", "--model", f"{place / 'net.py'}:Net",
        "--epochs", "1", "--batch-size", "18", "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    found = json.loads((slimmed / "record.json").read_text())
    for cost in ("macs", "params"):
        assert record["after"][cost] == found["after"][cost]
    assert "before" not in record
    trained = torch.export.load(tmp_path / "run" / "network.pt2").module()
    assert trained(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
    assert (tmp_path / "run" / "network.safetensors").read_bytes() != (slimmed / "network.safetensors").read_bytes()


def test_a_plain_network_is_trained(place: Path, tmp_path: Path, cli: Callable, no_onnx: None) -> None:
    arguments = (f"{place / 'net.py'}:Net", place / "data.npz", "--batch-size", "6", "--epochs", "12")
    result = cli("train", *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "Net trained" in result.stdout
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["after"]["accuracy"] >= 0.8
    again = cli("resume", tmp_path / "run", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["after"] == record["after"]


@pytest.mark.parametrize("step", ["evaluate", "latency", "macs"])
def test_what_follows_training_fails_alone(
    step: str, place: Path, tmp_path: Path, cli: Callable, no_onnx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no luck today")

    monkeypatch.setattr(f"archgrad.results.result.{step}", fail)
    arguments = (f"{place / 'net.py'}:Net", place / "data.npz", "--batch-size", "6", "--steps", "2")
    result = cli("train", *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert any("failed after training" in note and "no luck today" in note for note in record["notes"])
    assert (tmp_path / "run" / "network.safetensors").exists() and (tmp_path / "run" / "report.html").exists()
    assert ("accuracy" in record["after"]) == (step == "latency")


@pytest.mark.parametrize("broken", [float("nan"), -1.0])
def test_weights_that_are_no_numbers_are_refused_by_a_dry_run(
    broken: float, place: Path, tmp_path: Path, refused: Callable[..., str], trained_weights: Path
) -> None:
    state = safetensors.torch.load_file(trained_weights)
    name = next(
        n for n, t in state.items() if t.is_floating_point() and (broken != -1.0 or n.endswith("running_var"))
    )
    state[name].view(-1)[0] = broken
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    command = ("slim", f"{place / 'net.py'}:Net", place / "data.npz", "--dry-run", "--out", tmp_path / "run")
    assert "hold NaN or infinite numbers, or a negative variance" in refused(
        *command, "--weights", tmp_path / "w.safetensors"
    )


def test_train_refuses_what_does_not_go_together(
    slimmed: Path, place: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    architecture, data = slimmed / "architecture.json", place / "data.npz"
    out = ("--out", tmp_path / "run")
    net = f"{place / 'net.py'}:Net"
    assert "--model package.module:callable where it was slimmed" in refused("train", architecture, data, *out)
    assert "an architecture is a file that Architecture.save wrote" in refused(
        "train", tmp_path / "none.json", data, "--model", net, *out
    )
    assert "is for another space" in refused("train", architecture, data, "--model", net, "--keep", "first", *out)


def test_export_writes_a_checked_onnx_file(slimmed: Path, tmp_path: Path, cli: Callable) -> None:
    result = cli("export", slimmed, "--out", tmp_path / "small.onnx", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["largest_difference"] < 1e-4
    x = torch.randn(5, 1, 8, 8)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    got, labels = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    wanted = torch.export.load(slimmed / "network.pt2").module()(x)
    torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-4)
    assert labels.tolist() == got.argmax(1).tolist()


def test_export_refuses_what_is_missing_damaged_or_pickled(
    slimmed: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "There is no run folder" in refused("export", tmp_path / "none")
    assert "network.pt2 is missing" in refused("export", tmp_path)
    (tmp_path / "network.pt2").write_bytes(b"hello")
    assert "network.pt2 is damaged" in refused("export", tmp_path)
    shutil.copy(slimmed / "network.pt2", tmp_path / "network.pt2")
    with zipfile.ZipFile(tmp_path / "network.pt2", "a") as archive:
        archive.writestr("network/data/constants/custom_obj_0", b"pickled")
    assert "custom_obj_0), which can execute code" in refused("export", tmp_path)


def test_report_prints_the_table_and_draws_the_page(
    slimmed: Path, tmp_path: Path, cli: Callable, refused: Callable[..., str]
) -> None:
    page = slimmed / "report.html"
    before = page.read_text()
    page.unlink()
    result = cli("report", slimmed)
    assert result.exit_code == 0, result.output
    assert "MACs" in result.stdout
    assert str(page) in result.stdout
    assert page.read_text() == before
    assert "There is no run folder" in refused("report", tmp_path / "none")
    assert "record.json is missing" in refused("report", tmp_path)


def test_methods_are_described_by_their_own_headers(cli: Callable) -> None:
    rows = {row["name"]: row for row in json.loads(cli("methods", "--json").stdout)}
    assert list(rows) == [
        "unas",
        "darts",
        "darts_prime",
        "toponas",
        "radars",
        "monas",
        "multimodal_random",
        "nnilqr",
        "rl_darts",
        "random_search",
        "freenas",
        "dnal",
        "pruning_transfer",
    ]
    assert rows["dnal"]["purpose"].startswith("slim a network")
    papers = {"unas": "1912.07651", "darts": "1806.09055", "random_search": "1902.07638", "dnal": "2103.02126"}
    papers |= {"freenas": "2106.11542", "darts_prime": "2106.11655", "toponas": "2011.09300"}
    papers |= {"radars": "2109.05691", "monas": "1806.10332", "pruning_transfer": "2107.03375"}
    papers |= {"multimodal_random": "2003.01181"}
    papers |= {"nnilqr": "2011.10737", "rl_darts": "2106.02229"}
    for name, row in rows.items():
        assert papers[name] in row["paper"]
        assert row["paper"].endswith(")")
        assert row["purpose"]
        assert name in cli("methods").stdout


def test_version_and_help(cli: Callable, refused: Callable[..., str]) -> None:
    assert cli("--version").stdout == f"archgrad {archgrad.__version__}\n"
    for command in ("demo", "slim", "search", "score", "train", "export", "report", "resume", "methods"):
        assert command in cli("--help").stdout
        assert cli(command, "--help").exit_code == 0
    assert "dance" in refused("dance")


def test_help_shows_no_types_of_switches_and_short_ones_of_numbers(cli: Callable) -> None:
    for command in ((), ("slim",), ("export",), ("board",), ("latency",)):
        told = cli(*command, "--help").stdout
        assert not re.search(r"<(bool|int|float|str \| None)", told), told
    assert re.search(r"--epochs +N ", cli("slim", "--help").stdout)


@pytest.mark.parametrize("width", [60, 100, 160])
def test_methods_are_listed_in_the_width_of_the_terminal(
    cli: Callable, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = cli("methods").stdout.splitlines()
    assert 0.85 * width < max(map(len, lines)) <= width


def test_the_demo_slims_a_trained_network_beside_a_control(tmp_path: Path, cli: Callable, no_onnx: None) -> None:
    began = time.monotonic()
    result = cli("demo", "--out", tmp_path / "demo", "--seed", "1", "--epochs", "3")
    assert result.exit_code == 0, result.output
    assert time.monotonic() - began < 60
    record = json.loads((tmp_path / "demo" / "record.json").read_text())
    (control,) = record["baselines"]
    assert max(control["macs"], record["after"]["macs"]) <= 0.5 * record["before"]["macs"]
    assert record["given"] and control["name"] in (tmp_path / "demo" / "report.html").read_text()
    assert "archgrad slim mymodel.py:MyCNN" in result.stdout
