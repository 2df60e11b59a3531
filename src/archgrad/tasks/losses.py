"""A loss of the user's: of a whole batch, and of each sample where it can be had."""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from archgrad.errors import ConfigError
from archgrad.tasks.task import Batch

# Of (output, target): a scalar [], or one number for each sample [B].
Loss = Callable[[Any, Any], Tensor]
# Of (network, batch): the loss, or the loss and the output that metrics are to see.
BatchLoss = Callable[[nn.Module, Batch], Tensor | tuple[Tensor, Any]]


def checked_loss(loss: Loss | None, batch_loss: BatchLoss | None) -> tuple[Loss | None, BatchLoss | None]:
    """The one of the two that was given. Raises ConfigError where there is none or two, or it is no function."""
    if (loss is None) == (batch_loss is None):
        raise ConfigError(
            f"{'both' if loss else 'neither of'} loss and batch_loss given: give one, loss(output, target), or "
            f"batch_loss(network, batch)"
        )
    for name, function in (("loss", loss), ("batch_loss", batch_loss)):
        if function is not None and not callable(function):
            raise ConfigError(f"{name} is a {type(function).__name__}; give a function, such as torch's mse_loss")
        if isinstance(function, type):
            raise ConfigError(f"{name} is the class {function.__name__}; make one of it: {function.__name__}()")
    if isinstance(loss, nn.Module) and any(parameter.requires_grad for parameter in loss.parameters()):
        raise ConfigError("the loss has weights of its own, which nothing trains; make them a part of the network")
    return loss, batch_loss


def per_sample(loss: Loss) -> Loss | None:
    """The loss of each sample where one of torch's reduces it on request; None where it does not."""
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        each: Loss = copy.deepcopy(loss)
        reduction = str(loss.reduction)
        each.reduction = "none"  # type: ignore[attr-defined]
    else:
        try:
            parameter = inspect.signature(loss).parameters.get("reduction")
        except (TypeError, ValueError):
            return None
        if parameter is None:
            return None
        each, reduction = functools.partial(loss, **{"reduction": "none"}), str(parameter.default)

    def losses(output: Any, target: Any) -> Tensor:
        if isinstance(each, nn.Module):
            each.to(output.device)
        values = each(output, target)
        if reduction == "none":
            return values.flatten(1).mean(1) if values.ndim > 1 else values
        flat = values.flatten(1).mean(1) if values.ndim > 1 else values
        # Whatever the mean is weighted by: classes, or that some are ignored.
        return flat * (loss(output, target) / flat.mean()).detach().nan_to_num(nan=1.0)

    return losses


def unstretched(function: Loss, output: Any, answer: Any) -> Tensor:
    """The loss; torch's own only warn of shapes that they stretch to fit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Using a target size", UserWarning)
        try:
            return function(output, answer)
        except UserWarning as error:
            raise ValueError(str(error)) from error


def stateful_loss(loss: object) -> Any | None:
    """The loss, or the object whose method it is, if it has a state: a module with a running centre, for instance."""
    for owner in (loss, getattr(loss, "__self__", None)):
        if hasattr(owner, "state_dict") and hasattr(owner, "load_state_dict") and owner.state_dict():
            return owner
    return None
