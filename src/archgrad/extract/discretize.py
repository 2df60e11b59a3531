"""From a relaxed space to an architecture, and from an architecture to a plain network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from archgrad.choices.access import choices, decisions, matched
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.channels import remove_branch, remove_channels
from archgrad.choices.modules import Choice, Gate, InputChoice, OpChoice
from archgrad.choices.relaxations import Open
from archgrad.choices.subsets import Subsets
from archgrad.errors import ChoiceError, ConfigError
from archgrad.extract.plain import picked, plain, unparametrize
from archgrad.networks import copied, evaluating


@runtime_checkable
class Resizable(Protocol):
    """A space that can return a fresh space of the same choices, to be trained from scratch.

    `resized` takes by name those of cells, channels, auxiliary and drop_path that its networks have.
    """

    @property
    def resized(self) -> Callable[..., nn.Module]:
        """From options to a fresh space of the same choices."""
        ...


def resized(space: nn.Module, options: Mapping[str, int | float]) -> nn.Module:
    """`space.resized(...)` with these options, which are verified first.

    Raises:
        ConfigError: the space has one size only, or no such option.
    """
    allowed = list(inspect.signature(space.resized).parameters) if isinstance(space, Resizable) else []
    if refused := [name for name in options if name not in allowed]:
        given = ", ".join(f"{name}={options[name]}" for name in refused)
        raise ConfigError(
            f"{type(space).__name__} cannot be built with {given}; "
            + (f"its networks can be resized by {' and '.join(allowed)}" if allowed else "it has one size only")
            + ". Leave the others out, or give your space a method `resized` that takes them"
        )
    assert isinstance(space, Resizable)
    fresh = space.resized(**options)
    searched = decisions(space)
    for name, namesakes in choices(fresh).items():
        for choice in namesakes:
            if isinstance(choice, InputChoice) and isinstance(before := searched[name], InputChoice):
                choice.fewest, choice.keep = before.fewest, before.keep
    return fresh


def decide(space: nn.Module, *, threshold: float = 0.5, weights: Mapping[str, Tensor] | None = None) -> Architecture:
    """The architecture of the largest mixing weights.

    An `OpChoice` takes its heaviest live candidate that is not barred, an `InputChoice` its `keep` heaviest
    inputs, or the likeliest subset of a distribution over subsets, a `Gate` all entries above `threshold`, at least
    the heaviest unless the gate's branch may vanish. Inputs that are all mixed at full strength (relaxation `Open`)
    weigh as much as the heaviest candidate on their edge that is not barred: the rule of DARTS. The first of equals
    is taken.

    Args:
        space: relaxed.
        threshold: of gates.
        weights: for some choices, [size], decided by in place of their mixing weights.

    Raises:
        ChoiceError: a choice has no relaxation yet.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.relax(ag.OpChoice([torch.nn.Linear(4, 4), torch.nn.Identity()], name="layer"), ag.softmax)
        >>> space.relaxation.logits.data = torch.tensor([-1.0, 2.0])
        >>> ag.decide(space)
        Architecture({'layer': 1})
    """
    picks: dict[str, Pick] = {}
    scores = decision_weights(space, weights)
    for name, choice in decisions(space).items():
        row = scores[name].masked_fill(~choice.pickable, float("-inf"))
        if isinstance(choice, OpChoice):
            picks[name] = int(row.argmax())
        elif isinstance(choice.relaxation, Subsets):
            picks[name] = choice.relaxation.likeliest(choice.live)
        elif isinstance(choice, InputChoice):
            picks[name] = tuple(row.argsort(descending=True, stable=True)[: choice.keep].sort().values.tolist())
        else:
            assert isinstance(choice, Gate)
            kept = (row > threshold).nonzero().flatten().tolist()
            picks[name] = tuple(kept) or (() if choice.vanishing else (int(row.argmax()),))
    return Architecture(picks)


def discretized(space: nn.Module, architecture: Architecture) -> dict[str, Tensor]:
    """The mixing weights of an architecture, [size] of 0 and 1: 1 on its picks.

    Where the inputs of a node are all mixed at full strength (`Open`), operations on inputs that are not kept are 0.
    """
    by_name = decisions(space)
    rows = {n: choice.picked(architecture[n]).to(choice.live.device).float() for n, choice in by_name.items()}
    for name, choice in by_name.items():
        if isinstance(choice, InputChoice) and choice.edges is not None and isinstance(choice.relaxation, Open):
            for edge, kept in zip(choice.edges, rows[name].tolist(), strict=True):
                if isinstance(edge, OpChoice):
                    rows[edge.name] = rows[edge.name] * kept
    return rows


def decision_weights(space: nn.Module, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What each choice is decided by: its mixing weights, [size], without noise, or those of `weights`; see `decide`.

    Raises:
        ChoiceError: a choice has no relaxation yet.
    """
    return {name: _decision_weight(choice, weights or {}) for name, choice in decisions(space).items()}


def _decision_weight(choice: Choice, weights: Mapping[str, Tensor]) -> Tensor:
    if choice.name in weights:
        return weights[choice.name].detach().double()
    relaxation = choice.relaxation
    if relaxation is None:
        raise ChoiceError(
            f"choice {choice.name!r} has no relaxation to decide by; call archgrad.relax(space, ...) first"
        )
    with evaluating(relaxation):  # without the noise of a draw
        row: Tensor = relaxation(choice.live).double()
    if isinstance(relaxation, Open) and isinstance(choice, InputChoice) and choice.edges is not None:
        for i, edge in enumerate(choice.edges):
            if isinstance(edge, OpChoice):
                row[i] *= _decision_weight(edge, weights).masked_fill(~edge.pickable, float("-inf")).amax()
    return row


def build(
    space: nn.Module,
    architecture: Architecture,
    *,
    weights: Literal["inherit", "fresh"] = "inherit",
    cells: int | None = None,
    channels: int | None = None,
    auxiliary: bool = False,
    drop_path: float = 0.0,
) -> nn.Module:
    """The plain network of one architecture: closed channels, branches and candidates are gone.

    It holds no object of ours, and with inherited weights it computes what `hold(space, architecture)` computes.

    Args:
        space: any network with choices; it is not changed.
        architecture: a pick for each of its choices.
        weights: "inherit" the space's, or draw them "fresh" (`draw_anew`).
        cells, channels, auxiliary, drop_path: for spaces with a method `resized`, such as the ready spaces of cells:
            another number of cells or first channels, a head for auxiliary logits, a probability of dropping an
            operation in training. Weights are fresh then.

    Raises:
        ArchitectureError: the architecture is for another space.
        ConfigError: the space has no such size or option.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.OpChoice([torch.nn.Linear(4, 4), torch.nn.ReLU()], name="layer")
        >>> ag.build(space, ag.Architecture({"layer": 0}))
        Linear(in_features=4, out_features=4, bias=True)
    """
    sizes = {"cells": cells, "channels": channels, "auxiliary": auxiliary or None, "drop_path": drop_path or None}
    if options := {name: value for name, value in sizes.items() if value is not None}:
        space, weights = resized(space, options), "fresh"
    gated = any(isinstance(namesakes[0], Gate) for namesakes in matched(space, architecture).values())
    # Channels are cut where they stand in the space; without gates most of a supernet need not be copied.
    network = copied(space) if gated else picked(space, architecture)
    gates = {name: choice for name, choice in decisions(network).items() if isinstance(choice, Gate)}
    kept = {n: gate.picked(architecture[n]).nonzero().flatten().tolist() for n, gate in gates.items()}
    unparametrize(network)
    remove_channels(network, {name: gate.couplings for name, gate in gates.items()}, kept)
    for name, gate in gates.items():
        if gate.vanishing is not None and not kept[name]:
            remove_branch(network, gate.vanishing)
    network = plain(network, architecture)
    if weights == "fresh":
        draw_anew(network)
    return network


def draw_anew(network: nn.Module) -> None:
    """Draw all weights anew (every module's `reset_parameters`), except in modules whose own are all frozen."""
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        frozen = own and not any(p.requires_grad for p in own)
        if callable(reset := getattr(module, "reset_parameters", None)) and not frozen:
            reset()
