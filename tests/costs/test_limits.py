"""Limits: absolute or a fraction, and what is refused."""

from __future__ import annotations

import pytest
import torch

from archgrad.costs.count import macs, params
from archgrad.costs.limits import Limit
from archgrad.errors import LimitError


def test_a_bound_is_absolute_and_a_fraction_is_of_the_reference() -> None:
    assert params().at_most(1000).resolve(5000.0) == 1000
    assert params().at_most(fraction=0.25).resolve(5000.0) == 1250
    assert macs(torch.ones(1, 3)).at_most(fraction=1.0).resolve(7.0) == 7
    limit = macs(torch.ones(1, 3)).at_most(2.5e6)
    assert isinstance(limit, Limit)
    assert (limit.cost.name, limit.cost.unit, limit.cost.measured) == ("macs", "MACs", False)
    assert (params().name, params().unit, params().measured) == ("params", "parameters", False)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, 50, float("nan"), float("inf")])
def test_a_fraction_is_above_zero_and_at_most_one(fraction: float) -> None:
    with pytest.raises(LimitError, match=r"fraction=.* of params: .* give for instance 0.5"):
        params().at_most(fraction=fraction)


@pytest.mark.parametrize("bound", [0, -3.0, float("inf"), float("nan")])
def test_a_bound_is_finite_and_above_zero(bound: float) -> None:
    with pytest.raises(LimitError, match="parameters: give a finite number above 0"):
        params().at_most(bound)


def test_exactly_one_of_both_is_given() -> None:
    for given in ({}, {"bound": 10.0, "fraction": 0.5}):
        with pytest.raises(LimitError, match="not both and not neither"):
            params().at_most(**given)


def test_a_limit_is_frozen() -> None:
    limit = params().at_most(10)
    with pytest.raises(AttributeError):
        limit.bound = 20
