"""`archgrad slim`: what it writes and prints, and every input that it refuses."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import archgrad as ag
from archgrad.choices.architecture import Architecture
from archgrad.cli.inputs.models import load
from archgrad.costs.count import macs

Refused = Callable[..., str]


def test_the_folder_holds_everything(slimmed: Path) -> None:
    names = {path.name for path in slimmed.iterdir()}
    assert names >= {
        "command.json", "architecture.json", "network.safetensors", "network.pt2", "record.json",
        "history.jsonl", "report.html", "run.json",
    }  # fmt: skip
    command = json.loads((slimmed / "command.json").read_text())
    assert command["command"] == "slim"
    assert command["options"]["limit"] == ["macs=0.5"]
    assert command["options"]["epochs"] == 6
    assert Architecture.load(slimmed / "architecture.json")
    network = torch.export.load(slimmed / "network.pt2").module()
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_the_limit_is_kept(slimmed: Path, place: Path) -> None:
    record = json.loads((slimmed / "record.json").read_text())
    whole = macs(torch.zeros(1, 1, 8, 8)).of(load(f"{place / 'net.py'}:Net", classes=3, example=torch.zeros(1)))
    assert record["before"]["macs"] == whole
    assert record["after"]["macs"] <= 0.5 * whole


def test_json_prints_one_object_and_nothing_else(place: Path, tmp_path: Path, cli: Callable, no_onnx: None) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {place / 'data.npz'}\nbatch_size: 18\nepochs: 50\nlimit: params=0.6\nonnx: false\n")
    result = cli(
        "slim", f"{place / 'net.py'}:talks", "--config", config, "--epochs", "2", "--gate-epochs", "1",
        "--sparsity", "2", "--keep", "second", "--augment", "flip,crop=1", "--json", "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["after"]["params"] <= 0.6 * record["before"]["params"]
    assert record["data"]["augmentation"] == ["flip()", "crop(1)"]
    assert record["run"]["epochs"] == 2
    assert "kept at your wish" in str(record["frozen"])
    assert "made by talks" in result.stderr


def test_several_limits_hold_at_once(place: Path, tmp_path: Path, cli: Callable, no_onnx: None) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("limit: {macs: 0.6, params: 0.5}\nround_to: 1\nonnx: false\nbatch_size: 18\nsteps: 12\n")
    given = f"{place / 'net.py'}:Net", place / "data.npz", "--config", config, "--out", tmp_path / "run"
    plan = cli("slim", *given, "--dry-run").stdout
    assert re.search(r"limit: +at most [\d,]+ MACs; at most [\d,.]+ parameters", plan), plan
    result = cli("slim", *given, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    for name, fraction in (("macs", 0.6), ("params", 0.5)):
        assert record["after"][name] <= fraction * record["before"][name]
    assert {record["limit"]["cost"], *(other["cost"] for other in record["limit"]["others"])} == {"macs", "params"}
    assert "(free)" in plan and "(holds this run, finished)" in cli("slim", *given, "--dry-run").stdout
    (tmp_path / "run" / "record.json").unlink()
    assert "(holds this run: it would go on)" in cli("slim", *given, "--dry-run").stdout


def test_a_front_and_the_smallest_within_so_many_points(
    place: Path, tmp_path: Path, cli: Callable, no_onnx: None
) -> None:
    given = [f"{place / 'net.py'}:Net", place / "data.npz", "--steps", "20", "--batch-size", "18", "--no-onnx"]
    front = cli("slim", *given, "--limit", "macs=0.5,80%", "--out", tmp_path / "front")
    assert front.exit_code == 0, front.output
    assert "a folder for each: macs-0.8, macs-0.5" in front.stdout
    record = json.loads((tmp_path / "front" / "record.json").read_text())
    assert [row["name"] for row in record["baselines"]] == ["whole", "macs-0.8", "macs-0.5"]
    assert torch.export.load(tmp_path / "front" / "macs-0.5" / "network.pt2")
    # 100 points: anything will do, so that the smallest is taken; and the same command goes on with the same run.
    for _ in range(2):
        one = cli("slim", *given, "--limit", "macs=0.5,80%", "--within", "100", "--out", tmp_path / "one")
        assert one.exit_code == 0, one.output
    assert "within 100 points of the whole network: macs=0.5" in one.stdout
    chosen = json.loads((tmp_path / "one" / "record.json").read_text())
    assert chosen["after"]["macs"] == record["baselines"][2]["macs"] <= 0.5 * chosen["before"]["macs"]
    assert Architecture.load(tmp_path / "one" / "architecture.json")
    plan = cli("slim", *given, "--within", "0.5", "--dry-run").stdout
    assert len(re.findall(r"at most [\d,]+ MACs", plan)) == 3, plan


def test_weights_skip_the_first_stage_unless_retrained(
    place: Path, tmp_path: Path, cli: Callable, no_onnx: None
) -> None:
    trained = load(f"{place / 'net.py'}:Net", classes=3, example=torch.zeros(1))
    safetensors.torch.save_model(trained, str(tmp_path / "w.safetensors"))
    phases = {}
    for flag in ("--pretrained", "--retrain"):
        out = tmp_path / flag.strip("-")
        result = cli(
            "slim", f"{place / 'net.py'}:Net", place / "data.npz", "--weights", tmp_path / "w.safetensors",
            flag if flag == "--retrain" else "--no-check-weights", "--steps", "20", "--batch-size", "18", "--no-onnx",
            "--limit", "macs=90%", "--out", out,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        phases[flag] = [json.loads(line)["phase"] for line in (out / "history.jsonl").read_text().splitlines()]
    assert "weights" not in phases["--pretrained"]
    assert "weights" in phases["--retrain"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--limit", "macs=0"], "above 0 and at most 1"),
        (["--limit", "macs=1.5"], "neither a fraction"),
        (["--limit", "macs=lots"], "not a number"),
        (["--limit", "macs=10"], "the lowest reachable is"),
        (["--limit", "macs=0.0001"], "the lowest reachable is"),
        (["--limit", "macs=0.5", "--limit", "params=0.0001"], "the lowest reachable is"),
        (["--limit", "macs=0.7,0.5", "--limit", "params=0.5"], "a front, which has one cost alone"),
        (["--limit", "macs=0.7,2M"], "a front has fractions"),
        (["--limit", "latency_ms=4,3"], "a front has fractions"),
        (["--limit", "macs=0.7,"], "not a number"),
        (["--limit", "macs=0.7,70%"], "names a fraction twice"),
        (["--limit", "macs=0.7,0.0001"], "the lowest reachable is"),
        (
            ["--limit", "macs=0.5", "--within", "0.5"],
            "within=0.5 chooses among several budgets, and limit=macs=0.5 is",
        ),
        (["--within", "-1"], "--within: -1.0 was given"),
        (["--within", "0.5", "--sparsity", "2"], "sparsity=2.0 goes with one network; a front has several"),
        (["--round-to", "0"], "'0' is no multiple. Give a whole number from 1 up, or auto"),
        (["--limit", "macs=0.5", "--round-to", "auto"], 'round_to="auto" measures in the runtime of a limit'),
        (["--keep", "third"], "--keep third: the network has no such layer"),
        (["--device", "tpu"], "device='tpu' was given. Available are auto, cpu"),
        (["--precision", "8"], "Allowed are 32-true"),
        (["--epochs", "0"], "--epochs: 0 was given"),
        (["--epochs", "x"], "--epochs"),
        (["--epoch", "3"], "--epoch"),
        (["--size", "8"], "size and skip_corrupt are for folders of images"),
        (["--steps", "1"], "would train the gates"),
        (["--out", ""], "--out: '' was given"),
        (["--weights", "none.safetensors"], "there is no such file"),
        (["--config", "none.yaml"], "none.yaml cannot be read"),
    ],
)
def test_options_that_are_refused(
    place: Path, tmp_path: Path, refused: Refused, options: list[str], said: str
) -> None:
    message = refused(
        "slim",
        f"{place / 'net.py'}:Net",
        place / "data.npz",
        "--batch-size",
        "18",
        "--out",
        tmp_path / "run",
        *options,
    )
    assert said in message
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("no_such_package.net:Net", "there is no module 'no_such_package'"),
        ("none.py:Net", "there is no file"),
        ("PLACE/net.py:Nett", "has no 'Nett'"),
        ("PLACE/net.py:fails", "raised LookupError: no such thing"),
        ("PLACE/net.py:Breaks", "ZeroDivisionError"),
        ("PLACE/net.py:Wide", "fails on a batch of shape [2, 1, 8, 8]"),
        ("archgrad.demo:DigitsCNN", "the data has 3 classes"),
    ],
)
def test_models_that_are_refused(place: Path, tmp_path: Path, refused: Refused, model: str, said: str) -> None:
    message = refused("slim", model.replace("PLACE", str(place)), place / "data.npz", "--out", tmp_path / "run")
    assert said in message
    if "Breaks" in model or "Wide" in model or "fails" in model:
        assert f"{place / 'net.py'}, line" in message


def test_data_that_is_refused(place: Path, tmp_path: Path, refused: Refused) -> None:
    model = f"{place / 'net.py'}:Net"
    x = np.zeros((12, 1, 8, 8), np.float32)
    np.savez(tmp_path / "one.npz", x=x, y=np.zeros(12, int))
    np.savez(tmp_path / "range.npz", x_train=x, y_train=np.arange(12) % 3, x_valid=x[:2], y_valid=[2, 7])
    np.savez(tmp_path / "negative.npz", x=x, y=np.arange(12) % 3 - 1)
    (tmp_path / "data.csv").write_text("1,2\n")
    for name, said in {
        "none.npz": "no such file or folder",
        "data.csv": "is not read. Data may be",
        "one.npz": "only one class",
        "range.npz": "labels 7 are outside",
        "negative.npz": "label -1 is negative",
    }.items():
        assert said in refused("slim", model, tmp_path / name, "--out", tmp_path / "run")


def test_folders_of_images_that_are_refused_or_read(
    place: Path, tmp_path: Path, refused: Refused, cli: Callable, no_onnx: None
) -> None:
    model = f"{place / 'net.py'}:Net"
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 255, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.png")
    (tmp_path / "images" / "fish").mkdir()
    arguments = ("slim", model, tmp_path / "images", "--batch-size", "6", "--out", tmp_path / "run")
    assert "fish: this class folder has no images" in refused(*arguments)
    (tmp_path / "images" / "fish").rmdir()
    bad = tmp_path / "images" / "cat" / "bad.png"
    bad.write_bytes((tmp_path / "images" / "cat" / "0.png").read_bytes()[:40])
    assert f"1 of 25 images cannot be read: {bad}" in refused(*arguments)
    result = cli(*arguments, "--skip-corrupt", "--steps", "6", "--no-onnx", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["data"]["skipped"] == [str(bad)]
    cli("init", model, tmp_path / "images", "--skip-corrupt", "--out", tmp_path / "mine")
    plan = cli("slim", "--config", tmp_path / "mine" / "slim.yaml", "--batch-size", "6", "--dry-run", "--json")
    assert plan.exit_code == 0, plan.output
    (made,) = (line for line in (tmp_path / "mine" / "slim.py").read_text().split("\n") if line.startswith("task ="))
    scope = {"ag": ag}
    exec(made, scope)
    assert scope["task"].splits["skipped"] == [str(bad)]


def test_a_folder_with_another_run_is_refused(slimmed: Path, place: Path, refused: Refused) -> None:
    message = refused(
        "slim", f"{place / 'net.py'}:Net", place / "data.npz", "--epochs", "7", "--limit", "macs=0.5",
        "--batch-size", "18", "--threads", "1", "--out", slimmed,
    )  # fmt: skip
    assert f"{slimmed} holds another run. It differs in epochs (given 7, there 6)." in message
    assert f"archgrad resume {slimmed}" in message


def test_a_folder_that_cannot_be_made_is_refused(place: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("")
    message = refused("slim", f"{place / 'net.py'}:Net", place / "data.npz", "--out", tmp_path / "file" / "run")
    assert "cannot be created" in message


def test_onnx_asked_for_without_the_extra_is_refused(
    place: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = refused("slim", f"{place / 'net.py'}:Net", place / "data.npz", "--onnx", "--out", tmp_path / "run")
    assert "pip install 'archgrad[export]'" in message


def test_traceback_raises_for_developers(place: Path, tmp_path: Path, cli: Callable) -> None:
    with pytest.raises(Exception, match="no such file or folder"):
        cli("--traceback", "slim", f"{place / 'net.py'}:Net", tmp_path / "none.npz")


def test_the_normalization_of_trained_weights_is_asked_for(
    place: Path, tmp_path: Path, cli: Callable, refused: Refused
) -> None:
    """Where the weights do better by another one, no command guesses."""
    # Bright squares on a dark ground, of which one in three has a class: 0, 1 or 2 by its brightness.
    generator, y = torch.Generator().manual_seed(0), torch.arange(120) % 3
    x = (40 + 80 * y[:, None, None, None] + 10 * torch.randn(120, 1, 8, 8, generator=generator)).clamp(0, 255).byte()
    np.savez(tmp_path / "images.npz", x=x.numpy(), y=y.numpy())
    weights = tmp_path / "w.safetensors"
    trained = cli(
        "train", f"{place / 'net.py'}:Net", tmp_path / "images.npz", "--normalize", "none", "--epochs", "20",
        "--batch-size", "24", "--optimizer", "adam", "--no-onnx", "--out", tmp_path / "trained",
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    (tmp_path / "trained" / "network.safetensors").rename(weights)
    command = ["slim", f"{place / 'net.py'}:Net", tmp_path / "images.npz", "--weights", weights, "--steps", "20",
               "--batch-size", "24", "--no-onnx", "--limit", "macs=90%", "--out", tmp_path / "run"]  # fmt: skip
    assert "not how the images that they were trained on were normalized" in refused(*command)
    assert not (tmp_path / "run" / "run.json").exists()
    said = refused(*command, "--normalize", "0.0/0.00392")
    assert "seem to know nothing" in said
    assert "--no-check-weights" in said
    assert not (tmp_path / "run" / "run.json").exists()
    plan = [*command, "--dry-run", "--normalize"]
    assert "and 1 by none. Is it what their images were normalized by?" in cli(*plan, "0.25/1.0").stderr
    result = cli(*command, "--normalize", "none")
    assert result.exit_code == 0, result.output
    assert "Is it what" not in result.stderr
    assert "given weights, before anything was trained: accuracy" in result.stdout.splitlines()[1]
    assert "given weights" in result.stderr
