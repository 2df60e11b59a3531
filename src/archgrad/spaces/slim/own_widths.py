"""Modules that take the width of one tensor for the width of another, written so that each has its own.

    B, N, C = x.shape
    q = self.q(x).reshape(B, N, self.num_heads, C // self.num_heads)

takes the width of the heads from the width of the stream, and so neither can change alone. Such a module is replaced
by the graph of what it computes, in which heads have the size that they have now and are counted by what is there:
`q.reshape(B, N, -1, 32)`. Nothing changes as long as nothing is removed.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from archgrad.choices.channels import kind_of
from archgrad.choices.graph_numbers import stand_in
from archgrad.copy_and_run import copied, in_mode
from archgrad.spaces.slim.dependency import Labels, Walk
from archgrad.spaces.slim.kept_sizes import KeptSize, is_of_heads
from archgrad.spaces.slim.layer_sides import is_layer
from archgrad.spaces.slim.numbering import NORM_SIDE, Numbering
from archgrad.spaces.slim.rearranging import segments
from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS, plain_kernels, run
from archgrad.spaces.slim.traced_sizes import NotTraced, TracedModule, Wide, trace_sizes

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
Wides = dict[str, Wide]  # by module along which axes of its arguments channels lie
GivenAxes = dict[str, dict[str, dict[int, Labels]]]  # the same with what lies there


def note_widths(numbering: Numbering, walk: Walk, given_axes: GivenAxes) -> list[Any]:
    """Note for each of the user's modules what lies along the axes of its arguments; the hooks to remove."""
    handles = []
    for path, module in numbering.modules.items():
        bare = () if is_layer(module) else (*module.parameters(recurse=False), *module.buffers(recurse=False))
        own = any(t.dim() > 2 for t in bare)
        inside = own or any(p.dim() > 1 for child in module.children() for p in child.parameters(recurse=False))
        if not path or not inside or type(module).__module__.startswith("torch."):
            continue

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
            given = bound(module, args, kwargs)
            if given is not None:
                given_axes[path] = {
                    name: {axis: arrays[0] for axis, arrays in walk.shadow(x).axes.items() if arrays}
                    for name, x in given.arguments.items() if isinstance(x, Tensor)
                }  # fmt: skip

        handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    return handles


def wides_of(numbering: Numbering, walk: Walk, given_axes: GivenAxes) -> Wides:
    """By module the axes of its arguments along which outputs of layers lie."""
    roots = walk.components.roots()
    made = np.zeros(len(roots), dtype=bool)
    for (path, side), labels in numbering.sides.items():
        if kind_of(side) == "out" and side != NORM_SIDE and path in numbering.modules:
            made[roots[labels]] = True

    def lies(labels: Labels) -> bool:
        return bool(made[roots[labels[labels >= 0]]].any())

    return {
        path: {name: frozenset(a for a, labels in axes.items() if a and lies(labels)) for name, axes in given.items()}
        for path, given in given_axes.items() if path in walk.divided
    }  # fmt: skip


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments | None:
    """The arguments of a call by name; None where they do not fit."""
    try:
        given = inspect.signature(module.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    given.apply_defaults()
    return given


def with_own_widths(net: nn.Module, example: tuple[Any, ...], wides: Wides) -> nn.Module | None:
    """A copy of a network in which no module takes the width of one tensor for that of another; None if none does.

    Args:
        net: any network.
        example: its inputs.
        wides: along which axes of the arguments of modules that reshape what has channels these lie.
    """
    candidates = [path for path, wide in wides.items() if any(wide.values())]
    if not candidates:
        return None
    network = in_mode(copied(net))
    calls = _calls(network, example, candidates)
    replaced = {}
    for path in candidates:
        module = network.get_submodule(path)
        if calls.get(path) and not _is_watched(module):
            made = _rewritten(module, calls[path], wides[path])
            if made is not None:
                replaced[module] = made
    for parent in [*network.modules(), *replaced.values()] if replaced else ():
        for name, child in parent._modules.items():
            if child in replaced:
                parent._modules[name] = replaced[child]
    for (_, mine), (_, given) in zip(network.named_modules(), net.named_modules(), strict=True):
        mine.training = getattr(given, "training", False)
    return network if replaced else None


def _is_watched(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or isinstance(module, fx.GraphModule)


def _calls(
    network: nn.Module, example: tuple[Any, ...], paths: Sequence[str]
) -> dict[str, list[inspect.BoundArguments]]:
    """The arguments with which modules are called on the example."""
    calls: dict[str, list[inspect.BoundArguments]] = {}
    handles = []
    for path in paths:

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
            given = bound(module, args, kwargs)
            if given is not None:
                calls.setdefault(path, []).append(given)

        handles.append(network.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True))
    try:
        with plain_kernels():
            run(network, example)
    except NETWORK_ERRORS:
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _rewritten(module: nn.Module, calls: Sequence[inspect.BoundArguments], wide: Wide) -> fx.GraphModule | None:
    """The module as a graph in which every tensor has its own width; None where it has, or cannot be written so."""
    try:
        traced, training = (trace_sizes(module, calls[0], wide, training=t) for t in (False, True))
    except NotTraced:
        return None
    if [_words(n) for n in traced.graph.nodes] != [_words(n) for n in training.graph.nodes]:
        return None  # it computes something else in training
    if not _rewrite(traced):
        return None
    traced.graph._tracer_cls = fx.Tracer
    made = fx.GraphModule(module, traced.graph, class_name=type(module).__name__)
    for own in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):  # all of them, in their order
        made.__dict__[own] = type(module.__dict__[own])(module.__dict__[own])
    stand_in(made, module)
    made.training = module.training
    return made if all(_same(module, made, call) for call in calls[:2]) else None


def _words(node: fx.Node) -> tuple[Any, ...]:
    given = fx.node.map_arg((node.args, node.kwargs), lambda n: n.name)
    return node.op, node.target, *given


def _same(module: nn.Module, made: nn.Module, given: inspect.BoundArguments) -> bool:
    """Whether both compute the same, bit for bit, on the arguments of a call, and on two examples of them."""
    twice = tree_map_only(Tensor, lambda x: torch.cat([x, x]) if x.dim() else x, given.arguments)
    results: list[list[Tensor] | None] = []
    for arguments in (given.arguments, twice):
        for network in (module, made):
            try:
                with plain_kernels(), torch.random.fork_rng(devices=[]), torch.no_grad():
                    torch.manual_seed(0)
                    results.append([x for x in tree_leaves(network(**arguments)) if isinstance(x, Tensor)])
            except NETWORK_ERRORS:
                results.append(None)
    (once, of_graph), (two, of_graph_two) = results[:2], results[2:]
    return _equal(once, of_graph) and (two is None or _equal(two, of_graph_two))


def _equal(a: list[Tensor] | None, b: list[Tensor] | None) -> bool:
    if a is None or b is None or [x.shape for x in a] != [x.shape for x in b]:
        return False
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a, b, strict=True))


def _rewrite(traced: TracedModule) -> bool:
    """Give every tensor in a graph its own width, in place; False where that is not needed or cannot be done."""
    needed = False
    for node in list(traced.graph.nodes):
        if node.target is torch.reshape or (node.op == "call_method" and node.target in ("reshape", "view")):
            found = _reshape(traced, node)
            if found is None:
                return False
            needed |= found
        elif node.target is torch.split or (node.op == "call_method" and node.target == "split"):
            needed |= _divide(traced, node)
        elif node.target in CONVOLUTIONS:
            needed |= _group(traced, node)
        elif node.target is torch._assert and _is_wide(traced, node.args[0]):
            traced.graph.erase_node(node)
    needed |= any(_is_wide(traced, n) and isinstance(traced.values[n], float) and n.users for n in traced.origins)
    if needed:
        _finish(traced)
    return needed


def _reshape(traced: TracedModule, node: fx.Node) -> bool | None:
    """Write a reshape with sizes of its own; whether that was needed, None where it cannot be done."""
    x, *sizes = node.args
    listed = len(sizes) == 1 and isinstance(sizes[0], (tuple, list))
    sizes = list(sizes[0]) if listed else sizes  # type: ignore[arg-type]
    if not all(isinstance(s, (int, fx.Node)) for s in sizes):
        return False
    made = _own_sizes(traced, node, sizes)
    if made is None:
        return None
    wide = [m for s, m in zip(sizes, made, strict=True) if _is_wide(traced, s)]
    with traced.graph.inserting_before(node):
        written = [_written(traced, x, m) for m in made]
    node.args = (x, tuple(written)) if listed else (x, *written)
    return any(not isinstance(m, (_Axis, _Attribute)) for m in wide) or (bool(wide) and _behind_layer(traced, node))


def _behind_layer(traced: TracedModule, node: fx.Node) -> bool:
    """Whether a layer of the module's own stands in front of a node."""
    seen, todo = set(), [node]
    while todo:
        node = todo.pop()
        if node.op == "call_module" and is_layer(traced.module.get_submodule(str(node.target))):
            return True
        seen.add(node)
        todo += [n for n in node.all_input_nodes if n not in seen and n not in traced.origins]
    return False


class _Axis:
    """The size of an axis of the tensor that is reshaped."""

    def __init__(self, axis: int) -> None:
        self.axis = axis


class _Attribute(str):
    """The name of a number that the module keeps."""


def _own_attribute(traced: TracedModule, size: Any) -> str:
    """The name of the module's own number that a size is; "" for any other."""
    path, name = size.source if isinstance(size, KeptSize) else ("other", "")
    return name if not path and type(vars(traced.module).get(name)) is KeptSize else ""


def _written(traced: TracedModule, x: Any, size: Any) -> Any:
    """A size in the graph."""
    if isinstance(size, _Axis):
        return traced.graph.call_method("size", (x, size.axis))
    if isinstance(size, _Attribute):
        return traced.graph.create_node("get_attr", str(size))
    return size


def _is_wide(traced: TracedModule, size: Any) -> bool:
    return isinstance(size, fx.Node) and size in traced.origins and traced.origins[size].wide


def _own_sizes(traced: TracedModule, node: fx.Node, sizes: Sequence[Any]) -> list[Any] | None:
    """The sizes of a reshape, of which none is taken from another tensor's width; None where that is not possible."""
    x, y = traced.values[node.args[0]], traced.values[node]  # type: ignore[index]
    made: list[Any] = list(sizes)
    wide = [_is_wide(traced, s) for s in sizes]
    counted = [is_of_heads(s) for s in sizes]
    merged: list[int] = []
    for before, after in segments(x.shape, y.shape):
        own = [a for a in after if wide[a] or counted[a]]
        if len(before) == len(after) == 1:
            if own or sizes[after[0]] == -1:
                made[after[0]] = _Axis(before[0])
        elif len(after) == 1 < len(before) and not own:
            merged += [a for a in after if isinstance(sizes[a], int)]
        elif own:
            heads = [a for a in after if counted[a]]
            first = heads[0] if heads else own[0]
            if any(traced.origins[sizes[a]].other for a in own if wide[a]):
                return None  # of a number of steps, too
            rest = [a for a in after if a != first and (a in own or sizes[a] == -1)]
            counted_by = _own_attribute(traced, sizes[first])
            if counted_by and len(rest) == 1:  # as many heads as that says, and what is there in each
                made[first], made[rest[0]] = _Attribute(counted_by), -1
                continue
            for a in rest:
                made[a] = int(y.shape[a])
            made[first] = -1
    free = sum(isinstance(m, int) and m == -1 for m in made)
    if free == 0 and len(merged) == 1:  # a number that stands for the product of what is merged there
        made[merged[0]] = -1
    return made if free <= 1 else None


def _divide(traced: TracedModule, node: fx.Node) -> bool:
    """Split a tensor into as many equal parts as it has, and not by their size, in place; whether that was needed."""
    x, parts = traced.values[node.all_input_nodes[0]], traced.values[node]
    given = dict(zip(("x", "size", "dim"), node.args, strict=False)) | dict(node.kwargs)
    size, dim = given.get("size", given.get("split_size")), given.get("dim", 0)
    is_size = _is_wide(traced, size) or isinstance(size, KeptSize)
    if not is_size or not isinstance(dim, int) or x.shape[dim] % parts[0].shape[dim] != 0:
        return False
    with traced.graph.inserting_before(node):
        new = traced.graph.call_function(torch.chunk, (node.args[0], len(parts), dim))
    node.replace_all_uses_with(new)
    traced.graph.erase_node(node)
    return _is_wide(traced, size)


def _group(traced: TracedModule, node: fx.Node) -> bool:
    """As many groups as filters of that depth need, and not a number, in place; whether that was needed."""
    given = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), node.args, strict=False))
    x, weight, groups = (({**given, **node.kwargs}).get(name) for name in ("input", "weight", "groups"))
    if (
        isinstance(groups, KeptSize)
        or not isinstance(groups, int)
        or groups == 1
        or not isinstance(x, fx.Node)
        or not isinstance(weight, fx.Node)
    ):
        return False
    if traced.values[x].dim() != traced.values[weight].dim():  # without a batch
        return False
    with traced.graph.inserting_before(node):
        channels, depth = (traced.graph.call_method("size", (tensor, 1)) for tensor in (x, weight))
        count = traced.graph.call_function(operator.floordiv, (channels, depth))
    node.args, node.kwargs = node.args[:6], {**node.kwargs, "groups": count}
    return True


def _finish(traced: TracedModule) -> None:
    """Numbers instead of what was computed of widths and what knows its attribute; no number that is not used."""

    def constant(node: fx.Node) -> Any:
        value = traced.values.get(node)
        return value if _is_wide(traced, node) and isinstance(value, float) else node

    for node in traced.graph.nodes:
        node.args, node.kwargs = fx.node.map_arg(node.args, constant), fx.node.map_arg(node.kwargs, constant)
        if node.target is F.scaled_dot_product_attention and node.kwargs.get("scale") is None and len(node.args) < 7:
            query = traced.values[node.args[0]] if node.args else traced.values[node.kwargs["query"]]
            node.kwargs = {**node.kwargs, "scale": 1 / math.sqrt(query.shape[-1])}  # as torch has it
    for node in list(traced.graph.nodes)[::-1]:
        if node in traced.origins and not node.users and node.op != "placeholder":
            traced.graph.erase_node(node)
    for node in traced.graph.nodes:
        node.args, node.kwargs, node.type = _plain(node.args), _plain(node.kwargs), None


def _plain(nest: Any) -> Any:
    return fx.node.map_aggregate(nest, lambda v: int(v) if isinstance(v, int) and not isinstance(v, bool) else v)
