"""A space that nobody foresaw: a transformer whose blocks are attention, a convolution or an MLP."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import archgrad as ag

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("search_my_transformer", EXAMPLES / "search_my_transformer.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_what_is_built_is_what_was_held(example: ModuleType) -> None:
    space, g = example.MyTransformer().eval(), torch.Generator().manual_seed(0)
    x = torch.randn(3, 1, 8, 8, generator=g)
    for _ in range(4):
        architecture = ag.sample(space, generator=g)
        network = ag.build(space, architecture)
        assert torch.equal(network(x), ag.hold(space, architecture)(x))
        assert not [m for m in network.modules() if type(m).__module__.startswith("archgrad")]
        torch.export.export(network, (x,), strict=False)


@pytest.mark.parametrize("method", [ag.unas, ag.darts, ag.random_search])
def test_every_search_keeps_its_limit(example: ModuleType, method: object) -> None:
    torch.manual_seed(0)
    task = ag.Classification(ag.digits(), batch_size=64)
    run = ag.Run(steps=24, trials=3, seed=0, device="cpu", progress=False)
    limit = ag.macs(task.example).at_most(fraction=0.5)
    found = method(example.MyTransformer(), task, run, limit=limit)
    assert found.costs["macs"] <= found.record["limit"]["bound"]
    assert {row["choice"] for row in found.record["picks"]} == set(found.architecture)
