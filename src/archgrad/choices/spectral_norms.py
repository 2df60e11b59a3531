"""Layers with spectral_norm, w = W / s(W): in a space the norm is that of what is open of W, and so in the network.

    w = (g W) / s,   s = u^T (g W) v,   with u and v followed by power iteration in training

Gates stand in front of the norm, on the rows and on the columns of W. To s closed ones add nothing, so that closing
them is removing them, with their places in u and v.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from archgrad.choices.channels import ORDER
from archgrad.choices.gate import Gate
from archgrad.copy_and_run import copied

Network = TypeVar("Network", bound=nn.Module)
NORMED = "_archgrad_spectral_norm"  # attribute of a layer: how it was normed
STATE = "_archgrad_spectral_state"  # and of what
LEFT, RIGHT = (
    "_archgrad_left",
    "_archgrad_right",
)  # buffers of a layer while it is cut: u, and v in the shape of a row


@dataclass(frozen=True)
class Spectral:
    """How the weight of a layer was normed.

    Attributes:
        dim: along which its rows lie.
        iterations: of the power method, in each training step.
        eps: the least length that u and v are divided by.
        hooked: by `torch.nn.utils.spectral_norm`, which takes u behind v.
    """

    dim: int
    iterations: int
    eps: float
    hooked: bool

    def state_of(self, dim: int) -> tuple[str, int]:
        """(name, dimension) of what is cut with a dimension of the weight."""
        return (LEFT, 0) if dim == self.dim else (RIGHT, dim - (dim > self.dim))


@dataclass(frozen=True)
class _State:
    """A weight before it is normed, with u and v; nothing changes them, and no copy of a network copies them."""

    weight: nn.Parameter
    u: Tensor
    v: Tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> _State:
        return self


class SpectralWeight(nn.Module):
    """The last step of a parametrized weight but for the gate of a branch: its norm.

    Args:
        how: the weight was normed.
        u, v: as they are now.
    """

    u: Tensor
    v: Tensor

    def __init__(self, how: Spectral, u: Tensor, v: Tensor) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("u", u.clone())
        self.register_buffer("v", v.clone())

    def forward(self, weight: Tensor) -> Tensor:
        """The weight over its largest singular value."""
        matrix = weight.movedim(self.how.dim, 0).flatten(1)
        if self.training:
            with torch.no_grad():
                for _ in range(self.how.iterations):
                    for left in (False, True) if self.how.hooked else (True, False):
                        own, other = (self.u, self.v) if left else (self.v, self.u)
                        own.copy_(
                            F.normalize(torch.mv(matrix if left else matrix.t(), other), dim=0, eps=self.how.eps)
                        )
        u, v = self.u.clone(), self.v.clone()  # the next step changes them before this one's gradient is taken
        return weight / torch.dot(u, torch.mv(matrix, v))


def without_spectral_norms(network: Network) -> Network:
    """A copy with the plain weights that spectral_norm computes, which `add_spectral_norms` norms again."""
    if not any(_normed(module) for module in network.modules()):
        return network
    network = copied(network)
    holders: dict[nn.Parameter, int] = {}
    for module in network.modules():
        inside = parametrize.is_parametrized(module) and "parametrizations" in module._modules
        for parameter in {*module.parameters(recurse=False)} if not inside else ():
            holders[parameter] = holders.get(parameter, 0) + 1
    for module in network.modules():
        found = _normed(module)
        if found and holders.get(found[1].weight, 1) == 1:
            _fold(module, *found)
            setattr(module, NORMED, found[0])
            setattr(module, STATE, found[1])
    return network


def spectral(module: nn.Module) -> Spectral | None:
    """How the weight of a layer was normed that is plain now; None where it was not."""
    return vars(module).get(NORMED)


def add_spectral_norms(space: nn.Module) -> None:
    """Norm behind the gates of channels what was normed in the network, in place."""
    for layer in space.modules():
        how, state = vars(layer).pop(NORMED, None), vars(layer).pop(STATE, None)
        if how is None or state is None:
            continue
        step = SpectralWeight(how, state.u, state.v).eval()
        if not parametrize.is_parametrized(layer):
            setattr(layer, ORDER, tuple(layer._parameters))
        if not parametrize.is_parametrized(layer, "weight"):
            parametrize.register_parametrization(layer, "weight", step)
        else:
            steps: Any = layer.parametrizations["weight"]  # type: ignore[index]
            of_channels = [i for i, gate in enumerate(steps) if isinstance(gate, Gate) and not gate.vanishing]
            steps.insert(max(of_channels, default=-1) + 1, step)
        with torch.no_grad():
            layer.get_parameter("parametrizations.weight.original").copy_(state.weight)
        step.train(layer.training)


def take_off_spectral_norms(network: nn.Module) -> None:
    """Leave the gates alone on each weight that is normed, and note u and v beside it, in place."""
    for layer in network.modules():
        if "parametrizations" not in layer._modules or not parametrize.is_parametrized(layer, "weight"):
            continue
        steps: Any = layer.parametrizations["weight"]  # type: ignore[index]
        for i, step in enumerate(steps):
            if isinstance(step, SpectralWeight):
                row = steps.original.movedim(step.how.dim, 0).shape[1:]
                layer.register_buffer(LEFT, step.u)
                layer.register_buffer(RIGHT, step.v.view(row))
                setattr(layer, NORMED, step.how)
                del steps[i]
                break


def restore_spectral_norms(network: nn.Module, *, fresh: bool) -> None:
    """Put torch's norms back, with what is left of u and v, or with new ones for new weights, in place."""
    for layer in network.modules():
        how = vars(layer).pop(NORMED, None)
        if how is None:
            continue
        vectors = getattr(layer, LEFT), getattr(layer, RIGHT).flatten()
        delattr(layer, LEFT)
        delattr(layer, RIGHT)
        devices = [vectors[0].device] if vectors[0].is_cuda else []
        with contextlib.nullcontext() if fresh else torch.random.fork_rng(devices=devices):
            make = nn.utils.spectral_norm if how.hooked else parametrizations.spectral_norm
            make(layer, "weight", how.iterations, how.eps, how.dim)
        if not how.hooked:
            layer.parametrizations.train(layer.training)  # type: ignore[union-attr]
        with torch.no_grad():
            for mine, left in zip(_vectors(layer, hooked=how.hooked), vectors, strict=True) if not fresh else ():
                mine.copy_(left)


def _normed(module: nn.Module) -> tuple[Spectral, _State] | None:
    """How a layer's weight is normed, and of what, if by spectral_norm alone."""
    layers = (_ConvNd, nn.Linear, nn.Bilinear, nn.Embedding)
    if not isinstance(module, layers) or isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None
    hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, SpectralNorm)]
    if "parametrizations" not in module._modules or not parametrize.is_parametrized(module):
        if len(hooks) != 1 or hooks[0].name != "weight" or "weight_orig" not in module._parameters:
            return None
        weight, (hook,) = module.get_parameter("weight_orig"), hooks
        how = Spectral(hook.dim % weight.dim(), hook.n_power_iterations, hook.eps, True)
        return how, _State(weight, *_vectors(module, hooked=True))
    lists: Any = module.parametrizations
    steps = list(lists["weight"]) if "weight" in lists else []
    if hooks or len(lists) != 1 or len(steps) != 1 or not isinstance(steps[0], _SpectralNorm):
        return None
    how = Spectral(steps[0].dim, steps[0].n_power_iterations, steps[0].eps, False)
    return how, _State(lists["weight"].original, *_vectors(module, hooked=False))


def _vectors(layer: nn.Module, *, hooked: bool) -> tuple[Tensor, Tensor]:
    owner: Any = layer if hooked else layer.parametrizations["weight"][0]  # type: ignore[index]
    u, v = (owner.get_buffer(name) for name in (("weight_u", "weight_v") if hooked else ("_u", "_v")))
    return u, v


def _fold(module: nn.Module, how: Spectral, state: _State) -> None:
    """Make a plain parameter of a weight, in place; a class that torch made for the layer is left as it is."""
    if how.hooked:
        nn.utils.remove_spectral_norm(module, "weight")
        module.get_parameter("weight").requires_grad_(state.weight.requires_grad)
        return
    original = parametrize.type_before_parametrizations(module)
    with torch.no_grad():
        value: Tensor = SpectralWeight(how, state.u, state.v).eval()(state.weight)
    del module.parametrizations
    module.__class__ = original
    module.register_parameter("weight", nn.Parameter(value.clone(), requires_grad=state.weight.requires_grad))
