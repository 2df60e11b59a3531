"""Numbers of a module that its `torch.fx` graph takes, of which torch makes constants when the module is loaded.

A graph that says `x.unflatten(-1, (self.num_heads, -1))` is saved as code, and traced again when it is loaded: then
it says `(4, -1)`, and heads could not be removed any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor, fx, nn

from archgrad.copy_and_run import copied

Network = TypeVar("Network", bound=nn.Module)

_TAKEN = "_numbers_of_graph"  # where a module notes them


def stand_in(module: fx.GraphModule, original: nn.Module) -> None:
    """Give a replacement the numbers, flags and words of a module that others may ask it for."""
    own = vars(original).items()
    plain: dict[str, Any] = {
        n: v for n, v in own if type(v) in (bool, int, float, str) and n != "training" and not n.startswith("_")
    }
    kept = {n: v for n, v in plain.items() if n not in ("code", "graph", "meta")}  # which a GraphModule has itself
    if hasattr(original, "_qkv_same_embed_dim"):  # torch's attention, or what stands for it already
        # torch's transformer layers ask for these; the first keeps them from kernels for the width of their inputs.
        kept["_qkv_same_embed_dim"] = False
        kept |= {"in_proj_bias": None} if getattr(module, "in_proj_bias", None) is None else {}
    vars(module)[_TAKEN] = kept[_TAKEN] = tuple(_numbers(module))
    module.meta["_user_preserved_attributes"] = kept  # by copies
    for name, value in kept.items():
        setattr(module, name, value)


def with_numbers(network: Network) -> Network:
    """The network, or a copy whose loaded graphs take the numbers of their modules again."""
    if not any(_lost(module) for module in network.modules()):
        return network
    network = copied(network)
    for module in network.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        lost, nodes = _lost(module), dict(_calls(module))
        for operation, which, argument, place, name in lost:
            _take(module, nodes.get((operation, which)), argument, place, name)
        if lost:
            module.recompile()
            stand_in(module, module)
    return network


def _lost(module: nn.Module) -> tuple[tuple[str, int, int, int, str], ...]:
    """What was noted of a graph that takes none of it any more."""
    if not isinstance(module, fx.GraphModule):
        return ()
    noted = vars(module).get(_TAKEN, ())
    names = {name for *_, name in noted}
    return () if any(node.op == "get_attr" and node.target in names for node in module.graph.nodes) else noted


def _numbers(module: fx.GraphModule) -> Iterator[tuple[str, int, int, int, str]]:
    """Where the graph takes numbers of its module: operation, which of these, argument, place in it, name."""
    for call, node in _calls(module):
        for argument, place, given in _arguments(node):
            if isinstance(given, fx.Node) and given.op == "get_attr" and _is_number(module, str(given.target)):
                yield *call, argument, place, str(given.target)


def _take(module: fx.GraphModule, node: fx.Node | None, argument: int, place: int, name: str) -> None:
    """Put a number of the module where a node has it as a constant."""
    value = getattr(module, name, None)
    given = {(a, p): v for a, p, v in _arguments(node)} if node is not None else {}
    if node is None or value is None or given.get((argument, place)) != value:
        return
    with module.graph.inserting_before(node):
        taken = module.graph.create_node("get_attr", name)
    if place < 0:
        node.update_arg(argument, taken)
    else:
        several: Any = node.args[argument]
        node.update_arg(argument, (*several[:place], taken, *several[place + 1 :]))


def _calls(module: fx.GraphModule) -> Iterator[tuple[tuple[str, int], fx.Node]]:
    """The nodes that compute, each with its name and which of that name it is: this stays when it is loaded."""
    seen: Counter[str] = Counter()
    for node in module.graph.nodes:
        if node.op.startswith("call_"):
            name = node.target if isinstance(node.target, str) else node.target.__name__
            yield (name, seen[name]), node
            seen[name] += 1


def _arguments(node: fx.Node) -> Iterator[tuple[int, int, Any]]:
    """Positional arguments as (argument, -1, value), and what those that are lists hold, each with its place."""
    for argument, value in enumerate(node.args):
        yield argument, -1, value
        if isinstance(value, (tuple, list)):
            yield from ((argument, place, inner) for place, inner in enumerate(value))


def _is_number(module: fx.GraphModule, name: str) -> bool:
    value = vars(module).get(name)
    return value is not None and not isinstance(value, (Tensor, nn.Module))
