"""From modules of our classes to `torch.fx.GraphModule`s of what they do, which need none of them."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_ours(module: nn.Module) -> bool:
    """Whether the module's class is one of archgrad's."""
    return type(module).__module__.partition(".")[0] == __name__.partition(".")[0]


def traced(module: nn.Module) -> fx.GraphModule:
    """What a module of ours does, as a graph of torch's and the user's modules, which stand in it as they are.

    Choices in it have to be held, or mixed by constant weights of 0 and 1 (`using`): what has weight 0 is left out,
    and so is what is computed for nothing.
    """
    graph = _Tracer().trace(module)
    # A graph that names its tracer, or our annotations, could only be unpickled where archgrad is.
    graph._tracer_cls = None
    for node in graph.nodes:
        node.type = None
    made: Any = fx.GraphModule(module, graph, class_name=type(module).__name__)
    made.graph.eliminate_dead_code()
    made.delete_all_unused_submodules()
    made.recompile()
    made.train(module.training)
    return made  # type: ignore[no-any-return]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in CONTAINERS:
            return not any(is_ours(inner) for inner in m.modules())
        return not is_ours(m)
