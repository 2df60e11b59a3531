"""Where batches come from: tensors in memory or a user's Dataset, by a key (indices of samples, and a seed)."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, default_collate

from archgrad.digests import ITEMS, digest, of_array, of_items
from archgrad.errors import DataError, annotate, full_text
from archgrad.fingerprint import code_of, described
from archgrad.tasks.samples import Samples
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
    """Samples that can be fetched by index; `strata` and `groups` [N] decide how they are divided, where given."""

    strata: Tensor | None
    groups: Tensor | None

    def __len__(self) -> int: ...

    def targets(self) -> Tensor | None:
        """All targets [N] where each is one number, else None."""
        ...

    def sample(self, index: int) -> Any:
        """One sample as it was given."""
        ...

    def fingerprint(self) -> str:
        """A digest of the samples: equal ones give the same in every process."""
        ...

    def batches(self, keys: Iterable[Key]) -> Iterator[Batch]:
        """The batches of these keys, fetched as they are asked for."""
        ...

    def one(self, key: Key) -> Batch:
        """The batch of one key, fetched in this process."""
        ...


class MemorySource:
    """Samples in memory; uint8 inputs become `(x / 255 - mean) / std` for each channel (dimension 1)."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.mean: Tensor | None = None
        self.std: Tensor | None = None
        self.strata: Tensor | None = None
        self.groups: Tensor | None = None
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def targets(self) -> Tensor | None:
        """All targets [N] where each is one number, else None."""
        y = self.samples.y
        return y.reshape(len(y)) if isinstance(y, Tensor) and y.numel() == len(y) else None

    def fingerprint(self) -> str:
        """A digest of all samples; of the inputs a number of them where they are large."""
        if self._fingerprint is None:
            x, y = self.samples.x, self.samples.y
            self._fingerprint = digest(*map(of_array, tree_leaves(x)), *tree_leaves(y), self.samples.class_names)
        return self._fingerprint

    def sample(self, index: int) -> Any:
        """One sample, (x, y)."""
        return tree_map(lambda tensor: tensor[index], (self.samples.x, self.samples.y))

    def batches(self, keys: Iterable[Key]) -> Iterator[Batch]:
        """The batches of these keys."""
        return map(self.one, keys)

    def one(self, key: Key) -> Batch:
        """The batch of one key."""
        rows = torch.tensor(key[0])
        x, y = tree_map(lambda tensor: tensor[rows], (self.samples.x, self.samples.y))
        if self.mean is not None and self.std is not None:
            shape = (1, -1, *[1] * (x.ndim - 2))
            x = (x.float() / 255 - self.mean.view(shape)) / self.std.view(shape)
        # Masks are kept in bytes, and used as whole numbers.
        return x, tree_map(lambda tensor: tensor.long() if tensor.dtype == torch.uint8 else tensor, y)

    def normalize(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the constants, one for each channel."""
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)


class DatasetSource:
    """A user's map-style Dataset, passed as it is.

    Args:
        dataset: of (x, y) with one label y where `labelled`, else of any samples.
        collate: from a list of samples to a batch.
        loader: the user's, whose workers are used; None: `workers` of them.
        labelled: whether batches are (inputs, labels [B]).
    """

    def __init__(
        self,
        dataset: Any,
        *,
        collate: Callable[[list[Any]], Any] | None,
        loader: DataLoader[Any] | None,
        labelled: bool,
    ) -> None:
        self.dataset = dataset
        self.classes: int | None = None
        self.ignore: int | None = None
        self.strata: Tensor | None = None
        self.groups: Tensor | None = None
        self._targets: Tensor | None = None
        self._fingerprint: str | None = None
        self._labelled, self._loader = labelled, loader
        self._collate = collate or (loader.collate_fn if loader is not None else default_collate)
        self._fetched = _Fetched(dataset, self._collate, labelled=labelled)

    def __len__(self) -> int:
        return len(self.dataset)

    def targets(self) -> Tensor | None:
        """All targets [N] where each is one number, else None: from tensors or `targets`, else sample by sample."""
        if self._targets is None:
            with seeded(0):
                if not self._labelled and not _has_number(self.dataset):
                    return None
                self._targets = labels_of(self.dataset) if self._labelled else numbers_of(self.dataset)
        return self._targets

    @property
    def has_read_targets(self) -> bool:
        """Whether `targets` costs nothing more."""
        return self._targets is not None

    def fingerprint(self) -> str:
        """A digest of the dataset: tensors, targets where they were read, some samples, and how they come."""
        if self._fingerprint is None:
            how = [described(self._collate), described(self._loader.sampler) if self._loader is not None else ""]
            with seeded(0):
                self._fingerprint = digest(_fingerprint_of(self.dataset), self._targets, *how)
        return self._fingerprint

    def sample(self, index: int) -> Any:
        """One sample as the dataset gives it."""
        with seeded(0):
            return _item(self.dataset, index)

    def extended(self, other: DatasetSource) -> DatasetSource:
        """These samples and behind them another's, fetched as these are."""
        both = DatasetSource(
            ConcatDataset([self.dataset, other.dataset]),
            collate=self._collate, loader=self._loader, labelled=self._labelled,
        )  # fmt: skip
        both.classes, both.ignore = self.classes, self.ignore
        return both

    def batches(self, keys: Iterable[Key]) -> Iterator[Batch]:
        """The batches of these keys, fetched by worker processes where there are any."""
        for batch in self._raw(keys):
            if self.classes is not None:
                self._check_labels(batch[1], self.classes)
            yield batch

    def _check_labels(self, labels: Tensor, classes: int) -> None:
        labels = labels if self.ignore is None else labels[labels != self.ignore]
        if len(labels) and ((low := int(labels.min())) < 0 or int(labels.max()) >= classes):
            wrong = low if low < 0 else int(labels.max())
            raise DataError(
                f"label {wrong} in a batch; labels are 0..{classes - 1}. Correct the dataset, or give classes="
            )

    def one(self, key: Key) -> Batch:
        """The batch of one key, fetched in this process."""
        return self._fetched[key]

    def _raw(self, keys: Iterable[Key]) -> Iterator[Batch]:
        theirs = self._loader
        if theirs is None or theirs.num_workers == 0:
            return map(self._fetched.__getitem__, keys)
        loader = DataLoader(
            self._fetched,
            batch_size=None,
            # Only iterated over; a generator of keys lets the workers live on from epoch to epoch.
            sampler=keys,
            num_workers=theirs.num_workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),
            worker_init_fn=theirs.worker_init_fn,
            pin_memory=theirs.pin_memory,
            timeout=theirs.timeout,
            prefetch_factor=theirs.prefetch_factor,
            multiprocessing_context=theirs.multiprocessing_context,
        )
        return iter(loader)


class _Fetched(Dataset[Batch]):
    """From a key to a collated batch. Seeding here makes workers draw what the main process would."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], *, labelled: bool) -> None:
        self.dataset = dataset
        self.collate = collate
        self.labelled = labelled

    def __getitem__(self, key: Key) -> Batch:
        indices, seed = key
        with seeded(seed):
            items = _items_of(self.dataset, indices)
            if self.labelled:
                _checked(items[0])
            _refuse_holes(items)
            try:
                with _named(f"the batch of samples {indices[:10]}"):
                    batch = self.collate(items)
            except (TypeError, RuntimeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
                told, todo = "the dataset's samples", "return tensors of one shape, or give a collate_fn"
                if self.collate is not default_collate:
                    told = f"with the collate_fn the samples {list(indices[:10])}"
                    todo = "it is also given one sample alone; leave samples out in the dataset, not in collate_fn"
                raise DataError(f"{told} do not form a batch ({full_text(error)}); {todo}") from error
        if self.labelled:
            return _as_batch(batch)
        batch = dict(batch) if isinstance(batch, Mapping) else batch  # a BatchEncoding of Hugging Face too
        return _without_lists(batch) if self.collate is default_collate else batch


def _without_lists(batch: Any) -> Any:
    """A batch in which a list is one of samples alone: what `default_collate` makes of a tuple is a tuple again."""
    if type(batch) in (list, tuple) and any(not isinstance(part, str) for part in batch):
        return tuple(map(_without_lists, batch))
    return {name: _without_lists(part) for name, part in batch.items()} if isinstance(batch, dict) else batch


def _items_of(dataset: Any, indices: list[int]) -> list[Any]:
    """Samples of a user's dataset; an error in one says which it was."""
    if hasattr(dataset, "__getitems__"):
        with _named(f"samples {indices[:10]}"):
            return list(dataset.__getitems__(indices))
    return [_item(dataset, index) for index in indices]


def _item(dataset: Any, index: int) -> Any:
    with _named(f"sample {index}"):
        return dataset[index]


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except StopIteration as error:  # would end the loop over the batches in silence
        raise DataError(f"the dataset raises StopIteration at {what}; return a sample, or correct __len__") from error
    except Exception as error:  # a user's dataset may raise anything
        annotate(error, f"It was raised while archgrad fetched {what} of the dataset.")
        raise


def _unchanged(batch: Any) -> Any:
    return batch


def _checked(item: Any) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        kind = f"{type(item).__name__} of {len(item)}" if isinstance(item, tuple | list | dict) else type(item)
        raise DataError(
            f"a sample of the dataset is a {kind}; it must be a pair (x, y) of the input and its label "
            f"(x may be a tuple or a dict of tensors)"
        )
    return item[0], item[1]


def _refuse_holes(items: list[Any]) -> None:
    """Raise DataError where samples of a batch lack a named input that others have."""
    inputs = [item[0] for item in items if isinstance(item, tuple | list) and item]
    names_by_sample = [set(each) for each in inputs if isinstance(each, dict)]
    if names_by_sample and (lacking := set.union(*names_by_sample) - set.intersection(*names_by_sample)):
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
        kind = f"{target.dtype} {list(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        raise DataError(
            f"the labels of a batch are {kind}; they must be whole numbers, one for each sample [B]. For masks, "
            f"real numbers or several labels a sample use archgrad.Supervised with a loss of yours"
        )
    return inputs, target.long()


def labels_of(dataset: Any) -> Tensor:
    """The labels of a map-style dataset, int64 [N]."""
    try:
        labels = torch.as_tensor(_targets_of(dataset))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"the dataset's labels are not whole numbers ({error}); number the classes from 0") from error
    if labels.ndim != 1 or labels.is_floating_point():
        raise DataError(
            f"the dataset's labels are {labels.dtype} {list(labels.shape)}; give one whole number for each sample. "
            f"For masks, real numbers or several labels a sample use archgrad.Supervised with a loss of yours"
        )
    return labels.long().cpu()


def numbers_of(dataset: Any) -> Tensor | None:
    """The targets of a map-style dataset whose first target is a number, [N]; None where others are not."""
    try:
        targets = torch.as_tensor(np.asarray(_targets_of(dataset), dtype=np.float64))
    except (TypeError, ValueError, RuntimeError):
        return None
    if targets.numel() != len(dataset):
        return None
    targets = targets.reshape(len(dataset))
    return targets.long() if bool((targets == targets.round()).all()) else targets


def _has_number(dataset: Any) -> bool:
    """Whether the first sample is (x, y) with y one number."""
    sample = _item(dataset, 0)
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        return False
    target = sample[1]
    return isinstance(target, int | float | np.number) or (
        isinstance(target, Tensor | np.ndarray) and np.prod(target.shape) == 1
    )


def _fingerprint_of(dataset: Any) -> str:
    if type(dataset) is Subset:
        return digest(_fingerprint_of(dataset.dataset), tuple(dataset.indices))
    if type(dataset) is ConcatDataset:
        return digest(*map(_fingerprint_of, dataset.datasets))
    if type(dataset) is TensorDataset:
        return digest(*map(of_array, dataset.tensors))
    targets = getattr(dataset, "targets", None)
    targets = targets if isinstance(targets, Tensor | np.ndarray | list) else ()
    spread = np.unique(np.linspace(0, len(dataset) - 1, min(ITEMS, len(dataset))).astype(int)).tolist()

    def fetch(index: int) -> Any:
        with seeded(index):  # so that a dataset that draws from the global generators gives the same twice
            return _items_of(dataset, [index])[0]

    return digest(len(dataset), targets, of_items(fetch, spread), code_of(dataset, "__getitem__", "__getitems__"))


def _targets_of(dataset: Any) -> Any:
    """The targets of a map-style dataset: from its tensors or `targets`, else sample by sample."""
    if type(dataset) is Subset:
        return np.asarray(_targets_of(dataset.dataset))[list(dataset.indices)]
    if type(dataset) is ConcatDataset:
        return np.concatenate([np.asarray(_targets_of(each)) for each in dataset.datasets])
    targets: Any = None
    if type(dataset) is TensorDataset:
        targets = dataset.tensors[-1]
    elif getattr(dataset, "target_transform", None) is None:
        targets = getattr(dataset, "targets", None)
    if not isinstance(targets, Tensor | np.ndarray | list) or len(targets) != len(dataset):
        targets = [_checked(_item(dataset, index))[1] for index in range(len(dataset))]
    return targets
