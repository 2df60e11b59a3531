"""Pareto fronts: the points that no other dominates, and the volume that they dominate."""

from __future__ import annotations

from collections.abc import Sequence

Point = Sequence[float]


def front(points: Sequence[Point]) -> list[int]:
    """The places of the points that no other dominates, in their order; lower is better in every coordinate.

        a dominates b:  a_k <= b_k for all k, and a_k < b_k for some k

    Of equal points the first is kept.
    """
    order = sorted(range(len(points)), key=lambda i: (tuple(points[i]), i))
    kept: list[int] = []
    # In this order no point is dominated by a later one, and equal points are neighbours.
    for i in order:
        if not any(all(a <= b for a, b in zip(points[j], points[i], strict=True)) for j in kept):
            kept.append(i)
    return sorted(kept)


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume of what some point dominates and the reference does not exceed; lower is better.

        volume of the union over points p of  [p_1, r_1] x ... x [p_d, r_d]

    Exact, by slices along the last coordinate: O(n log n) for two coordinates, a factor n for each further one.

    Args:
        points: [n][d]; those that do not lie below the reference in every coordinate add nothing.
        reference: r [d].

    Source: the slicing of While, Hingston, Barone, Huband, "A faster algorithm for calculating hypervolume" (2006).
    """
    inside = [tuple(p) for p in points if all(a < b for a, b in zip(p, reference, strict=True))]
    return _volume([inside[i] for i in front(inside)], tuple(reference))


def _volume(points: list[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    if not points:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(p[0] for p in points)
    points = sorted(points, key=lambda p: p[-1])
    if len(reference) == 2:
        total, height = 0.0, reference[0]
        # In rising order of the last coordinate, a point adds what lies left of all points before it.
        for x, y in points:
            if x < height:
                total += (height - x) * (reference[1] - y)
                height = x
        return total
    total = 0.0
    for place, point in enumerate(points):
        above = points[place + 1][-1] if place + 1 < len(points) else reference[-1]
        if above > point[-1]:
            slice_ = [p[:-1] for p in points[: place + 1]]
            total += (above - point[-1]) * _volume([slice_[i] for i in front(slice_)], reference[:-1])
    return total
