"""How far predicted prices are off the true ones."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_DIGITS = 12  # what differs beyond them differs by rounding, and is a tie


@dataclass(frozen=True)
class Misfit:
    """How far predicted prices are off on architectures that the prediction was not made from.

    Attributes:
        rms: root of the mean squared difference, in the cost's unit.
        percent: `rms` in percent of the mean absolute price; None where that is 0.
        rank: Spearman's rank correlation of predicted and true prices; None where either are all equal.
        tested_on: number of prices compared.
        fitted_on: number of prices that the prediction was made from.
    """

    rms: float
    percent: float | None
    rank: float | None
    tested_on: int
    fitted_on: int


def misfit(predicted: Sequence[float], true: Sequence[float], *, fitted_on: int) -> Misfit:
    """The misfit of predictions, each for the true price at its place; at least one."""
    guess, truth = np.asarray(predicted, dtype=float), np.asarray(true, dtype=float)
    rms, mean = float(np.sqrt(np.mean((guess - truth) ** 2))), float(np.mean(np.abs(truth)))
    return Misfit(
        rms=rms,
        percent=100 * rms / mean if mean else None,
        rank=rank_correlation(guess, truth),
        tested_on=len(truth),
        fitted_on=fitted_on,
    )


def rank_correlation(one: ArrayLike, other: ArrayLike) -> float | None:
    """Spearman's rank correlation of two rows of figures, ties at their mean rank; None where a row is constant."""
    first, second = _ranks(one), _ranks(other)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return statistics.correlation(first.tolist(), second.tolist())


def _ranks(figures: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(figures, dtype=float)
    scale = np.max(np.abs(values)) or 1.0
    _, places, counts = np.unique(np.round(values / scale, _DIGITS), return_inverse=True, return_counts=True)
    mean = np.asarray(np.cumsum(counts) - (counts - 1) / 2)
    ranks: NDArray[np.float64] = mean[places]
    return ranks
