"""The surrogate: fitted to tables whose prices are known, and refused what it cannot learn from."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from archgrad.choices.access import choices, hold, logits, relax, sample, using
from archgrad.choices.architecture import Architecture
from archgrad.choices.gate import Gate
from archgrad.choices.modules import InputChoice, OpChoice
from archgrad.choices.relaxations import softmax
from archgrad.costs.count import macs
from archgrad.costs.latency import latency
from archgrad.costs.limits import Cost, Limit, Predicts, black_box
from archgrad.costs.prediction_error import prediction_error, rank_correlation
from archgrad.costs.surrogate import Surrogate
from archgrad.costs.table import CostTable
from archgrad.errors import ArchitectureError, ChoiceError, ConfigError, DataError
from archgrad.run import checkpoint_file as checkpoint

LAYERS, OPS = 21, 7
CLOCK = latency(torch.ones(1, 3))


def layers(count: int = LAYERS, size: int = OPS) -> nn.Module:
    """A space whose candidates do nothing: what counts are their prices."""
    return nn.Sequential(*(OpChoice([nn.Identity() for _ in range(size)], name=f"l{i}") for i in range(count)))


def additive(count: int = LAYERS, size: int = OPS) -> CostTable:
    """Milliseconds between 0 and 1 a candidate."""
    prices = torch.rand(count, size, dtype=torch.float64).tolist()
    rows = {f"l{i}": tuple(row) for i, row in enumerate(prices)}
    return CostTable("latency", "ms", 3.0, rows, dict.fromkeys(rows, ("Identity",) * size))


def drawn(space: nn.Module, count: int, *, seed: int = 0) -> list[Architecture]:
    generator = torch.Generator().manual_seed(seed)
    return [sample(space, generator=generator) for _ in range(count)]


def fitted(count: int = 60) -> tuple[nn.Module, CostTable, Surrogate]:
    space, table = layers(3, 4), additive(3, 4)
    surrogate = Surrogate(space, CLOCK)
    architectures = drawn(space, count)
    surrogate.fit(architectures, [table.predict(a) for a in architectures])
    return space, table, surrogate


class Mixed(nn.Module):
    """All kinds of choices."""

    def __init__(self) -> None:
        super().__init__()
        self.op = OpChoice([nn.Identity(), nn.Tanh(), nn.ReLU()], name="op")
        self.sum = InputChoice(4, keep=2, name="sum")
        self.gate = Gate(3, name="gate")

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.sum([self.op(x)] * 4))


def test_8000_samples_of_21_additive_layers_are_predicted_within_a_hundredth() -> None:
    space, table = layers(), additive()
    picks = torch.randint(0, OPS, (10_000, LAYERS)).tolist()
    architectures = [Architecture({f"l{i}": k for i, k in enumerate(row)}) for row in picks]
    values = [table.predict(a) for a in architectures]
    error = Surrogate(space, CLOCK).fit(architectures, values)
    assert (error.fitted_on, error.tested_on) == (8000, 2000)
    assert error.rms < 1e-2
    assert error.percent == pytest.approx(100 * error.rms / (sum(values) / len(values)), rel=0.02)
    assert error.rank is not None and error.rank > 0.9999


def test_single_coefficients_mean_nothing_but_their_differences_do() -> None:
    _, table, surrogate = fitted(3000)
    offsets = []
    for name, true in table.prices.items():
        found = surrogate.table.prices[name]
        differences = [f - t for f, t in zip(found, true, strict=True)]
        assert max(differences) - min(differences) < 2e-3
        offsets.append(abs(differences[0]))
    assert max(offsets) > 0.1


def test_the_closed_form_of_the_expectation_equals_enumeration() -> None:
    space, _, surrogate = fitted()
    weights = {name: torch.randn(4, dtype=torch.float64).softmax(0) for name in choices(space)}
    mean = 0.0
    for picks in itertools.product(range(4), repeat=3):
        probability = math.prod(float(weights[f"l{i}"][k]) for i, k in enumerate(picks))
        mean += probability * surrogate.predict(Architecture({f"l{i}": k for i, k in enumerate(picks)}))
    assert surrogate.at(weights).item() == pytest.approx(mean, rel=1e-9)


def hinge_by_bins(rows: list[list[int]], weights: list[list[float]], base: int, target: int) -> float:
    """E[max(0, T - T0)] by a dynamic programme over (layer, latency bin)."""
    mass = {base: 1.0}
    for prices, probabilities in zip(rows, weights, strict=True):
        after: dict[int, float] = {}
        for total, p in mass.items():
            for price, q in zip(prices, probabilities, strict=True):
                after[total + price] = after.get(total + price, 0.0) + p * q
        mass = after
    return sum(p * max(0, total - target) for total, p in mass.items())


def test_the_expected_hinge_by_enumeration_equals_a_dynamic_programme() -> None:
    count, size, base = 5, 3, 4
    rows = torch.randint(0, 9, (count, size)).tolist()
    weights = torch.randn(count, size, dtype=torch.float64).softmax(-1)
    names = [f"l{i}" for i in range(count)]
    table = CostTable(
        "latency", "ms", base, dict(zip(names, map(tuple, rows), strict=True)), dict.fromkeys(names, ("a", "b", "c"))
    )
    mean = table.at(dict(zip(names, weights, strict=True))).item()
    picks = torch.tensor(list(itertools.product(range(size), repeat=count)))
    hard = nn.functional.one_hot(picks, size).double()
    totals = table.at({name: hard[:, i] for i, name in enumerate(names)})
    probability = (hard * weights).sum(-1).prod(-1)
    assert float(probability @ totals) == pytest.approx(mean, rel=1e-9)
    for target in (int(mean), int(mean) + 3):
        hinge = float(probability @ (totals - target).clamp(min=0))
        assert hinge == pytest.approx(hinge_by_bins(rows, weights.tolist(), base, target), rel=1e-9)
        assert hinge > max(0.0, mean - target) + 0.1  # Jensen: the hinge of the mean is no stand-in


def test_all_kinds_of_choices_are_features() -> None:
    space = Mixed()
    true = CostTable(
        "energy", "mJ", 2.0, {"op": (1.0, 5.0, 2.0), "sum": (1.0, 2.0, 3.0, 4.0), "gate": (0.5, 0.0, 0.25)},
        {"op": ("Identity", "Tanh", "ReLU"), "sum": (), "gate": ()},
    )  # fmt: skip
    surrogate = Surrogate(space, black_box(lambda network: 1.0, name="energy", unit="mJ"), ridge=1e-6)
    architectures = drawn(space, 200)
    surrogate.fit(architectures, [true.predict(a) for a in architectures])
    assert surrogate.error.rms < 1e-4
    for architecture in drawn(space, 5, seed=1):
        held = hold(space, architecture)
        assert surrogate.predict(architecture) == pytest.approx(true.predict(architecture), abs=1e-3)
        assert surrogate.expected(held).item() == pytest.approx(surrogate.predict(architecture), rel=1e-12)


def test_weights_may_be_relaxed_and_a_row_an_example() -> None:
    space, _, surrogate = fitted()
    rows = {name: torch.randn(5, 4).softmax(-1).requires_grad_() for name in choices(space)}
    prices = surrogate.at(rows)
    assert prices.shape == (5,)
    for i in range(5):
        assert surrogate.at({name: w[i] for name, w in rows.items()}).item() == pytest.approx(prices[i].item())
    mixed = surrogate.at({**rows, "l0": torch.tensor([0.0, 1.0, 0.0, 0.0])})
    assert mixed.shape == (5,)
    prices.sum().backward()
    wanted = torch.tensor(surrogate.table.prices["l1"]).expand(5, 4)
    assert torch.allclose(rows["l1"].grad, wanted)
    with using(space, {name: w.detach() for name, w in rows.items()}):
        assert torch.equal(surrogate.expected(space), prices)


def test_the_expected_price_reaches_the_logits() -> None:
    space, _, surrogate = fitted()
    surrogate.expected(relax(space, softmax)).backward()
    for name, parameter in zip(choices(space), logits(space), strict=True):
        dearest = max(range(4), key=surrogate.table.prices[name].__getitem__)
        assert parameter.grad is not None and int(parameter.grad.argmax()) == dearest


def test_it_is_a_cost_whose_figure_of_a_network_is_the_true_one() -> None:
    space, x = nn.Sequential(OpChoice([nn.Linear(3, 3), nn.Identity()], name="op")), torch.ones(1, 3)
    surrogate: Cost = Surrogate(space, macs(x))
    assert (surrogate.name, surrogate.unit, surrogate.measured) == ("macs", "MACs", False)
    assert surrogate.of(nn.Linear(3, 4)) == 12
    assert isinstance(surrogate, Predicts) and not isinstance(macs(x), Predicts)
    assert surrogate.at_most(5.0) == Limit(surrogate, 5.0)


def test_refitted_it_follows_what_a_moved_policy_measures() -> None:
    """Not additive: the first layer's prices depend on the second's pick, where the policy has settled."""
    space = layers(2, 3)

    def price(a: Architecture) -> float:
        return 10.0 + (a["l0"] if a["l1"] == 2 else -a["l0"])

    surrogate = Surrogate(space, CLOCK, capacity=50)
    early = [a for a in drawn(space, 300) if a["l1"] != 2][:50]
    surrogate.fit(early, [price(a) for a in early])
    table = surrogate.table
    late = [Architecture({"l0": i % 3, "l1": 2}) for i in range(48)]
    target = Architecture({"l0": 2, "l1": 2})
    assert surrogate.predict(target) < 9
    surrogate.add(late, [price(a) for a in late])
    assert surrogate.table is table and len(surrogate) == 50
    surrogate.fit()
    assert surrogate.predict(target) == pytest.approx(12, abs=0.3)


def test_what_is_held_out_is_unseen_even_where_samples_repeat() -> None:
    """Noise that each architecture keeps: a copy of a held-out sample in the fit would give it away."""
    space = layers(1, 40)
    values = torch.randn(40).tolist()
    surrogate = Surrogate(space, CLOCK, ridge=1e-6)
    architectures = [Architecture({"l0": k}) for k in range(40)] * 5
    error = surrogate.fit(architectures, values * 5)
    assert (error.fitted_on, error.tested_on) == (160, 40)
    assert error.rms > 0.3


def test_a_state_is_taken_up_in_full(tmp_path: Path) -> None:
    space, table, surrogate = fitted()
    more = drawn(space, 7, seed=5)
    surrogate.add(more, [table.predict(a) for a in more])
    checkpoint.save(tmp_path / "a.safetensors", surrogate.state_dict())
    other = Surrogate(space, CLOCK)
    other.load_state_dict(checkpoint.load(tmp_path / "a.safetensors"))
    assert len(other) == 67 and other.table == surrogate.table and other.error == surrogate.error
    assert other.fit() == surrogate.fit() and other.table == surrogate.table
    empty = Surrogate(space, CLOCK)
    checkpoint.save(tmp_path / "b.safetensors", empty.state_dict())
    other.load_state_dict(checkpoint.load(tmp_path / "b.safetensors"))
    assert len(other) == 0
    with pytest.raises(DataError, match="not fitted"):
        other.at({})


def test_a_state_of_another_space_is_refused() -> None:
    _, _, surrogate = fitted()
    state = Surrogate(layers(2, 2), CLOCK).state_dict()
    with pytest.raises(ChoiceError, match="this space has 12"):
        surrogate.load_state_dict(state)
    assert len(surrogate) == 60


def test_too_few_samples_are_refused() -> None:
    space = layers(3, 4)
    surrogate = Surrogate(space, CLOCK)
    with pytest.raises(DataError, match="0 samples of 0 different"):
        surrogate.fit()
    same = drawn(space, 1) * 30
    with pytest.raises(DataError, match=r"30 samples of 1 different architectures are too few"):
        surrogate.fit(same, [1.0] * 30)
    for ask in (lambda: surrogate.error, lambda: surrogate.predict(same[0]), lambda: surrogate.expected(space)):
        with pytest.raises(DataError, match="not fitted yet; call fit"):
            ask()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_and_nothing_is_kept(value: float) -> None:
    space = layers(3, 4)
    surrogate = Surrogate(space, CLOCK)
    with pytest.raises(DataError, match=r"value 2 of 6 is .*finite number of ms"):
        surrogate.fit(drawn(space, 6), [1.0, 2.0, value, 3.0, 4.0, 5.0])
    with pytest.raises(DataError, match="6 architectures and 5 values"):
        surrogate.add(drawn(space, 6), [1.0] * 5)
    assert len(surrogate) == 0


def test_foreign_architectures_and_weights_are_refused() -> None:
    space, _, surrogate = fitted()
    for wrong in ({"l0": 1}, {"l0": 1, "l1": 1, "l2": 1, "l3": 1}):
        with pytest.raises(ArchitectureError, match="for another space"):
            surrogate.add([Architecture(wrong)], [1.0])
        with pytest.raises(ArchitectureError, match="for another space"):
            surrogate.predict(Architecture(wrong))
    for pick in (4, (1,)):
        with pytest.raises(ArchitectureError, match="the pick is"):
            surrogate.add([Architecture({"l0": 1, "l1": 1, "l2": pick})], [1.0])
        with pytest.raises(ArchitectureError, match="the pick is"):
            surrogate.predict(Architecture({"l0": 1, "l1": 1, "l2": pick}))
    whole = {name: torch.ones(4) for name in choices(space)}
    wrongs: list[dict[str, Tensor]] = [
        {}, {**whole, "l9": torch.ones(4)}, {**whole, "l1": torch.ones(5)}, {**whole, "l1": torch.ones(())},
        {**whole, "l0": torch.ones(2, 4), "l1": torch.ones(3, 4)},
    ]  # fmt: skip
    for given in wrongs:
        with pytest.raises(ChoiceError, match="weights do not fit"):
            surrogate.at(given)
    with pytest.raises(ChoiceError, match="undecided"):
        surrogate.expected(space)
    with pytest.raises(ChoiceError, match="another space"):
        surrogate.expected(relax(layers(2, 4), softmax))


def test_what_cannot_be_modelled_is_refused() -> None:
    with pytest.raises(ChoiceError, match="no choice"):
        Surrogate(nn.Linear(2, 2), CLOCK)
    for wrong in ({"ridge": 0.0}, {"ridge": math.nan}, {"capacity": 4}):
        with pytest.raises(ConfigError, match="allowed are"):
            Surrogate(layers(2, 2), CLOCK, **wrong)


def test_a_cost_that_never_varies_is_modelled_without_a_rank() -> None:
    space = layers(2, 4)
    error = Surrogate(space, CLOCK).fit(drawn(space, 30), [2.5] * 30)
    assert error.rank is None and error.rms < 1e-12


def test_prediction_error_by_hand() -> None:
    found = prediction_error([1.0, 2.0, 4.0], [1.0, 3.0, 2.0], fitted_on=9)
    assert found.rms == pytest.approx(math.sqrt(5 / 3)) and found.percent == pytest.approx(50 * math.sqrt(5 / 3))
    assert (found.rank, found.tested_on, found.fitted_on) == (pytest.approx(0.5), 3, 9)
    assert rank_correlation([1, 2, 2, 3], [10, 20, 20, 30]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 2, 3], [3, 2, 1, 0]) == pytest.approx(-math.sqrt(0.9))
    assert rank_correlation([1, 1], [1, 2]) is None and rank_correlation([5], [5]) is None
    assert prediction_error([0.0], [0.0], fitted_on=1).percent is None
