"""Random draws under a limit, the ranking of trials, and how good the best of n draws is expected to be."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from archgrad.choices.architecture import Architecture
from archgrad.choices.policies import Uniform
from archgrad.errors import ConfigError, LimitError
from archgrad.report.numbers import amount
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint

MISSES = 500  # draws in a row that are over the limit, or known, before the space is taken for exhausted


def draw_architectures(
    policy: Uniform, run: Run, trials: int, constraint: ArchitectureConstraint | None, *, refused_count: bool = False
) -> list[Architecture]:
    """Different architectures under the limit, drawn once in the run's life; fewer where the space has no more.

    Args:
        policy: what they are drawn from.
        run: begun.
        trials: how many.
        constraint: the limit.
        refused_count: whether what is over the limit counts as one of the trials.

    Raises:
        LimitError: none of those drawn is under the limit.
    """
    texts = run.compute_once("drawn", lambda: _draw(policy, run, trials, constraint, refused_count=refused_count))
    return [Architecture.from_json(text) for text in texts]


def _draw(
    policy: Uniform, run: Run, trials: int, constraint: ArchitectureConstraint | None, *, refused_count: bool
) -> list[str]:
    generator, drawn, missed, refused = run.generator("architectures"), dict[Architecture, None](), 0, 0
    while len(drawn) + (refused if refused_count else 0) < trials and missed < MISSES:
        architecture = policy.sample(generator)
        over = constraint is not None and constraint.price(architecture) > constraint.bound
        if over or architecture in drawn:
            missed, refused = missed + 1, refused + over
        else:
            drawn[architecture], missed = None, 0
    if constraint and not drawn:
        raise LimitError(
            f"none of {missed} architectures drawn at random takes at most "
            f"{amount(constraint.bound, constraint.cost.unit)}, though some of the space do; raise the limit, or "
            f"use a method that searches towards it, such as archgrad.unas"
        )
    return [architecture.to_json() for architecture in drawn]


def ranking(
    rows: Sequence[dict[str, Any]],
    architectures: Sequence[Architecture],
    constraint: ArchitectureConstraint | None,
    *,
    higher: bool = True,
    count: int = 1,
) -> list[int]:
    """The places of the best scores: of the latest round, of equal ones the first to be drawn.

    Args:
        rows: {"score", and "round" where there are rounds} of each; failed trials are left out.
        architectures: of the rows.
        constraint: where its cost is measured, only what still keeps it when measured again is taken.
        higher: whether a higher score is better.
        count: how many, at most.

    Raises:
        LimitError: none kept the limit when it was measured again.
    """
    sign = -1.0 if higher else 1.0
    ranked = [i for i, row in enumerate(rows) if not row.get("failed")]
    order = sorted(ranked, key=lambda i: (-rows[i].get("round", 0), sign * rows[i]["score"], i))
    kept = list(
        itertools.islice((i for i in order if constraint is None or constraint.is_feasible(architectures[i])), count)
    )
    if not kept:
        raise LimitError(
            "none of the architectures tried kept the limit when it was measured again: timings on this machine vary "
            "too much for a limit this tight; raise it, or measure on a machine without other work"
        )
    return kept


def best_so_far(scores: Iterable[float], *, higher: bool = True) -> list[float]:
    """The best of the first 1, 2, ... scores."""
    return list(itertools.accumulate(scores, max if higher else min))


def expected_best(scores: Sequence[float], draws: int, *, higher: bool = True) -> float:
    """The mean of the best of n draws, with replacement, from a table of N scores.

        E = sum over i = 1..N of  a_(i) ((i / N)^n - ((i - 1) / N)^n),   a_(1) the worst score, a_(N) the best

    Raises:
        ConfigError: no score, or no draw.
    """
    if not scores or draws < 1:
        raise ConfigError(f"{len(scores)} scores and draws={draws}: give one or more of each")
    size = len(scores)
    ordered = enumerate(sorted(scores, reverse=not higher), start=1)
    return sum(a * ((i / size) ** draws - ((i - 1) / size) ** draws) for i, a in ordered)


def chance_of_top(fraction: float, draws: int) -> float:
    """1 - (1 - q)^n: the probability that one of n draws is among the best fraction q of all.

    59 draws find one of the best 5 % with a probability of 95 %.

    Raises:
        ConfigError: a fraction outside (0, 1], or no draw.
    """
    if not 0.0 < fraction <= 1.0 or draws < 1:
        raise ConfigError(
            f"fraction={fraction}, draws={draws}: give a fraction above 0 and at most 1, and one or more draws"
        )
    return 1.0 - (1.0 - fraction) ** draws
