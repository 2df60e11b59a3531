"""What each operator of torch does with the labels of its inputs' channels; see `dependency`."""

from __future__ import annotations

import numpy as np
import torch

from archgrad.spaces.slim.combining import combine
from archgrad.spaces.slim.dependency import Axes, Call, Rule
from archgrad.spaces.slim.indexing import INDEXING
from archgrad.spaces.slim.products import PRODUCTS, attention, pair_of_activations
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
    if call.func._schema.name.endswith("_") and out._base is not None:
        _write_through(call, out, axes)
    return True


def _write_through(call: Call, view: torch.Tensor, axes: Axes) -> None:
    """What was written into a view lies along the whole as well: `y[:, :, :8] = x`, `y[:, i] += x`."""
    whole = view._base
    assert whole is not None
    own = {
        b: axes[a] for a in axes for b in range(whole.dim())
        if (view.shape[a], view.stride(a)) == (whole.shape[b], whole.stride(b)) and whole.shape[b] > 1
    }  # fmt: skip
    known = call.axes(whole)
    parts = [(whole, {b: known.get(b, []) for b in own}, 0), (whole, own, 0)]
    call.walk.note(whole, known | combine(call, parts, whole.shape))


def _reduce(call: Call) -> bool:
    x = call.inputs[0]
    dims = call.argument("dim")
    dims = list(range(x.dim())) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    dims = [d % max(x.dim(), 1) for d in dims]
    mixed = [labels for d in dims for labels in call.axes(x).get(d, [])]
    reason = f"{call.walk.here()} mixes these channels ({call.name})"
    if call.name in ADDING:  # zeros add nothing
        for labels in mixed:
            pair_of_activations(call, [labels], [labels], reason)
        mixed = []
    elif call.walk.path() not in call.walk.graphs:  # user's code may keep what it does not read
        call.mixes(x, dims)
        mixed = []
    keep = bool(call.argument("keepdim", False))
    axes: Axes = {}
    for axis, arrays in call.axes(x).items():
        if axis not in dims:
            axes[axis if keep else axis - sum(d < axis for d in dims)] = arrays
    for result in call.results:
        call.walk.note(result, axes if result.dim() else {})
        call.walk.shadow(result).picked += [(labels, reason) for labels in mixed]  # what nobody reads mixes nothing
    return True


def _one_of_all(call: Call) -> bool:
    """The largest or smallest of all elements."""
    each = "x.amax" if call.name == "max" else "x.amin"
    reason = (
        f"{call.walk.here()} takes one {call.name} of all of these channels; one for each of them, as "
        f"{each}(0, keepdim=True), keeps them apart"
    )
    call.walk.freeze(call.inputs[0], reason)
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
    **PRODUCTS,
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
        return attention
    if torch.Tag.pointwise in func.tags or name in ELEMENTWISE:
        return _elementwise
    if name.startswith(SPATIAL):
        return _spatial
    if any(a.name == "keepdim" for a in func._schema.arguments) or name in ("mean", "sum", "prod", "amax", "amin"):
        return _reduce
    if name in ("max", "min"):
        return _one_of_all
    return _mix if name in MIXING else None
