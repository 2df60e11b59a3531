"""Synaptic flow of many architectures of one supernet at once, and in the mean over all draws of its weights.

The score is that of `gradients.synflow`; the two shortcuts are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from archgrad.choices import access
from archgrad.choices.architecture import Architecture
from archgrad.choices.gate import Gate
from archgrad.copy_and_run import copied
from archgrad.errors import ConfigError, ModelError
from archgrad.proxies.scoring import LAYERS, SCALES, Batch, gradients, inputs_of, run, theta, watched
from archgrad.proxies.temporary_state import probe

Space = TypeVar("Space", bound=nn.Module)


def synflow_each(
    space: nn.Module, architectures: Sequence[Architecture], batch: Batch, *, stack: int = 128
) -> list[float]:
    """`synflow` of each architecture with the weights of the space, many in one pass.

    Every architecture is one example of a batch of ones, with mixing weights of its own. No weight's gradient is
    needed: since theta >= 0, the weights of a layer with output y have

        sum theta * dR/dtheta = sum y * dR/dy

    so the score of example b is  log sum over layers of sum y_b * dR/dy_b,  equal to
    `synflow(hold(space, architecture), batch)` to rounding.

    Args:
        space: a supernet of operations and inputs, relaxed or not.
        architectures: of this space.
        batch: inputs [B, C, H, W]; only the shape of an example is used.
        stack: architectures in a pass.

    Raises:
        ArchitectureError: an architecture is for another space.
        ConfigError: `stack` below 1.
        ModelError: the space has gates, or weights outside of convolutions and linear layers: score its networks
            one by one; and as for `synflow`.
    """
    if stack < 1:
        raise ConfigError(f"stack={stack}: give the number of architectures in a pass, 1 or more")
    weights, shape = theta(space), inputs_of(batch).shape[1:]
    layers = [m for m in space.modules() if isinstance(m, LAYERS)]
    covered = {id(m.weight) for m in layers}
    gates = sorted({name for name, (first, *_) in access.choices(space).items() if isinstance(first, Gate)})
    if gates or any(id(w) not in covered for w in weights):
        what = f"gates ({gates[0]})" if gates else "weights outside of convolutions and linear layers"
        raise ModelError(f"{type(space).__name__} has {what}; score each network alone: synflow(hold(space, a), x)")
    scores: list[float] = []
    with probe(space, weights="absolute", biases="zero", norm="identity", dtype=torch.float64):
        for parameter in space.parameters():
            parameter.requires_grad_(False)
        for first in range(0, len(architectures), stack):
            some = architectures[first : first + stack]
            x = torch.ones(len(some), *shape, dtype=torch.float64, device=weights[0].device)
            scores += _flows(space, some, x, layers)
    return scores


def _flows(space: nn.Module, some: Sequence[Architecture], x: Tensor, layers: Sequence[nn.Module]) -> list[float]:
    """The score of each architecture; of those that leave float64, at the next scale."""
    choices_of = access.choices(space)
    for architecture in some:
        if choices_of.keys() != set(architecture):
            access.matched(space, architecture)
    mixing = {
        name: torch.stack([same[0].picked(architecture[name]) for architecture in some]).to(x)
        for name, same in choices_of.items()
    }
    scores = [math.nan] * len(some)
    for scale in SCALES:
        todo = [i for i, score in enumerate(scores) if math.isnan(score)]
        if not todo:
            return scores
        ones = (x[todo] * scale).requires_grad_(True)
        with access.using(space, {name: w[todo] for name, w in mixing.items()}), watched(layers) as seen:
            flow = run(space, ones)
        outputs = [y for _, y in seen]
        total = sum(
            (y.detach() * g).flatten(1).sum(1)
            for y, g in zip(outputs, gradients((flow * scale).sum(), outputs), strict=True)
        )
        assert isinstance(total, Tensor)
        for i, value in zip(todo, total.tolist(), strict=True):
            if math.isfinite(value):
                scores[i] = (math.log(value) if value > 0 else -math.inf) - 2 * math.log(scale)
    if any(map(math.isnan, scores)):
        raise ModelError(
            f"the synaptic flow of {type(space).__name__} leaves the range of float64: score a space of fewer layers"
        )
    return scores


def mean_channels(space: Space) -> Space:
    """A copy of one channel everywhere, whose synaptic flow is the mean of the space's over all draws of its weights.

    R and the flow through each layer are linear in each weight tensor, so their means are those at the mean weights.
    Where the entries of a tensor are drawn alike, all channels are then equal and one will do, with

        each entry of the kernel [1, 1, k, k] = I / groups * mean |theta [O, I / groups, k, k]|

    The factor O of the last layer is left out, as it is the same for every architecture. For `synflow` and
    `synflow_each` alone, with a batch [1, 1, H, W]: the sum over the channels of the input is in the first kernel.

    Raises:
        ModelError: a weight of the space does not belong to an `nn.Conv2d` or `nn.Linear`. A space that joins or
            reorders channels fails when it is run.
    """
    theta(space)
    small = copied(space)
    for path, module in list(small.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            small.set_submodule(path, _one_channel(module))
        elif any(p.dim() >= 2 for p in module.parameters(recurse=False)):
            raise ModelError(
                f"{type(space).__name__}: {path!r} is a {type(module).__name__}; only nn.Conv2d and nn.Linear can be "
                f"reduced to one channel: score the space as it is"
            )
    return small


def _one_channel(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    weight = layer.weight.detach().double()
    one = copied(layer)
    one.bias = None
    one.weight = nn.Parameter(torch.full_like(weight[:1, :1], float(weight.abs().mean()) * weight.shape[1]))
    if isinstance(one, nn.Conv2d):
        one.in_channels = one.out_channels = one.groups = 1
    else:
        one.in_features = one.out_features = 1
    return one
