"""Global response normalization (ConvNeXt V2), whose mean is that of the open channels.

    r_c = |x_c| over all places of an example,   y = w x r / (sum_c g_c r_c / sum_c g_c + eps) + b  [+ x]

g is 1 for an open channel and 0 for a closed one, or between. Where all are 0 or 1 that is what the module computes
without the closed channels, so that closing a channel behind it is removing it in front.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ResponseNorm:
    """What a module with a response normalization computes; attributes as those of `ChannelNorm`.

    Attributes:
        width: number of channels.
        axis: of the channels: -1 or 1.
        residual: whether its input is added.
        eps: added to the mean.
        weight, bias: names of its parameters, "" for none.
        tensors: (name, dimension) of what is cut with the channels.
        counts: attributes that hold their number.
    """

    width: int
    axis: int
    residual: bool
    eps: float = 0.0
    weight: str = ""
    bias: str = ""
    tensors: tuple[tuple[str, int], ...] = ()
    counts: tuple[str, ...] = ()
    everywhere: bool = True
    groups: int = 1

    def __call__(self, module: nn.Module, x: Tensor, is_open: Tensor) -> Tensor:
        """What `module` computes of x, [B, ...], with the mean of the channels that are open, [width]."""
        shape = [1] * x.dim()
        shape[self.axis] = -1
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        share = is_open.to(values)
        share = (share / share.sum().clamp_min(torch.finfo(values.dtype).tiny)).view(shape)
        if not is_open.requires_grad:
            values = values.masked_fill(share == 0.0, 0.0)  # nothing limits what a closed channel holds
        places = [d for d in range(1, x.dim()) if d != self.axis % x.dim()]
        length: Tensor = torch.linalg.vector_norm(values, dim=places, keepdim=True)
        y = values * (length / ((share * length).sum(self.axis, keepdim=True) + self.eps))
        y = y * getattr(module, self.weight).reshape(shape) if self.weight else y
        y = y + getattr(module, self.bias).reshape(shape) if self.bias else y
        return (y + values if self.residual else y).to(x.dtype)
