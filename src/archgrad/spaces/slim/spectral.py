"""Layers with spectral_norm: what is removed of a weight has a gate in front of the norm, whatever side it is on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, MutableMapping, Sequence

from torch import nn

from archgrad.choices.channels import Coupling
from archgrad.choices.spectral_norms import spectral
from archgrad.spaces.slim.trial import Removal, gated_tensors

RESCALED = (
    "spectral_norm undoes the factor by which queries of fewer channels are scaled; give attention its scale as a "
    "number"
)


def without_rescaled(
    network: nn.Module, removals: Sequence[Removal], frozen: MutableMapping[str, str]
) -> list[Removal]:
    """Those of which no factor on a weight is undone by its norm; the others are put in `frozen`."""
    undone = [
        r for r in removals if any(c.rescaled and spectral(network.get_submodule(c.module)) for c in r.couplings)
    ]
    frozen.update({c.module: RESCALED for r in undone for c in r.couplings if c.kind == "out"})
    return [r for r in removals if r not in undone]


def in_front_of_norms(network: nn.Module, removal: Removal) -> Removal:
    """A removal with gates on all that it takes of weights that are normed."""
    more = [extra for member in removal.couplings for extra in _in_front(network, member)]
    return removal if removal.vanishing else dataclasses.replace(removal, couplings=[*removal.couplings, *more])


def _in_front(network: nn.Module, member: Coupling) -> Iterator[Coupling]:
    """What goes in front of the norm with one side of a layer, and with it in the norm's own state."""
    how = spectral(network.get_submodule(member.module))
    for name, dim in member.tensors:
        if how and name == "weight":
            gated = () if (name, dim) in gated_tensors(network, member) else ((name, dim),)
            yield Coupling(member.module, f"param norm {dim}", member.places, (how.state_of(dim),), gated=gated)
