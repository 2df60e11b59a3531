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
from archgrad.tasks.chance_level import best_constant, judged, scores_by_normalization


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
    if said == "input":  # the folder is free again, and there is a way to go on
        again = ag.Run(steps=6, folder=tmp_path / "run", progress=False)
        assert "given" in slimmed(change(trained), task, again, check_weights=False).record


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
    assert not judged(task, finds, figures).doubts


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
    assert not judged(task, right, task.evaluate(right)).doubts
    assert "the scale of the targets" in judged(task, wrong, task.evaluate(wrong)).doubts
    constant = best_constant(task, wrong)
    assert constant is not None
    assert float(constant.output) == pytest.approx(scale, rel=0.1)


def test_the_best_constant_of_a_classifier_is_the_frequency_of_its_classes() -> None:
    y = torch.tensor([0] * 300 + [1] * 100)
    task = ag.Classification((torch.rand(400, 3), y), batch_size=40)
    network, passes = nn.Linear(3, 2), []
    network.register_forward_hook(lambda *_: passes.append(1))
    constant = best_constant(task, network)
    assert constant is not None
    assert len(passes) == 1  # the labels say the rest
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


X = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0))
RULE = torch.tensor([[1.0, -2, 0, 0, 3, 0]])


def linear(weight: torch.Tensor) -> nn.Linear:
    network = nn.Linear(6, 1)
    with torch.no_grad():
        network.weight.copy_(weight)
        network.bias.zero_()
    return network


class ByHand:
    """y = RULE x, of the five members of a task and no more."""

    example, steps_per_epoch, higher_is_better = X[:1], 6, False

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Callable:
        def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.randn(200, 6, generator=torch.Generator().manual_seed(step))
            return x, x @ RULE.T

        return batch

    def loss(self, network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return functional.mse_loss(network(batch[0]), batch[1])

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        with torch.no_grad():
            return {"mse": float(self.loss(network, self.stream(seed=1)(9)))}


class InPieces(ByHand):
    """Its loss calls a layer of the network, and not the network."""

    def loss(self, network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return functional.mse_loss(network[1](network[0](batch[0])), batch[1])  # type: ignore[index]


class WithLabels(nn.Module):
    """Computes the loss itself, as networks of Hugging Face do."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.linear = linear(weight)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = functional.mse_loss(self.linear(x), labels)
        return loss


def likelihood(network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Of a narrow normal distribution: below 0."""
    return 50 * (network(batch[0]) - batch[1]).square().mean() - 1e4


def reconstruction(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (network(x) - x @ RULE.T).square().mean(1)


def own(batch_loss: Callable, data: object = (X, X @ RULE.T)) -> ag.Supervised:
    return ag.Supervised(data, batch_loss=batch_loss, batch_size=200)


SAMPLES = [{"x": x, "labels": (x @ RULE.T)} for x in X]
ANY_TASK: dict[str, tuple[Callable[[], object], Callable[[torch.Tensor], nn.Module]]] = {
    "by hand": (ByHand, linear),
    "batch_loss": (lambda: own(lambda n, b: functional.l1_loss(n(b[0]), b[1])), linear),
    "batch_loss, one by one": (
        lambda: own(lambda n, b: (torch.cat([n(x[None]) for x in b[0]]) - b[1]).abs()),
        linear,
    ),
    "labels among the keywords": (lambda: own(lambda n, b: n(**b), SAMPLES), WithLabels),
    "a likelihood": (lambda: own(likelihood), linear),
    "distilled": (lambda: ag.Distilled(ByHand(), linear(RULE), loss=functional.mse_loss), linear),
    "from the inputs alone": (lambda: own(reconstruction, list(X)), linear),
    "no loss in evaluation mode": (lambda: own(lambda n, b: (n(b[0]) - b[1]).square().mean() * n.training), linear),
}


NOT_ASKED = {
    "batch_loss, one by one": "does not call the network itself, with tensors of several samples",
    "no loss in evaluation mode": "its loss is 0 in evaluation mode",
}


@pytest.mark.parametrize("kind", ANY_TASK)
def test_any_task_is_asked_what_other_inputs_cost(kind: str) -> None:
    make, network = ANY_TASK[kind]
    task = make()
    trained = judged(task, network(RULE), {})
    untrained = judged(task, network(torch.tensor([[0.0, 0, 1, 1, 0, 1]])), {})
    if kind in NOT_ASKED:
        assert trained == untrained and NOT_ASKED[kind] in untrained.unjudged
        return
    assert trained == ("", "")
    if kind == "from the inputs alone":
        assert "everything in its batches goes through the network" in untrained.unjudged
    else:
        assert "seem to know nothing of this data" in untrained.doubts and not untrained.unjudged


def test_a_task_of_ones_own_stops_or_says_in_the_report_that_it_was_not_asked() -> None:
    def wide(weight: torch.Tensor) -> nn.Sequential:
        network = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 1))
        with torch.no_grad():
            network[0].weight.copy_(torch.cat([weight, -weight]).repeat(6, 1))
            network[1].weight.copy_(torch.tensor([[1.0, -1.0] * 6]) / 12)
            for layer in network:
                layer.bias.zero_()
        return network

    def slimmed(weight: torch.Tensor, task: ByHand) -> ag.Found:
        space, limit = ag.slim(wide(weight), X[:1]), ag.macs(X[:1]).at_most(fraction=0.5)
        recipe, run = ag.Recipe(optimizer_factory=ag.adam), ag.Run(steps=8, progress=False)
        return ag.dnal(space, task, run, limit=limit, pretrained=True, recipe=recipe)

    with pytest.raises(ModelError, match="where the network is given the inputs of another sample"):
        slimmed(torch.tensor([[0.0, 0, 1, 1, 0, 1]]), ByHand())
    assert "is not checked" not in slimmed(RULE, ByHand()).report()
    text = " ".join(slimmed(RULE, InPieces()).report().split())
    assert "is not checked: its loss does not call the network itself" in text
