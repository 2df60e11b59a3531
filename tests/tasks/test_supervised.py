"""Supervised tasks of every kind: what trains, what is scored, how data is split, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families.timm_shim import make_torchvision_importable
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import archgrad as ag
from archgrad.errors import ConfigError, DataError, ModelError
from archgrad.tasks.metrics import Score
from archgrad.tasks.splits import Split
from archgrad.tasks.supervised import Supervised
from archgrad.tasks.task import Checkable, PerSample, Splittable, Task, higher_is_better, require

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(130, 3, generator=GENERATOR)
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1 * torch.randn(130, 1, generator=GENERATOR)


def mae(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().mean()


def regression(**options: Any) -> Supervised:
    given = {"loss": functional.mse_loss, "metrics": {"mae": mae}, "score": ag.lower("mae")} | options
    return Supervised((X, Y), batch_size=32, **given)


def drawn(task: Supervised, part: str) -> Tensor:
    return torch.cat([batch[0] for batch in task._batches(part)])


class Boxes(Dataset):
    """Images of several sizes, and a dict of as many boxes as there happen to be."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(index)
        side, count = 5 + index % 3, 1 + index % 4
        target = {"boxes": torch.rand(count, 4, generator=generator), "labels": torch.ones(count, dtype=torch.int64)}
        return torch.rand(3, side, side, generator=generator), target


def as_lists(samples: list[Any]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    return [image for image, _ in samples], [target for _, target in samples]


class Detector(nn.Module):
    """One box an image; in training it gives a dict of losses, as torchvision's do."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 4)

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        return [self.last(image.mean((1, 2))) for image in images]


def box_loss(network: nn.Module, batch: Any) -> tuple[Tensor, Any]:
    images, targets = batch
    boxes = network(images)
    return torch.stack([(b - t["boxes"]).abs().mean() for b, t in zip(boxes, targets, strict=True)]), boxes


@dataclasses.dataclass
class Output(OrderedDict):  # type: ignore[type-arg]
    """As those of Hugging Face: attributes and items."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class Tagger(nn.Module):
    """Called by keywords, with the labels among them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Output:
        logits = self.head(self.embedding(input_ids).mean(1))
        return Output(None if labels is None else functional.cross_entropy(logits, labels), logits)


class Texts(Dataset):
    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.randint(20, (6,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ((ids < 10).sum() > 3).long()}


def texts(**options: Any) -> Supervised:
    return Supervised(Texts(), batch_loss=lambda net, batch: net(**batch).loss, batch_size=16, **options)


MASKS = torch.rand(40, 1, 6, 6, generator=GENERATOR)
TASKS: dict[str, tuple[Any, Any]] = {
    "regression": (regression, lambda: nn.Linear(3, 1)),
    "masks": (
        lambda: Supervised(
            (MASKS, (MASKS[:, 0] > 0.5).to(torch.uint8)), loss=functional.cross_entropy, batch_size=8,
            metrics={"pixels": lambda o, t: (o.argmax(1) == t).float().flatten(1).mean(1)}, score="pixels",
        ),
        lambda: nn.Conv2d(1, 2, 3, padding=1),
    ),
    "multi-label": (
        lambda: Supervised((X, (X > 0).float()), loss=nn.BCEWithLogitsLoss(), batch_size=16),
        lambda: nn.Linear(3, 3),
    ),
    "detection": (
        lambda: Supervised(Boxes(), batch_loss=box_loss, collate_fn=as_lists, batch_size=8,
                           metrics={"off": lambda boxes, targets: 0.5 + len(boxes) - len(targets)},
                           score=ag.lower("off")),
        Detector,
    ),
    "keywords": (texts, Tagger),
    "two inputs": (
        lambda: Supervised(((X, X), X[:, :1] * X[:, 1:2]), loss=nn.L1Loss(), batch_size=16),
        lambda: nn.Bilinear(3, 3, 1),
    ),
    "a dict": (
        lambda: Supervised(({"a": X}, {"b": Y}), batch_size=16, loss=lambda o, t: (o - t["b"]).square().mean()),
        lambda: nn.Sequential(Named()),
    ),
}  # fmt: skip


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 1)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.last(inputs["a"])  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", TASKS)
def test_every_kind_trains_splits_and_is_scored(kind: str) -> None:
    make, network = TASKS[kind]
    task: Supervised = make()
    model = network()
    require(task, Splittable, PerSample, method="a method")
    assert isinstance(task, Task) and isinstance(task, Checkable)
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task.check(model)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    first = task.evaluate(model, "train")
    assert next(iter(first)) == task.score.name and "loss" in first and all(map(math.isfinite, first.values()))
    ag.fit(model, task, ag.Run(epochs=8, progress=False), recipe=ag.Recipe(optimizer_factory=ag.adam))
    assert task.evaluate(model, "train")["loss"] < first["loss"]
    halves = task.split(0.5)
    sizes = [half.splits["train"]["size"] for half in halves]
    assert sum(sizes) == task.splits["train"]["size"] and abs(sizes[0] - sizes[1]) <= 1
    assert json.loads(json.dumps(task.splits)) == task.splits
    again, stream = make().stream(seed=3), task.stream(seed=3)
    torch.testing.assert_close(again(task.steps_per_epoch + 1), stream(task.steps_per_epoch + 1), rtol=0, atol=0)
    together = task.with_validation()
    assert together.splits["train"]["size"] == task.splits["train"]["size"] + task.splits["valid"]["size"]
    task.loss(model, together.stream(seed=0)(0))


def test_metrics_are_means_over_samples_and_not_over_batches() -> None:
    """130 samples in batches of 32 leave an odd batch, whose mean must not count as much."""
    task, network = regression(valid=(X.clone(), Y), test=(X.clone(), Y)), nn.Linear(3, 1)
    with torch.no_grad():
        output = network(X)
    expected = {"mae": float(mae(output, Y)), "loss": float(functional.mse_loss(output, Y))}
    figures = task.evaluate(network)
    assert list(figures) == ["mae", "loss"]
    assert all(math.isclose(figures[name], expected[name], rel_tol=1e-6) for name in expected)
    batches = [float(mae(network(x).detach(), y)) for x, y in zip(X.split(32), Y.split(32), strict=True)]
    assert not math.isclose(np.mean(batches), expected["mae"], rel_tol=1e-4), "the control"


class Largest:
    """A metric that no mean over batches can give; its state must not leak from one evaluation into the next."""

    def __init__(self) -> None:
        self.value = -math.inf

    def reset(self) -> None:
        self.value = -math.inf

    def update(self, output: Tensor, target: Tensor) -> None:
        self.value = max(self.value, float((output - target).abs().max()))

    def compute(self) -> Tensor:
        return torch.tensor(self.value)


def test_objects_accumulate_over_the_whole_part() -> None:
    given = Largest()
    task = regression(metrics={"worst": given}, score=ag.lower("worst"), valid=(X.clone(), Y), test=(X.clone(), Y))
    network = nn.Linear(3, 1)
    largest = float((network(X) - Y).detach().abs().max())
    for part in ("valid", "test", "valid"):
        assert math.isclose(task.evaluate(network, part)["worst"], largest, rel_tol=1e-6)
    assert given.value == -math.inf, "the user's own object is not touched"


def test_a_function_of_a_whole_part() -> None:
    largest = ag.over_part(lambda output, target: (output - target).abs().max())
    counted = ag.over_part(lambda outputs, targets: len(targets["y"]) + 0 * outputs["y"].sum())
    task = regression(metrics={"worst": largest}, score=ag.lower("worst"), valid=(X.clone(), Y), test=(X.clone(), Y))
    network = nn.Linear(3, 1)
    for _ in range(2):
        assert math.isclose(
            task.evaluate(network)["worst"], float((network(X) - Y).detach().abs().max()), rel_tol=1e-6
        )

    class Named(nn.Linear):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"y": super().forward(x)}

    named = Supervised((X, {"y": Y}), loss=lambda o, t: (o["y"] - t["y"]).square().mean(), metrics={"n": counted})
    assert named.evaluate(Named(3, 1), "train")["n"] == named.splits["train"]["size"]
    listed = ag.over_part(lambda outputs, targets: len(outputs) if len(outputs) == len(targets) else -1)
    boxes = Supervised(Boxes(), batch_loss=box_loss, collate_fn=as_lists, batch_size=8, metrics={"n": listed})
    assert boxes.evaluate(Detector(), "train")["n"] == boxes.splits["train"]["size"]


def test_a_metric_of_torchmetrics() -> None:
    make_torchvision_importable()
    metrics = pytest.importorskip("torchmetrics")
    task = Supervised(
        (X, (X[:, 0] > 0).long()), loss=functional.cross_entropy, batch_size=16,
        metrics={"f1": metrics.F1Score("multiclass", num_classes=2, average="macro")}, score="f1",
    )  # fmt: skip
    network = nn.Linear(3, 2)
    task.check(network)
    rows = task._parts["valid"].indices
    expected = metrics.functional.f1_score(
        network(X[rows]), (X[rows, 0] > 0).long(), task="multiclass", num_classes=2, average="macro"
    )
    assert math.isclose(task.evaluate(network)["f1"], float(expected), rel_tol=1e-6)


def test_the_score_and_its_direction() -> None:
    assert regression().score == Score("mae", False) and higher_is_better(regression()) is False
    assert regression(score="mae").score == Score("mae", True)
    assert regression(score=None).score == regression(score="loss").score == Score("loss", False)
    assert regression(score=ag.higher("mae")).higher_is_better
    assert regression().splits["score"] == {"name": "mae", "higher_is_better": False}


@pytest.mark.parametrize(
    ("loss", "each"),
    [
        (functional.mse_loss, lambda o, t: (o - t).square().mean(1)),
        (nn.L1Loss(), lambda o, t: (o - t).abs().mean(1)),
        (nn.L1Loss(reduction="none"), None),
        (nn.MSELoss(reduction="sum"), lambda o, t: (o - t).square().sum(1) * len(o)),
        (lambda o, t: (o - t).abs().mean(1), lambda o, t: (o - t).abs().mean(1)),
    ],
)
def test_losses_of_each_sample(loss: Any, each: Any) -> None:
    task, network = regression(loss=loss), nn.Linear(3, 1)
    batch = task.stream(seed=0)(0)
    if each is None:
        with pytest.raises(ConfigError, match=r"the loss is a tensor \[2, 1\].*Take the mean"):
            task.check(network)
        return
    losses = task.losses(network, batch)
    torch.testing.assert_close(losses, each(network(batch[0]), batch[1]))
    torch.testing.assert_close(losses.mean(), task.loss(network, batch))


def test_weighted_losses_of_each_sample_have_the_mean_of_the_batch() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0]), ignore_index=1)
    task, network = Supervised((X, (X[:, 0] > 0).long()), loss=loss, batch_size=16), nn.Linear(3, 2)
    batch = task.stream(seed=0)(0)
    losses = task.losses(network, batch)
    torch.testing.assert_close(losses.mean(), task.loss(network, batch))
    assert bool((losses[batch[1] == 1] == 0).all()) and float(losses.detach().max()) > 0


def test_a_loss_of_whole_batches_has_none_of_each_sample() -> None:
    task, network = regression(loss=lambda o, t: (o - t).square().mean()), nn.Linear(3, 1)
    with pytest.raises(ModelError, match=r"that of each sample is needed, \[B\]"):
        task.losses(network, task.stream(seed=0)(0))


def test_regression_targets_are_split_by_quantile() -> None:
    y = torch.cat([torch.zeros(100), torch.linspace(100, 200, 100)])[torch.randperm(200, generator=GENERATOR), None]
    task = Supervised((y, y), loss=functional.mse_loss)
    means = {part: float(drawn(task, part).mean()) for part in ("train", "valid", "test")}
    assert max(means.values()) - min(means.values()) < 3
    for half in task.split():
        assert abs(float(drawn(half, "train").mean()) - means["train"]) < 3
    others = [Supervised((y, y), loss=functional.mse_loss, split=Split(seed=k, stratify=False)) for k in range(5)]
    assert max(abs(float(drawn(one, "valid").mean()) - 75) for one in others) > 6, "the control: drawn at random"


def test_labels_are_split_by_class_and_by_what_is_asked_for() -> None:
    labels = (torch.arange(200) % 10 == 0).long()
    x = torch.arange(200.0)[:, None]
    task = Supervised((x, labels), loss=functional.cross_entropy)
    assert [sum(int(v) % 10 == 0 for v in drawn(task, part)) for part in ("train", "valid", "test")] == [12, 4, 4]
    odd = Split(stratify=lambda sample: "odd" if int(sample[0]["v"]) % 2 else "even")
    asked = Supervised(({"v": x}, torch.zeros(200, 3)), loss=functional.mse_loss, split=odd)
    values = torch.cat([batch[0]["v"] for batch in asked._batches("valid")])
    assert [sum(int(v) % 2 == k for v in values) for k in (0, 1)] == [20, 20]


def test_groups_stay_together() -> None:
    groups = [index // 7 for index in range(140)]
    x = torch.arange(140.0)[:, None]
    for given in (groups, lambda sample: int(sample[0]) // 7, [f"person {group}" for group in groups]):
        task = Supervised((x, x), loss=functional.mse_loss, split=Split(groups=given))
        members = [{int(v) // 7 for v in drawn(task, part)} for part in ("train", "valid", "test")]
        assert not members[0] & members[1] and not members[0] & members[2] and not members[1] & members[2]
        assert [len(one) for one in members] == [12, 4, 4]
        one, other = ({int(v) // 7 for v in drawn(half, "train")} for half in task.split())
        assert not one & other and one | other == members[0]
    with pytest.raises(DataError, match="2 groups of 140 samples cannot be shared by train, valid, test"):
        Supervised((x, x), loss=functional.mse_loss, split=Split(groups=[index // 70 for index in range(140)]))
    with pytest.raises(DataError, match=r"groups=\) is .* of shape \[3\]; give one number or string"):
        Supervised((x, x), loss=functional.mse_loss, split=Split(groups=[1, 2, 3]))


class Rows(IterableDataset):
    def __init__(self, length: int, promised: int | None = None) -> None:
        self.length, self.promised = length, promised or length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(X[: self.length], Y[: self.length], strict=True)

    def __len__(self) -> int:
        return self.promised


def test_iterable_datasets_with_a_length() -> None:
    for given in (Rows(100), DataLoader(Rows(100), batch_size=10)):
        task = Supervised(given, loss=functional.mse_loss, batch_size=10)
        assert task.splits["train"]["size"] == 60 and task.steps_per_epoch == 6
        torch.testing.assert_close(task.stream(seed=1)(7), task.stream(seed=1)(7), rtol=0, atol=0)
        assert task.stream(seed=1)(0)[0].tolist() != task.stream(seed=1)(6)[0].tolist()
    with pytest.raises(DataError, match="gives 90 samples, its length is 100; correct __len__"):
        Supervised(Rows(90, 100), loss=functional.mse_loss)
    with pytest.raises(DataError, match="gives more samples, its length is 80"):
        Supervised(Rows(90, 80), loss=functional.mse_loss)


def test_an_npz_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x_train=X[:80], y_train=Y[:80], x_test=X[80:], y_test=Y[80:])
    task = Supervised(tmp_path / "d.npz", loss=functional.mse_loss)
    assert [task.splits[part]["size"] for part in ("train", "valid", "test")] == [64, 16, 50]
    assert task.example.shape == (1, 3)  # type: ignore[union-attr]


def test_normalization_is_the_users_and_is_recorded() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    labels = np.arange(40) % 2
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255

    def seen(normalize: Any) -> tuple[Tensor, Any]:
        task = ag.Classification((pixels, labels), (pixels.copy(), labels), normalize=normalize)
        return torch.cat([batch[0] for batch in task._batches("valid")]).double(), task.splits["normalization"]

    inputs, record = seen("none")
    torch.testing.assert_close(inputs, scaled, rtol=0, atol=1e-6)
    assert record == {"mean": [0.0] * 3, "std": [1.0] * 3}
    inputs, record = seen("imagenet")
    mean, std = (torch.tensor(record[name]).double().view(3, 1, 1) for name in ("mean", "std"))
    assert record["mean"] == [0.485, 0.456, 0.406]
    torch.testing.assert_close(inputs, (scaled - mean) / std, rtol=0, atol=1e-5)
    assert seen(((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))[1]["std"] == [0.25] * 3
    assert seen(((0.5,), (0.25,)))[1] == {"mean": [0.5] * 3, "std": [0.25] * 3}, "one number for all channels"
    assert 0.4 < seen(None)[1]["mean"][0] < 0.6
    for wrong in ("cifar", ((0.5, 0.5), (0.5, 0.5)), ((0, 0, 0), (1, 1, 0)), 3):
        with pytest.raises(DataError, match='give "imagenet"'):
            seen(wrong)
    with pytest.raises(DataError, match="normalize= is for images in memory"):
        ag.Classification((X, labels.repeat(4)[:130]), normalize="imagenet")


def test_class_weights_and_ignored_labels() -> None:
    labels = torch.tensor([0] * 90 + [1] * 30 + [-100] * 10)
    data = (X, labels)
    loss = nn.CrossEntropyLoss(ignore_index=-100)
    task = ag.Classification(
        data, (X + 1, labels), (X + 2, labels), class_weight="balanced", loss=loss, batch_size=26
    )
    assert task.classes == 2 and task.splits["class_names"] == ["0", "1"]
    assert torch.allclose(torch.tensor(task.splits["class_weight"]), torch.tensor([120 / 180, 120 / 60]))
    network = nn.Linear(3, 2)
    task.check(network)
    batch = task.stream(seed=0)(0)
    expected = functional.cross_entropy(
        network(batch[0]), batch[1], weight=torch.tensor([2 / 3, 2.0]), ignore_index=-100
    )
    torch.testing.assert_close(task.loss(network, batch), expected)
    torch.testing.assert_close(task.losses(network, batch).mean(), expected)
    assert not torch.isclose(expected, functional.cross_entropy(network(batch[0]), batch[1], ignore_index=-100)), (
        "the control"
    )
    figures = task.evaluate(network)
    kept = labels >= 0
    right = (network(X + 1)[kept].argmax(1) == labels[kept]).double().mean()
    assert math.isclose(figures["accuracy"], float(right))
    nothing = (X[:4], torch.full((4,), -100))
    assert task.loss(network, nothing) == 0 and task.losses(network, nothing).tolist() == [0.0] * 4
    for wrong, message in (
        ("even", 'give "balanced"'),
        ([1.0], r"tensor \[1\]"),
        ([1.0, -1.0], "from 0 up"),
        ([0.0, 0.0], "not all 0"),
    ):
        with pytest.raises(DataError, match=message):
            ag.Classification((X, labels.clamp_min(0)), class_weight=wrong)


def test_another_metric_as_the_score_of_a_classification() -> None:
    def recall(logits: Tensor, labels: Tensor) -> Tensor:
        return ((logits.argmax(1) == 1) & (labels == 1)).sum() / (labels == 1).sum().clamp_min(1)

    task = ag.Classification((X, (X[:, 0] > 0).long()), metrics={"recall": recall}, score="recall")
    assert list(task.evaluate(nn.Linear(3, 2))) == ["recall", "loss", "accuracy"]
    assert task.score == Score("recall") and ag.Classification((X, (X[:, 0] > 0).long())).score == Score("accuracy")
    assert ag.Classification((X, (X[:, 0] > 0).long()), score="loss").score == Score("loss", False)


@pytest.mark.parametrize("wrap", ["dict", "torchvision", "dataclass", "transformers"])
def test_outputs_of_a_classifier_of_every_usual_kind(wrap: str) -> None:
    class Wrapped(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            logits = super().forward(x)
            made = dataclasses.make_dataclass("Made", ["logits"])
            return {
                "dict": {"logits": logits, "hidden": x}, "torchvision": OrderedDict(out=logits, aux=x),
                "dataclass": made(logits), "transformers": Output(None, logits),
            }[wrap]  # fmt: skip

    task, network = ag.Classification((X, (X[:, 0] > 0).long())), Wrapped(3, 2)
    task.check(network)
    plain = nn.Linear(3, 2)
    plain.load_state_dict(network.state_dict())
    assert task.evaluate(network) == task.evaluate(plain)


class TrainsNot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("only for inference")
        return self.last(x)  # type: ignore[no-any-return]


class Deaf(nn.Module):
    """Its output has a gradient, which no weight of it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 1)
        self.other = [nn.Linear(3, 1)]

    def forward(self, x: Tensor) -> Tensor:
        return self.other[0](x)  # type: ignore[no-any-return]


BUFFER = torch.zeros(2, 3)


def into_buffer(samples: list[Any]) -> tuple[Tensor, Tensor]:
    for place, (x, _) in enumerate(samples[:2]):
        BUFFER[place] = x
    return BUFFER[: len(samples)], torch.stack([y for _, y in samples])


LINEAR = nn.Linear(3, 1)
FAILS = r"the network or the loss fails on a batch of shape \[2, 3\]"


@pytest.mark.parametrize(
    ("options", "network", "message"),
    [
        ({"loss": lambda o, t: o - t}, LINEAR, r"the loss is a tensor \[2, 1\] float32 on a batch of 2 samples"),
        ({"loss": lambda o, t: float((o - t).mean())}, LINEAR, r"the loss is [-\d.]+; it must be a scalar tensor"),
        ({"loss": lambda o, t: (o.detach() - t).mean()}, LINEAR, "the loss has no gradient"),
        ({"loss": lambda o, t: (o > t).flatten()}, LINEAR, r"the loss is a tensor \[2\] bool, which has no gradient"),
        ({"loss": lambda o, t: (o.argmax(1) == t[:, 0]).float().mean()}, LINEAR, "the loss has no gradient"),
        ({}, Deaf(), "depends on none of the network's weights"),
        ({"loss": lambda o, t: o["x"]}, LINEAR, FAILS),
        ({}, nn.Linear(4, 1), FAILS),
        ({}, TrainsNot(), "runs in evaluation mode and fails in training mode .*only for inference"),
        ({"metrics": {"mae": lambda o, t: (o - t).abs()[:1].repeat(5, 1)}}, LINEAR, r"'mae' gives a tensor \[5, 1\]"),
        ({"metrics": {"mae": lambda o, t: "good"}}, LINEAR, "'mae' gives a str; it must give one number, or one"),
        ({"metrics": {"mae": lambda o, t: None}}, LINEAR, "'mae' gives None"),
        ({"metrics": {"mae": lambda o, t: o["x"]}}, LINEAR, r"'mae' fails on the output a tensor \[\d+, 1\] float32"),
    ],
)
def test_what_check_refuses_before_training(options: dict[str, Any], network: nn.Module, message: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=message):
        regression(**options).check(network)
    assert network.training


FLAT = [
    lambda o, t: (torch.round(o) - t).square().mean(), lambda o, t: (o.sign() - t).abs().mean(),
    lambda o, t: 0 * (o - t).square().mean(), lambda o, t: (o - t).clamp(min=1e9).mean(1),
]  # fmt: skip


@pytest.mark.parametrize("loss", FLAT)
def test_a_loss_without_a_slope_is_noted(loss: Any) -> None:
    with pytest.warns(UserWarning, match="gradient of the loss is exactly zero at every weight on 32"):
        regression(loss=loss, metrics={}, score=None).check(nn.Linear(3, 1))
    # Two samples that are learned, and others that are not, are no reason.
    regression(loss=lambda o, t: ((len(o) > 2) * (o - t)).abs().mean(), metrics={}, score=None).check(nn.Linear(3, 1))


def test_a_metric_that_is_always_nan_is_noted_and_one_of_few_samples_is_not() -> None:
    always = {"always": lambda o, t: (o - o).sum() / 0}
    with pytest.warns(UserWarning, match="always is NaN on the validation part.*over_part"):
        regression(metrics=always, score=ag.higher("always")).check(nn.Linear(3, 1))

    class Few:
        def reset(self) -> None:
            self.count = 0

        def update(self, output: Tensor, target: Tensor) -> None:
            self.count += len(output)

        def compute(self) -> float:
            return float(self.count) if self.count != 32 else math.nan

    regression(metrics={"few": Few()}, score=ag.higher("few")).check(nn.Linear(3, 1))


def test_a_score_that_falls_with_the_loss_is_noted() -> None:
    with pytest.warns(UserWarning, match=r"it falls as the loss falls; if less is better, give score=archgrad.lower"):
        regression(score="mae").check(nn.Linear(3, 1))
    regression(score=ag.higher("mae")).check(nn.Linear(3, 1))  # no warning: the direction is the user's
    labels = (X[:, 0] > 0).long()
    right = {"right": lambda logits, target: (logits.argmax(1) == target).float()}
    ag.Classification((X, labels), metrics=right, score="right").check(nn.Linear(3, 2))
    regression(metrics={"near": lambda o, t: -(o - t).abs().mean()}, score="near").check(nn.Linear(3, 1))


@dataclasses.dataclass
class Answer:
    y: Tensor


def falling(form: str) -> tuple[Supervised, nn.Module]:
    """A task whose score, `off`, falls with its loss; how its loss, metric and network are made."""

    class Wrapped(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return {"dict": {"y": y}, "data class": [Answer(y)]}.get(form, y)

    def y_of(output: Any) -> Tensor:
        found: Tensor = output["y"] if form == "dict" else output[0].y if form == "data class" else output
        return found

    def batch_loss(network: nn.Module, batch: Any) -> tuple[Tensor, Any]:
        output = network(batch[0])
        return functional.mse_loss(y_of(output), batch[1]), output

    def off(output: Any, target: Tensor) -> Tensor:
        return (y_of(output) - target).abs().mean()

    how: dict[str, Any] = {"batch_loss": batch_loss}
    if form != "batch_loss":
        how = {"loss": lambda output, target: functional.mse_loss(y_of(output), target)}
    metric = ag.over_part(off) if form == "over_part" else off
    return Supervised((X, Y), metrics={"off": metric}, score="off", batch_size=16, **how), Wrapped(3, 1)


@pytest.mark.parametrize("form", ["function", "over_part", "batch_loss", "dict", "data class"])
def test_the_direction_of_a_score_is_doubted_for_every_kind_of_loss_and_output(form: str) -> None:
    task, network = falling(form)
    before = dict(vars(network))
    with pytest.warns(UserWarning, match="score='off' counts as better where it is higher, but it falls"):
        task.check(network)
    assert vars(network).keys() == before.keys(), "its forward is its own again"


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", [functional.mse_loss, nn.L1Loss(), lambda o, t: (o - t).abs().mean()])
@pytest.mark.parametrize(("shape", "target"), [((1,), ()), ((), (1,)), ((1, 1), ()), ((3,), (1, 3))])
def test_outputs_that_a_loss_compares_each_with_each_are_refused(loss: Any, shape: Any, target: Any) -> None:
    y = torch.rand(60, *target)
    network = nn.Sequential(nn.Linear(3, max(1, math.prod(shape))), nn.Flatten(0) if not shape else nn.Identity())
    network = nn.Sequential(network, nn.Unflatten(1, shape) if len(shape) > 1 else nn.Identity())
    with pytest.raises(ConfigError, match="the loss compares each with each"):
        Supervised((X[:60], y), loss=loss, batch_size=16).check(network)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_loss_that_pairs_outputs_of_another_shape_itself_is_taken(reduction: str) -> None:
    loss = nn.MSELoss(reduction=reduction)
    Supervised((X, Y[:, 0]), loss=lambda o, t: loss(o[:, 0], t), batch_size=16).check(nn.Linear(3, 1))


def test_metrics_are_tried_on_more_than_two_samples() -> None:
    shorter = {"shorter": lambda o, t: (o - t).abs()[1:, 0]}
    with pytest.raises(ConfigError, match=r"'shorter' gives a tensor \[31\].*for each of the 32 samples"):
        regression(metrics=shorter, score=None).check(nn.Linear(3, 1))

    def of_both_classes(output: Tensor, target: Tensor) -> Tensor:
        if len(target.unique()) < 2:
            raise ValueError("only one class")
        return output.mean()

    ordered = (torch.arange(130) >= 100).long()
    task = Supervised(
        (X, ordered), (X + 1, ordered), (X + 2, ordered), loss=functional.cross_entropy, batch_size=16,
        metrics={"auc": ag.over_part(of_both_classes)},
    )  # fmt: skip
    task.check(nn.Linear(3, 2))
    always = {"auc": ag.over_part(lambda output, target: of_both_classes(output, 0 * target))}
    with pytest.raises(ConfigError, match=r"metric 'auc' fails in compute\(\): ValueError: only one class"):
        regression(metrics=always, score=None).check(nn.Linear(3, 1))


def test_what_batch_loss_has_to_return_is_said() -> None:
    def fitted(network: nn.Module, batch: Any) -> Tensor:
        return functional.mse_loss(network(batch[0]), batch[1])

    with pytest.raises(ConfigError, match=r"batch_loss gives no output for the metrics mae; return \(loss, output\)"):
        Supervised((X, Y), batch_loss=fitted, metrics={"mae": mae}).check(nn.Linear(3, 1))
    with pytest.raises(ConfigError, match=r"the loss is a dict of .*or with the output in a pair \(loss, output\)"):
        Supervised((X, Y), batch_loss=lambda n, b: {"loss": fitted(n, b)}).check(nn.Linear(3, 1))


class OfGraphs(nn.Module):
    """Takes a list of (nodes, adjacency), of as many nodes as each has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 16), nn.Linear(16, 1)

    def forward(self, graphs: list[tuple[Tensor, Tensor]]) -> Tensor:
        return torch.stack([self.head((edges @ self.first(nodes).relu()).mean(0)) for nodes, edges in graphs])


def test_a_list_of_samples_of_any_size_is_one_input() -> None:
    graphs = [(torch.randn(3 + i % 3, 3), torch.eye(3 + i % 3)) for i in range(60)]
    samples = [(graph, graph[0].mean()[None]) for graph in graphs]
    task = Supervised(
        samples, loss=functional.mse_loss, batch_size=8,
        collate_fn=lambda some: ([graph for graph, _ in some], torch.stack([y for _, y in some])),
    )  # fmt: skip
    network = OfGraphs()
    task.check(network)
    limit = ag.macs(task.example).at_most(fraction=0.75)
    run = ag.Run(steps=8, progress=False)
    found = ag.dnal(ag.slim(network, example=task.example), task, run, limit=limit, round_to=1)
    assert found.costs["macs"] <= 0.75 * ag.macs(task.example).of(network)
    assert not [note for note in found.record["notes"] if "memory of the search cannot" in note]


def test_batches_that_share_a_buffer_are_refused() -> None:
    task = Supervised(TensorDataset(X, Y), loss=functional.mse_loss, collate_fn=into_buffer, batch_size=2)
    with pytest.raises(DataError, match="returns views of one buffer"):
        task.check(nn.Linear(3, 1))


class Labelled(Dataset):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"features": X[index], "labels": Y[index]}


class ByName(nn.Sequential):
    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = super().forward(features)
        return output


def test_labels_in_a_dict_are_no_inputs_of_the_network() -> None:
    task = Supervised(Labelled(), batch_loss=lambda n, b: functional.mse_loss(n(features=b["features"]), b["labels"]))
    assert task.splits["input_shape"] == {"features": [3]}
    for each in (task, *task.split(0.5), task.with_validation()):
        assert each.example.keys() == {"features"}
    space = ag.slim(ByName(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)), example=task.example)
    limit = ag.macs(task.example).at_most(fraction=0.5)
    found = ag.dnal(space, task, ag.Run(steps=8, progress=False), limit=limit)
    assert found.network(features=X[:2]).shape == (2, 1)


SAMPLES: dict[str, list[Any]] = {
    "pairs": [(X[i], Y[i]) for i in range(130)],
    "arrays": [(X[i].numpy(), Y[i].numpy()) for i in range(130)],
    "tuples of inputs": [((X[i], X[i]), Y[i]) for i in range(130)],
    "lists": [[X[i], Y[i]] for i in range(130)],
    "dicts": [{"features": X[i], "labels": Y[i]} for i in range(130)],
}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("loaded", [False, True])
def test_a_list_of_samples_is_a_dataset(kind: str, loaded: bool) -> None:
    samples = SAMPLES[kind]
    of_dicts = {"batch_loss": lambda n, b: functional.mse_loss(n(features=b["features"]), b["labels"])}
    loss = of_dicts if kind == "dicts" else {"loss": functional.mse_loss}
    whole = DataLoader(samples, batch_size=26, shuffle=True) if loaded else samples
    task, again = (Supervised(whole, batch_size=26, **loss) for _ in range(2))
    network = {"tuples of inputs": nn.Bilinear(3, 3, 1), "dicts": ByName(nn.Linear(3, 1))}.get(kind, nn.Linear(3, 1))
    task.check(network)
    assert task.fingerprint() == again.fingerprint()
    sizes = [task.splits[part]["size"] for part in ("train", "valid", "test")]
    assert sum(sizes) == 130 and min(sizes) > 20
    assert bool(task.loss(network, task.stream(seed=0)(3)).isfinite())
    with pytest.raises(DataError, match="train and valid have 130 samples in common"):
        Supervised(samples, samples, **loss)
    if kind != "lists":  # two samples are no pair of arrays
        parts = Supervised(samples[:1], samples[1:3], samples[3:5], **loss).splits
        assert [parts[part]["size"] for part in ("train", "valid", "test")] == [1, 2, 2]


def test_labels_in_a_list_of_samples() -> None:
    samples = [(X[i], i % 4) for i in range(130)]
    task = ag.Classification(samples, batch_size=26)
    assert task.classes == 4
    task.check(nn.Linear(3, 4))


def test_checking_leaves_running_statistics_alone() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    regression().check(network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": None}, ConfigError, "neither of loss and batch_loss given"),
        ({"batch_loss": lambda n, b: 0}, ConfigError, "both loss and batch_loss given"),
        ({"loss": "mse"}, ConfigError, "loss is a str; give a function"),
        ({"loss": nn.MSELoss}, ConfigError, r"loss is the class MSELoss; make one of it: MSELoss\(\)"),
        ({"loss": None, "batch_loss": nn.MSELoss}, ConfigError, "batch_loss is the class MSELoss"),
        ({"metrics": {"mae": nn.L1Loss}}, ConfigError, "metric 'mae' is the class L1Loss; make one of it"),
        ({"loss": nn.Bilinear(1, 1, 1)}, ConfigError, "the loss has weights of its own"),
        ({"score": "mea"}, ConfigError, r"score='mea' is no metric .*loss, mae. Did you mean 'mae'\?"),
        ({"score": 3}, ConfigError, "score=3: give the name"),
        ({"metrics": [mae]}, ConfigError, "metrics is a list; give a dict"),
        ({"metrics": {"loss": mae}}, ConfigError, '"loss" is the loss itself'),
        ({"metrics": {"mae": 3}}, ConfigError, "metric 'mae' is a int; give a function"),
        ({"batch_size": 0}, DataError, "batch_size=0"),
    ],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"loss": functional.mse_loss, "metrics": {"mae": mae}} | options
    with pytest.raises(error, match=message):
        Supervised((X, Y), **given)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, Y[:50]), r"lengths \[50, 130\]"),
        ((X, torch.full((130, 1), math.nan)), "the targets hold NaN"),
        (({"a": X, "b": [["x"]] * 130}, Y), r"the inputs\['b'\] do not form one array of numbers"),
        ((X, 3.0), "lengths"),
        ((torch.zeros(0, 3), torch.zeros(0, 1)), "no samples at all"),
        ((X, Y.to(torch.complex64)), "are complex"),
    ],
)
def test_bad_arrays(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Supervised(data, loss=functional.mse_loss)


def test_masks_and_real_targets_are_sent_to_the_right_task() -> None:
    with pytest.raises(DataError, match=r"use archgrad\.Supervised"):
        ag.Classification(TensorDataset(X, Y[:, 0]))


def test_options_of_the_wrong_kind_are_refused() -> None:
    data = torch.randn(12, 2), torch.randn(12, 1)
    with pytest.raises(DataError, match=r"split=3: give an archgrad.Split"):
        ag.Supervised(data, loss=nn.functional.mse_loss, split=3)
    with pytest.raises(DataError, match=r"augment=\[3\]: give functions"):
        ag.Supervised(data, loss=nn.functional.mse_loss, augment=[3])


def test_batches_of_one_are_tried_as_they_will_be_trained() -> None:
    x = torch.rand(20, 4)
    task = ag.Supervised((x, x.sum(1, keepdim=True)), loss=nn.functional.mse_loss, batch_size=1)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    with pytest.raises(ModelError, match="runs in evaluation mode and fails in training mode"):
        task.check(network)
    task.check(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1)))


def test_derivatives_without_enable_grad_are_explained() -> None:
    def residual(network: nn.Module, batch: Any) -> Tensor:
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        return slope.square().mean()

    def enabled(network: nn.Module, batch: Any) -> Tensor:
        with torch.enable_grad():
            return residual(network, batch)

    x, net = torch.randn(40, 3), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with pytest.raises(ModelError, match=r"under torch\.enable_grad"):
        ag.Supervised((x, x[:, 0]), batch_loss=residual).check(net)
    ag.Supervised((x, x[:, 0]), batch_loss=enabled).check(net)
