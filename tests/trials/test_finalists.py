"""How searches end: the likeliest by enumeration, shared weights that rank, finalists trained apart, exact resume."""

from __future__ import annotations

import collections
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import archgrad as ag
from archgrad.errors import ConfigError
from archgrad.run.signals import Stopped
from archgrad.trials.finalists import Ending, Finalists, by_shared_loss, shared_loss


class Erase(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.0 * x


class FaintAnswer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor([1e-4, 1.0, 1.0, 1.0])


def space() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = ag.OpChoice({"good": nn.Linear(4, 4), "erase": Erase(), "wide": nn.Linear(4, 4)}, name="first")
        second = ag.OpChoice({"norm": nn.BatchNorm1d(4), "pass": nn.Identity()}, name="second")
        return nn.Sequential(first, second, nn.Linear(4, 2))


def solve(made: nn.Module) -> None:
    """Let the weights of "good" give the answer."""
    with torch.no_grad():
        made[0].candidates[0].weight.copy_(5.0 * torch.eye(4))
        made[2].weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]))


def task(samples: int = 200) -> ag.Classification:
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0))
    return ag.Classification((x, (x[:, 0] > 0).long()), batch_size=20)


def quiet(**settings: Any) -> ag.Run:
    return ag.Run(
        **{"steps": 800, "seed": 1, "device": "cpu", "progress": False, "output": ag.Output(log_every=1), **settings}
    )


METHODS: dict[str, Callable[..., ag.Found]] = {
    "darts": ag.darts, "unas": ag.unas, "darts_prime": ag.darts_prime, "radars": ag.radars,
    "random_search": lambda *given, **options: ag.random_search(*given, shared=True, **options),
}  # fmt: skip


def test_shared_weights_rank_by_the_loss_on_the_statistics_of_the_batches() -> None:
    """Running statistics that fit nothing change no loss; they do where they are used."""
    made, data, run = space(), task(), quiet()
    solve(made)
    run.begin("test", {})
    every = [ag.Architecture({"first": i, "second": j}) for i in range(3) for j in range(2)]
    losses = by_shared_loss(made, data, run, every)
    assert list(losses.values()) == sorted(losses.values())
    assert next(iter(losses))["first"] == 0
    made[1].candidates[0].running_mean.fill_(100.0)
    assert by_shared_loss(made, data, run, every) == losses
    spoiled = data.evaluate(ag.build(made, every[0]), "valid")["loss"]
    assert spoiled > shared_loss(made, every[0], data, run) + 1.0


def test_a_batch_of_one_sample_is_ranked_by_estimated_statistics() -> None:
    x = torch.randn(41, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    data, run = ag.Classification((x[1:], y[1:]), (x[:1].clone(), y[:1].clone()), batch_size=20), quiet()
    run.begin("test", {})
    assert shared_loss(space(), ag.Architecture({"first": 0, "second": 0}), data, run) > 0.0


@pytest.mark.parametrize("name", METHODS)
def test_finalists_share_the_budget_of_the_search_and_the_best_of_them_is_handed_back(name: str) -> None:
    run = quiet()
    found = METHODS[name](space(), task(), run)
    rows = found.record["finalists"]
    assert len(rows) == 3 and len({tuple(row["architecture"].items()) for row in rows}) == 3
    assert dict(found.architecture) == min(rows, key=lambda row: row["loss"])["architecture"]
    taken = collections.Counter(str(row["phase"]) for row in run.history if "loss" in row)
    ends = [n for phase, n in taken.items() if phase.startswith("finalist_")]
    assert ends == [40, 40, 40] and taken["train"] == 400 and taken.total() == 800


@pytest.mark.parametrize("name", METHODS)
def test_the_published_form_and_a_short_search_hand_back_their_own_choice(name: str) -> None:
    for run, options in ((quiet(), {"finalists": None}), (quiet(steps=60), {})):
        found = METHODS[name](space(), task(), run, **options)
        assert "finalists" not in found.record and not any(
            str(r["phase"]).startswith("finalist") for r in run.history
        )


def test_without_a_training_afterwards_the_finalist_itself_is_handed_back() -> None:
    found = ag.darts(space(), task(), quiet(steps=400), search_fraction=1.0)
    loss = task().evaluate(found.network, "valid")["loss"]
    assert loss == pytest.approx(min(row["loss"] for row in found.record["finalists"]))


def test_a_draw_that_is_better_is_handed_back_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made, data, run = ag.relax(space(), ag.softmax), task(), quiet()
    made[0].candidates[1] = FaintAnswer()
    solve(made)
    ag.logits(made)[0].data = torch.tensor([-9.0, 9.0, -8.0])  # the search has come to what hides the answer
    run.begin("test", {})
    ending = Ending(Finalists(likely=1), 300, 1.0)
    chosen = ending.choose(made, ag.decide(made), data, run, recipe=ag.Recipe())
    assert chosen.architecture["first"] != 1 and "A random draw has a validation loss of" in run.notes[-1]
    assert (
        Ending(Finalists(likely=1, drawn=0), 300, 1.0)
        .choose(made, ag.decide(made), data, quiet_begun(), recipe=ag.Recipe())
        .architecture["first"]
        == 1
    )


def quiet_begun() -> ag.Run:
    run = quiet()
    run.begin("test", {})
    return run


def test_the_loss_decides_and_the_score_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a better score and a better loss the loss is taken; lower scores win where the task says so."""
    told = {"likely1": {"accuracy": 0.9, "loss": 0.5}, "drawn": {"accuracy": 0.8, "loss": 0.4}}
    monkeypatch.setattr("archgrad.trials.finalists.finalists", lambda *_, **__: told)
    named = {
        "likely1": ag.Architecture({"first": 0, "second": 0}),
        "drawn": ag.Architecture({"first": 2, "second": 0}),
    }
    ending, made = Ending(Finalists(), 300, 1.0), space()

    def chosen() -> ag.Architecture:
        return ending.train_apart(
            named, lambda each: ag.build(made, each), task(), quiet_begun(), recipe=ag.Recipe()
        ).architecture

    assert chosen() == named["drawn"]
    told = {"likely1": {"accuracy": 0.9}, "drawn": {"accuracy": 0.8}}
    assert chosen() == named["likely1"]


def test_a_run_that_ends_among_its_finalists_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ag.darts(space(), task(), quiet())
    original = ag.Run.log

    def log(self: ag.Run, figures: dict[str, float], *, step: int | None = None) -> None:
        original(self, figures, step=step)
        if "valid_loss" in figures and self.history[-1]["phase"] == "finalist_likely2":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(ag.Run, "log", log)
        with pytest.raises(Stopped):
            ag.darts(space(), task(), quiet(folder=tmp_path / "run"))
    resumed = ag.darts(space(), task(), quiet(folder=tmp_path / "run"))
    assert resumed.record["finalists"] == whole.record["finalists"]
    ours, theirs = resumed.network.state_dict(), whole.network.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    "wrong", [{"likely": 0}, {"drawn": -1}, {"fraction": 0.0}, {"fraction": 1.0}, {"likely": 1.5}]
)
def test_numbers_that_make_no_end_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="likely from 1 and drawn from 0"):
        Finalists(**wrong)
