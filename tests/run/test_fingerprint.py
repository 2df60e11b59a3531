"""What the digests of networks and functions tell apart, and what they leave out."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from torch import nn

from archgrad.fingerprint import described, of_network, of_weights


def reading(source: str, **values: Any) -> Any:
    """A function of a program of the user's that reads values of its module."""
    program: dict[str, Any] = {"__name__": "theirs", **values}
    exec(source, program)
    return program["f"]


class Kept:
    """What a network may save."""

    def __init__(self, by: float) -> None:
        self.by = by


ACTIVATIONS = [  # of forward, which change nothing that is kept
    "y = torch.add(x, self.scales[0])", "y = 1 * x; y[:, 0] = self.scales[0]", "y = x.clone().add_(self.scales[0])",
    "y = x * self.scales[0]; y[0][1:2] = 0", "y = [x]; y.append(self.scales[0]); y.pop()",
    "y = x if self.scales else 2 * x; y[:, 0] = 0", "y = {'a': x}; y.update(b=self.scales[0]); del y['a']",
]  # fmt: skip
CHANGES_KEPT = [
    "self.scales.append(x)", "self.scales[0] = x", "kept = self.scales; kept[0] += 1", "del self.scales[0]",
    "self.scales[0:1] = [x if x else 1]", "KEPT = self; KEPT.scales.insert(0, x)", "[self.scales.pop() for _ in x]",
    "setattr(self, 'scales', x)",
]  # fmt: skip


@pytest.mark.parametrize("line", [*ACTIVATIONS, *CHANGES_KEPT])
def test_a_change_of_an_activation_hides_no_option(line: str) -> None:
    source = (
        f"class C(nn.Module):\n    def forward(self, x):\n        {line}\n        return x\ndef f():\n    return C()"
    )

    def of(scale: float) -> str:
        module = reading(source, nn=nn, torch=torch)()
        module.scales = [scale]
        return of_network(module)

    assert of(1.5) == of(1.5)
    assert (of(1.5) == of(2.5)) == (line in CHANGES_KEPT)


def test_options_of_a_module_that_code_reads_may_be_tensors() -> None:
    def of(value: float) -> str:
        module = types.ModuleType("options")
        module.SCALES = torch.tensor([1.0, value])  # type: ignore[attr-defined]
        return described(reading("def f(x):\n    return options.SCALES * x", options=module))

    assert of(1.5) == of(1.5) != of(2.5)


def test_faults_of_a_description_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: Any) -> str:
        raise KeyError("a fault")

    monkeypatch.setattr("archgrad.fingerprint._function", fails)
    with pytest.raises(KeyError, match="a fault"):
        described([lambda: 1])


class Extra(nn.Module):
    """A network that saves what is no dense tensor."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.register_buffer("sparse", torch.diag(torch.tensor([1.0, value])).to_sparse())
        self.register_buffer("empty", torch.empty(2, device="meta"))

    def get_extra_state(self) -> Any:
        return Kept(self.value)

    def set_extra_state(self, state: Any) -> None:
        self.value = state.by


def test_weights_that_are_no_dense_tensors_have_a_digest() -> None:
    assert of_weights(Extra(1.5)) == of_weights(Extra(1.5)) != of_weights(Extra(2.5))
    other = Extra(1.5)
    other.value = 2.5
    assert of_weights(other) != of_weights(Extra(1.5)), "the object alone"
    other.value, other.sparse = 1.5, Extra(2.5).sparse
    assert of_weights(other) != of_weights(Extra(1.5)), "the sparse buffer alone"
