"""archgrad export: the network of a finished run as a file, in the forms that are asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from archgrad.cli import run_setup


def _run(path: Path, *inputs: np.ndarray) -> list[np.ndarray]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {slot.name: given for slot, given in zip(session.get_inputs(), inputs, strict=True)}
    return [np.asarray(output) for output in session.run(None, feed)]


def test_height_and_width_can_be_had_after_the_run(
    slimmed: Path, tmp_path: Path, cli: Callable[..., Result], refused: Callable[..., str]
) -> None:
    path = tmp_path / "open.onnx"
    told = json.loads(cli("export", slimmed, "--out", path, "--dynamic", "width,height", "--json").stdout)
    assert told["dynamic"] == ["batch", "height", "width"]
    network = torch.export.load(slimmed / "network.pt2").module()
    for shape in ((1, 1, 8, 8), (3, 1, 11, 20)):
        x = torch.randn(shape)
        assert np.allclose(_run(path, x.numpy())[0], network(x).detach(), atol=1e-5)
    assert "--resize does not" in refused("export", slimmed, "--dynamic", "height", "--resize")
    assert "--resize is for runs on images" in refused("export", slimmed, "--resize")
    pte = ("export", slimmed, "--out", tmp_path / "a.pte")
    for more in ([], ["--int8"]):
        assert "could resize; leave out --resize, or write an .onnx" in refused(*pte, "--resize", *more)
    assert "is for the example's sizes; leave out --dynamic" in refused(*pte, "--dynamic", "height")
    for name in ("k.foo", "k", "k.onnx.txt", "k.pt"):
        for more in ([], ["--int8"]):
            assert "give .onnx for an ONNX file, or .pte" in refused(
                "export", slimmed, "--out", tmp_path / name, *more
            )
        assert not (tmp_path / name).exists()
    assert "'depth' is no size of an image" in refused("export", slimmed, "--dynamic", "height,depth")


def test_files_are_timed_as_they_are(
    slimmed: Path, tmp_path: Path, cli: Callable[..., Result], refused: Callable[..., str]
) -> None:
    path = tmp_path / "small.onnx"
    cli("export", slimmed, "--out", path)
    (row,) = json.loads(cli("latency", path, "--batch", 3, "--repeats", 4, "--json").stdout)
    assert row["runtime"] == "onnx" and row["repeats"] == 4 and row["size_bytes"] == path.stat().st_size
    assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
    text = cli("latency", path, path, "--repeats", 2, "--shape", "2,1,8,8").stdout
    assert "small.onnx" in text and "ms in onnx" in text and "in turns" in text
    assert "shapes 2,1,8,8" in text and "batch" not in text
    assert "is no file" in refused("latency", tmp_path / "none.onnx")
    assert "runtime='tensorrt'" in refused("latency", path, "--runtime", "tensorrt")
    assert "whole numbers from 1" in refused("latency", path, "--shape", "1,x")


@pytest.mark.parametrize(
    ("limit", "onnx", "name"),
    [("latency_ms", None, "onnx latency"), ("latency_ms", False, "latency"),
     ("openvino_ms", None, "openvino latency"), ("onnx_int8_ms", None, "int8 onnx latency"),
     ("onnx_ms", False, "onnx latency"), ("eager_ms", None, "latency"), ("compile_ms", None, "compile latency"),
     ("onnx_int8_kb", None, "int8 onnx file size"), ("onnx_kb", False, "onnx file size")],
)  # fmt: skip
def test_a_time_is_that_of_the_runtime_that_is_named_or_exported_for(
    limit: str, onnx: bool | None, name: str
) -> None:
    for package in ("onnxruntime", "onnxscript", limit.removesuffix("_ms")):
        if package in ("onnxruntime", "onnxscript", "openvino"):
            pytest.importorskip(package)
    found = run_setup.limit_of(f"{limit}=4.5", torch.zeros(1, 3), onnx=onnx)
    assert found is not None and found.cost.name == name and found.bound == 4.5


def test_a_run_is_quantized_on_its_own_data(
    place: Path, slimmed: Path, tmp_path: Path, cli: Callable[..., Result], refused: Callable[..., str]
) -> None:
    pytest.importorskip("onnxruntime")
    run = Path(shutil.copytree(slimmed, tmp_path / "run"))
    result = cli("export", run, "--int8", "--max-drop", "90", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["size_bytes"]["int8"] == (run / "network.int8.onnx").stat().st_size
    assert json.loads((run / "record.json").read_text())["int8"] == told
    page = (run / "report.html").read_text()
    assert "The int8 file" in page and f"{told['size_bytes']['int8'] / 1024:,.1f} kB" in page
    small = "--max-kb", "0.1", "--max-drop", "90"
    assert "kB, and at most 0.1 kB are allowed" in refused("export", run, "--int8", *small)
    assert "--max-ms 2 goes with --int8" in refused("export", run, "--max-ms", "2")
    assert cli("report", run).exit_code == 0
    scores, label = _run(run / "network.int8.onnx", np.zeros((2, 1, 8, 8), np.float32))
    assert scores.shape == (2, 3) and np.array_equal(label, scores.argmax(1))
    assert "--max-drop 2 goes with --int8" in refused("export", run, "--max-drop", "2")
    assert "goes without --int8" in refused("export", run, "--int8", "--dynamic", "height")
    (run / "command.json").unlink()
    assert "command.json is missing" in refused("export", run, "--int8")
