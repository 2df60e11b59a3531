"""Somebody's network is copied with what torch does not copy, run with an explanation, and put back."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

from archgrad.copy_and_run import copied, evaluating, modes_kept, run_on_example, shapes
from archgrad.errors import ModelError


class Caching(nn.Module):
    """Keeps activations of its last pass, in an attribute or deeper."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.layer, self.place = nn.Linear(4, 4), place
        self.last: object = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.last = {"attribute": y, "list": [y, y], "nested": {"a": (1, [y])}}[self.place]
        return y


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    plain, normed, pruned, parametrized = (nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(4))
    with pytest.warns(FutureWarning):
        weight_norm(normed[0])
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    parametrizations.weight_norm(parametrized[0])
    listed = {f"cached in {place}": Caching(place) for place in ("attribute", "list", "nested")}
    return {"plain": plain, "weight norm": normed, "pruned": pruned, "parametrized": parametrized, **listed}


@pytest.mark.parametrize("name", networks())
def test_a_copy_computes_the_same_and_is_separate(name: str) -> None:
    network, x = networks()[name], torch.randn(3, 4)
    expected = network(x)
    expected.sum().backward()
    copy = copied(network)
    assert type(copy) is type(network) and torch.equal(copy(x), expected)
    theirs = {p.data_ptr() for p in network.parameters()}
    assert not theirs & {p.data_ptr() for p in copy.parameters()}
    copy(x).sum().backward()
    assert all(p.grad is not None for p in copy.parameters())


def test_what_cannot_be_copied_is_named() -> None:
    network = nn.Linear(2, 2)
    network.lock = threading.Lock()
    with pytest.raises(ModelError, match=r"Linear cannot be copied: TypeError: cannot pickle .*lock.*Take it"):
        copied(network)


def test_modes_are_put_back_after_a_failure_too() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2)).train()
    network[1].eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules()) and not torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match="now"), modes_kept(network):
        network.eval()
        raise RuntimeError("now")
    assert [module.training for module in network.modules()] == [True, True, False]


def test_a_failure_names_the_shapes() -> None:
    with pytest.raises(ModelError, match=r"Linear does not run on the example of \[1, 3\]: RuntimeError"):
        run_on_example(nn.Linear(2, 2), (torch.zeros(1, 3),))
    assert shapes({"a": torch.zeros(2), "b": [torch.zeros(1, 3), None]}) == "[2], [1, 3]"
