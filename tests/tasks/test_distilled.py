"""Distillation: the loss in closed form, what the task can do, and that the teacher stays out of everything."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

import archgrad as ag
from archgrad.errors import ConfigError, InputError, ModelError
from archgrad.tasks.distilled import Distilled, _unexplained
from archgrad.tasks.task import PerSample, Splittable, Task, require

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(120, 6, generator=GENERATOR)
LABELS = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def classes() -> ag.Classification:
    return ag.Classification((X, LABELS), batch_size=12)


def mlp(width: int = 8, outputs: int = 3, *, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, outputs))


def test_the_loss_in_closed_form() -> None:
    task, teacher, student = classes(), mlp(seed=1), mlp(seed=2).eval()
    distilled = Distilled(task, teacher.train(), weight=0.3, temperature=2.0)
    batch = task.stream(seed=0)(0)
    teacher.eval()
    soft, logs = (teacher(batch[0]) / 2).softmax(1), (student(batch[0]) / 2).log_softmax(1)
    divergence = 4 * (soft * (soft.log() - logs)).sum(1)
    expected = 0.7 * functional.cross_entropy(student(batch[0]), batch[1]) + 0.3 * divergence.mean()
    torch.testing.assert_close(distilled.loss(student, batch), expected)
    torch.testing.assert_close(distilled.losses(student, batch).mean(), expected)
    torch.testing.assert_close(distilled.losses(student, batch), 0.7 * task.losses(student, batch) + 0.3 * divergence)
    control = Distilled(task, teacher, weight=0.3, temperature=3.0).loss(student, batch)
    assert not torch.isclose(control, expected)


def test_a_teacher_that_is_the_network_itself_adds_nothing_and_no_gradient() -> None:
    task, network = classes(), mlp().eval()
    distilled, batch = Distilled(task, network, weight=0.5), classes().stream(seed=0)(0)
    torch.testing.assert_close(distilled.loss(network, batch), 0.5 * task.loss(network, batch))
    distilled.loss(network, batch).backward()
    own = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    (0.5 * task.loss(network, batch)).backward()
    for kept, parameter in zip(own, network.parameters(), strict=True):
        torch.testing.assert_close(kept, parameter.grad, atol=1e-6, rtol=1e-4)


def test_the_teacher_is_a_copy_and_stays_as_it_is() -> None:
    network = mlp()
    distilled = Distilled(classes(), network)
    before = {name: value.clone() for name, value in distilled.teacher.state_dict().items()}
    ag.fit(network, distilled, ag.Run(epochs=2, progress=False))
    assert all(torch.equal(before[name], value) for name, value in distilled.teacher.state_dict().items())
    assert not torch.equal(network[0].weight, distilled.teacher[0].weight), "the user's network did train"
    assert not distilled.teacher.training and not any(p.requires_grad for p in distilled.teacher.parameters())
    assert set(network.state_dict()) == set(mlp().state_dict()) and not network._forward_hooks


def test_its_abilities_are_those_of_the_task() -> None:
    distilled: Task = Distilled(classes(), mlp())
    require(distilled, Splittable, PerSample, method="a method")
    one, other = distilled.split(0.5)  # type: ignore[attr-defined]
    assert isinstance(one, Distilled) and isinstance(distilled, Distilled)
    assert one.teacher is other.teacher is distilled.teacher
    assert one.splits["train"]["size"] + other.splits["train"]["size"] == 72
    assert isinstance(one.split(0.5)[0], Distilled), "a part can be divided again"
    assert one.loss(mlp(), one.stream(seed=0)(0)).ndim == 0 and one.losses(mlp(), one.stream(seed=0)(0)).shape == (
        12,
    )
    assert distilled.classes == 3 and distilled.higher_is_better  # type: ignore[attr-defined]
    assert distilled.with_validation().splits["half"]["half"] == "whole"  # type: ignore[attr-defined]
    network = mlp()
    assert distilled.evaluate(network) == classes().evaluate(network)
    record = distilled.splits["distillation"]  # type: ignore[attr-defined]
    assert json.loads(json.dumps(record)) == record and record["teacher"] == "Sequential"
    assert record["teacher_sha256"] != Distilled(classes(), mlp(seed=5)).splits["distillation"]["teacher_sha256"]


class Line:
    """A task of somebody's own, with the least that a task has."""

    example, steps_per_epoch, higher_is_better = torch.ones(1, 1), 4, False

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Callable[[int], Any]:
        def batch(step: int) -> tuple[Tensor, Tensor]:
            x = torch.rand(8, 1, generator=torch.Generator().manual_seed(1000 * seed + step))
            return x, 3 * x

        return batch

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        return functional.mse_loss(network(batch[0]), batch[1])

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        with torch.no_grad():
            return {"mse": float(self.loss(network, self.stream(seed=7)(0)))}


def test_a_task_of_ones_own_has_no_more_abilities_than_before() -> None:
    distilled = Distilled(Line(), nn.Linear(1, 1), loss=functional.mse_loss)
    assert not isinstance(distilled, Splittable) and not isinstance(distilled, PerSample)
    with pytest.raises(ConfigError, match=r"split\(fraction\).*losses\(network, batch\)"):
        require(distilled, Splittable, PerSample, method="DARTS")
    distilled.check(nn.Linear(1, 1))
    assert list(ag.fit(nn.Linear(1, 1), distilled, ag.Run(epochs=1, progress=False))) == ["mse"]
    assert distilled.splits["distillation"]["loss"] == "mse_loss"


def test_any_output_by_a_loss_of_the_users() -> None:
    task = ag.Supervised((X, X[:, :1]), loss=functional.l1_loss, batch_size=12)
    with pytest.raises(ConfigError, match="no logits of classes"):
        Distilled(task, mlp(outputs=1))
    teacher, student = mlp(outputs=1, seed=1), mlp(outputs=1, seed=2).eval()
    distilled = Distilled(task, teacher, weight=0.5, loss=functional.mse_loss)
    batch = task.stream(seed=0)(0)
    teacher.eval()
    expected = 0.5 * task.loss(student, batch) + 0.5 * functional.mse_loss(student(batch[0]), teacher(batch[0]))
    torch.testing.assert_close(distilled.loss(student, batch), expected)
    torch.testing.assert_close(distilled.losses(student, batch).mean(), expected)
    whole = Distilled(task, teacher, loss=lambda o, t: (o - t).square().mean())
    whole.check(student)
    with pytest.raises(ConfigError, match=r"loss=\) gives 3.0; give a scalar tensor"):
        Distilled(task, teacher, loss=lambda o, t: 3.0).check(student)  # type: ignore[arg-type,return-value]
    with pytest.raises(ModelError, match="the distance from the teacher is of whole batches"):
        whole.losses(student, batch)


class Keyword(nn.Module):
    """Called by keywords, as networks of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 3)

    def forward(self, values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.last(values)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def test_the_teacher_is_called_as_the_network_is() -> None:
    data = [{"values": x, "labels": y} for x, y in zip(X, LABELS, strict=True)]
    task = ag.Supervised(data_of(data), batch_loss=lambda net, batch: net(**batch)["loss"], batch_size=12)
    distilled, student = Distilled(task, Keyword(), weight=1.0), Keyword()
    distilled.check(student)
    before = float(distilled.loss(student, task.stream(seed=0)(0)).detach())
    ag.fit(student, distilled, ag.Run(epochs=30, progress=False), recipe=ag.Recipe(optimizer_factory=ag.adam))
    batch = task.stream(seed=0)(0)
    assert float(distilled.loss(student, batch).detach()) < 0.5 * before


def data_of(items: list[Any]) -> Any:
    class Listed(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int) -> Any:
            return items[index]

    return Listed()


def convolutions(width: int, *, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


def test_features_are_compared_up_to_a_linear_map() -> None:
    teacher = torch.randn(16, 5, 4, 4, generator=GENERATOR)
    mixing = torch.randn(5, 5, generator=GENERATOR)
    mixed = torch.einsum("oc,bchw->bohw", mixing, teacher) + 3
    assert float(_unexplained(mixed, teacher)) < 1e-3, "another basis is no distance"
    half = teacher[:, :2].clone().requires_grad_()
    distance = _unexplained(half, teacher)
    explained = teacher[:, :2].var((0, 2, 3)).sum() / teacher.var((0, 2, 3)).sum()
    assert math.isclose(float(distance.detach()), float(1 - explained), abs_tol=0.05)
    assert 0.95 < float(_unexplained(torch.randn(16, 3, 4, 4, generator=GENERATOR), teacher)) <= 1, "the control"
    distance.backward()
    # The map is solved for, so that its own change adds nothing: against finite differences of the whole.
    direction = torch.randn(half.shape, generator=GENERATOR)
    assert half.grad is not None
    with torch.no_grad():
        step = 1e-2
        ends = [float(_unexplained(half + sign * step * direction, teacher)) for sign in (1, -1)]
    numeric = (ends[0] - ends[1]) / (2 * step)
    assert math.isclose(numeric, float((half.grad * direction).sum()), rel_tol=0.05, abs_tol=1e-4)


def test_features_of_layers_by_name() -> None:
    task = ag.Classification(ag.digits(), batch_size=64)
    teacher, student = convolutions(8, seed=1), convolutions(4, seed=2)
    distilled = Distilled(task, teacher, weight=1.0, features=["3"])
    distilled.check(student)
    before = float(distilled.loss(student, task.stream(seed=0)(0)).detach())
    ag.fit(student, distilled, ag.Run(epochs=3, progress=False), recipe=ag.Recipe(optimizer_factory=ag.adam))
    assert float(distilled.loss(student, task.stream(seed=0)(0)).detach()) < 0.9 * before
    assert set(student.state_dict()) == set(convolutions(4).state_dict()), "the map is thrown away"
    with pytest.raises(ConfigError, match="the network has no layer 'blocks'"):
        Distilled(task, teacher, features={"blocks": "3"}).check(student)
    with pytest.raises(ConfigError, match="the teacher has no layer 'blocks'"):
        Distilled(task, teacher, features={"3": "blocks"}).check(student)
    few = ag.Classification(ag.digits(), batch_size=8)
    with pytest.raises(ModelError, match=r"solved for from 8 positions of 4 channels"):
        Distilled(few, teacher, features=["5"]).check(student)


def test_slimming_trains_on_it_and_repeats_exactly() -> None:
    task = classes()
    teacher = mlp(16, seed=1)
    ag.fit(teacher, task, ag.Run(epochs=5, progress=False))

    results = []
    for _ in range(2):
        space = ag.slim(mlp(16, seed=2), X[:1])
        limit = ag.macs(X[:1]).at_most(fraction=0.5)
        results.append(ag.dnal(space, Distilled(task, teacher), ag.Run(epochs=4, progress=False), limit=limit))
    assert results[0].architecture == results[1].architecture
    assert all(map(torch.equal, results[0].network.state_dict().values(), results[1].network.state_dict().values()))
    assert results[0].record["data"]["distillation"]["weight"] == 0.5


def test_exact_resume_with_a_teacher(tmp_path: Path) -> None:
    """A run that is stopped after half of its steps, and goes on with another copy of the same teacher."""
    task, teacher = classes(), mlp(16, seed=1)
    straight, stopped = mlp(8, seed=2), mlp(8, seed=2)
    ag.fit(straight, Distilled(task, teacher), ag.Run(epochs=4, progress=False))

    class Enough(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row.get("step") == 11:
            raise Enough

    output = ag.Output(log_every=1, checkpoint_seconds=0, on_log=stop)
    with pytest.raises(Enough):
        ag.fit(stopped, Distilled(task, teacher), ag.Run(epochs=4, folder=tmp_path, output=output, progress=False))
    resumed = mlp(8, seed=2)
    ag.fit(resumed, Distilled(classes(), mlp(16, seed=1)), ag.Run(epochs=4, folder=tmp_path, progress=False))
    assert all(map(torch.equal, straight.state_dict().values(), resumed.state_dict().values()))


def test_a_teacher_that_is_no_better_is_told_in_the_report() -> None:
    task, good = classes(), mlp(32, seed=1)
    ag.fit(good, task, ag.Run(epochs=20, progress=False), recipe=ag.Recipe(optimizer_factory=ag.adam))
    bad = mlp(4, seed=3)
    (remark,) = Distilled(task, bad).remarks(good)
    assert remark.startswith("the teacher is no better than the network it taught: accuracy 0.")
    assert Distilled(task, good).remarks(bad) == []
    space = ag.slim(good, X[:1])
    limit = ag.macs(X[:1]).at_most(fraction=0.9)
    found = ag.dnal(space, Distilled(task, bad, weight=0.01), ag.Run(epochs=2, progress=False), limit=limit)
    assert any("the teacher is no better" in note for note in found.record["notes"])
    lower = Distilled(Line(), nn.Linear(1, 1), loss=functional.mse_loss)
    perfect = nn.Linear(1, 1)
    with torch.no_grad():
        perfect.weight.fill_(3), perfect.bias.fill_(0)  # type: ignore[call-overload]
    assert len(lower.remarks(perfect)) == 1
    assert Distilled(Line(), perfect, loss=functional.mse_loss).remarks(nn.Linear(1, 1)) == []


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (mlp(outputs=5), r"the network gives logits \[2, 3\] and the teacher \[2, 5\]; both must be"),
        (nn.Linear(7, 3), r"the teacher fails on a batch of shape \[2, 6\]"),
        (nn.Sequential(nn.Linear(6, 3), nn.Unflatten(1, (3, 1))), r"the teacher \[2, 3, 1\]"),
    ],
)
def test_a_teacher_with_other_outputs_is_refused_before_training(teacher: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Distilled(classes(), teacher).check(mlp())


def test_a_loss_that_does_not_call_the_network_is_refused() -> None:
    class Inside(Line):
        def loss(self, network: nn.Module, batch: Any) -> Tensor:
            return functional.mse_loss(network[0](batch[0]), batch[1])  # type: ignore[index]

    with pytest.raises(ModelError, match="does not call the network itself"):
        Distilled(Inside(), nn.Linear(1, 1), loss=functional.mse_loss).check(nn.Sequential(nn.Linear(1, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0}, "weight=0: give a number above 0, at most 1"),
        ({"weight": 1.5}, "weight=1.5"),
        ({"weight": True}, "weight=True"),
        ({"temperature": 0}, "temperature=0: give a number above 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"teacher": "resnet18"}, "teacher='resnet18'"),
        ({"task": object()}, "Distilled cannot run on object"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    given = {"task": classes(), "teacher": mlp()} | options
    with pytest.raises(InputError, match=message):
        Distilled(given.pop("task"), given.pop("teacher"), **given)


def test_a_teacher_whose_weights_are_computed_before_each_call() -> None:
    teacher = nn.Sequential(prune.l1_unstructured(nn.Linear(6, 3), "weight", amount=0.5))
    distilled = Distilled(classes(), teacher)
    torch.testing.assert_close(distilled.teacher(X), teacher(X))


@pytest.mark.parametrize("loss", [nn.functional.mse_loss, nn.functional.l1_loss, nn.functional.smooth_l1_loss])
def test_outputs_that_a_loss_would_stretch_are_refused(loss: Callable) -> None:
    x = torch.rand(20, 4)
    task = ag.Supervised((x, x.sum(1, keepdim=True)), loss=nn.functional.mse_loss)
    with pytest.raises(ModelError, match=r"the loss of distillation fails.*Using a target size"):
        ag.Distilled(task, nn.Linear(4, 3), loss=loss).check(nn.Linear(4, 1))
    ag.Distilled(task, nn.Linear(4, 1), loss=loss).check(nn.Linear(4, 1))
