"""Digests of arrays, samples and texts. Nothing here depends on addresses, on hash seeds or on the process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from archgrad import files

WHOLE = 64 * files.MIB  # of an array: beyond it rows are sampled
ROWS = 1024
ITEMS = 32  # of a dataset
DRAWN = "drawn anew each time"


def digest(*contents: Any) -> str:
    """Sixteen hexadecimal digits of texts, bytes, tensors and arrays."""
    total = hashlib.blake2b(digest_size=8)
    for content in contents:
        if isinstance(content, np.ndarray):
            content = (str(content.dtype), content.shape, np.ascontiguousarray(content).tobytes())
        if isinstance(content, Tensor):
            flat = content.detach().cpu().contiguous().reshape(-1)
            total.update(f"{content.dtype} {tuple(content.shape)}".encode())
            total.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        else:
            data = content if isinstance(content, bytes) else repr(content).encode()
            total.update(f"{len(data)}:".encode() + data)
    return total.hexdigest()


def of_array(array: Tensor | np.ndarray[Any, Any]) -> str:
    """A digest of an array [N, ...]: of all of it up to `WHOLE` bytes, of `ROWS` rows spread over it beyond."""
    if isinstance(array, np.ndarray) and array.dtype.kind not in "biufc":
        return digest(array[:: len(array) // ROWS + 1] if array.ndim and array.nbytes > WHOLE else array)
    tensor = torch.from_numpy(np.ascontiguousarray(array)) if isinstance(array, np.ndarray) else array
    if tensor.layout != torch.strided:
        entries = tensor.detach().to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
        return digest(tuple(tensor.shape), of_array(entries.indices()), of_array(entries.values()))
    if tensor.nbytes <= WHOLE or not tensor.ndim:
        return digest(tensor)
    return digest(tuple(tensor.shape), tensor[torch.linspace(0, len(tensor) - 1, ROWS).long()])


def of_item(item: Any) -> str:
    """A digest of one sample, or one batch: any nest of tensors, arrays, numbers, texts and images."""
    leaves = []
    for leaf in tree_leaves(item):
        if callable(getattr(leaf, "tobytes", None)) and not isinstance(leaf, np.ndarray | np.generic):
            leaf = np.asarray(leaf)  # an image of Pillow
        known = isinstance(leaf, Tensor | np.ndarray | np.generic | str | bytes | int | float | bool | None)
        leaves.append(leaf if known else type(leaf).__qualname__)
    return digest(*leaves)


def of_items(fetch: Callable[[int], Any], indices: Sequence[int]) -> str:
    """A digest of some samples, got by `fetch`; `DRAWN` where the first is not the same twice."""
    if len({of_item(fetch(index)) for index in [*indices[:1], *indices[:1]]}) > 1:
        return DRAWN
    return digest([of_item(fetch(index)) for index in indices])
