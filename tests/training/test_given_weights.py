"""Weights that a user gives: scored before anything is trained, and refused where they know nothing of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import archgrad as ag
from archgrad.errors import ModelError
from archgrad.tasks.chance import best_constant, doubts, scores_by_normalization


def mlp(classes: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))


@pytest.fixture(scope="module")
def trained() -> nn.Sequential:
    """A network trained on digits in [0, 1]."""
    network = mlp()
    task = ag.Classification(ag.digits(), normalize="none")
    ag.fit(network, task, ag.Run(epochs=12, progress=False), recipe=ag.Recipe(optimizer_factory=ag.adam))
    return network


def slimmed(network: nn.Module, task: ag.Classification, run: ag.Run, **options: bool) -> ag.Found:
    space = ag.slim(network, example=task.example)
    limit = ag.macs(task.example).at_most(fraction=0.5)
    return ag.dnal(space, task, run, limit=limit, pretrained=True, **options)


def test_the_weights_as_they_stand_open_the_record(trained: nn.Module, tmp_path: Path) -> None:
    task = ag.Classification(ag.digits(), normalize="none")
    figures = task.evaluate(trained)
    found = slimmed(trained, task, ag.Run(steps=6, folder=tmp_path / "run", progress=False))
    assert found.record["given"]["figures"] == pytest.approx(figures)
    assert found.history[0]["given_accuracy"] == pytest.approx(figures["accuracy"])
    # The figure of the test part is of the very same weights.
    assert found.record["before"]["accuracy"] == pytest.approx(task.evaluate(trained, "test")["accuracy"])
    line = found.report().splitlines()[1]
    assert line.startswith(f"given weights, before anything was trained: accuracy {100 * figures['accuracy']:.2f} %")
    assert "mean 0 and deviation 1" in " ".join(found.report().split())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Given weights, before anything was trained" in page


def shifted(network: nn.Sequential) -> nn.Sequential:
    """The same network with its classes in another order."""
    other = mlp()
    other.load_state_dict(network.state_dict())
    for name in ("weight", "bias"):
        tensor = getattr(other[3], name)
        tensor.data = tensor.data.roll(1, 0)
    return other


@pytest.mark.parametrize(
    ("change", "normalize", "said"),
    [
        (lambda network: network, ([2.0], [0.1]), "none 0.9"),
        (shifted, "none", "in another order the network scores an accuracy of 0.9"),
        (lambda network: mlp(), "none", "input"),
    ],
    ids=["normalization", "order of classes", "untrained"],
)
def test_weights_near_chance_stop_the_run_before_it_trains(
    trained: nn.Sequential, tmp_path: Path, change: Callable, normalize: object, said: str
) -> None:
    task = ag.Classification(ag.digits(), normalize=normalize)
    run = ag.Run(steps=6, folder=tmp_path / "run", progress=False)
    with pytest.raises(ModelError, match="seem to know nothing of this data") as refusal:
        slimmed(change(trained), task, run)
    assert said in str(refusal.value)
    assert not run.history or "loss" not in run.history[-1]
    # The folder is free again, and there is a way to go on.
    found = slimmed(
        change(trained), task, ag.Run(steps=6, folder=tmp_path / "run", progress=False), check_weights=False
    )
    assert "given" in found.record


def test_what_is_no_worse_than_chance_is_let_through(trained: nn.Sequential) -> None:
    # One class in ten: the most frequent class alone scores 0.9, and a network that finds the others scores less.
    digits = ag.digits()
    task = ag.Classification((digits.x, (digits.y == 8).long()), normalize="none")
    finds = nn.Sequential(mlp(), nn.Linear(10, 2))
    finds[0].load_state_dict(trained.state_dict())
    with torch.no_grad():
        finds[1].weight.copy_(torch.zeros(2, 10))
        finds[1].weight[1, 8] = 5.0
        quarter = float(finds(digits.x / 255)[:, 1].quantile(0.75))
        finds[1].bias.copy_(torch.tensor([quarter, 0.0]))  # finds nearly all eights, and many others
    figures = task.evaluate(finds)
    assert figures["accuracy"] < 0.9
    assert figures["loss"] > 0.33  # that of the frequencies of the classes
    assert not doubts(task, finds, figures)


@pytest.mark.parametrize("loss", [functional.mse_loss, functional.l1_loss, nn.SmoothL1Loss()])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_regression_is_held_against_the_best_constant(loss: Callable, scale: float) -> None:
    x = torch.linspace(-1, 1, 400)[:, None]
    task = ag.Supervised((x, scale * (3 * x + 1)), loss=loss)
    right, wrong = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        right.weight.fill_(3 * scale)
        right.bias.fill_(scale)
        wrong.weight.fill_(3 * scale)
        wrong.bias.fill_(9 * scale)
    assert not doubts(task, right, task.evaluate(right))
    assert "the scale of the targets" in doubts(task, wrong, task.evaluate(wrong))
    constant = best_constant(task, wrong)
    assert constant is not None
    assert float(constant.output) == pytest.approx(scale, rel=0.1)


def test_the_best_constant_of_a_classifier_is_the_frequency_of_its_classes() -> None:
    y = torch.tensor([0] * 300 + [1] * 100)
    task = ag.Classification((torch.rand(400, 3), y), batch_size=40)
    constant = best_constant(task, nn.Linear(3, 2))
    assert constant is not None
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert task.evaluate(constant)["loss"] == pytest.approx(entropy, rel=0.02)


def test_other_normalizations_leave_the_task_as_it_was(trained: nn.Module) -> None:
    task = ag.Classification(ag.digits(), normalize="none")
    before = task.evaluate(trained)
    scores = scores_by_normalization(ag.Distilled(task, trained), trained)
    assert set(scores) == {"data", "none", "0.5/0.5"}
    assert scores["none"] == before["accuracy"] > scores["0.5/0.5"]
    assert task.evaluate(trained) == before
    assert (
        scores_by_normalization(ag.Supervised((torch.rand(9, 2), torch.rand(9, 1)), loss=functional.mse_loss), mlp())
        == {}
    )
