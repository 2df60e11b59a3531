"""Operators that multiply and add up over channels, and what becomes of the channels' labels; see `dependency`."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from archgrad.multiply_adds import multiply_adds
from archgrad.spaces.slim.combining import combine, paired
from archgrad.spaces.slim.dependency import Axes, Call, Labels, Rule
from archgrad.spaces.slim.flat_kernels import note_kernel


def _convolve(call: Call) -> bool:
    x, weight, bias = call.argument("input"), call.argument("weight"), call.argument("bias")
    groups, transposed = call.argument("groups", 1), bool(call.argument("transposed", False))
    walk, here = call.walk, call.walk.here()
    note_kernel(call, weight, x)
    if groups > 1:
        return _convolve_groups(call, x, weight, bias)
    alone = [] if transposed else _places_alone(call, weight)
    slides = [] if transposed else _note_sliding(call, x, weight)
    mixed = [a for a in range(2, x.dim()) if a not in (*alone, *slides)]
    walk.freeze(x, f"{here} mixes along these channels (convolution)", axes=mixed)
    reads, makes = (0, 1) if transposed else (1, 0)
    if not contract(call, call.axes(x).get(1, []), call.axes(weight).get(reads, []), (x, weight)):
        return False
    axes: Axes = {a: call.axes(x).get(a, []) for a in (0, *alone)}
    axes[1] = [*call.axes(weight).get(makes, [])]
    result = call.results[0]
    reading = {-1: call.axes(weight).get(reads, [])}
    walk.product(
        result[:, :1].numel() * weight.numel() // max(weight.shape[reads], 1) * x.shape[1],
        axes | reading,
        weight.shape,
    )
    axes |= {a: call.axes(x)[a] for a in slides}
    if bias is not None and axes[1]:
        axes |= combine(call, [(result, {1: axes[1]}, 0), (bias, call.axes(bias), 1)], result.shape[:2])
    walk.note(result, axes)
    return True


def _places_alone(call: Call, weight: Tensor) -> list[int]:
    """Axes along which a convolution has one weight for all places, each of which it reads once, and no other."""
    pads, steps = call.argument("padding"), call.argument("stride")
    count = weight.dim() - 2
    pads, steps = (list(given) * count if len(given) == 1 else given for given in (pads, steps))
    return [2 + i for i in range(count) if (weight.shape[2 + i], pads[i], steps[i]) == (1, 0, 1)]


def _note_sliding(call: Call, x: Tensor, weight: Tensor) -> list[int]:
    """Axes of channels along which a layer with one filter of one channel slides, as in efficient channel attention.

    Zeros among these channels add nothing to their neighbours, so they are put back where such channels were cut.
    """
    fits = weight.shape[:2] == (1, 1) and x.dim() == weight.dim() and call.walk.shadow(weight).weight
    slides = [a for a in range(2, x.dim()) if call.axes(x).get(a) and call.results[0].shape[a] == x.shape[a] > 1]
    if not fits or len(slides) != 1 or x.shape[1] != 1:
        return []
    along, reason = call.axes(x)[slides[0]], f"{call.walk.here()} mixes along these channels (convolution)"
    pair_of_activations(call, along, along, reason)
    call.walk.sliding.add((call.walk.path(), slides[0] - x.dim()))
    return slides


def _convolve_groups(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Blocks of channels go with the blocks of filters that read them; those of a layer are tied already."""
    labels = call.axes(weight)
    call.walk.divided.add(call.walk.path())
    if not call.walk.shadow(weight).weight:
        return _convolve_examples(call, x, weight, bias)
    transposed = bool(call.argument("transposed", False))
    call.walk.freeze(x, f"{call.walk.here()} mixes along these channels (convolution)", axes=range(2, x.dim()))
    _note_read(call, weight, labels.get(1, []))
    if transposed:
        made = call.axes(bias).get(0, []) if bias is not None else []
        if not made:
            return False
    else:
        made, groups = labels.get(0, []), int(call.argument("groups"))
        for own in made[:1]:
            _tie_blocks(call, own, call.axes(x).get(1, []), groups)
    if bias is not None and made and not transposed:
        combine(call, [(call.results[0], {1: made}, 0), (bias, call.axes(bias), 1)], call.results[0].shape[:2])
    work = x.numel() * weight[0].numel() if transposed else call.results[0].numel() * weight[0].numel()
    call.walk.product(work, {1: made}, weight.shape)
    call.walk.note(call.results[0], {0: call.axes(x).get(0, []), 1: made})
    return True


def _tie_blocks(call: Call, made: Labels, read: list[Labels], groups: int) -> None:
    """A block of filters lives and dies with the block of channels that it reads."""
    firsts = made.reshape(groups, -1)[:, :1]
    for labels in (made, *read):
        blocks = labels.reshape(groups, -1)
        reason = f"{call.walk.here()} reads these channels beside others that are fixed"
        call.walk.components.join(blocks, np.broadcast_to(firsts, blocks.shape), reason)
    if not read:
        call.walk.components.freeze(made, f"{call.walk.here()} reads a fixed number of channels")


def _convolve_examples(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Kernels that were computed for each example: the batch stands beside the channels, one group for each."""
    groups, result = call.argument("groups"), call.results[0]
    if bool(call.argument("transposed", False)):
        return False
    call.walk.freeze(x, f"{call.walk.here()} mixes along these channels (convolution)", axes=range(2, x.dim()))
    given, made, read = call.axes(x).get(1, []), call.axes(weight).get(0, []), call.axes(weight).get(1, [])
    if groups == x.shape[1] == len(weight):  # one for each channel too
        axes = combine(call, [(x, {1: given}, 0), (weight, {0: made}, 1)], result.shape[:2])
        given = []
    else:
        blocks = [labels.reshape(groups, -1) for labels in given]
        if any((block != block[:1]).any() for block in blocks):
            return False
        given, axes = [block[0] for block in blocks], {1: made}
        if not contract(call, given, read, (x, weight)):
            return False
    if bias is not None:
        axes |= combine(call, [(result, axes, 0), (bias, call.axes(bias), 1)], result.shape[:2])
    call.walk.product(result.numel() * weight[0].numel(), axes | {-1: given}, weight.shape)
    call.walk.note(result, axes)
    return True


def contract(call: Call, left: list[Labels], right: list[Labels], operands: tuple[Tensor, Tensor]) -> bool:
    """Tie the labels along an axis that a product sums over: one operand has to be a weight that takes a gate."""
    components, here = call.walk.components, call.walk.here()
    for x, arrays in zip(operands, (left, right), strict=True):
        _note_read(call, x, arrays)
    if not left and not right:
        return True
    if not any(call.walk.shadow(x).weight for x in operands):
        reason = f"{here} multiplies these channels with other activations and adds up"
        if computed := call.walk.computed():
            for labels in (*left, *right):
                components.freeze(labels, computed)
            return True
        pair_of_activations(call, left, right, reason)
        return True
    if not left or not right:
        for labels in (*left, *right):
            components.freeze(labels, f"{here} reads a fixed number of channels")
        return True
    for a, b in paired(left, right):
        components.join(a, b, f"{here} reads these channels beside others that are fixed")
        weight = b if call.walk.shadow(operands[1]).weight else a
        if call.walk.is_table[weight[weight >= 0]].all():  # an embedding's, which carries a gate as well
            call.walk.multiplied.append((weight, weight, f"{here} reads these channels with a table", False))
        elif call.walk.is_bare[weight[weight >= 0]].all():
            call.walk.bare.append(weight[weight >= 0])
        elif not call.walk.is_read[weight[weight >= 0]].all():
            components.freeze(
                weight, f"{here} reads these channels with a parameter that is not the weight of a layer"
            )
    return True


def _note_read(call: Call, weight: Tensor, arrays: list[Labels]) -> None:
    """What a product sums over along a parameter that is the weight of no layer, with its multiply-adds."""
    for labels in arrays[:1] if call.walk.shadow(weight).weight else ():
        if call.walk.is_bare[labels[labels >= 0]].all():
            amount = multiply_adds(call.func, call.args, call.kwargs, call.results[0])
            call.walk.read.append((labels[labels >= 0], amount))


def pair_of_activations(
    call: Call, left: list[Labels], right: list[Labels], reason: str, *, rescaled: bool = False
) -> None:
    """Tie what a product of two activations sums over: where one of both is zero, nothing is added.

    With `rescaled` the product is divided by the root of their number.
    """
    if len(left) == len(right) == 1:
        call.walk.components.join(left[0], right[0], reason)
        call.walk.multiplied.append((left[0], right[0], reason, rescaled))
        return
    for labels in (*left, *right):
        call.walk.components.freeze(labels, reason)


def _multiply(call: Call) -> bool:
    if call.name in ("linear", "matmul"):
        return False  # made of the others, unless a backend has its own
    a, b = call.inputs[-2:]
    axes_a, axes_b = call.axes(a), call.axes(b)
    for weight, other in ((a, b), (b, a)):
        if weight.layout is torch.strided:  # no sparse adjacency
            note_kernel(call, weight, other)
    last, inner = a.dim() - 1, max(b.dim() - 2, 0)
    if not contract(call, axes_a.get(last, []), axes_b.get(inner, []), (a, b)):
        return False
    result = call.results[0]
    axes: Axes = {}
    if a.dim() == 3:
        batch = [(a, {0: axes_a.get(0, [])}, 0), (b, {0: axes_b.get(0, [])}, 0)]
        axes |= combine(call, batch, result.shape[:1])
    if a.dim() >= 2:
        axes[last - 1] = axes_a.get(last - 1, [])
    if b.dim() >= 2:
        axes[result.dim() - 1] = axes_b.get(b.dim() - 1, [])
    if len(call.inputs) == 3:
        added = call.inputs[0]
        axes = (
            combine(call, [(result, axes, 0), (added, call.axes(added), result.dim() - added.dim())], result.shape)
            if axes
            else {}
        )
        if not axes:
            call.walk.freeze(added, f"{call.walk.here()} adds this parameter to values without channels")
    call.walk.product(result.numel() * a.shape[-1], axes | {-1: axes_b.get(inner, [])}, (a.shape, b.shape))
    call.walk.note(result, axes)
    return True


ALIGNED = 8  # channels, 16 bytes in half precision: torch's kernel takes rows of multiples of 16 bytes alone


def _multiply_groups(call: Call) -> bool:
    """[S, in] rows that are sorted by experts, times [experts, in, out]."""
    x, weight = call.inputs[:2]
    if (x.dim(), weight.dim()) != (2, 3):
        return False
    here = call.walk.here()
    call.walk.freeze(x, f"{here} sends these to groups by their order ({call.name})", axes=[0])
    call.walk.freeze(weight, f"{here} has one of these for each group of its rows ({call.name})", axes=[0])
    for other in call.inputs[2:]:
        call.walk.freeze(other, f"{here} groups by these ({call.name})")
    reads, makes = call.axes(weight).get(1, []), call.axes(weight).get(2, [])
    for labels in (*call.axes(x).get(1, []), *reads, *makes):
        size = math.gcd(len(labels), ALIGNED)
        blocks = labels.reshape(-1, size)
        call.walk.components.join(
            blocks,
            np.broadcast_to(blocks[:, :1], blocks.shape),
            f"{here} takes multiples of {size} of these channels",
        )
    if not contract(call, call.axes(x).get(1, []), reads, (x, weight)):
        return False
    result = call.results[0]
    call.walk.product(result.numel() * x.shape[1], {1: makes, -1: reads}, (x.shape, weight.shape))
    call.walk.note(result, {1: makes})
    return True


def attention(call: Call) -> bool:
    """`scaled_dot_product_attention` in all its forms."""
    q, k, v, *rest = call.inputs
    last, here = q.dim() - 1, call.walk.here()
    result = call.results[0]
    reason = f"{here} multiplies queries and keys and adds up over these channels"
    rescaled = call.argument("scale") is None
    pair_of_activations(call, call.axes(q).get(last, []), call.axes(k).get(last, []), reason, rescaled=rescaled)
    for x in (k, v):
        call.mixes(x, [last - 1])
    for x in rest:  # a mask, with an axis of heads perhaps
        call.walk.freeze(x, f"{here} adds these to the scores of attention", axes=[x.dim() - 2, x.dim() - 1])
    parts: list[tuple[Tensor, Axes, int]] = []
    for x in (q, k, v, *rest):
        shift = result.dim() - x.dim()
        axes = {a: n for a, n in call.axes(x).items() if a < x.dim() - 2}
        heads = last - 2 - shift
        if x is not q and 0 <= heads < x.dim() - 2 and 1 < x.shape[heads] < q.shape[last - 2]:
            # Several heads of queries share one of keys and values: they are tied to it.
            repeats = q.shape[last - 2] // x.shape[heads]
            for own in axes.pop(heads, []):
                for labels in call.axes(q).get(last - 2, [np.full(q.shape[last - 2], -1)]):
                    call.walk.components.join(np.repeat(own, repeats), labels, f"{here} shares heads that are fixed")
            axes[heads] = call.axes(q).get(last - 2, [])
            x = torch.empty([*x.shape[:heads], q.shape[last - 2], *x.shape[heads + 1 :]], device="meta")
        parts.append((x, axes, shift))
    joined = combine(call, parts, result.shape[: last - 1])
    scores = q.numel() * k.shape[-2]
    call.walk.product(scores, joined | {last: call.axes(q).get(last, [])}, "scores")
    call.walk.product(scores * v.shape[-1] // q.shape[-1], joined | {last: call.axes(v).get(last, [])}, "values")
    joined[last - 1], joined[last] = call.axes(q).get(last - 1, []), call.axes(v).get(last, [])
    call.walk.note(result, joined)
    return True


def _distances(call: Call) -> bool:
    """[..., n, C] and [..., m, C]: |x - y| over the channels, to which those add nothing that are zero in both."""
    x, y = call.inputs[:2]
    result = call.results[0]
    for a, b in ((x, y), (y, x)):
        labels = call.axes(a).get(a.dim() - 1, [])
        reason = f"{call.walk.here()} takes distances over these channels and fixed ones"
        pair_of_activations(call, labels, labels, reason)
        for own, other in zip(labels, call.axes(b).get(b.dim() - 1, [np.full(a.shape[-1], -1)]), strict=False):
            call.walk.components.join(own, other, reason)
    axes = combine(call, [(v, {a: n for a, n in call.axes(v).items() if a < v.dim() - 2}, 0) for v in (x, y)],
                   result.shape[:-2])  # fmt: skip
    last = result.dim() - 2
    axes |= {last: call.axes(x).get(x.dim() - 2, []), last + 1: call.axes(y).get(y.dim() - 2, [])}
    call.walk.product(result.numel() * x.shape[-1], axes | {-1: call.axes(x).get(x.dim() - 1, [])}, "distances")
    call.walk.note(result, axes)
    return True


PRODUCTS: dict[Rule, tuple[str, ...]] = {
    _convolve: (
        "convolution",
        "conv1d",
        "conv2d",
        "conv3d",
        "mkldnn_convolution",
        "slow_conv2d_forward",
        "thnn_conv2d",
    ),
    _multiply: (
        "mm",
        "bmm",
        "addmm",
        "sparse_addmm",
        "baddbmm",
        "mv",
        "addmv",
        "dot",
        "linear",
        "matmul",
    ),
    _multiply_groups: ("grouped_mm",),
    _distances: ("cdist_forward", "euclidean_dist", "cdist"),
}
