"""From architecture parameters (logits) to mixing weights.

A relaxation is a small module. Its `forward(live)` takes the live support, [size] bool, and returns the mixing
weights, [size], with exact zeros where `live` is false. Architecture parameters are its parameters, and
nothing else is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScaledSigmoid(nn.Module):
    """Deterministic gates that a growing scale drives to 0 or 1.

        g(s; scale) = 1 / (1 + exp(-scale * s)),   dg/ds = scale * g * (1 - g),
        |g - 1[s > 0]| <= exp(-scale * |s|)

    Args:
        size: number of gates; the logits s, [size], start at 0, where g = 1/2 at every scale.

    Source: DNAL (arXiv 2103.02126), scaled sigmoid; the bound follows by algebra.
    """

    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(size))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, live: Tensor) -> Tensor:
        """[size] gates in (0, 1), 0 where not live."""
        return torch.sigmoid(self.scale * self.logits) * live


class Softmax(nn.Module):
    """Mixing weights on the simplex: w = softmax(logits) over the live candidates.

    Args:
        size: number of candidates; the logits start at 0, which mixes evenly.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(size))

    def forward(self, live: Tensor) -> Tensor:
        """[size] weights that sum to 1, 0 where not live."""
        return torch.softmax(self.logits.masked_fill(~live, float("-inf")), dim=0)


class Open(nn.Module):
    """Every live candidate at full strength: w = 1; no parameters. The inputs of a DARTS node are mixed so."""

    def __init__(self, size: int) -> None:
        super().__init__()

    def forward(self, live: Tensor) -> Tensor:
        """[size] ones, 0 where not live."""
        return live.to(torch.get_default_dtype())


class Held(nn.Module):
    """Mixing weights that do not move: 1 on what an architecture keeps, 0 elsewhere; no parameters."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept.clone())

    def forward(self, live: Tensor) -> Tensor:
        """[size] zeros and ones."""
        return self.kept * live


scaled_sigmoid = ScaledSigmoid
softmax = Softmax
