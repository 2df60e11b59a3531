"""What MODEL may be, and weights."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune

from archgrad.cli.inputs.models import load, read_weights
from archgrad.errors import ConfigError, ModelError

EXAMPLE = torch.zeros(1, 1, 8, 8)


@pytest.fixture
def net(place: Path) -> str:
    return str(place / "net.py")


@pytest.mark.parametrize(("attribute", "classes"), [("Net", 5), ("talks", 5), ("instance", 3)])
def test_a_class_a_function_and_an_instance(net: str, attribute: str, classes: int) -> None:
    network = load(f"{net}:{attribute}", classes=5, example=EXAMPLE)
    assert network(EXAMPLE).shape == (1, classes)


def test_a_module_is_found_from_the_present_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    assert isinstance(load("net:Net", classes=4, example=EXAMPLE), nn.Module)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("net", "Give package.module:callable, path/to/file.py:callable, or timm:NAME"),
        ("net:", "is not understood"),
        (":Net", "is not understood"),
        ("no_such_package.net:Net", "there is no module 'no_such_package'"),
        ("torch.no_such_module:Net", "there is no module 'torch.no_such_module'"),
        ("no/such/file.py:Net", "there is no file no/such/file.py"),
        ("FILE:Nett", "has no 'Nett'. It defines Net, Wide, talks"),
    ],
)
def test_what_is_not_there_is_refused(net: str, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(name.replace("FILE", net), classes=3, example=EXAMPLE)


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("fails", r"raised LookupError: no such thing \(.*net\.py, line \d+\)"),
        ("needs", "needs the arguments width"),
        ("number", "gives a int. Allowed is a torch.nn.Module"),
    ],
)
def test_a_callable_that_makes_no_network_is_refused(net: str, attribute: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load(f"{net}:{attribute}", classes=3, example=EXAMPLE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n", r"bad\.py raised SyntaxError: .*bad\.py, line 1"),
        (
            "import no_such_thing\n",
            r"raised ModuleNotFoundError: No module named 'no_such_thing' \(.*bad\.py, line 1",
        ),
        ("1 / 0\n", r"raised ZeroDivisionError: division by zero \(.*bad\.py, line 1"),
        ("raise SystemExit(0)\n", "raised SystemExit"),
        ("class Halt(BaseException): pass\nraise Halt('on')\n", r"raised Halt: on \(.*bad\.py, line 2"),
        ("class E(Exception):\n def __str__(self): raise self\nraise E\n", r"raised E:  \(.*bad\.py, line 3"),
        ("e = ValueError('round')\ne.__cause__ = e\nraise e\n", r"raised ValueError: round \(.*bad\.py, line 3"),
    ],
)
def test_a_file_that_fails_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ModelError, match=said):
        load(f"{tmp_path / 'bad.py'}:f", classes=3, example=EXAMPLE)


def test_a_module_whose_own_import_fails_is_no_missing_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imports_nothing.py").write_text("import no_such_thing\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"raised ModuleNotFoundError: .*imports_nothing\.py, line 1"):
        load("imports_nothing:f", classes=3, example=EXAMPLE)


def test_a_file_can_import_its_neighbor(tmp_path: Path) -> None:
    (tmp_path / "neighbor_of_main.py").write_text("from torch import nn\n")
    (tmp_path / "main.py").write_text("from neighbor_of_main import nn\ndef f():\n    return nn.Linear(2, 2)\n")
    assert isinstance(load(f"{tmp_path / 'main.py'}:f", classes=3, example=EXAMPLE), nn.Linear)


def test_timm_when_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="pip install timm"):
        load("timm:resnet18", classes=3, example=EXAMPLE)


def test_weights_are_read_from_both_kinds_of_file(net: str, tmp_path: Path) -> None:
    trained = load(f"{net}:Net", classes=3, example=EXAMPLE)
    safetensors.torch.save_model(trained, str(tmp_path / "w.safetensors"))
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    torch.save({"state_dict": trained.state_dict(), "epoch": 3}, tmp_path / "nested.pt")
    for name in ("w.safetensors", "w.pt", "nested.pt"):
        network = load(f"{net}:Net", classes=3, example=EXAMPLE)
        assert not torch.equal(network.first.weight, trained.first.weight)
        read_weights(network, tmp_path / name)
        assert torch.equal(network.first.weight, trained.first.weight)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "student.net."])
@pytest.mark.parametrize("where", [(), ("model_state_dict",), ("checkpoint", "net"), ("ema",)])
def test_weights_are_taken_from_what_training_scripts_save(
    net: str, tmp_path: Path, prefix: str, where: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    trained = load(f"{net}:Net", classes=3, example=EXAMPLE)
    optimizer = torch.optim.Adam(trained.parameters())
    sum(p.sum() for p in trained.parameters()).backward()
    optimizer.step()
    saved: dict = {f"{prefix}{name}": tensor for name, tensor in trained.state_dict().items()}
    averaged = {name: tensor + 1 for name, tensor in saved.items()}
    if prefix:
        saved["criterion.weight"] = torch.ones(3)
    safetensors.torch.save_file(saved, tmp_path / "w.safetensors")
    for name in reversed(where):
        saved = {name: saved}
    if where:
        saved |= {"optimizer": optimizer.state_dict(), "epoch": 3, "scaler": {"scale": torch.ones(1)}}
        saved |= {"model_ema": averaged} if where != ("ema",) else {}
    torch.save(saved, tmp_path / "w.pt")
    for name in ("w.pt", "w.safetensors"):
        network = load(f"{net}:Net", classes=3, example=EXAMPLE)
        read_weights(network, tmp_path / name)
        assert torch.equal(network.first.weight, trained.first.weight)
        told = capsys.readouterr().err
        assert ("model_ema" in told and f"{'.'.join(where)} is taken" in told) == (name == "w.pt" and len(saved) == 5)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("form", ["w.pt", "w.safetensors"])
def test_weights_that_are_no_numbers_are_refused_with_their_file(tmp_path: Path, broken: float, form: str) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    name = "1.running_var" if broken == -1.0 or torch.isnan(torch.tensor(broken)) else "0.weight"
    state[name].view(-1)[1] = broken
    torch.save(state, tmp_path / "w.pt")
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=rf"{form} hold NaN .* in 1 tensors \({name}\)"):
        read_weights(network, tmp_path / form)


@pytest.mark.parametrize("form", ["bad.pt", "bad.safetensors"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_weights_of_other_kinds_of_numbers_are_not_cast(tmp_path: Path, dtype: torch.dtype, form: str) -> None:
    network = nn.Linear(2, 3)
    state = {name: (50 * tensor).to(dtype) for name, tensor in network.state_dict().items()}
    (safetensors.torch.save_file if form.endswith("tensors") else torch.save)(state, tmp_path / form)
    before = network.weight.clone()
    with pytest.raises(ModelError, match=rf"hold {str(dtype).removeprefix('torch.')} numbers in \w+ and 1 more"):
        read_weights(network, tmp_path / form)
    assert torch.equal(network.weight, before)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_of_tied_layers_are_not_cast_either(tmp_path: Path, dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Embedding(5, 5), nn.Linear(5, 5, bias=False))
    network[1].weight = network[0].weight
    safetensors.torch.save_model(network.double(), str(tmp_path / "w.safetensors"))
    read_weights(network, tmp_path / "w.safetensors")
    safetensors.torch.save_file({"0.weight": torch.ones(5, 5).to(dtype)}, tmp_path / "w.safetensors")
    before = network[0].weight.clone()
    with pytest.raises(ModelError, match=r"numbers in 0\.weight, where the network has real ones"):
        read_weights(network, tmp_path / "w.safetensors")
    assert torch.equal(network[0].weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_wrappers_anywhere_in_a_network_and_real_numbers_of_any_size_are_taken(
    tmp_path: Path, wrapper: str, dtype: torch.dtype
) -> None:
    network, trained = (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)) for _ in range(2))
    state = trained.to(dtype).state_dict()
    torch.save({n.replace("1.", f"1.{wrapper}"): tensor for n, tensor in state.items()}, tmp_path / "w.pt")
    read_weights(network, tmp_path / "w.pt")
    assert torch.equal(network[1].weight, trained[1].weight.float())


@pytest.mark.parametrize("name", ["attn_mask", "scale_g", "key_v", "weight_orig", "parametrization_size"])
def test_buffers_that_are_called_like_a_parametrization_are_none(tmp_path: Path, name: str) -> None:
    network = nn.Linear(2, 3)
    torch.save({**network.state_dict(), name: torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=rf"unexpected {name} \(1\)") as caught:
        read_weights(network, tmp_path / "w.pt")
    assert "remove" not in str(caught.value)


@pytest.mark.parametrize("kind", ["weight_norm", "old weight_norm", "spectral_norm", "old spectral_norm", "prune"])
def test_weights_with_a_parametrization_say_how_it_comes_off(tmp_path: Path, kind: str) -> None:
    network = nn.Linear(2, 3)
    if kind == "prune":
        prune.l1_unstructured(network, "weight", amount=0.5)
    else:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            getattr(nn.utils if "old" in kind else nn.utils.parametrizations, kind.removeprefix("old "))(network)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"remove_parametrizations or torch\.nn\.utils\.prune\.remove, then"):
        read_weights(nn.Linear(2, 3), tmp_path / "w.pt")


def test_weights_that_do_not_fit_are_refused(net: str, tmp_path: Path) -> None:
    network = load(f"{net}:Net", classes=3, example=EXAMPLE)
    state = {**network.state_dict(), "extra.weight": torch.zeros(1)}
    del state["first.bias"]
    torch.save(state, tmp_path / "other.pt")
    safetensors.torch.save_file(state, tmp_path / "other.safetensors")
    wide = load(f"{net}:Wide", classes=3, example=EXAMPLE)
    torch.save(wide.state_dict(), tmp_path / "wide.pt")
    for name in ("other.pt", "other.safetensors"):
        with pytest.raises(ModelError, match=r"missing first\.bias \(1\); unexpected extra\.weight \(1\)"):
            read_weights(network, tmp_path / name)
    with pytest.raises(ModelError, match=r"do not fit Net: .*last\.weight"):
        read_weights(network, tmp_path / "wide.pt")


def test_what_is_no_weights_file_is_refused(net: str, tmp_path: Path) -> None:
    network = load(f"{net}:Net", classes=3, example=EXAMPLE)
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello, this is no safetensors file")
    for name, said in {
        "pickled.pt": "can execute code",
        "list.pt": "hold no state dict",
        "text.pt": "cannot be read",
        "text.safetensors": "damaged",
        "none.pt": "there is no such file",
    }.items():
        with pytest.raises(ModelError, match=said) as caught:
            read_weights(network, tmp_path / name)
        assert "weights_only`" not in str(caught.value) and len(str(caught.value)) < 600
        assert str(caught.value).count(name) == 1, "one message, and not one in another"
