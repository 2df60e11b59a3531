"""The options of DARTS-PRIME's parts: activation, update schedule, regularizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

from archgrad.errors import ConfigError
from archgrad.methods.darts_prime.dynamic_schedule import DynamicSchedule
from archgrad.methods.darts_prime.regularizers import Admm, Proximity
from archgrad.run.run import Run
from archgrad.supernets.bilevel import EverySteps


@dataclass(frozen=True)
class DartsPrimeTerms:
    """What constrains the mixture to a discrete architecture, and when the architecture takes a step.

    Attributes:
        activation: "softmax" (v3) or "clipped" (v1, v2).
        schedule: "dynamic" or "static".
        f: steps of the weights for one of the architecture; a whole number for the static schedule.
        threshold: theta at the beginning; the architecture begins at once where it is above the first squared
            gradients, and waits where it is below.
        regularizer: "proximity", "admm" or "none".
        rho: its weight.
        adjusted: each entry of the proximity has a weight s of its own.
        through: whether the gradient of the adjusted proximity goes through s too, as in the authors' code.
        decay: of the logits; default: 1e-3, and 0 for clipped ones, which the 1e-3 of the authors' code drives out.
        pressure: of the limit's penalty, pressure * max(0, expected cost / bound - 1).
        on: what ADMM's targets follow: "activated" weights, or "logits" as in the authors' code.
    """

    activation: Literal["softmax", "clipped"] = "softmax"
    schedule: Literal["dynamic", "static"] = "dynamic"
    f: float = 10
    threshold: float = 1.0
    regularizer: Literal["proximity", "admm", "none"] = "proximity"
    rho: float = 0.1
    adjusted: bool = False
    through: bool = False
    decay: float | None = None
    pressure: float = 1.0
    on: Literal["activated", "logits"] = "activated"

    def __post_init__(self) -> None:
        allowed = {
            "activation": ("softmax", "clipped"), "schedule": ("dynamic", "static"),
            "regularizer": ("proximity", "admm", "none"),
        }  # fmt: skip
        for name, names in allowed.items():
            if getattr(self, name) not in names:
                raise ConfigError(f"{name}={getattr(self, name)!r} was given; allowed are {', '.join(names)}")

        if self.through and not self.adjusted:
            raise ConfigError("through=True was given without adjusted=True; only the adjusted proximity has weights")
        if self.decay is not None and not 0.0 <= self.decay < math.inf:
            raise ConfigError(f"decay={self.decay!r} was given; allowed is a number from 0 up, such as 1e-3, or None")

    @property
    def clipped(self) -> bool:
        """Whether mixing weights are clipped logits."""
        return self.activation == "clipped"

    def update_schedule(self) -> DynamicSchedule | EverySteps:
        """A new schedule of the architecture's steps."""
        if self.schedule == "dynamic":
            return DynamicSchedule(self.f, threshold=self.threshold)
        return EverySteps(self.f)  # type: ignore[arg-type]

    @property
    def weight_decay(self) -> float:
        """The decay of the logits."""
        if self.decay is not None:
            return self.decay
        return 0.0 if self.clipped else 1e-3

    @property
    def least_steps(self) -> int:
        """Steps of the weights that a search needs for one of the architecture."""
        return int(self.f) if self.schedule == "static" else 1

    def term(self, space: nn.Module, run: Run) -> Proximity | Admm:
        """A new regularizer of a relaxed space; of weight 0 for "none"."""
        if self.regularizer == "admm":
            return Admm(space, rho=self.rho, on=self.on)
        rho = self.rho if self.regularizer == "proximity" else 0.0
        return Proximity(space, rho=rho, progress=lambda: run.progress, adjusted=self.adjusted, through=self.through)
