"""Which channels of a network must live and die together.

Each channel of each side (input or output) of each layer has a label, and so has each place along each axis of every
other parameter. A run on the example says which labels belong together (`dependency`). The connected components are
the smallest removable units; units that reach the same sides form one gate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from archgrad.choices.channels import Coupling, kind_of
from archgrad.spaces.slim.dependency import Components, Labels, Shadow, Unflattening, Walk
from archgrad.spaces.slim.layer_sides import LAYERS, NORMS, cuts, has_sides, sides_of, width_of
from archgrad.spaces.slim.operators import rule_of
from archgrad.spaces.slim.recurrent import Packing, count_states, is_recurrent, recurrent_hooks, tie_units
from archgrad.spaces.slim.seeded_run import computed_weights, plain_kernels, run, tensors_of

Side = tuple[str, str]  # (module path, side)
# Modules that hand their parameters to kernels of their own, and remember their sizes.
CLOSED = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)
BARE = "with a parameter that is not the weight of a layer"
UNREAD = "no layer whose inputs can be gated reads its channels"


@dataclass
class ChannelGraph:
    """What `trace` found.

    Attributes:
        groups: gate name -> couplings, for what may be removed as far as the graph can tell.
        frozen: layer -> reason, for what may not.
        positions: layer, or weight of an attention module -> at how many places its weights were used, so that
            their number times this are its multiply-adds.
        whole: multiply-adds of the network as it is.
    """

    groups: dict[str, list[Coupling]] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)
    positions: Counter[str] = field(default_factory=Counter)
    whole: float = 0.0

    def macs(self, network: nn.Module, *, without: Collection[str] = ()) -> float:
        """Multiply-adds on the example of the layers of a network with these paths, whatever their widths."""
        return float(sum(
            (self.positions[n] or self.positions[f"{n}.{name}"]) * weight.numel()
            for n, layer in network.named_modules() if n not in without
            for name, weight in layer.named_parameters(recurse=False) if weight.dim() > 1
        ))  # fmt: skip


class _Numbering:
    """Labels for every side of every layer, and for every axis of every other tensor."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.modules = dict(network.named_modules())
        self.sides: dict[Side, Labels] = {}
        self.tensors: dict[Tensor, Shadow] = {}
        self.size = 0
        for path, module in self.modules.items():
            if has_sides(module):
                for side in sides_of(module):
                    self._number(path, side, width_of(module, side))
                    for name, dim in cuts(module, side)[0]:
                        self._label(module, name, dim, self.sides[path, side])
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if tensor not in self.tensors:
                    dot = f"{path}.{name}" if path else name
                    for dim, width in enumerate(tensor.shape):
                        if width > 1:
                            self._number(dot, f"axis {dim}", width)
                            self._label(module, name, dim, self.sides[dot, f"axis {dim}"])

    def _number(self, path: str, side: str, width: int) -> None:
        self.sides[path, side] = np.arange(self.size, self.size + width)
        self.size += width

    def _label(self, module: nn.Module, name: str, dim: int, labels: Labels) -> None:
        tensor: Tensor | None = module._parameters.get(name)
        tensor = module._buffers.get(name) if tensor is None else tensor
        if tensor is not None and tensor.shape[dim] % len(labels) == 0:
            labels = np.tile(labels, tensor.shape[dim] // len(labels))
            self.tensors.setdefault(tensor, Shadow(weight=isinstance(tensor, nn.Parameter))).axes[dim] = [labels]

    def sides_of(self, path: str) -> dict[str, Labels]:
        """By side the labels of one layer."""
        return {side: labels for (owner, side), labels in self.sides.items() if owner == path}

    def owner(self, side: Side) -> str:
        """The path of the module that a side belongs to."""
        return side[0].rpartition(".")[0] if side[1].startswith("axis") else side[0]


def trace(
    network: nn.Module, example: tuple[Any, ...], *, keep: Callable[[str], bool] = lambda path: False
) -> ChannelGraph:
    """The removable channel groups of a network, not yet tried out.

    Args:
        network: in eval mode; it is left as it is.
        example: its inputs.
        keep: whether the outputs of the layer at a path have to stay.
    """
    numbering = _Numbering(network)
    components = Components(numbering.size)
    is_read = np.zeros(numbering.size, dtype=bool)
    for (path, side), labels in numbering.sides.items():
        if side == "in" and isinstance(module := numbering.modules[path], LAYERS):
            is_read[labels] = getattr(module, "groups", 1) == 1
        if kind_of(side) == "out" and keep(path):
            components.freeze(labels, "kept at your wish (keep=)")
    for untouchable, reason in _untouchable(numbering):
        components.freeze(numbering.sides[untouchable], reason)
    for path, module in numbering.modules.items():
        _tie_blocks(numbering, components, path, module)
        if is_recurrent(module):
            tie_units(components, numbering.sides_of(path))
    stack = [""]
    visited: set[str] = set()
    positions: Counter[str] = Counter()

    def here() -> str:
        path = stack[-1]
        return f"{path or 'forward'} ({type(numbering.modules[path]).__name__})"

    def computed() -> str:
        return computed_weights(stack[-1], numbering.modules[stack[-1]])

    walk = Walk(components, numbering.tensors, is_read=is_read, rule=rule_of, here=here, computed=computed)
    blank: set[str] = set()
    handles = _hooks(numbering, walk, stack, visited, positions, blank)
    try:
        with plain_kernels(), walk, Unflattening(walk), Packing(walk):
            outputs = run(network, example)
    finally:
        for handle in handles:
            handle.remove()
    for x in tensors_of(outputs):
        walk.freeze(x, "its channels reach the network's output")
    graph = _collect(numbering, components)
    count_states(graph.groups, numbering.modules, blank)
    graph.positions = positions
    graph.whole = graph.macs(network)
    for path in graph.frozen.keys() - visited:
        used = any(True for _ in numbering.modules[path].children())
        if not used and graph.frozen[path] == UNREAD:
            graph.frozen[path] = f"it does not run on the example; {_kept_tensors(numbering)}"
    return graph


def _kept_tensors(numbering: _Numbering) -> str:
    """What may keep a layer from running: activations that the network remembers."""
    kept = [
        f"{path}.{name}".strip(".") for path, module in numbering.modules.items()
        for name, value in vars(module).items() if isinstance(value, Tensor)
    ]  # fmt: skip
    if kept:
        return f"the network keeps tensors of earlier runs ({', '.join(kept[:3])}): set them to None before slimming"
    return "give an example that reaches it"


def _hooks(
    numbering: _Numbering, walk: Walk, stack: list[str], visited: set[str], positions: Counter[str], blank: set[str]
) -> list[Any]:
    """Keep track of where the run is and was, and tie what layers read to their attributes."""
    handles = []
    for path, module in numbering.modules.items():

        def enter(module: nn.Module, inputs: tuple[Any, ...], path: str = path) -> None:
            stack.append(path)
            visited.add(path)
            x = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            grouped = getattr(module, "groups", 1) > 1
            if x is None or not (grouped if isinstance(module, _ConvNd) else isinstance(module, NORMS)):
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
            if isinstance(module, LAYERS) and isinstance(output, Tensor):
                x = inputs[0] if isinstance(module, _ConvTransposeNd) else output
                positions[path] += x.numel() // module.weight.shape[0]

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


def _tie_blocks(numbering: _Numbering, components: Components, path: str, module: nn.Module) -> None:
    """Grouped convolutions lose whole blocks of channels or none."""
    if not isinstance(module, _ConvNd) or module.groups == 1 or (path, "in") not in numbering.sides:
        return
    outs = numbering.sides[path, "out"].reshape(module.groups, -1)
    ins = numbering.sides[path, "in"].reshape(module.groups, -1)
    for blocks in (outs, ins):
        components.join(blocks, np.broadcast_to(outs[:, :1], blocks.shape), "")


def _untouchable(numbering: _Numbering) -> Iterator[tuple[Side, str]]:
    """Sides that may not be cut, whatever the run says: shared, computed and closed weights."""
    by_module: dict[str, list[Side]] = {}
    for side in numbering.sides:
        by_module.setdefault(numbering.owner(side), []).append(side)
    owners: dict[nn.Parameter, str] = {}
    for path, module in numbering.modules.items():
        reason = computed_weights(path, module)
        if path.endswith("_orig_mod"):  # a wrapper that answers for its layer hides the gates on its weights
            reason = f"{path.removesuffix('._orig_mod')} is a compiled layer; compile the network after slimming"
        is_closed = isinstance(module, CLOSED) and not is_recurrent(module)
        if is_closed:
            what = (
                "keeps the width of what it reads and puts out" if isinstance(module, nn.MultiheadAttention) else ""
            )
            what = what or "is not a layer whose channels can be removed"
            reason = reason or f"{path} ({type(module).__name__}) {what}"
        for parameter in module.parameters(recurse=False):
            other = owners.setdefault(parameter, path)
            if other != path:
                for side in by_module.get(other, []):
                    yield side, f"the weights of {other} are shared with {path}"
                reason = reason or f"the weights of {path} are shared with {other}"
        inner = [p for p in by_module if path and p.startswith(f"{path}.")]
        closed = is_closed or parametrize.is_parametrized(module)
        for owner in [path, *(inner if closed else [])] if reason else []:
            for side in by_module.get(owner, []):
                yield side, reason


def _collect(numbering: _Numbering, components: Components) -> ChannelGraph:
    """Units that reach the same sides become one gate; what is frozen is listed with its reason."""
    roots, reasons = components.roots(), components.reasons()
    sides = list(numbering.sides)
    reached: dict[int, list[int]] = {}
    for number, side in enumerate(sides):
        for root in np.unique(roots[numbering.sides[side]]).tolist():
            reached.setdefault(root, []).append(number)
    result = ChannelGraph()
    gates: dict[tuple[int, ...], list[int]] = {}
    for root, numbers in reached.items():
        reason = reasons.get(root) or _unreadable(numbering, [sides[n] for n in numbers])
        if not reason:
            gates.setdefault(tuple(numbers), []).append(root)
        for path in {numbering.owner(sides[n]) for n in numbers if kind_of(sides[n][1]) != "in"} if reason else ():
            # Of a bare matrix both axes are numbered, and its own reason counts more than its neighbours'.
            if BARE in reason:
                result.frozen[path] = reason
            result.frozen.setdefault(path, reason)
    order = {name: i for i, name in enumerate(numbering.modules)}
    for sides_of_gate, units in gates.items():
        members = [sides[n] for n in sides_of_gate]
        outs = [side for side in members if kind_of(side[1]) == "out"]
        if not outs:
            continue
        first_side = min(outs, key=lambda side: order[side[0]])
        first = first_side[0]
        if len(units) < 2:
            result.frozen.setdefault(first, "its channels only go all together")
            continue
        name, again = first, 2
        while name in result.groups:
            name, again = f"{first}#{again}", again + 1
        result.groups[name] = list(_couplings(numbering, roots, sorted(members), units, first_side))
    for couplings in result.groups.values():
        for coupling in couplings:
            if coupling.kind == "out":
                result.frozen.pop(coupling.module, None)
    return result


def _unreadable(numbering: _Numbering, sides: Sequence[Side]) -> str:
    """Why nothing that could carry a gate reads these channels, if so."""
    for path, side in sides:
        if kind_of(side) == "in" and getattr(numbering.modules[path], "groups", 1) == 1:
            return ""
    return UNREAD


def _couplings(
    numbering: _Numbering, roots: Labels, members: Sequence[Side], units: Sequence[int], first: Side
) -> Iterator[Coupling]:
    # Entries are numbered in the order in which their channels come in the layer that names the gate.
    named = roots[numbering.sides[first]]
    _, position = np.unique(named, return_index=True)
    rank = dict(zip(named[np.sort(position)].tolist(), range(len(position)), strict=True))
    entry = np.full(int(roots.max()) + 1, -1)
    entry[sorted(units, key=rank.__getitem__)] = np.arange(len(units))
    for path, side in members:
        places = torch.from_numpy(entry[roots[numbering.sides[path, side]]])
        if side.startswith("axis"):
            owner, _, attribute = path.rpartition(".")
            dim = int(side.split()[1])
            yield Coupling(owner, f"param {attribute} {dim}", places, ((attribute, dim),))
        else:
            tensors, counts = cuts(numbering.modules[path], side)
            yield Coupling(path, side, places, tensors, counts)


def input_features(network: nn.Module, example: tuple[Any, ...]) -> dict[str, list[Coupling]]:
    """Gate name -> coupling, for each layer inside the network that reads what no parameter has had a part in.

    Args:
        network: a copy in eval mode; its parameters are made to require gradients.
        example: its inputs.
    """
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    layers = {
        name: module for name, module in network.named_modules()
        if name and isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1
        and not computed_weights(name, module) and width_of(module, "in") > 1
    }  # fmt: skip
    raw: dict[str, bool] = {}
    handles = []
    for name, layer in layers.items():

        def note(_m: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            raw[name] = raw.get(name, True) and not inputs[0].requires_grad

        handles.append(layer.register_forward_pre_hook(note))
    with torch.enable_grad():
        run(network, example, grad=True)
    for handle in handles:
        handle.remove()
    found: dict[str, list[Coupling]] = {}
    for name in (name for name, alone in raw.items() if alone):
        tensors, counts = cuts(layers[name], "in")
        places = torch.arange(width_of(layers[name], "in"))
        found[f"{name}.inputs"] = [Coupling(name, "in", places, tensors, counts, selects=True)]
    return found
