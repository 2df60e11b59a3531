"""The dynamic update schedule of DARTS-PRIME: a step of the architecture where the weights' gradient is small."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from archgrad.errors import ConfigError


class DynamicSchedule:
    """The dynamic schedule: a step of the architecture where the weights' gradient is below a moving threshold.

        F_s    = sum over the weights of (d L_train / d w)^2        trace of the empirical Fisher of the batch mean
        Fbar_s = decay F_s + (1 - decay) Fbar_{s-1},   Fbar_0 = F_0
        before each step:   if 0 < Fbar < theta:  take one,  theta <- theta factor^-f      else  theta <- theta factor

    For any stationary F, the architecture takes a step in 1 / (1 + f) of all steps in the long run. From theta = 1
    its first step comes after about ln F / ln factor steps; an average that began at 0 would let it come too early.

    Args:
        f: about how many steps of the weights there are for one of the architecture.
        decay: of the moving average, g.
        factor: m.
        threshold: theta at the beginning.

    Raises:
        ConfigError: a number out of its range.

    Source: DARTS-PRIME (arXiv 2106.11655), the authors' code.
    """

    def __init__(self, f: float = 10.0, *, decay: float = 0.2, factor: float = 1.05, threshold: float = 1.0) -> None:
        rules = {
            "f": (f, 0.0 < f < math.inf, "a number above 0, such as 10"),
            "decay": (decay, 0.0 < decay <= 1.0, "a number above 0 and at most 1, such as 0.2"),
            "factor": (factor, 1.0 < factor < math.inf, "a number above 1, such as 1.05"),
            "threshold": (threshold, 0.0 < threshold < math.inf, "a number above 0, such as 1"),
        }
        for name, (value, fits, rule) in rules.items():
            if not fits:
                raise ConfigError(f"{name}={value!r} of a dynamic schedule was given; allowed is {rule}")
        self.f, self.decay, self.grows = f, decay, math.log(factor)
        self.average: float | None = None
        self.taken = 0
        # As a logarithm, since nothing bounds it while F is above it.
        self.log_threshold = math.log(threshold)

    def __repr__(self) -> str:
        return f"<DynamicSchedule, f {self.f:g}, {self.taken} steps>"

    def next_batch(self, step: int, progress: float) -> int | None:
        """The number of steps that the architecture has taken, if it takes one now; the threshold moves."""
        if self.average and math.log(self.average) < self.log_threshold:
            self.log_threshold -= self.f * self.grows
            self.taken += 1
            return self.taken - 1
        self.log_threshold += self.grows
        return None

    def observe(self, gradients: Sequence[Tensor | None]) -> None:
        """Take F of a step's gradient into the average."""
        latest = squared_norm(gradients)
        self.average = latest if self.average is None else self.decay * latest + (1.0 - self.decay) * self.average

    def figures(self) -> dict[str, float]:
        """The averaged F and the threshold, as logarithms to base 10."""
        figures = {"log10_threshold": self.log_threshold / math.log(10.0)}
        return figures | ({"log10_fisher": math.log10(self.average)} if self.average else {})

    def state_dict(self) -> dict[str, Any]:
        """What exact resume needs."""
        return {"average": self.average, "log_threshold": self.log_threshold, "taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.average, self.log_threshold, self.taken = state["average"], state["log_threshold"], state["taken"]


def squared_norm(gradients: Sequence[Tensor | None]) -> float:
    """The sum of all squared elements."""
    return float(nn.utils.get_total_norm([g.detach() for g in gradients if g is not None])) ** 2


def weights_fraction_of(f: float) -> float:
    """The part of the training data for the weights: 1 - 1 / (1 + f); the rest is the architecture's.

    One epoch of the weights then reads the rest about once. Source: DARTS-PRIME, the authors' code.
    """
    return 1.0 - 1.0 / (1.0 + f)
