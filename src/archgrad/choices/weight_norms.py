"""Layers with weight_norm, w = g v / |v|: a space holds w itself, and a built network has g and v again.

g = |w|, v = w  along the same dimension, so that what is left computes what it computed in the space
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from archgrad.copy_and_run import copied

Network = TypeVar("Network", bound=nn.Module)
NORMED = "_archgrad_weight_norm"  # attribute of a layer: what to put back


@dataclass(frozen=True)
class _Normed:
    """How one tensor of a layer was normed.

    Attributes:
        name: of the tensor.
        dim: along which its parts have a length each; -1 for one length of all.
        trained: whether its lengths and its directions are trained.
        hooked: by `torch.nn.utils.weight_norm`, which computes it in front of each call.
    """

    name: str
    dim: int
    trained: tuple[bool, bool]
    hooked: bool


def without_weight_norms(network: Network) -> Network:
    """A copy whose layers have plain weights where weight_norm computes them; the network itself where none does."""
    if not any(_normed(module) for module in network.modules()):
        return network
    network = copied(network)
    for module in network.modules():
        if found := _normed(module):
            for how in found:
                _fold(module, how)
            setattr(module, NORMED, found)
    return network


def restore_weight_norms(network: nn.Module) -> None:
    """Put the norms back, in place."""
    for module in network.modules():
        for how in vars(module).pop(NORMED, ()):
            now = getattr(module, how.name).requires_grad
            trained = how.trained if now == any(how.trained) else (now, now)  # unless the space was frozen or freed
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the older form is what the user's network has
                make = nn.utils.weight_norm if how.hooked else parametrizations.weight_norm
                make(module, how.name, how.dim if how.dim >= 0 else None)  # type: ignore[arg-type]
            g, v = (
                parameter.requires_grad_(flag)
                for parameter, flag in zip(_parts(module, how.name, how.hooked), trained, strict=True)
            )
            with torch.no_grad():  # what is zero has a length and no direction: any will do
                v.masked_fill_((g == 0.0).expand_as(v), 1.0)


def lengths(space: nn.Module) -> Iterator[tuple[str, str, float]]:
    """Of each weight whose norm a built network has again: path, tensor with its axis, and how many lengths."""
    for path, module in space.named_modules():
        for how in vars(module).get(NORMED, ()):
            count = module.get_parameter(_plain_name(module, how)).shape[how.dim] if how.dim >= 0 else 1
            yield path, f"{how.name} along {how.dim}", float(count)


def _plain_name(module: nn.Module, how: _Normed) -> str:
    """Where a space keeps the plain tensor, with a gate on it or without."""
    return how.name if how.name in module._parameters else f"parametrizations.{how.name}.original"


def _normed(module: nn.Module) -> tuple[_Normed, ...]:
    """The tensors of a layer that weight_norm alone computes; of no recurrent one, which lists its weights itself."""
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return ()
    hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)]
    if hooks:
        return tuple(
            _Normed(hook.name, hook.dim if hook.dim is not None else -1, _trained(module, hook.name, True), True)
            for hook in hooks
        )
    if "parametrizations" not in module._modules or not parametrize.is_parametrized(module):
        return ()
    steps = {name: list(steps) for name, steps in module.parametrizations.items()}  # type: ignore[union-attr, operator]
    if any(len(own) != 1 or not isinstance(own[0], _WeightNorm) for own in steps.values()):
        return ()
    return tuple(_Normed(name, own[0].dim, _trained(module, name, False), False) for name, own in steps.items())


def _parts(module: nn.Module, name: str, hooked: bool) -> tuple[nn.Parameter, nn.Parameter]:
    """The lengths and the directions of a tensor."""
    own = f"{name}_" if hooked else f"parametrizations.{name}.original"
    g, v = (module.get_parameter(f"{own}{part}") for part in ("gv" if hooked else "01"))
    return g, v


def _trained(module: nn.Module, name: str, hooked: bool) -> tuple[bool, bool]:
    g, v = _parts(module, name, hooked)
    return g.requires_grad, v.requires_grad


def _fold(module: nn.Module, how: _Normed) -> None:
    """Make a plain parameter of a tensor, in place; a class that torch made for the layer is left as it is."""
    if how.hooked:
        nn.utils.remove_weight_norm(module, how.name)
        module.get_parameter(how.name).requires_grad_(any(how.trained))
        return
    steps: Any = module.parametrizations[how.name]  # type: ignore[index]
    original = parametrize.type_before_parametrizations(module)
    with torch.no_grad():
        value: Tensor = steps()
    del module.parametrizations[how.name]  # type: ignore[union-attr, operator]
    if not len(module.parametrizations):  # type: ignore[arg-type]
        del module.parametrizations
        module.__class__ = original
    module.register_parameter(how.name, nn.Parameter(value.detach().clone(), requires_grad=any(how.trained)))
