"""From a relaxed space to an architecture, and from an architecture to a plain network."""

from __future__ import annotations

import copy
import functools
import operator
from typing import Literal

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from archgrad.choices.access import choices, matched
from archgrad.choices.architecture import Architecture, Pick
from archgrad.choices.channels import Coupling, remove_branch, remove_channels
from archgrad.choices.modules import Choice, Gate, InputChoice, OpChoice
from archgrad.errors import ChoiceError


def decide(space: nn.Module, *, threshold: float = 0.5) -> Architecture:
    """The architecture that the mixing weights point at.

    An `OpChoice` takes its heaviest live candidate, an `InputChoice` its `keep` heaviest inputs, a `Gate` all
    entries above `threshold`, at least the heaviest one unless the gate's branch may vanish.

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
        weights = weights.detach().double().masked_fill(~choice.live, -1.0)
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
    network = _plain(network, architecture)
    couplings: dict[str, tuple[Coupling, ...]] = {name: gate.couplings for name, gate in gates.items()}
    remove_channels(network, couplings, kept)
    for name, gate in gates.items():
        if gate.vanishing is not None and not kept[name]:
            remove_branch(network, gate.vanishing)
    if weights == "fresh":
        for module in network.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return network


def _plain(network: nn.Module, architecture: Architecture) -> nn.Module:
    """Take the choices out of a network, in place but for a network that is a choice; channels are not yet cut."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            _unparametrize(module)
    vars(network).pop("_archgrad_frozen", None)
    # Inner choices first, and a choice at every place where it stands.
    for path, module in list(network.named_modules(remove_duplicate=False))[::-1]:
        if isinstance(module, Choice) and path:
            parent, _, child = path.rpartition(".")
            setattr(network.get_submodule(parent), child, _decided(module, architecture[module.name]))
    return _decided(network, architecture[network.name]) if isinstance(network, Choice) else network


def _unparametrize(module: nn.Module) -> None:
    """Put the plain tensors back.

    `parametrize.remove_parametrizations` takes the property off the module's class, which a deep copy shares
    with its original: it would break the space that was copied. So the class is put back instead.
    """
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    if not all(isinstance(step, Gate) for steps in parametrizations.values() for step in steps):  # type: ignore[attr-defined]
        return
    originals = {name: steps.original for name, steps in parametrizations.items()}
    plain = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = plain
    for name, tensor in originals.items():
        module.register_parameter(name, tensor)  # type: ignore[arg-type]


def _decided(choice: Choice, pick: Pick) -> nn.Module:
    """The plain module that a choice in the forward path becomes."""
    if isinstance(choice, OpChoice):
        assert isinstance(pick, int)
        return choice.candidates[pick]
    graph = fx.Graph()
    inputs = graph.placeholder("inputs")
    rest = nn.Module()
    if isinstance(choice, InputChoice):
        assert isinstance(pick, tuple)
        terms = [graph.call_function(operator.getitem, (inputs, i)) for i in pick]
        graph.output(functools.reduce(lambda a, b: graph.call_function(operator.add, (a, b)), terms))
        return fx.GraphModule(rest, graph)
    kept = choice.picked(pick)
    if bool(kept.all()):
        return nn.Identity()
    # A gate that somebody wrote into their forward has no couplings: its mask stays, as a plain buffer.
    assert isinstance(choice, Gate)
    if choice.places is not None:
        kept = torch.cat([kept, torch.ones(1, dtype=torch.bool)])[choice.places.cpu()]
    rest.register_buffer("mask", kept.to(choice.live.device, torch.get_default_dtype()))
    last = graph.call_function(torch.transpose, (inputs, choice.dim, -1))
    masked = graph.call_function(operator.mul, (last, graph.get_attr("mask")))
    graph.output(graph.call_function(torch.transpose, (masked, choice.dim, -1)))
    return fx.GraphModule(rest, graph)
