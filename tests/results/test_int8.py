"""int8: what is quantized, what it costs, and which layers stay in float for it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.errors import ConfigError, ModelError
from archgrad.results.int8 import Quantized, _drop, export_int8
from archgrad.tasks.task import evaluate

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def task() -> ag.Classification:
    """Bright squares in one of four corners, on noise."""
    rng = np.random.default_rng(0)
    y = np.arange(240) % 4
    x = rng.integers(0, 120, (240, 1, 8, 8))
    for i, corner in enumerate(y):
        x[i, :, 4 * (corner // 2) :, 4 * (corner % 2) :][:, :4, :4] += 100
    return ag.Classification((x.astype(np.uint8), y), batch_size=24)


@pytest.fixture(scope="module")
def network(task: ag.Classification) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(4), nn.Flatten(), nn.Linear(96, 4),
    )  # fmt: skip
    ag.fit(net, task, ag.Run(epochs=12, progress=False), recipe=ag.Recipe(optimizer_factory=ag.adam))
    return net.eval()


def _spoilt(network: nn.Module) -> nn.Module:
    """The same function, with one channel a thousand times the others between two layers: int8 loses the others."""
    bad = copy.deepcopy(network)
    with torch.no_grad():
        bad[1].weight[0] *= 3000
        bad[1].bias[0] *= 3000
        bad[3].weight[:, 0] /= 3000
    return bad


def test_an_int8_file_is_smaller_and_scored_as_it_is(
    task: ag.Classification, network: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx"
    found = ag.Found(ag.Architecture({}), network, example=task.example, record={"data": task.splits})
    done = found.export(path, task=task, int8=True, preprocess=True)
    assert isinstance(done, Quantized) and done.score == "accuracy" and not done.float_layers
    assert done.size_bytes["int8"] == path.stat().st_size < done.size_bytes["float"]
    assert done.valid["float"] > 0.9 and done.valid["float"] - done.valid["int8"] <= 0.01
    assert done.latency_ms["int8"] > 0 and "left in float: none" in done.report()
    session = onnxruntime.InferenceSession(path)
    source = task._parts["test"].source
    rows = task._parts["test"].indices
    pixels = source.samples.x[rows].numpy()
    _, label = session.run(None, {"pixels": pixels})
    accuracy = float((label == source.samples.y[rows].numpy()).mean())
    assert accuracy == pytest.approx(done.test["int8"])


def test_layers_that_int8_spoils_stay_in_float(task: ag.Classification, network: nn.Module, tmp_path: Path) -> None:
    bad = _spoilt(network)
    assert evaluate(task, bad)["accuracy"] == pytest.approx(evaluate(task, network)["accuracy"])
    loose = export_int8(bad, task, tmp_path / "a.onnx", max_drop=100.0)
    assert not loose.float_layers and loose.valid["int8"] < loose.valid["float"] - 0.05  # the control: it is spoilt
    done = export_int8(bad, task, tmp_path / "b.onnx", max_drop=1.0)
    assert {*done.float_layers} & {"0", "3"} and len(done.float_layers) < 3
    assert done.valid["int8"] >= done.valid["float"] - 0.01
    assert done.size_bytes["int8"] > loose.size_bytes["int8"]
    assert ", ".join(done.float_layers) in done.report() and done.record()["float_layers"] == [*done.float_layers]


def test_a_network_with_other_inputs_and_outputs_is_scored(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Outputs:
        scores: Tensor

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 8), nn.Linear(8, 1)

        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"y": self.right(torch.relu(self.left(a) + b))}

    x = {"a": torch.randn(90, 4), "b": torch.randn(90, 8)}
    data = [({name: v[i] for name, v in x.items()}, x["a"][i].sum()[None]) for i in range(90)]
    loss = lambda output, target: nn.functional.mse_loss(output["y"], target)  # noqa: E731
    task = ag.Supervised(data, loss=loss, batch_size=16)
    torch.manual_seed(0)
    done = export_int8(Named(), task, tmp_path / "a.onnx", max_drop=50.0)
    assert done.score == "loss" and done.valid["int8"] == pytest.approx(done.valid["float"], rel=0.5)


def test_what_cannot_be_quantized_is_refused(task: ag.Classification, network: nn.Module, tmp_path: Path) -> None:
    found = ag.Found(ag.Architecture({}), network, example=task.example)
    with pytest.raises(ConfigError, match="needs task="):
        found.export(tmp_path / "a.onnx", int8=True)
    with pytest.raises(ConfigError, match="max_drop=-1"):
        found.export(tmp_path / "a.onnx", task=task, int8=True, max_drop=-1.0)
    with pytest.raises(ConfigError, match="no example"):
        ag.Found(ag.Architecture({}), network).export(tmp_path / "a.onnx")
    assert not [*tmp_path.iterdir()]


def test_a_drop_in_points(task: ag.Classification) -> None:
    assert _drop(task, 0.9)(0.88) == pytest.approx(2.0)
    assert _drop(task, 90.0)(81.0) == pytest.approx(10.0)
    assert _drop(task, 0.9)(float("nan")) == float("inf")
    assert _drop(ag.Supervised((torch.zeros(20, 1), torch.zeros(20, 1)), loss=nn.MSELoss()), 2.0)(
        2.1
    ) == pytest.approx(5)


def test_int8_that_always_loses_is_refused(
    task: ag.Classification, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archgrad.results.int8._drop", lambda task, wanted: lambda score: 3.0)
    with pytest.raises(ModelError, match="loses 3 points even where only"):
        export_int8(network, task, tmp_path / "a.onnx")
    assert not [*tmp_path.iterdir()]
