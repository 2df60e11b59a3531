"""A limit: a bound on a cost, absolute or as a fraction of what the network at hand takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from archgrad.errors import LimitError


class Cost(Protocol):
    """What a network takes: MACs, parameters, latency."""

    @property
    def name(self) -> str:
        """How the cost is called on the command line and in records: "macs"."""
        ...

    @property
    def unit(self) -> str:
        """How its figures are written: "MACs"."""
        ...

    @property
    def measured(self) -> bool:
        """Whether it is read off a clock, and so has no gradient."""
        ...

    def of(self, network: nn.Module) -> float:
        """What this network takes, counted or measured anew."""
        ...

    def expected(self, space: nn.Module) -> Tensor:
        """What the space takes at its present mixing weights; a scalar, differentiable where not measured."""
        ...


@dataclass(frozen=True)
class Limit:
    """`cost.of(network)` is to be at most `bound`, or at most `fraction` of what the unchanged network takes."""

    cost: Cost
    bound: float | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.bound is None) == (self.fraction is None):
            raise LimitError(
                f"a limit on {self.cost.name} takes either an absolute number or fraction=, not both and not "
                f"neither (given: {self.bound} and fraction={self.fraction})"
            )
        if self.fraction is not None and not 0.0 < self.fraction <= 1.0:
            raise LimitError(
                f"fraction={self.fraction:g} of {self.cost.name}: a fraction is above 0 and at most 1; "
                f"give for instance 0.5 for half"
            )
        if self.bound is not None and not 0.0 < self.bound < float("inf"):
            raise LimitError(f"a limit of {self.bound:g} {self.cost.unit}: give a finite number above 0")

    def resolve(self, reference: float) -> float:
        """The absolute bound, where `reference` is what the unchanged network takes."""
        if self.fraction is not None:
            return self.fraction * reference
        assert self.bound is not None
        return self.bound
