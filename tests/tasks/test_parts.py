"""What is refused, and in which words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from archgrad.errors import ArchgradError, DataError
from archgrad.run.run import Run
from archgrad.tasks.classification import Classification
from archgrad.tasks.datasets import digits
from archgrad.tasks.splits import Split
from archgrad.tasks.supervised import Supervised

ONE = torch.arange(200, dtype=torch.float32)[:, None]
LABEL = torch.arange(200) % 4


class Items(Dataset):
    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


GOOD = [(torch.zeros(2), index % 2) for index in range(20)]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("photos", "train is a str; .*Classification.load reads a path"),
        (ONE, "train is a Tensor; give a torch Dataset, DataLoader or list of samples"),
        (None, "train is a NoneType"),
        (Items([]), "the dataset has no samples"),
        (Items([{"x": 1, "y": 2}] * 8), "a sample of the dataset is a dict of 2; it must be a pair"),
        (Items([(torch.zeros(1), torch.zeros(1), 0)] * 8), "a sample of the dataset is a tuple of 3"),
        (Items([(torch.zeros(1), 1)] * 8), r"train: only one class \(1\) among 8 samples"),
        (Items([(torch.zeros(1), -1), (torch.zeros(1), 1)]), "train: label -1 is outside 0..1"),
        (Items([(torch.zeros(1), "cat"), (torch.zeros(1), "dog")]), "labels are not whole numbers"),
        (Items([(torch.zeros(1), 0.5)] * 8), "the dataset's labels are torch.float32"),
        (Items([(object(), 0), (object(), 1)] * 4), "samples do not form a batch"),
        (Items([("a", 0), ("b", 1)] * 4), "the inputs of a batch are str; they must be a tensor"),
        ((ONE[:2], LABEL[:2]), "2 samples are too few to split off valid and test"),
    ],
)
def test_bad_training_data(train: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Classification(train)


def test_bad_batches() -> None:
    uneven = Items([(torch.zeros(1 + index % 3), index % 2) for index in range(30)])
    with pytest.raises(DataError, match="samples do not form a batch"):
        Classification(uneven).stream(seed=0)(0)
    for collate, message in (
        (lambda items: torch.zeros(3), "collate_fn gave a Tensor; a batch is a pair"),
        (lambda items: (torch.zeros(2, 2), torch.zeros(2)), r"labels of a batch are torch.float32 \[2\]"),
        (lambda items: (torch.zeros(2, 2), [0, 1]), "labels of a batch are list"),
    ):
        with pytest.raises(DataError, match=message):
            Classification(DataLoader(Items(GOOD), collate_fn=collate))
    with pytest.raises(
        DataError, match=r"with the collate_fn the samples \[\d+\] .* leave samples out in the dataset"
    ):
        Classification(DataLoader(Items(GOOD), collate_fn=lambda items: default_collate(items[1:])))
    held = Items([(torch.zeros(2), 5)])
    task = Classification(Items(GOOD), held, Items(GOOD[:]))
    with pytest.raises(DataError, match=r"label 5 in a batch; labels are 0..1"):
        task.evaluate(nn.Linear(2, 2))
    poisoned = Classification(Items([(torch.full((2,), math.nan), index % 2) for index in range(20)]))
    with pytest.raises(DataError, match="NaN or infinite numbers in the first training samples"):
        poisoned.check(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: give a whole number"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"classes": 1}, "classes=1: classification needs at least two"),
        ({"classes": 3}, "label 3 with classes=3"),
        ({"split": Split(0.5)}, "valid_fraction=0.5 for each of valid and test leaves nothing"),
        ({"valid": (ONE, LABEL)}, "train and valid have 200 samples in common"),
        ({"valid": (ONE + 1, LABEL + 1)}, "valid: labels 4 are outside the 4 classes 0, 1, 2, 3"),
        ({"valid": (ONE.repeat(1, 2), LABEL)}, r"train is torch.float32 \[1\], valid is torch.float32 \[2\]"),
        ({"test": (ONE.byte(), LABEL)}, "train is torch.float32 .* test is torch.uint8"),
        ({"valid": TensorDataset(ONE, LABEL)}, "train and valid are of two kinds"),
        ({"valid": digits()}, "valid has the classes 0, 1.*the training part 0, 1, 2, 3"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Classification((ONE, LABEL), **options)
    assert isinstance(caught.value, ArchgradError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valid_fraction": 0.0}, "valid_fraction=0.0: give a share"),
        ({"valid_fraction": 1}, "valid_fraction=1: give a share"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"groups": [1], "stratify": [1]}, "cannot be stratified too"),
    ],
)
def test_bad_splits(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Split(**options)


def test_classes_given_for_a_dataset() -> None:
    assert Classification(Items(GOOD), classes=6).classes == 6
    assert Classification(Items(GOOD), Items(GOOD[:]), Items(GOOD[:]), classes=6).classes == 6
    with pytest.raises(DataError, match=r"train: label 1 is outside|classes=1"):
        Classification(Items(GOOD), classes=1)
    with pytest.raises(DataError, match=r"train: label 7 is outside 0..2"):
        Classification(Items([*GOOD, (torch.zeros(2), 7)]), classes=3)
    with pytest.raises(DataError, match="classes=3, but the data has 10 classes"):
        Classification(digits(), classes=3)


@pytest.mark.parametrize("far", [99, 255, 999])
def test_a_label_far_above_the_others_is_told(far: int) -> None:
    generator = torch.Generator().manual_seed(far)
    first, count = (
        int(torch.randint(0, 2, (), generator=generator)),
        int(torch.randint(3, 9, (), generator=generator)),
    )
    x = torch.randn(120, 3, generator=generator)
    y = torch.arange(120) % count + first
    y[::10] = far
    with pytest.raises(
        DataError, match=rf"label {far} makes {far + 1} classes.*ignore_index={far}\).*classes={far + 1}"
    ):
        Classification(TensorDataset(x, y))
    assert any(f"The label {far} is a class of its own" in note for note in Classification((x, y)).notes)
    # Named, it is no class; and other labels may be anything.
    known, shifted = (nn.CrossEntropyLoss(ignore_index=label) for label in (far, far - first))
    assert not any("class of its own" in note for note in Classification((x, y), loss=known).notes)
    assert Classification(TensorDataset(x, y - first), loss=shifted).classes == count
    assert not Classification((x, torch.arange(120) % 5 * 10)).notes


def test_labels_that_do_not_occur_are_told() -> None:
    x = torch.randn(60, 2)
    y = torch.arange(60) % 2 * 3
    for data in (TensorDataset(x, y), (x, y)):
        assert Classification(data, classes=5).notes == ["No training sample has 3 of the 5 labels: 1, 2, 4."]


@pytest.mark.parametrize("kind", ["features", "images", "several inputs", "targets"])
def test_samples_that_two_parts_share_are_told(kind: str) -> None:
    train, test = torch.randn(50, 6), torch.randn(20, 6)
    rows = sorted(torch.randperm(20)[:4].tolist())
    test[rows] = train[[7, 8, 9, 7]]

    def part(x: torch.Tensor) -> tuple:
        if kind == "images":
            return (x.mul(1e4).long() % 256).to(torch.uint8).view(-1, 1, 2, 3).numpy(), torch.arange(len(x)) % 2
        if kind == "several inputs":
            return {"a": x[:, :2], "b": x[:, 2:]}, torch.arange(len(x)) % 2
        return x, torch.randn(len(x)) if kind == "targets" else torch.arange(len(x)) % 2

    def made(x: torch.Tensor, y: torch.Tensor) -> Supervised:
        if kind == "targets":
            return Supervised(part(x), part(torch.randn(9, 6)), part(y), loss=nn.functional.mse_loss)
        return Classification(part(x), part(torch.randn(9, 6)), part(y))

    (note,) = made(train, test).notes
    assert (
        note.startswith("4 of 20 test samples are in train too")
        and f"test samples {', '.join(map(str, rows))}." in note
    )
    assert made(train, torch.randn(20, 6)).notes == []
    run = Run(steps=1)
    run.begin("fit", {}, task=made(train, test))
    assert run.notes == [note]
    run.close()


def test_copies_within_one_array_that_was_split_are_told_and_data_that_repeats_is_not() -> None:
    x = torch.randn(40, 3)
    twice = Classification((torch.cat([x, x[:6]]), torch.arange(46) % 2), split=Split(valid_fraction=0.4)).notes
    assert twice and all("too good" in note for note in twice)
    assert Classification((torch.ones(40, 3), torch.arange(40) % 2)).notes == []
