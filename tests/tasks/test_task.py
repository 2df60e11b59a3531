"""Tasks written by hand: what a method finds out about them, and when."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.errors import ConfigError
from archgrad.tasks.task import batch_size, evaluate, first, names_label, require, rows_of, tensors


class Sums:
    """The sum of four numbers."""

    example = torch.ones(1, 4)
    steps_per_epoch = 2
    higher_is_better = False

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Callable[[int], tuple[Tensor, Tensor]]:
        def batch(step: int) -> tuple[Tensor, Tensor]:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1000 * seed + step))
            return x, x.sum(1, keepdim=True)

        return batch

    def loss(self, network: nn.Module, batch: Any) -> Any:
        return nn.functional.mse_loss(network(batch[0]), batch[1])

    def evaluate(self, network: nn.Module, part: str = "valid") -> Any:
        return {"mse": float(self.loss(network, self.stream(seed=1)(0)).detach())}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))


def run(steps: int = 2) -> ag.Run:
    return ag.Run(steps=steps, device="cpu", progress=False)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda output: 1.0, "the loss is 1.0; it must be a scalar"),
        (lambda output: None, "the loss is None; it must be a scalar"),
        (lambda output: output, r"the loss is a tensor \[8, 1\] float32; it must be a scalar"),
        (lambda output: output.mean() * 1j, r"the loss is a tensor \[\] complex64"),
        (lambda output: output.detach().mean(), "the loss has no gradient"),
    ],
)
def test_a_loss_that_cannot_be_minimized_is_refused(
    loss: Callable[[Tensor], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sums, "loss", lambda self, network, batch: loss(network(batch[0])))
    with pytest.raises(ConfigError, match=message):
        ag.fit(net(), Sums(), run())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (1.0, r"returns 1\.0\. Return a dict of figures"),
        (None, r"returns None\. Return a dict"),
        ({}, r"returns \{\}\. Return a dict"),
        ({"m": "good"}, "gives 'good' for 'm'. Allowed is one number"),
        ({"m": None}, "gives None for 'm'. Allowed is one number"),
        ({"m": torch.ones(3)}, r"gives a tensor \[3\] for 'm'. Allowed is one number"),
    ],
)
def test_figures_that_are_no_numbers_are_refused(
    returned: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sums, "evaluate", lambda self, network, part="valid": returned)
    with pytest.raises(ConfigError, match=message):
        ag.fit(net(), Sums(), run())


def test_a_tensor_of_one_number_is_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sums, "evaluate", lambda self, network, part="valid": {"m": torch.tensor(0.5), "n": 2})
    figures = evaluate(Sums(), net())
    assert figures == {"m": 0.5, "n": 2.0} and all(type(value) is float for value in figures.values())
    space = ag.slim(net(), example=Sums.example)
    assert ag.dnal(space, Sums(), run(6)).record["after"]["m"] == 0.5


def test_a_result_of_nan_is_kept_with_the_name_of_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sums, "evaluate", lambda self, network, part="valid": {"m": math.nan})
    found = ag.dnal(ag.slim(net(), example=Sums.example), Sums(), run(6))
    assert found.score is not None and math.isnan(found.score) and found.costs["params"] > 0
    assert any("m of the network 'after' on the test part: not finite" in note for note in found.record["notes"])


def test_members_that_cannot_be_called_are_refused_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require(Sums(), method="fit")
    for name, wrong in {
        "evaluate": lambda self, network: {"m": 1.0},
        "loss": lambda self, network: network.weight.sum(),
        "stream": lambda self: lambda step: None,
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(Sums, name, wrong)
            with pytest.raises(ConfigError, match=rf"fit cannot call {name} of Sums .*Define {name}\("):
                require(Sums(), method="fit")


X = torch.arange(12.0).view(4, 3)
BATCHES: dict[str, Any] = {
    "a tensor": X,
    "a pair": (X, X[:, 0]),
    "a list that is a pair": [X, X[:, 0]],
    "a list of tensors": [X, X, X[:, 0]],
    "by name": {"x": X, "y": X[:, 0]},
    "targets in a list of dicts": (X, [{"boxes": X[:k], "at": X[k]} for k in range(4)]),
    "images in a list": ([X[:, :k] for k in (2, 3, 2, 1)], [{"at": row} for row in X]),
    "a list of samples": [{"at": row} for row in X],
    "a list that is a pair of dicts": [{"x": X}, {"y": X[:, 0]}],
}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("sample", [{"image": torch.zeros(3, 8, 8), "at": X[0]}, (torch.zeros(3, 8, 8), X[0])])
def test_a_list_of_samples_is_as_long_as_it_is(sample: Any, count: int) -> None:
    batch = [sample] * count
    assert batch_size(batch) == count and len(first(batch, 2)) == min(count, 2)


@pytest.mark.parametrize("kind", BATCHES)
def test_the_samples_of_a_batch(kind: str) -> None:
    batch = BATCHES[kind]
    assert batch_size(batch) == 4
    taken = rows_of(batch, [2, 0, 2])
    assert type(taken) is type(batch) and batch_size(taken) == 3
    again = rows_of(rows_of(batch, [3, 1, 2, 0]), [3, 1, 2, 0])
    assert all(map(torch.equal, tensors(again), tensors(batch)))
    assert [x.shape for x in tensors(first(batch, 2))] == [x.shape for x in tensors(rows_of(batch, [0, 1]))]
    assert not all(map(torch.equal, tensors(rows_of(batch, [1, 0, 3, 2])), tensors(batch)))


def test_what_is_no_sample_stays() -> None:
    batch = {"x": X, "scale": torch.ones(()), "weights": torch.ones(7), "labels": X[:, 0], "none": None}
    taken = rows_of(batch, [3], kept=names_label)
    assert taken["x"].tolist() == [X[3].tolist()]
    assert all(taken[name] is batch[name] for name in ("scale", "weights", "labels", "none"))


def test_lists_that_are_no_samples_are_nests() -> None:
    batch = {"x": torch.arange(6.0).reshape(3, 2), "more": {"shift": [torch.arange(3.0)]}}
    taken = rows_of(batch, [2, 0])
    assert taken["x"].tolist() == [[4, 5], [0, 1]] and taken["more"]["shift"][0].tolist() == [2, 0]
