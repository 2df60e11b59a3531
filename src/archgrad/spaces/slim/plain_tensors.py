"""Tensors that modules keep as plain attributes, such as tables of positions: buffers, which go with channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor, nn

from archgrad.copy_and_run import copied

Network = TypeVar("Network", bound=nn.Module)


def with_buffers(network: Network) -> Network:
    """The network, or a copy in which tensors of the user's own modules are buffers that are not saved."""
    if not any(True for module in network.modules() for _ in _tensors(module)):
        return network
    network = copied(network)
    for module in network.modules():
        for name, tensor in list(_tensors(module)):
            del vars(module)[name]
            module.register_buffer(name, tensor, persistent=False)
    return network


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """By name those that hold numbers, but what hooks of torch compute: `weight` beside `weight_orig`."""
    if type(module).__module__.startswith("torch."):
        return
    for name, value in vars(module).items():
        kept = type(value) is Tensor and value.is_leaf and not value.requires_grad and value.dim() > 0
        if kept and value.is_floating_point() and f"{name}_orig" not in module._parameters:
            yield name, value
