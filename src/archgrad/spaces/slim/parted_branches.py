"""Branches of which the last layer stands in another module than the rest, as in BERT: `norm(x + dense(self(x)))`.

Nothing but the last layer reads what the first module of such a branch puts out, perhaps through an activation.
Without the branch the first module hands on what it was given, and the last layer puts out zeros of that shape.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.weak import WeakIdKeyDictionary

from archgrad.choices.channels import Coupling, Vanishing
from archgrad.choices.graph_numbers import stand_in
from archgrad.choices.standardized_weights import standardized_weight
from archgrad.copy_and_run import in_mode
from archgrad.spaces.slim.layer_sides import is_layer
from archgrad.spaces.slim.operators import ELEMENTWISE
from archgrad.spaces.slim.seeded_run import OperatorMode, plain_kernels, run, tensors_in, tensors_of
from archgrad.spaces.slim.trial import Removal, Trial

# What may lie between a module and the sum that it is added to: everything here makes zeros of zeros.
SCALING = (
    "mul", "div", "view", "unsafe_view", "reshape", "permute", "transpose", "contiguous", "clone", "to_copy",
    "detach", "alias", "squeeze", "unsqueeze", "expand", "dropout", "native_dropout", "roll", "slice",
)  # fmt: skip
FURTHEST = 100  # operators between the first module of a branch and its last layer


@dataclass(frozen=True)
class Use:
    """A module's only call: what it was given and put out."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    @property
    def made(self) -> Any:
        """What it puts out, alone or in front of others."""
        return self.output[0] if isinstance(self.output, tuple) and self.output else self.output


def removal_of(network: nn.Module, last: str, vanishing: Vanishing) -> Removal:
    """The removal of everything in a branch but what stays."""
    path, others = vanishing.module, [other for other, _ in vanishing.also]
    stays = [f"{path}.{p}" for p in vanishing.parts if isinstance(p, str)]
    couplings = [
        Coupling(n, "branch", torch.zeros(1, dtype=torch.long)) for n, _ in network.named_modules()
        if any(n == p or n.startswith(f"{p}.") for p in (path, *others))
        and not any(n == s or n.startswith(f"{s}.") for s in stays)
    ]  # fmt: skip
    return Removal(f"{path}.branch", couplings, vanishing, last)


def replacement(
    module: nn.Module, use: Use, *, zeros: bool = True, lowered: bool = False, unread: Sequence[int] = ()
) -> nn.Module | None:
    """A plain module that is called as `module` and puts out zeros, or else its input; None where no one input tells
    shape and dtype.

    Args:
        module: what it stands in for.
        use: its only call.
        zeros: whether zeros, or what it is given.
        lowered: whether the zeros have the precision of a layer's outputs under `torch.autocast`; see `lower`.
        unread: by place the outputs behind the first that nobody reads.
    """
    rest = use.output[1:] if isinstance(use.output, tuple) else ()
    try:
        signature = inspect.signature(module.forward)
        bound = signature.bind(*use.args, **use.kwargs).arguments
    except (TypeError, ValueError):
        return None
    like = {n: x for n, x in bound.items() if isinstance(x, Tensor) and x.shape == use.made.shape}
    if any(x.dtype != use.made.dtype for x in like.values()) or len({id(x) for x in like.values()}) != 1:
        return None
    handed = [next((n for n, x in bound.items() if x is y and y is not None), "") for y in rest]
    if any(
        not name and y is not None and i not in unread for i, (name, y) in enumerate(zip(handed, rest, strict=True))
    ):
        return None
    graph, given = fx.Graph(), {}
    for name, parameter in signature.parameters.items():
        stars = "*" if parameter.kind == parameter.VAR_POSITIONAL else ""
        stars = "**" if parameter.kind == parameter.VAR_KEYWORD else stars
        default = () if stars or parameter.default is parameter.empty else (None,)
        given[name] = graph.placeholder(stars + name, None, *default)
    first = given[next(iter(like))]
    first = graph.call_function(torch.zeros_like, (first,)) if zeros else first
    first = lower(graph, first) if lowered else first
    graph.output((first, *(given.get(n) for n in handed)) if isinstance(use.output, tuple) else first)
    made = fx.GraphModule(nn.Module(), graph)
    stand_in(made, module)
    return made


def lower(graph: fx.Graph, zeros: fx.Node) -> fx.Node:
    """Zeros in the precision in which `torch.autocast` runs layers, or else in their own.

    PReLU is the one operator on autocast's lists that computes each element by itself, whatever the device.
    """
    return graph.call_function(torch.prelu, (zeros, graph.call_method("new_zeros", (zeros, 1))))


def keeps_states(module: nn.Module) -> bool:
    """Whether it may keep states of earlier tokens by its number, of which generation reads how many there were.

    Attention that says it is no decoder's keeps none.
    """
    return hasattr(module, "layer_idx") and getattr(module, "is_decoder", True) is not False


@dataclass(frozen=True)
class _Step:
    """One operator.

    Attributes:
        path: of the module in which it ran.
        name: its own.
        read: how many tensors that are no parameters it read.
        made: what it made.
        plain: whether it computes each element from the one at its place alone.
    """

    path: str
    name: str
    read: int
    made: tuple[int, ...]
    plain: bool


class _Flow(OperatorMode):
    """Notes by number of a tensor which operators read it."""

    def __init__(self, path: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: dict[int, list[_Step]] = {}
        self._path, self._count = path, itertools.count()
        self._numbers: Any = WeakIdKeyDictionary()

    def number(self, x: Tensor) -> int:
        """Of a tensor, one that is changed in place included."""
        if x not in self._numbers:
            self._numbers[x] = next(self._count)
        return int(self._numbers[x])

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2].strip("_")
        given = {self.number(x): x for x in tensors_in((args, kwargs or {}))}
        made = tensors_in(result)
        read = sum(not isinstance(x, nn.Parameter) for x in given.values())
        alike = len(made) == len(given) == 1 and made[0].shape == next(iter(given.values())).shape
        plain = alike and (torch.Tag.pointwise in func.tags or name in ELEMENTWISE)
        step = _Step(self._path(), name, read, tuple(self.number(x) for x in made), plain)
        for number in given:
            self.steps.setdefault(number, []).append(step)
        return result

    def is_added(self, number: int) -> bool:
        """Whether a tensor is read once, as it is or scaled, to be added to another that is no parameter."""
        for _ in range(FURTHEST):
            steps = self.steps.get(number, [])
            if len(steps) != 1 or len(steps[0].made) != 1:
                return False
            if steps[0].name == "add":
                return steps[0].read == 2
            if steps[0].name not in SCALING:
                return False
            number = steps[0].made[0]
        return False

    def ends_in(self, number: int, layer: str, outputs: set[int]) -> bool:
        """Whether a layer alone reads a tensor, as it is or through an activation, whatever its width."""
        for _ in range(FURTHEST):
            steps = self.steps.get(number, [])
            if number in outputs or not steps:
                return False
            if any(step.path == layer for step in steps):
                return all(step.path == layer for step in steps)
            if len(steps) > 1 or not steps[0].plain:
                return False
            number = steps[0].made[0]
        return False


def parted_branches(trial: Trial, taken: list[str]) -> Iterator[Removal]:
    """Branches that may vanish though they are no module: a first module, and the layer behind it that is added.

    Args:
        trial: a scrambled copy of the network.
        taken: paths of branches that are known; those that are found are added.
    """
    flow, uses, outputs = _followed(trial)
    network = trial.network
    for path, use in uses.items():
        layer = network.get_submodule(path)
        how = standardized_weight(layer) if is_layer(layer) else None
        if not is_layer(layer) or (how and not how.gain) or not flow.is_added(flow.number(use.made)):
            continue
        near = path.rpartition(".")[0].rpartition(".")[0]
        firsts = [
            p for p in uses
            if p.startswith(f"{near}." if near else "") and not path.startswith(f"{p}.") and p != path
            and flow.ends_in(flow.number(uses[p].made), path, outputs)
            and sum(w.dim() > 1 for w in network.get_submodule(p).parameters())
            and not any(keeps_states(m) for m in network.get_submodule(p).modules())
        ]  # fmt: skip
        if not firsts or any(_meet(path, t) for t in taken):
            continue
        first = max(firsts, key=lambda p: sum(w.numel() for w in network.get_submodule(p).parameters()))
        given = uses[first]
        if given.made.dtype != use.made.dtype or any(_meet(first, t) for t in taken):
            continue
        handing = _handing_on(network.get_submodule(first), given, use, flow, outputs)
        zeros = fx.GraphModule(nn.Module(), _zeros_alone())
        if handing is not None:
            stand_in(zeros, layer)
            taken += [first, path]
            yield removal_of(network, path, Vanishing(first, (handing,), also=((path, zeros),)))


def _meet(a: str, b: str) -> bool:
    return a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")


def _zeros_alone() -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.call_function(torch.zeros_like, (graph.placeholder("input"),)))
    return graph


def _handing_on(first: nn.Module, use: Use, last: Use, flow: _Flow, outputs: set[int]) -> nn.Module | None:
    """What stands in for the first module: it puts out what it was given, which is as wide as the sum."""
    rest = use.output[1:] if isinstance(use.output, tuple) else ()
    unread = [
        i for i, y in enumerate(rest)
        if isinstance(y, Tensor) and flow.number(y) not in outputs and not flow.steps.get(flow.number(y))
    ]  # fmt: skip
    as_wide = (last.made, *rest) if isinstance(use.output, tuple) else last.made
    return replacement(first, Use(use.args, use.kwargs, as_wide), zeros=False, unread=unread)


def _followed(trial: Trial) -> tuple[_Flow, dict[str, Use], set[int]]:
    """What reads what, the modules that are called once and put out a tensor, and what the network puts out."""
    stack = [""]
    flow = _Flow(lambda: stack[-1])
    calls: dict[str, list[Use]] = {}
    handles = []
    for path, module in trial.network.named_modules():

        def enter(_m: nn.Module, _args: tuple[Any, ...], path: str = path) -> None:
            stack.append(path)

        def leave(
            _m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, path: str = path
        ) -> None:
            stack.pop()
            calls.setdefault(path, []).append(Use(args, kwargs, output))

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        with plain_kernels(), flow:
            made = tensors_of(run(in_mode(trial.network), trial.inputs[-1 if trial.large else 0]))
    finally:
        for handle in handles:
            handle.remove()
    once = {p: seen[0] for p, seen in calls.items() if p and len(seen) == 1 and isinstance(seen[0].made, Tensor)}
    return flow, once, {flow.number(x) for x in made}
