"""What a trial is given and what comes of it, and which errors are failures of its network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from archgrad.choices.architecture import Architecture
from archgrad.errors import ArchgradError, ModelError, NonFiniteError, full_text


@dataclass(frozen=True)
class Job:
    """One trial.

    Attributes:
        name: unique in the run; its randomness is that of (seed, name).
        architecture: what is tried.
        steps: of training.
        first: the step that its data begin at.
        weights: to go on from; None: fresh ones.
        time_fraction: of the run's budget in seconds, if it has one.
        keep: whether the weights that it ends with are wanted.
    """

    name: str
    architecture: Architecture
    steps: int = 0
    first: int = 0
    time_fraction: float = 1.0
    weights: Mapping[str, Tensor] | None = None
    keep: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        figures: what it scored, the score first; empty where it failed.
        weights: those it ended with, where they were wanted.
        where: the process that tried it.
        seconds: how long it took.
        failed: why it failed; empty where it did not.
    """

    figures: dict[str, float] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    where: str = ""
    seconds: float = 0.0
    failed: str = ""

    @property
    def score(self) -> float:
        """The first figure; NaN where the trial failed."""
        return math.nan if self.failed else next(iter(self.figures.values()))


# Runs one trial; it travels to the workers with all that trials share.
RunTrial = Callable[[Job], Outcome]


def reason_of_failure(error: Exception) -> str | None:
    """Why a trial failed; None for an error that is not the network's, which has to be raised."""
    ours = isinstance(error, ArchgradError) and not isinstance(error, NonFiniteError | ModelError)
    if ours or isinstance(error, OSError | MemoryError):
        return None
    return full_text(error)


def checked(outcome: Outcome) -> Outcome:
    """The outcome, failed where its score is NaN or infinite."""
    if outcome.failed or math.isfinite(outcome.score):
        return outcome
    name, score = next(iter(outcome.figures.items()))
    return replace(outcome, figures={}, failed=f"NonFiniteError: its score, {name}, is {score}")
