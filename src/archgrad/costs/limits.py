"""What a cost is, a cost of your own, and a limit: a bound on a cost, absolute or as a fraction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NoReturn, Protocol, SupportsFloat, runtime_checkable

from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.architecture import Architecture
from archgrad.errors import LimitError, ModelError
from archgrad.files import shown
from archgrad.report.numbers import amount

_COUNTED = ("macs", "params")  # what whole numbers of are counted, as the command line names it


class Cost(Protocol):
    """What a network takes: MACs, parameters, latency.

    A cost that can price an architecture without its network also has `predict`; see `Predicts`.
    """

    @property
    def name(self) -> str:
        """What the command line and records call the cost: "macs"."""
        ...

    @property
    def unit(self) -> str:
        """Of its figures: "MACs"."""
        ...

    @property
    def measured(self) -> bool:
        """Whether a network has to be asked for it, as for a time; then there is no gradient."""
        ...

    def of(self, network: nn.Module) -> float:
        """What this plain network takes, counted or measured anew."""
        ...

    def expected(self, space: nn.Module) -> Tensor:
        """What the space takes at its present mixing weights: a scalar [] with a gradient; refused where measured."""
        ...


@runtime_checkable
class Predicts(Protocol):
    """A cost that prices an architecture by its picks alone: a `CostTable`, a `Surrogate`, a `TableColumn`."""

    def predict(self, architecture: Architecture) -> float:
        """The price of this architecture of the space that the cost was made for."""
        ...


@dataclass(frozen=True)
class Limit:
    """`cost.of(network)` is to be at most `bound`, or at most `fraction` of what the unchanged network takes.

    Attributes:
        cost: what is bounded.
        bound: in the cost's unit, or None.
        fraction: in (0, 1], or None.

    Raises:
        LimitError: both or neither is given, or one is out of range.

    Example:
        >>> import archgrad as ag
        >>> limit = ag.params().at_most(fraction=0.25)
        >>> limit, limit.resolve(2000)
        (Limit(params at most 25 %), 500.0)
    """

    cost: Cost
    bound: float | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if not callable(getattr(self.cost, "of", None)):
            raise LimitError(f"cost={self.cost!r}: give a cost, such as archgrad.macs(x) or archgrad.black_box(...)")
        if (self.bound is None) == (self.fraction is None):
            raise LimitError(
                f"a limit on {self.cost.name} takes either an absolute number or fraction=, not both and not "
                f"neither (given: {self.bound} and fraction={self.fraction})"
            )
        if self.fraction is not None and (not _is_number(self.fraction) or not 0.0 < self.fraction <= 1.0):
            raise LimitError(
                f"fraction={self.fraction!r} of {self.cost.name}: a fraction is above 0 and at most 1; "
                f"give for instance 0.5 for half"
            )
        if self.bound is not None and (not _is_number(self.bound) or not 0.0 < self.bound < float("inf")):
            raise LimitError(f"a limit of {self.bound!r} {self.cost.unit}: give a finite number above 0")

    def __repr__(self) -> str:
        if self.fraction is not None:
            return f"Limit({self.cost.name} at most {100 * self.fraction:g} %)"
        assert self.bound is not None
        bound = amount(self.bound, self.cost.unit)
        return f"Limit({self.cost.name} at most {bound})"

    def resolve(self, reference: float) -> float:
        """The absolute bound, where `reference` is what the unchanged network takes."""
        if self.fraction is not None:
            return self.fraction * reference
        assert self.bound is not None
        return self.bound

    def meant(self) -> str:
        """What an absolute bound may have meant that nothing can keep: a fraction or a percentage; else empty.

        Only of what is counted in whole numbers: 0.5 ms, or 0.5 GiB, is what it says.
        """
        if self.bound is None or self.bound > 100 or self.cost.name not in _COUNTED or self.cost.measured:
            return ""
        share = self.bound if self.bound <= 1 else self.bound / 100
        return (
            f"; for {100 * share:g} % of the whole network give at_most(fraction={share:g}), or on the command line "
            f"--limit {self.cost.name}={share:g}"
        )

    def record(self) -> dict[str, str | float | None]:
        """The limit as JSON."""
        return {"cost": self.cost.name, "bound": self.bound, "fraction": self.fraction}


def one_bound(name: str, bounds: Mapping[str, float | None]) -> float | None:
    """The bound that is given, by place or by the name of its unit; None where none is.

    Raises:
        LimitError: several are given.
    """
    given = {unit: bound for unit, bound in bounds.items() if bound is not None}
    if len(given) > 1:
        listed = " and ".join(f"{unit}={bound!r}" for unit, bound in given.items())
        raise LimitError(f"a limit on {name} takes one bound: given were {listed}")
    return next(iter(given.values()), None)


def _is_number(value: object) -> bool:
    return isinstance(value, SupportsFloat) and not isinstance(value, bool | str)


class Limitable:
    """A cost that makes limits in its own unit."""

    def at_most(self: Cost, bound: float | None = None, *, fraction: float | None = None) -> Limit:
        """A limit, in the cost's unit or as a fraction of what the unchanged network takes.

        Raises:
            LimitError: both or neither is given; a bound not above 0; a fraction outside (0, 1].
        """
        return Limit(self, bound, fraction)


class WithoutGradient:
    """A cost that a network has to be asked for, so that mixing weights have no expected cost with a gradient."""

    def expected(self: Cost, space: nn.Module) -> NoReturn:
        """Raises LimitError: there is no gradient with respect to the mixing weights."""
        raise LimitError(
            f"{self.name} is measured, so it has no gradient with respect to the mixing weights of "
            f"{type(space).__name__}. Use a method whose estimator has a score-function part, or give the "
            f"search a surrogate with a gradient (archgrad.costs.surrogate.Surrogate fits one; dnal uses MACs) and "
            f"check the {self.name} of what it hands back"
        )


@dataclass(frozen=True)
class BlackBox(Limitable, WithoutGradient):
    """A function of your own as a cost: a figure from a device, energy, the share of wrong answers.

    Args:
        function: from a network to a number. It is called anew for each architecture, so that it may be noisy, and
            counts as measured: it has no gradient.
        name: what records call it: "energy".
        unit: of its figures: "mJ".

    Raises:
        LimitError: `function` cannot be called, or the name is empty.

    Example:
        >>> import torch, archgrad as ag
        >>> layers = ag.black_box(lambda net: len(list(net.modules())), name="modules", unit="modules")
        >>> layers.of(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.ReLU()))
        3.0
        >>> layers.at_most(fraction=0.5)
        Limit(modules at most 50 %)
    """

    function: Callable[[nn.Module], SupportsFloat]
    name: str = field(kw_only=True)
    unit: str = field(kw_only=True)
    measured: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (callable(self.function) and isinstance(self.name, str) and self.name and isinstance(self.unit, str)):
            raise LimitError(
                f"black_box takes a function from a network to a number and a name, given {self.function!r} and "
                f'{self.name!r}; write for instance black_box(joules, name="energy", unit="J")'
            )

    def __repr__(self) -> str:
        return f"black_box({getattr(self.function, '__name__', type(self.function).__name__)}, name={self.name!r})"

    @checked
    def of(self, network: nn.Module) -> float:
        """The function's value for this network.

        Raises:
            ModelError: the function returns no number, or one that is not finite.
        """
        result = self.function(network)
        try:
            value = float(result)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            value = math.nan
        if not math.isfinite(value):
            raise ModelError(
                f"the cost {self.name!r} of {type(network).__name__} is {shown(result, most=80)}; its function has "
                f"to return one finite number (a float, or a tensor with one element)"
            )
        return value


black_box = BlackBox
