"""What removals are tried on: the user's own example, the same values in other places, and a scaled noisy version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS, run, tensors_of

Inputs = tuple[Any, ...]
FEW = 2  # examples of the batch that are tried
DISTINCT = 8  # a tensor with fewer distinct values is a mask or a table of kinds, which noise would make another


def trial_inputs(network: nn.Module, example: Inputs, dtype: torch.dtype) -> list[Inputs]:
    """Inputs on which the network runs, the user's own first; values stay in the range of the example's.

    The second has the example's values in other places, mixed with those that stood there; a mask or an index is
    only permuted. The third is scaled and noisy. One on which the network fails, or computes nothing finite, is left
    out. Where every floating tensor of the example is constant, the noisy version comes first. A batch is cut to two
    examples, and a single example is joined by one with permuted values, where that changes the first axis of every
    output alike.

    Args:
        network: in eval mode, with parameters of `dtype`.
        example: its inputs.
        dtype: that floating inputs are given in.
    """
    own = _map(example, lambda x: x.detach().to(dtype) if x.is_floating_point() else x)
    outputs = tensors_of(run(network, own))
    own = _of_few(network, own, outputs)
    found = [own]
    for change in (_permuted, _noisy):
        inputs = _map(own, change)
        if not any(_unlike(a, b) for a, b in zip(_tensors(inputs), _tensors(own), strict=True)):
            continue
        try:
            results = tensors_of(run(network, inputs))
        except NETWORK_ERRORS:
            continue
        if any(bool(x.isfinite().any()) for x in results):
            found.append(inputs)
    # All zeros or all ones stand for a shape: the noisy version comes first.
    constant = [_is_constant(x) for x in _tensors(own) if x.is_floating_point()]
    return [found[-1], *found[:-1]] if constant and all(constant) else found


def _unlike(a: Tensor, b: Tensor) -> bool:
    return not torch.equal(a, b)


def _tensors(inputs: Inputs) -> list[Tensor]:
    return [x for x in inputs if isinstance(x, Tensor)]


def _map(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    return tuple(change(x) if isinstance(x, Tensor) else x for x in inputs)


def _of_few(network: nn.Module, own: Inputs, outputs: list[Tensor]) -> Inputs:
    """Two examples, where the inputs are a batch; else the inputs as they are."""
    tensors = _tensors(own)
    batch = tensors[0].shape[0] if tensors and tensors[0].dim() else 0
    if not batch or any(not x.dim() or x.shape[0] != batch for x in [*tensors, *outputs]) or batch == FEW:
        return own
    few = _map(own, lambda x: x[:FEW] if batch > FEW else torch.cat([x, _permuted(x)]))
    try:
        results = tensors_of(run(network, few))
    except NETWORK_ERRORS:
        return own
    same = len(results) == len(outputs) and all(
        a.shape[0] == FEW and a.shape[1:] == b.shape[1:] for a, b in zip(results, outputs, strict=True)
    )
    return few if same else own


def _permuted(x: Tensor) -> Tensor:
    """The same values in other places; continuous ones mixed with what stood there, so that the range is kept."""
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(1)).to(x.device)
    moved = x.flatten()[order].view(x.shape)
    return 0.3 * x + 0.7 * moved if _is_continuous(x) else moved


def _noisy(x: Tensor) -> Tensor:
    if not _is_continuous(x) and not (x.is_floating_point() and _is_constant(x)):
        return x
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(x)
    spread = float(x.double().std()) if x.numel() > 1 else 0.0
    return 1.5 * x + 0.5 * noise * (spread or 1.0)


def _is_constant(x: Tensor) -> bool:
    return bool(x.numel()) and bool((x == x.flatten()[0]).all())


def _is_continuous(x: Tensor) -> bool:
    return x.is_floating_point() and len(torch.unique(x.flatten()[:4096])) > min(DISTINCT, x.numel() // 2)
