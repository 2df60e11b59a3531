"""Numbers that change along a run, as plain functions."""

from __future__ import annotations


def geometric(first: float, last: float, *, step: int, of: int) -> float:
    """Geometric growth that ends on `last`: first * (last / first)^((step + 1) / of), for step = 0 .. of - 1.

    Source: the scale of DNAL's gates (arXiv 2103.02126), one step per epoch, applied before the epoch.
    """
    assert 0 <= step < of
    return last if step == of - 1 else first * (last / first) ** ((step + 1) / of)
