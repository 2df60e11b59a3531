"""`archgrad bench`: measurements of the mathematics that need no data of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from archgrad.errors import ConfigError
from archgrad.search.variance import variance_lines, variance_report


def bench(name: str, *, seeds: int, quick: bool) -> tuple[dict[str, Any], list[str]]:
    """Run a benchmark; returns it as JSON, and as the lines of a table.

    Raises ConfigError for a name that there is not, or a number of seeds below 1.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"There is no benchmark {name!r}. There are {', '.join(BENCHMARKS)}.")
    if seeds < 1:
        raise ConfigError(f"--seeds: {seeds} was given. Allowed is a whole number from 1 up.")
    # So small tensors are slower on several.
    torch.set_num_threads(1)
    rows, lines = BENCHMARKS[name](seeds, quick)
    return {"name": name, "seeds": seeds, "quick": quick, "torch": torch.__version__, "rows": rows}, lines


def _estimators(seeds: int, quick: bool) -> tuple[list[Any], list[str]]:
    """Bias and variance of the gradient estimators; about half a minute a seed, quick about a second."""
    rows = variance_report(seeds=seeds, calls=50, steps=500, digits=False) if quick else variance_report(seeds=seeds)
    return rows, variance_lines(rows)


BENCHMARKS: dict[str, Callable[[int, bool], tuple[list[Any], list[str]]]] = {"estimators": _estimators}
