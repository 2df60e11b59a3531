"""Successive halving: how steps are shared, who goes on, and that training goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

import archgrad as ag
from archgrad.errors import ConfigError
from archgrad.run.run import Run
from archgrad.trials.evaluation import Later
from archgrad.trials.successive_halving import Halving, Tried, successive_halving

G = torch.Generator().manual_seed(0)
X = torch.randn(120, 4, generator=G)
TASK = ag.Classification((X, (X[:, 0] > 0).long()), batch_size=10)


def space() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        widths = range(1, 10)
        layers = [nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 2)) for n in widths]
        return nn.Sequential(ag.OpChoice(dict(zip(map(str, widths), layers, strict=True)), name="n"))


TRIED = [ag.Architecture({"n": i}) for i in range(9)]


def run(**settings: object) -> Run:
    made = Run(**{"device": "cpu", "progress": False, "output": ag.Output(log_every=1), **settings})
    made.begin("test", {})
    return made


def search(steps: int, made: Run) -> Tried:
    return successive_halving(
        space(), TASK, made, TRIED, halving=Halving(), steps=steps, time_fraction=1.0, recipe=ag.Recipe()
    )


def test_rounds_have_a_third_each_and_as_many_steps_in_all_as_eta_says() -> None:
    assert Halving().counts(9) == [9, 3, 1]
    assert Halving(least=3).counts(20) == [20, 7, 3]
    assert Halving(eta=2, least=4).counts(40) == [40, 20, 10, 5]
    assert Halving().counts(1) == [1]
    assert Halving(floor=10).affordable(9, 210) == 9 and Halving(floor=11).affordable(9, 210) == 7
    assert Halving(least=3, floor=100).affordable(40, 10**9) == 40 and Halving(floor=100).affordable(40, 50) == 1
    assert Halving().steps(9, 210) == [[10] * 9, [20] * 3, [60]]


@given(st.integers(1, 60), st.integers(0, 3000), st.integers(2, 5), st.integers(1, 4))
def test_steps_add_up_and_nobody_has_none(trials: int, total: int, eta: int, least: int) -> None:
    plan = Halving(eta=eta, least=least).steps(trials, total)
    flat = [n for each in plan for n in each]
    assert min(flat) >= 1
    assert total <= sum(flat) <= total + len(flat)
    if total >= 2 * eta ** len(plan) * len(flat):
        assert sum(flat) == total


def test_the_best_of_a_round_go_on_and_best_is_the_highest_so_far() -> None:
    made = run()
    rows, used, networks = search(210, made)
    assert used == 210 == sum(row["steps"] for row in rows) == sum("loss" in r for r in made.history)
    assert sorted(row["round"] for row in rows) == [0] * 6 + [1] * 2 + [2]
    tried = [r for r in made.history if "trial_accuracy" in r]
    assert [r["round"] for r in tried] == [0] * 9 + [1] * 3 + [2]
    first = sorted(range(9), key=lambda i: (-tried[i]["trial_accuracy"], i))[:3]
    assert {i for i, row in enumerate(rows) if row["round"] > 0} == set(first)
    best = [r["best"] for r in tried]
    assert best == sorted(best)
    (last,) = networks
    assert rows[last]["round"] == 2
    assert TASK.evaluate(networks[last])["accuracy"] == rows[last]["score"], "as it was when it was scored"


def test_a_later_round_goes_on_with_the_next_batches_and_the_same_weights() -> None:
    later = Later(TASK, 7).stream(seed=3)
    assert torch.equal(later(2)[0], TASK.stream(seed=3)(9)[0])
    made = run()
    search(210, made)
    losses = [r["loss"] for r in made.history if "loss" in r]
    assert losses[-60] < losses[0], "fresh weights would begin where the first round did"


def test_a_run_that_is_stopped_in_a_trial_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    class Killed(BaseException):
        """Not an error of the trial's network, which would be recorded."""

    whole = search(210, run())
    calls = []

    def dying(parameters: object) -> torch.optim.Optimizer:
        made = ag.sgd(parameters)  # type: ignore[arg-type]
        calls.append(made)
        if len(calls) == 11:  # in the second round
            steps = []

            def die(*_: object) -> None:
                steps.append(1)
                if len(steps) == 5:
                    raise Killed

            made.register_step_pre_hook(die)
        return made

    first = run(folder=tmp_path, output=ag.Output(log_every=1, checkpoint_seconds=0.0))
    with pytest.raises(Killed):
        successive_halving(
            space(), TASK, first, TRIED, halving=Halving(), steps=210, time_fraction=1.0,
            recipe=ag.Recipe(optimizer_factory=dying),
        )  # fmt: skip
    first.close()
    again = search(210, run(folder=tmp_path, output=ag.Output(log_every=1, checkpoint_seconds=0.0)))
    assert again[:2] == whole[:2]
    for i, network in whole.networks.items():
        assert all(map(torch.equal, network.state_dict().values(), again.networks[i].state_dict().values()))


@pytest.mark.parametrize("settings", [{"eta": 1}, {"eta": 2.5}, {"least": 0}, {"floor": -1}])
def test_settings_that_halve_nothing_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="give an eta from 2"):
        Halving(**settings)


def test_random_search_halves_apart_alone() -> None:
    with pytest.raises(ConfigError, match="halving trains networks one by one"):
        ag.random_search(space(), TASK, Run(device="cpu", progress=False), shared=True, halving=Halving())
    made = Run(steps=300, trials=9, device="cpu", progress=False, output=ag.Output(log_every=1))
    found = ag.random_search(space(), TASK, made, halving=Halving())
    assert [row["round"] for row in found.record["trials"]].count(2) == 1
    assert sum("loss" in r for r in made.history) == 300


@pytest.mark.parametrize(("given", "tried"), [({}, 3), ({"trials": 6}, 6)])
def test_random_search_makes_as_many_trials_as_have_their_floor_unless_told(
    given: dict[str, int], tried: int
) -> None:
    halving = Halving(floor=10)
    made = Run(steps=120, device="cpu", progress=False, **given)
    found = ag.random_search(space(), TASK, made, halving=halving)
    steps = 60  # half of the budget
    assert halving.affordable(10, steps) == 3
    assert len(found.record["trials"]) == tried
