"""The variance report against closed forms on an enumerated space, and what it says of each estimator."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from estimators import (
    BEST,
    BURN_IN,
    Problem,
    Row,
    enumerated,
    problems,
    variance_lines,
    variance_report,
)
from torch import Tensor

from archgrad.errors import ConfigError


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return variance_report(seeds=2, temperatures=(0.1, 1.0), calls=120, steps=400, digits=False)


def first(name: str = "smooth") -> Problem:
    return next(p for p in problems(0, digits=False) if p.name == name)


def scores(problem: Problem) -> tuple[Tensor, Tensor]:
    """p(z) [architectures] and grad log p(z) [architectures, logits], by hand."""
    q = [torch.softmax(x.detach(), 0) for x in problem.logits]
    picks = list(itertools.product(*[range(len(x)) for x in q]))
    p = torch.stack([math.prod(q[d][i] for d, i in enumerate(pick)) for pick in picks])  # type: ignore[arg-type]
    one_hots = [torch.cat([torch.eye(len(q[d]))[i] - q[d] for d, i in enumerate(pick)]) for pick in picks]
    return p, torch.stack(one_hots)


def variance(problem: Problem, baseline: float) -> float:
    """E|g|^2 - |E g|^2 of the score function, by enumeration."""
    p, s = scores(problem)
    g = (problem.losses - baseline)[:, None] * s
    return float((p[:, None] * g.square()).sum() - (p @ g).square().sum())


@pytest.mark.parametrize("name", ["smooth", "wiggly"])
def test_the_exact_gradient_is_that_of_the_enumeration(name: str) -> None:
    problem = first(name)
    p, s = scores(problem)
    assert len(problem.losses) == 24
    assert torch.allclose(problem.exact(), (p * problem.losses) @ s, atol=1e-12)


def test_the_best_constant_is_the_best() -> None:
    problem = first()
    best = problem.best_constant()
    assert all(variance(problem, best) < variance(problem, best + step) for step in (-0.05, 0.05))


def test_one_choice_is_a_space_too() -> None:
    problem = enumerated("one", lambda w: w[0][:, 0], [torch.zeros(2, dtype=torch.float64, requires_grad=True)])
    assert torch.allclose(problem.exact(), torch.tensor([0.25, -0.25], dtype=torch.float64))


def picked(rows: list[Row], loss: str, estimator: str, temperature: float | None = None) -> list[Row]:
    return [r for r in rows if (r["loss"], r["estimator"], r["temperature"]) == (loss, estimator, temperature)]


@pytest.mark.parametrize("estimator", ["score function", BEST])
def test_measured_variance_is_the_enumerated_one(rows: list[Row], estimator: str) -> None:
    """Within what 120 calls can tell: some 7 %."""
    baseline = 0.0 if estimator == "score function" else first().best_constant()
    measured = float(picked(rows, "smooth", estimator)[0]["variance"])  # type: ignore[arg-type]
    assert measured == pytest.approx(variance(first(), baseline), rel=0.25)
    assert measured != pytest.approx(variance(first(), baseline + 1.0), rel=0.25)


def test_what_is_unbiased_is_measured_so_and_what_is_not_is_not(rows: list[Row]) -> None:
    for row in rows:
        assert row["draws"] == (400 - BURN_IN if "decaying" in str(row["estimator"]) else 2400)
        if row["estimator"] in ("REBAR", "score function", "score function, decaying baseline", BEST):
            assert row["bias"] < 2.5 * row["bias_error"], row  # type: ignore[operator]
    for row in [*picked(rows, "wiggly", "straight-through", 1.0), *picked(rows, "smooth", "Gumbel-softmax", 1.0)]:
        assert row["bias"] > 3.5 * row["bias_error"], row  # type: ignore[operator]


def test_rebar_is_reported_to_lose_where_it_loses(rows: list[Row]) -> None:
    assert all(
        a["variance"] > 2 * b["variance"]  # type: ignore[operator]
        for a, b in zip(picked(rows, "wiggly", "REBAR", 0.1), picked(rows, "wiggly", BEST), strict=True)
    )
    lines = variance_lines(rows)
    (line,) = [x for x in lines if "wiggly" in x and "REBAR" in x and "0.1" in x.split("|")[3]]
    assert line.rstrip(" |").endswith("0 of 2")


def test_rows_are_json_and_lines_a_table(rows: list[Row]) -> None:
    assert json.loads(json.dumps(rows)) == rows
    assert len(rows) == 2 * 2 * (3 + 3 * 2)
    lines = variance_lines(rows)
    assert len(lines) == 2 + 2 * (3 + 3 * 2) and len({len(line) for line in lines}) == 1
    assert {line.count("|") for line in lines} == {9}
    assert len(variance_lines([])) == 2


def test_the_same_call_gives_the_same_rows() -> None:
    a, b = (variance_report(seeds=1, temperatures=(0.4,), calls=3, steps=60, digits=False) for _ in range(2))
    assert a == b


def test_the_supernet_on_digits() -> None:
    *_, digits = problems(0)
    assert digits.name == "digits" and len(digits.losses) == 64
    assert float(digits.losses.min()) < math.log(10) / 2 and float(digits.losses.std()) > 0.01
    p, s = scores(digits)
    assert torch.allclose(digits.exact(), (p * digits.losses) @ s, atol=1e-12)


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"calls": 1}, {"steps": BURN_IN}, {"temperatures": (0.0,)}])
def test_wrong_numbers_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        variance_report(**{"seeds": 1, "calls": 2, "steps": 60, "digits": False, **wrong})  # type: ignore[arg-type]
