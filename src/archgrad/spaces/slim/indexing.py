"""Operators that read or write at places that an index names, and what becomes of the channels' labels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from archgrad.spaces.slim.combining import combine
from archgrad.spaces.slim.dependency import Axes, Call, Rule


def _embed(call: Call) -> bool:
    weight, indices = call.inputs[:2]
    call.walk.freeze(weight, f"{call.walk.here()} picks rows of this table", axes=[0])
    call.walk.freeze(indices, f"{call.walk.here()} picks rows by these channels")
    result = call.results[0]
    call.walk.note(result, {result.dim() - 1: call.axes(weight).get(1, [])})
    return True


def _embed_bag(call: Call) -> bool:
    weight, indices = call.inputs[:2]
    call.walk.freeze(weight, f"{call.walk.here()} picks rows of this table", axes=[0])
    for x in (indices, *call.inputs[2:]):
        call.walk.freeze(x, f"{call.walk.here()} picks rows by these channels")
    call.walk.note(call.results[0], {1: call.axes(weight).get(1, [])})
    return True


def _places(call: Call) -> tuple[int, int] | None:
    """The first axis that indices are for, and the one behind the last; None where they do not lie side by side."""
    indices = call.argument("indices")
    positions = [i for i, index in enumerate(indices) if index is not None]
    masks = sum(
        indices[i].dim() - 1 for i in positions if not indices[i].is_floating_point() and _is_mask(indices[i])
    )
    side_by_side = positions == list(range(positions[0], positions[-1] + 1))
    return (positions[0], positions[-1] + 1 + masks) if side_by_side else None


def _is_mask(index: Tensor) -> bool:
    return index.element_size() == 1  # bool, or uint8 in its place


def _freeze_indices(call: Call) -> None:
    for index in (index for index in call.argument("indices") if index is not None):
        call.walk.freeze(index, f"{call.name} in {call.walk.here()} cannot be followed")


def _index(call: Call) -> bool:
    x, places = call.inputs[0], _places(call)
    if places is None:
        return False
    call.mixes(x, range(*places))
    call.walk.freeze(x, f"index in {call.walk.here()} cannot be followed", axes=range(places[0]))
    _freeze_indices(call)
    shift = call.results[0].dim() - x.dim()
    axes = {a + shift: v for a, v in call.axes(x).items() if a >= places[1]}
    call.walk.note(call.results[0], axes, weight=call.walk.shadow(x).weight)  # one of several experts', say
    return True


def _index_put(call: Call) -> bool:
    x, values, places = call.inputs[0], call.argument("values"), _places(call)
    if places is None or places[0] > 0:
        return False
    call.mixes(x, range(*places))
    _freeze_indices(call)
    shift = x.dim() - values.dim()
    behind = values.dim() - (x.dim() - places[1])  # the first axis of the values that is none of an index
    call.walk.freeze(values, f"{call.name} in {call.walk.here()} cannot be followed", axes=range(max(0, behind)))
    kept = {a: v for a, v in call.axes(values).items() if a >= behind}
    own = {a: v for a, v in call.axes(x).items() if a >= places[1]}
    call.walk.note(call.results[0], combine(call, [(x, own, 0), (values, kept, shift)], x.shape))
    return True


def _beside(call: Call, dim: int, tensors: Sequence[Tensor]) -> Axes:
    """What lies along the axes that an index is not for: where it has them too, it has to be the same all along."""
    index, result = call.argument("index"), call.results[0]
    flat = index.dim() < result.dim() or index.dim() < 2
    reason = f"{call.name} in {call.walk.here()} picks by these channels"
    call.walk.freeze(index, reason, axes=None if flat else [dim])
    for x in tensors:
        call.mixes(x, [dim])
    parts = [(x, {a: v for a, v in call.axes(x).items() if a != dim}, 0) for x in tensors]
    if not flat:
        own = {a: v for a, v in call.axes(index).items() if a != dim}
        parts.append((_evened(index) if not own else index, own, 0))
    return combine(call, parts, result.shape)


def _evened(index: Tensor) -> Tensor:
    """An index with one value spread along each axis along which it is the same, whether by expand or by repeat."""
    for axis in range(index.dim()):
        first = index.narrow(axis, 0, 1)
        if index.shape[axis] > 1 and bool((index == first).all()):
            index = first.expand_as(index)
    return index


def _pick(call: Call) -> bool:
    """gather and index_select: one tensor, read along one axis."""
    x = call.argument("self")
    call.walk.note(call.results[0], _beside(call, int(call.argument("dim")) % x.dim(), [x]))
    return True


def _put(call: Call) -> bool:
    """scatter, index_add and the like: a tensor that others are written to along one axis."""
    x = call.argument("self")
    dim = int(call.argument("dim")) % max(x.dim(), 1)
    written = [s for n in ("src", "source", "value") if isinstance(s := call.argument(n), Tensor) and s.dim()]
    if not x.dim():
        return False
    call.walk.note(call.results[0], _beside(call, dim, [x, *written]))
    return True


INDEXING: dict[Rule, tuple[str, ...]] = {
    _embed: ("embedding",),
    _embed_bag: ("embedding_bag", "embedding_bag_forward_only"),
    _index: ("index",),
    _index_put: ("index_put", "index_put_impl"),
    _pick: ("gather", "index_select"),
    _put: ("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill", "index_reduce"),
}
