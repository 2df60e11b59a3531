"""Operators that move, take out or put together channels, and what becomes of the channels' labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from archgrad.spaces.slim.combining import combine, is_spread
from archgrad.spaces.slim.dependency import LONGEST, Apart, Axes, Call, Labels, Rule

FEW = 4  # kinds of projections that one layer makes


def _moved(call: Call, order: Sequence[int]) -> bool:
    """Axis k of the result is axis order[k] of the input, -1 for a new one."""
    x = call.inputs[0]
    axes = {k: call.axes(x)[a] for k, a in enumerate(order) if a in call.axes(x)}
    apart = call.walk.shadow(x).apart
    if apart is not None:
        apart = Apart(order.index(apart.kinds), order.index(apart.axis), apart.labels)
    reason = f"it makes one channel, whose axis {call.walk.here()} leaves out ({call.name})"
    call.walk.freeze(x, reason, axes=[axis for axis in call.axes(x) if axis not in order])
    call.walk.note(call.results[0], axes, weight=call.walk.shadow(x).weight, apart=apart)
    return True


def _permute(call: Call) -> bool:
    x = call.inputs[0]
    return _moved(call, [d % x.dim() for d in call.argument("dims")])


def _t(call: Call) -> bool:
    return _moved(call, list(range(call.inputs[0].dim()))[::-1])


def _transpose(call: Call) -> bool:
    x = call.inputs[0]
    order = list(range(x.dim()))
    a, b = call.argument("dim0") % x.dim(), call.argument("dim1") % x.dim()
    order[a], order[b] = order[b], order[a]
    return _moved(call, order)


def _unsqueeze(call: Call) -> bool:
    x = call.inputs[0]
    order = list(range(x.dim()))
    order.insert(call.argument("dim") % (x.dim() + 1), -1)
    return _moved(call, order)


def _squeeze(call: Call) -> bool:
    x = call.inputs[0]
    dims = call.argument("dim")
    dims = range(x.dim()) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % x.dim() for d in dims if x.shape[d] == 1}
    return _moved(call, [a for a in range(x.dim()) if a not in gone])


def _select(call: Call) -> bool:
    x, result = call.inputs[0], call.results[0]
    dim = call.argument("dim") % x.dim()
    axes = {a - (a > dim): labels for a, labels in call.axes(x).items() if a != dim}
    apart = call.walk.shadow(x).apart
    if apart is not None:
        axes[apart.axis - (apart.axis > dim)] = [apart.labels[call.argument("index")]]
    call.walk.note(result, axes, weight=call.walk.shadow(x).weight)
    reason = f"{call.walk.here()} mixes these channels (select)"
    call.walk.shadow(result).picked += [(labels, reason) for labels in call.axes(x).get(dim, [])]
    return True


def _expand(call: Call) -> bool:
    x, result = call.inputs[0], call.results[0]
    shift = result.dim() - x.dim()
    axes: Axes = {}
    for axis, arrays in call.axes(x).items():
        if x.shape[axis] == result.shape[axis + shift]:
            axes[axis + shift] = arrays
        else:
            call.mixes(x, [axis])
    call.walk.note(result, axes, weight=call.walk.shadow(x).weight)
    return True


def _slice(call: Call) -> bool:
    x = call.inputs[0]
    dim = int(call.argument("dim", 0)) % x.dim()
    start, end, step = call.argument("start"), call.argument("end"), call.argument("step", 1)
    axes = dict(call.axes(x))
    if dim in axes:
        axes[dim] = [labels[start:end:step] for labels in axes[dim]]
    call.walk.note(call.results[0], axes)
    return True


def _split(call: Call) -> bool:
    x = call.inputs[0]
    dim = int(call.argument("dim", 0)) % x.dim()
    if call.name.startswith("unbind"):
        call.mixes(x, [dim])
        axes = {a - (a > dim): v for a, v in call.axes(x).items() if a != dim}
        apart = call.walk.shadow(x).apart
        for number, result in enumerate(call.results):
            own = {} if apart is None else {apart.axis - (apart.axis > dim): [apart.labels[number]]}
            call.walk.note(result, axes | own)
        return True
    start = 0
    apart = call.walk.shadow(x).apart
    for result in call.results:
        end = start + result.shape[dim]
        axes = dict(call.axes(x))
        if apart is not None:
            axes[apart.axis] = [apart.labels[start]]
        if dim in axes:
            axes[dim] = [labels[start:end] for labels in axes[dim]]
        call.walk.note(result, axes)
        start = end
    return True


def _join(call: Call) -> bool:
    result = call.results[0]
    dim = int(call.argument("dim", 0)) % result.dim()
    stacked = call.name == "stack"
    parts = [x for x in call.inputs if stacked or x.dim() == result.dim()]  # cat passes over empty tensors
    own = [{a + (stacked and a >= dim): v for a, v in call.axes(x).items()} for x in parts]
    axes: Axes = {}
    for axis in range(result.dim()):
        if axis != dim:
            views = [(x, {0: o.get(axis, [])}, 0) for x, o in zip(parts, own, strict=True)]
            labelled = [v for v in views if v[1][0]]
            own_axis = axis - (stacked and axis > dim)
            fixed = [x for x, known, _ in views if not known[0] and not is_spread(x, own_axis)]
            if labelled and not all(call.walk.shadow(x).constant for x in fixed):
                reason = f"{call.walk.here()} puts these channels beside values that have none ({call.name})"
                for labels in (labels for _, part, _ in labelled for labels in part[0]):
                    call.walk.components.freeze(labels, reason)
            for _, part, _ in labelled[1:]:
                for a, b in zip(labelled[0][1][0], part[0], strict=False):
                    call.walk.components.join(a, b, f"{call.walk.here()} puts these channels beside fixed ones")
                    call.walk.sums.append((a, b))
            if labelled:
                axes[axis] = labelled[0][1][0]
    if not stacked and any(dim in o for o in own):
        most = max(len(o.get(dim, [])) for o in own)
        axes[dim] = []
        for i in range(most):
            pieces: list[Labels] = []
            for x, o in zip(parts, own, strict=True):
                arrays = o.get(dim, [])
                pieces.append(arrays[i] if i < len(arrays) else np.full(x.shape[dim], -1))
            axes[dim].append(np.concatenate(pieces))
    call.walk.note(result, axes)
    return True


def _pad(call: Call) -> bool:
    x, pad = call.inputs[0], call.argument("pad")
    axes = dict(call.axes(x))
    for i in range(len(pad) // 2):
        axis, before, after = x.dim() - 1 - i, pad[2 * i], pad[2 * i + 1]
        if axis in axes and (before or after):
            if before < 0 or after < 0:
                call.mixes(x, [axis])
                del axes[axis]
            else:
                axes[axis] = [np.pad(labels, (before, after), constant_values=-1) for labels in axes[axis]]
    call.walk.note(call.results[0], axes)
    return True


def _repeat(call: Call) -> bool:
    x, result = call.inputs[0], call.results[0]
    shift = result.dim() - x.dim()
    axes = {
        axis + shift: [np.tile(labels, result.shape[axis + shift] // len(labels)) for labels in arrays]
        for axis, arrays in call.axes(x).items()
    }
    call.walk.note(result, axes)
    return True


def _where(call: Call) -> bool:
    result = call.results[0]
    parts = [(x, call.axes(x), result.dim() - x.dim()) for x in call.inputs]
    call.walk.note(result, combine(call, parts, result.shape))
    return True


def _shuffle(call: Call) -> bool:
    x, result = call.inputs[0], call.results[0]
    axis = x.dim() - 3 if call.name.startswith("pixel") else 1
    axes = {a: v for a, v in call.axes(x).items() if a < axis}
    for a in call.axes(x):
        if a > axis:
            call.mixes(x, [a])
    for labels in call.axes(x).get(axis, []):
        if call.name == "channel_shuffle":
            groups = int(call.argument("groups"))
            made = labels.reshape(groups, -1).T.reshape(-1)
        elif call.name == "pixel_shuffle":
            blocks = labels.reshape(result.shape[axis], -1)
            made = blocks[:, 0]
            call.walk.components.join(blocks, np.broadcast_to(blocks[:, :1], blocks.shape), "pixel_shuffle")
        else:
            made = np.repeat(labels, result.shape[axis] // len(labels))
        axes.setdefault(axis, []).append(made)
    call.walk.note(result, axes)
    return True


def _patches(call: Call) -> bool:
    """Patches of an image, [B, C * k * k, L], and an image of patches."""
    x, result = call.inputs[0], call.results[0]
    size = int(np.prod(call.argument("kernel_size")))
    if x.dim() != (4 if call.name == "im2col" else 3):
        return False
    axes = {0: call.axes(x).get(0, []), 1: []}
    call.mixes(x, range(2, x.dim()))
    for labels in call.axes(x).get(1, []):
        if call.name == "im2col":
            axes[1].append(np.repeat(labels, size))
            continue
        blocks = labels.reshape(-1, size)
        call.walk.components.join(blocks, np.broadcast_to(blocks[:, :1], blocks.shape), "fold")
        axes[1].append(blocks[:, 0])
    call.walk.note(result, axes)
    return True


def tie_to_one_axis(call: Call, grid: Labels, preferred: int) -> tuple[int, Labels]:
    """(axis, labels along it) of a block: the axis on which its labels depend, else the preferred, the rest tied."""
    long = [a for a in range(grid.ndim) if grid.shape[a] > 1] or [grid.ndim - 1]
    axes = [a for a in long if (grid != grid.take([0], axis=a)).any()] or long
    for axis in axes:
        line = _line(grid, axis)
        if np.array_equal(grid, np.broadcast_to(line, grid.shape)):
            return axis, line.reshape(-1)
    roots = np.append(call.walk.components.roots(), -1)[grid]
    for axis in axes if (grid >= 0).all() else ():
        if np.array_equal(roots, np.broadcast_to(_line(roots, axis), grid.shape)):
            return axis, call.walk.stands_for(_line(grid, axis), grid)
    if preferred not in axes:  # maps of each channel, [C, h, h], or filters are made as C * h * h
        sizes = [grid.shape[a] for a in axes]
        preferred = axes[0] if len(sizes) == 3 and sizes[1] == sizes[2] and sizes[0] > FEW else axes[-1]
    elif preferred != axes[-1]:
        call.walk.divides = True
        preferred = axes[-1] if call.walk.within and not call.walk.is_inner(grid) else preferred
    line = _line(grid, preferred)
    if call.walk.within:
        call.walk.inner.append(line.reshape(-1))
    call.walk.components.join(
        grid, np.broadcast_to(line, grid.shape), f"{call.walk.here()} divides these channels ({call.name})"
    )
    return preferred, call.walk.stands_for(line, grid)


def _line(grid: Labels, axis: int) -> Labels:
    for other in range(grid.ndim):
        if other != axis:
            grid = grid.take([0], axis=other)
    return grid


def segments(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of axes with equal numbers of elements before and after a reshape."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        a: list[int] = []
        b: list[int] = []
        left = right = 1
        while True:
            if left == right and a and b:
                break
            if left <= right and i < len(before) and (not a or left < right):
                left, a, i = left * before[i], [*a, i], i + 1
            elif j < len(after):
                right, b, j = right * after[j], [*b, j], j + 1
            elif i < len(before):
                left, a, i = left * before[i], [*a, i], i + 1
            else:
                break
        found.append((a, b))
    return found


def _view(call: Call) -> bool:
    x, result = call.inputs[0], call.results[0]
    if 0 in x.shape:
        return False
    # The axis that was given as -1 is the one that changes with the number of channels.
    size = call.argument("size", call.argument("shape", ()))
    free = list(size).index(-1) if -1 in size else -1
    free = call.walk.heads if 0 <= call.walk.heads < result.dim() else free
    axes: Axes = {}
    apart: Apart | None = None
    call.walk.divided.add(call.walk.path())
    for before, after in segments(x.shape, result.shape):
        sizes = [x.shape[a] for a in before]
        goes = _axis_that_goes(call, before) if len(after) == 1 < len(before) else -1
        for position, axis in enumerate(before):
            for labels in call.axes(x).get(axis, []) if goes in (-1, axis) else ():
                if len(before) == len(after) == 1:
                    axes.setdefault(after[0], []).append(labels)
                    continue
                if math.prod(sizes) > LONGEST or not after:
                    call.walk.components.freeze(labels, f"{call.walk.here()} flattens more than is followed")
                    continue
                shape = [-1 if p == position else 1 for p in range(len(sizes))]
                grid = np.broadcast_to(labels.reshape(shape), sizes).reshape([result.shape[a] for a in after])
                unflattened = call.walk.unflattened if len(after) > 1 else -1
                first = next((i for i, a in enumerate(after) if a == free), unflattened)
                call.walk.kernels.append((labels, grid.shape))
                if (kind := _kinds(call, grid, first)) >= 0:
                    lines = [
                        tie_to_one_axis(call, part, first - (first > kind)) for part in np.moveaxis(grid, kind, 0)
                    ]
                    apart = Apart(after[kind], after[-1], np.stack([line for _, line in lines]))
                    call.walk.components.join(apart.labels, np.broadcast_to(apart.labels[:1], apart.labels.shape), "")
                    continue
                own, line = tie_to_one_axis(call, grid, first)
                axes.setdefault(after[own], []).append(line)
    call.walk.note(result, axes, weight=call.walk.shadow(x).weight, apart=apart)
    return True


def _axis_that_goes(call: Call, merged: Sequence[int]) -> int:
    """Of axes with labels that become one the first, or the last within heads, the rest frozen; -1 for one alone.

    -1, too, for all but the first axis of a parameter: several kernels, each of which becomes a row.
    """
    x = call.inputs[0]
    own = [a for a in merged if call.axes(x).get(a)]
    kernels = call.walk.shadow(x).weight and x.dim() > 3 and merged[0] == 1
    if len(own) < 2 or (kernels and own[-1] == max(call.axes(x))):
        return -1
    call.walk.divides = True
    goes = own[-1] if call.walk.within else own[0]
    if call.walk.within:
        call.walk.inner += call.axes(call.inputs[0])[goes]
    reason = f"{call.walk.here()} divides these channels ({call.name})"
    call.walk.freeze(call.inputs[0], reason, axes=[a for a in own if a != goes])
    return goes


def _kinds(call: Call, grid: Labels, heads: int) -> int:
    """The axis of queries, keys and values of a block of channels of all of them; -1 for none."""
    others = [a for a in range(grid.ndim - 1) if a != heads and grid.shape[a] > 1]
    if len(others) != 1 or grid.shape[others[0]] > FEW or len(np.unique(grid)) < grid.size:
        return -1
    several = 0 <= heads < grid.ndim - 1 and grid.shape[heads] > 1
    divides = call.walk.within if several else heads != others[0]  # a lone head, or none, has its channels alone
    return others[0] if divides and not call.walk.is_inner(grid) else -1


def _as_strided(call: Call) -> bool:
    """Other strides for the same places, as the mean over all places gives its result."""
    x, result = call.inputs[0], call.results[0]
    places = [a for a, size in enumerate(x.shape) if size > 1]
    if x.shape != result.shape or any(x.stride(a) != result.stride(a) for a in places):
        return False
    call.walk.note(result, call.axes(x))
    return True


def _complex(call: Call) -> bool:
    """Pairs of real numbers along the last axis as complex ones, or the other way round."""
    x = call.inputs[0]
    if call.name == "view_as_complex":
        call.mixes(x, [-1])
    axes = {a: v for a, v in call.axes(x).items() if call.name == "view_as_real" or a < x.dim() - 1}
    call.walk.note(call.results[0], axes, weight=call.walk.shadow(x).weight)
    return True


REARRANGING: dict[Rule, tuple[str, ...]] = {
    _permute: ("permute", "permute_copy"),
    _t: ("t", "t_copy"),
    _transpose: ("transpose", "transpose_copy"),
    _unsqueeze: ("unsqueeze", "unsqueeze_copy"),
    _squeeze: ("squeeze", "squeeze_copy"),
    _select: ("select", "select_copy"),
    _expand: ("expand", "expand_copy"),
    _slice: ("slice", "slice_copy"),
    _split: ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk",
             "tensor_split", "unbind", "split_copy", "unbind_copy"),
    _join: ("cat", "stack"),
    _as_strided: ("as_strided",),
    _complex: ("view_as_complex", "view_as_real"),
    _pad: ("constant_pad_nd",),
    _repeat: ("repeat", "tile"),
    _where: ("masked_fill", "where", "masked_scatter"),
    _shuffle: ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
    _patches: ("im2col", "col2im"),
    _view: ("view", "unsafe_view", "reshape", "reshape_alias", "view_copy", "reshape_copy"),
}  # fmt: skip
