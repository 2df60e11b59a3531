"""From fresh weights, in a short run: a network of uniform width that takes twice what the limit allows is searched.

The whole network would take many times its time, and hand on little that a few steps have taught it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from archgrad.choices.access import relax
from archgrad.choices.architecture import Architecture
from archgrad.choices.relaxations import ScaledSigmoid
from archgrad.choices.weight_norms import without_weight_norms
from archgrad.copy_and_run import copied, state_tensors
from archgrad.costs.count import Example
from archgrad.errors import ModelError
from archgrad.extract.discretize import build, draw_anew, write_back
from archgrad.gates.gate_optimizer import entry_logits
from archgrad.gates.importance import importance
from archgrad.gates.selection import GateConstraint, full, gates, uniform
from archgrad.spaces.slim.layer_reasons import KEPT
from archgrad.spaces.slim.slimmable import frozen, slim
from archgrad.tasks.batch_checks import FAILURES

_TIMES = 2.0  # what the limit allows
_HALVINGS, _MEASURED_HALVINGS = 12, 5  # of the widths that are tried
_DRAWS = 4
_OPEN = 1e3  # the logits of a gate that the narrower network lacks, which so stays


class Narrowed(NamedTuple):
    """Gates on a narrower network.

    Attributes:
        space: the gates, named as those of the whole network.
        architecture: what of the whole network it holds.
        names: of its gates, by those of the whole network.
    """

    space: nn.Module
    architecture: Architecture
    names: dict[str, str]


def widths_to_search(constraint: GateConstraint) -> Architecture:
    """The narrowest uniform widths that take twice what the limit allows, of the channels of largest magnitude.

    The whole network where it takes less, and where no uniform width keeps the limit, so that whole branches leave.
    """
    space, rounding = constraint.space, constraint.rounding
    low, high = constraint.uniform_width(), 1.0
    if not low or constraint.reference <= _TIMES * constraint.bound:
        return full(space)
    for _ in range(_HALVINGS if constraint.counted else _MEASURED_HALVINGS):
        middle = (low + high) / 2
        enough = constraint.price(uniform(space, middle, rounding)) >= _TIMES * constraint.bound
        low, high = (low, middle) if enough else (middle, high)
    return uniform(space, high, rounding, importance(space, criterion="magnitude"))


def narrowed(space: nn.Module, architecture: Architecture, example: Example) -> Narrowed | None:
    """Gates on the network of an architecture; None where it is the whole one, or cannot be searched in its place."""
    if architecture == full(space) or not all(parameter.requires_grad for parameter in space.parameters()):
        return None  # weights at rest are not fresh: what they are worth shows in the whole network
    kept = [path for path, reason in frozen(space).items() if reason == KEPT]
    network = build(space, architecture)
    scale_as_fresh(network, build(space, full(space)))
    try:
        inner = slim(network, example, keep=kept)
    except ModelError:  # so narrow that nothing is left to remove
        return None
    whole, own = gates(space), gates(inner)
    entries = {name: len(_picks(architecture, name)) for name in whole}
    names = {_of_whole(name, gate.size, entries): name for name, gate in own.items()}
    # What has come to one entry has no gate; some layers are not followed any more once they are cut.
    if not names.keys() <= whole.keys() or any(
        name not in names and (gate.vanishing or entries[name] > 1) for name, gate in whole.items()
    ):
        return None
    searched = Narrowed(inner, architecture, names)
    return searched if _hands_back(space, searched) else None


def _of_whole(name: str, size: int, entries: Mapping[str, int]) -> str:
    """The name in the whole network, where the channels of what came to one head are called those within heads."""
    return next((each for each in (name, f"{name}.channels") if entries.get(each) == size), "")


def _hands_back(space: nn.Module, searched: Narrowed) -> bool:
    """Whether other weights come back to the space, tried on a copy: some are computed anew where channels go."""
    space, other = copied(space), build(searched.space, full(searched.space))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5).add_(0.1)
    write_back(space, searched.architecture, other)
    states = [state_tensors(without_weight_norms(net)) for net in (other, build(space, searched.architecture))]
    return all(
        torch.allclose(value, states[1][name]) for name, value in states[0].items() if value.is_floating_point()
    )


def carry_back(space: nn.Module, searched: Narrowed) -> nn.Module:
    """Write trained weights and logits to where in the space they came from; the logits of the others are -inf.

    Returns:
        The plain network that was searched.
    """
    network = build(searched.space, full(searched.space))
    write_back(space, searched.architecture, network)
    relax(space, ScaledSigmoid)
    logits = entry_logits(searched.space)
    for name, gate in gates(space).items():
        assert isinstance(gate.relaxation, ScaledSigmoid)
        picks, own = _picks(searched.architecture, name), gate.relaxation.logits
        own.data.fill_(-math.inf)
        own.data[list(picks)] = logits.get(searched.names.get(name, ""), torch.full((len(picks),), _OPEN)).to(own)
    return network


def _picks(architecture: Architecture, name: str) -> tuple[int, ...]:
    picks = architecture[name]
    assert isinstance(picks, tuple)
    return picks


def scale_as_fresh(network: nn.Module, whole: nn.Module) -> None:
    """Scale weights taken from a wider network as fresh ones are, which layers draw by how much they read.

    A layer that reads a quarter of the channels draws twice as large, which decides how soon it learns. The factor of
    each parameter is the root mean square of a few draws over that of as many for `whole`. Networks in which norms
    follow the layers compute the same at any scale, and take larger steps at a smaller one: their weights stay.
    """
    if any(isinstance(module, _NormBase | nn.GroupNorm) for module in network.modules()):
        return
    try:
        own, theirs = _drawn(network), _drawn(whole)
    except FAILURES:  # a `reset_parameters` of the user's own that does not fit
        return
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if own.get(name) and theirs.get(name):
                parameter.mul_(math.sqrt(own[name] / theirs[name]))


def _drawn(network: nn.Module) -> dict[str, float]:
    """For each parameter that is drawn anew the mean square of a few draws."""
    given, drawn = dict(network.named_parameters()), copied(network)
    squares: dict[str, float] = {}
    for _ in range(_DRAWS):
        draw_anew(drawn)
        for name, parameter in drawn.named_parameters():
            if not torch.equal(parameter, given[name]):
                squares[name] = squares.get(name, 0.0) + float(parameter.detach().square().mean())
    return squares
