"""Functions of a network that hold its layers: in closures, defaults, partials, hooks and patched forwards."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families.checks import agree
from torch import Tensor, nn
from torch.nn import functional

import archgrad as ag
from archgrad.choices.access import choices
from archgrad.copy_and_run import copied
from archgrad.errors import ModelError

Function = Callable[..., Any]


def _hooked(block: Block) -> Function:
    seen = block.seen
    block.up.register_forward_hook(lambda module, inputs, output: seen.append(output))

    def run(x: Tensor) -> Tensor:
        block.up(x)
        return block.down(block.seen.pop().relu())

    return run


def _patched(block: Block) -> Function:
    before = block.up.forward
    block.up.forward = functools.wraps(before)(lambda x: before(x).relu())  # type: ignore[method-assign]
    return lambda x: block.down(block.up(x))


def _nested(block: Block) -> Function:
    up, down = block.up, block.down

    def inner(x: Tensor) -> Tensor:
        return functional.relu(up(x))

    return lambda x: down(inner(x))


def _chained(block: Block) -> Function:
    up, down = block.up, block.down
    parts = [lambda x: up(x).relu(), functional.relu, lambda x: down(2 * x)]
    return lambda x: functools.reduce(lambda y, part: part(y), parts, x)


def _mutual(block: Block) -> Function:
    up, down = block.up, block.down

    def first(x: Tensor, left: int) -> Tensor:
        return second(up(x).relu(), left)

    def second(x: Tensor, left: int) -> Tensor:
        return first(down(x), left - 1) if left else down(x)

    return lambda x: second(up(x).relu(), 1)


def _keyed(block: Block) -> Function:
    factors, lock = {block.up: 0.5, block.down: 2.0, "lock": threading.Lock()}, threading.Lock()

    def scaled(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        with lock, factors["lock"]:  # type: ignore[index, attr-defined]
            return output * factors[module]  # type: ignore[index]

    for layer in (block.up, block.down):
        layer.register_forward_hook(scaled)
    return lambda x: block.down(block.up(x).relu())


def _composed(block: Block) -> Function:
    function, data = block.plainly, list(range(200_000))
    for _ in range(1200):
        function = (lambda inner: lambda x: inner(x) if data else x)(function)
    return lambda x: block.down(block.up(x).relu()) + 0.0 * len(data) if function else x


KINDS: dict[str, Callable[[Block], Function]] = {
    "a container in a closure": lambda block: lambda x: block.both["down"](block.both["up"](x).relu()),
    "the module itself": lambda block: lambda x: block.down(block.up(x).relu()),
    "layers in a closure": lambda block: (lambda up, down: lambda x: down(up(x).relu()))(block.up, block.down),
    "defaults": lambda block: lambda x, up=block.up, down=block.down: down(up(x).relu()),
    "keyword defaults": lambda block: lambda x, *, up=block.up, down=block.down: down(up(x).relu()),
    "a partial": lambda block: functools.partial(lambda up, down, x: down(up(x).relu()), block.up, block.down),
    "a partial of a closure": lambda block: functools.partial(lambda down, x: down(block.up(x).relu()), block.down),
    "a function in a function": _nested,
    "a list of functions": _chained,
    "a hook": _hooked,
    "a patched forward": _patched,
    "a bound method": lambda block: block.plainly,
    "two that call each other": _mutual,
    "a hook with factors by layer, and a lock": _keyed,
    "a long chain, and a long list": _composed,
}


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.up, self.down, self.seen = nn.Linear(8, 12), nn.Linear(12, 8), list[Tensor]()
        self.both = nn.ModuleDict({"up": self.up, "down": self.down})
        self.function = KINDS[kind](self)

    def plainly(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.function(x)


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), Block(kind), nn.Linear(8, 3)).double().eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_computes_with_layers_of_its_own(kind: str) -> None:
    net, x = network(kind), torch.randn(4, 5, dtype=torch.float64)
    before = net(x).detach()
    twin = copied(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(twin(x), before)
    assert not net(x).any(), "the network itself computes with its own"
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(x).any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_is_cut_in_the_function_too(kind: str) -> None:
    example = torch.randn(4, 5, dtype=torch.float64)
    space = ag.slim(network(kind), example)
    assert set(choices(space)) >= {"0", "2.up"}, "the stream, and the units within the block"
    agree(space, example, torch.randn(7, 5, dtype=torch.float64), plain=False)  # closures cannot be pickled


class Holder:
    """What is no module, and holds a layer."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Indirect(nn.Module):
    """A function that leads to a layer through what copying leaves as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        holder = Holder(self.up)
        self.function = lambda x: holder(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.function(x))


def test_a_copy_that_computes_with_the_weights_of_the_original_is_refused() -> None:
    net = nn.Sequential(nn.Linear(5, 8), Indirect(), nn.Linear(8, 3))
    with pytest.raises(
        ModelError, match=r"a copy of Sequential computes with 1\.up\.weight, 1\.up\.bias of the netw"
    ):
        ag.slim(net, torch.randn(4, 5))
    net[1].function = lambda x: net[1].up(x).relu()  # type: ignore[assignment, operator]
    assert "1.up" in choices(ag.slim(net, torch.randn(4, 5)))


def test_what_is_not_of_the_network_stays_shared() -> None:
    log, other = list[float](), nn.Linear(8, 8)
    net = network("layers in a closure")
    net[2].register_forward_hook(lambda module, inputs, output: log.append(float(net[3].bias.sum())))
    net[2].function = (lambda own: lambda x: own(other(x)))(net[2].both["up"])  # type: ignore[assignment]
    twin = copied(net)
    assert twin[2].function.__closure__[0].cell_contents is other  # type: ignore[union-attr]
    hook = next(iter(twin[2]._forward_hooks.values()))
    assert any(cell.cell_contents is log for cell in hook.__closure__)  # type: ignore[attr-defined]
    assert copied(nn.ReLU()).forward.__func__ is nn.ReLU.forward  # functions that hold nothing are no others
