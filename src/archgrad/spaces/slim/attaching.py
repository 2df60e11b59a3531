"""Put gates on the weights of a network, as parametrizations."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from archgrad.choices.channel_norms import add_gate
from archgrad.choices.channels import ORDER
from archgrad.choices.gate import Gate
from archgrad.choices.standardized_weights import standardized_weight
from archgrad.spaces.slim.recurrent import follow_weights
from archgrad.spaces.slim.trial import Removal, gated_tensors


def attach(space: nn.Module, removal: Removal) -> None:
    """Gates on the weights that read the channels, or that end the branch."""
    couplings = list(removal.couplings)
    if removal.vanishing:
        layer = space.get_submodule(removal.last)
        how = standardized_weight(layer)
        for attribute in (how.gain if how else "weight", "bias"):
            tensor = getattr(layer, attribute, None)
            if isinstance(tensor, Tensor):
                every = torch.zeros(tensor.shape[0], dtype=torch.long)
                stays = removal.vanishing
                gate = Gate(1, name=removal.name, places=every, dim=0, couplings=couplings, vanishing=stays)
                _register(layer, attribute, gate)
        return
    for member in couplings:
        for attribute, dim in gated_tensors(space, member):
            places = None if torch.equal(member.places, torch.arange(removal.size)) else member.places
            gate = Gate(removal.size, name=removal.name, places=places, dim=dim, couplings=couplings)
            _register(space.get_submodule(member.module), attribute, gate)
        if member.norm is not None:
            gate = Gate(removal.size, name=removal.name, places=member.places, dim=0, couplings=couplings)
            add_gate(space.get_submodule(member.module), member.norm, gate)
    attentions = [member.module for member in couplings if member.attention]
    for path, module in space.named_modules() if attentions else ():
        if isinstance(module, nn.TransformerEncoder) and any(
            a.startswith(f"{path}." if path else "") for a in attentions
        ):
            # Nested tensors are for torch's kernel of whole layers, which knows no other number of heads.
            module.enable_nested_tensor = module.use_nested_tensor = False


def _register(layer: nn.Module, attribute: str, gate: Gate) -> None:
    """Parametrize a weight by a gate, and note the order of the layer's parameters, which the built network keeps."""
    if not parametrize.is_parametrized(layer):
        setattr(layer, ORDER, tuple(layer._parameters))
    parametrize.register_parametrization(layer, attribute, gate)
    follow_weights(layer)
    if isinstance(layer, fx.GraphModule):
        type(layer).__deepcopy__ = _copied_graph  # type: ignore[method-assign]


def _copied_graph(self: fx.GraphModule, memo: dict[int, Any]) -> fx.GraphModule:
    """A deep copy of a parametrized graph, whose own way does not find weights that are computed."""
    made = memo[id(self)] = object.__new__(type(self))
    vars(made).update(copy.deepcopy(vars(self), memo))
    made._graph.owning_module = made
    return made
