"""Trace modules of archgrad's classes to `torch.fx.GraphModule`s that need none of these classes."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_ours(module: nn.Module) -> bool:
    """Whether the module's class is one of archgrad's."""
    return type(module).__module__.partition(".")[0] == __name__.partition(".")[0]


def traced(module: nn.Module) -> fx.GraphModule:
    """What a module of archgrad's computes, as a graph of torch's and the user's modules, which are not copied.

    Choices in it have to be held, or mixed by constant weights of 0 and 1 (`using`): candidates of weight 0, and
    results that nothing reads, are left out.
    """
    graph = _Tracer().trace(module)
    # A graph that names its tracer, or our annotations, could only be unpickled where archgrad is.
    graph._tracer_cls = None
    for node in graph.nodes:
        node.type = None
    result: Any = fx.GraphModule(module, graph, class_name=type(module).__name__)
    result.graph.eliminate_dead_code()
    result.delete_all_unused_submodules()
    result.recompile()
    result.train(module.training)
    return result  # type: ignore[no-any-return]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in CONTAINERS:
            return not any(is_ours(inner) for inner in m.modules())
        return not is_ours(m)
