"""DNAL's exact tests; numbers in brackets are those of the specification's list."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.costs.count import Macs
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError, NonFiniteError
from archgrad.gates import width_rounding
from archgrad.gates.gate_optimizer import GateOptimizer, entry_logits
from archgrad.gates.selection import GateConstraint, above_threshold, gates
from archgrad.gates.width_rounding import WidthRounding
from archgrad.report.text import limit_line
from archgrad.training.finalists import best
from archgrad.training.schedules import geometric

torch.set_num_threads(1)


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> ag.Classification:
    return ag.Classification(ag.digits(), batch_size=64)


def quiet(**settings: object) -> ag.Run:
    return ag.Run(**{"epochs": 4, "device": "cpu", "progress": False, **settings})


class NoLoss:
    """A task whose loss is 0, or a given function of the gates."""

    steps_per_epoch = 10

    def loss(self, network: nn.Module, batch: object) -> torch.Tensor:
        return torch.zeros((), dtype=torch.float64)


def relaxed(net: nn.Module, x: torch.Tensor) -> nn.Module:
    return ag.relax(ag.slim(net, x), ag.scaled_sigmoid)


@pytest.mark.parametrize("of", [1, 2, 7, 10])
def test_scale_ends_on_its_last_value_and_grows_by_a_constant_ratio(of: int) -> None:  # [2]
    values = [geometric(1.0, 1e4, step=k, of=of) for k in range(of)]
    assert values[-1] == 1e4
    ratios = [b / a for a, b in zip([1.0, *values], values, strict=False)]
    assert ratios == pytest.approx([1e4 ** (1 / of)] * of)
    assert values == sorted(values)
    if of == 10:
        assert values[:3] == pytest.approx([2.51189, 6.30957, 15.8489], rel=1e-5)


@pytest.mark.parametrize("scaled", [False, True])
def test_drift_law_without_a_data_gradient(scaled: bool) -> None:  # [6]
    space = relaxed(conv_net(), torch.randn(2, 1, 8, 8)).double()
    gate_optimizer = GateOptimizer(space, NoLoss(), strength=0.3, scaled=scaled, scale=(1.0, 1e4))
    for relaxation in gate_optimizer.relaxations:
        relaxation.scale.fill_(2.0)
    optimizer = torch.optim.SGD(ag.logits(space), lr=0.1)
    expected, factor = torch.zeros((), dtype=torch.float64), 2.0 if scaled else 1.0
    for _ in range(50):
        optimizer.zero_grad()
        gate_optimizer.objective(space, (torch.zeros(1), torch.zeros(1))).backward()
        optimizer.step()
        g = torch.sigmoid(factor * expected)
        expected = expected - 0.1 * 0.3 * factor * g * (1 - g)
    for logits in entry_logits(space).values():
        assert torch.allclose(logits, expected.expand_as(logits), atol=1e-10, rtol=0)
    # The law with the other regularizer would have been noticed.
    assert abs(float(expected)) > 0.05


def test_stage_two_moves_no_weight_and_the_others_no_logit(digits: ag.Classification) -> None:  # [7]
    space = ag.slim(conv_net(), digits.example)
    relaxed_space = ag.relax(space, ag.scaled_sigmoid)
    before = [w.detach().clone() for w in ag.weights(relaxed_space)]
    gate_optimizer = GateOptimizer(relaxed_space, digits, strength=0.1, scaled=False, scale=(1.0, 1e4))
    optimizer = torch.optim.SGD(ag.logits(relaxed_space), lr=0.5)
    batches = digits.stream(seed=0)
    for step in range(3):
        loss = gate_optimizer.objective(relaxed_space.train(), batches(step))
        for p, g in zip(ag.logits(relaxed_space), torch.autograd.grad(loss, ag.logits(relaxed_space)), strict=True):
            p.grad = g
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, ag.weights(relaxed_space), strict=True))
    assert all(float(v.abs().max()) > 0 for v in entry_logits(relaxed_space).values())
    assert not set(ag.logits(relaxed_space)) & set(ag.weights(relaxed_space))


@pytest.mark.parametrize("strength", [0.05, 0.2, 0.4])
def test_separable_problem_keeps_exactly_the_useful(strength: float) -> None:  # [8]
    q = torch.linspace(0.0, 0.5, 12)

    class Separable(NoLoss):
        def loss(self, network: nn.Module, batch: object) -> torch.Tensor:
            gate = gates(network)[last]
            return (q * (1 - gate.mixing())).sum()

    space = relaxed(conv_net(), torch.randn(2, 1, 8, 8))
    last = list(gates(space))[-1]
    gate_optimizer = GateOptimizer(space, Separable(), strength=strength, scaled=False, scale=(1.0, 1e4))
    optimizer = torch.optim.SGD(ag.logits(space), lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        gate_optimizer.objective(space, (torch.zeros(1), torch.zeros(1))).backward()
        optimizer.step()
    assert set((entry_logits(space)[last] > 0).nonzero().flatten().tolist()) == {
        c for c in range(12) if float(q[c]) > strength
    }


def test_under_a_limit_the_pressure_holds_the_expected_cost_there() -> None:
    x = torch.randn(2, 1, 8, 8)
    space = relaxed(conv_net(), x)
    constraint = GateConstraint(space, ag.macs(x).at_most(fraction=0.3), WidthRounding(1))
    gate_optimizer = GateOptimizer(space, NoLoss(), strength=0.0, scaled=False, scale=(1.0, 1e4), rounds=10)
    gate_optimizer.set_target(constraint, constraint.bound)
    optimizer = torch.optim.SGD(ag.logits(space), lr=1.0)
    generator = torch.Generator().manual_seed(0)

    def check(epoch: int) -> None:
        cost = float(Macs(x).expected(space).detach()) / constraint.reference
        # Never above; below by no more than the precision of the bisection or, once decided, by one channel.
        assert 0.3 - (0.01 if epoch < 5 else 0.1) < cost < 0.3001, epoch

    for epoch in range(10):
        assert gate_optimizer.grow_scale(0, epoch / 10, optimizer=optimizer)
        check(epoch)  # at the scale that has grown, before any step is taken there
        for _ in range(30):
            for relaxation in gate_optimizer.relaxations:
                relaxation.logits.data += 0.01 * torch.randn(relaxation.logits.shape, generator=generator)
            gate_optimizer.project(0)
        check(epoch)


def test_deriving_again_from_what_was_derived_changes_nothing() -> None:  # [9]
    x = torch.randn(2, 1, 8, 8)
    space = ag.slim(conv_net(), x)
    scores = {n: torch.randn(g.size, generator=torch.Generator().manual_seed(1)) for n, g in gates(space).items()}
    network = ag.build(space, above_threshold(space, scores, 0.0, WidthRounding(1)))
    again_space = ag.slim(network, x)
    kept = {n: s[s > 0] if bool((s > 0).any()) else s.max()[None] for n, s in scores.items()}
    again = ag.build(again_space, above_threshold(again_space, kept, 0.0, WidthRounding(1)))
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_space_state_survives_a_round_trip() -> None:  # [9]
    x = torch.randn(2, 1, 8, 8)
    space, other = relaxed(conv_net(), x), relaxed(conv_net(), x)
    for gate in gates(space).values():
        gate.relaxation.logits.data.normal_()
        gate.relaxation.scale.fill_(37.0)
    ag.restrict(space, {next(iter(gates(space))): [0, 1]})
    other.load_state_dict(space.state_dict())
    assert torch.equal(space.eval()(x), other.eval()(x))


def test_without_a_limit_more_sparsity_keeps_less(digits: ag.Classification) -> None:
    sizes = []
    for sparsity in (0.0, 3.0, 3000.0):
        found = ag.dnal(ag.slim(conv_net(), digits.example), digits, quiet(), sparsity=sparsity, round_to=1)
        sizes.append(found.costs["macs"])
    assert sizes[0] >= sizes[1] >= sizes[2]
    assert sizes[2] < 0.1 * sizes[0]
    assert all(len(p) >= 1 for p in found.architecture.values()), "no layer dies"


class Clock:
    """A measured cost with three per cent of noise that is the same each time; a real clock is no test's friend."""

    name, unit, measured = "latency", "ms", True

    def __init__(self, example: torch.Tensor) -> None:
        self.macs, self.readings = ag.macs(example), 0

    def of(self, network: nn.Module) -> float:
        self.readings += 1
        return self.macs.of(network) / 1e4 * (1 + 0.03 * math.sin(self.readings))

    def expected(self, space: nn.Module) -> torch.Tensor:
        raise AssertionError("a measured cost has no gradient")


def wide_net() -> nn.Sequential:
    layers = [layer for i in range(4) for layer in (nn.Conv2d(1 if i == 0 else 64, 64, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def test_a_measured_limit_is_kept_when_measured_again(digits: ag.Classification) -> None:
    clock = Clock(digits.example)
    found = ag.dnal(ag.slim(wide_net(), digits.example), digits, quiet(epochs=2), limit=Limit(clock, fraction=0.5))
    limit = found.record["limit"]
    assert 0.6 * limit["bound"] < limit["reached"] <= limit["bound"]
    assert clock.of(found.network) <= limit["bound"]


def test_a_limit_on_real_latency_runs_and_reports_what_it_reached(digits: ag.Classification) -> None:
    limit = ag.latency(digits.example, repeats=10).at_most(ms=1e3)  # far above anything: no clock can break it
    found = ag.dnal(ag.slim(wide_net(), digits.example), digits, quiet(epochs=2), limit=limit)
    assert 0 < found.record["limit"]["reached"] < found.record["limit"]["bound"] == 1e3


def test_a_stage_without_steps_is_refused(digits: ag.Classification) -> None:
    with pytest.raises(ConfigError, match="gate_epochs from 1 to 1"):
        ag.dnal(ag.slim(conv_net(), digits.example), digits, quiet(epochs=2), gate_epochs=2)
    with pytest.raises(ConfigError, match="1 of 1 steps would train the gates: give a larger budget"):
        ag.dnal(ag.slim(conv_net(), digits.example), digits, quiet(steps=1))


def test_a_loss_that_is_not_finite_stops_the_run(digits: ag.Classification, tmp_path) -> None:
    explosive = functools.partial(torch.optim.SGD, lr=1e30)
    space = ag.slim(conv_net(), digits.example)
    with pytest.raises(NonFiniteError, match=r"loss became NaN or infinite in phase 'weights'.*lower learning rate"):
        ag.dnal(space, digits, quiet(folder=tmp_path / "run"), recipe=ag.Recipe(optimizer_factory=explosive))
    assert list((tmp_path / "run" / "checkpoints").iterdir()), "the last good state is kept"


def test_a_run_that_throws_trained_weights_away_says_so(digits: ag.Classification) -> None:
    network = conv_net()
    ag.fit(network, digits, quiet(epochs=8))
    limit, notes = ag.macs(digits.example).at_most(fraction=0.5), []
    for clip, rate in ((5.0, 0.05), (None, 50.0)):
        optimizer = functools.partial(ag.sgd, learning_rate=rate, clip=clip)
        space, run = ag.slim(network, digits.example), quiet(epochs=2)
        ag.dnal(space, digits, run, limit=limit, pretrained=True, recipe=ag.Recipe(optimizer_factory=optimizer))
        notes.append([note for note in run.notes if "What the given weights knew is lost" in note])
    assert not notes[0] and len(notes[1]) == 1 and "--learning-rate 0.01" in notes[1][0]


class Broken(RuntimeError):
    """What ends a run in the middle."""


@pytest.mark.parametrize(("phase", "fewest"), [("weights", 30), ("gates", 30), ("gates", 8), ("finalist_uniform", 8)])
def test_a_run_that_ends_in_its_search_resumes_exactly(
    digits: ag.Classification, tmp_path: Path, phase: str, fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("dnal", "under_limit"):  # with 8, so short a run has finalists and searches the whole network
        monkeypatch.setattr(f"archgrad.methods.dnal.{module}.FEWEST", fewest)
    limit = ag.macs(digits.example).at_most(fraction=0.3)
    torch.manual_seed(0)
    space = ag.slim(conv_net(), digits.example)

    def run(folder: str, **options: object) -> ag.Run:
        return quiet(epochs=None, steps=200, folder=tmp_path / folder, output=ag.Output(log_every=1, **options))

    whole = ag.dnal(space, digits, run("whole"), limit=limit, round_to=1)
    finalists = ["finalist_gates", "finalist_uniform"] if fewest == 8 else []
    assert [row["phase"] for row in whole.history if row["step"] == 3 and "lr" in row] == [
        "weights", "gates", *finalists, "finetune"
    ]  # fmt: skip
    assert ("searched" in (tmp_path / "whole" / "computed.json").read_text()) == (fewest == 30)

    def fail(row: dict[str, object]) -> None:
        if row.get("phase") == phase and row.get("step") == 5:
            raise Broken

    with pytest.raises(Broken):
        ag.dnal(space, digits, run("ended", on_log=fail, checkpoint_seconds=0), limit=limit, round_to=1)
    resumed = ag.dnal(space, digits, run("ended"), limit=limit, round_to=1)
    assert resumed.architecture == whole.architecture
    assert resumed.record.get("finalists") == whole.record.get("finalists")
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_the_better_finalist_is_handed_back_and_the_first_of_equals(digits: ag.Classification) -> None:
    assert best({"gates": 0.5, "uniform": 0.6}, digits) == "uniform"
    assert best({"gates": 0.5, "uniform": 0.5}, digits) == "gates"
    lower = ag.Supervised(ag.digits(), loss=nn.functional.cross_entropy, score=ag.lower("loss"))
    assert best({"gates": 0.5, "uniform": 0.6}, lower) == "gates"
    assert best({"gates": 0.7, "uniform": 0.6}, lower) == "uniform"


def test_the_multiple_of_a_latency_limit_is_measured_once_in_a_run(
    digits: ag.Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = ag.slim(conv_net(), digits.example)
    limit = ag.latency(digits.example, repeats=2, warmup=0).at_most(ms=1e3)

    def fail(row: dict[str, object]) -> None:
        raise Broken

    def run(**output: object) -> ag.Run:
        return quiet(epochs=None, steps=12, folder=tmp_path, output=ag.Output(log_every=1, **output))

    with pytest.raises(Broken):
        ag.dnal(space, digits, run(on_log=fail, checkpoint_seconds=0), limit=limit)
    monkeypatch.setattr(width_rounding, "_measured_multiple", lambda *given: pytest.fail("measured again"))
    record = ag.dnal(space, digits, run(), limit=limit).record
    assert record["rounding"]["round_to"] in (4, 8, 16)
    assert f"widths in multiples of {record['rounding']['round_to']}, measured in eager" in limit_line(record)


@pytest.mark.parametrize("limit", [
    lambda x: ag.black_box(lambda network: 1.0, name="board", unit="ms").at_most(100.0),
    lambda x: ag.black_box(lambda network: 1.0, name="board", unit="ms").at_most(1.0),
    lambda x: ag.macs(x).at_most(fraction=1.0),
], ids=["far", "at the bound", "counted"])  # fmt: skip
def test_a_limit_that_the_whole_network_keeps_takes_nothing_away(
    digits: ag.Classification, limit: Callable[[torch.Tensor], Limit]
) -> None:
    torch.manual_seed(0)
    net, run = conv_net(), quiet(epochs=None, steps=12)
    space = ag.slim(net, digits.example)
    found = ag.dnal(space, digits, run, limit=limit(digits.example), pretrained=True, check_weights=False)
    assert ag.params().of(found.network) == ag.params().of(net)
    assert any("asks for nothing" in note for note in found.record["notes"])


@pytest.mark.parametrize(("round_to", "left"), [(1, 0), (32, 1), (16, 2)])
def test_what_rounding_left_whole_is_noted_where_rounding_is_the_reason(
    digits: ag.Classification, round_to: int, left: int
) -> None:
    width = 32 if left == 1 else 16
    net = nn.Sequential(
        nn.Conv2d(1, 16 if left == 2 else 1, 3), nn.ReLU(), nn.Conv2d(16 if left == 2 else 1, width, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * width, 200), nn.ReLU(), nn.Linear(200, 10),
    )  # fmt: skip
    limit = ag.macs(digits.example).at_most(fraction=0.5 if left == 2 else 0.3)
    found = ag.dnal(
        ag.slim(net, digits.example), digits, quiet(), limit=limit, round_to=round_to, pretrained=True,
        check_weights=False,
    )  # fmt: skip
    notes = [note for note in found.record["notes"] if "stayed whole" in note]
    assert len(notes) == bool(left)
    if left:
        assert f"{left} layer{'s' if left > 1 else ''} stayed whole (" in notes[0] and "round_to=1 would" in notes[0]
