"""Relaxations at their limits and against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, strategies as st

from archgrad.choices.relaxations import (
    GumbelSoftmax,
    Held,
    Open,
    ScaledSigmoid,
    Softmax,
    TwoTemperature,
    scaled_sigmoid,
    softmax,
)
from archgrad.errors import ChoiceError

LOGITS = st.lists(st.floats(-5, 5), min_size=1, max_size=6)


def sigmoid_at(values: list[float], scale: float) -> ScaledSigmoid:
    relaxation = ScaledSigmoid(len(values)).double()
    with torch.no_grad():
        relaxation.logits.copy_(torch.tensor(values, dtype=torch.float64))
        relaxation.scale.fill_(scale)
    return relaxation


def everything(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.bool)


@given(LOGITS, st.sampled_from([1.0, 10.0, 100.0, 1e4]))
def test_the_gate_is_close_to_the_step(values: list[float], scale: float) -> None:
    """Spec 1h-1: |g - 1[s > 0]| <= exp(-scale |s|); g = 1/2 at s = 0."""
    s = torch.tensor(values, dtype=torch.float64)
    g = sigmoid_at(values, scale)(everything(len(values))).detach()
    gap = (g - (s > 0).double()).abs()
    assert bool((gap <= torch.exp(-scale * s.abs()) + 1e-12).all())
    assert bool((g[s == 0] == 0.5).all())
    assert torch.allclose(g, 1 / (1 + torch.exp(-scale * s)), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1e4])
def test_the_gate_starts_at_one_half(scale: float) -> None:
    relaxation = ScaledSigmoid(3)
    relaxation.scale.fill_(scale)
    assert relaxation(everything(3)).tolist() == [0.5, 0.5, 0.5]
    assert (ScaledSigmoid(3).logits == 0).all() and float(ScaledSigmoid(3).scale) == 1.0


@given(LOGITS, st.sampled_from([1.0, 10.0, 100.0, 1e4]))
def test_the_gradient_is_scale_g_one_minus_g(values: list[float], scale: float) -> None:
    relaxation = sigmoid_at(values, scale)
    g = relaxation(everything(len(values)))
    (gradient,) = torch.autograd.grad(g.sum(), relaxation.logits)
    expected = scale * g * (1 - g)
    assert bool(((gradient - expected).abs() <= 1e-12 * scale).all())
    assert bool((gradient <= scale / 4 + 1e-9).all())


def test_the_bound_would_notice_another_scale() -> None:
    s = torch.tensor([0.1], dtype=torch.float64)
    g = sigmoid_at([0.1], 10.0)(everything(1)).detach()
    assert float(1 - g) > math.exp(-100.0 * float(s))


def test_dead_entries_are_exactly_zero_and_learn_nothing() -> None:
    live = torch.tensor([True, False, True])
    for relaxation in (ScaledSigmoid(3), Softmax(3)):
        weights = relaxation(live)
        assert weights[1].item() == 0.0
        (gradient,) = torch.autograd.grad((weights * torch.tensor([1.0, 7.0, 3.0])).sum(), relaxation.logits)
        assert float(gradient[1]) == 0.0
        assert bool(torch.isfinite(gradient).all())
        assert float(gradient.abs().sum()) > 0


@given(LOGITS)
def test_softmax_is_the_softmax_of_the_live(values: list[float]) -> None:
    relaxation = Softmax(len(values) + 1).double()
    with torch.no_grad():
        relaxation.logits.copy_(torch.tensor([*values, 3.0], dtype=torch.float64))
    live = everything(len(values) + 1)
    live[-1] = False
    weights = relaxation(live).detach()
    exponentials = [math.exp(v) for v in values]
    expected = [e / math.fsum(exponentials) for e in exponentials]
    assert weights.tolist()[:-1] == pytest.approx(expected, rel=1e-12)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(weights[-1]) == 0.0


def test_softmax_mixes_evenly_at_first_and_picks_at_last() -> None:
    relaxation = Softmax(4)
    assert relaxation(everything(4)).tolist() == [0.25] * 4
    with torch.no_grad():
        relaxation.logits[2] = 1e4
    assert relaxation(everything(4)).tolist() == [0.0, 0.0, 1.0, 0.0]


def test_a_single_live_candidate_has_weight_one() -> None:
    live = torch.tensor([False, True, False])
    assert Softmax(3)(live).tolist() == [0.0, 1.0, 0.0]


def test_held_weights_do_not_move() -> None:
    kept = torch.tensor([True, False, True])
    held = Held(kept)
    kept.fill_(False)
    assert held(everything(3)).tolist() == [1, 0, 1]
    assert held(torch.tensor([True, True, False])).tolist() == [1, 0, 0]
    assert list(held.parameters()) == []


def test_architecture_parameters_are_the_only_parameters() -> None:
    for make in (scaled_sigmoid, softmax):
        assert [name for name, _ in make(5).named_parameters()] == ["logits"]
    assert set(ScaledSigmoid(5).state_dict()) == {"logits", "scale"}


def test_gumbel_softmax_keeps_its_draw_until_the_next() -> None:
    relaxation = GumbelSoftmax(4, temperature=0.5)
    live = torch.tensor([True, True, False, True])
    assert torch.equal(relaxation(live), Softmax(4)(live))
    relaxation.draw(torch.Generator().manual_seed(0))
    first = relaxation(live)
    assert torch.equal(first, relaxation(live))
    assert first[2] == 0
    assert float(first.detach().sum()) == pytest.approx(1.0)
    relaxation.draw(torch.Generator().manual_seed(1))
    assert not torch.equal(first, relaxation(live))
    assert torch.allclose(relaxation.eval()(live), Softmax(4)(live))


def test_gumbel_softmax_draws_one_hots_by_their_probability() -> None:
    relaxation = GumbelSoftmax(3, temperature=0.01, straight_through=True)
    with torch.no_grad():
        relaxation.logits.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    generator, live, counts = torch.Generator().manual_seed(0), torch.ones(3, dtype=torch.bool), torch.zeros(3)
    for _ in range(3000):
        relaxation.draw(generator)
        weights = relaxation(live).detach()
        assert weights.amax() == 1.0 and weights.sum() == 1.0
        counts += weights
    assert torch.allclose(counts / 3000, torch.tensor([0.5, 0.3, 0.2]), atol=0.035)  # four standard deviations


def test_straight_through_has_the_gradient_of_the_soft_weights() -> None:
    live, value = torch.ones(3, dtype=torch.bool), torch.tensor([1.0, -2.0, 0.5])
    hard, soft = GumbelSoftmax(3, straight_through=True), GumbelSoftmax(3)
    for relaxation in (hard, soft):
        relaxation.draw(torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((r(live) * value).sum(), r.logits)[0] for r in (hard, soft)]
    assert torch.equal(*gradients)


def test_a_temperature_is_above_zero() -> None:
    with pytest.raises(ChoiceError, match="above 0"):
        GumbelSoftmax(3, temperature=0.0)


def test_open_weighs_every_live_candidate_alike() -> None:
    assert Open(3)(torch.tensor([True, False, True])).tolist() == [1.0, 0.0, 1.0]
    assert not list(Open(3).parameters())


def test_two_temperatures_are_hard_forward_soft_backward_and_zero_where_dead() -> None:
    gate = TwoTemperature(4, hard=50.0, soft=1.0)
    with torch.no_grad():
        gate.logits.copy_(torch.tensor([-0.2, 0.0, 0.2, 3.0]))
    value = gate(torch.tensor([True, True, True, False]))
    assert torch.equal(value[:3], torch.sigmoid(50.0 * gate.logits[:3])) and not bool(value[3])
    (slopes,) = torch.autograd.grad(value.sum(), gate.logits)
    soft = torch.sigmoid(gate.logits.detach())
    assert torch.allclose(slopes[:3], (soft * (1 - soft))[:3]) and float(slopes[3]) == 0.0
