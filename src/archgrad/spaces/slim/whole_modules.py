"""Follow channels through modules as a whole, whatever operators they are made of; note what repeats their work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from archgrad.choices.channel_norms import Norm, lone_input
from archgrad.choices.channels import puts_back
from archgrad.spaces.slim.dependency import Labels, Walk
from archgrad.spaces.slim.layer_reasons import KEPT
from archgrad.spaces.slim.layer_sides import counting_heads, is_layer
from archgrad.spaces.slim.numbering import ALONG, NORM_SIDE, ROWS, Numbering, Side
from archgrad.spaces.slim.seeded_run import tensors_of
from archgrad.spaces.slim.torch_attention import attention_hooks, is_torch_attention, keep_places


def note_rows(numbering: Numbering, walk: Walk, path: str, x: object) -> None:
    """Channels that a layer treats as it does examples: its work shrinks with them, unless it slides along them."""
    if not isinstance(x, Tensor):
        return
    module = numbering.modules[path]
    own = x.dim() - 1 - (len(module.kernel_size) if isinstance(module, _ConvNd) else 0)
    for axis, arrays in walk.shadow(x).axes.items():
        if axis != own:
            slides = (path, axis - x.dim()) in walk.sliding
            side = (path, f"{ALONG} {axis - x.dim()}" if slides else f"{ROWS} {axis}")
            for known in [numbering.sides[side]] if slides and side in numbering.sides else []:
                _tie_calls(walk, known, arrays[0], f"{path} slides along these channels and others")
            numbering.sides[side], numbering.cuts[side] = arrays[0], (len(arrays[0]), (), ())


def _tie_calls(walk: Walk, first: Labels, other: Labels, reason: str) -> None:
    """Tie the channels of two calls of a layer, which stay where one call has more of them."""
    if len(first) == len(other):
        walk.components.join(first, other, reason)
    else:
        for labels in (first, other):
            walk.components.freeze(labels, reason)


FEW = 8  # products of one module that are parts of their own
Parts = dict[str, list[int]]  # by module the part of its work that each of its products belongs to


def note_products(numbering: Numbering, walk: Walk, parts: Parts) -> Parts:
    """Channels along the products that a module computes itself, such as heads: they scale that part of its work.

    Args:
        numbering: takes the channels, as sides of the module.
        walk: the run.
        parts: as an earlier run has divided the work; empty for a first run.
    """
    roots, made = walk.components.roots(), {}
    for path, products in walk.products.items():
        if is_layer(numbering.modules[path]):
            continue
        alongs = [_along(roots, arrays) for _, arrays, _ in products]
        few = len(products) <= FEW  # which may have other channels along where heads are divided
        kinds = [
            (frozenset(along), shape, number if few else 0)
            for number, (along, (_, _, shape)) in enumerate(zip(alongs, products, strict=True))
        ]
        own = parts.get(path) or [list(dict.fromkeys(kinds)).index(kind) for kind in kinds]
        made[path] = own
        total = sum(amount for amount, _, _ in products)
        for part in dict.fromkeys(own):
            inside = [k for k, p in enumerate(own) if p == part]
            known = {key: labels for k in inside for key, labels in alongs[k].items()}
            for number, key in enumerate(sorted(known)):
                side = (path, f"{ROWS} {number} {'within' if parts else 'of'} product {part}")
                numbering.sides[side] = known[key]
                numbering.cuts[side] = (len(known[key]), (), ())
                numbering.works[side] = (f"product {part}", sum(products[k][0] for k in inside) / total)
    return made


def note_reads(
    numbering: Numbering, walk: Walk, positions: Counter[str], keep: Callable[[str], bool]
) -> frozenset[Side]:
    """Axes of bare parameters along which products sum; `positions` takes at how many places each is used.

    What else such a module makes stays where its path is to be kept.
    """
    bare = [side for side in numbering.sides if side[1].startswith("axis") and numbering.is_parameter(side[0])]
    owner, read = np.full(numbering.size, -1), set[Side]()
    for number, side in enumerate(bare):
        owner[numbering.sides[side]] = number
    for labels, amount in walk.read:
        for number in np.unique(owner[labels]).tolist():
            side = bare[number]
            module, _, name = side[0].rpartition(".")
            parameter = numbering.modules[module]._parameters[name]
            assert parameter is not None
            positions[f"{module}.{name}"] += amount / parameter.numel()
            read.add(side)
    for module in {numbering.owner(side) for side in read}:
        for side in bare if keep(module) else ():
            if numbering.owner(side) == module and side not in read:
                walk.components.freeze(numbering.sides[side], KEPT)
    return frozenset(read)


def _along(roots: Labels, arrays: Sequence[tuple[int, Labels]]) -> dict[tuple[bytes, int], Labels]:
    """What lies along a product, of what is tied once for each axis: a square matrix shrinks on both sides."""
    axes: dict[bytes, dict[int, Labels]] = {}
    for axis, labels in arrays:
        axes.setdefault(roots[labels].tobytes(), {}).setdefault(axis, labels)
    return {(key, i): labels for key, own in axes.items() for i, labels in enumerate(own.values())}


def note_numbers(numbering: Numbering, walk: Walk) -> None:
    """Numbers of heads by which modules size tensors of their own, such as a bias of zeros: they shrink along."""
    for path, labels in walk.numbers:
        module = numbering.modules[path]
        for name in (n for n in counting_heads(module) if getattr(module, n) == len(labels)):
            known = numbering.sides.setdefault((path, f"param {name}"), labels)
            numbering.cuts.setdefault((path, f"param {name}"), (len(labels), (), (name,)))
            walk.components.join(known, labels, f"{path} sizes tensors by a number that is fixed")


def whole_hooks(numbering: Numbering, walk: Walk) -> list[Any]:
    """Follow channels through norms over channels, and torch's attention modules, each as a whole."""
    handles = []
    for path, kind in numbering.norms.items():

        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            walk.paused += 1

        def leave(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor,
            path: str = path, kind: Norm = kind,
        ) -> None:  # fmt: skip
            walk.paused -= 1
            x, labels = lone_input(args, kwargs), numbering.sides[path, NORM_SIDE]
            where = f"{path or 'forward'} ({type(numbering.modules[path]).__name__})"
            if x is None or not isinstance(output, Tensor) or output.shape != x.shape:
                reason = f"{where} takes or gives more than one tensor"
                walk.components.freeze(labels, reason)
                for tensor in tensors_of((args, kwargs)):
                    walk.freeze(tensor, reason)
                return
            axis, axes = kind.axis % x.dim(), walk.shadow(x).axes
            for own in axes.get(axis, []):
                walk.components.join(own, labels, f"{where} normalizes over these channels and others that are fixed")
            if kind.groups > 1:
                places = labels.reshape(kind.groups, -1)
                walk.components.join(places, np.broadcast_to(places[:1], places.shape), "")
            if getattr(kind, "unbiased", False):
                _tie_pairs(walk, labels, where)
            if axis not in axes:
                walk.components.freeze(labels, f"{where} normalizes over a fixed number of channels")
            others = [d for d in range(1, x.dim()) if d != axis] if kind.everywhere else []
            walk.freeze(x, f"{where} normalizes over these channels", axes=others)
            walk.note(output, {**{a: v for a, v in axes.items() if a not in others}, axis: [labels]})

        module = numbering.modules[path]
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True, prepend=True))
    for path in numbering.standardized:
        handles += _weight_hooks(path, numbering, walk)
    for path, module in numbering.modules.items():
        if isinstance(module, nn.Bilinear):
            handles += _bilinear_hooks(path, numbering, walk)
        if isinstance(module, nn.Transformer):
            handles.append(_width_hook(path, module, numbering, walk))
        if axis := puts_back(module):
            handles += _sliding_hooks(path, numbering, walk, axis)
        if isinstance(module, nn.MultiheadAttention) and not is_torch_attention(module):
            handles.append(keep_places(path, module, walk))
        out = (f"{path}.out_proj".lstrip("."), "out")
        if is_torch_attention(module) and out in numbering.sides:
            sides, made = numbering.sides_of(path), {"out": numbering.sides[out]}
            handles += attention_hooks(
                path,
                module,
                {s: v for s, v in sides.items() if s.startswith("in ")} | made,
                walk,
                numbering.calls,
            )
    return handles


def _tie_pairs(walk: Walk, labels: Labels, where: str) -> None:
    """A lone channel has no unbiased variance: two stay at least."""
    if len(labels) % 2:
        walk.components.freeze(labels, f"{where} takes the unbiased variance of an odd number of channels")
    else:
        walk.components.join(labels[::2], labels[1::2], "")


def _sliding_hooks(path: str, numbering: Numbering, walk: Walk, axis: int) -> list[Any]:
    """Follow what slides along channels of which some were cut before, so that more can go."""

    def enter(_module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        walk.paused += 1

    def leave(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        walk.paused -= 1
        reason, side = f"{path} slides along these channels and others", (path, f"{ALONG} {axis}")
        x = lone_input(args, kwargs)
        if x is None:
            return
        along, others = walk.shadow(x).axes.get(x.dim() + axis, []), range(1, x.dim() - 1)
        walk.freeze(x, reason, axes=[a for a in others if a != x.dim() + axis])
        for labels in along:
            known = numbering.sides.setdefault(side, labels)
            numbering.cuts[side] = (len(labels), (), ())
            _tie_calls(walk, known, labels, reason)
            walk.multiplied.append((labels, labels, reason, False))
        walk.note(output, {x.dim() + axis: along} if along else {})

    module = numbering.modules[path]
    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave, with_kwargs=True, prepend=True),
    ]


def _width_hook(path: str, module: nn.Module, numbering: Numbering, walk: Walk) -> Any:
    """torch's transformer compares the width of what it is given with its `d_model`, which shrinks with it."""

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        side = (path, "param d_model")
        for x in (
            kwargs.get("src", args[0] if args else None),
            kwargs.get("tgt", args[1] if len(args) > 1 else None),
        ):
            for labels in walk.shadow(x).axes.get(x.dim() - 1, []) if isinstance(x, Tensor) else ():
                known = numbering.sides.setdefault(side, labels)
                numbering.cuts[side] = (len(labels), (), ("d_model",))
                walk.components.join(known, labels, f"{path}.d_model counts these channels and fixed ones")

    return module.register_forward_pre_hook(note, with_kwargs=True)


def _bilinear_hooks(path: str, numbering: Numbering, walk: Walk) -> list[Any]:
    """Follow channels through x1 W x2, whose weight has a column for each channel of either input."""
    bilinear, sides = numbering.modules[path], numbering.sides_of(path)

    def enter(_module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        walk.paused += 1

    def leave(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        walk.paused -= 1
        given = dict(zip(("input1", "input2"), args, strict=False)) | kwargs
        for x, side in ((given["input1"], "in first"), (given["input2"], "in second")):
            own = walk.shadow(x).axes
            for labels in own.get(x.dim() - 1, []):
                walk.components.join(labels, sides[side], f"{path} reads these channels beside others that are fixed")
            if x.dim() - 1 not in own:
                walk.components.freeze(sides[side], f"{path} reads a fixed number of channels")
            walk.freeze(x, f"{path} reads two tensors with these channels", axes=range(x.dim() - 1))
        walk.note(output, {output.dim() - 1: [sides["out"]]})

    return [
        bilinear.register_forward_pre_hook(enter, with_kwargs=True),
        bilinear.register_forward_hook(leave, with_kwargs=True, prepend=True),
    ]


def _weight_hooks(path: str, numbering: Numbering, walk: Walk) -> list[Any]:
    """Follow channels through a convolution that standardizes its weight; a grouped one's input is tied already."""
    conv, sides = numbering.modules[path], numbering.sides_of(path)
    assert isinstance(conv, _ConvNd)

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        walk.paused += 1

    def leave(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        walk.paused -= 1
        x = lone_input(args, kwargs)
        if x is None:
            for labels in sides.values():
                walk.components.freeze(labels, f"{path} takes more than one tensor")
            return
        axis = x.dim() - len(conv.kernel_size) - 1
        walk.freeze(x, f"{path} mixes along these channels (convolution)", axes=range(axis + 1, x.dim()))
        if numbering.standardized[path].least == 2 and len(sides["in"]) % 2 == 0:  # channels go in pairs
            walk.components.join(sides["in"][::2], sides["in"][1::2], "")
        own = walk.shadow(x).axes.get(axis, []) if conv.groups == 1 else []
        for labels in own:
            walk.components.join(labels, sides["in"], f"{path} reads these channels beside others that are fixed")
        if conv.groups == 1 and not own:
            walk.components.freeze(sides["in"], f"{path} reads a fixed number of channels")
        walk.note(output, {**{a: v for a, v in walk.shadow(x).axes.items() if a < axis}, axis: [sides["out"]]})

    return [
        conv.register_forward_pre_hook(enter, with_kwargs=True),
        conv.register_forward_hook(leave, with_kwargs=True, prepend=True),
    ]
