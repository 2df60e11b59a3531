"""Numbers that change along a run, as plain functions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

# From progress in [0, 1] to a factor on the learning rates.
Schedule = Callable[[float], float]


def cosine(progress: float) -> float:
    """Share of the learning rate at `progress` in [0, 1]: half a cosine from 1 to 0, after 2 % of linear warm-up."""
    return min(1.0, (progress + 1e-3) / 0.02) * 0.5 * (1.0 + math.cos(math.pi * progress))


def constant(progress: float) -> float:
    """The learning rate as given, throughout."""
    return 1.0


def consecutive(schedule: Schedule, *lengths: int) -> tuple[Schedule, ...]:
    """One schedule cut into consecutive phases of these lengths, each a schedule of its own."""
    total = sum(lengths)
    ends = [sum(lengths[: i + 1]) / total for i in range(len(lengths))]
    return tuple(
        functools.partial(_between, schedule, start, end) for start, end in zip([0.0, *ends], ends, strict=False)
    )


def _between(schedule: Schedule, start: float, end: float, progress: float) -> float:
    return schedule(start + (end - start) * progress)


def geometric(first: float, last: float, *, step: int, of: int) -> float:
    """Geometric growth that ends on `last`: first * (last / first)^((step + 1) / of), for step = 0 .. of - 1.

    Source: the scale of DNAL's gates (arXiv 2103.02126), one step per epoch, applied before the epoch.
    """
    assert 0 <= step < of
    return last if step == of - 1 else first * (last / first) ** ((step + 1) / of)
