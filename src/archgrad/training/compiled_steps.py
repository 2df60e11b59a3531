"""Training steps whose forward and backward pass torch compiles, where the run asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.access import choices
from archgrad.choices.channel_norms import OpenStatistics
from archgrad.choices.clipped_relaxation import Clipped
from archgrad.choices.modules import Choice, OpChoice
from archgrad.choices.relaxations import true_places
from archgrad.errors import ConfigError
from archgrad.run.run import Run
from archgrad.tasks.task import Batch

Objective = Callable[[nn.Module, Batch], Tensor]
Forward = Callable[..., Any]

MOST = 32  # candidates in one graph: each takes seconds to compile


def compiled(
    objective: Objective, network: nn.Module, run: Run, trained: Iterable[Tensor] | None = None
) -> Objective:
    """The objective with calls of the `network` compiled, where `Run(compile=True)` asks for it.

    A network of more than `MOST` candidates of operations is compiled by region: each choice of operations by itself,
    once for all whose candidates and inputs are alike, and what lies around them runs as written.

    Within the objective alone: scores are computed as written, so that batches of other sizes compile nothing anew.
    Where `trained` is given, no other parameter has a gradient there: a compiled pass computes that of all that have.

    Mixing weights and the candidates alive are found as written, before each pass, and handed to it, so that scales
    and temperatures may change. As written run

    - passes at weights that `archgrad.using` holds, as where architectures are drawn: candidates come and go;
    - networks of clipped choices, whose candidates go one by one;
    - in regions, choices whose inputs are not contiguous: what is compiled copies maps in channels_last
      before depthwise convolutions; and those that torch.compile cannot capture as one graph;
    - networks whose layers have hooks that are not archgrad's own, as where features are distilled. Hooks of the
      network itself run beside what is compiled.

    Raises ConfigError, in the first step, where torch.compile fails on the network.
    """
    if not run.compile or _clipped(network):
        return objective
    regions = {} if _few(network) else _regions(network)
    if not regions and not _few(network):
        return objective

    kept = set(network.parameters() if trained is None else trained)
    resting = [p for p in network.parameters() if p not in kept]
    as_written = network.forward
    call = as_written if regions else _compiled(as_written)
    forwards = {network: _where_sound(network, call, as_written, resting), **regions}

    def loss(trained: nn.Module, batch: Batch) -> Tensor:
        try:
            with _replaced(forwards):
                return objective(trained, batch)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConfigError(
                f"compile=True was given, and torch.compile fails on {type(network).__name__}: {reason} "
                f"Leave it out, or mend what torch.compile cannot follow."
            ) from error

    return loss


@contextlib.contextmanager
def _replaced(forwards: dict[nn.Module, Forward]) -> Iterator[None]:
    """Inside, these modules have other forward passes."""
    of_instances = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, of_instance in of_instances.items():
            vars(module).pop("forward", None)
            if of_instance is not None:
                module.forward = of_instance


def _compiled(function: Forward, *, whole: bool = False) -> Forward:
    """The function, compiled by itself; `whole`: as one graph, or an error."""

    def forward(*inputs: Any, **named: Any) -> Any:  # torch skips frames of its own modules, such as nn.Sequential
        return function(*inputs, **named)

    # torch compiles one code for eight networks or shapes, so each function has one of its own.
    forward.__code__ = forward.__code__.replace()
    # What is compiled for any size would be computed otherwise after a resume, which compiles in another order.
    return torch.compile(forward, dynamic=False, fullgraph=whole)


def _regions(network: nn.Module) -> dict[nn.Module, Forward]:
    """By choice of operations, where no other choice is inside, its forward pass, compiled once for all of a kind."""
    by_kind: dict[Hashable, Forward] = {}
    own = [c for c in network.modules() if isinstance(c, OpChoice) and c.candidates and "forward" not in vars(c)]
    outer = {c for c in own if any(isinstance(module, Choice) for module in c.candidates.modules())}
    return {choice: _region(choice, by_kind) for choice in own if choice not in outer}


def _region(choice: OpChoice, by_kind: dict[Hashable, Forward]) -> Forward:
    as_written, kind = choice.forward, (repr(choice.candidates), *(p.shape for p in choice.parameters()))

    def forward(*inputs: Any) -> Any:
        if choice.settled is None or not all(isinstance(x, Tensor) and x.is_contiguous() for x in inputs):
            return as_written(*inputs)
        key = type(choice), kind, choice.settled, *((x.shape, x.dtype, x.requires_grad) for x in inputs)
        if key not in by_kind:
            by_kind[key] = _compiled(_mixed, whole=True)
        try:
            return by_kind[key](choice, *inputs)
        except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.FailOnRecompileLimitHit):
            by_kind[key] = _mixed  # in parts, it would be compiled anew for each choice
            return _mixed(choice, *inputs)

    return forward


def _mixed(choice: OpChoice, *inputs: Tensor) -> Tensor:
    """What the choice's class computes; its instance has a forward pass of its own in a step."""
    return type(choice).forward(choice, *inputs)


def _clipped(network: nn.Module) -> bool:
    """Whether candidates go one by one."""
    return any(isinstance(c.relaxation, Clipped) for c in network.modules() if isinstance(c, Choice))


def _few(network: nn.Module) -> bool:
    """Whether there are so few candidates that the network is compiled as one graph."""
    return sum(choice.size for choice in network.modules() if isinstance(choice, OpChoice)) <= MOST


def _where_sound(network: nn.Module, call: Forward, as_written: Forward, resting: list[nn.Parameter]) -> Forward:
    """The compiled call; as written where it would go on with the hooks or the candidates of the first step."""
    decisions = [choice for namesakes in choices(network).values() for choice in namesakes]

    def forward(*inputs: Any, **named: Any) -> Any:
        if _hooked(network) or any(choice.override is not None for choice in decisions):
            return as_written(*inputs, **named)
        with _at_rest(resting), _settled(decisions):
            return call(*inputs, **named)

    return forward


def _hooked(network: nn.Module) -> bool:
    """Whether layers have hooks other than those of norms over channels that are gated."""
    layers = (module for module in network.modules() if module is not network)
    return any(
        module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        or not all(type(hook) is OpenStatistics for hook in module._forward_hooks.values())
        for module in layers
    )  # fmt: skip


@contextlib.contextmanager
def _at_rest(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, these require no gradient."""
    parameters = [p for p in parameters if p.requires_grad]  # now: others may have been frozen since the first step
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _settled(decisions: list[Choice]) -> Iterator[None]:
    """Inside, choices hold their mixing weights and what is alive as values, which nothing has to be read for."""
    known: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {}
    for choice in decisions:
        if choice.name not in known:
            known[choice.name] = choice.mixing(), tuple(true_places(choice.live))
    try:
        for choice in decisions:
            choice.override, choice.settled = known[choice.name]
        yield
    finally:
        for choice in decisions:
            choice.override, choice.settled = None, None
