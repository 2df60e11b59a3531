"""Scores of several proxies joined over a population of networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from archgrad.errors import ConfigError

Scores = Mapping[str, Sequence[float]]


def rank_vote(scores: Scores, weights: Mapping[str, float] | None = None) -> list[float]:
    """Each network's mean rank over the proxies; 1 is the best, so a LOWER one is better.

        rank_i = sum_k weight_k * rank_k,i / sum_k weight_k

    A proxy's highest score has rank 1, equal scores share the mean of their ranks, NaN comes last. Negate the
    scores of a proxy of which a lower one is better (`ntk_condition`).

    Args:
        scores: for each proxy one score a network, in one order.
        weights: for each proxy how much it counts; None for all alike.

    Raises:
        ConfigError: no proxy, no network, lists of different lengths, or weights that are missing, foreign,
            negative, not finite, or all 0.
    """
    table = _table(scores)
    weight_of = dict.fromkeys(scores, 1.0) if weights is None else dict(weights)
    if set(weight_of) != set(scores):
        raise ConfigError(f"weights for {sorted(weight_of)}, scores of {sorted(scores)}: give one weight a proxy")
    if not all(math.isfinite(w) and w >= 0 for w in weight_of.values()) or not sum(weight_of.values()) > 0:
        raise ConfigError(f"weights {weight_of}: give finite numbers from 0 up, of which one is above 0")
    factors = np.array([weight_of[name] for name in table])
    ranks = np.stack([_ranks(column) for column in table.values()])
    return [float(r) for r in factors @ ranks / factors.sum()]


def te_nas(conditions: Sequence[float], regions: Sequence[float]) -> list[float]:
    """TE-NAS's sum of the ranks of -`ntk_condition` and `linear_regions`; a LOWER one is better [S10].

        rank(-kappa) + rank(R_N)

    Raises:
        ConfigError: no network, or lists of different lengths.
    """
    joined = rank_vote({"kappa": [-float(c) for c in conditions], "regions": regions})
    return [2 * rank for rank in joined]


def az_nas(scores: Scores) -> list[float]:
    """AZ-NAS's score over a population of m networks; a higher one is better [S7].

        sum_k log(rank_k / m),  rank_k = m for the best

    Published for `expressivity`, `progressivity`, `trainability` and `macs`; Kendall's tau on CIFAR-10 cells of
    NAS-Bench-201 0.741 (executed notebook, one seed).

    Raises:
        ConfigError: no proxy, no network, or lists of different lengths.
    """
    ranks = np.stack([_ranks(column) for column in _table(scores).values()])
    networks = ranks.shape[1]
    return [float(s) for s in np.log((networks + 1 - ranks) / networks).sum(axis=0)]


def _table(scores: Scores) -> dict[str, NDArray[np.float64]]:
    table = {name: np.asarray(column, dtype=np.float64) for name, column in scores.items()}
    shapes = {name: column.shape for name, column in table.items()}
    if not table or len(set(shapes.values())) != 1 or any(len(s) != 1 or not s[0] for s in shapes.values()):
        raise ConfigError(f"scores of shapes {shapes}: give each proxy one score a network, all lists of one length")
    return table


def _ranks(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, the highest first, ties averaged, NaN last."""
    # NaN are equal to each other in `unique`, and sort behind every number.
    _, places, counts = np.unique(-column, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places])
