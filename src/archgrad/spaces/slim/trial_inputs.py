"""What removals are tried on: the user's own example, the same values in other places, and a scaled noisy version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS, run, tensors_of

Inputs = tuple[Any, ...]
SMALLEST = 64  # pixels of a part of an image, and what their number is a multiple of
MULTIPLE = 32
FEW = 2  # examples of the batch that are tried
DISTINCT = 8  # a tensor with fewer distinct values is a mask or a table of kinds, which noise would make another


def trial_inputs(network: nn.Module, example: Inputs, *, large: bool = False) -> list[Inputs]:
    """Inputs on which the network runs, the user's own first; values stay in the range of the example's.

    The second has the example's values in other places, mixed with those that stood there; a mask or an index is
    only permuted. The third is scaled and noisy. One on which the network fails, or computes nothing finite, is left
    out. Where every floating tensor of the example is constant, the noisy version comes first. A batch is cut to two
    examples, and a single example is joined by one with permuted values, where that changes the first axis of every
    output alike. For a large network they are single examples, or pairs for BatchNorm, and all but the user's own are
    parts of images a third as wide and high, where the network takes them.

    Args:
        network: in eval mode.
        example: its inputs, in the precision that it computes in.
        large: whether the network takes long.
    """
    outputs = tensors_of(run(network, example))
    norms = any(isinstance(m, _BatchNorm) for m in network.modules())
    # All zeros or all ones stand for a shape: the noisy version comes first.
    floats = [x for x in _tensors(example) if x.is_floating_point()]
    constant = bool(floats) and all(map(_is_constant, floats))
    if large:
        own = _of_size(network, example, outputs, 1)
        bases = [_map(own, _part), own]
        sizes = [FEW if norms else 1, FEW if norms and constant else 1]
    else:
        own = _of_size(network, example, outputs, FEW)
        bases, sizes = [own], [_batch(own)] * 2
    found = [own]
    for change, size in zip((_permuted, _noisy), sizes, strict=True):
        for base in bases:
            inputs = _map(base, change)
            if not any(_unlike(a, b) for a, b in zip(_tensors(inputs), _tensors(base), strict=True)):
                continue
            try:
                results = tensors_of(run(network, inputs))
            except NETWORK_ERRORS:
                continue
            if any(bool(x.isfinite().any()) for x in results):
                found.append(_of_size(network, inputs, results, size))
                break
    return [found[-1], *found[:-1]] if constant else found


def calibrate(network: nn.Module, example: Inputs) -> None:
    """Give BatchNorm layers that were never trained the statistics of the example, so that signals pass them.

    Args:
        network: in eval mode; statistics of a mean of 0 and a variance of 1 alone are changed.
        example: its inputs, in the precision that it computes in.
    """
    fresh = [
        m for m in network.modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None and m.running_var is not None
        and not bool(m.running_mean.any()) and bool((m.running_var == 1).all())
    ]  # fmt: skip
    if not fresh:
        return
    momenta = [m.momentum for m in fresh]
    pair = _map(_map(example, _part), lambda x: torch.cat([x, _permuted(x)]) if x.dim() else x)
    for inputs in (pair, example):
        try:
            for module in fresh:
                module.training, module.momentum = True, 1.0
            run(network, inputs)
            break
        except NETWORK_ERRORS:
            continue
        finally:
            for module, momentum in zip(fresh, momenta, strict=True):
                module.training, module.momentum = False, momentum
    for module in fresh:
        variance = module.running_var
        assert variance is not None
        typical = float(variance.nan_to_num(0.0, 0.0, 0.0).mean())
        if typical > 0.0:
            variance.copy_(variance.nan_to_num(1.0, 1.0, 1.0).clamp_min(0.1 * typical))
        else:
            variance.fill_(1.0)


class KeptDouble(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps in double precision what a network makes single or half of it, as the norms of Llama do.

    Attributes:
        seen: whether there was anything.
    """

    seen: bool = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the compiler is imported, which takes seconds

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator."""
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float64:
            wanted = kwargs.get("dtype") or torch.float64
            if wanted.is_floating_point and wanted != torch.float64:
                self.seen, kwargs = True, {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


def _batch(inputs: Inputs) -> int:
    tensors = _tensors(inputs)
    return tensors[0].shape[0] if tensors and tensors[0].dim() else 0


def _part(x: Tensor) -> Tensor:
    """The middle of a large image."""
    if x.dim() != 4 or not x.is_floating_point():
        return x
    for axis in (2, 3):
        size = x.shape[axis]
        part = min(size, max(SMALLEST, -(-size // 3 // MULTIPLE) * MULTIPLE))
        x = x.narrow(axis, (size - part) // 2, part)
    return x


def _unlike(a: Tensor, b: Tensor) -> bool:
    return not torch.equal(a, b)


def _tensors(inputs: Inputs) -> list[Tensor]:
    """The tensors of which others are made: a sparse one says what is joined to what, and stays as it is."""
    return [x for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.layout is torch.strided]


def _map(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    return tree_map_only(  # type: ignore[no-any-return]
        Tensor, lambda x: change(x) if x.layout is torch.strided else x, inputs
    )


def _of_size(network: nn.Module, own: Inputs, outputs: list[Tensor], size: int) -> Inputs:
    """So many examples, where the inputs are a batch; else the inputs as they are."""
    tensors, batch = _tensors(own), _batch(own)
    if not batch or any(not x.dim() or x.shape[0] != batch for x in [*tensors, *outputs]) or batch == size:
        return own
    sized = _map(own, lambda x: x[:size] if batch > size else torch.cat([x, _permuted(x)]))
    try:
        results = tensors_of(run(network, sized))
    except NETWORK_ERRORS:
        return own
    same = len(results) == len(outputs) and all(
        a.shape[0] == size and a.shape[1:] == b.shape[1:] for a, b in zip(results, outputs, strict=True)
    )
    return sized if same else own


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
