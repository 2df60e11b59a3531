"""Training steps whose forward and backward pass torch compiles, where the run asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
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

MOST = 32  # candidates in one pass: each takes seconds to compile


def compiled(
    objective: Objective, network: nn.Module, run: Run, trained: Iterable[Tensor] | None = None
) -> Objective:
    """The objective with calls of the `network` compiled, where `Run(compile=True)` asks for it.

    Within the objective alone: scores are computed as written, so that batches of other sizes compile nothing anew.
    Where `trained` is given, no other parameter has a gradient there: a compiled pass computes that of all that have.

    Mixing weights and the candidates alive are found as written, before each pass, and handed to it, so that scales
    and temperatures may change. As written run

    - passes at weights that `archgrad.using` holds, as where architectures are drawn: candidates come and go;
    - networks of clipped choices, whose candidates go one by one, and of more than `MOST` candidates of operations,
      which take too long to compile;
    - networks whose layers have hooks that are not archgrad's own, as where features are distilled. Hooks of the
      network itself run beside what is compiled.

    Raises ConfigError, in the first step, where torch.compile fails on the network.
    """
    if not run.compile or not _compilable(network):
        return objective

    kept = set(network.parameters() if trained is None else trained)
    resting = [p for p in network.parameters() if p not in kept]
    as_written, of_instance = network.forward, vars(network).get("forward")

    def forward(*inputs: Any, **named: Any) -> Any:  # torch skips frames of its own modules, such as nn.Sequential
        return as_written(*inputs, **named)

    # torch compiles one code for eight networks or shapes, so each network has one of its own.
    forward.__code__ = forward.__code__.replace()
    # What is compiled for any size would be computed otherwise after a resume, which compiles in another order.
    call = torch.compile(forward, dynamic=False)
    called = _where_sound(network, call, as_written, resting)

    def loss(trained: nn.Module, batch: Batch) -> Tensor:
        network.forward = called
        try:
            return objective(trained, batch)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ConfigError(
                f"compile=True was given, and torch.compile fails on {type(network).__name__}: {reason} "
                f"Leave it out, or mend what torch.compile cannot follow."
            ) from error
        finally:
            if of_instance is None:
                del network.forward
            else:
                network.forward = of_instance

    return loss


def _compilable(network: nn.Module) -> bool:
    """Whether the candidates stay, and are few."""
    every = [choice for namesakes in choices(network).values() for choice in namesakes]
    clipped = any(isinstance(choice.relaxation, Clipped) for choice in every)
    return not clipped and sum(choice.size for choice in every if isinstance(choice, OpChoice)) <= MOST


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
