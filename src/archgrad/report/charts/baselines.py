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
    table: Rows = []
    for front in pareto.fronts(record):
        cost = numbers.label(front.cost)
        if front.random:
            table.append((f"as many drawn at random, {cost} against {front.score.label}", _random(front)))
        pairs = [(x, y) for x, y in front.cloud]
        if len(pairs) >= _FEWEST:
            score = numbers.label(front.score.name)
            words = f"rank correlation {_spearman(pairs)} with the {score}, over the {len(pairs)} networks tried"
            table.append((f"{cost} as a proxy", words))
    return [*table, *_trials(record)]


def _random(front: pareto.Front) -> str:
    """The best of random draws beside the best tried; at one cost or less, what was found beside random."""
    ours, theirs = front.score.best(y for _, y in front.cloud), front.score.best(y for _, y in front.random)
    words = f"best {front.score.label} {theirs:.4g}, the search's {ours:.4g}"
    if front.found:
        within = [y for x, y in front.random if x <= front.found[0]]
        random_within = f"{front.score.best(within):.4g}" if within else "none"
        words += f"; at the cost of what was found or less: {random_within}, found {front.found[1]:.4g}"
    return words


def _trials(record: Mapping[str, Any]) -> Rows:
    """How what was found stands among the networks that were tried and scored alike."""
    trials = record.get("trials") or []
    values = (
        [trial.get("score") for trial in trials if isinstance(trial, Mapping)] if isinstance(trials, list) else []
    )
    scores = sorted(score for score in values if numbers.is_number(score))
    if len(scores) < _FEWEST:
        return []
    spread = f"lowest {scores[0]:.4g}, median {np.median(scores):.4g}, highest {scores[-1]:.4g}"
    score = numbers.score(record)
    name = "scores" if score.higher_is_better else f"scores, {score.label}"
    return [("the networks tried", f"{len(scores)} {name}: {spread}")]


def _spearman(pairs: Sequence[tuple[float, float]]) -> str:
    """Spearman's, with ties at their mean rank; scipy's takes a second to import."""
    ranks = np.stack([_ranks(np.array(column)) for column in zip(*pairs, strict=True)])
    if any(np.ptp(column_ranks) == 0 for column_ranks in ranks):
        return "not defined (all alike)"
    return f"{np.corrcoef(ranks)[0, 1]:.2f}"


def _ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray[Any, Any] = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks
