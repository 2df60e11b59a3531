"""From a relaxed space to an architecture, and from an architecture to a plain network."""

from __future__ import annotations

import copy
from typing import Literal

from torch import nn

from archgrad.choices.access import choices, matched
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.channels import Coupling, remove_branch, remove_channels
from archgrad.choices.modules import Gate, InputChoice, OpChoice
from archgrad.derive.plain import plain, unparametrize
from archgrad.errors import ChoiceError


def decide(space: nn.Module, *, threshold: float = 0.5) -> Architecture:
    """The architecture that the mixing weights point at.

    An `OpChoice` takes its heaviest live candidate that is not barred, an `InputChoice` its `keep` heaviest
    inputs, a `Gate` all entries above `threshold`, at least the heaviest unless the gate's branch may vanish.

    Raises:
        ChoiceError: a choice has no relaxation yet.
    """
    picks: dict[str, Pick] = {}
    for name, (choice, *_) in choices(space).items():
        weights = choice.mixing()
        if weights is None:
            raise ChoiceError(
                f"choice {name!r} has no relaxation to decide by; call archgrad.relax(space, ...) first"
            )
        weights = weights.detach().double().masked_fill(~choice.pickable, -1.0)
        if isinstance(choice, OpChoice):
            picks[name] = int(weights.argmax())
        elif isinstance(choice, InputChoice):
            picks[name] = tuple(weights.topk(choice.keep).indices.sort().values.tolist())
        else:
            assert isinstance(choice, Gate)
            kept = (weights > threshold).nonzero().flatten().tolist()
            picks[name] = tuple(kept) or (() if choice.vanishing else (int(weights.argmax()),))
    return Architecture(picks)


def build(
    space: nn.Module, architecture: Architecture, *, weights: Literal["inherit", "fresh"] = "inherit"
) -> nn.Module:
    """The plain network of one architecture: closed channels, branches and candidates are gone.

    It holds no object of ours, and with inherited weights it computes what `hold(space, architecture)` computes.

    Args:
        space: any network with choices; it is not changed.
        architecture: a pick for each of its choices.
        weights: "inherit" the space's, or draw them "fresh" (every module's `reset_parameters`).

    Raises:
        ArchitectureError: the architecture is for another space.
    """
    network = copy.deepcopy(space)
    gates: dict[str, Gate] = {}
    kept: dict[str, list[int]] = {}
    for name, same in matched(network, architecture).items():
        mask = same[0].picked(architecture[name])
        if isinstance(same[0], Gate):
            gates[name], kept[name] = same[0], mask.nonzero().flatten().tolist()
    unparametrize(network)
    couplings: dict[str, tuple[Coupling, ...]] = {name: gate.couplings for name, gate in gates.items()}
    remove_channels(network, couplings, kept)
    for name, gate in gates.items():
        if gate.vanishing is not None and not kept[name]:
            remove_branch(network, gate.vanishing)
    network = plain(network, architecture)
    if weights == "fresh":
        for module in network.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return network
