"""The largest architecture under a limit, against brute force; rounding; what may not die."""

from __future__ import annotations

import itertools

import pytest
import torch
from families import transformers
from families.convolutional import mobilenet, plain, resnet
from torch import Tensor, nn

from archgrad.choices.access import choices
from archgrad.choices.architecture import Architecture
from archgrad.choices.channels import Coupling
from archgrad.choices.gate import Gate
from archgrad.choices.modules import OpChoice
from archgrad.costs.count import Counter, Macs, macs, params
from archgrad.costs.limits import Limit
from archgrad.costs.memory import peak_memory
from archgrad.errors import ChoiceError, ConfigError, LimitError
from archgrad.extract.discretize import build
from archgrad.gates.gate_optimizer import left_full
from archgrad.gates.selection import GateConstraint, above_threshold, gates, uniform
from archgrad.gates.width_rounding import WidthRounding
from archgrad.spaces.slim.slimmable import slim

X = torch.randn(2, 3, 8, 8)


def random_scores(space: nn.Module, *, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(gate.size, generator=g) for name, gate in gates(space).items()}


def tiny() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    return slim(net, torch.randn(2, 3))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8, 1.0])
def test_the_largest_under_the_limit_is_that_of_brute_force(seed: int, fraction: float) -> None:
    """Of all architectures in the order of the scores, the most expensive one that keeps the limit."""
    space, x = tiny(), torch.randn(2, 3)
    scores = random_scores(space, seed=seed)
    cost = macs(x)
    bound = fraction * cost.of(space)
    found = GateConstraint(space, cost.at_most(fraction=fraction), WidthRounding(1)).best_feasible(scores)
    names = list(scores)
    best = -1.0
    for widths in itertools.product(*(range(1, scores[n].numel() + 1) for n in names)):
        picks = {n: tuple(scores[n].topk(w).indices.tolist()) for n, w in zip(names, widths, strict=True)}
        kept = torch.cat([scores[n][list(picks[n])] for n in names])
        lost = torch.cat([scores[n] for n in names])
        lost = lost[~torch.isin(lost, kept)]
        # One threshold parts them, but for the one entry that each gate keeps in any case.
        forced = torch.stack([scores[n].max() for n in names])
        chosen = kept[~torch.isin(kept, forced)]
        if len(lost) and len(chosen) and float(chosen.min()) < float(lost.max()):
            continue
        value = cost.of(build(space, Architecture(picks)))
        if value <= bound:
            best = max(best, value)
    # The best single threshold, and after it whatever else fits: nothing more does.
    assert best <= cost.of(build(space, found)) <= bound
    for name in names:
        kept = len(found[name])
        if kept < scores[name].numel():
            more = Architecture({**found, name: tuple(scores[name].topk(kept + 1).indices.tolist())})
            assert cost.of(build(space, more)) > bound


@pytest.mark.parametrize("make", [plain, resnet, mobilenet, transformers.vit_fused])
@pytest.mark.parametrize("rounding", [None, 1])
def test_the_limit_is_kept_on_a_recount_and_used_up(make, rounding: int | None) -> None:
    space = slim(make(), X)
    for seed, (cost, fraction) in enumerate(((macs(X), 0.5), (params(), 0.6), (macs(X), 0.9))):
        scores, widths = random_scores(space, seed=seed), WidthRounding(rounding)
        constraint = GateConstraint(space, cost.at_most(fraction=fraction), widths)
        assert constraint.reference == cost.of(space)
        found = constraint.best_feasible(scores)
        value = cost.of(build(space, found))
        assert value <= fraction * cost.of(space)
        assert constraint.price(found) == pytest.approx(value, rel=1e-12)
        # Every larger architecture in the order of the scores is over the limit.
        values = torch.cat(list(scores.values())).unique().tolist()
        others = {constraint.price(above_threshold(space, scores, t, widths)) for t in (values[0] - 1, *values)}
        assert all(other > constraint.bound for other in others if other > value * (1 + 1e-12))


@pytest.mark.parametrize("rounding", [None, 1])
@pytest.mark.parametrize("make", [resnet, transformers.vit_fused])
@pytest.mark.parametrize("low", ["branches", "inside", "stream"])
def test_branches_that_leave_together_come_back_while_the_limit_allows_it(
    make, low: str, rounding: int | None
) -> None:
    """Blocks are most of the cost, and one threshold on such scores takes all or none of them."""
    space = slim(make(), X)
    for seed, fraction in enumerate((0.15, 0.3, 0.6)):
        scores = random_scores(space, seed=seed)
        for name, gate in gates(space).items():
            inside = gate.vanishing is None and any(c.side == "in" for c in gate.couplings)
            if (gate.vanishing is not None) if low == "branches" else inside == (low == "inside"):
                scores[name] = scores[name] * 1e-3 - 5.0
        constraint = GateConstraint(space, macs(X).at_most(fraction=fraction), WidthRounding(rounding))
        used = constraint.price(constraint.best_feasible(scores)) / constraint.bound
        assert 0.85 <= used <= 1.0, (fraction, used)


class Residual(nn.Module):
    """x + W relu(V x), with so many inner channels."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, inner), nn.Linear(inner, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.last(self.first(x).softmax(-1) if len(self.first.weight) > 16 else self.first(x).relu())


def test_a_branch_that_does_not_fit_keeps_no_other_out_and_many_take_few_prices() -> None:
    x = torch.randn(2, 4)
    blocks = [Residual(256), *(Residual(16) for _ in range(40))]  # the inner channels of the first are frozen
    space = slim(nn.Sequential(nn.Linear(4, 16), *blocks, nn.Linear(16, 3)), x)
    scores = {n: torch.rand(g.size) - (9.0 if g.vanishing else 0.0) for n, g in gates(space).items()}
    scores["1.branch"] += 5.0
    constraint = GateConstraint(space, macs(x).at_most(fraction=0.015), WidthRounding(1))
    asked = 0
    price = constraint.price

    def counted(architecture: Architecture) -> float:
        nonlocal asked
        asked += 1
        return price(architecture)

    constraint.price = counted  # type: ignore[method-assign]
    found = constraint._lowest_threshold(scores, 0.0, constraint.bound)
    assert found["1.branch"] == () and any(found[f"{n}.branch"] for n in range(2, 42))
    assert 0.8 <= price(found) / constraint.bound <= 1.0 and asked < 300


def rounded(space: nn.Module, rounding: WidthRounding, least: dict[str, int]) -> list[dict[str, int]]:
    """All numbers of entries that rounding allows."""
    options = []
    for name, one in gates(space).items():
        steps = range(0 if one.vanishing else rounding.step(one), one.size, rounding.step(one))
        options.append([n for n in (*steps, one.size) if one.vanishing or n >= least[name]])
    return [dict(zip(gates(space), counts, strict=True)) for counts in itertools.product(*options)]


@pytest.mark.parametrize(("make", "seed"), [*(("mlp", seed) for seed in range(12)), ("resnet", 458)])
def test_rounded_widths_use_what_a_limit_allows(make: str, seed: int) -> None:
    """Never over the limit, and at least 0.85 of the most that any rounded widths use; twice the same."""
    g = torch.Generator().manual_seed(seed)
    fraction, to = 0.3 + 0.6 * float(torch.rand((), generator=g)), (None, 4, 8)[seed % 3]
    sizes = [3, *(8 * int(torch.randint(1, 5, (), generator=g)) for _ in range(3)), 5]
    layers = [layer for ins, outs in itertools.pairwise(sizes) for layer in (nn.Linear(ins, outs), nn.ReLU())]
    net, x = (resnet(), X) if make == "resnet" else (nn.Sequential(*layers[:-1]), torch.randn(2, 3))
    space, rounding = slim(net, x), WidthRounding(to)
    scores = random_scores(space, seed=seed)
    try:
        constraint = GateConstraint(space, macs(x).at_most(fraction=fraction), rounding)
    except LimitError:
        pytest.skip("the narrowest rounded widths are above the limit")
    floor = 0.5 * constraint.uniform_width()
    found = constraint.best_feasible(scores, floor=floor)
    assert found == constraint.best_feasible(scores, floor=floor)
    used = macs(x).of(build(space, found))
    assert used <= constraint.bound
    least = {name: rounding.count(one, int(floor * one.size)) for name, one in gates(space).items()}
    prices = [
        constraint.price(Architecture({n: tuple(range(count)) for n, count in counts.items()}))
        for counts in rounded(space, rounding, least)
    ]
    most = max((price for price in prices if price <= constraint.bound), default=0.0)
    assert used >= 0.85 * most
    for name, one in gates(space).items():
        assert len(found[name]) % rounding.step(one) == 0 or len(found[name]) == one.size


def test_everything_stays_where_there_is_room() -> None:
    space = slim(resnet(), X)
    full = {name: tuple(range(gate.size)) for name, gate in gates(space).items()}
    for limit in (macs(X).at_most(fraction=1.0), macs(X).at_most(1e12)):
        assert GateConstraint(space, limit, WidthRounding()).best_feasible(
            random_scores(space, seed=0)
        ) == Architecture(full)


def test_the_impossible_names_the_lowest_that_can_be_reached() -> None:
    space = slim(plain(), X)
    lowest = Architecture(dict.fromkeys(gates(space), (0,)))
    least = macs(X).of(build(space, lowest))
    assert GateConstraint(space, macs(X).at_most(least), WidthRounding(1)).best_feasible(random_scores(space, seed=0))
    with pytest.raises(LimitError, match=rf"lowest reachable is {least:,.0f} .*raise the limit$"):
        GateConstraint(space, macs(X).at_most(least - 1), WidthRounding(1))
    with pytest.raises(LimitError, match=r"lowest reachable is .*round_to=1"):
        GateConstraint(space, macs(X).at_most(least - 1), WidthRounding(4))
    with pytest.raises(LimitError, match="no network of this space takes at most 10 MACs"):
        GateConstraint(space, macs(X).at_most(10), WidthRounding())
    by_hand = nn.Sequential(nn.Flatten(), Gate(X[0].numel(), name="gate"), nn.Linear(X[0].numel(), 2))
    with pytest.raises(LimitError, match=r"no gate is coupled to layers.*archgrad.slim couples gates$"):
        GateConstraint(by_hand, macs(X).at_most(fraction=0.5), WidthRounding())


def gate(size: int, *, side: str = "out", channels: int = 1) -> Gate:
    places = torch.arange(size).repeat_interleave(channels)
    return Gate(size, name="gate", couplings=[Coupling("layer", side, places)])


@pytest.mark.parametrize(
    ("size", "step"),
    [(3, 1), (4, 1), (7, 1), (8, 2), (12, 2), (15, 1), (16, 4), (20, 4), (30, 2), (32, 8), (48, 8), (36, 4)],
)
def test_the_default_step_leaves_four_to_choose_from(size: int, step: int) -> None:
    assert WidthRounding().step(gate(size)) == step


def test_heads_and_branches_are_whole() -> None:
    assert WidthRounding().step(gate(32, side="heads")) == 1
    assert WidthRounding(8).step(gate(32, side="heads")) == 1
    space = slim(resnet(), X)
    branch = gates(space)["blocks.0.branch"]
    assert WidthRounding(8).count(branch, 0) == 0 and WidthRounding(8).count(branch, 1) == 1


@pytest.mark.parametrize(("channels", "step"), [(1, 8), (2, 4), (3, 3), (4, 2), (8, 1), (16, 1)])
def test_blocks_of_channels_are_rounded_as_channels(channels: int, step: int) -> None:
    assert WidthRounding(8).step(gate(32, channels=channels)) == step


def test_a_multiple_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="round_to=0"):
        WidthRounding(0)


@pytest.mark.parametrize("to", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("size", [3, 8, 20, 32])
def test_widths_are_the_nearest_multiples(to: int, size: int) -> None:
    rounding, one = WidthRounding(to), gate(size)
    for wanted in range(size + 1):
        count = rounding.count(one, wanted)
        assert 1 <= count <= size
        step = min(to, size)
        assert count % step == 0 or count == size
        allowed = (*range(step, size, step), size)
        assert abs(count - wanted) <= min(abs(m - wanted) for m in allowed) + step / 2


@pytest.mark.parametrize("to", [None, 1, 8, 16])
@pytest.mark.parametrize("size", [3, 8, 9, 20, 32])
def test_a_gate_that_keeps_everything_is_not_cut_by_rounding(to: int | None, size: int) -> None:
    assert WidthRounding(to).count(gate(size), size) == size


def test_the_best_entries_stay() -> None:
    space = slim(plain(), X)
    scores = random_scores(space, seed=3)
    found = above_threshold(space, scores, 0.0, WidthRounding(1))
    for name, pick in found.items():
        wanted = (scores[name] > 0).nonzero().flatten().tolist()
        assert list(pick) == (wanted or [int(scores[name].argmax())])


def test_no_layer_dies() -> None:
    for make in (plain, mobilenet, transformers.vit_separate):
        space = slim(make(), X)
        scores = {name: torch.full((g.size,), -1.0) for name, g in gates(space).items()}
        for rounding in (WidthRounding(), WidthRounding(1), WidthRounding(8)):
            found = above_threshold(space, scores, 0.0, rounding)
            for name, pick in found.items():
                assert len(pick) == (0 if gates(space)[name].vanishing else rounding.step(gates(space)[name]))
            assert torch.isfinite(build(space, found)(X)).all()


def test_a_branch_vanishes_with_its_inner_gates() -> None:
    space = slim(resnet(), X)
    scores = {name: torch.ones(g.size) for name, g in gates(space).items()}
    scores["blocks.0.conv1"] -= 5.0
    found = above_threshold(space, scores, 0.0, WidthRounding(1))
    assert found["blocks.0.branch"] == ()
    assert found["blocks.1.branch"] == found["blocks.2.branch"] == (0,)
    assert isinstance(build(space, found).blocks[0], nn.ReLU)
    scores["blocks.0.conv1"][3] = 1.0  # one inner channel is enough to stay
    assert above_threshold(space, scores, 0.0, WidthRounding(1))["blocks.0.branch"] == (0,)
    scores["blocks.0.branch"] -= 5.0  # unless the branch itself is not wanted
    assert above_threshold(space, scores, 0.0, WidthRounding(1))["blocks.0.branch"] == ()


def test_a_floor_keeps_a_share_of_every_gate() -> None:
    space = slim(resnet(), X)
    scores = {name: -torch.rand(g.size) for name, g in gates(space).items()}
    found = above_threshold(space, scores, 0.0, WidthRounding(1), floor=0.25)
    for name, one in gates(space).items():
        if not one.vanishing:
            assert len(found[name]) == max(1, one.size // 4)


def test_uniform_takes_the_same_share_of_every_gate() -> None:
    space = slim(resnet(), X)
    for width in (0.0, 0.25, 0.5, 1.0):
        found = uniform(space, width, WidthRounding(1))
        for name, one in gates(space).items():
            expected = one.size if one.vanishing else max(1, round(width * one.size))
            assert found[name] == tuple(range(expected))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.3, 0.9), (0.9, 0.3)])
def test_several_limits_all_hold_and_nothing_more_would_fit(seed: int, fractions: tuple[float, float]) -> None:
    space = slim(plain(), X)
    costs = macs(X), params()
    limits = [cost.at_most(fraction=fraction) for cost, fraction in zip(costs, fractions, strict=True)]
    constraint, rounding = GateConstraint(space, limits, WidthRounding(1)), WidthRounding(1)
    scores = random_scores(space, seed=seed)
    found = constraint.best_feasible(scores)
    bounds = [fraction * cost.of(space) for cost, fraction in zip(costs, fractions, strict=True)]

    def fits(architecture: Architecture) -> bool:
        network = build(space, architecture)
        return all(cost.of(network) <= bound for cost, bound in zip(costs, bounds, strict=True))

    assert fits(found) and constraint.is_feasible(found)
    for name, gate in gates(space).items():
        left_out = sorted(set(range(gate.size)) - set(found[name]))  # type: ignore[arg-type]
        assert all(not fits(Architecture({**found, name: (*found[name], e)})) for e in left_out)  # type: ignore[misc]
    # The limit alone that binds gives the same network; of the record the one with less room comes first.
    record = constraint.record(build(space, found))
    if fractions != (0.5, 0.5):
        binding = limits[fractions.index(min(fractions))]
        assert found == GateConstraint(space, binding, rounding).best_feasible(scores)
        assert record["cost"] == binding.cost.name
    assert record["reached"] / record["bound"] >= record["others"][0]["reached"] / record["others"][0]["bound"]


def test_the_expected_cost_of_several_limits_is_the_largest_share_of_a_bound() -> None:
    space = slim(plain(), X)
    parts = [macs(X).at_most(fraction=0.5), params().at_most(fraction=0.25)]
    both = GateConstraint(space, parts, WidthRounding(1))
    single = [GateConstraint(space, part, WidthRounding(1)) for part in parts]
    entries = sum(gate.size for gate in gates(space).values())
    for seed in range(5):
        mixing = torch.rand(entries, generator=torch.Generator().manual_seed(seed)).double()
        shares = [float(one.expected(mixing)) / one.bound for one in single]
        assert float(both.expected(mixing)) == pytest.approx(max(shares))
    assert both.bound == 1.0 and both.counted and both.reference == pytest.approx(4.0)


def test_of_several_limits_one_that_nothing_keeps_is_named() -> None:
    space = slim(plain(), X)
    with pytest.raises(LimitError, match=r"lowest reachable is .* parameters|no network .* parameters"):
        GateConstraint(space, [macs(X).at_most(fraction=0.5), params().at_most(10)], WidthRounding(1))
    with pytest.raises(LimitError, match=r"limit=\[\] was given"):
        GateConstraint(space, [], WidthRounding(1))


class Slowness:
    """A measured cost: parameters, read off a clock that is now and then wrong."""

    name, unit, measured = "latency", "ms", True

    def __init__(self, late: float = 1.0) -> None:
        self.late, self.calls = late, 0

    def of(self, network: nn.Module) -> float:
        self.calls += 1
        return params().of(network) / 1000 * (self.late if self.calls > 2 else 1.0)

    def expected(self, space: nn.Module) -> Tensor:
        raise NotImplementedError


def test_a_measured_limit_is_met_on_the_built_networks() -> None:
    space = slim(plain(), X)
    cost = Slowness()
    full = params().of(space) / 1000
    found = GateConstraint(space, Limit(cost, fraction=0.5), WidthRounding(1)).best_feasible(
        random_scores(space, seed=0)
    )
    assert params().of(build(space, found)) / 1000 <= 0.5 * full
    assert cost.calls > 3


def test_a_measured_and_a_counted_limit_both_hold() -> None:
    space, cost = slim(plain(), X), Slowness()
    limits = [Limit(cost, fraction=0.5), macs(X).at_most(fraction=0.4)]
    constraint = GateConstraint(space, limits, WidthRounding(1))
    assert not constraint.counted
    network = build(space, constraint.best_feasible(random_scores(space, seed=0)))
    assert params().of(network) <= 0.5 * params().of(space) and macs(X).of(network) <= 0.4 * macs(X).of(space)


def test_what_is_no_space_of_gates_is_refused() -> None:
    with pytest.raises(ChoiceError, match=r"has no choice\. Give a space of gates alone"):
        gates(plain())
    with pytest.raises(ChoiceError, match=r"choices that are no gates: \['op'\]"):
        gates(nn.Sequential(OpChoice([nn.ReLU()], name="op"), Gate(3, name="gate")))
    space = slim(plain(), X)
    assert list(gates(space)) == list(choices(space))


@pytest.mark.parametrize("fraction", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("to", [1, 4, 16, None])
def test_layers_that_rounding_left_whole_are_those_that_any_width_would_cut(to: int | None, fraction: float) -> None:
    layers = nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2)
    space, rounding = slim(nn.Sequential(*layers), X[:, :, 0, 0]), WidthRounding(to)
    limits = [macs(X[:1, :, 0, 0]).at_most(fraction=fraction), params().at_most(fraction=0.9)]
    constraint = GateConstraint(space, limits, rounding)
    scores = random_scores(space, seed=5)
    rounded, exact = (c.best_feasible(scores) for c in (constraint, constraint.unrounded()))
    assert exact == GateConstraint(space, limits, WidthRounding(1)).best_feasible(scores)
    left = left_full(space, rounded, exact, rounding)
    assert not (to == 1 and left) and (to != 16 or fraction > 0.6 or left == ["0"])
    for name, gate in gates(space).items():
        narrower = len(rounded[name]) == gate.size and len(exact[name]) <= 0.75 * gate.size
        assert (name in left) == (narrower and rounding.step(gate) > 1)


class Hopeful(Macs):
    """MACs whose expectation is too low."""

    def counter(self, space: nn.Module) -> Counter:
        counter = super().counter(space)
        counter.amounts *= 0.7
        return counter


@pytest.mark.parametrize("beside", ["nothing", "parameters", "measured"])
@pytest.mark.parametrize("fraction", [0.4, 0.8])
def test_a_network_that_counts_as_more_than_was_expected_is_not_handed_back(fraction: float, beside: str) -> None:
    layers = nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2)
    x = X[:1, :, 0, 0]
    space = slim(nn.Sequential(*layers), x)
    bound = fraction * macs(x).of(space)
    others = {"parameters": params(), "measured": peak_memory(x, mode="inference")}
    limits = [Hopeful(x).at_most(bound), *(c.at_most(fraction=1.0) for name, c in others.items() if name == beside)]
    found = GateConstraint(space, limits, WidthRounding(1)).best_feasible(random_scores(space, seed=5))
    assert (0.5 if beside == "measured" else 0.8) * bound < macs(x).of(build(space, found)) <= bound
