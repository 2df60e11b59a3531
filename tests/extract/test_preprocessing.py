"""Pixels in, labels out: what an ONNX file does beside its network."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import archgrad as ag
from archgrad.errors import ConfigError, ModelError
from archgrad.extract import preprocessing
from archgrad.extract.preprocessing import Preprocessing

onnxruntime = pytest.importorskip("onnxruntime")
NAMES = ("cat", "dog", "owl", "newt")
CONSTANTS = Preprocessing((0.2, 0.5, 0.4), (0.3, 0.1, 0.25), NAMES, "classification")


def _network(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(5, 4)).eval()  # fmt: skip


@pytest.mark.parametrize("dynamic", [("batch",), (), ("batch", "height", "width")])
def test_a_file_takes_pixels_and_gives_labels(dynamic: tuple[str, ...], tmp_path: Path) -> None:
    network, path = _network(), tmp_path / "a.onnx"
    written = ag.export_onnx(network, torch.randn(2, 3, 8, 6), path, dynamic=dynamic, preprocess=CONSTANTS)
    assert written.largest_difference < 1e-4
    session = onnxruntime.InferenceSession(path)
    shape = (5, 3, 9, 7) if len(dynamic) == 3 else (5 if dynamic else 2, 3, 8, 6)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    scores, label = session.run(None, {"pixels": pixels})
    mean, std = (torch.tensor(c)[:, None, None] for c in (CONSTANTS.mean, CONSTANTS.std))
    wanted = network((torch.from_numpy(pixels) / 255 - mean) / std).detach().numpy()
    assert np.allclose(scores, wanted, atol=1e-4) and np.array_equal(label, wanted.argmax(1))
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["archgrad.class_names"]) == list(NAMES)
    assert said["archgrad.task"] == "classification" and said["archgrad.input_range"] == "0 to 255"
    assert json.loads(said["archgrad.normalization"])["std"] == [0.3, 0.1, 0.25] and said["archgrad.version"]


@pytest.mark.parametrize("sizes", [(8, 6), (5, 4), (31, 17)])
def test_a_file_resizes_pixels_as_pillow_does(sizes: tuple[int, int], tmp_path: Path) -> None:
    network, path = _network(), tmp_path / "a.onnx"
    resizing = dataclasses.replace(CONSTANTS, size=(8, 6))
    assert ag.export_onnx(network, torch.randn(2, 3, 8, 6), path, preprocess=resizing).largest_difference < 1e-4
    session = onnxruntime.InferenceSession(path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *sizes, 3), dtype=np.uint8)
    scores, label = session.run(None, {"pixels": pixels.transpose(0, 3, 1, 2)})
    images = [Image.fromarray(image).resize((6, 8), Image.Resampling.BILINEAR) for image in pixels]
    resized = torch.from_numpy(np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2))
    wanted = network(CONSTANTS.normalized(resized)).detach().numpy()
    assert np.allclose(scores, wanted, atol=0.05) and np.array_equal(label, scores.argmax(1))  # Pillow rounds
    assert json.loads(session.get_modelmeta().custom_metadata_map["archgrad.resized_to"]) == [8, 6]


def test_resizing_needs_pixels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resizing is of pixels"):
        ag.export_onnx(
            _network(), torch.randn(2, 3, 8, 6), tmp_path / "a.onnx", preprocess=Preprocessing(size=(8, 6))
        )


def test_a_task_says_how_its_images_are_normalized(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 3, 6, 6), dtype=np.uint8), np.arange(60) % 4
    task = ag.Classification((x, y), batch_size=10)
    network, path = _network(), tmp_path / "a.onnx"
    ag.export_onnx(network, task.example, path, preprocess=task)
    scores, _ = onnxruntime.InferenceSession(path).run(None, {"pixels": x[:3]})
    constants = task.splits["normalization"]
    mean, std = (torch.tensor(constants[name])[:, None, None] for name in ("mean", "std"))
    assert np.allclose(scores, network((torch.from_numpy(x[:3]) / 255 - mean) / std).detach(), atol=1e-4)


@pytest.mark.parametrize("name", ["pixels", "pixels_float", "pixels_scaled", "pixel_scale", "pixel_shift", "label"])
def test_a_network_may_have_the_names_that_preprocessing_gives(name: str, tmp_path: Path) -> None:
    source = f"def forward(self, {name}):\n    return self.net({name} * self.pixel_scale + self.label)\n"
    scope: dict[str, Callable[..., Tensor]] = {}
    exec(source, scope)

    class Net(nn.Module):
        forward = scope["forward"]

        def __init__(self) -> None:
            super().__init__()
            self.net = _network()
            self.pixel_scale, self.label = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.randn(3, 1, 1))

    network, path = Net(), tmp_path / "a.onnx"
    written = ag.export_onnx(network, torch.randn(2, 3, 8, 6), path, preprocess=CONSTANTS)
    assert written.largest_difference < 1e-4
    session = onnxruntime.InferenceSession(path)
    assert [slot.name for slot in session.get_inputs()] == ["pixels"] and session.get_outputs()[-1].name == "label"


def test_a_branch_reads_the_renamed_input() -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    body = helper.make_graph(
        [helper.make_node("Neg", ["pixels"], ["out"])], "b", [], [helper.make_tensor_value_info("out", kind, None)]
    )
    choice = helper.make_tensor("choice", onnx.TensorProto.BOOL, [], [True])
    node = helper.make_node("If", ["choice"], ["y"], then_branch=body, else_branch=body)
    slots = [helper.make_tensor_value_info(name, kind, ["n", 3, 2, 2]) for name in ("pixels", "y")]
    graph = helper.make_graph([node], "g", slots[:1], slots[1:], [choice])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data, plain = preprocessing.with_preprocessing(model.SerializeToString(), CONSTANTS), model.SerializeToString()
    assert preprocessing.check_preprocessing(data, plain, CONSTANTS, shape=(1, 3, 2, 2), batches=[3]) < 1e-4


def test_without_normalization_the_input_stays_and_metadata_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    ag.export_onnx(nn.Linear(3, 2), torch.randn(1, 3), path, preprocess=Preprocessing(task="mae"))
    session = onnxruntime.InferenceSession(path)
    assert len(session.get_outputs()) == 1 and session.get_inputs()[0].type == "tensor(float)"
    assert session.get_modelmeta().custom_metadata_map["archgrad.task"] == "mae"


@pytest.mark.parametrize(
    ("network", "example"),
    [(_network(1), torch.randn(1, 1, 8, 8)), (nn.Linear(3, 2), torch.randn(1, 3)),
     (nn.Bilinear(3, 4, 2), (torch.randn(1, 3), torch.randn(1, 4)))],
)  # fmt: skip
def test_a_normalization_that_does_not_fit_is_refused(network: nn.Module, example: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"channels|one input of floats"):
        ag.export_onnx(network, example, tmp_path / "a.onnx", preprocess=CONSTANTS)
    assert not [*tmp_path.iterdir()]


def test_a_file_whose_preprocessing_is_wrong_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest: Callable[..., bytes] = preprocessing.with_preprocessing
    off = Preprocessing((0.21, 0.5, 0.4), CONSTANTS.std, NAMES)
    monkeypatch.setattr("archgrad.extract.export.with_preprocessing", lambda data, _: honest(data, off))
    with pytest.raises(ModelError, match="off by"):
        ag.export_onnx(_network(), torch.randn(1, 3, 8, 8), tmp_path / "a.onnx", preprocess=CONSTANTS)
    assert not [*tmp_path.iterdir()]


def test_a_damaged_record_gives_no_normalization() -> None:
    for data in (None, 3, {"normalization": "x", "class_names": 4}, {"normalization": {"mean": [1], "std": [1, 2]}}):
        assert Preprocessing.of(data) == Preprocessing()
    assert Preprocessing.of({"normalization": {"mean": ["a"], "std": [1]}}) == Preprocessing()
