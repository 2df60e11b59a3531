"""Look-up tables: measured by differences, kept in a file, refused where they do not belong."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, logits, relax, restrict, sample
from archgrad.choices.architecture import Architecture
from archgrad.choices.gate import Gate
from archgrad.choices.modules import InputChoice, OpChoice
from archgrad.choices.relaxations import softmax
from archgrad.costs import latency as rooms
from archgrad.costs.count import macs, params
from archgrad.costs.latency import latency
from archgrad.costs.limits import Cost, Limit, Predicts, black_box
from archgrad.costs.table import CostTable, measure_table
from archgrad.errors import ArchitectureError, ChoiceError, DataError, ModelError
from archgrad.extract.discretize import build

X = torch.ones(1, 3, 6, 6)


def operations(name: str) -> OpChoice:
    wide = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 3, padding=1))
    return OpChoice({"conv": nn.Conv2d(4, 4, 3, padding=1), "wide": wide, "skip": nn.Identity()}, name=name)


class Supernet(nn.Module):
    """A chain, one decision in two places, and a node that keeps two of four inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.chain = nn.Sequential(operations("a"), nn.ReLU(), operations("b"), operations("a"))
        edges = [nn.Conv2d(4, 4, kernel, padding=kernel // 2) for kernel in (1, 3, 5)]
        self.node = InputChoice(4, keep=2, name="node", edges=[*edges, nn.Identity()])
        self.one = InputChoice(2, name="one", edges=[nn.Conv2d(4, 4, 1), nn.Identity()])
        self.all = InputChoice(2, keep=2, name="all")

    def forward(self, x: Tensor) -> Tensor:
        x = self.chain(self.stem(x))
        x = self.one([self.node([x] * 4), x])
        return self.all([x, x])


def all_of() -> list[Architecture]:
    pairs = itertools.combinations(range(4), 2)
    return [
        Architecture({"a": a, "b": b, "node": node, "one": (one,), "all": (0, 1)})
        for a, b, node, one in itertools.product(range(3), range(3), pairs, range(2))
    ]


class Sleeper(nn.Module):
    """Takes a known time on the clock of these tests."""

    now = 0.0

    def __init__(self, ms: float) -> None:
        super().__init__()
        self.ms = ms

    def forward(self, x: Tensor) -> Tensor:
        Sleeper.now += self.ms
        return x


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the sleepers move."""
    monkeypatch.setattr(rooms.time, "perf_counter_ns", lambda: round(Sleeper.now * 1e6))


def sleepers() -> nn.Module:
    def one(name: str, *times: float) -> OpChoice:
        return OpChoice({f"{t} ms": Sleeper(t) for t in times}, name=name)

    return nn.Sequential(Sleeper(3.0), one("a", 2.0, 1.0, 5.0), one("b", 0.5, 0.25))


@pytest.fixture
def table() -> CostTable:
    torch.manual_seed(0)
    return measure_table(Supernet(), macs(X))


def test_a_table_of_macs_is_exact_for_every_architecture(table: CostTable) -> None:
    space, cost = Supernet(), macs(X)
    found = [(table.predict(a), table.of(hold(space, a)), cost.of(hold(space, a))) for a in all_of()]
    assert all(one == two == true for one, two, true in found)
    assert len({true for *_, true in found}) > 20
    assert table.error is not None and table.error.rms == 0 and table.error.rank == 1
    assert (table.error.tested_on, table.error.fitted_on) == (10, 14)


def test_the_network_that_is_priced_may_be_built() -> None:
    space = Supernet()
    built = measure_table(space, params(), build=build, checks=0)
    assert built.error is None
    for architecture in all_of()[::7]:
        assert built.predict(architecture) == params().of(build(space, architecture))


def test_the_reference_does_not_matter_and_the_cheapest_candidate_costs_nothing(table: CostTable) -> None:
    space = Supernet()
    for reference in all_of()[5::31]:
        other = measure_table(space, macs(X), reference=reference)
        assert (other.prices, other.base) == (table.prices, table.base)
    assert all(min(prices) == 0 for prices in table.prices.values())
    convolution = 4 * 4 * 9 * 36
    assert table.prices["a"] == (2 * convolution, 2 * (4 * 8 + 8 * 4 * 9) * 36, 0)
    assert table.prices["node"] == (4 * 4 * 36, convolution, 4 * 4 * 25 * 36, 0)
    assert table.prices["all"] == (0, 0)


def test_the_expected_price_is_the_mean_and_has_a_gradient(table: CostTable) -> None:
    space = relax(Supernet().double(), softmax).double()
    with torch.no_grad():
        for parameter in logits(space):
            parameter.copy_(torch.randn(parameter.shape))
    restrict(space, {"node": [1, 2]})  # then independent draws keep what these nodes keep
    choices(space)["all"][0].live.copy_(torch.arange(choices(space)["all"][0].size) == 0)
    weights = {name: same[0].ready().detach() for name, same in choices(space).items()}
    mean = table.base + table.prices["all"][0]
    for name, w in weights.items():
        mean += sum(float(p) * price for p, price in zip(w, table.prices[name], strict=True))
    expected = table.expected(space)
    assert expected.item() == pytest.approx(mean, rel=1e-9)
    expected.backward()
    q = weights["b"]
    prices = torch.tensor(table.prices["b"], dtype=torch.float64)
    assert torch.allclose(choices(space)["b"][0].relaxation.logits.grad, q * (prices - q @ prices))


def test_latencies_by_a_repeatable_clock(clock: None) -> None:
    space = sleepers()
    cost = latency(X, repeats=3, warmup=1)
    found = measure_table(space, cost)
    assert (found.name, found.unit, found.measured) == ("latency", "ms", False)
    assert found.prices["a"] == pytest.approx((1.0, 0.0, 4.0)) and found.prices["b"] == pytest.approx((0.25, 0.0))
    assert found.base == pytest.approx(4.25)
    assert found.error is not None and found.error.rms < 1e-6 and found.error.rank == 1
    best = Architecture({"a": 1, "b": 1})
    assert found.predict(best) == pytest.approx(cost.of(build(space, best)))


def test_a_drift_of_the_machine_cancels() -> None:
    """The reference is priced anew for each choice, so that what grows between choices is no candidate's price."""
    calls = itertools.count()
    space = sleepers()
    true = {"a": (2.0, 1.0, 5.0), "b": (0.5, 0.25)}

    def drifting(network: nn.Module) -> float:
        held = {name: int(same[0].ready().argmax()) for name, same in choices(network).items()}
        return sum(true[name][k] for name, k in held.items()) + 100.0 * (next(calls) > 2)

    found = measure_table(space, black_box(drifting, name="heat", unit="J"), checks=0)
    assert found.prices["a"] == (1.0, 0.0, 4.0) and found.prices["b"] == (0.25, 0.0)


def test_a_cost_that_does_not_add_up_shows_in_the_error() -> None:
    def product(network: nn.Module) -> float:
        return math.prod(1.0 + int(same[0].ready().argmax()) for same in choices(network).values())

    found = measure_table(sleepers(), black_box(product, name="product", unit="1"), checks=30)
    assert found.error is not None and found.error.rms > 0.3


def test_a_table_survives_its_file(table: CostTable, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    table.save(path)
    assert CostTable.load(path) == table
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert table.device and table.torch_version == torch.__version__
    bare = CostTable("energy", "mJ", 1, {}, {})
    assert CostTable.from_json(bare.to_json()) == bare
    assert hash(Limit(table, 5.0)) == hash(Limit(CostTable.load(path), 5.0))


def test_it_is_a_cost_that_predicts(table: CostTable) -> None:
    cost: Cost = table
    assert (cost.name, cost.unit, cost.measured) == ("macs", "MACs", False)
    assert isinstance(cost, Predicts)
    assert table.at_most(5.0) == Limit(table, 5.0) and table.at_most(fraction=0.5).resolve(8.0) == 4.0


def test_a_plain_network_has_no_price(table: CostTable) -> None:
    plain = build(Supernet(), all_of()[0])
    with pytest.raises(ModelError, match=r"plain network.*table\.predict\(architecture\)"):
        table.of(plain)


def test_a_space_that_is_not_held_has_an_expected_price_alone(table: CostTable) -> None:
    with pytest.raises(ChoiceError, match="undecided"):
        table.of(Supernet())
    with pytest.raises(ModelError, match=r"mixed, not held.*expected"):
        table.of(relax(Supernet(), softmax))


def test_the_gates_of_a_space_are_open_until_they_are_decided() -> None:
    space = nn.Sequential(Gate(3, name="gate"))
    prices = CostTable("energy", "mJ", 1.0, {"gate": (1.0, 2.0, 4.0)}, {"gate": ()})
    assert prices.of(space) == float(prices.expected(space)) == 8.0
    assert prices.of(hold(space, Architecture({"gate": (0, 2)}))) == 6.0


class Other(nn.Module):
    def __init__(self, choice: nn.Module) -> None:
        super().__init__()
        self.choice = choice


def test_another_space_is_refused() -> None:
    small = CostTable("energy", "mJ", 1.0, {"a": (1.0, 2.0)}, {"a": ("x", "y")})
    assert small.expected(relax(Other(OpChoice(["x", "y"], name="a")), softmax)).item() == 2.5
    others = (
        OpChoice(["x", "y"], name="b"), OpChoice(["y", "x"], name="a"), OpChoice(["x", "y", "z"], name="a"),
        InputChoice(2, name="a"), nn.ModuleList([OpChoice(["x", "y"], name=n) for n in "ab"]),
    )  # fmt: skip
    for choice in others:
        with pytest.raises(ChoiceError, match=r"for another space: choice '[ab]'.*measure a table of this space"):
            small.expected(relax(Other(choice), softmax))


@pytest.mark.parametrize("picks", [{}, {"b": 0}, {"a": 0, "b": 0}, {"a": 2}, {"a": (0,)}, {"a": ()}])
def test_another_space_s_architecture_is_refused(picks: dict[str, int]) -> None:
    small = CostTable("energy", "mJ", 1.0, {"a": (1.0, 2.0)}, {"a": ("x", "y")})
    assert small.predict(Architecture({"a": 1})) == 3.0
    with pytest.raises(ArchitectureError, match=r"another space|allowed is an index from 0 to 1"):
        small.predict(Architecture(picks))


def test_what_cannot_be_measured_by_differences_is_refused() -> None:
    inner = OpChoice([nn.Sequential(operations("inner")), nn.Identity()], name="outer")
    narrow = Supernet()
    restrict(narrow, {"a": [0, 1]})
    cost = macs(torch.ones(1, 4, 6, 6))
    for space, message in (
        (nn.Conv2d(4, 4, 1), "no choice"),
        (nn.Sequential(nn.Conv2d(4, 4, 1), Gate(4, name="gate")), "gates such as 'gate' multiply"),
        (nn.Sequential(inner), "'inner' lies inside a candidate.*Surrogate"),
        (narrow, "'a' has dead candidates"),
    ):
        with pytest.raises(ChoiceError, match=message):
            measure_table(space, cost)
    with pytest.raises(ArchitectureError, match="another space"):
        measure_table(Supernet(), macs(X), reference=Architecture({"a": 0}))
    with pytest.raises(ModelError, match=r"params is the same whatever is picked.*build=archgrad\.build"):
        measure_table(Supernet(), params())
    with pytest.raises(ModelError, match="a price is a finite number"):
        measure_table(Supernet(), Careless())


class Careless:
    """Somebody's own cost, which does not look at what it returns."""

    name, unit, measured = "careless", "1", True

    def of(self, network: nn.Module) -> float:
        return math.inf

    def expected(self, space: nn.Module) -> Tensor:
        raise NotImplementedError


def test_measuring_changes_nothing_in_the_space() -> None:
    space = Supernet().train()
    before = sample(space, generator=torch.Generator().manual_seed(1))
    measure_table(space, latency(X, repeats=1, warmup=0))
    assert all(module.training for module in space.modules())
    assert all(c.override is None and c.relaxation is None for same in choices(space).values() for c in same)
    assert sample(space, generator=torch.Generator().manual_seed(1)) == before


def altered(text: str, **changes: object) -> str:
    return json.dumps({**json.loads(text), **changes})


GOOD = CostTable("energy", "mJ", 1.0, {"a": (1.0, 2.0)}, {"a": ("x", "y")}).to_json()
ROW = {"labels": ["x", "y"], "prices": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        (GOOD[:-9], "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "'list'"),
        ('{"format": "archgrad.architecture", "version": 1, "picks": {}}', "'archgrad.architecture'"),
        (altered(GOOD, version=2), "format version 2"),
        (altered(GOOD, name=3), "'name' is not"),
        (altered(GOOD, base="1"), "'base': a price is a finite number"),
        (altered(GOOD, base=math.nan), "'base': a price is a finite number"),
        (altered(GOOD, base=10**400), "damaged"),
        (altered(GOOD, choices=[1]), "damaged"),
        (altered(GOOD, choices={"a": 1}), "damaged"),
        (altered(GOOD, choices={"a": {**ROW, "prices": []}}), "'a': a price"),
        (altered(GOOD, choices={"a": {**ROW, "prices": [1.0, True]}}), "'a': a price"),
        (altered(GOOD, choices={"a": {**ROW, "prices": [1.0, "2"]}}), "'a': a price"),
        (altered(GOOD, choices={"a": {**ROW, "prices": [1.0]}}), "1 prices and 2 labels"),
        (altered(GOOD, choices={"a": {**ROW, "labels": [1, 2]}}), "'a' is not what"),
        (altered(GOOD, choices={"a": {"prices": [1.0, 2.0]}}), "damaged"),
        (altered(GOOD, error={"rms": 1.0}), "damaged"),
        (altered(GOOD, error={"rms": "1"}), "'error' is not what"),
        (altered(GOOD, error=5), "damaged"),
    ],
)
def test_damaged_and_foreign_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        CostTable.load(path)
    assert str(path) in str(raised.value)


def test_files_that_cannot_be_reached_are_named(table: CostTable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        CostTable.load(tmp_path / "absent.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot read"):
        CostTable.load(tmp_path / "bytes.json")
    with pytest.raises(DataError, match="cannot write"):
        table.save(tmp_path / "absent" / "a.json")
    with pytest.raises(DataError, match="same choices"):
        CostTable("energy", "mJ", 1.0, {"a": (1.0,)}, {})
