"""Somebody's network is copied with what torch does not copy, run with an explanation, and put back."""

from __future__ import annotations

import threading
from copy import deepcopy

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


class Tangled(nn.Module):
    """Holds what a copy has to keep apart, and what it has to keep together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.b.weight = nn.Parameter(self.a.bias)  # tied through memory
        self.again = self.a  # a module twice
        self.register_buffer("table", torch.arange(8.0))
        self.register_buffer("tail", self.table[4:])  # a view of the same memory
        self.known = {"a": self.a, "list": [self.b, (self.a.weight, 3)]}
        object.__setattr__(self, "back", [self])  # a cycle
        self.a.parent = [self]
        self.empty = self.also_empty = {}  # one object under two names
        self.hooks = [self.a.register_forward_hook(self.seen)]
        self.count = 0

    def seen(self, *_: object) -> None:
        self.count += 1

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + self.tail


class Custom(nn.Linear):
    def __deepcopy__(self, memo: dict[int, object]) -> Custom:
        made = Custom(self.in_features, self.out_features)
        made.load_state_dict(self.state_dict())
        made.copied_by_itself = True
        return made


class Revived(nn.Linear):
    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self.revived = True


def test_a_copy_keeps_together_what_is_one_and_apart_what_is_not() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(Tangled(), Custom(4, 4), Revived(4, 4), nn.Identity())
    copy = copied(network)
    old, new = network[0], copy[0]
    assert new.again is new.a and new.known["a"] is new.a and new.known["list"][0] is new.b
    assert new.known["list"][1][0] is new.a.weight and new.known["list"][1][0] is not old.a.weight
    assert new.back[0] is new and new.a.parent[0] is new
    assert new.empty is new.also_empty and new.empty is not old.empty
    new.table[5] = -1.0
    assert new.tail[1] == -1.0 and old.tail[1] == 5.0
    assert copy[1].copied_by_itself and copy[2].revived and not hasattr(network[1], "copied_by_itself")
    copy(torch.randn(3, 4))
    assert new.count == 1 and old.count == 0  # a hook that is a method is the copy's
    shared = copied(network, share=True)
    assert shared[0].a.weight is old.a.weight and shared[0].table is not old.table
    shared[0].a.register_forward_hook(lambda *_: None)
    assert len(old.a._forward_hooks) == 1


@pytest.mark.parametrize("network", [
    nn.LSTM(3, 4, 2), nn.MultiheadAttention(4, 2), nn.TransformerEncoderLayer(4, 2, 8), nn.Conv2d(3, 4, 3),
    torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3), nn.ReLU())), nn.ParameterList([torch.ones(2)]),
    nn.ModuleDict({"a": nn.GRU(2, 2), "b": nn.Linear(2, 2).double().requires_grad_(False)}),
], ids=lambda n: type(n).__name__)  # fmt: skip
def test_a_copy_is_what_deepcopy_makes(network: nn.Module) -> None:
    ours, theirs = copied(network), deepcopy(network)
    assert repr(ours) == repr(theirs) and type(ours).__name__ == type(theirs).__name__
    for (name, mine), (other_name, module) in zip(ours.named_modules(), theirs.named_modules(), strict=True):
        assert name == other_name and vars(mine).keys() == vars(module).keys()
        for attribute, value in vars(module).items():
            assert type(vars(mine)[attribute]) is type(value), (name, attribute)
    for (name, mine), (other_name, tensor) in zip(
        [*ours.named_parameters(), *ours.named_buffers()], [*theirs.named_parameters(), *theirs.named_buffers()],
        strict=True,
    ):  # fmt: skip
        assert name == other_name and torch.equal(mine, tensor) and mine.requires_grad == tensor.requires_grad
        assert mine.data_ptr() not in {p.data_ptr() for p in network.parameters()}


def test_conjugates_and_meta_tensors_are_copied_as_what_they_are() -> None:
    network = nn.Linear(2, 2)
    numbers = torch.tensor([1.0 + 2.0j, 3.0 - 1.0j])
    network.register_buffer("conjugate", numbers.conj())
    network.register_buffer("negative", numbers.conj().imag)
    network.register_buffer("nowhere", torch.empty(2, device="meta"))
    copy = copied(network)
    assert torch.equal(copy.conjugate, network.conjugate) and torch.equal(copy.negative, network.negative)
    assert copy.nowhere.is_meta


@pytest.mark.parametrize("share", [False, True])
def test_a_copy_of_a_module_that_was_compiled_in_place_runs_itself(share: bool) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    network.compile(backend="eager")
    network[0].compile(backend="eager")
    copy = copied(network, share=share)
    copy[0].weight, copy[0].bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2))
    assert torch.equal(copy(torch.ones(1, 2)), torch.ones(1, 2))
