"""What lies along the axes of a result that several tensors make element by element; see `dependency`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from archgrad.spaces.slim.dependency import Axes, Call, Labels

ONE_ZERO = ("mul", "div")  # operators whose result is zero where the first of what they read is


def paired(first: Sequence[Labels], other: Sequence[Labels]) -> list[tuple[Labels, Labels]]:
    """What lies along one axis of two tensors, part by part: windows with windows, heads with heads.

    Where one has more parts than the other, those belong together whose places are divided alike.
    """
    found = [] if len(first) == len(other) else [(a, b) for a in first for b in other if _divided_alike(a, b)]
    return found or [
        (first[min(i, len(first) - 1)], other[min(i, len(other) - 1)]) for i in range(max(len(first), len(other)))
    ]


def unpaired(first: Sequence[Labels], other: Sequence[Labels]) -> list[Labels]:
    """The parts of either that have no counterpart, where some have."""
    pairs = paired(first, other)
    return [x for side, of in ((0, first), (1, other)) for x in of if not any(p[side] is x for p in pairs)]


def _divided_alike(a: Labels, b: Labels) -> bool:
    count = len(np.unique(a))
    return count == len(np.unique(b)) == len(np.unique(np.stack([a, b]), axis=1).T)


def is_spread(x: Tensor, axis: int) -> bool:
    """Whether one value stands along an axis."""
    return x.shape[axis] > 1 and x.stride(axis) == 0


def combine(call: Call, parts: Sequence[tuple[Tensor, Axes, int]], size: Sequence[int]) -> Axes:
    """Labels of an elementwise result of several tensors, broadcast to `size`.

    Args:
        call: the operator.
        parts: for each tensor its labels, and how many axes are put in front of its own.
        size: of the result.
    """
    components, result = call.walk.components, {}
    if call.name in ONE_ZERO:  # a factor for each channel is zero more rarely than what it scales
        parts = sorted(parts, key=lambda part: -part[0].numel())
    mismatch = f"{call.walk.here()} combines these channels with values that have none ({call.name})"
    for axis, extent in enumerate(size):
        labelled: list[list[Labels]] = []
        numbered: list[str] = []
        fixed = False
        for x, axes, shift in parts:
            own = axis - shift
            if own < 0 or x.dim() == 0:
                continue
            arrays = axes.get(own, [])
            if x.shape[own] != extent:
                for labels in arrays:
                    components.freeze(labels, f"{call.walk.here()} spreads this channel over others ({call.name})")
            elif arrays:
                labelled.append(arrays)
            elif own in call.walk.shadow(x).sized:
                numbered.append(call.walk.shadow(x).sized[own])
            elif not call.walk.shadow(x).constant and not is_spread(x, own):
                fixed = True
        if not labelled:
            continue
        first = labelled[0]
        call.walk.numbers += [(path, first[0]) for path in numbered]
        for other in labelled[1:]:
            for a, b in paired(first, other):
                components.join(a, b, mismatch)
                call.walk.sums += [] if call.name in ONE_ZERO else [(a, b)]
            for alone in unpaired(first, other):
                components.freeze(alone, mismatch)
        if fixed:
            for labels in first:
                components.freeze(labels, mismatch)
            continue  # what is behind it is tied to what else may lie there, and to no channels that stay
        result[axis] = first
    return result
