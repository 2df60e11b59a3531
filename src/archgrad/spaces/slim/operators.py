"""What each operator of torch does with the labels of its inputs' channels; see `dependency`."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from archgrad.spaces.slim.dependency import Axes, Call, Labels, Rule, combine, paired
from archgrad.spaces.slim.indexing import INDEXING
from archgrad.spaces.slim.rearranging import REARRANGING

# Operators that keep the shape, and compute every element from the one at its place; most others are tagged so.
ELEMENTWISE = (
    "copy", "to_copy", "detach", "alias", "lift_fresh", "contiguous", "hardswish", "hardsigmoid", "prelu_kernel",
    "mish",
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "bernoulli", "native_dropout",
    "fill", "zero", "normal", "uniform", "log_sigmoid_forward", "rrelu_with_noise", "rrelu", "gelu", "dropout",
    "nan_to_num", "clone", "relu6", "hardtanh", "celu", "selu", "elu", "tanhshrink", "softshrink",
)  # fmt: skip
# Operators that mix over the last axes, as many as their name says.
SPATIAL = (
    "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample", "reflection_pad", "replication_pad",
    "fractional_max_pool", "grid_sampler", "max_unpool", "lp_pool",
)  # fmt: skip
MIXING = ("softmax", "log_softmax", "cumsum", "cumprod", "sort", "topk", "logcumsumexp", "flip", "roll", "cummax",
          "cummin", "fft_r2c", "fft_c2c", "fft_c2r", "renorm", "tril", "triu",
          "unfold", "kthvalue", "safe_softmax")  # fmt: skip


ADDING = ("sum", "linalg_vector_norm")  # reductions in which zeros do not count


def _elementwise(call: Call) -> bool:
    if not call.results:
        return True
    out = max(call.results, key=lambda x: x.dim())
    size = out.shape
    parts = [(x, call.axes(x), len(size) - x.dim()) for x in call.inputs]
    axes = combine(call, parts, size)
    for result in call.results:
        if result.shape == size:
            call.walk.note(result, axes, weight=len(call.inputs) == 1 and call.walk.shadow(call.inputs[0]).weight)
    return True


def _reduce(call: Call) -> bool:
    x = call.inputs[0]
    dims = call.argument("dim")
    dims = list(range(x.dim())) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    dims = [d % max(x.dim(), 1) for d in dims]
    if call.name in ADDING and not call.walk.shadow(x).weight:  # zeros add nothing
        for labels in (labels for d in dims for labels in call.axes(x).get(d, [])):
            reason = f"{call.walk.here()} mixes these channels ({call.name})"
            pair_of_activations(call, [labels], [labels], reason)
    else:
        call.mixes(x, dims)
    keep = bool(call.argument("keepdim", False))
    axes: Axes = {}
    for axis, arrays in call.axes(x).items():
        if axis not in dims:
            axes[axis if keep else axis - sum(d < axis for d in dims)] = arrays
    for result in call.results:
        if result.dim():
            call.walk.note(result, axes)
    return True


def _mix(call: Call) -> bool:
    x = call.inputs[0]
    dims = call.argument("dim", call.argument("dims", call.argument("dimension")))
    dims = [-1, -2] if dims is None else [dims] if isinstance(dims, int) else list(dims)
    for other in call.inputs:
        call.mixes(other, [d for d in dims if -other.dim() <= d < other.dim()])
    dims = [d % max(x.dim(), 1) for d in dims]
    axes = {a: v for a, v in call.axes(x).items() if a not in dims}
    for other in call.inputs[1:]:
        call.walk.freeze(other, f"{call.name} in {call.walk.here()} cannot be followed")
    for result in call.results:
        if result.dim() == x.dim():
            call.walk.note(result, {a: v for a, v in axes.items() if result.shape[a] == x.shape[a]})
    return True


def _spatial(call: Call) -> bool:
    x = call.inputs[0]
    count = next((int(c) for c in call.name if c in "123"), 3)
    call.mixes(x, range(x.dim() - count, x.dim()))
    for result in call.results:
        call.walk.note(result, {a: v for a, v in call.axes(x).items() if a < x.dim() - count})
    for other in call.inputs[1:]:
        call.walk.freeze(other, f"{call.name} in {call.walk.here()} cannot be followed")
    return True


def _convolve(call: Call) -> bool:
    x, weight, bias = call.argument("input"), call.argument("weight"), call.argument("bias")
    groups, transposed = call.argument("groups", 1), bool(call.argument("transposed", False))
    walk, here = call.walk, call.walk.here()
    if groups > 1:
        return _convolve_groups(call, x, weight, bias)
    walk.freeze(x, f"{here} mixes along these channels (convolution)", axes=range(2, x.dim()))
    reads, makes = (0, 1) if transposed else (1, 0)
    if not contract(call, call.axes(x).get(1, []), call.axes(weight).get(reads, []), (x, weight)):
        return False
    axes: Axes = {0: call.axes(x).get(0, [])}
    axes[1] = [*call.axes(weight).get(makes, [])]
    result = call.results[0]
    reading = {-1: call.axes(weight).get(reads, [])}
    walk.product(
        result[:, :1].numel() * weight.numel() // max(weight.shape[reads], 1) * x.shape[1],
        axes | reading,
        weight.shape,
    )
    if bias is not None and axes[1]:
        axes |= combine(call, [(result, {1: axes[1]}, 0), (bias, call.axes(bias), 1)], result.shape[:2])
    walk.note(result, axes)
    return True


def _convolve_groups(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """The blocks themselves are tied where the layer is numbered; its input side is tied by the layer's hook."""
    labels = call.axes(weight)
    if not call.walk.shadow(weight).weight:
        return False
    transposed = bool(call.argument("transposed", False))
    call.walk.freeze(x, f"{call.walk.here()} mixes along these channels (convolution)", axes=range(2, x.dim()))
    if transposed:
        made = call.axes(bias).get(0, []) if bias is not None else []
        if not made:
            return False
    else:
        made = labels.get(0, [])
    call.walk.note(call.results[0], {0: call.axes(x).get(0, []), 1: made})
    return True


def contract(call: Call, left: list[Labels], right: list[Labels], operands: tuple[Tensor, Tensor]) -> bool:
    """Tie the labels along an axis that a product sums over: one operand has to be a weight that takes a gate."""
    components, here = call.walk.components, call.walk.here()
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


def _attention(call: Call) -> bool:
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


def _batch_norm(call: Call) -> bool:
    x = call.inputs[0]
    vectors = [(v, {0: call.axes(v).get(0, [])}, 1) for v in call.inputs[1:]]
    axes = combine(call, [(x, call.axes(x), 0), *vectors], x.shape[:2])
    # What zeroes a channel behind the norm is its weight and bias, so that the labels are the norm's.
    own = [call.axes(v)[0] for v in call.inputs[1:2] if call.walk.shadow(v).weight and 0 in call.axes(v)]
    axes |= {1: own[0]} if own and len(axes.get(1, [])) == 1 else {}
    call.walk.note(call.results[0], {**call.axes(x), **axes})
    return True


def _group_norm(call: Call) -> bool:
    x, groups = call.inputs[0], int(call.argument("group"))
    vectors = [(v, call.axes(v), 1) for v in call.inputs[1:]]
    axes = combine(call, [(x, call.axes(x), 0), *vectors], x.shape[:2])
    for labels in axes.get(1, []):
        blocks = labels.reshape(groups, -1)
        call.walk.components.join(
            blocks, np.broadcast_to(blocks[:, :1], blocks.shape),
            f"{call.walk.here()} normalizes over these channels",
        )  # fmt: skip
    call.walk.note(call.results[0], {**call.axes(x), **axes})
    return True


def _layer_norm(call: Call) -> bool:
    x, count = call.inputs[0], len(call.argument("normalized_shape"))
    reason = f"{call.walk.here()} normalizes over these channels"
    call.walk.freeze(x, reason, axes=range(x.dim() - count, x.dim()))
    for vector in call.inputs[1:]:
        call.walk.freeze(vector, reason)
    call.walk.note(call.results[0], call.axes(x))
    return True


def _glu(call: Call) -> bool:
    x = call.inputs[0]
    dim = int(call.argument("dim", -1)) % x.dim()
    axes = dict(call.axes(x))
    for i, labels in enumerate(axes.get(dim, [])):
        half = len(labels) // 2
        call.walk.components.join(labels[:half], labels[half:], f"{call.walk.here()} pairs halves (glu)")
        axes[dim] = [*axes[dim][:i], labels[:half], *axes[dim][i + 1 :]]
    call.walk.note(call.results[0], axes)
    return True


_OPERATORS: dict[Rule, tuple[str, ...]] = {
    **REARRANGING,
    **INDEXING,
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
        "baddbmm",
        "mv",
        "addmv",
        "dot",
        "linear",
        "matmul",
    ),
    _multiply_groups: ("grouped_mm",),
    _batch_norm: (
        "native_batch_norm",
        "native_batch_norm_legit",
        "native_batch_norm_legit_no_training",
        "cudnn_batch_norm",
        "native_batch_norm_legit_functional",
        "batch_norm_with_update",
        "miopen_batch_norm",
    ),
    _group_norm: ("native_group_norm",),
    _layer_norm: (
        "native_layer_norm",
        "fused_rms_norm",
        "rms_norm",
    ),
    _glu: ("glu",),
}
_RULES = {name: rule for rule, names in _OPERATORS.items() for name in names}


def _broadcast_to_processes(call: Call) -> bool:
    return True  # in place, on the same tensors


def rule_of(func: torch._ops.OpOverload) -> Rule | None:
    """The rule of an operator; None if there is none."""
    room, _, name = func._schema.name.partition("::")
    name = name.strip("_")
    if room == "c10d" and name == "broadcast":
        return _broadcast_to_processes
    if name in _RULES:
        return _RULES[name]
    if name.startswith("scaled_dot_product"):
        return _attention
    if torch.Tag.pointwise in func.tags or name in ELEMENTWISE:
        return _elementwise
    if name.startswith(SPATIAL):
        return _spatial
    if any(a.name == "keepdim" for a in func._schema.arguments) or name in ("mean", "sum", "prod", "amax", "amin"):
        return _reduce
    return _mix if name in MIXING else None
