"""Weights of which the channels that they read and make lie along one axis, as `out * in * k * k` of filters do.

timm's CondConv2d keeps each of its filters as one row, `[experts, out * in * k * k]`, and views what it mixes of them
as `[batch * out, in, k, k]`; a layer that makes the weights of another puts them out as a row. Such an axis is cut
along its factors: a place is left where both of its channels are.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from archgrad.spaces.slim.dependency import Call, Labels, Walk

Factors = Mapping[tuple[str, str], tuple[int, ...]]  # side -> sizes along its axis: out, in, and places of filters


def note_kernel(call: Call, weight: Tensor, other: Tensor) -> None:
    """Note the shape of what may be the weight of a product, with what lies along its axes."""
    batched = weight.dim() == 3 and call.name == "bmm"
    if weight.dim() < 2 or (batched and any(0 in call.axes(x) for x in (weight, other))):  # heads
        return
    shape = weight.shape[1:] if batched else weight.shape
    is_turned = call.name.endswith("mm") and weight.stride(-1) != 1
    for arrays in call.axes(weight).values():
        call.walk.kernels += [(labels, tuple(shape)[:: -1 if is_turned else 1]) for labels in arrays]


def factors_of(walk: Walk, sides: Mapping[tuple[str, str], Labels]) -> Factors:
    """The sides of which all places are the filters of one kernel that was read, in what factors.

    Filters for each example lie side by side in a convolution.
    """
    able = {side: every for side, every in sides.items() if side[1] == "out" or side[1].startswith("axis")}
    ranges = {int(e[0]): (s, e) for s, e in able.items() if np.array_equal(e, np.arange(e[0], e[0] + len(e)))}
    firsts, found = sorted(ranges), dict[tuple[str, str], tuple[int, ...]]()
    for labels, (made, *rest) in walk.kernels:
        side, every = ranges[firsts[max(bisect.bisect(firsts, int(labels[0])) - 1, 0)]]
        own, left = divmod(len(every), math.prod(rest))
        fits = own > 1 and rest[0] > 1 and not left and (made == own or (len(rest) > 1 and made % own == 0))
        if fits and len(np.unique(labels)) < len(every) and np.isin(every, walk.behind(labels)).all():
            found[side] = (own, *rest)
    return found


def apart(sizes: tuple[int, ...], first: int) -> list[Labels]:
    """New labels, from `first` on, of the channels that lie along the first two factors of an axis: [places] each."""
    arrays = []
    for factor in (0, 1):
        shape = [-1 if f == factor else 1 for f in range(len(sizes))]
        labels = np.arange(first, first + sizes[factor]).reshape(shape)
        arrays.append(np.broadcast_to(labels, sizes).reshape(-1))
        first += sizes[factor]
    return arrays


def shapes_like(module: nn.Module, sizes: tuple[int, ...]) -> list[str]:
    """Attributes of a module that are the shape of its kernel."""
    return [name for name, value in vars(module).items() if isinstance(value, tuple) and value == sizes]
