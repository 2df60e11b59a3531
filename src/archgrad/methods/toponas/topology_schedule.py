"""What a search for topology carries from step to step: the passive-aggressive regularizer, and the temperature."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from archgrad.choices.subsets import topologies
from archgrad.errors import ChoiceError, ConfigError
from archgrad.training.schedules import geometric

Reading = Literal["mass", "margin"]


class PassiveAggressive:
    """The passive-aggressive regularizer: 0 and without gradient where a topology is valid enough, a pull elsewhere.

        R = weight * ramp * sum over nodes of PA
        "mass":    PA = max(0, P(invalid) - tolerance)     P(invalid): see `Subsets.invalid`
        "margin":  PA = max(0, margin - (p_1 - p_2))       p_1, p_2: the two largest probabilities of the node

    The published form is not known; these are two readings of its description.

    Args:
        space: with distributions over subsets.
        reading: "mass" asks for the right number of inputs, "margin" for a clear winner.
        tolerance: probability of an invalid subset that is left alone, from 0 to 1.
        margin: lead of the likeliest subset that is asked for, from 0 to 1.
        weight: of the term, 0 or above.
        ramp: calls in which the weight grows from 0.

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
        ramp: int = 0,
    ) -> None:
        if reading not in ("mass", "margin"):
            raise ConfigError(f"reading={reading!r}; allowed are 'mass' and 'margin'")
        for name, value, most in (
            ("tolerance", tolerance, 1.0),
            ("margin", margin, 1.0),
            ("weight", weight, math.inf),
        ):
            if not 0.0 <= value <= most or value == math.inf:
                raise ConfigError(f"{name}={value}: give a finite number from 0{'' if most == math.inf else ' to 1'}")
        found = topologies(space)
        if not found:
            raise ChoiceError(
                f"{type(space).__name__} has no distribution over subsets to regularize; make it by "
                f"archgrad.choices.subsets.topology(space)"
            )
        if reading == "mass" and all(distribution.hard for distribution, _ in found.values()):
            raise ChoiceError(
                "reading='mass' bounds the probability of invalid subsets, and the distributions here have none "
                "(form='table', or hard=True): take reading='margin', or the factorized form without hard"
            )
        self.space, self.reading, self.tolerance, self.margin = space, reading, tolerance, margin
        self.weight, self.ramp, self.done = weight, max(ramp, 1), 0

    def __call__(self) -> Tensor:
        """R at this step: (), with gradient to the logits of the topology; the ramp goes on by one."""
        factor = self.weight * min((self.done + 1) / self.ramp, 1.0)
        self.done += 1
        return factor * self.terms().sum()

    def terms(self) -> Tensor:
        """[nodes] PA, unweighted."""
        found = topologies(self.space).values()
        if self.reading == "mass":
            return torch.relu(torch.stack([d.invalid(live) for d, live in found]) - self.tolerance)
        return torch.relu(self.margin - torch.stack([d.lead(live) for d, live in found]))

    def state_dict(self) -> dict[str, int]:
        """How far the ramp is."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.done = int(state_dict["done"])


class Cooling:
    """Lowers the temperature of all distributions over subsets geometrically: call it before each step of the logits.

    Args:
        space: with distributions over subsets.
        first: temperature at the beginning, above 0.
        last: temperature of the last step, above 0.
        steps: how many times it is called.

    Raises:
        ConfigError: a temperature that is not above 0.
    """

    def __init__(self, space: nn.Module, *, first: float, last: float, steps: int) -> None:
        if not (0.0 < first < math.inf and 0.0 < last < math.inf):
            raise ConfigError(
                f"temperatures from {first} to {last}: give two finite numbers above 0, such as 1 and 0.1"
            )
        self.space, self.first, self.last, self.steps, self.done = space, first, last, max(steps, 1), 0
        self._set(first)

    def __call__(self) -> None:
        """The next temperature; the last one stays."""
        step = min(self.done, self.steps - 1)
        self._set(geometric(self.first, self.last, step=step, of=self.steps))
        self.done += 1

    def _set(self, temperature: float) -> None:
        for distribution, _ in topologies(self.space).values():
            distribution.temperature.fill_(temperature)

    def state_dict(self) -> dict[str, int]:
        """How many calls there were; the temperature itself is the space's."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self.done = int(state_dict["done"])


def figures(space: nn.Module) -> dict[str, float]:
    """What the history shows of the distributions: temperature, mean lead and mean probability of invalid subsets."""
    with torch.no_grad():
        found = list(topologies(space).values())
        leads = [float(distribution.lead(live)) for distribution, live in found]
        invalid = [float(distribution.invalid(live)) for distribution, live in found]
    return {
        "topology_temperature": float(found[0][0].temperature),
        "topology_lead": sum(leads) / len(leads),
        "topology_invalid": sum(invalid) / len(invalid),
    }
