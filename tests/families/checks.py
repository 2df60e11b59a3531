"""What the tests of slimmed networks have in common: noise on the weights, runs, comparisons."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, sample
from archgrad.choices.architecture import Architecture
from archgrad.copy_and_run import copied
from archgrad.costs.count import macs, params
from archgrad.extract.discretize import build


def stir(network: nn.Module, *, seed: int = 3) -> None:
    """Noise on every parameter and running statistic, as training leaves it: no zeros, no ones."""
    g = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=g, dtype=torch.float64).to(like.dtype)

    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * noise(parameter) / math.sqrt(max(1, parameter[:1].numel() if parameter.dim() else 1))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.3 * noise(buffer)
            elif name.endswith("running_var"):
                buffer *= (0.5 * noise(buffer)).exp()


def outputs(network: nn.Module, inputs: tuple[Tensor, ...], *, training: bool = False) -> list[Tensor]:
    """All tensors that a copy of the network puts out, with nothing dropped at random."""
    network = copied(network).train(training)
    for module in network.modules():
        if "drop" in type(module).__name__.lower():
            module.eval()
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    with torch.no_grad():
        out = network(*inputs)
    if isinstance(out, Mapping):
        out = tuple(out.values())
    return list(out) if isinstance(out, tuple) else [out]


def difference(a: list[Tensor], b: list[Tensor]) -> float:
    """max |a - b| over all tensors, relative to max(1, |a|)."""
    assert [x.shape for x in a] == [x.shape for x in b]
    assert all(bool(torch.isfinite(x).all()) for x in a)
    return max(float((x - y).abs().max()) / max(1.0, float(x.abs().max())) for x, y in zip(a, b, strict=True))


def extremes(space: nn.Module) -> list[Architecture]:
    """Everything kept, and the least that may be kept."""
    gates = {name: same[0] for name, same in choices(space).items()}
    return [
        Architecture({name: tuple(range(gate.size)) for name, gate in gates.items()}),
        Architecture({name: () if gate.vanishing else (gate.size - 1,) for name, gate in gates.items()}),
    ]


def swapped(architecture: Architecture, sizes: Mapping[str, int]) -> Architecture:
    """The same number of entries everywhere, but in one gate another one: a wrong removal."""
    for name, pick in architecture.items():
        assert isinstance(pick, tuple)
        others = sorted(set(range(sizes[name])) - set(pick))
        if pick and others:
            return Architecture({**architecture, name: (*pick[1:], others[0])})
    raise AssertionError("nothing to swap")


def assert_plain(network: nn.Module) -> None:
    """No object, class, hook or attribute of ours anywhere in the network."""
    for path, module in network.named_modules():
        assert all(not base.__module__.startswith("archgrad") for base in type(module).__mro__), path
        assert "Parametrized" not in type(module).__name__, path
        assert not [name for name in vars(module) if "archgrad" in name.lower()], path
    # The pickle names the module of every class and function that the network holds.
    assert b"archgrad" not in pickle.dumps(network)


Inputs = Tensor | tuple[Tensor, ...]


def agree(space: nn.Module, example: Inputs, other: Inputs, *, plain: bool = True) -> None:
    """Held and built networks, and what they cost, at the smallest architecture and some between."""
    stir(space)
    draws = [sample(space, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for architecture in (extremes(space)[1], *draws):
        held, built = hold(space, architecture), build(space, architecture)
        for x in (example, other):
            for training in (False, True):
                given = x if isinstance(x, tuple) else (x,)
                pair = (outputs(net, given, training=training) for net in (held, built))
                assert difference(*pair) < 1e-9
        if plain:  # torch's own parametrizations cannot be pickled
            assert_plain(built)
        assert float(params().expected(held)) == pytest.approx(params().of(built), rel=1e-9)
        assert float(macs(example).expected(held)) == pytest.approx(macs(example).of(built), rel=1e-9)
