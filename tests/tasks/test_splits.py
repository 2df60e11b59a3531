"""A training part divided in two: disjoint, together the whole, stratified, repeatable, nothing else touched."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from archgrad.errors import DataError
from archgrad.tasks.augmentation import crop
from archgrad.tasks.classification import Classification
from archgrad.tasks.splits import Split

COUNT = 120
X = torch.arange(COUNT, dtype=torch.float32)[:, None]
Y = torch.arange(COUNT) % 4
SET = TensorDataset(X, Y)
HELD = (TensorDataset(X + 1000, Y), TensorDataset(X + 2000, Y))


class Pairs(Dataset):
    """Two inputs a sample, as a tuple."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], int]:
        return (X[index], -X[index]), index % 4


class Own(Sampler):
    """Nobody knows what it may draw."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(COUNT))

    def __len__(self) -> int:
        return COUNT


def loaded(**options: object) -> Classification:
    return Classification(DataLoader(SET, **options), *HELD)  # type: ignore[arg-type]


TASKS: dict[str, Callable[[], Classification]] = {
    "arrays": lambda: Classification((X, Y), batch_size=16),
    "dataset": lambda: Classification(SET, batch_size=16),
    "tuples": lambda: Classification(Pairs(), batch_size=16),
    "workers": lambda: loaded(batch_size=16, shuffle=True, num_workers=1),
    "shuffled": lambda: loaded(batch_size=16, shuffle=True),
    "in order": lambda: loaded(batch_size=16, sampler=SequentialSampler(SET)),
    "subset": lambda: loaded(batch_size=8, sampler=SubsetRandomSampler(range(0, COUNT, 2))),
    "weighted": lambda: loaded(batch_size=8, sampler=WeightedRandomSampler([1.0] * COUNT, COUNT)),
    "split off": lambda: Classification(DataLoader(SET, batch_size=16, shuffle=True), split=Split(0.1)),
}


def indices(task: Classification, part: str = "train") -> list[int]:
    return task._parts[part].indices.tolist()


def drawn(task: Classification, seed: int = 0, epochs: int = 1) -> list[list[int]]:
    stream = task.stream(seed=seed)
    batches = (stream(step)[0] for step in range(epochs * task.steps_per_epoch))
    return [[int(x) for x in (b[0] if isinstance(b, tuple) else b)[:, 0]] for b in batches]


def flat(batches: Iterable[list[int]]) -> set[int]:
    return {x for batch in batches for x in batch}


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("kind", TASKS)
def test_shares_are_disjoint_and_together_the_whole(kind: str, share: float) -> None:
    task = TASKS[kind]()
    one, other = task.split(share)
    assert not set(indices(one)) & set(indices(other))
    assert sorted(indices(one) + indices(other)) == indices(task)
    assert abs(len(indices(one)) - share * len(indices(task))) <= 0.5
    counts = Counter(Y[indices(task)].tolist())
    for half, part in ((one, share), (other, 1 - share)):
        own = Counter(Y[indices(half)].tolist())
        assert all(abs(own[label] - part * counts[label]) <= 1 for label in counts)
        batches = drawn(half, epochs=2)
        assert flat(batches) <= set(indices(half))
        assert all(len(batch) <= len(indices(half)) for batch in batches)
        if kind not in ("weighted", "in order"):
            per_epoch = half.steps_per_epoch * len(batches[0])
            assert len(flat(batches[: half.steps_per_epoch])) == per_epoch > len(indices(half)) - len(batches[0])


@pytest.mark.parametrize("kind", TASKS)
def test_shares_and_batches_are_reproducible(kind: str) -> None:
    (one, other), again = TASKS[kind]().split(), TASKS[kind]().split()
    assert [indices(one), indices(other)] == [indices(half) for half in again]
    assert [drawn(one), drawn(other)] == [drawn(half) for half in again]
    late = other.stream(seed=1)(other.steps_per_epoch)  # a jump, as after a resume
    torch.testing.assert_close(late, other.stream(seed=1)(other.steps_per_epoch))


def test_what_is_held_out_stays_and_the_task_is_not_changed() -> None:
    task = TASKS["arrays"]()
    record, before, steps = json.dumps(task.splits), drawn(task), task.steps_per_epoch
    halves = task.split()
    for half in halves:
        assert [indices(half, part) for part in ("valid", "test")] == [
            indices(task, part) for part in ("valid", "test")
        ]
        assert half.splits["valid"] == task.splits["valid"] and half.splits["test"] == task.splits["test"]
        assert half.classes == task.classes and half.splits["input_shape"] == task.splits["input_shape"]
    assert (json.dumps(task.splits), drawn(task), task.steps_per_epoch) == (record, before, steps)


def test_the_record_says_what_each_share_is() -> None:
    task = TASKS["arrays"]()
    one, other = task.split(0.75)
    assert [one.splits["train"]["size"], other.splits["train"]["size"]] == [54, 18]
    assert len({each.splits["train"]["indices_sha256"] for each in (task, one, other)}) == 3
    assert one.splits["half"] == {"fraction": 0.75, "seed": 0, "of": task.splits["train"], "half": "first"}
    assert other.splits["half"]["half"] == "second"
    assert json.loads(json.dumps(other.splits)) == other.splits


def test_the_seed_decides_who_goes_where() -> None:
    task = TASKS["arrays"]()
    default = indices(task.split()[0])
    assert indices(task.split(seed=0)[0]) == default != indices(task.split(seed=1)[0])
    other_split = Classification((X, Y), (X + 500, Y), (X + 900, Y), split=Split(seed=1))
    same_split = Classification((X, Y), (X + 500, Y), (X + 900, Y), split=Split(seed=0))
    assert indices(other_split.split()[0]) != indices(same_split.split()[0])
    assert indices(other_split.split()[0]) == indices(same_split.split(seed=1)[0])


def test_the_two_shares_draw_independently_of_each_other() -> None:
    task = Classification((X, Y), (X + 500, Y), (X + 900, Y), batch_size=60)
    one, other = task.split()
    places = [[indices(half).index(x) for x in drawn(half)[0]] for half in (one, other)]
    assert places[0] != places[1]
    whole = Classification((X[indices(one)], Y[indices(one)]), (X + 500, Y), (X + 900, Y), batch_size=60)
    assert [indices(one).index(x) for x in drawn(one)[0]] != drawn(whole)[0]


def test_augmentation_and_normalization_are_those_of_the_task() -> None:
    pixels = torch.randint(0, 256, (COUNT, 1, 6, 6), dtype=torch.uint8)
    task = Classification((pixels, Y), batch_size=8, augment=[crop(2)])
    for half in task.split():
        assert half.splits["normalization"] == task.splits["normalization"]
        inputs, _ = half.stream(seed=0)(0)
        held = task._parts["train"].source.one((indices(half), 0))[0]
        assert not any(bool((x == inputs).flatten(1).all(1).all()) for x in held)  # cropped
        assert float(inputs.abs().max()) < 10


def test_a_small_share_comes_as_one_batch() -> None:
    task = Classification((X, Y), batch_size=64)
    one, other = task.split(0.9)
    assert (one.splits["batch_size"], one.steps_per_epoch) == (64, 1)
    assert (other.splits["batch_size"], other.steps_per_epoch) == (7, 1)
    assert [len(batch) for batch in drawn(other)] == [7]
    # Divisible among processes as the task itself is.
    assert len(Classification((X, Y), batch_size=64).split(0.9)[1].stream(seed=0, rank=1, world=4)(0)[1]) == 1


def test_with_replacement_no_batch_is_larger_than_its_share() -> None:
    task = loaded(batch_size=50, sampler=WeightedRandomSampler([1.0] * COUNT, 10 * COUNT))
    _, other = task.split(0.9)
    assert len(indices(other)) == 12
    assert {len(batch) for batch in drawn(other)} == {12}


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_rare_classes(share: float) -> None:
    labels = torch.tensor([0] * 40 + [1] * 2 + [2] + [3] * 3)
    x = torch.arange(len(labels), dtype=torch.float32)[:, None]
    task = Classification((x, labels), (x + 100, labels), (x + 200, labels), batch_size=8)
    one, other = (Counter(labels[indices(half)].tolist()) for half in task.split(share))
    assert one[2] == 1 and other[2] == 0
    assert one[1] == other[1] == 1 and one[3] >= 1 and other[3] >= 1


def test_many_small_classes_still_give_the_share_asked_for() -> None:
    labels = torch.arange(50).repeat_interleave(5)
    x = torch.arange(len(labels), dtype=torch.float32)[:, None]
    task = Classification((x, labels), (x + 1000, labels), (x + 2000, labels))
    assert [len(indices(half)) for half in task.split()] == [125, 125]


def test_halves_can_be_divided_again() -> None:
    task = TASKS["arrays"]()
    one, other = task.split()
    inner, outer = one.split()
    assert sorted(indices(inner) + indices(outer)) == indices(one)
    assert outer.splits["half"]["of"] == one.splits["train"]
    assert len({tuple(map(tuple, drawn(each))) for each in (one, other, inner, outer)}) == 4


def test_reading_the_test_part_through_a_half_counts() -> None:
    task = TASKS["arrays"]()
    one, _ = task.split()
    one.evaluate(nn.Linear(1, 4), "test")
    task.evaluate(nn.Linear(1, 4), "valid")
    assert one.test_reads == task.test_reads == 1


@pytest.mark.parametrize("share", [0, 1, 0.0, 1.0, -0.5, 1.5, float("nan"), True, "half", None])
def test_a_share_that_makes_no_sense_is_refused(share: object) -> None:
    with pytest.raises(DataError, match="above 0 and below 1"):
        TASKS["arrays"]().split(share)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0.5, True, "a"])
def test_a_seed_that_makes_no_sense_is_refused(seed: object) -> None:
    with pytest.raises(DataError, match="give a whole number"):
        TASKS["arrays"]().split(seed=seed)  # type: ignore[arg-type]


def test_a_sampler_of_ones_own_is_refused() -> None:
    for options in (
        {"sampler": Own(), "batch_size": 8},
        {"batch_sampler": BatchSampler(RandomSampler(SET), 8, True)},
    ):
        with pytest.raises(DataError, match=r"sampler of your own cannot be divided.*shuffle=True"):
            loaded(**options).split()


def test_one_sample_of_each_class_cannot_be_divided() -> None:
    x = torch.arange(4, dtype=torch.float32)[:, None]
    task = Classification((x, torch.arange(4)), (x + 10, torch.arange(4)), (x + 20, torch.arange(4)))
    with pytest.raises(DataError, match="at least two samples of some class"):
        task.split()
