"""Every public function and class refuses an argument of a wrong type in words of archgrad, whichever it is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.control import cart_pole
from archgrad.rl import PixelGame


class Wrong:
    """No argument of any function."""

    def __repr__(self) -> str:
        return "something else"


@functools.cache
def valid() -> dict[str, Any]:
    """Arguments that go, by the names that parameters have."""
    x = torch.zeros(2, 1, 8, 8)
    space = nn.Sequential(ag.OpChoice([nn.Identity(), nn.ReLU()], name="layer"), nn.Flatten(), nn.Linear(64, 10))
    task = ag.Classification((torch.randn(40, 1, 8, 8), torch.arange(40) % 10), batch_size=8)
    return {
        "space": ag.relax(space, ag.gumbel_softmax), "system": cart_pole(), "source": task,
        "target": task, "network": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "net": nn.Linear(4, 4),
        "task": task, "run": ag.Run(steps=2, trials=2, device="cpu", progress=False), "teacher": nn.Linear(4, 4),
        "architecture": ag.Architecture({"layer": 0}), "structure": ag.Architecture({"layer": 0}),
        "limit": ag.params().at_most(fraction=0.9), "steps": 3, "example": x, "x": x, "size": 3, "channels": 4,
        "features": 4, "classes": 3, "name": "name", "unit": "unit", "padding": 2, "cost": ag.params(), "given": {},
        "bound": 3.0, "path": "file", "picks": {"layer": 0}, "inputs": {"a": ag.vector_encoder(3)}, "support": {},
        "weights": {}, "relaxation": ag.softmax, "function": len, "score": len, "train": None, "labels": [0],
        "parameters": list(nn.Linear(2, 2).parameters()), "mnist": "none", "fsdd": "none", "factory": nn.ReLU,
        "candidates": [nn.ReLU(), nn.Identity()], "string": "none", "cell": "none", "env": PixelGame, "arrays": {},
        "scores": {},
    }  # fmt: skip


def parameters() -> list[tuple[str, str]]:
    """Every parameter of every public function and class; the fields of a result are what methods put there."""
    pairs = []
    for name in sorted(set(ag.__all__) - {"Found", "Front", "FrontPoint", "ArchgradClassifier", "__version__"}):
        function = getattr(ag, name)
        if callable(function) and not (inspect.isclass(function) and issubclass(function, BaseException)):
            signature = inspect.signature(function)
            pairs += [(name, option) for option, p in signature.parameters.items() if p.annotation != "Any"]
    return pairs


@pytest.mark.parametrize(("name", "option"), parameters(), ids=str)
def test_a_wrong_argument_is_refused(name: str, option: str) -> None:
    function: Callable[..., Any] = getattr(ag, name)
    required = [n for n, p in inspect.signature(function).parameters.items() if p.default is p.empty]
    with pytest.raises(ag.ArchgradError):
        result = function(**({n: valid()[n] for n in required if n != option} | {option: Wrong()}))
        if isinstance(result, AbstractContextManager):
            result.__enter__()


class Streamless(ag.Classification):
    """A task whose stream forgets to return."""

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Any:
        """Nothing."""


class Batchless(ag.Classification):
    """A task whose stream returns no batch."""

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Any:
        """A function that forgets to return."""
        return lambda step: None


def fitted(task: type[ag.Classification] = ag.Classification, **options: Any) -> object:
    data = (torch.randn(40, 1, 8, 8), torch.arange(40) % 10)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return ag.fit(network, task(data, batch_size=8, **options), ag.Run(steps=1, device="cpu", progress=False))


def classified(network: Any) -> object:
    return ag.ArchgradClassifier(network=network, epochs=1).fit([[0.0], [1.0]] * 8, [0, 1] * 8)


RETURNS_NOTHING: dict[str, Callable[[], object]] = {
    "stream": lambda: fitted(Streamless),
    "batch": lambda: fitted(Batchless),
    "augmentation": lambda: fitted(augment=[lambda x, generator: None]),
    "score of a prior": lambda: ag.prior(valid()["space"], lambda some: None),  # type: ignore[arg-type,return-value]
    "scores of a prior": lambda: ag.prior(valid()["space"], lambda some: [None for _ in some]),  # type: ignore[misc]
    "cost": lambda: ag.black_box(lambda net: None, name="a", unit="b").of(nn.ReLU()),  # type: ignore[arg-type,return-value]
    "network of a classifier": lambda: classified(lambda shape, classes: None),
    "a module for a function of it": lambda: classified(nn.Linear(1, 2)),
    "no function": lambda: classified(3),
}


@pytest.mark.parametrize("what", RETURNS_NOTHING)
def test_a_function_of_the_users_that_returns_nothing_is_named(what: str) -> None:
    with pytest.raises(ag.ArchgradError, match=r"None|network="):
        RETURNS_NOTHING[what]()
