"""RADARS: the bound for any size, exact predictions, the policy's gradient, DARTS where all fits, exact resume."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices.lazy_candidates import Lazy, built, emptied
from archgrad.costs.memory import peak_memory, saved_bytes
from archgrad.errors import ChoiceError, ConfigError, LimitError
from archgrad.methods.radars.offload import OffloadedSupernet
from archgrad.methods.radars.radars import radars
from archgrad.methods.radars.rounds import RadarsTerms
from archgrad.methods.radars.single_path import ShrinkingPolicy, SinglePathTrainer
from archgrad.methods.radars.subspaces import MemoryPrices, Priced, knapsack
from archgrad.training.recipe import darts_sgd

LAYERS = 2


class Branch(nn.Module):
    """ReLU, convolution, BatchNorm; with `erased` everything is lost."""

    def __init__(self, kernel: int, *, erased: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(), nn.Conv2d(6, 6, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(6)
        )
        self.erased = erased

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x * 0.0 if self.erased else x)


def layered(size: int, *, lazy: bool = True, poor: tuple[int, ...] = (3,)) -> nn.Sequential:
    """Layers of `size` candidates: kernels 1, 3, 5 in turn; in each four those of `poor` erase their input."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        layers = []
        for layer in range(LAYERS):
            recipes = {
                f"c{i}": functools.partial(Branch, (1, 3, 5)[i % 3], erased=i % 4 in poor) for i in range(size)
            }
            candidates = {label: Lazy(f) if lazy else f() for label, f in recipes.items()}
            layers.append(ag.OpChoice(candidates, name=f"layer {layer}"))
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
        )


def task(images: int = 120) -> ag.Classification:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, 1, 6, 6, generator=generator)
    y = torch.arange(images) % 2
    x[y == 1] += torch.eye(6)
    return ag.Classification((x, y), batch_size=16)


def quiet(**settings: object) -> ag.Run:
    return ag.Run(
        **{"steps": 48, "seed": 1, "device": "cpu", "progress": False, "output": ag.Output(log_every=1), **settings}
    )


def bound(candidates: int) -> ag.Limit:
    """What a supernet of so many candidates a layer takes, and a little more."""
    taken = priced(OffloadedSupernet(layered(candidates), device=torch.device("cpu"), folder=None, seed=1))
    every = {f"layer {layer}": list(range(candidates)) for layer in range(LAYERS)}
    return peak_memory(torch.zeros(1, 1, 6, 6)).at_most(peak_bytes=1.05 * taken.peak_bytes(every) / 0.9)


def priced(supernet: OffloadedSupernet, passes: int = 1) -> Priced:
    return Priced(supernet, task().split(0.5)[0], quiet(), optimizer=darts_sgd, passes=passes)


def supernet(space: nn.Module, folder: Path | None = None) -> OffloadedSupernet:
    return OffloadedSupernet(space, device=torch.device("cpu"), folder=folder, seed=1)


def test_the_bound_holds_for_any_size_and_the_peak_does_not_grow() -> None:
    peaks, memory = {}, bound(3)
    for size in (4, 32):
        rounds = radars(layered(size), task(), quiet(), memory=memory).record["rounds"]
        assert all(row["measured_peak_bytes"] <= memory.bound for row in rounds)
        assert all(row["measured_peak_bytes"] == row["predicted_peak_bytes"] for row in rounds)
        peaks[size] = max(row["measured_peak_bytes"] for row in rounds)
    assert peaks[32] <= 1.05 * peaks[4]
    alone = [
        priced(supernet(layered(n))).peak_bytes({f"layer {k}": list(range(n)) for k in range(2)}) for n in (4, 16)
    ]
    assert alone[1] > 3 * alone[0], "the control: a supernet of all candidates grows with them"


def test_active_candidates_only_become_fewer_and_hold_the_subspace() -> None:
    seen: list[dict[str, list[int]]] = []
    prune = ShrinkingPolicy.prune

    def noted(self: ShrinkingPolicy, *args: object, **options: object) -> None:
        prune(self, *args, **options)
        seen.append({site: list(some) for site, some in self.active.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShrinkingPolicy, "prune", noted)
        terms = RadarsTerms(rounds=4, least=0.9, patience=1)
        found = radars(layered(8), task(), quiet(steps=120), memory=bound(3), terms=terms)
    assert len(seen) > 1 and sum(map(len, seen[-1].values())) < 2 * 8
    for earlier, later in itertools.pairwise(seen):
        assert all(set(later[site]) <= set(earlier[site]) and later[site] for site in later)
    for active, row in zip(seen, found.record["rounds"], strict=True):
        assert all(some and set(some) <= set(active[site]) for site, some in row["support"].items())


def test_where_most_candidates_are_poor_some_are_dropped_and_the_best_is_none_of_them() -> None:
    space = layered(8, poor=(1, 2, 3))
    found = radars(space, task(), quiet(steps=600, seed=0), memory=bound(3), search_fraction=0.8)
    first, *_, last = found.record["rounds"]
    assert last["active"] < 2 * 8 == first["active"]
    good = sum(i % 4 == 0 for some in last["left"].values() for i in some)
    assert good / last["active"] > 0.25, "poor ones went first"
    assert all(i % 4 == 0 for i in found.architecture.values())


def test_what_a_search_weighs_low_is_dropped_but_for_the_heaviest_and_the_spare() -> None:
    policy = ShrinkingPolicy(supernet(layered(5)), rate=0.1, bonus=0.0)
    site = next(iter(policy.active))
    weights = {site: {0: 0.9, 1: 0.02, 2: 0.05, 4: 0.03}}
    policy.prune_searched(weights, 0.2, 2, spare={site: 4})
    assert policy.active[site] == [0, 1, 2, 3, 4], "once is not twice in a row"
    policy.prune_searched(weights, 0.2, 2, spare={site: 4})
    assert policy.active[site] == [0, 2, 3, 4], "2 is not below 0.2 / 4, 3 was in no search, 4 is spared"


@pytest.mark.parametrize("seed", range(6))
def test_what_lowers_the_reward_by_standard_errors_is_dropped_but_for_the_best_and_the_spare(seed: int) -> None:
    """Against the formula in numpy, over two explorations whose rewards differ in level and in spread."""
    generator, size = np.random.default_rng(seed), 6
    kept = ShrinkingPolicy(supernet(layered(size)), rate=0.1, bonus=0.0)
    sites, limit = list(kept.active), float(generator.uniform(0.3, 1.5))
    worth, gains = generator.normal(size=(LAYERS, size)), [[[] for _ in range(size)] for _ in sites]
    spare = {sites[0]: int(worth[0].argmin())}
    for level, scale in ((0.1, 0.01), (0.5, 0.2)):
        paths = [[int(generator.choice(kept.active[site])) for site in sites] for _ in range(40)]
        rewards = [
            level + scale * (sum(worth[k][i] for k, i in enumerate(path)) + generator.normal()) for path in paths
        ]
        for path, reward in zip(paths, rewards, strict=True):
            kept.note(ag.Architecture(dict(zip(sites, path, strict=True))), reward)
            for k, i in enumerate(path):
                gains[k][i].append((reward - np.mean(rewards)) / np.std(rewards))
        before = {site: list(some) for site, some in kept.active.items()}
        kept.prune_unrewarded(limit, spare=spare)
        for k, site in enumerate(sites):
            errors = [np.mean(some) * len(some) ** 0.5 if some else 0.0 for some in gains[k]]
            stays = {max(before[site], key=errors.__getitem__), spare.get(site)}
            assert kept.active[site] == [i for i in before[site] if errors[i] >= -limit or i in stays]
    assert sum(map(len, kept.active.values())) < LAYERS * size


def test_equal_rewards_and_candidates_that_were_not_drawn_are_no_reason_to_drop() -> None:
    kept = ShrinkingPolicy(supernet(layered(5)), rate=0.1, bonus=0.0)
    every = {site: list(some) for site, some in kept.active.items()}
    kept.prune_unrewarded(0.0, spare={})
    assert kept.active == every, "no episode yet"
    for i in (0, 0, 1):
        kept.note(ag.Architecture(dict.fromkeys(every, i)), 0.25)
    kept.prune_unrewarded(0.0, spare={})
    assert kept.active == every, "all were rewarded alike"
    for i, reward in ((0, 0.1), (0, 0.1), (1, 0.9)):
        kept.note(ag.Architecture(dict.fromkeys(every, i)), reward)
    kept.prune_unrewarded(0.5, spare={})
    assert all(some == [1, 2, 3, 4] for some in kept.active.values())


def test_by_standard_errors_poor_candidates_go_and_good_ones_stay() -> None:
    """Half of the candidates erase their input; summed over three seeds, the searches of subspaces prune nothing."""
    poor = good = 0
    for seed in range(3):
        terms = RadarsTerms(standard_errors=1.0, episode_steps=2, least=0.9)
        found = radars(
            layered(8, poor=(1, 3)),
            task(),
            quiet(steps=320, seed=seed),
            memory=bound(3),
            search_fraction=0.8,
            terms=terms,
        )
        left = [i for some in found.record["rounds"][-1]["left"].values() for i in some]
        poor += LAYERS * 4 - sum(i % 2 for i in left)
        good += LAYERS * 4 - sum(i % 2 == 0 for i in left)
    assert poor > 2 * good and poor > LAYERS * 3


@pytest.mark.parametrize("support", [([0], [2]), ([0, 1], [3]), ([1, 2, 4], [0, 4]), ([0, 1, 2, 3, 4], [0, 2, 3, 4])])
def test_the_sum_of_prices_is_what_is_saved(support: tuple[list[int], list[int]]) -> None:
    """Saved bytes, parameters, gradients, momentum and buffers: all that adds up, to the byte."""
    kept = supernet(layered(5))
    one = priced(kept)
    prices, chosen = one.table(), {f"layer {i}": some for i, some in enumerate(support)}
    first = {site: [0] for site in chosen}

    def total(some: dict[str, list[int]]) -> int:
        taken = one.footprint(some)
        parts = (taken.parameter_bytes, taken.buffer_bytes, taken.gradient_bytes, taken.optimizer_bytes)
        return sum(parts) + taken.saved_bytes

    assert total(chosen) - total(first) == prices.of(chosen) - prices.of(first)
    batch = task().split(0.5)[0].stream(seed=1)(0)
    space = ag.relax(kept.taken(chosen), ag.softmax)
    assert one.footprint(chosen).saved_bytes == saved_bytes(space, batch, loss=task().loss)


def test_prices_of_dead_candidates_left_in_the_mixture_would_be_off() -> None:
    """The control: weights of 0 still save all activations; candidates have to be absent."""
    space, batch = built(layered(5)), task().split(0.5)[0].stream(seed=1)(0)
    weights = {f"layer {i}": torch.tensor([1.0, 0, 0, 0, 0], requires_grad=True) for i in range(LAYERS)}
    with ag.using(space, weights):
        masked = saved_bytes(space, batch, loss=task().loss)
    absent = priced(supernet(layered(5))).footprint({f"layer {i}": [0] for i in range(LAYERS)}).saved_bytes
    assert masked > 3 * absent


def policy() -> ShrinkingPolicy:
    """Of three and of four candidates, of which one is barred and one dropped."""
    space = nn.Sequential(
        ag.OpChoice({str(i): nn.Identity() for i in range(3)}, name="a"),
        ag.OpChoice({str(i): nn.Identity() for i in range(4)}, name="b", barred=["1"]),
    )
    made = ShrinkingPolicy(supernet(space), rate=0.1, bonus=0.0)
    generator = torch.Generator().manual_seed(0)
    for site, size in (("a", 3), ("b", 4)):
        made.feed_back(site, range(size), torch.rand(size, generator=generator), 1.0)
    made.active["a"].remove(1)
    return made


REWARDS = {"a": [0.3, 9.0, -0.7], "b": [1.0, 9.0, 0.2, -0.4]}


def gradient(made: ShrinkingPolicy, loss: Tensor) -> Tensor:
    return torch.cat(torch.autograd.grad(loss, list(made.learner.policy.parameters())))


def expected_reward(made: ShrinkingPolicy) -> Tensor:
    """J of an additive reward, with gradient, from the logits of what is active."""
    total = torch.zeros((), dtype=torch.float64)
    for row, (site, some) in zip(made.learner.policy.parameters(), made.active.items(), strict=True):
        total = total + (row[some].softmax(0) * torch.tensor(REWARDS[site])[some]).sum()
    return total


def test_the_policy_gradient_is_that_of_the_expected_reward() -> None:
    made = policy()
    exact = -gradient(made, expected_reward(made))
    chances, total, biased = made.probabilities(), torch.zeros_like(exact), torch.zeros_like(exact)
    assert chances["a"][1] == chances["b"][1] == 0.0
    for a, b in itertools.product([0, 2], [0, 2, 3]):
        path, reward = ag.Architecture({"a": a, "b": b}), REWARDS["a"][a] + REWARDS["b"][b]
        chance = chances["a"][a] * chances["b"][b]
        total += chance * gradient(made, made.learner.surrogate([path], [reward])[0])
        biased += chance * gradient(made, made.learner.surrogate([path], [0.5 * reward])[0])
    assert torch.allclose(total, exact, atol=1e-9)
    assert not torch.allclose(biased, exact, atol=1e-2), "the control: a baseline that knows its sample"
    generator, rows = torch.Generator().manual_seed(3), []
    for _ in range(1500):
        path = made.draw(generator)
        reward = REWARDS["a"][path["a"]] + REWARDS["b"][path["b"]]
        rows.append(gradient(made, made.learner.surrogate([path], [reward])[0]))
    found = torch.stack(rows)
    error = found.std(dim=0) / len(rows) ** 0.5
    assert bool(((found.mean(dim=0) - exact).abs() <= 4 * error + 1e-6).all())


def test_where_all_fits_it_is_darts_to_the_bit() -> None:
    space = layered(3, lazy=False)
    ours = radars(space, task(), quiet(), memory=bound(3), search_fraction=1.0)
    darts = ag.darts(space, task(), quiet(), search_fraction=1.0)
    named = radars(space, task(), quiet(), memory=bound(3), inner=ag.darts, search_fraction=1.0)
    losses = [[row["loss"] for row in found.history if "loss" in row] for found in (ours, darts, named)]
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == 48
    assert ours.architecture == darts.architecture == named.architecture


@pytest.mark.parametrize("inner", [ag.unas, functools.partial(ag.darts, second_order=True)])
def test_other_methods_inside(inner: Callable[..., ag.Found]) -> None:
    found = radars(layered(6), task(), quiet(), memory=bound(4), inner=inner, terms=RadarsTerms(passes=2))
    phases = list(dict.fromkeys(row["phase"] for row in found.history if row["phase"]))
    assert phases[:2] == ["explore-0", "exploit-0-search"] and phases[-1] == "train"
    assert sum("loss" in row for row in found.history) == 48


def test_a_method_without_logits_is_refused() -> None:
    with pytest.raises(ConfigError, match="random_search has no logits to decide by"):
        radars(layered(6), task(), quiet(), memory=bound(3), inner=ag.random_search)


def test_a_bound_below_one_path_is_refused_with_the_least_that_works() -> None:
    run, cost = quiet(), peak_memory(torch.zeros(1, 1, 6, 6))
    with pytest.raises(LimitError, match=r"least bound that works is ([0-9,]+) bytes") as caught:
        radars(layered(6), task(), run, memory=cost.at_most(peak_bytes=1000))
    assert run.history == []
    least = int(str(caught.value).split("works is ")[1].split(" bytes")[0].replace(",", ""))
    with pytest.raises(LimitError, match="least bound"):
        radars(layered(6), task(), quiet(), memory=cost.at_most(peak_bytes=least - 2))
    assert radars(layered(6), task(), quiet(), memory=cost.at_most(peak_bytes=least)).record["rounds"]


def test_bad_input() -> None:
    with pytest.raises(LimitError, match="peak_memory"):
        radars(layered(4), task(), quiet(), memory=ag.params().at_most(100))
    with pytest.raises(ChoiceError, match="no choice"):
        radars(nn.Linear(2, 2), task(), quiet())
    with pytest.raises(ConfigError, match="slack"):
        RadarsTerms(slack=1.5)
    with pytest.raises(ConfigError, match="rounds, patience, passes or episode_steps"):
        RadarsTerms(rounds=0)
    with pytest.raises(ConfigError, match="standard_errors"):
        RadarsTerms(standard_errors=-1.0)
    with pytest.raises(ChoiceError, match="has only labels"):
        radars(ag.darts_cells(channels=4, cells=3, classes=2, factorized=True), task(), quiet())


@pytest.mark.parametrize("lazy", [False, True])
def test_choices_inside_candidates_are_refused(lazy: bool) -> None:
    def nested() -> nn.Module:
        return ag.OpChoice([nn.Identity(), nn.ReLU()], name="inner")

    space = layered(4)
    outer = next(module for module in space.modules() if isinstance(module, ag.OpChoice))
    outer.candidates[0] = ag.Lazy(nested) if lazy else nested()
    with pytest.raises(ChoiceError, match=r"holds choices of its own, \['inner'\]"):
        radars(space, task(), quiet())


def test_the_order_of_candidates_permutes_the_subspace() -> None:
    values, prices = [0.4, 0.1, 0.3, 0.2], [50, 10, 20, 40]
    order = [2, 0, 3, 1]

    def chosen(values: list[float], prices: list[int]) -> list[int]:
        first = {"a": max(range(4), key=values.__getitem__)}
        table = MemoryPrices(100, {"a": prices})
        return knapsack({"a": values}, table, bound_bytes=185, allowed={"a": range(4)}, first=first)["a"]

    assert chosen(values, prices) == [0, 1, 2]
    permuted = chosen([values[i] for i in order], [prices[i] for i in order])
    assert sorted(order[i] for i in permuted) == [0, 1, 2]


def test_the_knapsack_keeps_the_bound_and_half_of_the_best_value() -> None:
    """Against all subsets: the greedy rule with its first picks taken is within the bound, and never below half."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        values = {s: torch.rand(4, generator=generator).tolist() for s in "ab"}
        prices = MemoryPrices(10, {s: torch.randint(5, 30, (4,), generator=generator).tolist() for s in "ab"})
        first = {s: max(range(4), key=values[s].__getitem__) for s in "ab"}
        every = {s: [c for n in range(1, 5) for c in itertools.combinations(range(4), n)] for s in "ab"}
        chosen = knapsack(values, prices, bound_bytes=110, allowed={s: range(4) for s in "ab"}, first=first)
        assert prices.of(chosen) <= 110

        def worth(a: tuple[int, ...], b: tuple[int, ...]) -> float:
            return sum(values["a"][i] for i in a) + sum(values["b"][i] for i in b)  # noqa: B023

        best = max(worth(a, b) for a, b in itertools.product(*every.values()) if prices.of({"a": a, "b": b}) <= 110)
        assert worth(*map(tuple, chosen.values())) >= 0.5 * best


def test_only_one_path_is_held_while_exploring() -> None:
    seen, largest = [], 0
    for path in itertools.product(range(6), repeat=LAYERS):
        space = supernet(layered(6)).taken({f"layer {i}": [p] for i, p in enumerate(path)})
        largest = max(largest, sum(p.nbytes for p in space.parameters()))
    loss = SinglePathTrainer._loss

    def noted(self: SinglePathTrainer, data: ag.Classification, batch: tuple[Tensor, Tensor]) -> Tensor:
        state = self._optimizer.state if self._optimizer else {}
        momentum = sum(t.nbytes for kept in state.values() for t in kept.values() if isinstance(t, Tensor))
        seen.append((sum(p.nbytes for p in self.supernet.space.parameters()), momentum))
        return loss(self, data, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SinglePathTrainer, "_loss", noted)
        radars(layered(6), task(), quiet(), memory=bound(3))
    assert seen and max(p for p, _ in seen) <= largest and 0 < max(m for _, m in seen) <= largest


def test_a_candidate_comes_back_as_it_was_put_away(tmp_path: Path) -> None:
    kept, momentum = supernet(layered(4), tmp_path / "candidates"), {}
    kept.load({"layer 0": [2]}, momentum)
    candidate = kept.space[1].candidates[2]
    with torch.no_grad():
        candidate.body[1].weight.fill_(0.5)
    state = {candidate.body[1].weight: {"momentum_buffer": torch.full_like(candidate.body[1].weight, 2.0)}}
    kept.offload({"layer 0": [2]}, state)
    assert isinstance(kept.space[1].candidates[2], Lazy) and not list(kept.space[1].parameters())
    kept.load({"layer 0": [2]}, momentum)
    again = kept.space[1].candidates[2]
    assert again is not candidate and bool((again.body[1].weight == 0.5).all())
    assert bool((momentum[again.body[1].weight]["momentum_buffer"] == 2.0).all())


def test_fresh_weights_are_a_function_of_seed_place_and_label() -> None:
    first, second = (supernet(layered(4)).taken({"layer 0": [1], "layer 1": some}) for some in ([1], [0, 1]))
    assert torch.equal(first[1].candidates[1].body[1].weight, second[1].candidates[1].body[1].weight)
    assert not torch.equal(first[1].candidates[1].body[1].weight, first[2].candidates[1].body[1].weight)


def test_an_emptied_space_copies_no_candidate_and_a_built_one_has_them_all() -> None:
    space = layered(3, lazy=False)
    empty = emptied(space)
    assert len(list(empty.parameters())) == 4
    again = built(empty)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in space.state_dict().items())
    assert again[1].candidates[0] is not space[1].candidates[0]


def test_lazy_candidates_in_other_methods_and_as_a_plain_network() -> None:
    found = ag.darts(layered(3), task(), quiet(steps=8))
    network = ag.build(layered(3), found.architecture)
    assert network(torch.zeros(2, 1, 6, 6)).shape == (2, 2)
    with pytest.raises(ChoiceError, match="before it was built"):
        ag.relax(layered(3), ag.softmax)(torch.zeros(2, 1, 6, 6))
    with pytest.raises(ChoiceError, match="a function without arguments"):
        Lazy(nn.Linear(2, 2))
    with pytest.raises(ChoiceError, match="returned a int"):
        Lazy(lambda: 3).build()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(("after", "standard_errors"), [(10, None), (22, None), (10, 0.2), (22, 0.2)])
def test_resumes_exactly_wherever_it_was_stopped(
    after: int, standard_errors: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in both kinds of phases, not in the first round; pruned by either rule."""
    terms = RadarsTerms(standard_errors=standard_errors, episode_steps=2)

    def searched(run: ag.Run) -> ag.Found:
        return radars(layered(5), task(), run, memory=bound(3), limit=None, terms=terms)

    whole = searched(quiet())
    log, count = ag.Run.log, [0]

    def counted(self: ag.Run, figures: dict[str, float], *, step: int | None = None) -> None:
        count[0] += "loss" in figures
        if count[0] == after:
            raise Interrupted
        log(self, figures, step=step)

    monkeypatch.setattr(ag.Run, "log", counted)
    run = quiet(folder=tmp_path / "run", output=ag.Output(log_every=1, checkpoint_seconds=0.0))
    with pytest.raises(Interrupted):
        searched(run)
    run.close()
    monkeypatch.setattr(ag.Run, "log", log)
    resumed = searched(quiet(folder=tmp_path / "run", output=ag.Output(log_every=1, checkpoint_seconds=0.0)))
    assert resumed.architecture == whole.architecture
    assert all(torch.equal(v, resumed.network.state_dict()[k]) for k, v in whole.network.state_dict().items())
    losses = [[row["loss"] for row in found.history if "loss" in row] for found in (whole, resumed)]
    assert losses[0] == losses[1]


def explored(run: ag.Run, folder: Path | None, *, stop: int | None = None) -> tuple[object, nn.Module]:
    """The policy's state and all weights after three episodes of four steps; stopped before a step if wanted."""
    run.begin("paths", {})
    loss, count = SinglePathTrainer._loss, [0]

    def counted(self: SinglePathTrainer, data: ag.Classification, batch: tuple[Tensor, Tensor]) -> Tensor:
        count[0] += 1
        if count[0] == stop:
            raise Interrupted
        return loss(self, data, batch)

    with pytest.MonkeyPatch.context() as patch, supernet(layered(3), folder) as kept:
        patch.setattr(SinglePathTrainer, "_loss", counted)
        policy = ShrinkingPolicy(kept, rate=0.1, bonus=0.01)
        paths = SinglePathTrainer(kept, policy, task().split(0.5), run, recipe=ag.Recipe(optimizer_factory=darts_sgd))
        paths.explore(steps=12, episodes=3, warm_up=1 / 3, phase="explore", time_fraction=1.0)
        return policy.state_dict(), kept.taken({f"layer {i}": [0, 1, 2] for i in range(LAYERS)})


@pytest.mark.parametrize("stop", [3, 8, 11])
def test_an_episode_goes_on_where_it_was_stopped(stop: int, tmp_path: Path) -> None:
    """With the weights, the statistics and the momentum of its path, and those on file."""
    policy, weights = explored(quiet(), None)
    run = quiet(folder=tmp_path / "run", output=ag.Output(log_every=1, checkpoint_seconds=0.0))
    with pytest.raises(Interrupted):
        explored(run, tmp_path / "files", stop=stop)
    run.close()
    again, resumed = explored(
        quiet(folder=tmp_path / "run", output=ag.Output(log_every=1, checkpoint_seconds=0.0)), tmp_path / "files"
    )
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in weights.state_dict().items())
    assert str(policy) == str(again)


def test_it_finds_what_can_be_learnt() -> None:
    found = radars(layered(8), task(400), quiet(steps=200), memory=bound(3))
    assert found.score > 0.6
    assert all(pick % 4 != 3 for pick in found.architecture.values()), "candidates that erase their input"


def test_under_a_bound_the_best_rounds_and_draws_are_trained_apart() -> None:
    run = quiet(steps=320)
    found = radars(layered(8), task(), run, memory=bound(3), search_fraction=1.0)
    rows = found.record["finalists"]
    assert len(rows) == 3 and rows[0]["from"] == "likely1" and rows[-1]["from"].startswith("drawn")
    assert dict(found.architecture) == min(rows, key=lambda row: row["loss"])["architecture"]
    assert {str(r["phase"]) for r in run.history if str(r["phase"]).startswith("finalist")} == {
        f"finalist_{row['from']}" for row in rows
    }
    bare = radars(layered(8), task(), quiet(steps=320), memory=bound(3), search_fraction=1.0, finalists=None)
    assert "finalists" not in bare.record
