"""From fresh weights: a network of uniform width that takes about twice what the limit allows is searched.

The whole network would take many times its time, and hand on little that a few steps have taught it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from archgrad.choices.access import relax
from archgrad.choices.architecture import Architecture
from archgrad.choices.relaxations import ScaledSigmoid
from archgrad.choices.weight_norms import without_weight_norms
from archgrad.copy_and_run import copied
from archgrad.costs.count import Example
from archgrad.errors import ModelError
from archgrad.extract.discretize import build, write_back
from archgrad.gates.gate_optimizer import entry_logits
from archgrad.gates.importance import importance
from archgrad.gates.selection import GateConstraint, full, gates, uniform
from archgrad.spaces.slim.channel_graph import KEPT
from archgrad.spaces.slim.slimmable import frozen, slim

_WIDER = math.sqrt(2)  # times uniform width under the limit; MACs and parameters grow with the square
_OPEN = 1e3  # the logits of a gate that the narrower network lacks, which so stays


class Narrowed(NamedTuple):
    """Gates on a narrower network.

    Attributes:
        space: the gates, named as those of the whole network.
        architecture: what of the whole network it holds.
    """

    space: nn.Module
    architecture: Architecture


def widths_to_search(constraint: GateConstraint) -> Architecture:
    """Uniform widths that take about twice what the limit allows, of the channels of largest magnitude."""
    width = min(1.0, _WIDER * constraint.uniform_width())
    return uniform(constraint.space, width, constraint.rounding, importance(constraint.space, criterion="magnitude"))


def narrowed(space: nn.Module, architecture: Architecture, example: Example) -> Narrowed | None:
    """Gates on the network of an architecture; None where it is the whole one, or cannot be searched in its place."""
    if architecture == full(space):
        return None
    kept = [path for path, reason in frozen(space).items() if reason == KEPT]
    try:
        inner = slim(build(space, architecture), example, keep=kept)
    except ModelError:  # so narrow that nothing is left to remove
        return None
    whole = gates(space)
    if any(name not in whole or gate.size != len(_picks(architecture, name)) for name, gate in gates(inner).items()):
        return None
    searched = Narrowed(inner, architecture)
    return searched if _hands_back(space, searched) else None


def _hands_back(space: nn.Module, searched: Narrowed) -> bool:
    """Whether other weights come back to the space, tried on a copy: some are computed anew where channels go."""
    space, other = copied(space), build(searched.space, full(searched.space))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    write_back(space, searched.architecture, other)
    states = [without_weight_norms(net).state_dict() for net in (other, build(space, searched.architecture))]
    return all(
        torch.allclose(value, states[1][name]) for name, value in states[0].items() if value.is_floating_point()
    )


def carry_back(space: nn.Module, searched: Narrowed) -> None:
    """Write trained weights and logits to where in the space they came from; the logits of the others are -inf."""
    write_back(space, searched.architecture, build(searched.space, full(searched.space)))
    relax(space, ScaledSigmoid)
    logits = entry_logits(searched.space)
    for name, gate in gates(space).items():
        assert isinstance(gate.relaxation, ScaledSigmoid)
        picks, own = _picks(searched.architecture, name), gate.relaxation.logits
        own.data.fill_(-math.inf)
        own.data[list(picks)] = logits.get(name, torch.full((len(picks),), _OPEN)).to(own)


def _picks(architecture: Architecture, name: str) -> tuple[int, ...]:
    picks = architecture[name]
    assert isinstance(picks, tuple)
    return picks
