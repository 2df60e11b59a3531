"""Training a plain network with its forward and backward pass compiled by torch, where the run asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.access import choices
from archgrad.errors import ConfigError
from archgrad.run.run import Run
from archgrad.tasks.task import Batch

Objective = Callable[[nn.Module, Batch], Tensor]
Forward = Callable[..., Any]


def compiled(objective: Objective, network: nn.Module, run: Run) -> Objective:
    """The objective with calls of a plain `network` compiled, where `Run(compile=True)` asks for it.

    Within the objective alone: scores are computed as written, so that batches of other sizes compile nothing anew.
    A network with choices is trained as written: its weights are computed anew in each step, or its candidates come
    and go. So is one whose layers have hooks, as where features are distilled; its own hooks run beside what is
    compiled.

    Raises ConfigError, in the first step, where torch.compile fails on the network.
    """
    if not run.compile or choices(network):
        return objective

    as_written, of_instance = network.forward, vars(network).get("forward")

    def forward(*inputs: Any, **named: Any) -> Any:  # torch skips frames of its own modules, such as nn.Sequential
        return as_written(*inputs, **named)

    # torch compiles one code for eight networks or shapes, so each network has one of its own.
    forward.__code__ = forward.__code__.replace()
    # What is compiled for any size would be computed otherwise after a resume, which compiles in another order.
    call = torch.compile(forward, dynamic=False)
    called = _unless_hooked(network, call, as_written)

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


def _unless_hooked(network: nn.Module, call: Forward, as_written: Forward) -> Forward:
    """The compiled call; as written where layers have hooks, since torch would go on with those of the first step."""

    def forward(*inputs: Any, **named: Any) -> Any:
        layers = (module for module in network.modules() if module is not network)
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in layers)
        return (as_written if hooked else call)(*inputs, **named)

    return forward
