"""How much the values of tensors differ, and whether those of parameters changed."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor, nn


def fingerprint(network: nn.Module) -> list[int]:
    """A number for each parameter, another one where its values are others."""
    dense = [p.detach().cpu().contiguous().flatten() for p in network.parameters() if p.layout is torch.strided]
    return [zlib.crc32(p.view(torch.uint8).numpy().data) for p in dense]


def as_real(x: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones."""
    return torch.view_as_real(x) if x.is_complex() else x


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of finite elements; infinite where others are not the same."""
    a, b = as_real(a), as_real(b)
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else math.inf
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return math.inf
    if not torch.equal(a[~finite].isnan(), b[~finite].isnan()):
        return math.inf
    return float((a - b).detach()[finite].abs().max()) if bool(finite.any()) else 0.0


def largest(a: Tensor) -> float:
    """The largest finite magnitude; 1 for what is not continuous."""
    a = as_real(a)
    if not a.is_floating_point():
        return 1.0
    finite = a.detach()[a.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
