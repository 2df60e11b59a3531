"""How far predicted costs are off the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_DIGITS = 12  # what differs beyond them differs by rounding, and is a tie


@dataclass(frozen=True)
class PredictionError:
    """How far predicted costs are off, on architectures that the prediction was not fitted on.

    Attributes:
        rms: root of the mean squared difference, in the cost's unit.
        percent: `rms` in percent of the mean absolute cost; None where that is 0.
        rank: Spearman's rank correlation of predicted and true costs; None where either are all equal.
        tested_on: number of costs compared.
        fitted_on: number of costs that the prediction was fitted on.
    """

    rms: float
    percent: float | None
    rank: float | None
    tested_on: int
    fitted_on: int


def prediction_error(predicted: Sequence[float], true: Sequence[float], *, fitted_on: int) -> PredictionError:
    """The error of predictions, each for the true cost at its place; at least one."""
    guess, truth = np.asarray(predicted, dtype=float), np.asarray(true, dtype=float)
    rms, mean = float(np.sqrt(np.mean((guess - truth) ** 2))), float(np.mean(np.abs(truth)))
    return PredictionError(
        rms=rms,
        percent=100 * rms / mean if mean else None,
        rank=rank_correlation(guess, truth),
        tested_on=len(truth),
        fitted_on=fitted_on,
    )


def rank_correlation(predicted: ArrayLike, true: ArrayLike) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where either are all equal."""
    from scipy.stats import spearmanr  # takes most of a second, which commands that predict nothing should not wait

    rows = _rounded(predicted), _rounded(true)
    if any(np.ptp(row) == 0 for row in rows):
        return None
    return round(float(spearmanr(*rows).statistic), _DIGITS)


def _rounded(values: ArrayLike) -> NDArray[np.float64]:
    row = np.asarray(values, dtype=float)
    return np.round(row / (np.max(np.abs(row)) or 1.0), _DIGITS)
