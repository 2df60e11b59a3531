"""Estimators against exact gradients by enumeration, with controls that must fail the same criterion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from archgrad.choices.estimators import (
    CLAMP,
    DecayingBaseline,
    control_variate,
    draw,
    entropy,
    gumbel,
    log_probability,
    one_hot,
    pathwise,
    rebar,
    resample,
    score_function,
    soften,
)
from archgrad.errors import NonFiniteError

SIZES = (3, 2, 4)
CALLS, SAMPLES = 400, 500
CRITERION = 4.5  # standard errors, on each of the 9 logits
TABLE = torch.rand(*SIZES, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(sizes: tuple[int, ...] = SIZES, *, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = seeded(11)
    return [torch.randn(k, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for k in sizes]


def smooth(weights: list[Tensor]) -> Tensor:
    """Nonlinear, with products across choices."""
    flat = torch.cat(weights, -1)
    a = torch.linspace(-1.5, 2.0, flat.shape[-1], dtype=flat.dtype)
    return 1 + (flat @ a) ** 2 + torch.tanh(3 * weights[0][:, 0] * weights[-1][:, 1] - flat @ a.flip(0))


def table(weights: list[Tensor]) -> Tensor:
    """A black box: reads the picks, has no gradient."""
    return TABLE[tuple(w.argmax(-1) for w in weights)]


def every(sizes: tuple[int, ...]) -> list[Tensor]:
    picks = torch.tensor(list(itertools.product(*map(range, sizes))))
    return [torch.eye(k, dtype=torch.float64)[picks[:, d]] for d, k in enumerate(sizes)]


def exact(loss: Callable[[list[Tensor]], Tensor], logits: list[Tensor]) -> Tensor:
    """grad sum_z p(z) L(z), by products of probabilities, without the code under test."""
    z = every(tuple(len(x) for x in logits))
    p = math.prod((w * torch.softmax(x, 0)).sum(-1) for w, x in zip(z, logits, strict=True))
    return torch.cat(torch.autograd.grad((p * loss(z)).sum(), logits))


def worst(estimate: Callable[[torch.Generator], Tensor], truth: Tensor, logits: list[Tensor]) -> float:
    """The largest distance of the mean gradient from the truth, in standard errors."""
    g = seeded(5)
    found = torch.stack([torch.cat(torch.autograd.grad(estimate(g), logits)) for _ in range(CALLS)])
    error = found.std(0) / math.sqrt(CALLS)
    return float(((found.mean(0) - truth).abs() / error).max())


@pytest.mark.parametrize("temperature", [0.2, 0.7])
@pytest.mark.parametrize("loss", [smooth, table])
def test_rebar_is_unbiased(loss: Callable[[list[Tensor]], Tensor], temperature: float) -> None:
    """Spec 2h-1 and 2h-4; for the table, c is a function that has nothing to do with it."""
    logits = logits_of()
    relaxed = smooth if loss is table else None
    off = worst(
        lambda g: rebar(loss, logits, temperature=temperature, samples=SAMPLES, generator=g, relaxed=relaxed),
        exact(loss, logits), logits,
    )  # fmt: skip
    assert off < CRITERION


@pytest.mark.parametrize("loss", [smooth, table])
def test_the_score_function_is_unbiased(loss: Callable[[list[Tensor]], Tensor]) -> None:
    logits = logits_of()
    off = worst(
        lambda g: score_function(loss, logits, samples=SAMPLES, generator=g, baseline=1.7),
        exact(loss, logits), logits,
    )  # fmt: skip
    assert off < CRITERION


def test_rebar_stays_unbiased_with_softened_logits_and_a_baseline() -> None:
    """log p and the draw use the same softened logits; the gradient goes through the softening."""
    logits = logits_of()
    truth = exact(smooth, soft := soften(logits, 0.08))
    truth = torch.cat(torch.autograd.grad(soft, logits, list(truth.split(SIZES))))

    def estimate(g: torch.Generator) -> Tensor:
        return rebar(smooth, soften(logits, 0.08), temperature=0.4, samples=SAMPLES, generator=g, baseline=0.5)

    assert worst(estimate, truth, logits) < CRITERION


def test_rebar_without_its_correction_fails() -> None:
    """Negative control: the gradient of c(zeta) in full, without - grad c(zeta~)."""
    logits = logits_of()

    def estimate(g: torch.Generator) -> Tensor:
        sample = draw(logits, temperature=0.7, samples=SAMPLES, generator=g)
        with torch.no_grad():
            hard = smooth(sample.hard)
        return control_variate(hard, smooth(sample.relaxed), sample.log_probability)

    assert worst(estimate, exact(smooth, logits), logits) > 2 * CRITERION


def test_a_correction_that_forgets_the_condition_fails() -> None:
    """Negative control: zeta~ moves as if z had not been given, so grad c(zeta~) cancels grad c(zeta)."""
    logits = logits_of()

    def estimate(g: torch.Generator) -> Tensor:
        sample = draw(logits, temperature=0.7, samples=SAMPLES, generator=g)
        with torch.no_grad():
            hard = smooth(sample.hard)
        return control_variate(hard, smooth(sample.relaxed).detach(), sample.log_probability)

    assert worst(estimate, exact(smooth, logits), logits) > 2 * CRITERION


@pytest.mark.parametrize("straight_through", [False, True])
def test_gumbel_softmax_fails(straight_through: bool) -> None:
    """Negative control: it is biased, and the criterion sees it."""
    logits = logits_of()
    off = worst(
        lambda g: pathwise(
            smooth, logits, temperature=0.7, samples=SAMPLES, generator=g, straight_through=straight_through
        ),
        exact(smooth, logits), logits,
    )  # fmt: skip
    assert off > 2 * CRITERION


def test_same_noise_resample_equals_the_sample() -> None:
    """Spec 2h-2: zeta~ = zeta to 1e-10, the same argmax, and no gradient through the pick's own y~."""
    logits = logits_of((5, 3))
    sample = draw(logits, temperature=0.4, samples=2000, generator=seeded())
    for hard, relaxed, conditional, mixed in zip(
        sample.hard, sample.relaxed, sample.conditional, sample.mixed, strict=True
    ):
        assert (relaxed - conditional).abs().max() < 1e-10
        assert torch.equal(conditional.argmax(-1), hard.argmax(-1)) and torch.equal(mixed, relaxed)
        assert set(hard.unique().tolist()) == {0.0, 1.0} and not hard.requires_grad
    log_q = torch.log_softmax(logits[0], 0)
    y = resample(log_q, gumbel((1000, 5), generator=seeded()))
    pick = y.argmax(-1, keepdim=True)
    (gradient,) = torch.autograd.grad(y.gather(-1, pick).sum(), log_q, retain_graph=True)
    assert not gradient.any()
    (gradient,) = torch.autograd.grad(y.sum(), log_q)
    assert bool(gradient.abs().min() > 0.1)


def test_resample_is_the_formula_of_the_specification() -> None:
    """log v_k* = log u_k*/q_k*, log v_k = log u_k - q_k log v_k*; y~_k = -log(-log v_k / q_k - log v_k*)."""
    log_q = torch.log_softmax(logits_of((5,))[0], 0)
    noise = gumbel((300, 5), generator=seeded())
    log_u, pick = -torch.exp(-noise), (log_q + noise).argmax(-1, keepdim=True)
    q = log_q.exp()
    v_pick = (log_u / q).gather(-1, pick).detach()
    v = (log_u - q * v_pick).detach()
    expected = (-torch.log(-v / q - v_pick)).scatter(-1, pick, -torch.log(-v_pick))
    found = resample(log_q, noise)
    cotangent = torch.randn(300, 5, generator=seeded(), dtype=torch.float64)
    gradients = [torch.autograd.grad(y, log_q, cotangent, retain_graph=True)[0] for y in (expected, found)]
    assert torch.allclose(found, expected, atol=1e-10) and torch.allclose(*gradients, rtol=1e-8)


@pytest.mark.parametrize("temperature", [0.1, 0.4, 2.0])
def test_two_candidates_are_a_logistic(temperature: float) -> None:
    """Spec 2h-3: softmax((l + gumbel)/tau)[0] = sigmoid((l0 - l1 + logistic)/tau), logistic = g0 - g1."""
    logits = logits_of((2,))
    noise = gumbel((1000, 1, 2), generator=seeded())[:, 0]
    relaxed = draw(logits, temperature=temperature, samples=1000, generator=seeded()).relaxed[0]
    logistic = noise[:, 0] - noise[:, 1]
    assert (relaxed[:, 0] - torch.sigmoid((logits[0][0] - logits[0][1] + logistic) / temperature)).abs().max() < 1e-12


def gradient_of(scalar: Tensor, logits: list[Tensor]) -> Tensor:
    return torch.cat(torch.autograd.grad(scalar, logits))


def test_no_control_variate_is_the_score_function_exactly() -> None:
    logits = logits_of()
    zero = rebar(
        table, logits, temperature=0.4, samples=64, generator=seeded(), baseline=2.0,
        relaxed=lambda weights: torch.zeros(len(weights[0]), dtype=torch.float64),
    )  # fmt: skip
    plain = score_function(table, logits, samples=64, generator=seeded(), baseline=2.0)
    assert torch.equal(gradient_of(zero, logits), gradient_of(plain, logits)) and zero.item() == plain.item()
    z = one_hot(logits, samples=64, generator=seeded())
    assert plain.item() == table(z).mean().item()
    scores = torch.cat([w - torch.softmax(x, 0) for w, x in zip(z, logits, strict=True)], -1)
    by_hand = ((table(z) - 2.0)[:, None] * scores).mean(0)
    assert torch.allclose(gradient_of(score_function(table, logits, samples=64, generator=seeded(), baseline=2.0),
                                      logits), by_hand, atol=1e-12)  # fmt: skip


def test_the_one_evaluation_form_is_the_gradient_of_the_definition() -> None:
    """(L(z) - c - b) grad log p + grad c(zeta) - grad c(zeta~), with c evaluated twice."""
    logits = logits_of()
    found = gradient_of(
        rebar(table, logits, temperature=0.4, samples=64, generator=seeded(), relaxed=smooth, baseline=0.3), logits
    )
    s = draw(logits, temperature=0.4, samples=64, generator=seeded())
    c = smooth(s.relaxed)
    twice = ((table(s.hard) - c - 0.3).detach() * s.log_probability + c - smooth(s.conditional)).mean()
    assert torch.allclose(found, gradient_of(twice, logits), atol=1e-12)


def test_log_probability_is_that_of_the_enumeration() -> None:
    """Spec 2h-5."""
    logits = logits_of()
    z = every(SIZES)
    q = [torch.softmax(x, 0).detach() for x in logits]
    expected = torch.tensor([math.prod(float(q[d][i]) for d, i in enumerate(picks))
                             for picks in itertools.product(*map(range, SIZES))], dtype=torch.float64)  # fmt: skip
    found = log_probability(logits, z)
    assert torch.allclose(found.exp(), expected, atol=1e-12) and abs(found.exp().sum().item() - 1) < 1e-12
    assert torch.allclose(entropy(logits), torch.stack([-(p * p.log()).sum() for p in q]), atol=1e-12)
    sample = draw(logits, temperature=1.0, samples=50)
    assert torch.equal(sample.log_probability, log_probability(logits, sample.hard))


def test_candidates_are_drawn_as_often_as_they_are_likely() -> None:
    n = 100_000
    (logits,) = logits_of((4,))
    (z,) = one_hot([logits], samples=n, generator=seeded())
    q = torch.softmax(logits, 0)
    assert bool(((z.mean(0) - q).abs() < 4.5 * torch.sqrt(q * (1 - q) / n)).all())


@pytest.mark.parametrize(("size", "eps", "low", "high"), [(5, 0.08, 0.057, 0.771), (7, 0.08, 0.051, 0.692)])
def test_softening_keeps_every_candidate_in_play(size: int, eps: float, low: float, high: float) -> None:
    extreme = torch.zeros(size, dtype=torch.float64)
    extreme[0] = 800.0  # the others underflow
    q = torch.softmax(soften([extreme], eps)[0], 0)
    assert abs(float(q.min()) - low) < 5e-4 and abs(float(q.max()) - high) < 5e-4
    for logits in (logits_of((size,))[0], extreme):
        (soft,) = soften([logits], eps)
        assert torch.allclose(torch.softmax(soft, 0), (torch.softmax(logits, 0) + eps) / (1 + size * eps), atol=1e-12)
    assert torch.allclose(soften([logits], 0.0)[0], torch.log_softmax(logits, 0), atol=1e-12)


def test_rare_candidates_are_drawn() -> None:
    """A clamp of 1e-3 would never draw what is e^-9.5 less likely; it comes about 7 times in 100,000."""
    logits = torch.tensor([9.5, 0.0])
    assert CLAMP <= 1e-12
    assert 0 < float(one_hot([logits], samples=200_000, generator=seeded())[0][:, 1].sum()) < 60


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("eps", [None, 0.05])
def test_dead_candidates_take_no_part(dtype: torch.dtype, eps: float | None) -> None:
    alive = torch.tensor([True, False, True, False])
    leaf = torch.randn(4, generator=seeded(), dtype=dtype).requires_grad_()
    only = torch.zeros(2, dtype=dtype, requires_grad=True)  # one candidate left
    logits = [leaf.masked_fill(~alive, -math.inf), only.masked_fill(torch.tensor([True, False]), -math.inf)]
    logits = logits if eps is None else soften(logits, eps)

    def loss(weights: list[Tensor]) -> Tensor:  # infinite gradient at weight 0
        return (weights[0].sqrt() * torch.arange(4)).sum(-1) + weights[1][:, 1]

    sample = draw(logits, temperature=0.4, samples=500, generator=seeded())
    for weights in (sample.hard, sample.relaxed, sample.conditional, sample.mixed):
        assert not weights[0][:, ~alive].any() and not weights[1][:, 0].any() and bool((weights[1][:, 1] == 1).all())
        assert torch.allclose(weights[0].sum(-1), torch.ones(500, dtype=dtype), atol=1e-6)
    for scalar in (
        rebar(loss, logits, temperature=0.4, samples=50, generator=seeded()),
        score_function(loss, logits, samples=50, generator=seeded()),
        pathwise(loss, logits, temperature=0.4, samples=50, generator=seeded()),
        pathwise(lambda w: loss([x + 1e-3 for x in w]), logits, temperature=0.4, samples=50, straight_through=True),
        entropy(logits).sum(),
    ):
        first, second = torch.autograd.grad(scalar, [leaf, only], retain_graph=True)
        assert bool(first.isfinite().all()) and bool(first[alive].any()) and not first[~alive].any()
        assert not second.any()
    assert log_probability(logits, [torch.eye(4)[[1]], torch.eye(2)[[1]]]).item() == -math.inf


def test_dead_candidates_leave_the_estimate_unbiased() -> None:
    logits = logits_of()
    alive = torch.tensor([True, True, False, True])
    masked = [*logits[:2], logits[2].masked_fill(~alive, -math.inf)]
    z = [w[every(SIZES)[2][:, 2] == 0] for w in every(SIZES)]
    truth = gradient_of((log_probability(masked, z).exp() * smooth(z)).sum(), logits)

    def estimate(g: torch.Generator) -> Tensor:
        masked = [*logits[:2], logits[2].masked_fill(~alive, -math.inf)]
        return rebar(smooth, masked, temperature=0.4, samples=SAMPLES, generator=g)

    g = seeded(5)
    found = torch.stack([gradient_of(estimate(g), logits) for _ in range(100)])
    assert bool(((found.mean(0) - truth).abs() <= CRITERION * found.std(0) / 10).all())
    assert not found[:, 7].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_have_the_dtype_of_the_logits(dtype: torch.dtype) -> None:
    logits = logits_of(dtype=dtype)
    sample = draw(logits, temperature=0.1, samples=7)
    for weights in (sample.hard, sample.relaxed, sample.conditional, sample.mixed):
        assert [(w.dtype, tuple(w.shape)) for w in weights] == [(dtype, (7, k)) for k in SIZES]
    assert sample.log_probability.dtype == dtype and sample.log_probability.shape == (7,)
    assert {soft.dtype for soft in soften(logits, 0.1)} == {entropy(logits).dtype} == {dtype}
    scalar = rebar(smooth, logits, temperature=0.1, samples=7)
    assert scalar.dtype == dtype and scalar.shape == () and bool(gradient_of(scalar, logits).isfinite().all())


def test_float32_logits_lose_only_their_own_rounding() -> None:
    gradients = []
    for dtype in (torch.float32, torch.float64):
        logits = [x.detach().float().to(dtype).requires_grad_() for x in logits_of()]
        gradients.append(
            gradient_of(rebar(smooth, logits, temperature=0.2, samples=5000, generator=seeded()), logits)
        )
    assert torch.allclose(gradients[0].double(), gradients[1], atol=1e-5)


def test_the_same_generator_gives_the_same_result() -> None:
    logits = logits_of()
    a, b, other = (rebar(smooth, logits, temperature=0.4, samples=9, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(gradient_of(a, logits), gradient_of(b, logits)) and a.item() != other.item()
    torch.manual_seed(4)
    x = score_function(smooth, logits, samples=9).item()
    torch.manual_seed(4)
    assert x == score_function(smooth, logits, samples=9).item()


def test_values_are_the_mean_loss_where_it_was_evaluated() -> None:
    logits = logits_of()
    sample = draw(logits, temperature=0.4, samples=33, generator=seeded())
    at = {name: float(smooth([w.detach() for w in getattr(sample, name)]).mean()) for name in ("hard", "relaxed")}
    both = {"temperature": 0.4, "samples": 33}
    assert rebar(smooth, logits, generator=seeded(), **both).item() == pytest.approx(at["hard"], abs=1e-12)
    assert rebar(smooth, logits, generator=seeded(), baseline=9.0, **both).item() == pytest.approx(at["hard"])
    assert pathwise(smooth, logits, generator=seeded(), **both).item() == pytest.approx(at["relaxed"], abs=1e-12)
    st = pathwise(smooth, logits, generator=seeded(), straight_through=True, **both)
    assert st.item() == pytest.approx(at["hard"], abs=1e-12)


def test_losses_of_other_types_are_taken() -> None:
    """A 0-1 error is a bool or an int; float32 logits are the usual ones."""
    logits = logits_of(dtype=torch.float32)
    scalar = score_function(lambda w: w[0][:, 0] > 0, logits, samples=20, generator=seeded())
    assert scalar.dtype == torch.float32 and 0 <= scalar.item() <= 1


def test_a_baseline_for_each_sample() -> None:
    logits = logits_of()
    one = score_function(smooth, logits, samples=6, generator=seeded(), baseline=torch.full((6,), 0.7))
    other = score_function(smooth, logits, samples=6, generator=seeded(), baseline=0.7)
    assert torch.allclose(gradient_of(one, logits), gradient_of(other, logits), atol=1e-6)


def test_the_decaying_baseline() -> None:
    b = DecayingBaseline()
    assert b.value == 0
    b.update(torch.tensor([3.0, 5.0]))
    assert b.value == 4
    b.update(2.0)
    assert b.value == pytest.approx(0.9 * 4 + 0.1 * 2)
    other = DecayingBaseline()
    other.load_state_dict(b.state_dict())
    other.update(0.0)
    assert other.value == pytest.approx(0.9 * 3.8)
    with pytest.raises(NonFiniteError):
        b.update(math.nan)
    assert b.value == pytest.approx(3.8)
