"""Gates in a loop of one's own: the limit, what is found, exact resume, and loops that cannot work."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.access import choices
from archgrad.errors import ConfigError, LimitError, ModelError, NonFiniteError

INFORMATIVE = [1, 4, 6, 11]


def data(seed: int) -> tuple[Tensor, Tensor]:
    """Inputs [256, 16], of which four decide the target [256, 1]."""
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(seed))
    return x, x[:, INFORMATIVE].sum(1, keepdim=True)


def planted() -> tuple[nn.Module, ag.Limit]:
    """A space with gates on its 16 inputs alone, and a limit that leaves 4."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))
    example = torch.randn(2, 16)
    space = ag.slim(net, example=example, inputs=True, keep=("0",))
    return space, ag.params().at_most(4 * 8 + 8 + 9)


def train(trainer: ag.GateTrainer, space: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x, y = data(step)
        nn.functional.mse_loss(space(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        trainer.step()


def convolutional() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1),
        nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    x = torch.randn(8, 3, 8, 8)
    return net, ag.slim(net, example=x), x


def test_several_limits_hold_on_what_it_cuts() -> None:
    net, space, x = convolutional()
    limits = [ag.macs(x).at_most(fraction=0.4), ag.params().at_most(fraction=0.3)]
    trainer = ag.GateTrainer(space, limit=limits, steps=20, round_to=1)
    optimizer = torch.optim.Adam(ag.weights(space), lr=0.01)
    figures: dict[str, float] = {}
    first: dict[str, float] = {}
    for _ in range(20):
        space(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        figures = trainer.step() or figures
        first = first or figures
    # It begins on the limits, in the order of magnitude, which leaves part of each gate open.
    assert 0 < first["open_gates"] < sum(gate.size for gate, *_ in choices(space).values())
    assert 0.5 < figures["expected_limits"] < 1.2
    network = trainer.cut()
    assert ag.macs(x).of(network) <= 0.4 * ag.macs(x).of(net)
    assert ag.params().of(network) <= 0.3 * ag.params().of(net)


def test_it_keeps_the_inputs_that_decide_the_target_and_the_limit() -> None:
    space, limit = planted()
    trainer = ag.GateTrainer(space, limit=limit, steps=200, round_to=1)
    optimizer = torch.optim.Adam(ag.weights(space), lr=0.02)
    train(trainer, space, optimizer, range(200))
    (name,) = trainer.architecture()
    assert list(trainer.architecture()[name]) == INFORMATIVE  # type: ignore[arg-type]
    network = trainer.cut()
    assert ag.params().of(network) <= 49
    assert not any(type(m).__module__.startswith("archgrad") for m in network.modules())
    x, y = data(1000)
    with torch.no_grad():
        assert float(nn.functional.mse_loss(network(x), y)) < 0.5


def test_without_the_gradient_it_does_not() -> None:
    """The control: gates of a loss that says nothing keep other inputs."""
    space, limit = planted()
    trainer = ag.GateTrainer(space, limit=limit, steps=50, round_to=1)
    for step in range(50):
        (0.0 * space(data(step)[0]).sum()).backward()
        trainer.step()
    (name,) = trainer.architecture()
    assert list(trainer.architecture()[name]) != INFORMATIVE  # type: ignore[arg-type]


@pytest.mark.parametrize("fraction", [0.75, 0.5, 0.25])
def test_the_limit_holds_exactly_after_any_number_of_steps(fraction: float) -> None:
    net, space, x = convolutional()
    cost = ag.macs(x[:1])
    trainer = ag.GateTrainer(space, limit=cost.at_most(fraction=fraction), steps=10)
    optimizer = torch.optim.SGD(ag.weights(space), lr=0.1)
    for _ in range(6):
        space(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        trainer.step()
    assert cost.of(trainer.cut(inputs=[x])) <= fraction * cost.of(net)


def test_it_resumes_exactly() -> None:
    whole, limit = planted()
    trainer = ag.GateTrainer(whole, limit=limit, steps=30)
    train(trainer, whole, torch.optim.SGD(ag.weights(whole), lr=0.05), range(30))

    first, limit = planted()
    trainer = ag.GateTrainer(first, limit=limit, steps=30)
    train(trainer, first, torch.optim.SGD(ag.weights(first), lr=0.05), range(13))
    held = copy.deepcopy((first.state_dict(), trainer.state_dict()))

    second, limit = planted()
    trainer = ag.GateTrainer(second, limit=limit, steps=30)
    second.load_state_dict(held[0])
    trainer.load_state_dict(held[1])
    train(trainer, second, torch.optim.SGD(ag.weights(second), lr=0.05), range(13, 30))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    with pytest.raises(ConfigError, match="steps=30, and this GateTrainer has steps=7"):
        ag.GateTrainer(planted()[0], limit=limit, steps=7).load_state_dict(held[1])
    with pytest.raises(ConfigError, match="load the space's state_dict of that moment first"):
        ag.GateTrainer(planted()[0], limit=limit, steps=30).load_state_dict(held[1])
    other, _ = planted()
    other_limit = ag.params().at_most(fraction=0.9)
    trainer = ag.GateTrainer(other, limit=other_limit, steps=30)
    other.load_state_dict(held[0])
    with pytest.raises(ConfigError, match="give the same limit"):
        trainer.load_state_dict(held[1])


def test_widths_are_measured_under_a_limit_on_latency_and_stay_when_it_resumes() -> None:
    _, space, x = convolutional()
    limit = ag.latency(x, repeats=2, warmup=0).at_most(ms=1e3)
    trainer = ag.GateTrainer(space, limit=limit, steps=5, example=x)
    assert trainer.constraint.rounding.measured is not None
    assert ag.GateTrainer(space, limit=limit, steps=5, example=x, round_to=2).constraint.rounding.measured is None
    state = copy.deepcopy(trainer.state_dict())
    state["rounding"]["most"] = 2  # what another day found
    trainer.load_state_dict(state)
    assert trainer.constraint.rounding.most == 2
    with pytest.raises(ConfigError, match="limit on latency, and there is none"):
        ag.GateTrainer(space, limit=ag.macs(x).at_most(fraction=0.5), steps=5, round_to="auto")


def test_accumulation_and_a_scaled_loss_change_nothing() -> None:
    results = []
    for scale, parts in ((1.0, 1), (2.0**12, 1), (1.0, 2)):
        space, limit = planted()
        trainer = ag.GateTrainer(space, limit=limit, steps=10)
        optimizer = torch.optim.SGD(ag.weights(space), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale > 1.0 else None
        for step in range(10):
            x, y = data(step)
            for one, two in zip(x.chunk(parts), y.chunk(parts), strict=True):
                loss = nn.functional.mse_loss(space(one), two) / parts
                (scaler.scale(loss) if scaler else loss).backward()
            if scaler:
                scaler.step(optimizer)
            else:
                optimizer.step()
            optimizer.zero_grad()
            trainer.step(scaler)
            if scaler:
                scaler.update()
        results.append(torch.cat([p.detach() for p in ag.logits(space)]))
    assert torch.allclose(results[0], results[1], atol=1e-4) and torch.allclose(results[0], results[2], atol=1e-4)


def test_a_gradient_that_overflowed_moves_nothing() -> None:
    space, limit = planted()
    trainer = ag.GateTrainer(space, limit=limit, steps=30)
    before = torch.cat([p.detach().clone() for p in ag.logits(space)])
    for logit in ag.logits(space):
        logit.grad = torch.full_like(logit, float("inf"))
    trainer.step()
    assert torch.equal(before, torch.cat([p.detach() for p in ag.logits(space)]))
    assert trainer.steps_taken == 1


def test_an_optimizer_that_trains_the_logits_is_refused() -> None:
    space, limit = planted()
    trainer = ag.GateTrainer(space, limit=limit, steps=10)
    optimizer = torch.optim.SGD(space.parameters(), lr=0.1)
    x, y = data(0)
    nn.functional.mse_loss(space(x), y).backward()
    optimizer.step()
    with pytest.raises(ConfigError, match=r"give your optimizer archgrad\.weights\(space\)"):
        trainer.step()


def test_a_loop_without_gradients_is_refused() -> None:
    space, limit = planted()
    trainer = ag.GateTrainer(space, limit=limit, steps=10)
    with pytest.raises(ConfigError, match=r"call step\(\) after loss\.backward\(\)"):
        trainer.step()


def test_what_cannot_be_is_refused_at_once() -> None:
    space, limit = planted()
    with pytest.raises(ConfigError, match="steps=0"):
        ag.GateTrainer(space, limit=limit, steps=0)
    with pytest.raises(LimitError, match="lowest reachable"):
        ag.GateTrainer(space, limit=ag.params().at_most(3), steps=5)
    with pytest.raises(ConfigError, match="give example="):
        ag.GateTrainer(space, limit=ag.latency(torch.randn(1, 16)).at_most(ms=100.0), steps=5)
    other = ag.GateTrainer(space, limit=limit, steps=5)
    with pytest.raises(ConfigError, match="another version"):
        other.load_state_dict(other.state_dict() | {"scale": [1.0, 1e4, 10]})
    for state in ({}, None, space.state_dict()):
        with pytest.raises(ConfigError, match=r"give what state_dict\(\) of a GateTrainer returned"):
            ag.GateTrainer(space, limit=limit, steps=5).load_state_dict(state)


def test_statistics_of_batchnorm_are_estimated_on_the_inputs_given() -> None:
    _, space, x = convolutional()
    trainer = ag.GateTrainer(space, limit=ag.macs(x[:1]).at_most(fraction=0.5), steps=1)
    stale, fresh = trainer.cut(), trainer.cut(inputs=[x])
    wanted = nn.Sequential(*list(fresh.children())[:1])(x).mean((0, 2, 3))
    assert torch.allclose(fresh[1].running_mean, wanted, atol=1e-5)  # type: ignore[index]
    assert not torch.allclose(stale[1].running_mean, wanted, atol=1e-3)  # type: ignore[index]


def test_a_network_of_nan_is_not_handed_back() -> None:
    space, limit = planted()
    trainer = ag.GateTrainer(space, limit=limit, steps=10)
    trainer.cut()
    weight = ag.weights(space)[0]
    with torch.no_grad():
        weight.flatten()[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"of the space is NaN or infinite after 0 steps, 1 parameters"):
        trainer.cut()


@pytest.mark.parametrize("limit", [0.5, 0, "macs=0.5"])
def test_a_number_is_no_limit(limit: object) -> None:
    space, _ = planted()
    with pytest.raises(LimitError, match=rf"limit={limit!r}\) was given. Allowed is a bound on a cost"):
        ag.GateTrainer(space, limit=limit, steps=10)


@pytest.mark.parametrize("inputs", [[torch.zeros(2, 5)], [None], "ab", [{"x": 1}], 3])
def test_inputs_that_the_network_does_not_take_are_refused(inputs: object) -> None:
    _, space, x = convolutional()
    trainer = ag.GateTrainer(space, limit=ag.params().at_most(fraction=0.8), steps=1)
    space(x).square().mean().backward()
    trainer.step()
    with pytest.raises((ModelError, ConfigError), match=r"was cut fails on a batch|batches of inputs"):
        trainer.cut(inputs=inputs)  # type: ignore[arg-type]
