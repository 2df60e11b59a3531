"""A loss of the user's: of a whole batch, and of each sample where it can be had."""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from archgrad.copy_and_run import is_plain, put
from archgrad.digests import digest
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


class LossState:
    """What a loss carries from step to step: of a module the tensors that have changed, else its `state_dict`.

    A running centre changes, and so does a teacher that follows the network; a frozen network that a loss compares
    features of does not, and is not saved again and again.

    Args:
        loss: a function, a module, or a method of an object, or a partial of one, whose state counts.
    """

    def __init__(self, loss: object) -> None:
        loss = getattr(loss, "func", loss)
        owners = [o for o in (loss, getattr(loss, "__self__", None)) if hasattr(o, "load_state_dict")]
        self._carrier: Any = next((owner for owner in owners if hasattr(owner, "state_dict")), None)
        self._begun = {name: digest(tensor) for name, tensor in self._tensors().items()}

    def state_dict(self) -> dict[str, Any]:
        """What has changed since the task was made, and what modules return from `get_extra_state`."""
        if self._carrier is None or not isinstance(self._carrier, nn.Module):
            return {} if self._carrier is None else dict(self._carrier.state_dict())
        changed = {name: t for name, t in self._tensors().items() if digest(t) != self._begun.get(name)}
        return {**changed, **{n: v for n, v in self._carrier.state_dict().items() if n.endswith("_extra_state")}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        if self._carrier is None:
            return
        if not isinstance(self._carrier, nn.Module):
            self._carrier.load_state_dict(state)
            return
        extra = {name: value for name, value in state.items() if name.endswith("_extra_state")}
        if extra:
            self._carrier.load_state_dict(extra, strict=False)
        for name in state.keys() - extra.keys():
            put(self._carrier, name, state[name])

    def _tensors(self) -> dict[str, Tensor]:
        module = self._carrier
        both = (*module.named_parameters(), *module.named_buffers()) if isinstance(module, nn.Module) else ()
        return {name: tensor for name, tensor in both if is_plain(tensor)}
