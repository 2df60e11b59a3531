"""What searches of a supernet share: the division of a budget, refusals before the run, gradients in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.errors import ConfigError
from archgrad.methods import UnasTerms
from archgrad.supernets import lifecycle
from archgrad.supernets.bilevel import EverySteps, alternate
from archgrad.supernets.lifecycle import split_steps

G = torch.Generator().manual_seed(0)
X = torch.randn(100, 4, generator=G)
TASK = ag.Classification((X, (X[:, 0] > 0).long()), batch_size=8)


def space() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = ag.OpChoice({"a": nn.Linear(4, 4), "b": nn.ReLU()}, name="first")
        second = ag.OpChoice({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2, bias=False)}, name="second")
        return nn.Sequential(first, second)


def quiet(**settings: Any) -> ag.Run:
    return ag.Run(**{"device": "cpu", "progress": False, **settings})


def begun(**settings: Any) -> ag.Run:
    run = quiet(**settings)
    run.begin("test", {})
    return run


def test_search_and_training_share_the_budget_and_a_recipe_that_accumulates_takes_fewer_steps() -> None:
    per_epoch = TASK.steps_per_epoch
    assert split_steps(begun(epochs=4), TASK, 0.25) == (per_epoch, 3 * per_epoch)
    assert split_steps(begun(steps=10), TASK, 1.0) == (10, 0)
    halved = split_steps(begun(epochs=4), TASK, 0.5, recipe=ag.Recipe(accumulate=2))
    assert halved == (2 * per_epoch, 2 * ((per_epoch + 1) // 2))
    assert split_steps(begun(), ag.Tabular.__new__(ag.Tabular), 0.5) == (0, 0)


def test_where_time_is_the_budget_the_steps_are_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "seconds_per_step", lambda *_: 0.5)
    assert split_steps(begun(seconds=100.0), TASK, 0.25, network=space(), passes=2) == (25, 75)
    assert split_steps(begun(seconds=100.0, steps=8), TASK, 0.25, network=space(), passes=2) == (2, 6)


METHODS: dict[str, Callable[..., ag.Found]] = {
    "darts": ag.darts, "unas": ag.unas, "toponas": ag.toponas, "darts_prime": ag.darts_prime,
}  # fmt: skip


@pytest.mark.parametrize("name", [*METHODS, "radars"])
def test_what_is_timed_for_the_forecast_is_a_network_that_trains(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Timed(BaseException):
        pass

    def step(network: nn.Module, task: ag.Classification, run: ag.Run, recipe: ag.Recipe) -> float:
        assert torch.autograd.grad(task.loss(network, task.stream(seed=0)(0)), ag.weights(network), allow_unused=True)
        raise Timed

    monkeypatch.setattr(lifecycle, "seconds_per_step", step)
    with pytest.raises(Timed):
        (METHODS | {"radars": ag.radars})[name](with_inputs(), TASK, quiet(seconds=10.0))


@pytest.mark.parametrize("method", [ag.unas, ag.toponas])
@pytest.mark.parametrize("budget", [{"steps": 2}, {"seconds": 4.0}])
def test_a_search_too_short_for_a_step_of_the_architecture_is_refused_and_leaves_the_folder_free(
    method: Callable[..., ag.Found], budget: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "seconds_per_step", lambda *_: 1.0)
    (name,) = budget
    with pytest.raises(ConfigError, match=rf"leaves about 1 training steps for the search.*Run\({name}="):
        method(with_inputs(), TASK, quiet(folder=tmp_path / "run", **budget))
    assert not (tmp_path / "run" / "run.json").exists()
    method(with_inputs(), TASK, quiet(steps=8, seed=1, folder=tmp_path / "run"))


def with_inputs() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inputs, self.rest = ag.InputChoice(2, name="inputs"), space()

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(self.inputs([x, x.abs()]))

    return Net()


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_that_could_not_act_on_a_supernet_is_refused(name: str) -> None:
    for recipe in (ag.Recipe(average=0.9), ag.Recipe(accumulate=2), ag.Recipe(best_epoch=True)):
        with pytest.raises(ConfigError, match=r"search_recipe was given a Recipe\("):
            METHODS[name](with_inputs(), TASK, quiet(steps=8), search_recipe=recipe)


@pytest.mark.parametrize("method", [*METHODS.values(), ag.random_search, ag.monas])
def test_dropping_paths_that_there_are_not_is_refused_before_the_search(method: Callable[..., ag.Found]) -> None:
    run = quiet(steps=8)
    with pytest.raises(ConfigError, match="drop_path"):
        method(with_inputs(), TASK, run, recipe=ag.Recipe(drop_path=0.2))
    assert run.history == []


def test_second_order_needs_an_sgd() -> None:
    recipe = ag.Recipe(optimizer_factory=ag.adam)
    with pytest.raises(ConfigError, match=r"second_order=True differentiates through a step of SGD.*Adam"):
        ag.darts(space(), TASK, quiet(steps=8), second_order=True, search_recipe=recipe)
    assert ag.darts(space(), TASK, quiet(steps=8), search_recipe=recipe).network


def test_both_recipes_are_in_the_record() -> None:
    recipe = ag.Recipe(optimizer_factory=ag.adam, clip=1.0)
    found = ag.unas(space(), TASK, quiet(steps=8), recipe=recipe, terms=UnasTerms(gap="none"))
    settings = found.record["settings"]
    assert settings["recipe"]["optimizer_factory"] == "adam(learning_rate=0.01)"
    assert settings["search_recipe"]["clip"] is None
    assert settings["terms"]["gap"] == "none"


def test_each_logit_gets_its_own_gradient_whatever_the_order_of_the_optimizer() -> None:
    """Groups as TopoNAS has them: what comes last in the space comes first in the optimizer."""
    net = ag.relax(space(), ag.softmax)
    first, second = ag.logits(net)
    before = [logit.detach().clone() for logit in (first, second)]
    architecture = torch.optim.SGD([{"params": [second]}, {"params": [first]}], lr=1.0)
    weights, run = torch.optim.SGD(ag.weights(net), lr=8.0), begun(steps=1)

    def gradient(train: object, valid: object) -> tuple[Tensor, Sequence[Tensor]]:
        return first.sum() * 0.0, [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]

    run.register_state(space=net)
    alternate(
        net, TASK.split(0.5), run, weights=weights, architecture=architecture, steps=1, weight_loss=TASK.loss,
        architecture_loss=gradient, update_schedule=EverySteps(),
        schedules=(lambda progress: 0.0, lambda progress: 1.0),
    )  # fmt: skip
    assert [group["lr"] for group in (*weights.param_groups, *architecture.param_groups)] == [0.0, 1.0, 1.0]
    moved = [(old - new.detach()).tolist() for old, new in zip(before, (first, second), strict=True)]
    assert moved == [pytest.approx([1.0, 2.0]), pytest.approx([3.0, 4.0])]
