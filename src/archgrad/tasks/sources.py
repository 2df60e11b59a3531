"""Where batches come from: tensors in memory or a user's Dataset, and in which order.

A batch is asked for by a key: the indices of its samples, and the seed of whatever the dataset draws.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
)

from archgrad.errors import DataError
from archgrad.tasks.datasets import Samples
from archgrad.tasks.task import Batch, Inputs

Key = tuple[list[int], int]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch (CPU) inside; restore their states after."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed would seed the accelerators too, whose states are not restored here.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])


class Source(Protocol):
    """Samples that can be fetched by index."""

    def __len__(self) -> int: ...

    def labels(self) -> Tensor:
        """All labels, int64 [N]."""
        ...

    def batches(self, keys: Iterable[Key]) -> Iterator[Batch]:
        """The batches of these keys, fetched as they are asked for."""
        ...

    def one(self, key: Key) -> Batch:
        """The batch of one key, fetched in this process."""
        ...


class MemorySource:
    """Samples in memory; uint8 inputs become `(x / 255 - mean) / std` for each channel (dimension 1)."""

    def __init__(self, held: Samples) -> None:
        self.held = held
        self.mean: Tensor | None = None
        self.std: Tensor | None = None

    def __len__(self) -> int:
        return len(self.held)

    def labels(self) -> Tensor:
        """All labels, int64 [N]."""
        return self.held.y

    def batches(self, keys: Iterable[Key]) -> Iterator[Batch]:
        """The batches of these keys."""
        return map(self.one, keys)

    def one(self, key: Key) -> Batch:
        """The batch of one key."""
        rows = torch.tensor(key[0])
        x = self.held.x[rows]
        if self.mean is not None and self.std is not None:
            shape = (1, -1, *[1] * (x.ndim - 2))
            x = (x.float() / 255 - self.mean.view(shape)) / self.std.view(shape)
        return x, self.held.y[rows]

    def normalize(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the constants, one for each channel."""
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)


def channel_statistics(x: Tensor, indices: Tensor) -> tuple[list[float], list[float]]:
    """Exact mean and standard deviation of uint8 `x[indices] / 255` [N, C, ...] for each channel.

    Features [N, F] count as one channel. A constant channel gets the deviation 1.
    """
    channels = x.shape[1] if x.ndim > 2 else 1
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for rows in torch.split(indices, 4096):
        chunk = x[rows].reshape(len(rows), channels, -1)
        for channel in range(channels):
            counts[channel] += torch.bincount(chunk[:, channel].reshape(-1), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts.double() / counts.sum(1, keepdim=True)
    mean = share @ levels
    std = (share * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    return mean.tolist(), torch.where(std > 0, std, torch.ones_like(std)).tolist()


class DatasetSource:
    """A user's map-style Dataset of (x, y), passed as it is."""

    def __init__(self, dataset: Any, *, loader: DataLoader[Any] | None, workers: int) -> None:
        self.dataset = dataset
        self.classes: int | None = None
        self._labels: Tensor | None = None
        self._fetched = _Fetched(dataset, loader.collate_fn if loader is not None else default_collate)
        self._workers = workers if loader is None else loader.num_workers
        self._loader = loader

    def __len__(self) -> int:
        return len(self.dataset)

    def labels(self) -> Tensor:
        """All labels, int64 [N]: from the dataset's tensors or `targets`, else item by item."""
        if self._labels is None:
            with seeded(0):
                self._labels = labels_of(self.dataset)
        return self._labels

    def extended(self, other: DatasetSource) -> DatasetSource:
        """These samples and behind them another's, fetched as these are."""
        both = DatasetSource(ConcatDataset([self.dataset, other.dataset]), loader=self._loader, workers=self._workers)
        both.classes = self.classes
        return both

    def batches(self, keys: Iterable[Key]) -> Iterator[Batch]:
        """The batches of these keys, fetched by worker processes where there are any."""
        for inputs, target in self._raw(keys):
            if self.classes is not None and len(target):
                low, high = int(target.min()), int(target.max())
                if low < 0 or high >= self.classes:
                    raise DataError(
                        f"label {low if low < 0 else high} in a batch; labels are 0..{self.classes - 1}. "
                        f"Correct the dataset, or give classes="
                    )
            yield inputs, target

    def one(self, key: Key) -> Batch:
        """The batch of one key, fetched in this process."""
        return self._fetched[key]

    def _raw(self, keys: Iterable[Key]) -> Iterator[Batch]:
        if self._workers == 0:
            return map(self._fetched.__getitem__, keys)
        given = self._loader
        loader = DataLoader(
            self._fetched,
            batch_size=None,
            # Only iterated over; a generator of keys lets the workers live on from epoch to epoch.
            sampler=keys,
            num_workers=self._workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),
            worker_init_fn=given.worker_init_fn if given is not None else None,
            pin_memory=given.pin_memory if given is not None else False,
            timeout=given.timeout if given is not None else 0,
            prefetch_factor=given.prefetch_factor if given is not None else None,
            multiprocessing_context=given.multiprocessing_context if given is not None else None,
        )
        return iter(loader)


class _Fetched(Dataset[Batch]):
    """From a key to a collated batch. Seeding here makes workers draw what the main process would."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset = dataset
        self.collate = collate

    def __getitem__(self, key: Key) -> Batch:
        indices, seed = key
        with seeded(seed):
            if hasattr(self.dataset, "__getitems__"):
                items = self.dataset.__getitems__(indices)
            else:
                items = [self.dataset[index] for index in indices]
            _checked(items[0])
            _refuse_holes(items)
            try:
                batch = self.collate(items)
            except (TypeError, RuntimeError) as error:
                raise DataError(
                    f"the dataset's samples do not form a batch ({error}); "
                    f"return tensors of one shape and a whole number for the label, or give a DataLoader "
                    f"with a collate_fn"
                ) from error
        return _as_batch(batch)


def _unchanged(batch: Any) -> Any:
    return batch


def _checked(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        given = f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list | dict) else type(item)
        raise DataError(
            f"a sample of the dataset is a {given}; it must be a pair (x, y) of the input and its label "
            f"(x may be a tuple or a dict of tensors)"
        )
    return item[0], item[1]


def _refuse_holes(items: list[Any]) -> None:
    """Raise DataError where samples of a batch lack a named input that others have."""
    held = [set(item[0]) for item in items if isinstance(item[0], dict)]
    if held and (lacking := set.union(*held) - set.intersection(*held)):
        raise DataError(
            f"a sample of the dataset lacks {', '.join(map(repr, sorted(lacking)))}, which others have; return zeros "
            f"of its shape where an input is missing"
        )


def _as_batch(batch: Any) -> Batch:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(f"collate_fn gave a {type(batch).__name__}; a batch is a pair (inputs, labels)")
    inputs: Inputs = tuple(batch[0]) if isinstance(batch[0], tuple | list) else batch[0]
    parts = inputs if isinstance(inputs, tuple) else inputs.values() if isinstance(inputs, dict) else (inputs,)
    if not all(isinstance(part, Tensor) for part in parts):
        kinds = ", ".join(sorted({type(part).__name__ for part in parts}))
        raise DataError(f"the inputs of a batch are {kinds}; they must be a tensor, or a tuple or dict of tensors")
    target = batch[1]
    if not isinstance(target, Tensor) or target.ndim != 1 or target.is_floating_point():
        given = f"{target.dtype} {list(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise DataError(f"the labels of a batch are {given}; they must be whole numbers, one for each sample [B]")
    return inputs, target.long()


def labels_of(dataset: Any) -> Tensor:
    """The labels of a map-style dataset, int64 [N]."""
    found: Any = None
    if type(dataset) is Subset:
        return labels_of(dataset.dataset)[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if type(dataset) is ConcatDataset:
        return torch.cat([labels_of(each) for each in dataset.datasets])
    if type(dataset) is TensorDataset:
        found = dataset.tensors[-1]
    elif getattr(dataset, "target_transform", None) is None:
        found = getattr(dataset, "targets", None)
    if not isinstance(found, Tensor | np.ndarray | list) or len(found) != len(dataset):
        items = (dataset[index] for index in range(len(dataset)))
        found = [_checked(item)[1] for item in items]
    try:
        labels = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the dataset's labels are not whole numbers ({error}); number the classes from 0") from error
    if labels.ndim != 1 or labels.is_floating_point():
        raise DataError(
            f"the dataset's labels are {labels.dtype} {list(labels.shape)}; give one whole number for each sample"
        )
    return labels.long().cpu()
