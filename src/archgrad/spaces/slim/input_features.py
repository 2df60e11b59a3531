"""Gates on the features of a network's inputs, on the layers that read them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.channels import Coupling
from archgrad.spaces.slim.layer_sides import LAYERS, cuts, width_of
from archgrad.spaces.slim.seeded_run import computed_weights, run


def input_features(network: nn.Module, example: tuple[Any, ...]) -> dict[str, list[Coupling]]:
    """Gate name -> coupling, for each layer inside the network that reads what no parameter has had a part in.

    Args:
        network: a copy in eval mode; its parameters are made to require gradients.
        example: its inputs.
    """
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    layers = {
        name: module for name, module in network.named_modules()
        if name and isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1
        and not computed_weights(name, module) and width_of(module, "in") > 1
    }  # fmt: skip
    raw: dict[str, bool] = {}
    handles = []
    for name, layer in layers.items():

        def note(_m: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            raw[name] = raw.get(name, True) and not inputs[0].requires_grad

        handles.append(layer.register_forward_pre_hook(note))
    with torch.enable_grad():
        run(network, example, grad=True)
    for handle in handles:
        handle.remove()
    found: dict[str, list[Coupling]] = {}
    for name in (name for name, alone in raw.items() if alone):
        tensors, counts = cuts(layers[name], "in")
        places = torch.arange(width_of(layers[name], "in"))
        found[f"{name}.inputs"] = [Coupling(name, "in", places, tensors, counts, selects=True)]
    return found
