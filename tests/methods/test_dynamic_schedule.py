"""When the architecture takes a step: rates, the statistic, bounds, state, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from archgrad.errors import ConfigError
from archgrad.methods.darts_prime.dynamic_schedule import DynamicSchedule, squared_norm, weights_fraction_of
from archgrad.supernets.bilevel import EverySteps


def gradients_of(value: float) -> list[torch.Tensor | None]:
    return [torch.tensor([math.sqrt(value)]), None]


def rate(update_schedule: DynamicSchedule, values: list[float]) -> float:
    taken = 0
    for step, value in enumerate(values):
        taken += update_schedule.next_batch(step, 0.0) is not None
        update_schedule.observe(gradients_of(value))
    return taken / len(values)


@pytest.mark.parametrize("f", [1.0, 5.0, 10.0])
def test_the_long_run_rate_is_1_over_1_plus_f_whatever_the_scale_of_the_gradient(f: float) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(12_000, generator=generator).exp()
    for scale in (0.01, 100.0):
        update_schedule = DynamicSchedule(f)
        rate(update_schedule, (scale * draws[:2000]).tolist())  # until the threshold has found the gradient
        assert rate(update_schedule, (scale * draws[2000:]).tolist()) == pytest.approx(1 / (1 + f), rel=0.05)
        assert abs(update_schedule.log_threshold - math.log(scale)) < 5.0
    assert 1 / (1 + f) != pytest.approx(1 / (2 + f), rel=0.05), "another f would be noticed"


def test_the_first_step_comes_after_the_logarithm_of_the_gradient() -> None:
    update_schedule = DynamicSchedule(10, decay=1.0)
    due = []
    for step in range(120):
        due.append(update_schedule.next_batch(step, 0.0))
        update_schedule.observe(gradients_of(100.0))
    assert due.index(0) == math.ceil(math.log(100.0) / math.log(1.05))


def test_a_gradient_of_zero_never_lets_the_architecture_step_and_nothing_overflows() -> None:
    update_schedule = DynamicSchedule(1)
    assert rate(update_schedule, [0.0] * 20_000) == 0.0 and math.isfinite(update_schedule.log_threshold)


def test_the_batches_of_the_architecture_are_counted_in_order() -> None:
    update_schedule = DynamicSchedule(3)
    numbers = []
    for step in range(200):
        numbers.append(update_schedule.next_batch(step, 0.0))
        update_schedule.observe(gradients_of(0.5))
    assert [n for n in numbers if n is not None] == list(range(update_schedule.taken)) and update_schedule.taken > 20


@pytest.mark.parametrize(("n", "steps"), [(1, 7), (3, 20), (10, 9), (10, 105)])
def test_a_static_pace_takes_floor_of_steps_over_n(n: int, steps: int) -> None:
    taken = [EverySteps(n).next_batch(step, 0.0) for step in range(steps)]
    assert [number for number in taken if number is not None] == list(range(steps // n))


def test_a_static_pace_may_rest_first_and_keeps_its_numbers() -> None:
    schedule = EverySteps(warm_up=0.6)
    assert [schedule.next_batch(step, step / 5) for step in range(5)] == [None, None, None, 3, 4]


def test_f_is_the_sum_of_squares_before_the_gradient_is_clipped() -> None:
    from archgrad.run.run import Run
    from archgrad.training.step import take_step

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))
    seen = []
    for clip in (1e9, 1e-3):
        gradients = torch.autograd.grad(10.0 * net(torch.ones(3, 5)).square().mean(), list(net.parameters()))
        flat = torch.cat([g.flatten() for g in gradients]).double()
        optimizer = torch.optim.SGD([{"params": list(net.parameters()), "clip": clip}], lr=0.0)
        run = Run(device="cpu", progress=False)
        computed = (torch.tensor(1.0), gradients)
        take_step(
            optimizer, run, lambda computed=computed: computed, observe=lambda given: seen.append(squared_norm(given))
        )
        assert seen[-1] == pytest.approx(float(flat.square().sum()), rel=1e-5)
        if clip < 1.0:
            assert squared_norm(gradients) < 1e-5 < seen[-1], "clipped afterwards"
    assert seen[0] == seen[1]


def test_the_state_goes_on_where_it_was() -> None:
    values = torch.rand(300, generator=torch.Generator().manual_seed(0)).tolist()
    whole, first, second = DynamicSchedule(4), DynamicSchedule(4), DynamicSchedule(4)
    rate(whole, values)
    rate(first, values[:150])
    second.load_state_dict(first.state_dict())
    rate(second, values[150:])
    assert second.state_dict() == whole.state_dict()
    rate(fresh := DynamicSchedule(4), values[150:])
    assert fresh.state_dict() != whole.state_dict()


def test_the_share_of_the_data() -> None:
    assert weights_fraction_of(1) == 0.5 and weights_fraction_of(10) == pytest.approx(10 / 11)


@pytest.mark.parametrize(
    "wrong",
    [{"f": 0.0}, {"f": math.nan}, {"decay": 0.0}, {"decay": 1.5}, {"factor": 1.0}, {"threshold": 0.0},
     {"threshold": -1.0}],
)  # fmt: skip
def test_what_makes_no_schedule_is_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        DynamicSchedule(**wrong)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 2.5}, {"warm_up": -0.1}, {"warm_up": 1.0}])
def test_a_static_pace_is_of_whole_numbers(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="a whole number n from 1 and a fraction warm_up"):
        EverySteps(**wrong)


@pytest.mark.parametrize("first", [2.0, 30.0, 400.0])
def test_the_average_begins_at_the_first_gradient_and_not_below_it(first: float) -> None:
    """From 0 it would be a fifth of the first gradient, and the architecture would begin 33 steps too early."""
    update_schedule, due = DynamicSchedule(10), list[int]()
    for step in range(200):
        if update_schedule.next_batch(step, 0.0) is not None:
            due.append(step)
        update_schedule.observe(gradients_of(first))
        assert update_schedule.average == pytest.approx(first)
    assert due[0] == math.ceil(math.log(first) / math.log(1.05))
