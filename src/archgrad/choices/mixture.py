"""The weighted sum of what candidates return: which run, and how each output takes its weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from archgrad.choices.relaxations import read_values
from archgrad.errors import ChoiceError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def mixture(
    weights: Tensor,
    run: Callable[[int, Tensor | float], Tensor],
    *,
    alive: Sequence[int],
    labels: Sequence[str],
    name: Callable[[], str],
    zeros: Sequence[int] = (),
) -> Tensor:
    """The sum of weight * output over the live entries; those of constant weight 0 are not run.

    Args:
        weights: [size], or [B, size] with a row for each example of the batch.
        run: the output [B, ...] of an entry times a weight: a number where that is constant, else () or [B];
            see `scaled`.
        alive: the live entries.
        labels: what the entries are called in errors.
        name: what the mixture is called in errors; asked for there alone, since torch compiles anew for each name
            that it reads.
        zeros: entries whose output is 0 in any case; they run only where no other does.

    Raises:
        ChoiceError: nothing is alive, or outputs differ in shape.
    """
    if not alive:
        raise ChoiceError(f"no candidate of {name()} is alive: restrict it to at least one")
    factors = _factors(weights, alive)
    entries = [i for i in factors if i not in zeros] or list(factors)[:1]
    total: Tensor | None = None
    for i in entries:
        factor = factors[i]
        y = run(i, weights[..., i] if factor is None else factor)
        if isinstance(y, Tensor) and isinstance(total, Tensor) and y.shape != total.shape:
            raise ChoiceError(
                f"candidates of {name()} differ in output shape ({labels[entries[0]]}: {tuple(total.shape)}, "
                f"{labels[i]}: {tuple(y.shape)}); make them equal"
            )
        total = y if total is None else total + y
    assert total is not None
    return total


def _factors(weights: Tensor, alive: Sequence[int]) -> dict[int, float | None]:
    """For each entry that is to run its constant weight, or None if it has a gradient or varies over the batch."""
    if weights.requires_grad or torch.compiler.is_compiling():  # what is compiled can read no weight
        return dict.fromkeys(alive)
    top = read_values(weights if weights.dim() == 1 else weights.abs().amax(dim=0))
    return {i: top[i] if weights.dim() == 1 else None for i in alive if top[i] != 0.0} or {alive[0]: 0.0}


def scaled(module: nn.Module, inputs: Sequence[Any], weight: Tensor | float) -> Tensor:
    """weight * module(*inputs), for a number, a weight (), or weights [B], one an example; a 1 scales nothing.

    A weight () of a module that ends in a BatchNorm scales that BatchNorm in place of its output, which saves a
    copy of the output, also for the backward pass. A module that is no `nn.Sequential` says so by an attribute
    `scaling_norm`, the path of the BatchNorm whose output it returns.
    """
    ends_in = _scaling_norm(module) if isinstance(weight, Tensor) and not weight.dim() else None
    if ends_in is None or not isinstance(weight, Tensor):
        y: Tensor = module(*inputs)
        if not isinstance(weight, Tensor) and weight == 1.0:
            return y
        if y is None or isinstance(y, (tuple, list, dict)):
            raise ChoiceError(
                f"a candidate, {type(module).__name__}, returns a {type(y).__name__}; candidates are mixed, so that "
                f"each has to return one tensor: wrap it in a module that returns what is read of it"
            )
        return y * (_spread(weight, y) if isinstance(weight, Tensor) else weight)
    path, norm, running_mean = ends_in
    # Kernels read the vector as dense memory: an expanded number would not do.
    factors = weight.to(running_mean.dtype).expand(norm.num_features).contiguous()
    parameters = {f"{path}.weight": factors if norm.weight is None else factors * norm.weight}
    if norm.bias is not None:
        parameters[f"{path}.bias"] = factors * norm.bias
    return torch.func.functional_call(module, parameters, tuple(inputs), tie_weights=False)  # type: ignore[no-any-return]


def _scaling_norm(module: nn.Module) -> tuple[str, _BatchNorm, Tensor] | None:
    """Path, module and running mean of the BatchNorm whose output the module returns; None if it may not be one."""
    path = str(len(module) - 1) if type(module) is nn.Sequential else getattr(module, "scaling_norm", None)
    if not isinstance(path, str) or path == "-1":
        return None
    norm = module.get_submodule(path)
    # A hook has to see the unscaled output, and outside of training a norm may be
    # skipped (`proxies/temporary_state.py`).
    hooked = module._forward_hooks or norm._forward_hooks
    if not isinstance(norm, NORMS) or not norm.training or norm.running_mean is None or hooked:
        return None
    return path, norm, norm.running_mean


def _spread(weight: Tensor, like: Tensor) -> Tensor:
    """A weight (), or one an example [B], in the type of `like` [B, ...] and with as many dimensions."""
    if not weight.dim():
        return weight.to(like.dtype)
    if like.shape[:1] != weight.shape:
        raise ChoiceError(
            f"there are weights for {len(weight)} examples, and a candidate returns {tuple(like.shape)}: where each "
            f"example has an architecture of its own, candidates return [B, ...]"
        )
    return weight.to(like.dtype).view(-1, *[1] * (like.dim() - 1))
