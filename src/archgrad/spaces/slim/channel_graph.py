"""Which channels of a network must live and die together, read off torch-pruning's dependency graph.

Each channel of each side (input or output) of each layer is a node (layer path, side, index). Torch-pruning says
which nodes one removal reaches; layers that mix a block of channels (grouped convolutions, GroupNorm) tie the
whole block. The connected components are the smallest removable units; units that reach the same sides form
one gate.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize
from torch_pruning.dependency.index_mapping import update_index_mapping, update_reshape_index_mapping
from torch_pruning.ops import OPTYPE, _OutputOp, module2type

from archgrad.choices.channels import Coupling

Node = tuple[str, str, int]
CUTTABLE = (_ConvNd, nn.Linear, _NormBase, nn.GroupNorm, nn.PReLU, nn.Embedding)
# What tracing or running a network of the user's may raise; nothing here is ours.
NETWORK_ERRORS = (
    RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError,
)  # fmt: skip


@dataclass
class ChannelGraph:
    """What `trace` found.

    Attributes:
        groups: gate name -> couplings, for what may be removed as far as the graph can tell.
        frozen: layer -> reason, for what may not.
    """

    groups: dict[str, list[Coupling]] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)


class _Components:
    """Union-find over nodes, with a reason where a component is not to be touched."""

    def __init__(self) -> None:
        self.parent: dict[Node, Node] = {}
        self.reason: dict[Node, str] = {}

    def find(self, node: Node) -> Node:
        parent = self.parent
        parent.setdefault(node, node)
        root = node
        while parent[root] != root:
            root = parent[root]
        while parent[node] != root:
            parent[node], node = root, parent[node]
        return root

    def join(self, a: Node, b: Node) -> None:
        a, b = self.find(a), self.find(b)
        if a != b:
            self.parent[b] = a
            if b in self.reason:
                self.reason.setdefault(a, self.reason.pop(b))

    def freeze(self, node: Node, reason: str) -> None:
        self.reason.setdefault(self.find(node), reason)


def trace(network: nn.Module, example: tuple[Tensor, ...]) -> ChannelGraph:
    """The removable channel groups of a network, not yet tried out.

    Args:
        network: left as it is; a copy is traced.
        example: its inputs.
    """
    traced = copy.deepcopy(network).eval()
    for parameter in traced.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    names = {module: name for name, module in traced.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = _graph(traced, example)
        components = _Components()
        for module, name in names.items():
            if isinstance(module, (_ConvNd, nn.Linear)) and module in graph.module2node:
                _follow(graph, module, name, names, components)
    for module, name in names.items():
        _tie_blocks(module, name, components)
    for (name, side), reason in (_tied(names) | _final(traced, example, names)).items():
        for i in range(_width(traced.get_submodule(name), side)):
            components.freeze((name, side, i), reason)
    return _collect(traced, components)


def _graph(network: nn.Module, example: tuple[Tensor, ...]) -> tp.DependencyGraph:
    graph = tp.DependencyGraph()
    try:
        graph.build_dependency(network, example, verbose=False)
    except ZeroDivisionError:
        # It divides by widths that it could not infer around some reshapes (channel shuffle). Those are taken for
        # elementwise, and the trial tells whether that holds.
        for node in graph.module2node.values():
            if node.type == OPTYPE.RESHAPE:
                try:
                    update_reshape_index_mapping(graph, node)
                except ZeroDivisionError:
                    node.type = OPTYPE.ELEMENTWISE
        update_index_mapping(graph)
    return graph


def _follow(
    graph: tp.DependencyGraph,
    module: nn.Module,
    name: str,
    names: dict[nn.Module, str],
    components: _Components,
) -> None:
    """Join every node that the removal of this layer's outputs reaches."""
    width = _width(module, "out")
    try:
        handler = graph.get_pruner_of_module(module).prune_out_channels
        group = graph.get_pruning_group(module, handler, list(range(width)))
    except NETWORK_ERRORS as error:
        for i in range(width):
            components.freeze((name, "out", i), f"its channels cannot be followed ({type(error).__name__}: {error})")
        return
    for item in group:
        target, indices, roots = item.dep.target.module, item.idxs, item.root_idxs
        side, reason = _side(graph, item.dep.handler, target, names)
        path = names.get(target) if not isinstance(target, nn.Parameter) else graph._param_to_name[target]
        if side and max(indices) >= _width_of(graph.model, str(path), side):
            reason = f"its channels cannot be followed through {path}"
        for index, root in zip(indices, roots, strict=True):
            if reason:
                components.freeze((name, "out", root), reason)
            elif side:
                components.join((name, "out", root), (str(path), side, index))


def _side(
    graph: tp.DependencyGraph, handler: object, target: nn.Module, names: dict[nn.Module, str]
) -> tuple[str, str]:
    """(side of the target that is reached, reason why it may not be); both empty for what has no channels."""
    if isinstance(target, _OutputOp):
        return "", "its channels reach the network's output"
    if isinstance(target, nn.Parameter):
        return "param", ""
    if target not in names:
        return "", ""
    if parametrize.is_parametrized(target):
        return "", f"the weights of {names[target]} are parametrized already"
    kind = module2type(target)
    if isinstance(target, (_ConvNd, nn.Linear)):
        if kind == OPTYPE.DEPTHWISE_CONV:
            return "out", ""
        return ("out" if graph.is_out_channel_pruning_fn(handler) else "in"), ""
    if isinstance(target, (_NormBase, nn.GroupNorm)):
        return "out", ""
    if isinstance(target, nn.PReLU):
        return ("out" if target.num_parameters > 1 else ""), ""
    if isinstance(target, nn.Embedding):
        return "out", ""
    if kind == OPTYPE.LN:
        return "", f"{names[target]} ({type(target).__name__}) normalizes over these channels"
    if kind == OPTYPE.ELEMENTWISE and not any(True for _ in target.parameters(recurse=False)):
        return "", ""
    return "", f"{names[target]} ({type(target).__name__}) is not a layer whose channels can be removed"


def _tie_blocks(module: nn.Module, name: str, components: _Components) -> None:
    """Grouped convolutions and GroupNorm lose whole blocks of channels or none."""
    if isinstance(module, _ConvNd) and module.groups > 1:
        ins, outs = module.in_channels // module.groups, module.out_channels // module.groups
        if (name, "out", 0) not in components.parent:
            return
        depthwise = module2type(module) == OPTYPE.DEPTHWISE_CONV
        for block in range(module.groups):
            first = (name, "out", block * outs)
            for i in range(block * outs, (block + 1) * outs):
                components.join(first, (name, "out", i))
            for i in range(block * ins, (block + 1) * ins):
                if not depthwise:
                    components.join(first, (name, "in", i))
    elif isinstance(module, nn.GroupNorm) and (name, "out", 0) in components.parent:
        block = module.num_channels // module.num_groups
        for i in range(module.num_channels):
            components.join((name, "out", i - i % block), (name, "out", i))


def _tied(names: dict[nn.Module, str]) -> dict[tuple[str, str], str]:
    """Both sides of every layer that shares a parameter with another: neither can be cut alone."""
    found: dict[tuple[str, str], str] = {}
    owners: dict[nn.Parameter, str] = {}
    layers = {name: module for module, name in names.items()}
    for name, module in layers.items():
        for parameter in module.parameters(recurse=False):
            other = owners.setdefault(parameter, name)
            for one, two in ((name, other), (other, name)) if other != name else ():
                for side in ("in", "out") if isinstance(layers[one], (_ConvNd, nn.Linear)) else ("out",):
                    found[one, side] = f"the weights of {one} are shared with {two}"
    return {key: reason for key, reason in found.items() if isinstance(layers[key[0]], CUTTABLE)}


def _final(
    network: nn.Module, example: tuple[Tensor, ...], names: dict[nn.Module, str]
) -> dict[tuple[str, str], str]:
    """The output sides of layers whose outputs are the network's own."""
    produced: dict[int, list[str]] = {}

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            produced.setdefault(id(output.grad_fn), []).append(names[module])

    handles = [m.register_forward_hook(note) for m in names if isinstance(m, (_ConvNd, nn.Linear))]
    outputs = tp.utils.flatten_as_list(network(*example))
    for handle in handles:
        handle.remove()
    last = [name for t in outputs if isinstance(t, Tensor) for name in produced.get(id(t.grad_fn), [])]
    return {(name, "out"): "its outputs are the network's output" for name in last}


def _collect(network: nn.Module, components: _Components) -> ChannelGraph:
    """Units that reach the same sides become one gate; what is frozen is listed with its reason."""
    units: dict[Node, list[Node]] = {}
    for node in list(components.parent):
        units.setdefault(components.find(node), []).append(node)
    result = ChannelGraph()
    gates: dict[frozenset[tuple[str, str]], list[list[Node]]] = {}
    for root, nodes in units.items():
        reason = components.reason.get(root) or _unreadable(network, nodes)
        if reason:
            for name in {n for n, side, _ in nodes if side == "out"}:
                if isinstance(network.get_submodule(name), (_ConvNd, nn.Linear)):
                    result.frozen.setdefault(name, reason)
            continue
        gates.setdefault(frozenset((name, side) for name, side, _ in nodes), []).append(nodes)
    order = {name: i for i, (name, _) in enumerate(network.named_modules())}
    for sides, members in gates.items():
        first = min((n for n, s in sides if s == "out"), key=lambda n: order[n])
        name, again = first, 2
        while name in result.groups:
            name, again = f"{first}#{again}", again + 1
        if len(members) < 2:
            result.frozen.setdefault(first, "its channels only go all together")
            continue
        members.sort(key=min)
        result.groups[name] = list(_couplings(network, sides, members))
        result.frozen.pop(first, None)
    return result


def _unreadable(network: nn.Module, nodes: list[Node]) -> str:
    """Why nothing that could carry a gate reads these channels, if so."""
    for name, side, _ in nodes:
        if side == "in":
            module = network.get_submodule(name)
            if isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and module.groups == 1):
                return ""
    return "no layer whose inputs can be gated reads its channels"


def _couplings(
    network: nn.Module, sides: frozenset[tuple[str, str]], members: list[list[Node]]
) -> Iterator[Coupling]:
    places = {(n, s): torch.full((_width_of(network, n, s),), -1, dtype=torch.long) for n, s in sorted(sides)}
    for entry, nodes in enumerate(members):
        for name, side, index in nodes:
            places[name, side][index] = entry
    for (name, side), where in places.items():
        if side == "param":
            owner, _, attribute = name.rpartition(".")
            yield Coupling(owner, side, where, ((attribute, _last_dim(network.get_parameter(name))),))
        else:
            module = network.get_submodule(name)
            tensors, counts = _cuts(module, side)
            yield Coupling(name, side, where, tensors, counts)


def _cuts(module: nn.Module, side: str) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
    """Which dimensions of which tensors, and which integer attributes, one side of a layer stands for."""
    if isinstance(module, _ConvNd):
        transposed = isinstance(module, _ConvTransposeNd)
        if module.groups > 1:
            if side == "in":
                return ((("weight", 0),) if transposed else ()), ("in_channels",)
            depthwise = module2type(module) == OPTYPE.DEPTHWISE_CONV
            counts = ("in_channels", "out_channels", "groups") if depthwise else ("out_channels", "groups")
            own = (("bias", 0),) if transposed and not depthwise else (("weight", 0), ("bias", 0))
            return own, counts
        if side == "in":
            return (("weight", 0 if transposed else 1),), ("in_channels",)
        return (("weight", 1 if transposed else 0), ("bias", 0)), ("out_channels",)
    if isinstance(module, nn.Linear):
        return (
            ((("weight", 1),), ("in_features",))
            if side == "in"
            else ((("weight", 0), ("bias", 0)), ("out_features",))
        )
    if isinstance(module, _NormBase):
        return tuple((n, 0) for n in ("weight", "bias", "running_mean", "running_var")), ("num_features",)
    if isinstance(module, nn.GroupNorm):
        return (("weight", 0), ("bias", 0)), ("num_channels", "num_groups")
    if isinstance(module, nn.PReLU):
        return (("weight", 0),), ("num_parameters",)
    assert isinstance(module, nn.Embedding)
    return (("weight", 1),), ("embedding_dim",)


def _width_of(network: nn.Module, name: str, side: str) -> int:
    if side == "param":
        parameter = network.get_parameter(name)
        return parameter.shape[_last_dim(parameter)]
    return _width(network.get_submodule(name), side)


def _last_dim(parameter: Tensor) -> int:
    """The last dimension above 1: where torch-pruning takes the channels of a bare parameter to lie."""
    return max((d for d, size in enumerate(parameter.shape) if size > 1), default=0)


def _width(module: nn.Module, side: str) -> int:
    for attribute in ("in_channels", "in_features") if side == "in" else ():
        if hasattr(module, attribute):
            return int(getattr(module, attribute))
    for attribute in (
        "out_channels",
        "out_features",
        "num_features",
        "num_channels",
        "num_parameters",
        "embedding_dim",
    ):
        if hasattr(module, attribute):
            return int(getattr(module, attribute))
    raise AssertionError(f"{type(module).__name__} has no width")


def input_features(network: nn.Module, example: tuple[Tensor, ...]) -> dict[str, list[Coupling]]:
    """Gate name -> coupling, for each layer inside the network that reads what no parameter has had a part in."""
    watched = copy.deepcopy(network).eval()
    for parameter in watched.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    layers = {
        name: module for name, module in watched.named_modules()
        if name and isinstance(module, (_ConvNd, nn.Linear)) and getattr(module, "groups", 1) == 1
        and not parametrize.is_parametrized(module) and _width(module, "in") > 1
    }  # fmt: skip
    raw: dict[str, bool] = {}
    for name, layer in layers.items():

        def note(_m: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            raw[name] = raw.get(name, True) and not inputs[0].requires_grad

        layer.register_forward_pre_hook(note)
    watched(*example)
    found = {}
    for name in (name for name, alone in raw.items() if alone):
        tensors, counts = _cuts(layers[name], "in")
        places = torch.arange(_width(layers[name], "in"))
        found[f"{name}.inputs"] = [Coupling(name, "in", places, tensors, counts, selects=True)]
    return found
