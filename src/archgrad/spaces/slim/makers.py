"""Which weights make what a product of two activations, or a length, sums over, so that gates on them can zero it.

    q . k = sum_c q_c k_c,    |x|^2 = sum_c x_c^2

adds nothing for a channel c that is zero, and a channel is zero where the weights that make it are: of one layer, or
of all whose outputs, or parameters, are added up in front, as along a residual stream.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from archgrad.choices.channels import kind_of
from archgrad.spaces.slim.dependency import Labels, Walk
from archgrad.spaces.slim.layer_sides import NORMS, TABLES, is_layer, reads_each
from archgrad.spaces.slim.numbering import NORM_SIDE, Numbering, Side

Makers = dict[Side, tuple[Labels, bool]]  # the channels of that side, and whether they are rescaled


def makers_of(numbering: Numbering, walk: Walk) -> Makers:
    """Sides whose weights can zero what a product of two activations sums over; what none makes alone is frozen."""
    makers: Makers = {}
    sides = list(numbering.sides)
    owner = _owners(numbering, sides, len(walk.is_read))
    zeros = np.concatenate([*walk.zeros, np.zeros(0, dtype=np.int64)])
    for left, right, reason, rescaled in walk.multiplied:
        able = []
        for labels in (left, right):
            numbers, read = np.unique(owner[labels[labels >= 0]]), np.setdiff1d(_summands(walk, labels), zeros)
            owners = np.unique(owner[read])
            if owners.size and (owners >= 0).all():
                able.append((numbers, owners, read))
        if not able or (rescaled and len(able[0][0]) > 1):
            walk.components.freeze(left, reason)
            continue
        _, owners, read = able[0]
        for number in owners:
            if kind_of(sides[number][1]) != "in":  # which has a gate wherever it is read
                known, scaled = makers.get(sides[number], (read[:0], rescaled))
                makers[sides[number]] = np.union1d(known, read), rescaled or scaled
    bare = np.concatenate([*walk.bare, np.zeros(0, dtype=np.int64)])
    for side in [s for s in sides if s[1].startswith("axis") and np.isin(numbering.sides[s], bare).any()]:
        makers.setdefault(side, (numbering.sides[side], False))
    return makers


def _owners(numbering: Numbering, sides: list[Side], size: int) -> NDArray[np.int64]:
    """By label the side whose weights are zeros where a gate on it is; -1 for none."""
    owner = np.full(size, -1)
    for number, (path, side) in enumerate(sides):
        module = numbering.modules.get(path)
        norm = side == NORM_SIDE or (isinstance(module, NORMS) and module.affine)
        made = kind_of(side) == "out" and (norm or isinstance(module, TABLES) or (module and is_layer(module)))
        read = side == "in" and module is not None and reads_each(module)
        if made or read or (side.startswith("axis") and numbering.is_parameter(path)):
            owner[numbering.sides[path, side]] = number
    return owner


def _behind(walk: Walk, labels: Labels) -> Labels:
    """All labels that stand for these, or that these stand for."""
    return np.flatnonzero(np.isin(walk.lines, walk.lines[labels]))


def _summands(walk: Walk, labels: Labels) -> Labels:
    """The labels of all that has to be zero where what has these is."""
    found = _behind(walk, labels[labels >= 0])
    if not walk.sums:
        return found
    firsts, others = (np.concatenate([pair[k] for pair in walk.sums]) for k in (0, 1))
    while True:
        more = others[np.isin(firsts, found) & (others >= 0)]
        more = more[~np.isin(more, found)]
        if not more.size:
            return found
        found = np.union1d(found, _behind(walk, more))
