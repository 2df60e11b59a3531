"""Drawing architectures: evenly, under a limit, counted; closed forms of the best of n."""

from __future__ import annotations

import collections
import itertools
import statistics

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.policies import Uniform
from archgrad.errors import ConfigError, LimitError
from archgrad.run.run import Run
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.trials.random_sampling import best_so_far, chance_of_top, draw_architectures, expected_best, ranking

CHI2_23 = 49.73  # of 23 degrees of freedom, exceeded once in a thousand


class Points(nn.Module):
    """2 x 3 x 4 = 24 architectures of linear layers, so that parameters are counted by hand."""

    WIDTHS = ((1, 2), (1, 2, 3), (1, 2, 3, 4))

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            ag.OpChoice({f"{n}": nn.Sequential(nn.Linear(4, n), nn.Linear(n, 4)) for n in row}, name=f"p{i}")
            for i, row in enumerate(self.WIDTHS)
        )

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x

    @classmethod
    def params(cls, architecture: ag.Architecture) -> int:
        """4 n + n + 4 n + 4 for each layer of n hidden units."""
        return sum(9 * row[architecture[f"p{i}"]] + 4 for i, row in enumerate(cls.WIDTHS))


def run(seed: int = 0) -> Run:
    made = Run(seed=seed, device="cpu", progress=False)
    made.begin("test", {})
    return made


def under(bound: float) -> ArchitectureConstraint:
    return ArchitectureConstraint(Points(), ag.params().at_most(bound))


def test_draws_are_even_and_a_bent_sampler_is_found_out() -> None:
    policy, generator = Uniform(Points()), torch.Generator().manual_seed(0)

    def chi2(draws: list[ag.Architecture]) -> float:
        counts = collections.Counter(tuple(sorted(a.items())) for a in draws)
        assert len(counts) == 24
        return sum((n - 100) ** 2 / 100 for n in counts.values())

    even = [policy.sample(generator) for _ in range(2400)]
    assert chi2(even) < CHI2_23
    bent = [a if a["p1"] or i % 4 else ag.Architecture({**a, "p1": 1}) for i, a in enumerate(even)]
    assert chi2(bent) > CHI2_23


def test_one_seed_draws_the_same_and_another_others() -> None:
    first, again, other = (draw_architectures(Uniform(Points()), run(seed), 10, None) for seed in (3, 3, 4))
    assert first == again != other
    assert len(set(first)) == 10


def test_the_limit_is_by_a_count_by_hand() -> None:
    every = [
        ag.Architecture({f"p{i}": p for i, p in enumerate(picks)})
        for picks in itertools.product(*map(range, (2, 3, 4)))
    ]
    bound = 60
    small = {a for a in every if Points.params(a) <= bound}
    assert 0 < len(small) < 24
    assert set(draw_architectures(Uniform(Points()), run(), 24, under(bound))) == small


def test_refused_draws_cost_no_trial_unless_they_are_to() -> None:
    free = draw_architectures(Uniform(Points()), run(), 8, under(66))
    paid = draw_architectures(Uniform(Points()), run(), 8, under(66), refused_count=True)
    assert len(free) == 8 and all(Points.params(a) <= 66 for a in free)
    assert paid == free[: len(paid)] and 0 < len(paid) < 8


def test_nothing_under_the_limit_among_the_draws_is_an_error() -> None:
    with pytest.raises(LimitError, match="none of 1 architectures drawn at random takes at most 39"):
        draw_architectures(Uniform(Points()), run(1), 1, under(39), refused_count=True)


def test_the_best_so_far_never_falls() -> None:
    scores = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    best = best_so_far(scores)
    assert all(a <= b for a, b in itertools.pairwise(best))
    assert best[0] == scores[0] and best[-1] == max(scores)


@pytest.mark.parametrize("draws", [1, 3, 10])
def test_the_expected_best_is_what_simulation_says(draws: int) -> None:
    g = torch.Generator().manual_seed(draws)
    table = torch.rand(30, generator=g, dtype=torch.float64)
    best = table[torch.randint(30, (200_000, draws), generator=g)].amax(dim=1)
    assert expected_best(table.tolist(), draws) == pytest.approx(float(best.mean()), abs=5 * float(best.std()) / 447)
    assert expected_best(table.tolist(), 1) == pytest.approx(statistics.mean(table.tolist()))
    assert expected_best(table.tolist(), 10_000) == pytest.approx(float(table.max()), abs=1e-6)


def test_fifty_nine_draws_reach_the_best_twentieth_with_95_percent() -> None:
    assert chance_of_top(0.05, 59) > 0.95 > chance_of_top(0.05, 58)
    assert chance_of_top(1.0, 1) == 1.0


@pytest.mark.parametrize("call", [lambda: expected_best([], 3), lambda: expected_best([1.0], 0),
                                  lambda: chance_of_top(0.0, 3), lambda: chance_of_top(0.5, 0)])  # fmt: skip
def test_numbers_without_meaning_are_refused(call: object) -> None:
    with pytest.raises(ConfigError, match="give"):
        call()  # type: ignore[operator]


def test_a_later_round_ranks_before_a_higher_score_and_the_first_of_equals_first() -> None:
    rows = [{"score": s, "round": n} for s, n in ((0.9, 0), (0.5, 1), (0.6, 1), (0.6, 1))]
    tried = draw_architectures(Uniform(Points()), run(), 4, None)
    assert ranking(rows, tried, None, count=3) == [2, 3, 1]
    assert ranking([{"score": s} for s in (0.1, 0.3, 0.3)], tried, None) == [1]
