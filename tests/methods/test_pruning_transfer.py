"""Pruning for transfer: its exact tests; numbers in brackets are those of the specification's list."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim import Optimizer

import archgrad as ag
from archgrad.choices.access import choices, hold
from archgrad.choices.relaxations import TwoTemperature
from archgrad.costs.limits import Limit
from archgrad.errors import ChoiceError, ConfigError, DataError, LimitError
from archgrad.gates.gate_optimizer import entry_logits
from archgrad.gates.selection import GateConstraint, full, gates
from archgrad.gates.width_rounding import WidthRounding
from archgrad.methods.pruning_transfer.gate_pruning import Evidence, Signs, adopt, charges, magnitudes, redraw
from archgrad.methods.pruning_transfer.pruning_transfer import PruningTerms

torch.set_num_threads(1)
Function = Callable[[Tensor], Tensor]


def slope(function: Function, theta: Tensor, *, hard: float, soft: float) -> Tensor:
    """What comes back to the logits through the relaxation."""
    gate = TwoTemperature(len(theta), hard=hard, soft=soft).double()
    gate.logits.data.copy_(theta)
    (found,) = torch.autograd.grad(function(gate(torch.ones(len(theta), dtype=torch.bool))), gate.logits)
    return found


def quadratic(seed: int, n: int = 10) -> Function:
    """Multilinear: linear terms and products of pairs."""
    g = torch.Generator().manual_seed(seed)
    linear, pairs = (torch.randn(*size, generator=g, dtype=torch.float64) for size in ((n,), (n, n)))
    return lambda a: linear @ a + a @ pairs.triu(1) @ a


def descended(function: Function, *, hard: float, soft: float, start: float = 0.0, steps: int = 400) -> Tensor:
    theta = torch.full((10,), start, dtype=torch.float64)
    for _ in range(steps):
        theta = theta - 0.05 * slope(function, theta, hard=hard, soft=soft)
    return theta


def test_the_direction_is_the_gradient_times_a_positive_diagonal() -> None:  # [1]
    for seed in range(5):
        theta = 0.2 * torch.randn(10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        true = slope(quadratic(seed), theta, hard=50.0, soft=50.0)
        made = slope(quadratic(seed), theta, hard=50.0, soft=1.0)
        soft, hard = torch.sigmoid(theta), torch.sigmoid(50.0 * theta)
        ratio = soft * (1 - soft) / (50.0 * hard * (1 - hard))
        assert bool((ratio > 0).all())
        assert torch.allclose(made / true, ratio, rtol=1e-12, atol=0)
        assert float(made @ true) > 0
        other = slope(quadratic(seed), theta, hard=50.0, soft=2.0)
        assert not torch.allclose(other / true, ratio, rtol=1e-3, atol=0)


def test_one_temperature_is_the_gradient_of_autograd() -> None:  # [2]
    theta = 0.2 * torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaf = theta.clone().requires_grad_()
    (expected,) = torch.autograd.grad(quadratic(0)(torch.sigmoid(50.0 * leaf)), leaf)
    assert torch.allclose(slope(quadratic(0), theta, hard=50.0, soft=50.0), expected, rtol=1e-12)
    assert not torch.allclose(slope(quadratic(0), theta, hard=50.0, soft=1.0), expected, rtol=1e-2)


def test_a_linear_function_ends_in_its_optimum_and_one_hard_temperature_does_not() -> None:  # [3]
    for seed in range(10):
        c = torch.randn(10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert torch.equal(descended(lambda a: c @ a, hard=50.0, soft=1.0) > 0, c < 0)  # noqa: B023
    # Closed gates have no gradient of their own: what is on and harmful stays on.
    assert bool((descended(lambda a: a.sum(), hard=50.0, soft=50.0, start=0.6) > 0).all())
    assert not bool((descended(lambda a: a.sum(), hard=50.0, soft=1.0, start=0.6) > 0).any())


def test_of_multilinear_functions_all_decided_ends_are_optimal_to_one_flip() -> None:  # [4]
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=10)), dtype=torch.float64)
    rates: dict[str, tuple[int, int, int]] = {}
    for name, soft in (("two", 1.0), ("one", 50.0)):
        best = flip = undecided = 0
        for seed in range(20):
            function = quadratic(seed)
            theta = descended(function, hard=50.0, soft=soft, start=0.05, steps=300)
            a = (theta > 0).double()
            values = torch.func.vmap(function)(every)
            flips = torch.stack([function(torch.where(torch.arange(10) == i, 1 - a, a)) for i in range(10)])
            optimal = bool((flips >= function(a) - 1e-12).all())
            open_yet = bool((theta.abs() < 0.1).any())
            assert optimal or open_yet or name == "one"
            best, flip, undecided = (
                best + bool(function(a) <= values.min() + 1e-12),
                flip + optimal,
                undecided + open_yet,
            )
        rates[name] = best, flip, undecided
    # Global optima, optima to one flip, runs with an undecided gate, of 20.
    assert rates == {"two": (18, 20, 1), "one": (6, 8, 0)}


def separable(gamma: float) -> float:
    """What is kept, as a share of all cost, of parts of different use and cost."""
    g = torch.Generator().manual_seed(0)
    use, cost = torch.rand(10, generator=g, dtype=torch.float64), torch.rand(10, generator=g, dtype=torch.float64)
    cost = cost / cost.sum()
    theta = descended(lambda a: gamma * cost @ a - use @ a / 10, hard=50.0, soft=1.0, start=0.05, steps=1000)
    return float(cost @ (theta > 0).double())


def test_a_larger_gamma_keeps_less_from_everything_to_nothing() -> None:  # [5]
    kept = [separable(gamma) for gamma in (0.0, 0.3, 0.5, 1.0, 100.0)]
    assert kept[0] == pytest.approx(1.0) and kept[-1] == 0.0
    assert kept == sorted(kept, reverse=True) and len(set(kept)) > 3


def test_temperatures_that_make_no_sense_are_refused() -> None:
    for hard, soft in ((1.0, 2.0), (10.0, 0.0), (float("inf"), 1.0)):
        with pytest.raises(ChoiceError, match="0 < soft <= hard"):
            ag.two_temperature(3, hard=hard, soft=soft)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 9), nn.Linear(9, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(torch.relu(self.one(x)))


@functools.cache
def task() -> ag.Classification:
    """Of ten inputs the first four carry the label."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, 10, generator=g)
    return ag.Classification((x, (x[:, :4].sum(1) > 0).long()), batch_size=50)


def made(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), Block(), nn.ReLU(), nn.Linear(12, 2))
    return ag.slim(net, task().example, inputs=True)


def quiet(**settings: object) -> ag.Run:
    return ag.Run(
        **{"steps": 200, "seed": 1, "device": "cpu", "progress": False, "output": ag.Output(log_every=1), **settings}
    )


def half() -> Limit:
    return ag.params().at_most(fraction=0.5)


fast = functools.partial(ag.adam, learning_rate=0.03)


@pytest.mark.parametrize("process", ["redraw", "cotrain", "frozen"])
@pytest.mark.parametrize("limited", [True, False])
def test_the_network_is_the_masked_space_and_loses_inputs_and_channels(process: str, limited: bool) -> None:  # [6]
    space = made()
    found = ag.pruning_transfer(
        space,
        task(),
        quiet(),
        limit=half() if limited else None,
        process=process,
        search_fraction=0.9,
        recipe=ag.Recipe(optimizer_factory=fast),
    )
    assert {"0.inputs", "0", "2.one", "2.branch"} == set(found.architecture)
    x = torch.randn(7, 10)
    held, built = hold(space, found.architecture), ag.build(space, found.architecture)
    assert torch.allclose(held(x), built(x), atol=1e-5)
    assert found.network(x).shape == (7, 2)
    assert ag.params().of(found.network) == pytest.approx(float(ag.params().expected(held)))
    assert ("before" in found.record) == (process == "frozen")


def test_the_limits_of_gamma_on_a_network() -> None:  # [5]
    least = ag.pruning_transfer(made(), task(), quiet(), gamma=1e3)
    assert all(len(pick) <= 1 for pick in least.architecture.values())
    assert least.architecture["2.branch"] == ()
    assert [len(least.architecture[name]) for name in ("0", "0.inputs")] == [1, 1], "no layer dies"


class Harmless(ag.Classification):
    def loss(self, network: nn.Module, batch: object) -> Tensor:
        return 0.0 * sum(w.sum() for w in ag.weights(network)) + 0.0 * sum(s.sum() for s in ag.logits(network))


def test_without_penalty_all_that_does_no_harm_stays() -> None:  # [5]
    g = torch.Generator().manual_seed(0)
    harmless = Harmless((torch.randn(90, 10, generator=g), torch.arange(90) % 2), batch_size=30)
    found = ag.pruning_transfer(made(), harmless, quiet(steps=60), gamma=0.0, terms=PruningTerms(noise=0.0))
    assert found.architecture == full(made())
    some = ag.pruning_transfer(made(), harmless, quiet(steps=60), gamma=100.0, terms=PruningTerms(noise=0.0))
    assert some.architecture != full(made())


def shifted(parameters: Iterable[nn.Parameter], *, by: int) -> Optimizer:
    """The same optimizer, after which torch draws other weights; batches and gates stay what they are."""
    torch.rand(by + 1)
    return fast(parameters)


def overlap(one: ag.Architecture, other: ag.Architecture) -> float:
    first, second = ({(n, i) for n, pick in each.items() for i in pick} for each in (one, other))
    return len(first & second) / len(first | second)


def test_drawn_afresh_the_inputs_kept_do_not_depend_on_which_weights_were_drawn() -> None:  # [7]
    space = ag.slim(nn.Sequential(nn.Linear(10, 2)), task().example, inputs=True)
    limit = ag.params().at_most(10)
    first, second, third = (
        ag.pruning_transfer(
            space, task(), quiet(steps=300), limit=limit, process=process, search_fraction=0.9,
            recipe=ag.Recipe(optimizer_factory=functools.partial(shifted, by=by)),
        ).architecture
        for process, by in (("redraw", 0), ("redraw", 1), ("frozen", 0))
    )  # fmt: skip
    assert overlap(first, second) == 1.0
    assert first["0.inputs"] == (0, 1, 2, 3)
    assert overlap(first, third) < 1.0, "on weights that know nothing it is these that decide"


@pytest.mark.parametrize("fraction", [0.2, 0.37, 0.5, 0.81])
def test_a_budget_is_met_to_within_one_part(fraction: float) -> None:  # [8]
    space = made()
    for cost in (ag.params(), ag.macs(task().example)):
        constraint = GateConstraint(space, cost.at_most(fraction=fraction), WidthRounding(1))
        g = torch.Generator().manual_seed(3)
        found = constraint.best_feasible({n: torch.randn(one.size, generator=g) for n, one in gates(space).items()})
        assert cost.of(ag.build(space, found)) <= constraint.bound
        gone = set() if found["2.branch"] else {"2.branch", "2.one"}
        for name, gate in gates(space).items():
            for entry in set(range(gate.size)) - set(found[name]) if name not in gone else ():
                more = ag.Architecture({**found, name: tuple(sorted((*found[name], entry)))})
                assert constraint.price(more) > constraint.bound


def test_charges_are_shares_of_the_cost() -> None:
    space = made()
    names = [name for name, gate in gates(space).items() for _ in range(gate.size)]
    assert torch.allclose(charges(space, None), torch.full((len(names),), 1 / len(names)))
    priced = charges(space, ag.params())
    assert float(priced.sum()) == pytest.approx(1.0)
    # An input column has 12 weights; a hidden unit of the block 12 + 12 weights and a bias.
    ratio = priced[names.index("2.one")] / priced[names.index("0.inputs")]
    assert float(ratio) == pytest.approx(25 / 12, rel=1e-5)


def test_drawing_afresh_reaches_weights_behind_gates_and_leaves_the_logits() -> None:
    space = ag.relax(made(), ag.two_temperature)
    twin = ag.build(space, full(space))
    before = {k: v.clone() for k, v in space.state_dict().items()}
    redraw(space, twin)
    for name, tensor in space.state_dict().items():
        free = name.endswith((".original", "weight", "bias"))
        assert torch.equal(before[name], tensor) != free, name
    x = torch.randn(3, 10)
    open_space = made()
    adopt(open_space, twin)
    assert torch.equal(open_space(x), twin(x))


@pytest.mark.parametrize(
    "norm",
    [nn.utils.weight_norm, nn.utils.spectral_norm, parametrizations.weight_norm, parametrizations.spectral_norm],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weights_that_are_normed_are_drawn_afresh(norm: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(norm(nn.Linear(4, 8)), nn.ReLU(), norm(nn.Linear(8, 2)))
    space, x = ag.slim(net, torch.randn(2, 4)), torch.randn(3, 4)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        redraw(space, ag.build(space, full(space)))
        drawn.append(space.eval()(x))
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])


def test_magnitudes_are_those_of_the_weights_that_make_a_part() -> None:
    space = made()
    with torch.no_grad():
        space[0].parametrizations.weight.original[:, 5] = 9.0
        space[2].one.parametrizations.weight.original[3] = 7.0
    found = magnitudes(space)
    assert int(found["0.inputs"].argmax()) == 5 and int(found["2.one"].argmax()) == 3
    assert all(float(row.mean()) == pytest.approx(1.0) for row in found.values())


def test_signs_settle_after_the_first_change() -> None:
    signs, on = Signs(), torch.ones(4)
    assert [signs.observe(on)["flips"] for _ in range(3)] == [0.0, 0.0, 0.0]
    assert signs.unchanged == 0, "nothing has moved yet"
    on[1] = -1.0
    assert signs.observe(on) == {"flips": 1.0, "open_gates": 3.0}
    signs.observe(on)
    again = Signs()
    again.load_state_dict(signs.state_dict())
    again.observe(on)
    assert again.unchanged == 2


def test_it_stops_early_once_no_part_changes_and_clips() -> None:
    run, steps = quiet(steps=2000), PruningTerms(weight_steps=2, gate_steps=2, patience=5, clip=True)
    ag.pruning_transfer(made(), task(), run, gamma=200.0, terms=steps)
    assert sum(row["phase"] == "gates" for row in run.history) < 200
    space, seen = made(), {}

    class Watched(ag.Run):
        def compute_once(self, key: str, compute: Callable[[], object]) -> object:
            seen.update(entry_logits(self._checkpoints.parts["space"]) if key == "architecture" else {})
            return super().compute_once(key, compute)

    ag.pruning_transfer(
        space, task(), Watched(steps=200, device="cpu", progress=False), gamma=200.0, terms=PruningTerms(clip=True)
    )
    assert min(float(row.min()) for row in seen.values()) == -1.0


class Stop(Exception):
    pass


@pytest.mark.parametrize(("process", "at"), [("redraw", 12), ("redraw", 14), ("redraw", 29), ("cotrain", 18)])
def test_it_resumes_exactly_wherever_in_a_round_it_was_stopped(process: str, at: int, tmp_path: object) -> None:
    search = functools.partial(
        ag.pruning_transfer,
        limit=half(),
        process=process,
        terms=PruningTerms(weight_steps=8, gate_steps=4, patience=3),
    )
    expected = search(made(), task(), quiet(steps=60)).network.state_dict()

    class Stopping(ag.Run):
        def log(self, figures: object, *, step: int | None = None) -> None:
            super().log(figures, step=step)
            if sum("loss" in row for row in self.history) > at:
                raise Stop

    folder = {"folder": tmp_path, "output": ag.Output(log_every=1, checkpoint_seconds=0.0)}
    broken = Stopping(steps=60, seed=1, device="cpu", progress=False, **folder)
    with pytest.raises(Stop):
        search(made(), task(), broken)
    broken.close()
    resumed = search(made(), task(), quiet(steps=60, **folder)).network.state_dict()
    assert all(torch.equal(expected[k], resumed[k]) for k in expected)


def test_what_makes_no_sense_is_refused() -> None:
    search = functools.partial(ag.pruning_transfer, made(), task())
    with pytest.raises(ConfigError, match=r"process='again'.*Allowed is one of 'redraw', 'cotrain', 'frozen'"):
        search(quiet(), process="again")
    with pytest.raises(ConfigError, match="gamma=-1"):
        search(quiet(), gamma=-1)
    with pytest.raises(ConfigError, match="gate_steps=0: allowed is 1 or more"):
        search(quiet(), terms=PruningTerms(gate_steps=0))
    with pytest.raises(ConfigError, match="Give a larger budget"):
        search(quiet(steps=30))
    with pytest.raises(DataError, match="share"):
        search(quiet(), terms=PruningTerms(held_out=1.0))
    with pytest.raises(LimitError, match="lowest reachable"):
        search(quiet(), limit=ag.params().at_most(fraction=0.01))
    with pytest.raises(ChoiceError, match="a space of gates alone"):
        ag.pruning_transfer(nn.Sequential(nn.Linear(10, 2)), task(), quiet())
    assert len(choices(made())) == 4


def informed() -> ag.Classification:
    """Of ten inputs three carry the label."""
    x = torch.randn(400, 10, generator=torch.Generator().manual_seed(0))
    return ag.Classification((x, (x[:, [1, 4, 8]].sum(1) > 0).long()), batch_size=40)


@pytest.mark.parametrize("statistic", ["magnitude", "gradient"])
def test_statistics_over_draws_of_the_weights_find_the_inputs_that_carry_the_label(statistic: str) -> None:
    torch.manual_seed(0)
    space = ag.slim(nn.Sequential(nn.Linear(10, 2)), torch.zeros(1, 10), inputs=True)
    run = ag.Run(steps=300, seed=0, device="cpu", progress=False)
    recipe = ag.Recipe(optimizer_factory=functools.partial(ag.adam, learning_rate=0.05))
    found = ag.pruning_transfer(
        space, informed(), run, limit=ag.macs(torch.zeros(1, 10)).at_most(fraction=0.3), recipe=recipe,
        terms=PruningTerms(statistic=statistic),
    )  # fmt: skip
    assert found.architecture["0.inputs"] == (1, 4, 8)


def test_evidence_is_the_mean_over_the_rounds_and_its_state_goes_on() -> None:
    space = ag.slim(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.zeros(1, 4))
    ag.relax(space, TwoTemperature)
    whole, first, second = (Evidence(space, "gradient") for _ in range(3))
    rows = [[torch.randn(6)] for _ in range(4)]
    for row in rows:
        whole.observe_gradients(row)
        whole.observe_weights(first=True)
    for row in rows[:2]:
        first.observe_gradients(row)
    second.load_state_dict(first.state_dict())
    for row in rows[2:]:
        second.observe_gradients(row)
    second.decide()
    expected = torch.stack([row[0].square() for row in rows]).mean(0)
    assert torch.allclose(ag.logits(space)[0], expected) and whole.count == second.count == 4


def test_a_statistic_needs_a_limit_and_a_name() -> None:
    space = ag.slim(nn.Sequential(nn.Linear(10, 2)), torch.zeros(1, 10), inputs=True)
    run = ag.Run(steps=60, device="cpu", progress=False)
    for wrong, said in (("magnitude", "give a limit"), ("other", "allowed are 'theta'")):
        with pytest.raises(ConfigError, match=said):
            ag.pruning_transfer(space, informed(), run, terms=PruningTerms(statistic=wrong))
