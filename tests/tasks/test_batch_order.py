"""Training batches as a pure function of the step, whatever they come from."""

from __future__ import annotations

import gc
import random
import weakref
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from archgrad.errors import DataError
from archgrad.tasks.augmentation import crop
from archgrad.tasks.classification import Classification
from archgrad.tasks.splits import Split
from archgrad.tasks.task import stable_seed

COUNT = 60
X = torch.arange(COUNT, dtype=torch.float32)[:, None]
Y = torch.arange(COUNT) % 3
PARTS = {"valid": (X + 1000, Y), "test": (X + 2000, Y)}
HELD = TensorDataset(X + 1000, Y)


class Noisy(Dataset):
    """A dataset that draws from all three global generators."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        draws = [float(index), random.random(), float(np.random.rand()), float(torch.rand(()))]
        return torch.tensor(draws), index % 3


def loaded(loader: DataLoader) -> Classification:
    return Classification(loader, HELD, TensorDataset(X + 2000, Y))


def noisy(workers: int) -> Classification:
    loader = DataLoader(Noisy(), batch_size=16, shuffle=True, num_workers=workers)
    return Classification(loader, HELD, TensorDataset(X, Y))


def pictures() -> Classification:
    pixels = torch.randint(0, 256, (COUNT, 1, 6, 6), dtype=torch.uint8)
    return Classification((pixels, Y), batch_size=9, augment=[crop(2)])


TASKS = {
    "memory": lambda: Classification((X, Y), **PARTS, batch_size=16),
    "augmented": pictures,
    "random dataset": lambda: noisy(0),
    "shuffled loader": lambda: loaded(DataLoader(Noisy(), batch_size=16, shuffle=True)),
    "generator": lambda: loaded(DataLoader(Noisy(), 16, shuffle=True, generator=torch.Generator())),
    "weighted": lambda: loaded(DataLoader(Noisy(), 16, sampler=WeightedRandomSampler([1.0] * COUNT, 50))),
    "batch sampler": lambda: loaded(
        DataLoader(Noisy(), batch_sampler=BatchSampler(RandomSampler(Noisy()), 7, drop_last=True))
    ),
}


@pytest.mark.parametrize("kind", TASKS)
def test_batches_depend_on_seed_and_step_alone(kind: str) -> None:
    torch.manual_seed(0)
    task = TASKS[kind]()
    stream = task.stream(seed=3)
    steps = 2 * task.steps_per_epoch + 2
    assert task.steps_per_epoch > 2
    ordered = [stream(step) for step in range(steps)]
    for step in (steps - 1, 0, 2, 3, task.steps_per_epoch, 2, 2):
        # Whatever else draws numbers in between is not to matter.
        random.random(), np.random.rand(), torch.rand(3)
        for again in (stream(step), task.stream(seed=3)(step)):
            assert torch.equal(again[0], ordered[step][0]) and torch.equal(again[1], ordered[step][1])
    assert not torch.equal(ordered[0][0], ordered[task.steps_per_epoch][0]), "epochs differ"
    assert not torch.equal(ordered[0][0], task.stream(seed=4)(0)[0]), "seeds differ"


@pytest.mark.parametrize("kind", TASKS)
def test_global_random_states_are_left_alone(kind: str) -> None:
    task = TASKS[kind]()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    task.stream(seed=0)(0)
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_the_random_dataset_is_really_random() -> None:
    first, second = (noisy(0).stream(seed=seed)(0)[0] for seed in (0, 1))
    assert len(first[:, 1:].unique()) == 48, "three draws of each of 16 samples"
    assert not set(first[:, 1].tolist()) & set(second[:, 1].tolist())


def test_a_stream_ends_with_its_last_reference() -> None:
    """And its workers with it: in a cycle they would wait for the collector, which then takes seconds."""
    stream = noisy(workers=1).stream(seed=0)
    stream(0)
    alive = weakref.ref(stream)
    gc.disable()
    try:
        del stream
        assert alive() is None
    finally:
        gc.enable()


def test_workers_draw_what_one_process_draws() -> None:
    alone, helped = noisy(0).stream(seed=5), noisy(2).stream(seed=5)
    state = torch.get_rng_state()
    for step in (0, 1, 2, 3, 4, 1, 2):
        assert torch.equal(alone(step)[0], helped(step)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_an_epoch_is_the_training_part_once() -> None:
    task = Classification((X, Y), batch_size=6, split=Split(0.2))
    assert task.steps_per_epoch == 6
    stream = task.stream(seed=0)
    epochs = [torch.cat([stream(6 * epoch + step)[0][:, 0] for step in range(6)]).tolist() for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and len(set(epochs[0])) == 36
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("batch_size", "steps", "size"), [(7, 8, 7), (60, 1, 60), (59, 1, 59), (128, 1, 60)])
def test_the_last_incomplete_batch(batch_size: int, steps: int, size: int) -> None:
    task = Classification((X, Y), **PARTS, batch_size=batch_size)
    assert task.steps_per_epoch == steps
    assert {len(task.stream(seed=0)(step)[1]) for step in range(2 * steps)} == {size}


def test_processes_share_each_batch() -> None:
    task = Classification((X, Y), **PARTS, batch_size=12)
    for step in (0, 7):
        whole = task.stream(seed=1)(step)[0][:, 0].tolist()
        shares = [task.stream(seed=1, rank=rank, world=3)(step)[0][:, 0].tolist() for rank in range(3)]
        assert [len(share) for share in shares] == [4, 4, 4]
        assert sorted(x for share in shares for x in share) == sorted(whole)
    with pytest.raises(DataError, match="batch_size=12 cannot be shared equally by 5 processes"):
        task.stream(seed=0, world=5)
    with pytest.raises(DataError, match=r"rank=2, world=2: ranks are 0..1"):
        task.stream(seed=0, rank=2, world=2)
    with pytest.raises(DataError, match="step -1"):
        task.stream(seed=0)(-1)
    small = Classification((X[:9], Y[:9]), **PARTS, batch_size=20)
    with pytest.raises(DataError, match=r"fewer samples than there are processes \(10\)"):
        small.stream(seed=0, world=10)


def collate(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x * 2 for x, _ in items]), torch.tensor([y for _, y in items])


def test_a_loader_is_honoured() -> None:
    task = loaded(DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=False, collate_fn=collate))
    assert task.steps_per_epoch == 6 and task.splits["batch_size"] == 10
    assert task.stream(seed=0)(1)[0][:, 0].tolist() == [2.0 * i for i in range(10, 20)]
    weights = [1.0 if index < 20 else 0.0 for index in range(COUNT)]
    task = loaded(DataLoader(TensorDataset(X, Y), 10, sampler=WeightedRandomSampler(weights, 40)))
    assert task.steps_per_epoch == 4
    assert all(bool((task.stream(seed=0)(step)[0] < 20).all()) for step in range(8))


def test_a_sampler_never_draws_what_was_held_out() -> None:
    loader = DataLoader(TensorDataset(X, Y), 6, sampler=WeightedRandomSampler([1.0] * COUNT, COUNT))
    task = Classification(loader)
    assert task.steps_per_epoch == 6, "60 draws, of which 36/60 belong to the training part"
    stream = task.stream(seed=0)
    drawn = {float(x) for step in range(60) for x in stream(step)[0]}
    sizes = Counter(len(stream(step)[1]) for step in range(12))
    held_out = {float(x) for part in ("valid", "test") for batch, _ in task._batches(part) for x in batch.flatten()}
    assert sizes == {6: 12} and len(held_out) == 24 and len(drawn) > 30
    assert not drawn & held_out


def test_subset_samplers_bound_their_parts() -> None:
    data = TensorDataset(X, Y)
    train, valid = (DataLoader(data, 6, sampler=SubsetRandomSampler(range(*r))) for r in ((0, 36), (36, 60)))
    task = Classification(train, valid, TensorDataset(X, Y))
    assert (task.splits["train"]["size"], task.splits["valid"]["size"]) == (36, 24)
    stream = task.stream(seed=0)
    assert {float(x) for step in range(6) for x in stream(step)[0]} == set(range(36))
    alone = Classification(train)
    assert sum(alone.splits[part]["size"] for part in ("train", "valid", "test")) == 36
    overlapping = DataLoader(data, 6, sampler=SubsetRandomSampler(range(30, 60)))
    with pytest.raises(DataError, match="train and valid have 6 samples in common"):
        Classification(train, overlapping)


class Odd(Sampler[int]):
    def __init__(self, drawn: int, length: int) -> None:
        self.drawn, self.length = drawn, length

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(COUNT)[: self.drawn].tolist())

    def __len__(self) -> int:
        return self.length


def test_a_sampler_of_ones_own() -> None:
    data = TensorDataset(X, Y)
    task = loaded(DataLoader(data, 10, sampler=Odd(60, 60)))
    assert task.steps_per_epoch == 6 and torch.equal(task.stream(seed=0)(3)[0], task.stream(seed=0)(3)[0])
    with pytest.raises(DataError, match=r"valid and test cannot be split off .* give valid= and test="):
        Classification(DataLoader(data, 10, sampler=Odd(60, 60)))
    with pytest.raises(DataError, match="draws nothing"):
        loaded(DataLoader(data, 10, sampler=Odd(0, 0)))
    batches = BatchSampler(Odd(20, 60), 10, drop_last=False)
    with pytest.raises(DataError, match="drew 2 batches in epoch 0; its length promises 6"):
        loaded(DataLoader(data, batch_sampler=batches)).stream(seed=0)(0)


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        yield X[0], 0


def test_loaders_that_cannot_be_used() -> None:
    data = TensorDataset(X, Y)
    for given in (Endless(), DataLoader(Endless())):
        with pytest.raises(DataError, match=r"train: an IterableDataset without a length cannot be split.*map-style"):
            Classification(given)
    with pytest.raises(DataError, match="batch_size=None"):
        Classification(DataLoader(data, batch_size=None))
    with pytest.raises(DataError, match="DistributedSampler would share the data twice"):
        Classification(DataLoader(data, 4, sampler=DistributedSampler(data, num_replicas=2, rank=0)))


def test_stable_seed_is_the_same_everywhere() -> None:
    assert stable_seed("order", 0, 1) == stable_seed("order", 0, 1)
    assert len({stable_seed(a, b) for a in range(30) for b in range(30)}) == 900
    assert 0 <= stable_seed("x") < 2**63
    # A change of this number would change every recorded run.
    assert stable_seed("order", 0, 0) == GOLDEN


GOLDEN = 4876581156571347824
