"""What each part of a recipe does to a training, under budgets in steps and in seconds, and for any task."""

from __future__ import annotations

import functools
import json
import math
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.checkpoint import checkpoint

import archgrad as ag
from archgrad.errors import ConfigError
from archgrad.gates.gate_optimizer import limited_logit_optimizer
from archgrad.run import device, loop
from archgrad.run.run import Run, Stopped
from archgrad.training.fit import optimize
from archgrad.training.joined_optimizer import JoinedOptimizer
from archgrad.training.recipe import OptimizerFactory, Recipe
from archgrad.training.schedules import constant, cosine


class Curve:
    """y = sin(x): batches {"x", "y"}, a loss that does everything, lower is better, and nothing else is known."""

    steps_per_epoch = 5
    higher_is_better = False
    example = torch.zeros(1, 1)

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Callable[[int], Any]:
        def batch(step: int) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(1000 * seed + step * world + rank)
            x = 3.0 * torch.randn(16, 1, generator=generator)
            return {"x": x, "y": x.sin()}

        return batch

    def loss(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        if torch.is_grad_enabled():
            self.seen.append(batch["x"])
        return nn.functional.mse_loss(network(batch["x"]), batch["y"])

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        training = network.training
        network.eval()
        with torch.no_grad():
            batch = self.stream(seed={"train": 5, "valid": 6, "test": 7}[part])(0)
            error = float(self.loss(network, batch))
        network.train(training)
        return {"mse": error, "rmse": math.sqrt(error)}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 1))


def run(**options: Any) -> Run:
    every = {"output": ag.Output(log_every=1)}
    return Run(**({"steps": 20, "seed": 3, "device": "cpu", "progress": False} | every | options))


@pytest.mark.parametrize(("own", "asked", "largest"), [(5.0, None, 5.0), (None, None, 400.0), (5.0, 7.0, 7.0)])
def test_sgd_clips_unless_the_recipe_says_otherwise(own: float | None, asked: float | None, largest: float) -> None:
    network = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(network.weight)
    factory = functools.partial(ag.sgd, learning_rate=1.0, weight_decay=0.0, clip=own)
    slope = ag.Supervised(  # a gradient of norm 400
        (torch.full((20, 4), 200.0), torch.zeros(20, 1)), loss=lambda out, _: out.mean(), score=ag.lower("loss")
    )
    ag.fit(network, slope, run(steps=1), recipe=Recipe(factory, constant, clip=asked))
    assert float(network.weight.detach().norm()) == pytest.approx(1.9 * largest)  # Nesterov's first step


def plain_sgd(parameters: Iterable[nn.Parameter], rate: float = 0.1) -> Optimizer:
    return SGD(parameters, lr=rate)


def parameters(network: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach()


# Accumulation


def test_accumulation_takes_the_batches_in_order_and_steps_on_their_mean() -> None:
    task, network, by_hand = Curve(), net(), net()
    ag.fit(network, task, run(steps=2), recipe=Recipe(plain_sgd, constant, accumulate=3))
    stream, optimizer = task.stream(seed=3), plain_sgd(by_hand.parameters())
    for numbers in ((0, 1, 2), (3, 4, 5)):
        joint = [torch.cat([stream(i)[key] for i in numbers]) for key in ("x", "y")]
        optimizer.zero_grad()
        nn.functional.mse_loss(by_hand(joint[0]), joint[1]).backward()
        optimizer.step()
    torch.testing.assert_close(parameters(network), parameters(by_hand))
    assert not torch.allclose(parameters(network), parameters(net()))


def test_epochs_are_passes_over_the_data_also_where_batches_are_accumulated() -> None:
    task, training = Curve(), run(steps=None, epochs=4)
    ag.fit(net(), task, training, recipe=Recipe(accumulate=2))
    assert sum("loss" in row for row in training.history) == 4 * 3, "5 batches are 3 steps"
    assert len(task.seen) == 2 * 12


# The best epoch


class Scripted(Curve):
    """Scores as they are told, in the order of asking."""

    def __init__(self, scores: list[float], *, higher: bool) -> None:
        super().__init__()
        self.scores, self.higher_is_better = scores, higher

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        # By the weights and not by a count, so that a resumed run has the same scores.
        epoch = round(float(network.get_parameter("4.bias").detach()))
        return {"score": self.scores[epoch]}


def counting(scripted: Scripted) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """SGD, but for the last bias, which counts the epochs: 1 after the first."""

    def factory(parameters: Iterable[nn.Parameter]) -> Optimizer:
        *weights, bias = parameters
        optimizer = SGD([{"params": weights}, {"params": [bias], "lr": 0.0}], lr=0.1)

        def count(*_: object) -> None:
            with torch.no_grad():
                bias.add_(1.0 / scripted.steps_per_epoch)

        optimizer.register_step_post_hook(count)
        return optimizer

    return factory


def counted() -> nn.Sequential:
    network = net()
    with torch.no_grad():
        network[4].bias.zero_()
    return network


@pytest.mark.parametrize(
    ("scores", "higher", "best"),
    [
        ([0.0, 0.1, 0.7, 0.3, 0.7, 0.2], True, 2),
        ([0.0, 0.9, 0.5, 0.1, 0.1, 0.2], False, 3),
        ([0.0, -5.0, -1.0, -2.0, -3.0, -4.0], True, 2),
        ([0.0, 0.5, 0.4, 0.3, 0.2, 0.1], False, 5),
        ([0.0, math.nan, math.nan, 0.3, math.nan, 0.1], True, 3),
    ],
)
def test_the_weights_of_the_best_epoch_are_handed_back(scores: list[float], higher: bool, best: int) -> None:
    task, network, training = Scripted(scores, higher=higher), counted(), run(steps=25)
    at_end: list[Tensor] = []

    def remembering(parameters: Iterable[nn.Parameter]) -> Optimizer:
        optimizer, own = counting(task)(parameters), list(network.parameters())
        optimizer.register_step_post_hook(
            lambda *_: at_end.append(torch.cat([p.detach().flatten().clone() for p in own]))
        )
        return optimizer

    figures = ag.fit(network, task, training, recipe=Recipe(remembering, constant, best_epoch=True))
    assert torch.equal(parameters(network), at_end[5 * best - 1])
    assert figures == {"score": scores[best]}
    told = [row["valid_score"] for row in training.history if "best_valid" in row]
    assert told == pytest.approx(scores[1:], nan_ok=True)
    assert training.history[-1]["valid_score"] == scores[best]


def test_without_it_the_last_weights_are_handed_back_and_every_epoch_is_told() -> None:
    task, network, training = Scripted([0.0, 0.1, 0.7, 0.3, 0.5, 0.2], higher=True), counted(), run(steps=25)
    assert ag.fit(network, task, training, recipe=Recipe(counting(task), constant)) == {"score": 0.2}
    told = [(row["valid_score"], row["best_valid"]) for row in training.history if "best_valid" in row]
    assert told == [(0.1, 0.1), (0.7, 0.7), (0.3, 0.7), (0.5, 0.7), (0.2, 0.7)]


@pytest.mark.parametrize(("valid", "train", "told"), [(10, 10, 6), (30, 10, 2), (1000, 10, 1)])
def test_scoring_epochs_takes_no_longer_than_training(valid: int, train: int, told: int) -> None:
    parts = [(torch.rand(size, 2), torch.rand(size, 1)) for size in (train, valid, 10)]
    task = ag.Supervised(*parts, loss=nn.functional.mse_loss, batch_size=10)
    training = run(steps=6)
    ag.fit(nn.Linear(2, 1), task, training)
    assert sum("best_valid" in row for row in training.history) == told


class Stopping(Scripted):
    """Asks to be stopped in the n-th loss."""

    left = 10**6

    def loss(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        self.left -= torch.is_grad_enabled()
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)
        return super().loss(network, batch)


@pytest.mark.parametrize("at", [3, 10, 11, 24, 25])
def test_the_best_epoch_resumes_exactly(at: int, tmp_path: Path) -> None:
    scores = [0.0, 0.1, 0.7, 0.3, 0.5, 0.2]

    def trained(folder: Path, stop: int | None) -> tuple[Tensor, list[Any]]:
        task, network = Stopping(scores, higher=True), counted()
        task.left = stop or 10**6
        training = run(steps=25, folder=folder, output=ag.Output(log_every=1, checkpoint_seconds=0.0))
        ag.fit(network, task, training, recipe=Recipe(counting(task), best_epoch=True))
        return parameters(network), [{k: v for k, v in row.items() if k != "time"} for row in training.history]

    weights, history = trained(tmp_path / "whole", None)
    with pytest.raises(Stopped):
        trained(tmp_path / "cut", at)
    again, history_again = trained(tmp_path / "cut", None)
    assert torch.equal(weights, again) and history_again == history
    finished, _ = trained(tmp_path / "cut", None)
    assert torch.equal(weights, finished)


def test_average_and_best_epoch_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="both choose the final weights"):
        Recipe(average=0.9, best_epoch=True)


# What a supernet's weights cannot use


@pytest.mark.parametrize(
    "recipe", [Recipe(average=0.9), Recipe(best_epoch=True), Recipe(drop_path=0.1), Recipe(accumulate=2)]
)
def test_what_has_no_effect_there_is_refused_in_one_place(recipe: Recipe) -> None:
    with pytest.raises(
        ConfigError, match=r"search_recipe was given a Recipe\(.*no effect.*optimizer_factory, schedule"
    ):
        recipe.check_plain("search_recipe")
    Recipe(clip=1.0).check_plain("search_recipe")


# A task of one's own


def gates_of(net: nn.Module) -> nn.Module:
    return ag.slim(net, Curve.example)


def test_a_hand_written_regression_is_trained_slimmed_saved_and_reported(tmp_path: Path) -> None:
    task, network = Curve(), net()
    adam = Recipe(functools.partial(ag.adam, learning_rate=0.02), clip=1.0, best_epoch=True)
    before = task.evaluate(network)["mse"]
    figures = ag.fit(network, task, run(steps=200), recipe=adam)
    assert list(figures) == ["mse", "rmse"] and figures["mse"] < 0.5 * before

    limit = ag.macs(Curve.example).at_most(fraction=0.5)
    training = run(steps=60, folder=tmp_path / "run")
    found = ag.dnal(gates_of(network), task, training, limit=limit, pretrained=True, round_to=1, recipe=adam)
    assert found.costs["macs"] <= 0.5 * ag.macs(Curve.example).of(network)
    assert found.score == task.evaluate(found.network, "test")["mse"]
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["score"] == {"name": "mse", "higher_is_better": False} and record["data"] == {}
    assert record["settings"]["recipe"]["clip"] == 1.0 and record["settings"]["recipe"]["best_epoch"] is True
    assert "mse" in found.report() and (tmp_path / "run" / "report.html").is_file()
    loaded = torch.export.load(tmp_path / "run" / "network.pt2").module()
    torch.testing.assert_close(loaded(Curve.example), found.network(Curve.example))


def test_what_a_task_lacks_is_said_before_a_run_begins(tmp_path: Path) -> None:
    class Half:
        example, steps_per_epoch = torch.zeros(1, 1), 3

    for method in (ag.fit, ag.dnal):
        subject = net() if method is ag.fit else gates_of(net())
        with pytest.raises(ConfigError, match=r"Half, which lacks 3 of .*stream.*loss.*evaluate"):
            method(subject, Half(), run(folder=tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"pruning_transfer cannot run on Curve.*split\(fraction\)"):
        ag.pruning_transfer(gates_of(net()), Curve(), run(folder=tmp_path / "run"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"transfer cannot run on Curve.*classes.*shots"):
        ag.transfer(gates_of(net()), ag.sample(gates_of(net())), run(), source=Curve(), target=Curve())  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


# Budgets in seconds


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


class Timed(Curve):
    """Each loss of a training step takes so many seconds."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def loss(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        self.clock.now += self.seconds * torch.is_grad_enabled()
        return super().loss(network, batch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(device, "time", clock)
    return clock


def rates(history: Iterable[Any], name: str) -> list[float]:
    return [row["lr"] for row in history if row["phase"] == name and "lr" in row]


def test_a_fit_in_seconds_ends_at_the_end_of_its_schedule(clock: Clock) -> None:
    training = run(steps=None, seconds=50.0)
    ag.fit(net(), Timed(clock, 0.5), training)
    assert rates(training.history, "fit") == pytest.approx([0.05 * cosine(i / 100) for i in range(100)])


@pytest.mark.parametrize("sparsity", [3.0, None])
def test_dnal_in_seconds_divides_its_time_grows_its_scale_and_ends_its_schedules(
    clock: Clock, sparsity: float | None
) -> None:
    task, training = Timed(clock, 0.5), run(steps=None, seconds=120.0)
    limit = ag.macs(Curve.example).at_most(fraction=0.5)
    found = ag.dnal(gates_of(net()), task, training, limit=limit, round_to=1, sparsity=sparsity)
    phases = dict.fromkeys(row["phase"] for row in training.history if row["phase"])
    steps = {name: len(rates(training.history, name)) for name in phases}
    # A step takes half a second, so that the forecast is 240.
    published = {"weights": 60, "gates": 40, "finetune": 140}
    ours = {"weights": 24, "gates": 24, "finetune": 192}
    assert steps == (ours if sparsity is None else published)
    scales = [row["scale"] for row in training.history if "scale" in row]
    of_ours, of_published = [10 * 40 ** (k / 4) for k in range(1, 5)], [1e4 ** (k / 10) for k in range(1, 11)]
    assert scales == pytest.approx(of_ours if sparsity is None else of_published)
    assert rates(training.history, "finetune")[-1] < 0.001 * 0.05
    assert found.costs["macs"] <= 0.5 * ag.macs(Curve.example).of(net())


def test_dnal_grows_its_scale_to_the_end_where_steps_are_slower_than_was_forecast(clock: Clock) -> None:
    task, training = Timed(clock, 0.1), run(steps=None, seconds=60.0)

    class Slower(Timed):
        def loss(self, network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            self.seconds = 0.1 if "between" in training.location else 0.35
            return super().loss(network, batch)

    task.__class__ = Slower
    ag.dnal(gates_of(net()), task, training, round_to=1)
    scales = [row["scale"] for row in training.history if "scale" in row]
    assert scales == pytest.approx([1e4 ** (k / 10) for k in range(1, 11)])
    assert rates(training.history, "finetune")[-1] < 0.01 * 0.05


def test_seconds_that_leave_no_time_for_the_gates_are_refused_before_anything_is_trained(
    clock: Clock, tmp_path: Path
) -> None:
    training = run(steps=None, seconds=6.0, folder=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"seconds=6 leaves about 2 training steps for the gates"):
        ag.dnal(gates_of(net()), Timed(clock, 0.5), training)
    ag.fit(net(), Curve(), run(steps=1, folder=tmp_path / "run"))  # the folder is free again


def test_under_epochs_the_scale_has_its_published_form() -> None:
    training = run(steps=None, epochs=12)
    ag.dnal(gates_of(net()), Curve(), training, gate_epochs=4)
    rows = [(row["step"], row["scale"]) for row in training.history if "scale" in row]
    assert [step for step, _ in rows] == [0, 5, 10, 15]
    assert [scale for _, scale in rows] == pytest.approx([10.0, 100.0, 1000.0, 10000.0])


# Inside a step of another loop


def test_a_training_without_a_phase_takes_all_steps_and_logs_nothing() -> None:
    training, task, network = run(steps=2), Curve(), net()
    training.begin("test", {})
    optimizer = plain_sgd(network.parameters())
    seen: list[float] = []
    optimize(
        network, task, training, optimizer=optimizer, steps=4, phase=None, schedule=cosine, seed=9,
        on_step=lambda step: seen.append(optimizer.param_groups[0]["lr"]),
    )  # fmt: skip
    assert seen == pytest.approx([0.1 * cosine(i / 4) for i in range(4)]) and not training.history
    assert torch.equal(task.seen[0], task.stream(seed=9)(0)["x"])


@pytest.mark.parametrize("clip", [None, 0.05])
def test_weights_and_gates_step_together_each_by_its_own_rule(clip: float | None) -> None:
    """Weights move by at most rate * clip; of a gate's gradient the mean goes, then the norm of all is at most 1."""
    space = ag.relax(gates_of(net()), ag.scaled_sigmoid)
    gates, weights = ag.logits(space), ag.weights(space)
    optimizer = JoinedOptimizer(Recipe(plain_sgd, clip=clip).optimizer(space), limited_logit_optimizer(space, 1.0))
    for p in weights:
        p.grad = torch.ones_like(p)
    for p in gates:
        p.grad = 5.0 + torch.arange(p.numel()).float()
    before = [p.detach().clone() for p in (*gates, *weights)]
    optimizer.step()
    moves = [p.detach() - b for p, b in zip((*gates, *weights), before, strict=True)]
    assert all(abs(float(move.sum())) < 1e-5 for move in moves[: len(gates)])
    assert math.hypot(*map(float, map(torch.linalg.vector_norm, moves[: len(gates)]))) == pytest.approx(1.0)
    norm = math.sqrt(sum(w.numel() for w in weights))
    assert math.hypot(*(float(move.norm()) for move in moves[len(gates) :])) == pytest.approx(
        0.1 * (clip or norm), rel=1e-3
    )


@pytest.mark.parametrize("factory", [ag.adam, ag.adamw])
def test_under_a_limit_any_optimizer_trains_the_weights(factory: OptimizerFactory) -> None:
    limit = ag.macs(Curve.example).at_most(fraction=0.5)
    found = ag.dnal(gates_of(net()), Curve(), run(), limit=limit, recipe=Recipe(factory))
    assert found.costs["macs"] <= 0.5 * ag.macs(Curve.example).of(net())


class Recomputed(nn.Module):
    """A checkpointed block that needs more than one of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(1, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).tanh()
        if not self.training:
            return self.last(self.block(y, y))
        return self.last(checkpoint(self.block, y, y, use_reentrant=True))

    def block(self, a: Tensor, b: Tensor) -> Tensor:
        return self.second(a).tanh() * b


def test_checkpointing_inside_a_function_trains_everything() -> None:
    torch.manual_seed(0)
    network = Recomputed()
    before = [p.detach().clone() for p in network.parameters()]
    ag.fit(network, Curve(), run(steps=3, precision="bf16-mixed"))
    assert all(not torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"optimizer_factory": "adam"}, "Allowed is a function from parameters to their optimizer"),
        ({"optimizer_factory": SGD([nn.Parameter(torch.ones(1))], lr=0.1)}, "such as archgrad.adamw"),
        ({"schedule": 0.1}, "schedule=0.1.*Allowed is a function from progress"),
        ({"best_epoch": "no"}, "best_epoch='no'.*Allowed is True or False"),
    ],
)
def test_what_cannot_train_is_refused_when_the_recipe_is_made(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){text}"):
        Recipe(**options)


def of_others(_: Iterable[nn.Parameter]) -> Optimizer:
    return SGD(nn.Linear(2, 2).parameters(), lr=0.1)


class Renamed(SGD):
    """Asks for its closure by another name."""

    def step(self, loss_function: Callable[[], float]) -> float:  # type: ignore[override]
        return loss_function()


class Wrapped(SGD):
    """Hands on whatever it is given, as wrappers of optimizers do."""

    def step(self, *args: Any, **options: Any) -> Any:
        return super().step(*args, **options)


REFUSED = {of_others: "other parameters", torch.optim.LBFGS: "by a closure", Renamed: "by a closure"}


@pytest.mark.parametrize("factory, reason", REFUSED.items())
def test_an_optimizer_that_would_train_nothing_or_needs_a_closure_is_refused(
    factory: OptimizerFactory, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        Recipe(optimizer_factory=factory).optimizer(nn.Linear(2, 2))


def test_an_optimizer_of_a_part_of_the_weights_or_of_more_is_taken() -> None:
    network, other = nn.Linear(2, 2), nn.Linear(2, 2)
    Recipe(optimizer_factory=Wrapped).optimizer(network)
    Recipe(optimizer_factory=lambda weights: SGD(list(weights)[:1], lr=0.1)).optimizer(network)
    Recipe(optimizer_factory=lambda weights: SGD([*weights, *other.parameters()], lr=0.1)).optimizer(network)
