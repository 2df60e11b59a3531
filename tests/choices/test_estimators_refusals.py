"""What the estimators refuse, and how they say it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from archgrad.choices.estimators import (
    DecayingBaseline,
    entropy,
    log_probability,
    one_hot,
    pathwise,
    rebar,
    score_function,
    soften,
)
from archgrad.errors import ChoiceError, ConfigError, NonFiniteError

SIZES = (3, 2, 4)


def logits_of(sizes: tuple[int, ...]) -> list[Tensor]:
    return [torch.zeros(k, dtype=torch.float64, requires_grad=True) for k in sizes]


def every(sizes: tuple[int, ...]) -> list[Tensor]:
    picks = torch.cartesian_prod(*[torch.arange(k) for k in sizes])
    return [torch.eye(k, dtype=torch.float64)[picks[:, d]] for d, k in enumerate(sizes)]


def smooth(weights: list[Tensor]) -> Tensor:
    return weights[0][:, 0] ** 2 + weights[-1][:, 1]


def table(weights: list[Tensor]) -> Tensor:
    return weights[0].argmax(-1).double()


BAD_LOGITS = [
    [], torch.zeros(3), [torch.zeros(2, 2)], [torch.zeros(0)], [torch.zeros(3, dtype=torch.long)], [0.5, 1.0],
    [torch.zeros(2), torch.tensor([math.nan, 0.0])], [torch.tensor([math.inf, 0.0])],
    [torch.zeros(2), torch.full((2,), -math.inf)],
]  # fmt: skip


@pytest.mark.parametrize("logits", BAD_LOGITS, ids=range(len(BAD_LOGITS)))
def test_wrong_logits_are_refused(logits: list[Tensor]) -> None:
    for call in (
        lambda: rebar(smooth, logits, temperature=1.0, samples=2),
        lambda: score_function(smooth, logits, samples=2),
        lambda: one_hot(logits, samples=2),
        lambda: entropy(logits),
        lambda: soften(logits, 0.1),
    ):
        with pytest.raises(ChoiceError, match=r"give a list with one|allowed are finite numbers"):
            call()


def test_wrong_options_are_refused() -> None:
    logits = logits_of(SIZES)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="temperature="):
            rebar(smooth, logits, temperature=temperature, samples=2)
    for samples in (0, -3, 2.5):
        with pytest.raises(ConfigError, match="samples="):
            score_function(smooth, logits, samples=samples)  # type: ignore[arg-type]
    for eps in (-0.1, math.nan, math.inf):
        with pytest.raises(ConfigError, match="eps="):
            soften(logits, eps)
    for decay in (-0.1, 1.0, math.nan):
        with pytest.raises(ConfigError, match="decay="):
            DecayingBaseline(decay)
    for hard in ([], every(SIZES)[:2], every((2, 3, 4)), [every(SIZES)[0][:3], *every(SIZES)[1:]]):
        with pytest.raises(ChoiceError, match="one-hots of shapes"):
            log_probability(logits, hard)


def test_wrong_losses_are_refused_with_their_shape() -> None:
    logits = logits_of(SIZES)
    with pytest.raises(ChoiceError, match=r"is \(\); give a tensor of shape \(5,\)"):
        rebar(lambda w: smooth(w).mean(), logits, temperature=1.0, samples=5)
    with pytest.raises(ChoiceError, match=r"is \(5, 1\)"):
        score_function(lambda w: smooth(w)[:, None], logits, samples=5)
    with pytest.raises(ChoiceError, match="is float"):
        pathwise(lambda w: 1.0, logits, temperature=1.0, samples=5)  # type: ignore[arg-type,return-value]
    with pytest.raises(NonFiniteError, match="5 of 5 samples"):
        score_function(lambda w: smooth(w) / 0, logits, samples=5)
    with pytest.raises(NonFiniteError, match="relaxed weights"):
        rebar(smooth, logits, temperature=1.0, samples=5, relaxed=lambda w: smooth(w) * math.nan)
    with pytest.raises(ChoiceError, match=r"baseline has shape \(4,\)"):
        score_function(smooth, logits, samples=5, baseline=torch.zeros(4))


def test_a_loss_without_gradient_is_no_control_variate() -> None:
    """The table read at the argmax of zeta equals L(z): without this check the gradient would be 0 in silence."""
    logits = logits_of(SIZES)
    with pytest.raises(ChoiceError, match=r"give relaxed="):
        rebar(table, logits, temperature=1.0, samples=5)
    with pytest.raises(ChoiceError, match="use score_function"):
        pathwise(table, logits, temperature=1.0, samples=5)
    with torch.no_grad():
        assert rebar(table, logits, temperature=1.0, samples=5).isfinite()
