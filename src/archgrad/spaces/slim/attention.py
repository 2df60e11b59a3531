"""Attention heads as removable units: `qkv` or `query, key, value` projections, heads, an output projection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import fx, nn

from archgrad.choices.channels import Coupling
from archgrad.spaces.slim.acceptance import Budget
from archgrad.spaces.slim.channel_graph import ChannelGraph
from archgrad.spaces.slim.layer_sides import counting_heads, cuts, is_depthwise, reads_each, width_of
from archgrad.spaces.slim.trial import Removal, Trial


def attention_heads(
    trial: Trial, graph: ChannelGraph, budget: Budget, is_kept: Callable[[str], bool]
) -> list[Removal]:
    """Removals of attention heads; they take the place of what the graph made of the same projections.

    An attention module has an integer attribute that counts heads, linear layers or convolutions that produce
    `3 * heads * head_dim` features (or three that produce `heads * head_dim`), and one that reads
    `heads * head_dim`. What else counts features (`all_head_size`) or heads (a position bias table, a module inside)
    shrinks along.
    Modules that are built alike are tried together, in each way in which their heads may be laid out.
    """
    ways = {p: w for p, w in _candidates(trial.network) if not is_kept(p)}
    classes: dict[object, list[str]] = {}
    for path in ways:
        module = trial.network.get_submodule(path)
        kind = getattr(module, "code", None) if isinstance(module, fx.GraphModule) else type(module)
        inside = tuple(n for n, _ in module.named_modules())
        classes.setdefault((kind, inside, len(ways[path])), []).append(path)
    accepted: list[Removal] = []
    for paths in classes.values():
        reason = ""
        for rank in range(len(ways[paths[0]])):
            if not budget.spend(f"trying the attention heads of {paths[0]}"):
                break
            removals = [Removal(f"{path}.heads", ways[path][rank]) for path in paths]
            failure = trial.failure(removals, checks=trial.checks("random")[:1])
            if failure is None:
                accepted += removals
                reason = ""
                break
            reason = failure.reason
        for path in paths:
            sides = {(c.module, c.side) for c in ways[path][0] if c.side != "heads"}
            groups = [n for n, cs in graph.groups.items() if any((c.module, c.side) in sides for c in cs)]
            for name in [] if reason else groups:
                del graph.groups[name]
            for layer in (n for n, side in sides if side == "out"):
                if not reason:
                    graph.frozen.pop(layer, None)
                elif not groups:
                    graph.frozen[layer] = f"its heads cannot be removed: {reason}"
    return accepted


def _candidates(network: nn.Module) -> Iterator[tuple[str, list[list[Coupling]]]]:
    """For each attention module its path and the ways in which its heads may be laid out, to be tried in order."""
    for path, module in network.named_modules():
        count = next((getattr(module, a) for a in counting_heads(module)), 0)
        linears = dict(_linears(module)) if count > 1 else {}
        if count < 2 or len(linears) < 2:
            continue
        ways = list(_ways(path, module, count, linears))
        if ways:
            yield path, ways


def _linears(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers of a module, those in its lists and sequences included."""
    for name, child in module.named_children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from ((f"{name}.{n}", m) for n, m in _linears(child))
        elif reads_each(child):
            yield name, child


def _ways(path: str, module: nn.Module, count: int, linears: dict[str, nn.Module]) -> Iterator[list[Coupling]]:
    for last_name, last in list(linears.items())[::-1]:
        inner = width_of(last, "in")
        if inner % count:
            continue
        produce = {n: width_of(m, "out") for n, m in linears.items() if n != last_name}
        fused = [n for n, width in produce.items() if width == 3 * inner]
        apart = [n for n, width in produce.items() if width == inner]
        per_head = torch.arange(count).repeat_interleave(inner // count)
        if len(fused) == 1:
            layouts = [
                (fused, per_head.repeat(3)),
                (fused, torch.arange(count).repeat_interleave(3 * inner // count)),
            ]
        elif len(apart) == 3:
            layouts = [(apart, per_head)]
        else:
            continue
        dot = f"{path}." if path else ""
        for names, places in layouts:
            filters = [n for n, m in module.named_modules() if is_depthwise(m) and width_of(m, "out") == len(places)]
            for counts, between in product(_attributes(module, count, inner), [filters, []] if filters else [[]]):
                members = [
                    Coupling(dot + n, "out", places, *cuts(module.get_submodule(n), "out"))
                    for n in (*names, *between)
                ]
                members.append(Coupling(dot + last_name, "in", per_head, *cuts(last, "in")))
                members.append(Coupling(path, "heads", torch.arange(count), _tables(module, count), counts))
                members += [
                    Coupling(dot + n, "param heads", torch.arange(count), counts=own)
                    for n, m in module.named_modules() if n and (own := _of_heads(m, count))
                ]  # fmt: skip
                members += [
                    Coupling(dot + n, "out", torch.arange(count), (("weight", 1),), ("embedding_dim",))
                    for n, m in module.named_children() if isinstance(m, nn.Embedding) and m.embedding_dim == count
                ]  # fmt: skip
                yield members
        return


def _attributes(module: nn.Module, count: int, inner: int) -> Iterator[tuple[str, ...]]:
    """Integer attributes that may count heads or their features: the narrow reading first, then the wide one."""
    own = {n: v for n, v in vars(module).items() if isinstance(v, int) and not isinstance(v, bool)}
    of_heads = _of_heads(module, count)
    of_features = tuple(n for n, v in own.items() if v in (inner, 3 * inner))
    yield of_heads
    if of_features:
        yield of_heads + of_features
        for name in of_features:
            yield (*of_heads, name)


def _of_heads(module: nn.Module, count: int) -> tuple[str, ...]:
    """Attributes of a module that count heads."""
    return tuple(n for n in counting_heads(module) if type(getattr(module, n)) is int and getattr(module, n) == count)


def _tables(module: nn.Module, count: int) -> tuple[tuple[str, int], ...]:
    """Bare parameters with one dimension that counts heads."""
    found = []
    for name, parameter in module.named_parameters(recurse=False):
        dims = [d for d, size in enumerate(parameter.shape) if size == count]
        if len(dims) == 1:
            found.append((name, dims[0]))
    return tuple(found)
