"""Inputs and outputs of every usual kind, from slim to the file: by keywords, in dicts, tuples and data classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.copy_and_run import by_name
from archgrad.errors import ModelError
from archgrad.extract import onnx_file
from archgrad.spaces.slim.seeded_run import tensors_of
from archgrad.tasks.task import tensors


class ByName(nn.Module):
    """Takes its inputs by name, an optional one and a setting among them, and returns more than tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, values: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> dict[str, Any]:
        hidden = torch.relu(self.second(torch.relu(self.first(values))))
        logits = self.head(hidden if mask is None else hidden * mask[:, None]) * scale
        return {"logits": logits, "rest": (None, [hidden]), "count": 3}


class ByDict(ByName):
    """The same, with all of it in one dict."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:  # type: ignore[override]
        return super().forward(batch["values"], batch["mask"])


def example() -> dict[str, Tensor]:
    return {"mask": torch.ones(1), "values": torch.randn(1, 6, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("kind", [ByName, ByDict])
def test_names_go_through_slim_costs_fit_and_files(kind: type[ByName], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    data = {"mask": torch.ones(64), "values": x}, (x[:, 0] > 0).long()
    task = ag.Classification(data, batch_size=16)
    network, inputs = kind(), task.example
    ag.fit(network, task, ag.Run(epochs=2, progress=False))
    space = ag.slim(network, example=inputs)
    found = ag.dnal(
        space, task, ag.Run(steps=20, folder=tmp_path / "run", progress=False),
        limit=ag.macs(inputs).at_most(fraction=0.5), round_to=1,
    )  # fmt: skip
    assert ag.macs(inputs).of(network) == 6 * 16 + 16 * 16 + 16 * 2
    assert found.costs["macs"] <= 0.5 * ag.macs(inputs).of(network)
    assert ag.latency(inputs, repeats=2, warmup=1).of(found.network) > 0
    assert not [note for note in found.record["notes"] if "cannot be exported" in note]
    loaded = torch.export.load(tmp_path / "run" / "network.pt2").module()
    three = {"mask": torch.ones(3), "values": torch.randn(3, 6)}
    named = by_name(network, (three,)) is not None
    expected = found.network(**three) if named else found.network(three)
    outputs = loaded(**three) if named else loaded(three)
    assert torch.allclose(outputs["logits"], expected["logits"], atol=1e-5)
    assert named == (kind is ByName)


def test_values_that_are_no_tensors_may_be_among_the_names() -> None:
    network = ByName()
    given = example() | {"scale": 2.0}
    space = ag.slim(network, example=given)
    assert ag.macs(given).of(space) == ag.macs(example()).of(network)


def test_what_forward_does_not_take_is_said_with_its_shapes() -> None:
    with pytest.raises(ModelError, match=r"\[1, 6\]"):
        ag.macs({"other": torch.ones(1, 6)}).of(ByName())


def test_keywords_are_told_from_a_dict_by_the_signature() -> None:
    assert set(by_name(ByName(), (example(),)) or {}) == {"mask", "values"}
    assert by_name(ByDict(), (example(),)) is None
    assert by_name(ByName(), (torch.ones(1, 6),)) is None
    assert by_name(ByName(), ({"values": torch.ones(1, 6), "unknown": 1},)) is None


@dataclasses.dataclass
class Answer:
    """A class of the user's, which whoever loads the file does not have."""

    logits: Tensor
    hidden: Tensor | None = None
    scale: float = 1.0


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "data class": Answer,
    "data classes in a list in a dict": lambda logits, hidden: {"logits": logits, "all": [Answer(hidden), None]},
    "named tuple": Pair,
    "tuple with None and a number": lambda logits, hidden: (logits, None, 2.0, 3),
}


class Returning(ByName):
    """Returns its logits in a form."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        outputs = super().forward(x)
        return self.form(outputs["logits"], outputs["rest"][1][0])


def builtin(outputs: Any) -> bool:
    """Whether a nest is of Python's own classes and tensors."""
    if type(outputs) in (dict, list, tuple):
        return all(map(builtin, outputs.values() if isinstance(outputs, dict) else outputs))
    return isinstance(outputs, Tensor | int | float | None)


def same(got: list[Tensor], want: list[Tensor]) -> None:
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_every_kind_go_into_files(kind: str, tmp_path: Path) -> None:
    network, x = Returning(OUTPUTS[kind]), torch.randn(3, 6)
    ag.export_program(network, x[:1], tmp_path / "network.pt2")
    outputs = torch.export.load(tmp_path / "network.pt2").module()(x)
    assert builtin(outputs)
    same(tensors(outputs), tensors_of(network(x)))
    ag.export_onnx(network, x[:1], tmp_path / "network.onnx")
    same(onnx_file.Session((tmp_path / "network.onnx").read_bytes()).outputs((x,)), tensors_of(network(x)))


def test_a_data_class_goes_through_slim_costs_fit_files_and_report(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    task = ag.Classification((x, (x[:, 0] > 0).long()), batch_size=16)
    network = Returning(OUTPUTS["data class"])
    ag.fit(network, task, ag.Run(epochs=1, progress=False))
    limit = ag.macs(task.example).at_most(fraction=0.5)
    run = ag.Run(steps=12, folder=tmp_path / "run", progress=False)
    found = ag.dnal(ag.slim(network, example=task.example), task, run, limit=limit, round_to=1)
    assert found.costs["macs"] <= 0.5 * ag.macs(task.example).of(network)
    assert not [note for note in found.record["notes"] if "cannot be exported" in note]
    assert "accuracy" in found.report() and (tmp_path / "run" / "report.html").exists()
    outputs = torch.export.load(tmp_path / "run" / "network.pt2").module()(x[:3])
    assert outputs.keys() == {"logits", "hidden", "scale"}
    same(tensors(outputs), tensors_of(found.network(x[:3])))
