"""Weights of which the channels that they read and make lie along one axis, as `out * in * k * k` of filters do.

timm's CondConv2d keeps each of its filters as one row, `[experts, out * in * k * k]`, and views what it mixes of them
as `[batch * out, in, k, k]`; a layer that makes the weights of another puts them out as a row. Such an axis is cut
along its factors: a place is left where both of its channels are. So is one that is viewed as channels and places.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from archgrad.spaces.slim.dependency import Call, Labels, Walk


@dataclass(frozen=True)
class Factoring:
    """What lies along an axis.

    Attributes:
        sizes: the factors of its length: `(out, in, k, k)`, or `(channels, height, width)` in any order.
        along: those of them that may be channels.
    """

    sizes: tuple[int, ...]
    along: tuple[int, ...] = (0, 1)

    def labels(self, first: int) -> Iterator[tuple[int, Labels]]:
        """New labels of each factor that may be channels, from `first` on: (factor, [places])."""
        for factor in self.along:
            shape = [-1 if f == factor else 1 for f in range(len(self.sizes))]
            own = np.arange(first, first + self.sizes[factor]).reshape(shape)
            yield factor, np.broadcast_to(own, self.sizes).reshape(-1)
            first += self.sizes[factor]


Factors = Mapping[tuple[str, str], Factoring]  # by side


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
    """The sides of which all places are the filters of one kernel that was read, and those whose channels were looked
    for along the wrong factor, since a convolution mixes along it.

    Filters for each example lie side by side in a convolution.
    """
    roots, reasons, lines = walk.components.roots(), walk.components.reasons(), walk.lines
    able = {side: every for side, every in sides.items() if side[1] == "out" or side[1].startswith("axis")}
    ranges = {int(e[0]): (s, e) for s, e in able.items() if np.array_equal(e, np.arange(e[0], e[0] + len(e)))}
    firsts, found = sorted(ranges), dict[tuple[str, str], Factoring]()
    for labels, (made, *rest) in walk.kernels if firsts else ():
        if not rest or not labels.size:
            continue
        side, every = ranges[firsts[max(bisect.bisect(firsts, int(labels[0])) - 1, 0)]]
        if len(labels) == len(every) == math.prod(rest, start=made) and np.array_equal(labels, every):
            if "mixes along" in reasons.get(int(roots[labels[0]]), ""):
                sizes = (made, *rest)
                found[side] = Factoring(sizes, tuple(f for f, size in enumerate(sizes) if size > 1))
            continue
        own, left = divmod(len(every), math.prod(rest))
        fits = own > 1 and rest[0] > 1 and not left and (made == own or (len(rest) > 1 and made % own == 0))
        if fits and len(np.unique(labels)) < len(every) and np.isin(lines[every], lines[labels]).all():
            found[side] = Factoring((own, *rest))
    return found


def shapes_like(module: nn.Module, sizes: tuple[int, ...]) -> list[str]:
    """Attributes of a module that are a shape of these sizes."""
    return [name for name, value in vars(module).items() if isinstance(value, tuple) and value == sizes]
