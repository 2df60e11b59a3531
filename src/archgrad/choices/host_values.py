"""Values of small tensors that decide what a program does next, read seldom from an accelerator.

Reading one waits for all work that the device was given. A support changes rarely, and the weights that hold during a
block are the same for all of its passes, so what was read is kept as long as nothing writes into the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_READ: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # from a tensor to its version and values


def values(tensor: Tensor) -> list[Any]:
    """`tensor.tolist()` of a tensor [size]; from an accelerator, read once between two changes in place.

    A tensor made in `torch.inference_mode` does not count its changes, and is read each time.
    """
    if tensor.is_cpu or tensor.is_inference():
        return tensor.tolist()
    if _kept(tensor) is None:
        read_together([tensor])
    kept: list[Any] = _kept(tensor) or []
    return kept


def true_places(mask: Tensor) -> list[int]:
    """The indices at which a mask [size] bool is true; read as `values` are."""
    return [place for place, true in enumerate(values(mask)) if true]


def read_together(tensors: Sequence[Tensor]) -> None:
    """Read tensors [size] from an accelerator, those of a dtype in one wait, for `values` to give.

    Tensors of the CPU, of other dimensions and of inference mode are left alone.
    """
    read: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for t in tensors:
        if not t.is_cpu and t.dim() == 1 and not t.is_inference() and _kept(t) is None:
            read.setdefault((t.device, t.dtype), []).append(t)
    for there in read.values():
        row = iter(torch.cat([t.detach() for t in there]).tolist())
        for tensor in there:
            _READ[tensor] = tensor._version, [next(row) for _ in range(len(tensor))]


def _kept(tensor: Tensor) -> list[Any] | None:
    version, kept = _READ.get(tensor, (None, None))  # type: ignore[no-untyped-call]
    return kept if version == tensor._version else None
