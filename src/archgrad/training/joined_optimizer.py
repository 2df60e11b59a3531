"""Several optimizers that take their steps together: one backward pass trains weights and logits."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


class JoinedOptimizer(Optimizer):
    """Several optimizers as one: a step is a step of each.

    Args:
        optimizers: of disjoint parameters.

    Example:
        >>> import torch
        >>> from archgrad.training import JoinedOptimizer
        >>> net = torch.nn.Linear(2, 1)
        >>> both = JoinedOptimizer(torch.optim.SGD([net.weight], lr=0.1), torch.optim.Adam([net.bias]))
        >>> [len(group["params"]) for group in both.param_groups]
        [1, 1]
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        # The base class would take the parameters over; its groups and state are those of the optimizers.
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of all optimizers, in their order."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """A step of each optimizer."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of each."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of all, in their order."""
        return {str(number): optimizer.state_dict() for number, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        for number, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state_dict[str(number)])
