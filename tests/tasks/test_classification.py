from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from archgrad.errors import DataError, ModelError, NonFiniteError
from archgrad.tasks.classification import Classification
from archgrad.tasks.splits import Split
from archgrad.tasks.task import Task

ONE = torch.arange(200, dtype=torch.float32)[:, None]
LABEL = torch.arange(200) % 4


def members(task: Classification, part: str) -> set[float]:
    return {float(x) for inputs, _ in task._batches(part) for x in inputs[:, 0]}


class Rule(nn.Module):
    """Logits that point to x % 4, wrongly so where x is below `wrong`."""

    def __init__(self, wrong: int = 0, classes: int = 4) -> None:
        super().__init__()
        self.wrong, self.classes = wrong, classes
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        pick = (x[:, 0].long() + (x[:, 0] < self.wrong)) % 4
        return functional.one_hot(pick, self.classes) * self.scale


def test_it_is_a_task() -> None:
    task: Task = Classification.load("digits")
    assert task.steps_per_epoch == 1078 // 128


@pytest.mark.parametrize("given", [(ONE, LABEL), TensorDataset(ONE, LABEL), DataLoader(TensorDataset(ONE, LABEL))])
def test_parts_are_stratified_disjoint_and_fixed(given: object) -> None:
    task = Classification(given, split=Split(0.2))
    parts = [members(task, part) for part in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [120, 40, 40]
    assert set.union(*parts) == set(range(200))
    for part in parts:
        assert [sum(x % 4 == label for x in part) for label in range(4)] == [len(part) // 4] * 4
    assert [members(Classification(given), part) for part in ("train", "valid", "test")] == parts
    assert members(Classification(given, split=Split(seed=1)), "valid") != parts[1]
    record = task.splits
    assert [record[part]["size"] for part in ("train", "valid", "test")] == [120, 40, 40]
    assert record["valid"]["indices_sha256"] == Classification(given).splits["valid"]["indices_sha256"]
    assert record["valid"]["indices_sha256"] != record["test"]["indices_sha256"]


def test_what_is_given_is_not_split() -> None:
    task = Classification((ONE, LABEL), test=(ONE + 1000, LABEL))
    assert [task.splits[part]["size"] for part in ("train", "valid", "test")] == [160, 40, 200]
    assert [task.splits[part]["split_off_train"] for part in ("train", "valid", "test")] == [
        False,
        True,
        False,
    ]
    whole = Classification((ONE, LABEL), (ONE + 500, LABEL), (ONE + 1000, LABEL))
    assert whole.splits["train"]["size"] == 200 and min(members(whole, "test")) == 1000


def test_a_rare_class_is_not_lost() -> None:
    label = LABEL.clone()
    label[:2] = 4
    task = Classification((ONE, label), split=Split(0.3))
    assert {0.0, 1.0} <= members(task, "train"), "two samples cannot serve three parts"
    label[2] = 4
    task = Classification((ONE, label), split=Split(0.3))
    assert [len({0.0, 1.0, 2.0} & members(task, part)) for part in ("train", "valid", "test")] == [1, 1, 1]


def test_images_are_normalized_by_the_training_part() -> None:
    pixels = torch.randint(0, 200, (50, 3, 4, 4), dtype=torch.uint8)
    pixels[:, 2] = 9
    extra = pixels.clone() + 50
    task = Classification((pixels, LABEL[:50]), (extra, LABEL[:50]), (extra.clone(), LABEL[:50]))
    constants = task.splits["normalization"]
    scaled = pixels.double() / 255
    assert np.allclose(constants["mean"], scaled.mean((0, 2, 3)).tolist())
    assert np.allclose(constants["std"][:2], scaled[:, :2].std((0, 2, 3), correction=0).tolist())
    assert constants["std"][2] == 1, "a constant channel is not divided by zero"
    mean, std = (torch.tensor(constants[key]).view(3, 1, 1) for key in ("mean", "std"))
    seen = torch.cat([inputs for inputs, _ in task._batches("valid")])
    assert torch.allclose(seen, (extra / 255 - mean) / std, atol=1e-6)
    train = torch.cat([inputs for inputs, _ in task._batches("train")])
    assert train.mean((0, 2, 3)).abs().max() < 1e-5
    assert task.example.shape == (1, 3, 4, 4) and task.splits["input_shape"] == [3, 4, 4]
    flat = Classification((pixels.flatten(1), LABEL[:50])).splits["normalization"]
    assert len(flat["mean"]) == 1


def test_the_validation_part_does_not_enter_the_constants() -> None:
    pixels = torch.randint(0, 256, (200, 1, 3, 3), dtype=torch.uint8)
    task = Classification((pixels, LABEL))
    kept = task._parts["train"].indices
    assert math.isclose(task.splits["normalization"]["mean"][0], float(pixels[kept].double().mean() / 255))
    assert not math.isclose(task.splits["normalization"]["mean"][0], float(pixels.double().mean() / 255))


def test_floats_and_datasets_pass_as_they_are() -> None:
    assert Classification((ONE, LABEL)).splits["normalization"] is None
    data = TensorDataset(torch.full((16, 2), 7, dtype=torch.uint8), LABEL[:16])
    batch = Classification(data, split=Split(0.1)).stream(seed=0)(0)[0]
    assert batch.dtype == torch.uint8 and batch.unique().tolist() == [7]


def test_the_record_is_json() -> None:
    def brighten(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + 1

    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)
    task = Classification((ONE, np.array(list("abcd"))[LABEL]), augment=[brighten], loss=smoothed, batch_size=8)
    record = json.loads(json.dumps(task.splits))
    assert record == task.splits
    assert record["class_names"] == list("abcd") and record["classes"] == 4
    assert "brighten #" in record["augmentation"][0] and record["smoothing"] == 0.1
    assert (record["batch_size"], record["input_shape"], record["skipped"]) == (8, [1], [])


def test_augmentation_is_for_training_alone() -> None:
    task = Classification((ONE, LABEL), augment=[lambda x, g: x + 0.5], batch_size=10)
    assert bool((task.stream(seed=0)(0)[0] % 1 == 0.5).all())
    for part in ("train", "valid", "test"):
        assert all(x % 1 == 0 for x in members(task, part))


def test_accuracy_and_loss_against_a_count() -> None:
    task = Classification((ONE, LABEL), split=Split(0.2))
    network = Rule(wrong=100)
    for part in ("train", "valid", "test"):
        found = task.evaluate(network, part)
        share = sum(x >= 100 for x in members(task, part)) / len(members(task, part))
        normalizer = math.log(3 + math.exp(2))
        assert list(found) == ["accuracy", "loss"]
        assert math.isclose(found["accuracy"], share)
        assert math.isclose(found["loss"], normalizer - 2 * share, rel_tol=1e-6)
    assert task.test_reads == 1
    task.evaluate(network)
    assert task.test_reads == 1
    with pytest.raises(DataError, match="part='all': give one of 'train', 'valid', 'test'"):
        task.evaluate(network, "all")


def test_many_batches_and_top5() -> None:
    x = torch.arange(1300.0)[:, None]
    task = Classification((x, torch.arange(1300) % 13), split=Split(0.45))

    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # The right class is the second choice below 650 and the sixth above.
            away = torch.where(x[:, 0] < 650, 1, 5)[:, None]
            return -((torch.arange(13) - x.long() + away) % 13).float()

    found = task.evaluate(Shifted(), "valid")
    assert list(found) == ["accuracy", "loss", "top5"] and found["accuracy"] == 0
    assert math.isclose(found["top5"], sum(x < 650 for x in members(task, "valid")) / 585)


def test_evaluate_restores_every_mode_and_tracks_no_gradient() -> None:
    network = nn.Sequential(nn.Linear(1, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)))
    network[1][0].eval()
    before = [module.training for module in network.modules()]
    buffers = [each.clone() for each in network.buffers()]
    task = Classification((ONE, LABEL))
    assert task.evaluate(network) == task.evaluate(network)
    assert [module.training for module in network.modules()] == before
    assert all(torch.equal(a, b) for a, b in zip(buffers, network.buffers(), strict=True))

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not torch.is_grad_enabled() and not self.training
            raise NonFiniteError("x")

    failing = Failing()
    with pytest.raises(NonFiniteError):
        task.evaluate(failing)
    assert failing.training


def test_evaluation_of_a_random_dataset_repeats() -> None:
    class Jitter(Dataset):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.rand(1), index % 4

    task = Classification(Jitter(), batch_size=8)
    assert members(task, "valid") == members(task, "valid")


@pytest.mark.parametrize("wrap", ["tuple", "list", "object"])
def test_outputs_that_hold_logits(wrap: str) -> None:
    class Wrapped(Rule):
        def forward(self, x: Tensor) -> object:
            logits = super().forward(x)
            auxiliary = torch.zeros(1)
            if wrap == "object":
                return type("Output", (), {"logits": logits})()
            return (logits, auxiliary) if wrap == "tuple" else [logits, auxiliary]

    task = Classification((ONE, LABEL))
    assert task.evaluate(Wrapped())["accuracy"] == 1
    batch = task.stream(seed=0)(0)
    assert torch.equal(task.loss(Wrapped(), batch), task.loss(Rule(), batch))


def test_loss_with_smoothing() -> None:
    task = Classification((ONE, LABEL), loss=nn.CrossEntropyLoss(label_smoothing=0.2))
    batch = task.stream(seed=0)(0)
    network = Rule()
    loss = task.loss(network, batch)
    # Smoothing puts 0.2 evenly on four classes: the right one has 0.85, whose logit is 2.
    assert math.isclose(loss.item(), math.log(3 + math.exp(2)) - 0.85 * 2, rel_tol=1e-6)
    loss.backward()
    assert network.scale.grad is not None
    assert task.evaluate(network)["loss"] < loss.item(), "scores are not smoothed"


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Rule(classes=7), r"output is \[2, 7\], but the data has 4 classes"),
        (nn.Flatten(0), r"output is \[2\], but the data has 4 classes"),
        (nn.Linear(3, 4), r"fails on a batch of shape \[2, 1\] torch.float32: .*mat1 and mat2"),
        (nn.Conv2d(1, 4, 3), r"fails on a batch of shape \[2, 1\]"),
        (nn.BatchNorm2d(1), r"fails on a batch of shape \[2, 1\].*expected 4D"),
        (nn.Bilinear(1, 1, 4), r"fails on a batch of shape .*missing 1 required positional argument"),
        (nn.Linear(1, 4).double(), r"fails on a batch of shape \[2, 1\] torch.float32: .*dtype"),
        (nn.Identity(), r"output is \[2, 1\]"),
    ],
)
def test_check_names_what_does_not_fit(network: nn.Module, message: str) -> None:
    task = Classification((ONE, LABEL))
    state = torch.get_rng_state()
    task.check(Rule())
    with pytest.raises(ModelError, match=message):
        task.check(network)
    assert network.training and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("layer", [nn.Conv1d(5, 4, 3), nn.BatchNorm1d(5), nn.GRU(9, 4), nn.MaxPool1d(2)])
def test_series_that_were_read_as_grey_images_are_told(layer: nn.Module) -> None:
    series, labels = np.zeros((6, 5, 9), np.float32), np.arange(6) % 2
    with pytest.raises(
        ModelError, match=r"\[2, 1, 5, 9\].*Arrays \[N, H, W\] are read as grey images: give series in"
    ):
        Classification((series, labels)).check(layer)
    dataset = TensorDataset(torch.from_numpy(series), torch.from_numpy(labels))
    Classification(dataset).check(nn.Sequential(nn.Conv1d(5, 4, 3), nn.Flatten(), nn.Linear(28, 2)))


class Last(nn.Module):
    def __init__(self, last: Any) -> None:
        super().__init__()
        self.linear, self.last = nn.Linear(4, 3), last

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.linear(x))


def test_probabilities_where_logits_are_meant_are_noted() -> None:
    task = Classification((torch.randn(30, 4), torch.arange(30) % 3))
    for last in (nn.Softmax(1), lambda x: x.exp() / x.exp().sum(1, keepdim=True), lambda x: {"logits": x.softmax(1)}):
        with pytest.warns(UserWarning, match="outputs of this network are probabilities"):
            task.check(Last(last))
    for last in (nn.LogSoftmax(1), nn.Sigmoid(), nn.Identity(), nn.ReLU(), lambda x: x.softmax(0)):
        task.check(Last(last))


def test_evaluate_and_loss_name_the_wrong_width() -> None:
    task = Classification((ONE, LABEL))
    with pytest.raises(ModelError, match=r"output is \[40, 7\], but the data has 4 classes"):
        task.evaluate(Rule(classes=7))
    with pytest.raises(ModelError, match="the data has 4 classes"):
        task.loss(Rule(classes=7), task.stream(seed=0)(0))
    with pytest.raises(ModelError, match=r"fails on a batch of shape \[40, 1\]"):
        task.evaluate(nn.Linear(2, 4))

    class Words(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "cat"

    with pytest.raises(ModelError, match="the network returns a str"):
        task.check(Words())


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 4)

    def forward(self, image: Tensor, sound: Tensor) -> Tensor:
        return self.last(torch.cat([image.flatten(1), sound], 1))


class TwoInputs(Dataset):
    targets = (np.arange(40) % 4).tolist()

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], int]:
        return (torch.full((1, 1, 1), float(index)), torch.ones(2)), index % 4


def test_several_inputs() -> None:
    task = Classification(TwoInputs(), batch_size=8)
    assert isinstance(task.example, tuple) and [t.shape[0] for t in task.example] == [1, 1]
    assert task.splits["input_shape"] == [[1, 1, 1], [2]]
    inputs, target = task.stream(seed=0)(0)
    assert isinstance(inputs, tuple) and torch.equal(inputs[0].flatten().long() % 4, target)
    network = Pair()
    task.check(network)
    task.loss(network, (inputs, target)).backward()
    assert 0 <= task.evaluate(network)["accuracy"] <= 1


def test_labels_are_found_without_reading_the_samples() -> None:
    class Guarded(TwoInputs):
        reads = 0

        def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], int]:
            Guarded.reads += 1
            return super().__getitem__(index)

    whole = ConcatDataset([Subset(Guarded(), range(0, 40, 2)), Subset(Guarded(), range(1, 40, 2))])
    task = Classification(whole)
    assert Guarded.reads == 1, "the example alone"
    assert task.classes == 4 and task.splits["valid"]["size"] == 8

    class Transformed(Guarded):
        target_transform = staticmethod(lambda y: y)

    Guarded.reads = 0
    assert Classification(Transformed()).classes == 4
    assert Guarded.reads == 41, "raw targets are not trusted beside a target_transform"


def test_load_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    np.savez(path, x_train=pixels, y_train=np.arange(40) % 4, x_test=pixels[:8] // 2, y_test=np.arange(8) % 4)
    task = Classification.load(path, batch_size=8, split=Split(0.25))
    assert [task.splits[part]["size"] for part in ("train", "valid", "test")] == [28, 12, 8]
    assert task.example.shape == (1, 3, 6, 6)
    with pytest.raises(DataError, match="no such file"):
        Classification.load(tmp_path / "gone.npz")


def test_a_network_learns_the_digits() -> None:
    task = Classification.load("digits", batch_size=64)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    batches = task.stream(seed=0)
    for step in range(5 * task.steps_per_epoch):
        optimizer.zero_grad()
        task.loss(network, batches(step)).backward()
        optimizer.step()
    assert task.evaluate(network)["accuracy"] > 0.9
    assert 0.9 < task.evaluate(network, "test")["accuracy"] <= 1
