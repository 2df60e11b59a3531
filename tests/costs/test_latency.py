"""Latency: what is measured, in which order, and what is put back. Nothing here asserts a speed."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from archgrad.choices.access import hold, relax
from archgrad.choices.architecture import Architecture
from archgrad.choices.modules import OpChoice
from archgrad.choices.relaxations import softmax
from archgrad.costs import latency as rooms
from archgrad.costs.file_latency import measure_files
from archgrad.costs.latency import Timing, latency
from archgrad.costs.limits import Cost, Limit
from archgrad.errors import ConfigError, LimitError, MissingExtra, ModelError
from archgrad.extract.export import export_onnx
from archgrad.extract.runtimes import Runtime


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))


class Recorder(nn.Module):
    """Writes down each forward pass, with the state it ran in. Copies share the list."""

    def __init__(self, label: str, calls: list[tuple[str, int, bool, bool]]) -> None:
        super().__init__()
        self.label = label
        self.calls = calls

    def __deepcopy__(self, memo: dict[int, object]) -> Recorder:
        return Recorder(self.label, self.calls)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((self.label, torch.get_num_threads(), self.training, torch.is_inference_mode_enabled()))
        return x


def _sound(timing: Timing) -> bool:
    return 0 < timing.low_ms <= timing.median_ms <= timing.high_ms


def test_eager_timing_leaves_the_network_as_it_was() -> None:
    network = Small().train()
    network.conv.weight.grad = torch.ones_like(network.conv.weight)
    mean = network.norm.running_mean.clone()
    timing = latency(torch.randn(2, 3, 8, 8), repeats=7, warmup=1).timing(network)
    assert _sound(timing)
    assert (timing.repeats, timing.runtime, timing.device, timing.threads) == (7, "eager", "cpu", 1)
    assert network.training and torch.equal(network.norm.running_mean, mean)
    assert network.conv.weight.grad is not None and network.norm.num_batches_tracked == 0


def test_onnx_timing_of_a_network_and_of_its_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network, x = Small(), torch.randn(1, 3, 8, 8)
    timing = latency(x, runtime="onnx", repeats=5).timing(network)
    assert _sound(timing) and timing.runtime == "onnx" and timing.repeats == 5
    path = tmp_path / "a.onnx"
    export_onnx(network, x, path)
    assert _sound(measure_files({"a": path}, x, repeats=5, threads=2)["a"])
    with pytest.raises(ModelError, match="does not run on the example"):
        measure_files({"a": path}, torch.randn(2, 5, 8, 8), repeats=5)
    assert capfd.readouterr() == ("", "")


def test_passes_take_turns_in_inference_mode_on_the_threads_asked_for() -> None:
    calls: list[tuple[str, int, bool, bool]] = []
    networks = {label: Recorder(label, calls) for label in "AB"}
    torch.set_num_threads(1)
    timings = latency(torch.ones(1, 2), repeats=3, warmup=2, threads=2).timings(networks)
    assert list(timings) == ["A", "B"]
    timed = calls[2:]  # the first pass of each only checks that it runs
    assert [label for label, *_ in timed] == ["A", "B"] * 5
    assert all(call[1:] == (2, False, True) for call in timed)
    assert torch.get_num_threads() == 1


def test_threads_are_put_back_when_a_pass_fails() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.get_num_threads() == 2:
                raise KeyError("late")
            return x

    torch.set_num_threads(1)
    with pytest.raises(KeyError, match="late"):
        latency(torch.ones(1), threads=2).timing(Failing())
    assert torch.get_num_threads() == 1


class Caching(nn.Module):
    """Keeps a tensor that it made, as position tables do, and cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.table: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Caching:
        raise AssertionError("copied")

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        if self.table is None:
            self.table = x * 2
        return self.table * self.weight


def test_a_space_is_timed_in_place_and_stays_fit_for_training() -> None:
    caching = Caching()
    space = relax(nn.Sequential(OpChoice([caching, nn.Identity()], name="op"), nn.Dropout()), softmax).train()
    space[1].eval()
    assert _sound(latency(torch.ones(2, 3), repeats=2, warmup=0).timing(space))
    assert [m.training for m in (space, space[0], caching, space[1])] == [True, True, True, False]
    caching.eval()
    caching(torch.ones(2, 3)).sum().backward()  # what is made in inference mode could not be saved for this
    assert caching.weight.grad is not None
    with pytest.raises(ModelError, match="does not run on the example"):
        latency(torch.ones(2, 4)).timing(space.train())
    assert caching.training


def test_a_held_space_runs_what_is_picked_alone() -> None:
    calls: list[tuple[str, int, bool, bool]] = []
    space = nn.Sequential(OpChoice([Recorder("A", calls), Recorder("B", calls)], name="op"))
    held = hold(space, Architecture({"op": 1}))
    latency(torch.ones(1, 2), repeats=3, warmup=2).timing(held)
    assert [label for label, *_ in calls] == ["B"] * (1 + 2 + 3)
    calls.clear()
    latency(torch.ones(1, 2), repeats=1, warmup=0).timing(held)
    assert len(calls) == 2


def test_spread_and_noise() -> None:
    timing = Timing(2.0, 1.9, 2.4, repeats=9, runtime="eager", device="cpu", threads=1)
    assert timing.spread == pytest.approx(0.25) and not timing.noisy
    assert dataclasses.replace(timing, high_ms=3.1).noisy


def test_percentiles_by_hand() -> None:
    timing = rooms.timing([float(k) for k in range(11)], runtime="eager", device="cpu", threads=1)
    assert (timing.low_ms, timing.median_ms, timing.high_ms) == (1.0, 5.0, 9.0)


def test_latency_is_a_measured_cost() -> None:
    cost: Cost = latency((torch.randn(1, 3), torch.randn(1, 4)), repeats=3)
    assert (cost.name, cost.unit, cost.measured) == ("latency", "ms", True)
    assert cost.of(nn.Bilinear(3, 4, 2)) > 0
    with pytest.raises(LimitError, match=r"score-function part.*surrogate"):
        cost.expected(Small())


def test_limits() -> None:
    cost = latency(torch.randn(1, 3))
    assert cost.at_most(ms=4.0) == Limit(cost, bound=4.0)
    assert cost.at_most(fraction=0.5).resolve(6.0) == 3.0
    with pytest.raises(LimitError, match="not both"):
        cost.at_most()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"runtime": "tensorrt"}, "'eager', 'compile', 'onnx'"),
        ({"repeats": 0}, "repeats=0"),
        ({"threads": 0}, "threads=0"),
        ({"batch": 0}, "batch=0"),
        ({"warmup": -1}, "warmup=-1"),
        ({"device": "nowhere"}, "nowhere"),
        ({"device": "meta", "runtime": "onnx"}, "timed on the CPU"),
        ({"dtype": "int8"}, "onnx, openvino, executorch"),
        ({"dtype": "int8", "runtime": "compile"}, "networks are quantized as files"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        latency(torch.randn(1, 3), **wrong)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_weights_beside_a_file_are_found(runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("openvino" if runtime == "openvino" else "onnxruntime")
    path = export_onnx(nn.Linear(64, 64), torch.zeros(1, 64), tmp_path / "small.onnx").path
    model, apart = onnx.load(path), tmp_path / "apart" / "net.onnx"
    apart.parent.mkdir()
    onnx.save(model, apart, save_as_external_data=True, location="net.data", size_threshold=0)
    assert (apart.parent / "net.data").stat().st_size >= 64 * 64 * 4
    assert _sound(measure_files({"a": apart}, runtime=runtime, repeats=3)["a"])


def test_examples_that_no_array_holds_are_moved_or_refused(tmp_path: Path) -> None:
    path = export_onnx(nn.Linear(4, 2), torch.zeros(1, 4), tmp_path / "small.onnx").path
    assert _sound(measure_files({"a": path}, torch.randn(1, 4, requires_grad=True), repeats=3)["a"])
    with pytest.raises(ModelError, match=r"inputs of torch\.bfloat16 cannot be handed over"):
        measure_files({"a": path}, torch.zeros(1, 4, dtype=torch.bfloat16))


def test_a_network_that_does_not_run_is_named() -> None:
    with pytest.raises(ModelError, match=r"Small does not run on the example of \[1, 5, 8, 8\]"):
        latency(torch.randn(1, 5, 8, 8)).timing(Small())


def test_a_file_that_is_not_onnx_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no file"):
        measure_files({"a": tmp_path / "absent.onnx"})
    with pytest.raises(ModelError, match="of no known kind"):
        measure_files({"a": tmp_path / "a.pt"})
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"not a network")
    for example in (None, torch.ones(1)):
        with pytest.raises(ModelError, match="does not run"):
            measure_files({"a": damaged}, example)


RUNTIMES = [
    ("openvino", "float32"), ("executorch", "float32"), ("onnx", "int8"), ("openvino", "int8"),
    ("executorch", "int8"), pytest.param("compile", "float32", marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("runtime", "dtype"), RUNTIMES)
def test_each_runtime_runs_the_network_itself(
    runtime: Runtime, dtype: Literal["float32", "int8"], monkeypatch: pytest.MonkeyPatch
) -> None:
    if runtime != "compile":
        pytest.importorskip("onnxruntime" if runtime == "onnx" else runtime)
    network, x = Small().eval(), torch.randn(2, 3, 8, 8)
    passes: list[Callable[[], object]] = []
    turns = rooms.in_turns

    def watched(given: list[Callable[[], object]], **protocol: int) -> list[list[float]]:
        passes.extend(given)
        return turns(given, **protocol)

    monkeypatch.setattr(rooms, "in_turns", watched)
    cost = latency(x, runtime=runtime, dtype=dtype, repeats=3, batch=5)
    timing = cost.timing(network)
    name = f"int8 {runtime} latency" if dtype == "int8" else f"{runtime} latency"
    assert _sound(timing) and timing.runtime == runtime and cost.name == name
    (output,) = torch.utils._pytree.tree_leaves(passes[0]())
    difference = (torch.as_tensor(output) - network(x[torch.arange(5) % 2])).abs().max()
    if dtype == "int8":  # close, and not the float network
        assert 1e-5 < difference < 0.05
    else:
        assert difference < 1e-4


@pytest.mark.parametrize(
    ("runtime", "extra"), [("openvino", "openvino"), ("executorch", "executorch"), ("onnx", "export")]
)
def test_a_runtime_that_is_not_installed_is_refused_at_once(
    runtime: Runtime, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"onnx": "onnxscript"}.get(runtime, runtime)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(MissingExtra, match=rf"{missing} is not installed.*archgrad\[{extra}\]"):
        latency(torch.randn(1, 3), runtime=runtime)


def test_files_say_what_they_take(tmp_path: Path) -> None:
    whole = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2))
    images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    paths = {"whole": tmp_path / "a.onnx", "images": tmp_path / "b.onnx"}
    export_onnx(whole, torch.zeros(1, 3, dtype=torch.long), paths["whole"])
    assert _sound(measure_files({"a": paths["whole"]}, batch=7, repeats=3)["a"])
    export_onnx(images, torch.randn(1, 3, 8, 8), paths["images"], dynamic=("batch", "height", "width"))
    with pytest.raises(ConfigError, match=r"takes inputs of \[any, 3, any, any\]"):
        measure_files({"b": paths["images"]})
    assert _sound(measure_files({"b": paths["images"]}, shapes=[(1, 3, 9, 12)], repeats=3)["b"])
    with pytest.raises(ConfigError, match="does not take"):
        measure_files({"b": paths["images"]}, runtime="executorch")
    with pytest.raises(ConfigError, match="1 inputs, and 2 shapes"):
        measure_files({"b": paths["images"]}, shapes=[(1, 3, 9, 12), (2,)])
