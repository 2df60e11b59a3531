"""int8: what is quantized, what it costs, and which layers stay in float for it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.cli.inputs import exported_program
from archgrad.copy_and_run import call
from archgrad.costs.latency import file_pass
from archgrad.errors import ConfigError, LimitError, ModelError
from archgrad.extract import quantization
from archgrad.extract.export import encode_onnx
from archgrad.extract.onnx_file import Session
from archgrad.extract.quantization import FileNetwork, refilled
from archgrad.extract.returned import plain_outputs
from archgrad.results.int8 import Quantized, _drop, export_int8
from archgrad.tasks.task import evaluate, tensors

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
    task: ag.Classification, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[Any] = []

    def note(data: bytes, runtime: str, inputs: tuple[Any, ...], threads: int) -> Callable[[], object]:
        timed.append((data, inputs[0].dtype))
        return file_pass(data, runtime, inputs, threads)

    monkeypatch.setattr("archgrad.results.int8.file_pass", note)
    path = tmp_path / "a.onnx"
    found = ag.Found(ag.Architecture({}), network, example=task.example, record={"data": task.splits})
    done = found.export(path, task=task, int8=True, preprocess=True)
    assert isinstance(done, Quantized) and done.score == "accuracy" and not done.float_layers
    assert done.size_bytes["int8"] == path.stat().st_size < done.size_bytes["float"]
    assert timed[1] == (path.read_bytes(), torch.uint8), "what is written is what is timed"
    assert len(timed[0][0]) == done.size_bytes["float"] and timed[0][1] == torch.uint8
    assert done.valid["float"] > 0.9 and done.valid["float"] - done.valid["int8"] <= 0.01
    assert done.latency_ms["int8"] > 0 and "left in float: none" in done.report()
    session = onnxruntime.InferenceSession(path)
    source = task._parts["test"].source
    rows = task._parts["test"].indices
    pixels = source.samples.x[rows].numpy()
    _, label = session.run(None, {"pixels": pixels})
    accuracy = float((label == source.samples.y[rows].numpy()).mean())
    assert accuracy == pytest.approx(done.test["int8"])


@pytest.mark.parametrize(("sums", "largest"), [(True, 64), (False, 127)])
def test_weights_have_seven_bits_where_pairs_of_products_would_saturate(
    sums: bool, largest: int, network: nn.Module, task: ag.Classification, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    monkeypatch.setattr(quantization, "_adds_in_16_bits", lambda: sums)
    base = quantization.prepared(encode_onnx(network, task.example).data)
    data = quantization.quantize(base, [{Session(base).names[0]: task.stream(seed=0)(0)[0].numpy()}])
    model = onnx.load_from_string(data)
    weights = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.data_type == 3]
    peaks = [int(np.abs(weight.astype(int)).max()) for weight in weights if weight.ndim > 1]
    assert peaks and max(peaks) == largest


def test_an_executorch_program_is_quantized_and_scored_as_it_is(
    task: ag.Classification, network: nn.Module, tmp_path: Path
) -> None:
    pytest.importorskip("executorch")
    path, found = tmp_path / "a.pte", ag.Found(ag.Architecture({}), network, example=task.example)
    network.to(memory_format=torch.channels_last)
    done = found.export(path, task=task, int8=True)
    network.to(memory_format=torch.contiguous_format)
    assert isinstance(done, Quantized) and done.runtime == "executorch" and not done.float_layers
    assert done.size_bytes["int8"] == path.stat().st_size < done.size_bytes["float"]
    assert done.valid["float"] > 0.9 and abs(done.valid["float"] - done.valid["int8"]) <= 0.01
    assert "latency, executorch" in done.report()
    assert ag.measure_files({"a": path}, repeats=3)["a"].median_ms > 0
    with pytest.raises(ModelError, match="in ExecuTorch, where no layer is left in float"):
        ag.Found(ag.Architecture({}), _spoilt(network), example=task.example).export(path, task=task, int8=True)
    with pytest.raises(ConfigError, match="takes what the network takes"):
        found.export(path, task=task, int8=True, preprocess=True)
    assert found.export(tmp_path / "b.pte").largest_difference < 1e-4


def test_an_int8_file_over_its_bounds_is_not_written(
    task: ag.Classification, network: nn.Module, tmp_path: Path
) -> None:
    path, found = tmp_path / "a.onnx", ag.Found(ag.Architecture({}), network, example=task.example)
    fine = found.export(path, task=task, int8=True, max_kb=100, max_ms=1e4)
    assert isinstance(fine, Quantized)
    path.unlink()
    kilobytes = fine.size_bytes["int8"] / 1024
    said = rf"has {kilobytes:,.4g} kB, and at most 1 kB .*to {1 / kilobytes:.2f} of .* params"
    with pytest.raises(LimitError, match=said):
        found.export(path, task=task, int8=True, max_kb=1)
    with pytest.raises(LimitError, match=r"takes .* ms, and at most 1e-06 ms .* in macs$"):
        found.export(path, task=task, int8=True, max_ms=1e-6)
    with pytest.raises(LimitError, match=r"larger max_drop: \d stay in float"):
        ag.Found(ag.Architecture({}), _spoilt(network), example=task.example).export(
            path, task=task, int8=True, max_kb=1
        )
    for bounds in ({"max_ms": 0.0}, {"max_kb": float("nan")}):
        with pytest.raises(ConfigError, match="give a number above 0"):
            found.export(path, task=task, int8=True, **bounds)
    with pytest.raises(ConfigError, match="are of the int8 file"):
        found.export(path, max_kb=5)
    assert not path.exists()


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


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a network of the user's returns."""

    y: Tensor
    rest: Any = None
    count: int = 3


class Derived(Outputs):
    """It holds more than its fields."""

    def __init__(self, y: Tensor) -> None:
        super().__init__(y)
        self.__dict__["squares"] = y.square()


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "a dict": lambda y: {"y": y},
    "a data class": Outputs,
    "nested": lambda y: {"all": [Outputs(y * 0, {"more": (Outputs(y + 1),)})], "y": y},
}


class Named(nn.Module):
    """Two inputs that cannot be swapped."""

    def __init__(self, form: Callable[[Tensor], Any] = Outputs) -> None:
        super().__init__()
        self.left, self.right, self.form = nn.Linear(4, 8), nn.Linear(8, 1), form

    def forward(self, a: Tensor, b: Tensor, labels: Tensor | None = None) -> Any:
        return self.form(self.right(torch.relu(self.left(a) + 3 * b)))


def read(output: Any) -> Tensor:
    return output["y"] if isinstance(output, dict) else output.y


@pytest.mark.parametrize("form", FORMS)
def test_a_network_with_other_inputs_and_outputs_is_scored(form: str, tmp_path: Path) -> None:
    x = {"a": torch.randn(90, 4), "b": torch.randn(90, 8)}
    data = [({name: v[i] for name, v in x.items()}, x["a"][i].sum()[None]) for i in range(90)]
    loss = lambda output, target: nn.functional.mse_loss(read(output), target)  # noqa: E731
    task = ag.Supervised(data, loss=loss, batch_size=16)
    torch.manual_seed(0)
    done = export_int8(Named(FORMS[form]), task, tmp_path / "a.onnx", max_drop=50.0)
    assert done.score == "loss" and done.valid["int8"] == pytest.approx(done.valid["float"], rel=0.5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [None, 4])
def test_a_file_gives_the_outputs_of_its_network(form: str, batch: int | None) -> None:
    network = Named(FORMS[form]).eval()
    example = torch.randn(4, 4), torch.randn(4, 8)
    encoded = encode_onnx(network, example, dynamic=("batch",) if batch is None else ())
    file = FileNetwork(encoded.data, network(*example), batch=batch)
    for size in (1, 4, 7, 8):
        x = torch.randn(size, 4), torch.randn(size, 8)
        wanted = network(*x)
        for got in (file(*x), file(b=x[1], a=x[0], labels=x[0])):
            assert type(got) is type(wanted)
            same = zip(tensors(plain_outputs(got)), tensors(plain_outputs(wanted)), strict=True)
            assert all(torch.allclose(a, b, atol=1e-4) and len(a) == size for a, b in same)


def test_a_dict_is_read_by_its_names_in_any_order() -> None:
    class Whole(Named):
        def forward(self, batch: dict[str, Tensor]) -> Any:  # type: ignore[override]
            return super().forward(batch["a"], batch["b"])

    network, x = Whole().eval(), {"b": torch.randn(3, 8), "a": torch.randn(3, 4)}
    file = FileNetwork(encode_onnx(network, x).data, network(x))
    other = {"a": x["a"], "labels": torch.zeros(3), "b": x["b"]}
    assert torch.allclose(file(x).y, network(x).y, atol=1e-4) and torch.allclose(file(other).y, file(x).y)


def test_outputs_that_a_file_cannot_give_are_refused() -> None:
    with pytest.raises(ModelError, match="Derived, which holds tensors in squares beside its fields"):
        refilled(Derived(torch.zeros(2)), iter([torch.zeros(2)]))


@pytest.mark.parametrize("form", [Outputs, FORMS["a dict"]])
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_network_of_a_run_is_called_as_it_was(form: Callable[[Tensor], Any], order: str, tmp_path: Path) -> None:
    network = Named(form).eval()
    x = {"a": torch.randn(3, 4), "b": torch.randn(3, 8)}
    ag.export_program(network, {name: x[name] for name in order}, tmp_path / "a.pt2")
    again, _ = exported_program.load(tmp_path / "a.pt2", flat=False)
    wanted = read(network(**x)).detach()
    for got in (again(**x), again(b=x["b"], a=x["a"], labels=torch.zeros(3)), call(copy.deepcopy(again), (x,))):
        assert torch.allclose(got.y, wanted) and torch.allclose(got["y"], wanted) and torch.allclose(got[0], wanted)
    with pytest.raises(AttributeError, match="and no loss"):
        again(**x).loss  # noqa: B018
    with pytest.raises(ModelError, match="all but b"):
        again(a=x["a"])

    class Own:
        """A task whose batches have labels, and another order than the example, and whose loss only networks have."""

        example, steps_per_epoch, higher_is_better = {name: v[:1] for name, v in x.items()}, 1, False

        def stream(self, **_: int) -> Callable[[int], dict[str, Tensor]]:
            return lambda step: {"labels": torch.zeros(3), "b": x["b"], "a": x["a"]}

        def loss(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            return network(**batch).loss

        def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
            return {"off": 1 + float((network(**self.stream()(0)).y - wanted).abs().mean().detach())}

    done = export_int8(again, Own(), tmp_path / "a.onnx", max_drop=30.0, samples=6)
    assert done.valid["float"] == pytest.approx(1.0, abs=1e-4) and done.valid["int8"] < 1.3


def test_a_loss_of_a_part_of_the_network_is_refused(task: ag.Classification, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    class Parts(ag.Classification):
        def loss(self, network: nn.Module, batch: Any) -> Tensor:
            return network[1](network[0](batch[0])).sum()

    parts = Parts((torch.randn(40, 1, 8, 8), torch.arange(40) % 4), batch_size=8)
    with pytest.raises(ModelError, match="calls a part of Sequential"):
        export_int8(network, parts, tmp_path / "a.onnx")


def test_what_cannot_be_quantized_is_refused(task: ag.Classification, network: nn.Module, tmp_path: Path) -> None:
    found = ag.Found(ag.Architecture({}), network, example=task.example)
    with pytest.raises(ConfigError, match="needs task="):
        found.export(tmp_path / "a.onnx", int8=True)
    with pytest.raises(ConfigError, match="int8 cannot run on str"):
        found.export(tmp_path / "a.onnx", task="digits", int8=True)
    with pytest.raises(ConfigError, match="max_drop=-1"):
        found.export(tmp_path / "a.onnx", task=task, int8=True, max_drop=-1.0)
    spoilt, linear = copy.deepcopy(network), nn.Linear(3, 2)
    for weight in (spoilt[3].weight, linear.weight):
        weight.data[:] = torch.nan
    with pytest.raises(ModelError, match=r"weights hold NaN or infinite values \(3\.weight\)"):
        ag.Found(ag.Architecture({}), spoilt, example=task.example).export(tmp_path / "a.onnx", task=task, int8=True)
    x = torch.ones(2, 3)
    with pytest.raises(ModelError, match="weight: NaN or infinite"):
        quantization.int8_onnx(encode_onnx(linear, x).data, [(x,)])
    with pytest.raises(ModelError, match=r"calibration input .* holds NaN or infinite"):
        quantization.int8_onnx(encode_onnx(nn.Linear(3, 2), x).data, [(x,), (x / 0,)])
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


@pytest.mark.parametrize("ms", [0.05, 0.1, 0.2])
def test_an_int8_file_that_is_slower_is_told(ms: float) -> None:
    figures = {"float": 0.5, "int8": 0.5}
    done = Quantized(Path("a"), "accuracy", figures, figures, {"float": 0.1, "int8": ms}, {"float": 1, "int8": 1})
    assert ("ship the float file" in done.report()) == (ms > 0.1)
