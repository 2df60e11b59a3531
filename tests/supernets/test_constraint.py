"""The best architecture under a limit, against enumeration; measured costs on a repeatable clock."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.costs.count import Macs
from archgrad.costs.table import measure_table
from archgrad.errors import LimitError
from archgrad.supernets import constraint as within_module
from archgrad.supernets.constraint import ArchitectureConstraint

X = torch.zeros(1, 4)


class Chain(nn.Module):
    """Three choices of a width and one of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 3, 8)
        self.source = ag.InputChoice(2, name="source", edges=[nn.Identity(), nn.Linear(4, 4)])
        self.layers = nn.Sequential(
            *(
                ag.OpChoice({f"w{n}": nn.Sequential(nn.Linear(4, n), nn.Linear(n, 4)) for n in widths}, name=f"l{i}")
                for i in range(3)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.source([x, x]))


def everything() -> list[ag.Architecture]:
    return [
        ag.Architecture({"source": (s,), **{f"l{i}": pick for i, pick in enumerate(picks)}})
        for s in range(2)
        for picks in itertools.product(range(3), repeat=3)
    ]


def scores(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"source": torch.randn(2, generator=g), **{f"l{i}": torch.randn(3, generator=g) for i in range(3)}}


def total(given: dict[str, Tensor], architecture: ag.Architecture) -> float:
    return sum(float(given[n][[p] if isinstance(p, int) else list(p)].sum()) for n, p in architecture.items())


def counted() -> Macs:
    return ag.macs(X)


@pytest.fixture(scope="module")
def prices() -> dict[ag.Architecture, float]:
    return {a: counted().of(ag.build(Chain(), a)) for a in everything()}


@pytest.mark.parametrize("bound", [24, 60, 100, 150, 208])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_under_a_limit_is_under_it_and_no_single_change_is_better(
    bound: int, seed: int, prices: dict[ag.Architecture, float]
) -> None:
    given = scores(seed)
    constraint = ArchitectureConstraint(Chain(), counted().at_most(bound))
    found = constraint.best_feasible(given)
    assert prices[found] <= bound
    for other in everything():
        if sum(found[n] != other[n] for n in found) == 1 and prices[other] <= bound:
            assert total(given, other) <= total(given, found) + 1e-6
    best = max((a for a in everything() if prices[a] <= bound), key=lambda a: total(given, a))
    assert total(given, found) >= total(given, best) - 1.5  # greedy, not exact
    if bound == 208:
        assert found == best


def test_a_fraction_is_of_the_most_expensive_architecture(prices: dict[ag.Architecture, float]) -> None:
    constraint = ArchitectureConstraint(Chain(), counted().at_most(fraction=0.5))
    assert constraint.bound == 0.5 * max(prices.values())


def test_what_nothing_meets_is_refused_with_the_lowest() -> None:
    with pytest.raises(LimitError, match="lowest reachable is 24"):
        ArchitectureConstraint(Chain(), counted().at_most(23))


class Clock:
    """Milliseconds that grow with the parameters: a cost that has to be asked for each network."""

    def __init__(self, drift: float = 1.0) -> None:
        self.calls, self.drift = 0, drift

    def __call__(self, network: nn.Module) -> float:
        self.calls += 1
        return sum(p.numel() for p in network.parameters()) * (1.0 if self.calls <= 54 else self.drift)


def begun(folder: Path | None = None) -> ag.Run:
    run = ag.Run(steps=1, seed=0, folder=folder, device="cpu", progress=False)
    run.begin("test", {})
    return run


def test_a_measured_limit_is_kept_on_a_fresh_measurement() -> None:
    cost = ag.black_box(Clock(), name="latency", unit="ms")
    constraint = ArchitectureConstraint(Chain(), cost.at_most(100.0))
    constraint.fit_surrogate(begun())
    assert constraint.record()["rank_correlation"] > 0.99
    for seed in range(5):
        found = constraint.best_feasible(scores(seed))
        assert cost.of(ag.build(Chain(), found)) <= 100.0
    with pytest.raises(LimitError, match="lowest reachable is 39 ms"):
        ArchitectureConstraint(Chain(), cost.at_most(20.0)).fit_surrogate(begun())


def test_a_resumed_run_measures_nothing_twice(tmp_path: Path) -> None:
    clocks, bounds, known = [], [], []
    for _ in range(2):
        clocks.append(Clock())
        cost = ag.black_box(clocks[-1], name="latency", unit="ms")
        constraint, run = ArchitectureConstraint(Chain(), cost.at_most(fraction=0.5)), begun(tmp_path)
        constraint.fit_surrogate(run)
        run.close()
        bounds.append(constraint.bound)
        known.append([constraint.predicted(a) for a in everything()])
    assert clocks[0].calls == 54 and clocks[1].calls == 0
    assert bounds[0] == bounds[1] and known[0] == known[1]


def test_state_survives() -> None:
    cost = ag.black_box(Clock(), name="latency", unit="ms")
    one, other = (ArchitectureConstraint(Chain(), cost.at_most(150.0)) for _ in range(2))
    for constraint in (one, other):
        constraint.fit_surrogate(begun())
    one._remember(everything()[7], 500.0)
    one.refit()
    assert one.predicted(everything()[7]) != other.predicted(everything()[7])
    other.load_state_dict(one.state_dict())
    assert [one.predicted(a) for a in everything()] == [other.predicted(a) for a in everything()]


def test_a_machine_that_has_slowed_down_is_allowed_for() -> None:
    cost = ag.black_box(Clock(drift=50.0), name="latency", unit="ms")
    constraint = ArchitectureConstraint(Chain(), cost.at_most(100.0))
    constraint.fit_surrogate(begun())
    found = constraint.best_feasible(scores(0))
    assert sum(p.numel() for p in ag.build(Chain(), found).parameters()) <= 100
    assert constraint.slower == pytest.approx(50.0)
    assert constraint.verify(found, ag.build(Chain(), found)) <= 100.0


def test_a_clock_that_is_wrong_about_one_network_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(within_module, "PATIENCE", 2)

    class Wrong(Clock):
        def __call__(self, network: nn.Module) -> float:
            value = super().__call__(network)
            return value if self.calls <= 54 or value < 40 else 50 * value

    cost = ag.black_box(Wrong(), name="latency", unit="ms")
    constraint = ArchitectureConstraint(Chain(), cost.at_most(100.0))
    constraint.fit_surrogate(begun())
    assert sum(p.numel() for p in ag.build(Chain(), constraint.best_feasible(scores(0))).parameters()) < 40
    with pytest.raises(LimitError, match="over its limit of 100"):
        constraint.verify(everything()[26], ag.build(Chain(), everything()[26]))


def test_a_table_prices_without_a_network() -> None:
    space = Chain()
    table = measure_table(space, counted())
    constraint = ArchitectureConstraint(space, table.at_most(100.0))
    for seed in range(5):
        found = constraint.best_feasible(scores(seed))
        assert counted().of(ag.build(space, found)) <= 100.0


def test_a_space_too_small_for_a_surrogate() -> None:
    space = nn.Sequential(ag.OpChoice([nn.Linear(4, 4), nn.Identity()], name="op"))
    clock = Clock()
    constraint = ArchitectureConstraint(space, ag.black_box(clock, name="latency", unit="ms").at_most(10.0))
    constraint.fit_surrogate(begun())
    assert dict(constraint.best_feasible({"op": torch.tensor([1.0, 0.0])})) == {"op": 1}
    assert math.isfinite(float(constraint.expected({"op": torch.ones(2)})))


def test_nothing_of_a_measured_cost_is_known_before_it_is_measured() -> None:
    constraint = ArchitectureConstraint(Chain(), ag.black_box(Clock(), name="latency", unit="ms").at_most(100.0))
    for ask in ("bound", "lowest", "cheapest"):
        with pytest.raises(LimitError, match=r"latency is measured.*call fit_surrogate\(run\)"):
            getattr(constraint, ask)
    constraint.fit_surrogate(begun())
    assert constraint.bound == 100.0 and constraint.lowest == constraint.price(constraint.cheapest) <= 100.0


def test_the_surrogate_that_was_just_measured_is_that_of_a_resumed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archgrad.supernets.constraint.SAMPLES", (8, 8))
    cost = ag.black_box(Clock(), name="latency", unit="ms")
    run, constraints = begun(), [ArchitectureConstraint(Chain(), cost.at_most(150.0)) for _ in range(2)]
    for constraint in constraints:
        constraint.fit_surrogate(run)
    first, resumed = ([c.predicted(a) for a in everything()] for c in constraints)
    assert first == resumed
