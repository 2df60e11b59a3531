"""Fronts and hypervolumes against brute force."""

from __future__ import annotations

import itertools
import random

import pytest

from archgrad.trials.pareto import front, hypervolume

Points = list[tuple[float, ...]]


def drawn(seed: int, count: int, size: int, *, grid: int = 7) -> Points:
    source = random.Random(seed)
    return [tuple(float(source.randrange(grid)) for _ in range(size)) for _ in range(count)]


def dominated(point: tuple[float, ...], points: Points) -> bool:
    return any(q != point and all(a <= b for a, b in zip(q, point, strict=True)) for q in points)


def cells(points: Points, reference: tuple[float, ...]) -> float:
    """Unit cubes of the grid that some point dominates: for whole coordinates the volume itself."""
    corners = itertools.product(*(range(int(r)) for r in reference))
    return float(sum(any(all(a <= c for a, c in zip(p, corner, strict=True)) for p in points) for corner in corners))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_nothing_dominates_once_each(size: int, seed: int) -> None:
    points = drawn(seed, 40, size)
    kept = [points[i] for i in front(points)]
    assert set(kept) == {p for p in points if not dominated(p, points)}
    assert len(set(kept)) == len(kept)
    assert all(points.index(p) == i for p, i in zip(kept, front(points), strict=True)), "the first of equal ones"


def test_the_order_of_the_points_does_not_matter() -> None:
    points = drawn(1, 50, 3)
    shuffled = random.Random(2).sample(points, len(points))
    assert {points[i] for i in front(points)} == {shuffled[i] for i in front(shuffled)}
    assert hypervolume(points, (7.0,) * 3) == hypervolume(shuffled, (7.0,) * 3)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_the_hypervolume_is_the_number_of_cubes(size: int, seed: int) -> None:
    points, reference = drawn(seed, 12, size), (6.0,) * size  # some points lie on or beyond the reference
    assert hypervolume(points, reference) == cells(points, reference)


def test_a_sum_of_boxes_is_not_the_volume() -> None:
    """The control: boxes overlap, and a dominated point adds nothing."""
    points, reference = [(1.0, 2.0), (2.0, 1.0), (2.0, 2.0)], (4.0, 4.0)
    assert hypervolume(points, reference) == 8.0 == hypervolume(points[:2], reference)
    assert sum(hypervolume([p], reference) for p in points) == 16.0


def test_nothing_commands_nothing() -> None:
    assert front([]) == []
    assert hypervolume([], (1.0, 1.0)) == 0.0 == hypervolume([(1.0, 0.0), (2.0, 2.0)], (1.0, 1.0))
