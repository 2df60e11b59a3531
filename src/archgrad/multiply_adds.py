"""How many multiply-adds an operator takes: what torch's counter knows, and more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, shape_wrapper

# Floating-point operations, two a multiply-add, of what torch's counter does not know, from the shapes of arguments.
_MORE: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: lambda a, b, **_: 2 * math.prod(a),
    torch.ops.aten.addmv: lambda c, a, b, **_: 2 * math.prod(a),
    torch.ops.aten.dot: lambda a, b, **_: 2 * math.prod(a),
    torch.ops.aten.vdot: lambda a, b, **_: 2 * math.prod(a),
    torch.ops.aten.addbmm: lambda c, a, b, **_: 2 * math.prod(a) * b[-1],
    torch.ops.aten._grouped_mm: lambda a, b, *_, **__: 2 * math.prod(a) * b[-1],
    torch.ops.aten._cdist_forward: lambda a, b, *_, **__: 2 * math.prod(a) * b[-2],
    torch.ops.aten._euclidean_dist: lambda a, b, **_: 2 * math.prod(a) * b[-2],
    torch.ops.aten._trilinear: lambda a, weight, *_, **__: 2 * a[0] * math.prod(weight),
}
# By operator its floating-point operations, from its arguments and `out_val`, what it gave.
FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    **{op: shape_wrapper(count) for op, count in _MORE.items()},  # type: ignore[no-untyped-call]
}


def multiply_adds(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: object) -> int:
    """Those of one call of an operator; 0 for one that is not counted.

    Example:
        >>> x = torch.ones(3, 4)
        >>> multiply_adds(torch.ops.aten.mm.default, (x, x.T), {}, x @ x.T)
        36
    """
    count = FLOPS.get(func._overloadpacket)
    return count(*args, **kwargs, out_val=outputs) // 2 if count else 0
