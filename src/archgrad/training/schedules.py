"""Schedules: functions of the progress through a budget."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from archgrad.argument_types import checked
from archgrad.errors import ConfigError

# From progress in [0, 1] to a factor on the learning rates.
Schedule = Callable[[float], float]


def cosine(progress: float) -> float:
    """Factor on the learning rate at `progress` in [0, 1]: half a cosine from 1 to 0, after 2 % of linear warm-up."""
    return min(1.0, (progress + 1e-3) / 0.02) * 0.5 * (1.0 + math.cos(math.pi * progress))


@checked
def warm_up_cosine(fraction: float = 0.05, *, last: float = 0.0) -> Schedule:
    """A schedule: linear from 0.01 to 1 over the first `fraction` of the budget, then half a cosine from 1 to `last`.

        30 of 600 epochs of warm-up:            warm_up_cosine(30 / 600)
        from 0.025 to 0.001 without warm-up:    warm_up_cosine(0, last=0.001 / 0.025)

    Raises:
        ConfigError: `fraction` is not in [0, 1), or `last` not in [0, 1].

    Example:
        >>> import archgrad as ag
        >>> schedule = ag.warm_up_cosine(0.1, last=0.5)
        >>> schedule(0.0), schedule(0.1), schedule(1.0)
        (0.01, 1.0, 0.5)
    """
    if not 0.0 <= fraction < 1.0 or not 0.0 <= last <= 1.0:
        raise ConfigError(
            f"warm_up_cosine({fraction!r}, last={last!r}) was given. Allowed are a fraction of the budget from 0 to "
            "below 1 (epochs of warm-up / all epochs) and a last factor from 0 to 1 (last rate / learning rate)."
        )
    return functools.partial(_warm_up_cosine, fraction, last)


def _warm_up_cosine(fraction: float, last: float, progress: float) -> float:
    if progress < fraction:
        return 0.01 + 0.99 * progress / fraction
    return last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * (progress - fraction) / (1.0 - fraction)))


def warm_up(fraction: float) -> Schedule:
    """A schedule: linear from 0.01 to 1 over the first `fraction` of the budget, then 1.

    Example:
        >>> from archgrad.training.schedules import warm_up
        >>> warm_up(0.5)(0.0), warm_up(0.5)(0.75)
        (0.01, 1.0)
    """
    return functools.partial(_warm_up, fraction)


def _warm_up(fraction: float, progress: float) -> float:
    return min(1.0, 0.01 + 0.99 * progress / fraction)


def after(fraction: float, schedule: Schedule) -> Schedule:
    """A schedule: 1 over the first `fraction` of the budget, then the whole of another one over the rest.

    Example:
        >>> from archgrad.training.schedules import after, warm_up_cosine
        >>> schedule = after(0.5, warm_up_cosine(0, last=0.5))
        >>> schedule(0.2), schedule(0.75), schedule(1.0)
        (1.0, 0.75, 0.5)
    """
    return functools.partial(_after, fraction, schedule)


def _after(fraction: float, schedule: Schedule, progress: float) -> float:
    return 1.0 if progress < fraction else schedule((progress - fraction) / (1.0 - fraction))


def constant(progress: float) -> float:
    """The factor 1 throughout."""
    return 1.0


def geometric(first: float, last: float, *, step: int, of: int) -> float:
    """Geometric growth that ends on `last`: first * (last / first)^((step + 1) / of), for step = 0 .. of - 1.

    Source: the scale of DNAL's gates (arXiv 2103.02126), one step per epoch, applied before the epoch.
    """
    assert 0 <= step < of
    return last if step == of - 1 else first * (last / first) ** ((step + 1) / of)
