"""archgrad package: what is handed over runs where neither archgrad nor torch can be imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import invoke
from PIL import Image
from typer.testing import Result

from archgrad import files

pytest.importorskip("onnxruntime")
WITHOUT = (
    "import runpy, sys\n"
    "sys.modules.update(torch=None, archgrad=None)\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


def serve(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, str(folder / "predict.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Path:
    """A run on uint8 images of three classes, bright, dark and in between."""
    folder = tmp_path_factory.mktemp("images")
    y = np.arange(120) % 3
    x = np.random.default_rng(0).integers(0, 60, (120, 1, 8, 8)) + 90 * y[:, None, None, None]
    np.savez(folder / "data.npz", x=x.astype(np.uint8), y=y)
    arguments = [
        "--epochs",
        "12",
        "--batch-size",
        "20",
        "--optimizer",
        "adam",
        "--learning-rate",
        "0.02",
        "--no-onnx",
    ]
    result = invoke("train", f"{place / 'net.py'}:Net", folder / "data.npz", *arguments, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    return folder / "run"


def test_a_package_is_served_without_archgrad_and_torch(
    images: Path, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    out = tmp_path / "handed over"
    told = json.loads(cli("package", images, "--out", out, "--json").stdout)
    assert sorted(told["files"]) == sorted(path.name for path in out.iterdir())
    done = serve(out, "--test")
    assert done.returncode == 0 and "reproduced" in done.stdout, done.stderr
    for kind, level in enumerate((30, 120, 210)):
        Image.fromarray(np.full((16, 20), level, np.uint8)).save(tmp_path / "a.png")
        done = serve(out, tmp_path / "a.png")
        assert done.stdout.strip() == str(kind), done.stderr
    np.save(tmp_path / "a.npy", np.full((1, 1, 8, 8), 215, np.uint8))
    assert serve(out, tmp_path / "a.npy").stdout.strip() == "2"
    card = (out / "README.md").read_text()
    for said in (
        "accuracy",
        "train 72, valid 24, test 24",
        "0, 1, 2",
        "| input_0 | uint8 | B x 1 x 8 x 8 |",
        "Limits",
    ):
        assert said in card, said
    assert len((out / "predict.py").read_text().split("def read")[1].split("def predict")[0].splitlines()) <= 20
    cli("package", images, "--out", out)  # over a package it may be written again
    shades = np.concatenate([np.full((1, 1, 8, 8), 90 * i + 30, np.uint8) for i in (2, 0, 1)])
    np.save(tmp_path / "three.npy", shades)
    apart = []
    for i in range(3):
        np.save(tmp_path / "one.npy", shades[i : i + 1])
        apart += serve(out, tmp_path / "one.npy").stdout.split()
    assert serve(out, tmp_path / "three.npy").stdout.split() == apart and len(apart) == 3
    vector = dict(np.load(out / "test_vector.npz"))
    np.savez(out / "test_vector.npz", **vector | {"output_0": vector["output_0"] + 1})
    assert serve(out, "--test").returncode == 1  # the control


def test_an_int8_package(
    images: Path, tmp_path: Path, cli: Callable[..., Result], refused: Callable[..., str]
) -> None:
    assert "network.int8.onnx is missing" in refused("package", images, "--int8")
    assert cli("export", images, "--int8", "--max-drop", "50").exit_code == 0
    out = tmp_path / "small"
    assert cli("package", images, "--int8", "--out", out).exit_code == 0
    assert (out / "model.onnx").read_bytes() == (images / "network.int8.onnx").read_bytes()
    card = (out / "README.md").read_text()
    assert serve(out, "--test").returncode == 0 and "| latency, onnx |" in card
    # The run records what was quantized last: here another file, whose figures are not those of the one handed over.
    record = json.loads((images / "record.json").read_text())
    record["int8"] |= {"runtime": "executorch", "size_bytes": {"float": 9, "int8": 3}}
    (images / "record.json").write_text(json.dumps(record))
    assert cli("package", images, "--int8", "--out", tmp_path / "other").exit_code == 0
    card = (tmp_path / "other" / "README.md").read_text()
    assert "those of this file are not recorded" in card and "executorch" not in card


def test_what_cannot_be_packaged_is_refused(slimmed: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "no run folder" in refused("package", tmp_path / "none")
    (tmp_path / "mine.txt").write_text("mine")
    assert "holds other files" in refused("package", slimmed, "--out", tmp_path)
    assert [*tmp_path.iterdir()] == [tmp_path / "mine.txt"]


@pytest.mark.parametrize("name", ["model.onnx", "README.md"])
def test_what_a_killed_process_left_is_no_other_file(
    slimmed: Path, tmp_path: Path, cli: Callable[..., Result], name: str
) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (left := tmp_path / f".{name}.{files.pid_namespace()}.{child.pid}.partial").write_bytes(b"half")
    done = cli("package", slimmed, "--out", tmp_path)
    assert done.exit_code == 0 and not left.exists(), done.output


def test_a_network_of_floats_is_packaged_as_it_is(slimmed: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    out = tmp_path / "floats"
    assert cli("package", slimmed, "--out", out).exit_code == 0
    assert serve(out, "--test").returncode == 0
    np.save(tmp_path / "a.npy", np.zeros((1, 1, 8, 8), np.float32))
    assert serve(out, tmp_path / "a.npy").stdout.strip() in ("0", "1", "2")


def test_a_fixed_batch_is_told_and_wrong_calls_of_predict_say_how(place: Path, tmp_path: Path) -> None:
    (tmp_path / "fixed.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self, classes=3):\n"
        "        super().__init__()\n        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, classes)\n\n"
        "    def forward(self, x):\n        return self.last(self.first(x.reshape(len(x), -1)).relu())\n"
    )
    data, out = place / "data.npz", tmp_path / "run"
    done = invoke("train", f"{tmp_path / 'fixed.py'}:Net", data, "--steps", "2", "--batch-size", "18", "--out", out)
    assert done.exit_code == 0, done.output
    record = json.loads((out / "record.json").read_text())
    fixed = any(note.startswith("network.onnx: the batch size is fixed") for note in record["notes"])
    assert invoke("package", out, "--out", tmp_path / "handed").exit_code == 0
    card = (tmp_path / "handed" / "README.md").read_text()
    assert (" x 1 x 8 x 8" in card) and ("| 1 x 1 x 8 x 8" in card) == fixed
    assert (
        "usage" in serve(tmp_path / "handed").stderr.lower() or "predict.py FILE" in serve(tmp_path / "handed").stderr
    )


@pytest.mark.parametrize("name", ["README.md", "predict.py", "labels.json", "requirements.txt"])
def test_what_was_edited_is_kept(
    images: Path, tmp_path: Path, cli: Callable[..., Result], refused: Callable[..., str], name: str
) -> None:
    out = tmp_path / "out"
    for _ in range(2):  # the same once more is no harm
        cli("package", images, "--out", out)
    written = (out / name).read_text()
    (out / name).write_text(f"{written}of our own\n")
    assert f"other contents in {name}, and may hold what you filled in" in refused("package", images, "--out", out)
    assert (out / name).read_text().endswith("of our own\n")
    assert cli("package", images, "--out", out, "--force").exit_code == 0 and (out / name).read_text() == written


def test_a_model_card_has_no_notes_for_whoever_ran_it(
    images: Path, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    run = Path(shutil.copytree(images, tmp_path / "run"))
    record = json.loads((run / "record.json").read_text())
    noisy = {"eager": {"low_ms": 1.0, "median_ms": 2.0, "high_ms": 9.0}}
    record |= {"notes": ["a note of the run"], "after": {**record["after"], "latency_ms": noisy}}
    (run / "record.json").write_text(json.dumps(record))
    assert "note: a note" in (told := cli("report", run).stdout) and "is noisy" in told
    cli("package", run, "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "latency, eager" in card and "note" not in card and "noisy" not in card


def test_what_cannot_be_predicted_is_told_in_one_line(
    images: Path, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    cli("package", images, "--out", tmp_path / "package")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "long.npy", np.zeros((1, 3, 5), np.float32))
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    for arguments, told in (
        (("absent.png",), "there is no file absent.png"), ((), "usage: python predict.py FILE"),
        ((tmp_path / "text.png",), "as an image or an array"), ((tmp_path / "empty.npy",), "as an image or an array"),
        ((tmp_path / "long.npy",), "the model takes"), ((tmp_path / "objects.npy",), "as an image or an array"),
        ((tmp_path,), "as an image or an array"),
    ):  # fmt: skip
        done = serve(tmp_path / "package", *arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert len(done.stderr.splitlines()) == 1 and told in done.stderr, done.stderr
