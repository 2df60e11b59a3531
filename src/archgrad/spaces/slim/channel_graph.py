"""Which channels of a network must live and die together.

Each channel of each side (input or output) of each layer has a label, and so has each place along each axis of every
other parameter. A run on the example says which labels belong together (`dependency`). The connected components are
the smallest removable units; units that reach the same sides form one gate.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from archgrad.choices.channels import Coupling, kind_of
from archgrad.choices.fewer_heads import AttentionCall
from archgrad.spaces.slim.dependency import Components, Labels, Walk
from archgrad.spaces.slim.flat_kernels import Factors, factors_of
from archgrad.spaces.slim.kept_sizes import Sizes, know_sources, unflattening
from archgrad.spaces.slim.layer_reasons import KEPT, UNREAD, say_what_does_not_run
from archgrad.spaces.slim.layer_sides import (
    NORMS,
    TABLES,
    is_layer,
    reads_each,
    shapes_of,
)
from archgrad.spaces.slim.makers import Makers, makers_of
from archgrad.spaces.slim.number_caches import without_caches
from archgrad.spaces.slim.numbering import ALONG, NORM_SIDE, ROWS, Numbering, Side, untouchable
from archgrad.spaces.slim.operators import rule_of
from archgrad.spaces.slim.own_widths import GivenAxes, Wides, note_widths, wides_of
from archgrad.spaces.slim.recurrent import count_states, is_recurrent, packing, recurrent_hooks, tie_units
from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS, computed_weights, named_tensors_of, plain_kernels, run
from archgrad.spaces.slim.torch_attention import Calls
from archgrad.spaces.slim.whole_modules import (
    Parts,
    note_numbers,
    note_products,
    note_reads,
    note_rows,
    whole_hooks,
)

BARE = "with a parameter that is not the weight of a layer"
STANDARDIZED = (
    "computes its weight from its parameters in each call; a plain layer with the computed weight in its place could "
    "be cut"
)


@dataclass
class ChannelGraph:
    """What `trace` found.

    Attributes:
        groups: gate name -> couplings, for what may be removed as far as the graph can tell.
        frozen: layer -> reason, for what may not.
        calls: attention module of torch -> how it is called.
        positions: layer, or weight of an attention module -> at how many places its weights were used, so that
            their number times this are its multiply-adds.
        whole: multiply-adds of the network as it is.
        wides: by module that reshapes what has channels, along which axes of its arguments these lie.
        divides: whether channels are divided, by heads, which could go by their places within heads too.
        parts: how the products that modules compute themselves are divided.
        grouped: GroupNorms by which all channels in front of them go together or not at all.
        factors: sides along which lie the filters of a kernel, not yet followed as such.
        read: axes of parameters that are the weight of no layer, along which products sum.
    """

    groups: dict[str, list[Coupling]] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)
    calls: Calls = field(default_factory=dict)
    positions: Counter[str] = field(default_factory=Counter)
    whole: float = 0.0
    wides: Wides = field(default_factory=dict)
    divides: bool = False
    parts: Parts = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)
    factors: Factors = field(default_factory=dict)
    read: frozenset[Side] = frozenset()

    def macs(self, network: nn.Module, *, without: Collection[str] = ()) -> float:
        """Multiply-adds with weights on the example, of a network with these paths, whatever its widths."""
        return float(sum(
            (self.positions[n] or self.positions[f"{n}.{name}"]) * weight.numel()
            for n, layer in network.named_modules() if n not in without
            for name, weight in layer.named_parameters(recurse=False) if weight.dim() > 1
        ))  # fmt: skip


def trace(
    network: nn.Module,
    example: tuple[Any, ...],
    *,
    keep: Callable[[str], bool] = lambda path: False,
    sources: bool = True,
    outer: ChannelGraph | None = None,
    thinned: Collection[str] = (),
    factors: Factors = MappingProxyType({}),
) -> ChannelGraph:
    """The removable channel groups of a network, not yet tried out.

    Args:
        network: a copy, in eval mode; its own numbers learn where they are from.
        example: its inputs.
        keep: whether the outputs of the layer at a path have to stay.
        sources: whether numbers that modules keep are to shrink with the channels that they count.
        outer: of an earlier run, in which channels that are divided went by heads; now they go by their places within
            heads, and only those are returned.
        thinned: paths of GroupNorms whose groups lose places, where else whole groups go.
        factors: sides along which lie the filters of a kernel.
    """
    notes = know_sources(network) if sources else None
    numbering, components, is_read = _numbered(Numbering(network, thinned=thinned, factors=factors), keep)
    stack = [""]
    visited: set[str] = set()
    positions: Counter[str] = Counter()

    def here() -> str:
        path = stack[-1]
        return f"{path or 'forward'} ({type(numbering.modules[path]).__name__})"

    def computed() -> str:
        module = numbering.modules[stack[-1]]
        return computed_weights(stack[-1], module) or (f"{here()} {STANDARDIZED}" if is_layer(module) else "")

    walk = Walk(components, numbering.tensors, is_read=is_read, rule=rule_of, path=lambda: stack[-1],
                here=here, computed=computed, within=outer is not None)  # fmt: skip
    for (path, side), labels in numbering.sides.items():
        module = numbering.modules.get(path, network)
        walk.is_table[labels] = side == "out" and (isinstance(module, TABLES) or reads_each(module))
        walk.is_bare[labels] |= side.startswith("axis") and numbering.is_parameter(path)
    walk.graphs |= {path for path, module in numbering.modules.items() if isinstance(module, fx.GraphModule)}
    blank: set[str] = set()
    handles = _hooks(numbering, walk, stack, visited, positions, blank)
    handles += whole_hooks(numbering, walk)
    given_axes: GivenAxes = {}
    handles += note_widths(numbering, walk, given_axes)
    sizes = Sizes(walk, notes)
    try:
        with plain_kernels(), without_caches(network), walk, unflattening(walk), packing(walk), sizes.noting():
            outputs = [run(network, example)]
            if any(id(p) not in walk.used for p in network.parameters()):
                outputs += _run_in_training(network, example, numbering, walk, positions)
    finally:
        for handle in handles:
            handle.remove()
    for name, x in named_tensors_of(outputs):
        walk.freeze(x, f"its channels reach the network's output {name}".rstrip())
    makers = makers_of(numbering, walk)
    parts = note_products(numbering, walk, outer.parts if outer else {})
    sizes.tie(numbering, example)
    note_numbers(numbering, walk)
    read = note_reads(numbering, walk, positions, keep)
    graph = _collect(numbering, components, makers, within=walk.inner if outer else None, read=read)
    count_states(graph.groups, numbering.modules, blank)
    graph.positions, graph.calls, graph.divides, graph.parts = positions, numbering.calls, walk.divides, parts
    graph.whole = graph.macs(network)
    graph.factors = factors_of(walk, numbering.sides)
    graph.wides = wides_of(numbering, walk, given_axes)
    say_what_does_not_run(graph.frozen, numbering, visited)
    return graph


def _run_in_training(
    network: nn.Module, example: tuple[Any, ...], numbering: Numbering, walk: Walk, positions: Counter[str]
) -> list[Any]:
    """Follow what runs in training alone too, such as heads for auxiliary losses, whose work does not count."""
    counts, calls = positions.copy(), {path: {*ways} for path, ways in numbering.calls.items()}
    products, outputs = {path: [*made] for path, made in walk.products.items()}, list[Any]()
    read = len(walk.read)
    with contextlib.suppress(*NETWORK_ERRORS):
        outputs = [run(network.train(), example)]
    walk.products, numbering.calls = products, {**numbering.calls, **calls}
    walk.read[read:] = [(labels, 0) for labels, _ in walk.read[read:]]
    positions.clear()
    positions.update(counts)
    return outputs


def _numbered(numbering: Numbering, keep: Callable[[str], bool]) -> tuple[Numbering, Components, NDArray[np.bool_]]:
    """Labels, with what is tied and frozen whatever a run says, and which are columns that a gate may take."""
    components = Components(numbering.size)
    is_read = np.zeros(numbering.size, dtype=bool)
    for (path, side), labels in numbering.sides.items():
        is_read[labels] = side == "in" and reads_each(numbering.modules[path])
        if kind_of(side) == "out" and keep(path):
            components.freeze(labels, KEPT)
    for first, second in numbering.ties:
        components.join(first, second, "")
        is_read[first] |= is_read[second]
    for banned, reason in untouchable(numbering):
        components.freeze(numbering.sides[banned], reason)
    for path, module in numbering.modules.items():
        _tie_blocks(numbering, components, path, module)
        if is_recurrent(module):
            tie_units(components, numbering.sides_of(path))
    return numbering, components, is_read


def _hooks(
    numbering: Numbering, walk: Walk, stack: list[str], visited: set[str], positions: Counter[str], blank: set[str]
) -> list[Any]:
    """Keep track of where the run is and was, and tie what layers read to their attributes."""
    handles = []
    for path, module in numbering.modules.items():

        def enter(module: nn.Module, inputs: tuple[Any, ...], path: str = path) -> None:
            stack.append(path)
            visited.add(path)
            x = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            grouped = getattr(module, "groups", 1) > 1
            tied = grouped if isinstance(module, _ConvNd) else isinstance(module, NORMS)
            if x is None or not tied or path in numbering.norms:
                return
            # A depthwise convolution has one side alone, and so has a norm.
            side = (path, "in") if (path, "in") in numbering.sides else (path, "out")
            _tie_input(walk, x, numbering.sides[side], module)

        def leave(
            module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: object, path: str = path
        ) -> None:
            stack.pop()
            if type(module).forward is nn.MultiheadAttention.forward and isinstance(output, tuple):
                given = dict(zip(("query", "key", "value"), inputs, strict=False)) | named
                _count_attention(positions, path, given)
            if isinstance(module, nn.Bilinear) and isinstance(output, Tensor):
                positions[path] += output.numel() // module.out_features
            elif is_layer(module) and isinstance(output, Tensor):
                x = inputs[0] if isinstance(module, _ConvTransposeNd) else output
                made = x.shape[-1] if not isinstance(module, _ConvNd) else module.weight.shape[0]
                positions[path] += x.numel() // made
                note_rows(numbering, walk, path, inputs[0] if inputs else None)

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
        if is_recurrent(module):
            handles += recurrent_hooks(path, module, numbering.sides_of(path), walk, positions, blank)
    return handles


def _count_attention(positions: Counter[str], path: str, given: dict[str, Any]) -> None:
    """Places at which torch's attention uses the weights that its kernels read past any layer."""
    query, key, value = (given[name].numel() // given[name].shape[-1] for name in ("query", "key", "value"))
    positions[f"{path}.out_proj"] += query
    positions[f"{path}.in_proj_weight"] += (query + key + value) / 3  # a third for each
    for name, places in (("q", query), ("k", key), ("v", value)):
        positions[f"{path}.{name}_proj_weight"] += places


def _tie_input(walk: Walk, x: Tensor, labels: Labels, module: nn.Module) -> None:
    axis = x.dim() - len(module.kernel_size) - 1 if isinstance(module, _ConvNd) else 1
    arrays = walk.shadow(x).axes.get(axis, []) if x.dim() > axis else []
    for own in arrays:
        if len(own) == len(labels):
            walk.components.join(own, labels, f"{walk.here()} reads these channels beside others that are fixed")
    if not arrays:
        walk.components.freeze(labels, f"{walk.here()} reads a fixed number of channels")


def _tie_blocks(numbering: Numbering, components: Components, path: str, module: nn.Module) -> None:
    """Grouped convolutions lose whole blocks of channels or none."""
    if not isinstance(module, _ConvNd) or module.groups == 1 or (path, "in") not in numbering.sides:
        return
    outs = numbering.sides[path, "out"].reshape(module.groups, -1)
    ins = numbering.sides[path, "in"].reshape(module.groups, -1)
    for blocks in (outs, ins):
        components.join(blocks, np.broadcast_to(outs[:, :1], blocks.shape), "")


def _collect(
    numbering: Numbering, components: Components, makers: Makers, *, within: Sequence[Labels] | None,
    read: frozenset[Side],
) -> ChannelGraph:  # fmt: skip
    """Units that reach the same sides become one gate; what is frozen is listed with its reason.

    Args:
        numbering: the sides.
        components: what is tied and frozen.
        makers: sides whose weights carry a gate, where a product of activations reads their channels.
        within: channels of which one at least has to be in a unit; default: any unit.
        read: axes of bare parameters that say nothing of what these make.
    """
    roots, reasons = components.roots(), components.reasons()
    inner = None if within is None else {int(r) for labels in within for r in np.unique(roots[labels[labels >= 0]])}
    sides = list(numbering.sides)
    reached: dict[int, list[int]] = {}
    for number, side in enumerate(sides):
        labels = numbering.sides[side]
        for root in np.unique(roots[labels[labels >= 0]]).tolist():
            reached.setdefault(root, []).append(number)
    result, later = ChannelGraph(read=read), dict[str, str]()
    for labels in (labels for labels, rescaled in makers.values() if rescaled):
        own = np.unique(roots[labels]).tolist()
        if len({tuple(reached[root]) for root in own}) > 1:  # the number that is left is that of several gates
            reasons |= dict.fromkeys(own, "the scale of attention depends on how many of these and others there are")
    gates: dict[tuple[int, ...], list[int]] = {}
    for root, numbers in reached.items():
        if inner is not None and root not in inner:
            continue
        reason = reasons.get(root) or _unreadable(numbering, [sides[n] for n in numbers], makers)
        if not reason:
            gates.setdefault(tuple(numbers), []).append(root)
        for path, reads in (
            {(numbering.owner(sides[n]), sides[n] in read) for n in numbers
             if kind_of(sides[n][1]) not in ("in", ROWS, ALONG, "param")}
            if reason
            else ()
        ):  # fmt: skip
            # Of a bare matrix both axes are numbered, and its own reason counts more than its neighbours'.
            if BARE in reason:
                result.frozen[path] = reason
            (later if reads else result.frozen).setdefault(path, reason)
    result.frozen |= {path: reason for path, reason in later.items() if path not in result.frozen}
    order = {name: i for i, name in enumerate(numbering.modules)}
    for sides_of_gate, units in gates.items():
        members = [sides[n] for n in sides_of_gate]
        outs = [side for side in members if kind_of(side[1]) == "out"]
        outs = [side for side in outs if side[1] != NORM_SIDE] or outs
        outs = outs or [side for side in members if side[1].startswith("axis")]  # what bare parameters make
        if not outs:
            continue
        first_side = min(outs, key=lambda side: order[numbering.owner(side)])
        first = first_side[0]
        if len(units) < 2:
            result.grouped |= {path for path, _ in members if isinstance(numbering.modules.get(path), nn.GroupNorm)}
            result.frozen.setdefault(numbering.owner(first_side), "its channels only go all together")
            continue
        name, again = first, 2
        while name in result.groups:
            name, again = f"{first}#{again}", again + 1
        result.groups[name] = list(_couplings(numbering, roots, sorted(members), units, (first_side, makers)))
    for couplings in result.groups.values():
        for coupling in couplings:
            if coupling.kind == "out":
                result.frozen.pop(coupling.module, None)
    return result


def _unreadable(numbering: Numbering, sides: Sequence[Side], makers: Makers) -> str:
    """Why nothing that could carry a gate reads or makes these channels, if so."""
    for path, side in sides:
        if (path, side) in makers:
            return ""
        if kind_of(side) == "in" and getattr(numbering.modules.get(path), "groups", 1) == 1:
            return ""
    return UNREAD


def _couplings(
    numbering: Numbering, roots: Labels, members: Sequence[Side], units: Sequence[int],
    named_by: tuple[Side, Makers],
) -> Iterator[Coupling]:  # fmt: skip
    first, makers = named_by
    # Entries are numbered in the order in which their channels come in the layer that names the gate.
    named = roots[numbering.sides[first]]
    _, position = np.unique(named, return_index=True)
    rank = dict(zip(named[np.sort(position)].tolist(), range(len(position)), strict=True))
    entry = np.full(int(roots.max()) + 1, -1)
    entry[sorted(units, key=rank.__getitem__)] = np.arange(len(units))
    for path, side in members:
        labels = numbering.sides[path, side]
        places = torch.from_numpy(np.where(labels < 0, -1, entry[roots[labels]]))
        if side.startswith("axis"):
            owner, _, attribute = path.rpartition(".")
            dim = int(side.split()[1])
            shapes = shapes_of(numbering.modules[owner], len(labels))
            cut: tuple[tuple[str, int], ...] = ((attribute, dim),)
            _, rescaled = makers.get((path, side), (labels, False))
            gated = cut if (path, side) in makers else ()
            yield Coupling(owner, f"param {attribute} {dim}", places, cut, shapes, gated=gated, rescaled=rescaled)
        else:
            _, tensors, counts = numbering.cuts[path, side]
            way = next(iter(numbering.calls.get(path, ())), None)
            yield Coupling(
                path, side, places, tensors, counts, norm=numbering.norm_of(path, side),
                work=numbering.works.get((path, side), ("", 1.0)),
                attention=way if isinstance(way, AttentionCall) else None,
            )  # fmt: skip
            if (path, side) in makers:
                read, rescaled = makers[path, side]
                places = torch.where(torch.from_numpy(np.isin(labels, read)), places, -1)
                if not bool((places >= 0).any()):
                    continue
                made = numbering.modules[path]
                gated = tuple((n, d) for n, d in tensors if isinstance(getattr(made, n, None), nn.Parameter))
                yield Coupling(path, "param product", places, gated=gated, rescaled=rescaled)
