"""archgrad export: the network of a finished run as a file, in the forms that are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result


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
    assert "'depth' is no size of an image" in refused("export", slimmed, "--dynamic", "height,depth")
