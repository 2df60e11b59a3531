"""Rewards for several goals: accuracy and costs of a network as one number, which a policy maximizes.

Acc is the score as a share of a perfect one. A cost C is scaled by the cheapest and the dearest network of the space,
fixed before the search:  En = clip((C - C_lo) / (C_hi - C_lo), 0, 1). Source: MONAS (arXiv 1806.10332), as recalled
and consistent with its abstract, but for the scaling, the means over several costs, and the form of `soft`, which
are ours.

    mixed      R = alpha Acc - (1 - alpha) En
    under      R = Acc     if C < bound       else 0       (power, MACs)
    accurate   R = 1 - En  if Acc >= least    else 0
    soft       R = Acc max(C / bound, 1)^exponent          (after MnasNet, arXiv 1807.11626: recalled)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from archgrad.costs.limits import Cost, Limit
from archgrad.errors import ConfigError, LimitError
from archgrad.report.numbers import amount

Costs = Mapping[str, float]


@runtime_checkable
class Reward(Protocol):
    """From accuracy and costs to a number, higher is better."""

    @property
    def costs(self) -> tuple[Cost, ...]:
        """The costs that the reward depends on."""
        ...

    @property
    def bounds(self) -> Mapping[str, float]:
        """{cost: bound} of the costs that are bounded."""
        ...

    @property
    def lowest(self) -> float:
        """The lowest reward of any network."""
        ...

    def allows(self, costs: Costs) -> bool:
        """Whether a network of these costs can earn more than `lowest`; others need not be trained."""
        ...

    def __call__(self, accuracy: float, costs: Costs, scaled: Costs) -> float:
        """The reward at an accuracy in [0, 1], costs in their units, and scaled to [0, 1]."""
        ...

    def record(self) -> dict[str, Any]:
        """The reward as JSON."""
        ...


@dataclass(frozen=True)
class Mixed:
    """See `mixed`."""

    costs: tuple[Cost, ...]
    alpha: float
    shares: tuple[float, ...]

    @property
    def bounds(self) -> Mapping[str, float]:
        """None."""
        return {}

    @property
    def lowest(self) -> float:
        """No accuracy at the highest cost."""
        return self.alpha - 1.0

    def allows(self, costs: Costs) -> bool:
        """All costs."""
        return True

    def __call__(self, accuracy: float, costs: Costs, scaled: Costs) -> float:
        """alpha Acc - (1 - alpha) sum of share * En."""
        taken = sum(share * scaled[cost.name] for cost, share in zip(self.costs, self.shares, strict=True))
        return self.alpha * accuracy - (1.0 - self.alpha) * taken

    def record(self) -> dict[str, Any]:
        """The reward as JSON."""
        named = {cost.name: share for cost, share in zip(self.costs, self.shares, strict=True)}
        return {"form": "mixed", "alpha": self.alpha, "shares": named}


@dataclass(frozen=True)
class Under:
    """See `under` and `soft`, which has an exponent."""

    limits: tuple[Limit, ...]
    exponent: float | None = None
    lowest: float = 0.0

    @property
    def costs(self) -> tuple[Cost, ...]:
        """Those bounded."""
        return tuple(limit.cost for limit in self.limits)

    @property
    def bounds(self) -> Mapping[str, float]:
        """{cost: bound}."""
        return {limit.cost.name: limit.resolve(math.nan) for limit in self.limits}

    def allows(self, costs: Costs) -> bool:
        """Costs below their bounds; all of them in the soft form."""
        return self.exponent is not None or all(costs[name] < bound for name, bound in self.bounds.items())

    def __call__(self, accuracy: float, costs: Costs, scaled: Costs) -> float:
        """Acc where every cost is below its bound, else 0; softly, Acc * product of max(C / bound, 1)^exponent."""
        if self.exponent is None:
            return accuracy if self.allows(costs) else 0.0
        return accuracy * math.prod(
            math.pow(max(costs[name] / bound, 1.0), self.exponent) for name, bound in self.bounds.items()
        )

    def record(self) -> dict[str, Any]:
        """The reward as JSON."""
        form = {"form": "under"} if self.exponent is None else {"form": "soft", "exponent": self.exponent}
        return form | {"bounds": dict(self.bounds)}


@dataclass(frozen=True)
class Accurate:
    """See `accurate`."""

    costs: tuple[Cost, ...]
    least: float
    lowest: float = 0.0

    @property
    def bounds(self) -> Mapping[str, float]:
        """None."""
        return {}

    def allows(self, costs: Costs) -> bool:
        """All costs."""
        return True

    def __call__(self, accuracy: float, costs: Costs, scaled: Costs) -> float:
        """1 - mean of En where the accuracy is reached, else 0."""
        if accuracy < self.least:
            return 0.0
        return 1.0 - sum(scaled[cost.name] for cost in self.costs) / len(self.costs)

    def record(self) -> dict[str, Any]:
        """The reward as JSON."""
        return {"form": "accurate", "least": self.least, "costs": [cost.name for cost in self.costs]}


def mixed(*costs: Cost, alpha: float = 0.5, shares: Sequence[float] | None = None) -> Mixed:
    """R = alpha Acc - (1 - alpha) sum over costs of share * En; shares are equal unless given.

    It cannot reach parts of the front that are not convex.

    Raises:
        ConfigError: alpha or a share outside of [0, 1], shares that do not sum to 1, or no cost.
    """
    weights = tuple(shares) if shares is not None else (1.0 / max(len(costs), 1),) * len(costs)
    _check_costs(costs)
    if not all(0.0 <= w <= 1.0 for w in (alpha, *weights)) or len(weights) != len(costs):
        raise ConfigError(
            f"mixed with alpha={alpha}, shares={weights}: give numbers in [0, 1], one share for each cost"
        )
    if abs(sum(weights) - 1.0) > 1e-9:
        raise ConfigError(f"mixed with shares={weights}: they sum to {sum(weights):g}; give shares that sum to 1")
    return Mixed(costs, alpha, weights)


def under(*limits: Limit) -> Under:
    """R = Acc if every cost is below (<) its bound, else 0; without limits R = Acc.

    Args:
        limits: such as `archgrad.macs(x).at_most(1e6)`; not as a fraction.

    Raises:
        ConfigError: a bound given as a fraction, or two bounds on one cost.
    """
    _check_limits(limits)
    return Under(limits)


def soft(*limits: Limit, exponent: float = -1.0) -> Under:
    """R = Acc * product over costs of max(C / bound, 1)^exponent: a penalty for costs over their bounds.

    Args:
        limits: as for `under`; the bounds are goals and may be exceeded, unlike the `limit=` of a method.
        exponent: below 0; at -1 what takes twice the bound earns half.

    Raises:
        ConfigError: an exponent that is not below 0, no limit, or what `under` refuses.
    """
    if not -math.inf < exponent < 0.0 or not limits:
        raise ConfigError(f"soft with exponent={exponent} and {len(limits)} limits: give one below 0, and a limit")
    _check_limits(limits)
    return Under(limits, exponent)


def accurate(*costs: Cost, least: float) -> Accurate:
    """R = 1 - mean over costs of En if Acc >= least, else 0.

    Raises:
        ConfigError: `least` outside of [0, 1] (90 % is 0.9), or no cost.
    """
    _check_costs(costs)
    if not 0.0 <= least <= 1.0:
        raise ConfigError(f"accurate with least={least}: give a share in [0, 1], such as 0.9 for 90 %")
    return Accurate(costs, least)


def refuse_conflict(reward: Reward, limit: Limit | None, lowest: Mapping[str, float]) -> None:
    """Raise where a reward contradicts the limit or asks for what the space does not have.

    Args:
        reward: what the search is rewarded by.
        limit: what is handed back keeps it.
        lowest: {cost: the lowest that the space reaches}.

    Raises:
        ConfigError: two different bounds on one cost.
        LimitError: a bound that nothing in the space keeps; the message says the lowest reachable.
    """
    for name, bound in reward.bounds.items():
        if limit is not None and limit.cost.name == name and limit.bound != bound:
            raise ConfigError(
                f"the reward bounds {name} by {amount(bound)}, and there is {limit!r}: they conflict. Leave {name} "
                f"out of the reward (what is over a limit earns nothing in any case), or give the same bound"
            )
        if isinstance(reward, Under) and reward.exponent is None and not lowest[name] < bound:
            raise LimitError(
                f"no network of this space has {name} below {amount(bound)}: the lowest reachable is "
                f"{amount(lowest[name])}; raise the bound, or use archgrad.methods.monas.rewards.soft"
            )


def _check_costs(costs: Sequence[Cost]) -> None:
    names = [cost.name for cost in costs]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"a reward of the costs {names}: give one or more, each once")


def _check_limits(limits: Sequence[Limit]) -> None:
    if any(limit.bound is None for limit in limits):
        raise ConfigError("a reward's bounds are absolute numbers, not fractions: give for instance at_most(1e6)")
    if len({limit.cost.name for limit in limits}) < len(limits):
        raise ConfigError(f"two bounds on one cost among {[limit.cost.name for limit in limits]}; give one")
