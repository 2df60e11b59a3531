"""What a cost is, a cost of one's own, and a limit: a bound on a cost, absolute or as a fraction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, Protocol, SupportsFloat, runtime_checkable

from torch import Tensor, nn

from archgrad.choices.architecture import Architecture
from archgrad.errors import LimitError, ModelError
from archgrad.tasks.task import tensors


class Cost(Protocol):
    """What a network takes: MACs, parameters, latency.

    `of` is given the plain network of an architecture. A cost that can price an architecture of a space without
    its network has `predict` too; see `Predicts`.
    """

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


@runtime_checkable
class Predicts(Protocol):
    """What a cost has besides if it prices architectures by their picks alone: a `Table`, a `Surrogate`."""

    def predict(self, architecture: Architecture) -> float:
        """The price of this architecture of the space that the cost was made for."""
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

    def __repr__(self) -> str:
        bound = f"{self.bound:,.6g} {self.cost.unit}" if self.fraction is None else f"{100 * self.fraction:g} %"
        return f"Limit({self.cost.name} at most {bound})"

    def resolve(self, reference: float) -> float:
        """The absolute bound, where `reference` is what the unchanged network takes."""
        if self.fraction is not None:
            return self.fraction * reference
        assert self.bound is not None
        return self.bound

    def record(self) -> dict[str, str | float | None]:
        """The limit as JSON."""
        return {"cost": self.cost.name, "bound": self.bound, "fraction": self.fraction}


@dataclass(frozen=True)
class BlackBox:
    """A function from networks to numbers, as a cost; see `black_box`."""

    function: Callable[[nn.Module], SupportsFloat]
    name: str
    unit: str
    measured: bool = True

    def of(self, network: nn.Module) -> float:
        """The function's value for this network, which is handed over as it is.

        Raises:
            ModelError: the function returns no number, or one that is not finite.
        """
        given = self.function(network)
        try:
            value = float(given)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            value = math.nan
        if not math.isfinite(value):
            text = repr(given)
            raise ModelError(
                f"the cost {self.name!r} of {type(network).__name__} is {text[:80]}; its function has to return one "
                f"finite number (a float, or a tensor with one element)"
            )
        return value

    def expected(self, space: nn.Module) -> NoReturn:
        """Raises LimitError: such a function has no gradient with respect to the mixing weights."""
        refuse_gradient(self, space)

    def at_most(self, bound: float | None = None, *, fraction: float | None = None) -> Limit:
        """A limit, in this cost's unit or as a fraction of the unchanged network's."""
        return Limit(self, bound, fraction)


def black_box(function: Callable[[nn.Module], SupportsFloat], *, name: str, unit: str) -> BlackBox:
    """A function of your own as a cost: a figure from a device, energy, the share of wrong answers.

    Args:
        function: from a network to a number. It is called anew for each architecture, so that it may be noisy, and
            counts as measured: it has no gradient.
        name: how records call it: "energy".
        unit: how its figures are written: "mJ".

    Raises:
        LimitError: `function` cannot be called, or the name is empty.
    """
    if not callable(function) or not name:
        raise LimitError(
            f"black_box takes a function from a network to a number and a name, given {function!r} and {name!r}; "
            f'write for instance black_box(joules, name="energy", unit="J")'
        )
    return BlackBox(function, name, unit)


def shapes(example: object) -> str:
    """The shapes of all tensors of an example, for a cost's repr."""
    return ", ".join(str(list(x.shape)) for x in tensors(example))


def refuse_gradient(cost: Cost, space: nn.Module) -> NoReturn:
    """Raise LimitError: what is measured has no gradient with respect to the mixing weights."""
    raise LimitError(
        f"{cost.name} is measured, so it has no gradient with respect to the mixing weights of "
        f"{type(space).__name__}. Use a method whose estimator has a score-function part, or give the "
        f"search a surrogate with a gradient (archgrad.costs.surrogate.Surrogate fits one; dnal uses MACs) and "
        f"check the {cost.name} of what it hands back"
    )
