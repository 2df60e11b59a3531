"""What a result is held against: random draws of the same number, and what the size of a network alone would tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from archgrad.report import numbers
from archgrad.report.charts import pareto

Rows = list[tuple[str, str]]
_FEWEST = 4


def rows(record: Mapping[str, Any]) -> Rows:
    """Each control, and what it came to; none where the record holds nothing to compare with.

    Raises:
        RunError: a part of the record is of another kind than it should be.
    """
    found: Rows = []
    for one in pareto.fronts(record):
        cost = numbers.label(one.cost)
        if one.random:
            found.append((f"as many drawn at random, {cost} against {one.score.label}", _random(one)))
        pairs = [(x, y) for x, y in one.cloud]
        if len(pairs) >= _FEWEST:
            score = numbers.label(one.score.name)
            told = f"rank correlation {_spearman(pairs)} with the {score}, over the {len(pairs)} networks tried"
            found.append((f"{cost} as a proxy", told))
    return [*found, *_trials(record)]


def _random(one: pareto.Front) -> str:
    """The best of random draws beside the best tried; at one cost or less, what was found beside random."""
    ours, theirs = one.score.best(y for _, y in one.cloud), one.score.best(y for _, y in one.random)
    told = f"best {one.score.label} {theirs:.4g}, the search's {ours:.4g}"
    if one.found:
        within = [y for x, y in one.random if x <= one.found[0]]
        beside = f"{one.score.best(within):.4g}" if within else "none"
        told += f"; at the cost of what was found or less: {beside}, found {one.found[1]:.4g}"
    return told


def _trials(record: Mapping[str, Any]) -> Rows:
    """How what was found stands among the networks that were tried and scored alike."""
    trials = record.get("trials") or []
    given = [one.get("score") for one in trials if isinstance(one, Mapping)] if isinstance(trials, list) else []
    scores = sorted(score for score in given if numbers.is_number(score))
    if len(scores) < _FEWEST:
        return []
    spread = f"lowest {scores[0]:.4g}, median {np.median(scores):.4g}, highest {scores[-1]:.4g}"
    score = numbers.score(record)
    name = "scores" if score.higher_is_better else f"scores, {score.label}"
    return [("the networks tried", f"{len(scores)} {name}: {spread}")]


def _spearman(pairs: Sequence[tuple[float, float]]) -> str:
    """Spearman's, with ties at their mean rank; scipy's takes a second to import."""
    ranks = np.stack([_ranks(np.array(column)) for column in zip(*pairs, strict=True)])
    if any(np.ptp(one) == 0 for one in ranks):
        return "not defined (all alike)"
    return f"{np.corrcoef(ranks)[0, 1]:.2f}"


def _ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray[Any, Any] = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks
