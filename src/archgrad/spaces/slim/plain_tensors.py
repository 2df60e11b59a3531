"""Tensors that modules keep as plain attributes, such as tables of positions: buffers, which go with channels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from archgrad.copy_and_run import copied, in_mode
from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS, run, runs

Network = TypeVar("Network", bound=nn.Module)


def with_buffers(network: Network, given: tuple[Any, ...]) -> Network:
    """The network, or a copy in which tensors of the user's own modules are buffers that are not saved.

    Those that a run on the given inputs replaces or writes into, such as what a module keeps of its last call, stay
    as they are.
    """
    found = [(path, name, x) for path, module in network.named_modules() for name, x in _tensors(module)]
    if not found:
        return network
    probe = copied(network)
    before: dict[tuple[str, str], Tensor] = {
        (path, name): vars(probe.get_submodule(path))[name] for path, name, _ in found
    }
    versions: dict[tuple[str, str], int] = {key: x._version for key, x in before.items()}
    for training in (False, True):
        with contextlib.suppress(*NETWORK_ERRORS):
            run(in_mode(probe, training=training), given)
    kept = [
        (path, name) for (path, name), x in before.items()
        if vars(probe.get_submodule(path)).get(name) is x and x._version == versions[path, name]
    ]  # fmt: skip
    made = copied(network)
    for path, name in kept:
        module = made.get_submodule(path)
        # Its own, where several modules keep one.
        module.register_buffer(name, vars(module).pop(name).clone(), persistent=False)
    return made if runs(made, given) else network  # which may look for them where they were


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """By name those that hold numbers, but what hooks of torch compute (beside `weight_orig`), or a property does."""
    if type(module).__module__.startswith("torch."):
        return
    for name, value in vars(module).items():
        kept = type(value) is Tensor and value.is_leaf and not value.requires_grad and value.numel() > 1
        computed = f"{name}_orig" in module._parameters or hasattr(type(module), name)
        if kept and value.is_floating_point() and not computed:
            yield name, value
