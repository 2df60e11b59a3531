"""Files that run without archgrad: what they compute, what they leave untouched, what is refused."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from families import convolutional, transformers
from torch import Tensor, nn
from torch.nn.utils import prune

from archgrad.choices.architecture import Architecture
from archgrad.errors import ConfigError, MissingExtra, ModelError, RunError
from archgrad.extract import export, export_trials, runtimes
from archgrad.extract.discretize import build
from archgrad.extract.export import export_onnx, export_program
from archgrad.extract.quantization import int8_onnx
from archgrad.gates.selection import gates
from archgrad.spaces.slim.slimmable import slim
from archgrad.tasks.task import tensors


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


class TwoInputs(nn.Module):
    """Two inputs, two outputs, one of them in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 5)
        self.right = nn.Linear(6, 5)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        left, right = self.left(a), self.right(b)
        return {"sum": left + right, "product": left * right}


class OneBatchOnly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(3, 4) * 2


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def _onnx_outputs(path: Path, *inputs: Tensor) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {slot.name: tensor.numpy() for slot, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(np.asarray(value)) for value in session.run(None, feed)]


def _trained() -> Small:
    network = Small()
    for _ in range(3):
        network(torch.randn(8, 3, 6, 6) * 2 + 1).square().mean().backward()
    return network


def test_onnx_file_computes_the_network_at_any_batch_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = _trained()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    grads = [parameter.grad for parameter in network.parameters()]
    path = tmp_path / "small.onnx"
    written = export_onnx(network, torch.randn(1, 3, 6, 6), path)
    assert written.path == path and written.dynamic_batch and written.largest_difference <= 1e-4

    assert network.training and network.drop.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(one is other.grad for one, other in zip(grads, network.parameters(), strict=True))
    assert capfd.readouterr() == ("", "")
    assert [file.name for file in tmp_path.iterdir()] == ["small.onnx"]
    data = path.read_bytes()
    assert str(Path(__file__).parent).encode() not in data, "the file names folders of the machine"

    network.eval()
    for size in (1, 5):
        x = torch.randn(size, 3, 6, 6)
        assert torch.allclose(_onnx_outputs(path, x)[0], network(x), atol=1e-5)


def test_onnx_two_inputs_and_a_dict_of_outputs(tmp_path: Path) -> None:
    network = TwoInputs()
    path = tmp_path / "two.onnx"
    assert export_onnx(network, (torch.randn(2, 4), torch.randn(2, 6)), path).dynamic_batch
    a, b = torch.randn(3, 4), torch.randn(3, 6)
    wanted = network(a, b)
    got = _onnx_outputs(path, a, b)
    assert torch.allclose(got[0], wanted["sum"], atol=1e-5)
    assert torch.allclose(got[1], wanted["product"], atol=1e-5)


def test_onnx_falls_back_to_the_examples_batch_size(tmp_path: Path) -> None:
    written = export_onnx(OneBatchOnly(), torch.randn(2, 6), tmp_path / "fixed.onnx")
    assert not written.dynamic_batch
    x = torch.randn(2, 6)
    assert torch.equal(_onnx_outputs(written.path, x)[0], x.reshape(3, 4) * 2)


def test_program_loads_without_archgrad(tmp_path: Path) -> None:
    network = _trained()
    x = torch.randn(5, 3, 6, 6)
    path = tmp_path / "small.pt2"
    assert export_program(network, x[:1], path).dynamic_batch
    torch.save((x, network.eval()(x).detach()), tmp_path / "pair.pt")
    script = (
        "import sys, torch\n"
        "sys.modules['archgrad'] = None\n"
        "x, wanted = torch.load(sys.argv[2])\n"
        "got = torch.export.load(sys.argv[1]).module()(x)\n"
        "assert torch.allclose(got, wanted, atol=1e-5), (got, wanted)\n"
    )
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "pair.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("write", [export_onnx, export_program])
def test_what_cannot_be_exported_is_refused_in_one_line(
    write: object, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert callable(write)
    with pytest.raises(ModelError, match="DataDependent cannot be exported") as caught:
        write(DataDependent(), torch.randn(2, 4), tmp_path / "no.file")
    assert "data-dependent" in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_wrong_example_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not run on the example of \[1, 2, 6, 6\]"):
        export_program(Small(), torch.randn(1, 2, 6, 6), tmp_path / "no.pt2")


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = export._program_bytes

    def spoilt(program: torch.export.ExportedProgram) -> bytes:
        bias = program.state_dict["left.bias"]
        program.state_dict["left.bias"] = nn.Parameter(bias.detach() + 1e-2)
        return honest(program)

    monkeypatch.setattr(export, "_program_bytes", spoilt)
    with pytest.raises(ModelError, match="outputs are off by"):
        export_program(TwoInputs(), (torch.randn(2, 4), torch.randn(2, 6)), tmp_path / "off.pt2")
    assert list(tmp_path.iterdir()) == []


def test_difference_counts_nan_and_a_shape_as_different() -> None:
    x = torch.randn(2, 3)
    trials = [export_trials.Trial((x,), [x])]
    off = export_trials.largest_difference
    assert off(lambda inputs: [inputs[0] + 1e-3], trials) > 1e-4
    assert not off(lambda inputs: [inputs[0] * float("nan")], trials) <= 1e-4
    assert off(lambda inputs: [inputs[0][:1]], trials) == float("inf")
    assert off(lambda inputs: [inputs[0]], trials) == 0.0


def test_difference_takes_nan_and_infinity_for_themselves_alone() -> None:
    x = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    trials = [export_trials.Trial((x,), [x])]
    assert export_trials.largest_difference(lambda inputs: [inputs[0].clone()], trials) == 0.0
    for i, wrong in itertools.product(range(1, 4), (0.0, math.nan, math.inf, -math.inf)):
        y = x.clone()
        y[i] = wrong
        same = torch.equal(x.nan_to_num(7.5), y.nan_to_num(7.5))
        assert (export_trials.largest_difference(lambda inputs, y=y: [y], trials) <= 1e-4) is same
    whole = torch.tensor([1, 2])
    for exact in (True, False):
        trial = export_trials.Trial((whole,), [whole], exact)
        assert (export_trials.largest_difference(lambda inputs: [inputs[0].flip(0)], [trial]) == 0.0) is not exact


class SmallConstant(nn.Module):
    """A linear layer, and an operation that only a tiny constant keeps finite at zero."""

    def __init__(self, operation: Callable[[Tensor, float], Tensor], eps: float, *, bias: float) -> None:
        super().__init__()
        self.layer, self.operation, self.eps = nn.Linear(3, 4, bias=bias != 0.0), operation, eps
        if bias:
            self.layer.bias.data.fill_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(self.layer(x).relu(), self.eps)


TINY = {
    "division by a norm": lambda x, eps: x / (x.norm(dim=1, keepdim=True) + eps),
    "division by a sum": lambda x, eps: x / (eps + x.sum(1, keepdim=True)),
    "logarithm": lambda x, eps: torch.log(x + eps),
    "root": lambda x, eps: 1e-6 * torch.rsqrt(x + eps),
    "shift down": lambda x, eps: 1e-9 / (x - eps),
}


# With the bias the example itself is zero behind the layer; without, only inputs of zero show that eps is gone.
@pytest.mark.parametrize(
    ("name", "eps", "bias"),
    list(zip(TINY, (1e-8, 3e-10, 1e-12, 1e-9, 5e-9), (-9.0, 0.0, 0.0, -9.0, 0.0), strict=True)),
)
def test_a_tiny_constant_stays_in_the_file(name: str, eps: float, bias: float, tmp_path: Path) -> None:
    network = SmallConstant(TINY[name], eps, bias=bias).eval()
    written = export_onnx(network, torch.rand(2, 3) + 0.1, tmp_path / "tiny.onnx")
    assert written.dynamic_batch
    for x in (torch.zeros(3, 3), torch.randn(4, 3)):
        assert torch.allclose(_onnx_outputs(written.path, x)[0], network(x), rtol=1e-4, atol=1e-4)


def test_the_simplified_file_is_taken_where_it_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[bool] = []
    encode = export.onnx_file.encode

    def watched(program: torch.export.ExportedProgram, *, optimize: bool) -> bytes:
        ways.append(optimize)
        return encode(program, optimize=optimize)

    monkeypatch.setattr(export.onnx_file, "encode", watched)
    export_onnx(Small(), torch.randn(1, 3, 6, 6), tmp_path / "small.onnx")
    assert ways == [True]


def test_a_network_that_copies_only_without_its_history_is_exported(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.l1_unstructured(network[0], "weight", 0.5)
    network(torch.randn(2, 4)).sum().backward()
    written = export_onnx(network, torch.randn(2, 4), tmp_path / "pruned.onnx")
    x = torch.randn(5, 4)
    assert torch.allclose(_onnx_outputs(written.path, x)[0], network(x), atol=1e-5)


def test_inputs_that_are_no_tensors_are_kept(tmp_path: Path) -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None, extra: dict[str, Tensor]) -> Tensor:
            return x * 2 + extra["shift"] if mask is None else x

    example = (torch.randn(2, 3), None, {"shift": torch.randn(2, 3)})
    assert export_program(Optional(), example, tmp_path / "a.pt2").dynamic_batch
    written = export_onnx(Optional(), example, tmp_path / "a.onnx")
    assert torch.equal(_onnx_outputs(written.path, example[0], example[2]["shift"])[0], Optional()(*example))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        export_program(nn.Linear(2, 2), torch.randn(1, 2), tmp_path / "absent" / "a.pt2")


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(MissingExtra, match=r"archgrad\[export\]"):
        export_onnx(nn.Linear(2, 2), torch.randn(1, 2), tmp_path / "a.onnx")


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, *terms: Tensor) -> Tensor:
        return sum((self.layer(x) for x in terms), torch.zeros(()))


PAIR = (torch.randn(1, 4), torch.randn(1, 4))
WRAPPED = {
    "several arguments": (Sums(), PAIR),
    "data parallel": (nn.DataParallel(Sums()), PAIR),
    "moving average": (torch.optim.swa_utils.AveragedModel(Small()), torch.randn(1, 3, 6, 6)),
    "compiled": (torch.compile(Small(), backend="eager"), torch.randn(1, 3, 6, 6)),
}


@pytest.mark.parametrize("write", [export_onnx, export_program])
@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_leave_the_batch_size_open(name: str, write: Callable[..., export.Exported], tmp_path: Path) -> None:
    network, example = WRAPPED[name]
    written = write(network, example, tmp_path / "network")
    assert written.dynamic_batch and written.dynamic == ("batch",) and not written.note


class Returning(nn.Module):
    """Returns what `form` makes of three tensors: its layer's outputs, twice these, and their ReLU."""

    def __init__(self, form: Callable[[Tensor, Tensor, Tensor, Tensor], object]) -> None:
        super().__init__()
        self.layer, self.form = nn.Linear(4, 3), form

    def forward(self, x: Tensor) -> object:
        y = self.layer(x)
        return self.form(x, y, 2 * y, y.relu())


FORMS = {
    "dict": (lambda x, a, b, c: {"logits": a, "value": b, "mask": c}, ["logits", "value", "mask"]),
    "dict of dicts": (lambda x, a, b, c: {"b": (a, b), "a": {"q": c}}, ["b.0", "b.1", "a.q"]),
    "no tensors": (lambda x, a, b, c: {"none": None, "first": a, "count": 3, "last": c}, ["first", "last"]),
    "names of operations": (lambda x, a, b, c: {"linear": c, "relu": a, "mul": b}, ["linear", "relu", "mul"]),
    "names that others would be given": (
        lambda x, a, b, c: {"linear_inside": 3 * a, "linear": b, "linear_1": c},
        ["linear_inside", "linear", "linear_1"],
    ),
    "no name": (lambda x, a, b, c: {"": a, "q": b}, [None, "q"]),
    "one tensor twice": (lambda x, a, b, c: {"p": a, "q": a}, ["p", "q"]),
    "name of an input": (lambda x, a, b, c: {"x": a, "q": b}, [None, "q"]),
    "one name twice": (lambda x, a, b, c: {"a.b": a, "a": {"b": b}}, [None, None]),
    "tuple": (lambda x, a, b, c: (a, c), [None, None]),
    "tuple of dicts": (lambda x, a, b, c: (a, {"logits": c}), [None, None]),
    "tensor": (lambda x, a, b, c: b, [None]),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_outputs_have_the_names_that_a_dict_has_for_them(name: str, tmp_path: Path) -> None:
    import onnx
    from onnxruntime import InferenceSession

    form, expected = FORMS[name]
    network, path = Returning(form), tmp_path / "network.onnx"
    export_onnx(network, x := torch.randn(2, 4), path)
    onnx.checker.check_model(path, full_check=True)
    names = [slot.name for slot in InferenceSession(path).get_outputs()]
    assert [given if wanted else None for given, wanted in zip(names, expected, strict=True)] == expected
    assert len({*names, "x"}) == len(names) + 1
    for got, wanted in zip(_onnx_outputs(path, x), tensors(network(x)), strict=True):
        assert torch.allclose(got, wanted, atol=1e-5)


def test_a_fixed_batch_size_is_explained(tmp_path: Path) -> None:
    assert "fixed to the example's" in export_onnx(OneBatchOnly(), torch.randn(2, 6), tmp_path / "a.onnx").note


IMAGES = {
    "average": nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                             nn.Linear(4, 2)),
    "dense": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Upsample(scale_factor=2), nn.Conv2d(4, 1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("write", [export_onnx, export_program])
@pytest.mark.parametrize("name", IMAGES)
def test_height_and_width_are_open_on_request(name: str, write: Callable[..., object], tmp_path: Path) -> None:
    path, network = tmp_path / "network", IMAGES[name].eval()
    written = write(network, torch.randn(1, 3, 12, 8), path, dynamic=("batch", "height", "width"))
    assert isinstance(written, export.Exported) and written.dynamic == ("batch", "height", "width")
    for shape in ((1, 3, 12, 8), (2, 3, 9, 30), (5, 3, 33, 7)):
        x = torch.randn(shape)
        got = _onnx_outputs(path, x)[0] if write is export_onnx else torch.export.load(path).module()(x)
        assert torch.allclose(got, network(x), atol=1e-5)


def test_sizes_that_cannot_be_open_are_refused(tmp_path: Path) -> None:
    fixed, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.randn(2, 3, 4, 4)
    with pytest.raises(ModelError, match="dynamic asks for width of any size"):
        export_onnx(fixed, x, tmp_path / "a.onnx", dynamic=("batch", "width"))
    with pytest.raises(ConfigError, match="depth"):
        export_onnx(fixed, x, tmp_path / "a.onnx", dynamic=("depth",))
    for shape in ((1, 4), (1, 6, 4), (1, 2, 3, 3, 4)):
        with pytest.raises(ConfigError, match="and the network takes none"):
            export_onnx(nn.Linear(4, 2), torch.randn(shape), tmp_path / "a.onnx", dynamic=("batch", "width"))
    assert not export_onnx(fixed, x, tmp_path / "a.onnx", dynamic=()).dynamic_batch


def test_a_run_leaves_sizes_open_where_the_network_does(tmp_path: Path) -> None:
    x, flat = torch.randn(1, 3, 4, 4), nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    assert export.export_open_program(flat, x, tmp_path / "a.pt2").dynamic == ("batch",)
    assert export.export_open_program(nn.Linear(4, 2), torch.randn(1, 4), tmp_path / "b.pt2").dynamic == ("batch",)
    assert export.export_open_program(Small(), x, tmp_path / "c.pt2").dynamic == ("batch", "height", "width")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reduced_precision_gets_advice_that_applies(dtype: torch.dtype, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)).to(dtype)
    try:
        written = export_onnx(network, torch.randn(2, 64, dtype=dtype), tmp_path / "a.onnx")
    except ModelError as error:
        assert "export network.float()" in str(error)
    else:
        assert written.largest_difference <= 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["dynamic", "static"])
def test_onnx_runtime_quantizes_the_file(way: str, tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    network, x = _trained().eval(), torch.randn(4, 3, 6, 6)
    export_onnx(network, x, tmp_path / "a.onnx")
    if way == "dynamic":
        quantization.quantize_dynamic(tmp_path / "a.onnx", tmp_path / "b.onnx")
    else:

        class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                self.left = iter([{"x": x.numpy()}])

            def get_next(self) -> object:
                return next(self.left, None)

        quantization.quantize_static(tmp_path / "a.onnx", tmp_path / "b.onnx", Calibration())
    assert torch.allclose(_onnx_outputs(tmp_path / "b.onnx", x)[0], network(x), atol=0.1)


class Recurrent(nn.Module):
    def __init__(self, **options: int | bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, **options)

    def forward(self, x: Tensor, h: Tensor | None = None, c: Tensor | None = None) -> list[Tensor]:
        y, (h, c) = self.lstm(x, None if h is None or c is None else (h, c))
        return [y, h, c]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("first_states", "options"),
    [(False, {}), (True, {"batch_first": False, "bias": False}), (True, {"num_layers": 2, "bidirectional": True})],
    ids=str,
)
def test_projections_of_an_lstm_are_exported(
    options: dict[str, int | bool], first_states: bool, tmp_path: Path
) -> None:
    network = Recurrent(**{"proj_size": 3, "batch_first": True, **options}).eval()
    rows = network.lstm.num_layers * (1 + network.lstm.bidirectional)
    x = torch.randn(2, 5, 4) if network.lstm.batch_first else torch.randn(5, 2, 4)
    states = (torch.randn(rows, 2, network.lstm.proj_size or 6), torch.randn(rows, 2, 6)) if first_states else ()
    written = export_onnx(network, (x, *states), tmp_path / "a.onnx")
    for given in ((x, *states), (x.flip(0), *(-s for s in states))):
        for got, wanted in zip(_onnx_outputs(written.path, *given), network(*given), strict=True):
            assert torch.allclose(got, wanted, atol=1e-5)


def test_a_finished_run_leaves_nothing_beside_its_folder_but_the_caches_of_libraries(tmp_path: Path) -> None:
    """ONNX Runtime, left alone, writes an identity into the home folder and reports what it does."""
    code = (
        "import torch, archgrad as ag; x = torch.randn(40, 4); task = ag.Classification((x, torch.arange(40) % 2));"
        "net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2));"
        "run = ag.Run(steps=12, folder='run', progress=False);"
        "ag.dnal(ag.slim(net, x[:1]), task, run, limit=ag.params().at_most(fraction=0.9), round_to=1, gate_epochs=1);"
        "ag.export_onnx(net, x[:1], 'net.onnx')"
    )
    for name in ("home", "tmp", "here"):
        (tmp_path / name).mkdir()
    # Of conftest.py's environment nothing, which keeps ONNX Runtime quiet too.
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path / "here", env=kept | places)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    beside = {name for name in written if not name.startswith(("here/run/", "home/.cache/matplotlib/"))}
    assert beside == {"here/net.onnx"} and "here/run/network.safetensors" in written


@pytest.mark.parametrize("make", [transformers.vit_fused, transformers.encoder_layer, convolutional.resnet])
def test_removed_branches_leave_no_zeros_in_the_file(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """A sum with zeros is time in ONNX Runtime, and an error in OpenVINO once it is in int8."""
    onnx, x = pytest.importorskip("onnx"), torch.randn(2, 3, 8, 8)
    space = slim(make().eval(), x)
    for branch in [name for name, gate in gates(space).items() if gate.vanishing]:
        picks = {n: () if n == branch else tuple(range(g.size)) for n, g in gates(space).items()}
        network = build(space, Architecture(picks)).eval()
        export_onnx(network, x, tmp_path / "small.onnx")
        graph = onnx.load(str(tmp_path / "small.onnx")).graph
        assert not [node.name for node in graph.node if "zeros_like" in node.name], branch
        data = int8_onnx((tmp_path / "small.onnx").read_bytes(), [(x,)])
        if importlib.util.find_spec("openvino"):
            assert runtimes.OpenVino(data, (x,), threads=1)


def test_sums_with_zeros_of_another_shape_stay(tmp_path: Path) -> None:
    """x + zeros_like(y) may be wider than x, and then it is no x."""
    network, x = Wider(), torch.randn(2, 1, 4)
    export_onnx(network, x, tmp_path / "wide.onnx")
    onnx = pytest.importorskip("onnx")
    assert [node for node in onnx.load(str(tmp_path / "wide.onnx")).graph.node if node.op_type == "Add"]


class Wider(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return (y + torch.zeros_like(torch.cat([y, y], 1))).relu()
