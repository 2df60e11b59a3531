"""The passive-aggressive regularizer of a search for topology, and its falling temperature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from archgrad.choices.subsets import topologies
from archgrad.errors import ChoiceError, ConfigError

Reading = Literal["mass", "margin"]


class PassiveAggressive:
    """The passive-aggressive regularizer: 0 and without gradient where a topology is valid enough.

        R = weight * min(progress / ramp, 1) * sum over nodes of PA
        "mass":    PA = max(0, P(invalid) - tolerance)     P(invalid): see `Subsets.invalid`
        "margin":  PA = max(0, margin - (p_1 - p_2))       p_1, p_2: the two largest probabilities of the node

    The published form is not known; these are two readings of its description.

    Args:
        space: with distributions over subsets.
        reading: "mass" asks for the right number of inputs, "margin" for a clear winner.
        tolerance: probability of an invalid subset up to which the term is 0, from 0 to 1.
        margin: lead of the likeliest subset that is asked for, from 0 to 1.
        weight: of the term, 0 or above.
        progress: from nothing to the used fraction of the search of the architecture, in [0, 1].
        ramp: part of it over which the weight grows from 0.

    Raises:
        ConfigError: a number out of range, or another reading.
        ChoiceError: there is no distribution over subsets, or "mass" where none can be invalid.

    Source: TopoNAS (arXiv 2011.09300), abstract.
    """

    def __init__(
        self,
        space: nn.Module,
        *,
        reading: Reading = "mass",
        tolerance: float = 0.05,
        margin: float = 0.5,
        weight: float = 1.0,
        progress: Callable[[], float] = lambda: 1.0,
        ramp: float = 0.0,
    ) -> None:
        if reading not in ("mass", "margin"):
            raise ConfigError(f"reading={reading!r}; allowed are 'mass' and 'margin'")
        ranges = (("tolerance", tolerance, 1.0), ("margin", margin, 1.0), ("weight", weight, math.inf))
        for name, value, most in ranges:
            if not 0.0 <= value <= most or value == math.inf:
                raise ConfigError(f"{name}={value}: give a finite number from 0{'' if most == math.inf else ' to 1'}")
        distributions = topologies(space)
        if not distributions:
            raise ChoiceError(
                f"{type(space).__name__} has no distribution over subsets to regularize; make it by "
                f"archgrad.choices.subsets.topology(space)"
            )
        if reading == "mass" and all(distribution.hard for distribution, _ in distributions.values()):
            raise ChoiceError(
                "reading='mass' bounds the probability of invalid subsets, and the distributions here have none "
                "(form='table', or hard=True): take reading='margin', or the factorized form without hard"
            )
        self.space, self.reading, self.tolerance, self.margin = space, reading, tolerance, margin
        self.weight, self.progress, self.ramp = weight, progress, ramp

    def __repr__(self) -> str:
        return f"<PassiveAggressive by {self.reading}, weight {self.weight:g}>"

    def __call__(self) -> Tensor:
        """R at this step: [], with gradient to the logits of the topology."""
        factor = min(self.progress() / self.ramp, 1.0) if self.ramp > 0.0 else 1.0
        return self.weight * factor * self.terms().sum()

    def terms(self) -> Tensor:
        """[nodes] PA, unweighted."""
        distributions = topologies(self.space).values()
        if self.reading == "mass":
            return torch.relu(torch.stack([d.invalid(live) for d, live in distributions]) - self.tolerance)
        return torch.relu(self.margin - torch.stack([d.lead(live) for d, live in distributions]))


def set_temperature(space: nn.Module, first: float, last: float, progress: float) -> None:
    """Set the temperature of all distributions over subsets: first * (last / first)^progress.

    Args:
        space: with distributions over subsets.
        first, last: temperatures at the beginning and at the end.
        progress: used fraction of the search of the architecture, in [0, 1].
    """
    for distribution, _ in topologies(space).values():
        distribution.temperature.fill_(first * (last / first) ** progress)


def figures(space: nn.Module) -> dict[str, float]:
    """What the history shows of the distributions: temperature, mean lead and mean probability of invalid subsets."""
    with torch.no_grad():
        distributions = list(topologies(space).values())
        leads = [float(distribution.lead(live)) for distribution, live in distributions]
        invalid = [float(distribution.invalid(live)) for distribution, live in distributions]
    return {
        "topology_temperature": float(distributions[0][0].temperature),
        "topology_lead": sum(leads) / len(leads),
        "topology_invalid": sum(invalid) / len(invalid),
    }
