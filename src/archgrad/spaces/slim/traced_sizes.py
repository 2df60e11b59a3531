"""Trace a module of the user's to a graph in which the sizes of its tensors are expressions."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from archgrad.copy_and_run import copied, in_mode
from archgrad.spaces.slim.kept_sizes import know_sources
from archgrad.spaces.slim.number_caches import without_caches
from archgrad.spaces.slim.seeded_run import NETWORK_ERRORS

_FIXED = (type(None), bool, str, float, torch.dtype)  # arguments that are taken as the example has them
# What makes a tensor of sizes that are given one by one, which torch takes as numbers alone.
_FACTORIES = (torch.empty, torch.ones, torch.rand, torch.randn, torch.zeros)
_SIZES = ("size", "shape", "ndim", "dim", "ndimension")
Wide = Mapping[str, frozenset[int]]  # by argument the axes along which channels lie


class NotTraced(Exception):
    """A forward that cannot be written as one graph for every input."""


@dataclass(frozen=True)
class Origin:
    """What a number was computed of.

    Attributes:
        wide: of a number of channels that the module was given, among others.
        other: of another size of a tensor, such as a number of steps.
    """

    wide: bool = False
    other: bool = False


@dataclass
class TracedModule:
    """A graph of what a module computes.

    Attributes:
        module: a copy of the module.
        graph: its operators; integers that the module keeps as attributes stand in it as `KeptSize`.
        values: node -> what it was in one run.
        origins: node of a number -> what it was computed of.
    """

    module: nn.Module
    graph: fx.Graph
    values: dict[fx.Node, Any] = field(default_factory=dict)
    origins: dict[fx.Node, Origin] = field(default_factory=dict)


def trace_sizes(module: nn.Module, given: inspect.BoundArguments, wide: Wide, *, training: bool) -> TracedModule:
    """A module's graph, the modules inside it left whole.

    Args:
        module: it is left as it is.
        given: the arguments of one call.
        wide: along which axes of its arguments channels lie.
        training: the mode in which it is traced.

    Raises:
        NotTraced: its forward depends on values or sizes in a way that one graph does not hold.
    """
    own = in_mode(copied(module, share=True))
    own.training = training
    know_sources(own)
    tracer = _Tracer(given, wide)
    before = {id(part): set(vars(part)) for part in own.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), without_caches(own):
            graph = tracer.trace(own)
    except (NotTraced, fx.proxy.TraceError, NotImplementedError, *NETWORK_ERRORS) as error:
        raise NotTraced(str(error)) from error
    for node in graph.nodes:
        node.meta.pop("is_wrapped", None)  # by which its code would have every later trace wrap the function
    if any(_keeps_proxies(part, before[id(part)]) for part in own.modules()):
        raise NotTraced("it keeps activations")
    return TracedModule(own, graph, tracer.values, tracer.origins)


def _keeps_proxies(part: nn.Module, names: set[str]) -> bool:
    held = tree_leaves([value for name, value in vars(part).items() if name != "_modules"])
    return bool(set(vars(part)) - names) or any(isinstance(value, fx.Proxy) for value in held)


class _Sized(fx.Proxy):
    """What stands for a value in the trace; the sizes of a tensor are a tuple of such."""

    @property
    def value(self) -> Any:
        return self.tracer.values[self.node]  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        if name in _SIZES and isinstance(self.value, Tensor):
            axes = self.value.dim()
            if name == "ndim":
                return axes
            if name in ("dim", "ndimension"):
                return lambda: axes
            if name == "shape":
                return tuple(self._size(axis) for axis in range(axes))
            return lambda *of: self._size(of[0]) if of else self.shape
        return super().__getattr__(name)

    def _size(self, axis: int) -> Any:
        return self.tracer.create_proxy("call_method", "size", (self, int(axis)), {})

    def __len__(self) -> int:
        """How many parts a tuple has, as where `*` takes them apart; a tensor's number may change with the input."""
        if isinstance(self.value, (tuple, list)):
            return len(self.value)
        raise NotTraced("it counts the parts of a tensor")

    def __float__(self) -> float:
        origin = self.tracer.origins.get(self.node, Origin(other=True))  # type: ignore[attr-defined]
        if not origin.wide or origin.other:
            raise NotTraced("it computes with a size outside of torch")
        return float(self.value)


class _Tracer(fx.Tracer):
    """Runs the module on real values on the side, so that ranks and lengths are known."""

    def __init__(self, given: inspect.BoundArguments, wide: Wide) -> None:
        super().__init__(autowrap_functions=_FACTORIES)
        self._autowrap_search.append(torch)
        self.proxy_buffer_attributes = True
        self.given, self.wide = given, wide
        self.values: dict[fx.Node, Any] = {}
        self.origins: dict[fx.Node, Origin] = {}
        self._running = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Sized(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Placeholders by the names and defaults of forward, and what stands for them while it runs."""
        arguments: list[Any] = []
        for name, parameter in inspect.signature(self.root.forward).parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise NotTraced("it takes keywords or any number of arguments")
            default = () if parameter.default is parameter.empty else (parameter.default,)
            proxy = self.create_proxy("placeholder", name, default, {})
            arguments.append(self._argument(proxy, self.given.arguments[name]))
        return root_fn, [self.root, *arguments]

    def _argument(self, proxy: Any, value: Any) -> Any:
        if isinstance(value, Tensor) or type(value) is int:
            return proxy
        if isinstance(value, (tuple, list)) and all(isinstance(v, (Tensor, int)) for v in value):
            return type(value)(proxy[i] for i in range(len(value))) if type(value) in (tuple, list) else (
                tuple(proxy[i] for i in range(len(value))))  # fmt: skip
        if not isinstance(value, _FIXED):
            raise NotTraced(f"it is given a {type(value).__name__}")
        same = self.create_proxy("call_function", operator.eq, (proxy, value), {})
        self.create_proxy(
            "call_function", torch._assert, (same, f"{proxy.node.target} was {value!r} when traced"), {}
        )
        return value

    def iter(self, obj: Any) -> Iterator[Any]:
        """The parts of a tuple, whose number is known; a tensor's may change with the input."""
        value = self.values[obj.node]
        if not isinstance(value, (tuple, list)):
            raise NotTraced("it goes through the parts of a tensor")
        return iter([obj[i] for i in range(len(value))])

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth of a comparison of numbers of channels alone; anything else may change with the input."""
        origin = self.origins.get(obj.node, Origin(other=True))
        if not origin.wide or origin.other:
            raise NotTraced("it depends on a value or a size")
        return bool(self.values[obj.node])

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None,
        proxy_factory_fn: Any = None,
    ) -> Any:  # fmt: skip
        """A node, with what it is in this run and what it was computed of."""
        proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)
        node = proxy.node
        if kind != "output":
            value = self._computed(node)
            self.values[node] = value
            if isinstance(value, (int, float, bool)) and not isinstance(value, Tensor):
                self.origins[node] = self._origin(node)
        return proxy

    def _computed(self, node: fx.Node) -> Any:
        args = fx.node.map_arg(node.args, self.values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self.values.__getitem__)
        if node.op == "placeholder":
            return self.given.arguments[str(node.target)]
        if node.op == "get_attr":
            self._running = True
            try:
                return operator.attrgetter(str(node.target))(self.root)
            finally:
                self._running = False
        self._running = True
        try:
            if node.op == "call_module":
                return self.root.get_submodule(str(node.target))(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]
        finally:
            self._running = False

    def _origin(self, node: fx.Node) -> Origin:
        if node.op == "call_method" and node.target == "size":
            tensor, axis = node.args
            assert isinstance(tensor, fx.Node) and isinstance(axis, int)
            is_wide = axis % self.values[tensor].dim() in self._channels(tensor)
            return Origin(wide=is_wide, other=not is_wide)
        known = [self.origins.get(n, Origin(other=True)) for n in node.all_input_nodes]
        return Origin(any(o.wide for o in known), any(o.other for o in known) or node.op == "placeholder")

    def _channels(self, tensor: fx.Node) -> frozenset[int]:
        """Axes of the channels that the module was given, in a tensor that is an argument or has the shape of one."""
        while tensor.op != "placeholder":
            same = [n for n in tensor.all_input_nodes if isinstance(self.values[n], Tensor)
                    and self.values[n].shape == self.values[tensor].shape]  # fmt: skip
            layer = tensor.op == "call_module" and any(
                p.dim() > 1 for p in self.root.get_submodule(str(tensor.target)).parameters()
            )
            if len(same) != 1 or layer:
                return frozenset()
            tensor = same[0]
        return self.wide.get(str(tensor.target), frozenset())
