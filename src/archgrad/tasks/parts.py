"""The parts of the data: opened from what a user gives, and checked against each other."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from archgrad.errors import DataError
from archgrad.tasks.batch_order import Order, draw, order_of, sampled, shuffled
from archgrad.tasks.samples import Samples, samples, unlabelled
from archgrad.tasks.sources import DatasetSource, MemorySource, seeded

# A torch Dataset or DataLoader of samples, a list of them, Samples, or a pair of arrays (x, y).
Data = Any
QUANTILES = 10
COMPARED = 1 << 20  # samples that are compared with each other, at about a second for each GB


def strata(values: np.ndarray[Any, Any]) -> Tensor:
    """The stratum of each sample: its label, or which tenth of all it is in where the values are real numbers."""
    distinct, labels = np.unique(values, return_inverse=True)
    if values.dtype.kind != "f" and (values.dtype.kind in "SU" or 4 * len(distinct) <= len(values)):
        return torch.from_numpy(labels.reshape(-1))
    bins = max(1, min(QUANTILES, len(values) // QUANTILES))
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return torch.from_numpy(ranks * bins // len(values))


@dataclass
class Part:
    """A part of the data: a source, the indices of it that belong to the part, and the loader given.

    `bounded` says that `indices` are known to be all that the loader's sampler can ever draw; `batch_size` is that of
    a loader whose order is not kept.
    """

    source: MemorySource | DatasetSource
    indices: Tensor
    loader: DataLoader[Any] | None = None
    bounded: bool = True
    batch_size: int | None = None

    def only(self, indices: Tensor) -> Part:
        """This part on some of its samples."""
        return replace(self, indices=indices)

    @property
    def strata(self) -> Tensor:
        """The stratum of each of its samples: what was given, else the class or the tenth of the target."""
        if self.source.strata is None:
            targets = self.source.targets()
            if targets is None:
                self.source.strata = torch.zeros(len(self.source), dtype=torch.int64)
            else:
                self.source.strata = targets if self.classes else strata(targets.numpy())
        return self.source.strata[self.indices]

    @property
    def classes(self) -> tuple[str, ...] | int | None:
        """What says that the targets are labels of classes; None where they are of another kind."""
        return self.source.samples.class_names if isinstance(self.source, MemorySource) else self.source.classes


@dataclass(frozen=True)
class Labels:
    """What is known of the labels of a classification before a part is opened."""

    classes: int | None = None
    names: tuple[str, ...] | None = None
    ignore: int | None = None


def open_part(
    data: Data, name: str, *, labels: Labels | None = None, collate: Callable[[list[Any]], Any] | None = None
) -> Part:
    """A `Part` of whatever a user gave as train, valid or test; `labels` for a classification. Raises DataError."""
    if isinstance(data, Part):
        return data
    if isinstance(data, Samples) or _is_pair(data):
        return _open_memory(data, name, labels)
    loader = data if isinstance(data, DataLoader) else None
    dataset = loader.dataset if loader is not None else data
    iterable = isinstance(dataset, IterableDataset)
    if iterable:
        dataset = read_all(dataset, name)
    arrays = (str, bytes, dict, tuple, np.ndarray, Tensor)
    if isinstance(dataset, arrays) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{name} is a {type(data).__name__}; give a torch Dataset, DataLoader or list of samples (x, y), or a "
            f"pair of arrays (x, y). Classification.load reads a path"
        )
    if len(dataset) == 0:
        raise DataError(f"{name}: the dataset has no samples; give at least two")
    source = DatasetSource(dataset, collate=collate, loader=loader, labelled=labels is not None)
    if loader is None:
        return Part(source, torch.arange(len(source)))
    if iterable:
        return Part(source, torch.arange(len(source)), batch_size=loader.batch_size)
    indices, bounded = _drawable(loader, name)
    return Part(source, indices, loader, bounded)


def _is_pair(data: Data) -> bool:
    """Whether this is a pair of arrays (x, y), and no list of two samples."""
    samples_listed = isinstance(data, list) and all(isinstance(item, tuple | dict) for item in data)
    return isinstance(data, tuple | list) and len(data) == 2 and not samples_listed


def _open_memory(data: Data, name: str, labels: Labels | None) -> Part:
    if labels is None:
        in_memory = data if isinstance(data, Samples) else unlabelled(data[0], data[1], part=name)
        return Part(MemorySource(in_memory), torch.arange(len(in_memory)))
    if not isinstance(data, Samples):
        in_memory = samples(
            data[0], data[1], classes=labels.classes, class_names=labels.names, ignore=labels.ignore, part=name
        )
    else:
        in_memory = data
        if labels.names is not None and in_memory.class_names != labels.names:
            raise DataError(
                f"{name} has the classes {', '.join(in_memory.class_names[:10])}, the training part "
                f"{', '.join(labels.names[:10])}; give both the same classes"
            )
    if labels.classes is not None and labels.classes != len(in_memory.class_names):
        raise DataError(f"{name}: classes={labels.classes}, but the data has {len(in_memory.class_names)} classes")
    return Part(MemorySource(in_memory), torch.arange(len(in_memory)))


def _drawable(loader: DataLoader[Any], name: str) -> tuple[Tensor, bool]:
    """The indices that a loader's sampler draws, and whether these are certainly all it can draw."""
    sampler: Any = loader.sampler
    if loader.batch_sampler is None:
        raise DataError(f"{name}: a DataLoader with batch_size=None has no samples to split; give it a batch_size")
    if isinstance(sampler, DistributedSampler):
        raise DataError(
            f"{name}: a DistributedSampler would share the data twice; give a plain sampler, and each "
            f"process takes its part of every batch"
        )
    if loader.batch_size is not None:
        if isinstance(sampler, SubsetRandomSampler):
            return torch.tensor(sorted(set(sampler.indices)), dtype=torch.int64), True
        if isinstance(sampler, RandomSampler | SequentialSampler | WeightedRandomSampler):
            return torch.arange(len(loader.dataset)), True  # type: ignore[arg-type]
    drawn = draw(order_of(loader), seed=0, epoch=0)
    flat = itertools.chain.from_iterable(drawn) if loader.batch_size is None else drawn
    indices = torch.tensor(sorted(set(flat)), dtype=torch.int64)
    if len(indices) == 0:
        raise DataError(f"{name}: the sampler of the DataLoader draws nothing")
    return indices, False


def read_all(dataset: Any, name: str) -> list[Any]:
    """The samples of an IterableDataset that has a length, read once into memory, in its order. Raises DataError."""
    try:
        length = len(dataset)
    except TypeError as error:
        raise DataError(
            f"{name}: an IterableDataset without a length cannot be split, counted or resumed exactly; give it a "
            f"__len__, or give a map-style Dataset (with __len__ and __getitem__)"
        ) from error
    with seeded(0):
        items = list(itertools.islice(dataset, length + 1))
    if len(items) != length:
        more = "more" if len(items) > length else f"{len(items)}"
        raise DataError(f"{name}: the IterableDataset gives {more} samples, its length is {length}; correct __len__")
    return items


def targets(part: Part) -> Tensor:
    """The labels of a part, int64 [n]."""
    labels = part.source.targets()
    assert labels is not None
    return labels[part.indices]


def count_classes(train: Part, labels_known: Labels, *, needed: bool) -> int:
    """The number of classes of a Dataset; its labels are read only where something depends on them."""
    classes, ignore = labels_known.classes, labels_known.ignore
    if classes is not None and not needed:
        return classes
    labels = targets(train)
    labels = labels if ignore is None else labels[labels != ignore]
    if not len(labels):
        raise DataError("train: no sample has a label but the ignored one; give at least two classes")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        raise DataError(
            f"train: label {low if low < 0 else high} is outside 0..{(classes or high + 1) - 1}; "
            f"correct the labels, or give classes="
        )
    if low == high:
        raise DataError(
            f"train: only one class ({low}) among {len(labels)} samples; classification needs at least two"
        )
    if classes is None and (lone := _lone_label(torch.unique(labels).tolist())) is not None:
        raise DataError(
            f"train: label {lone} makes {lone + 1} classes, and it stands far above the other labels. Give "
            f"loss=nn.CrossEntropyLoss(ignore_index={lone}) where it marks samples without a label, else "
            f"classes={lone + 1}"
        )
    return classes or high + 1


def _lone_label(distinct: list[int]) -> int | None:
    """The largest of some labels in order where it stands far above the others, which are 0..K-1 or 1..K."""
    *others, last = distinct
    together = bool(others) and others[0] in (0, 1) and others[-1] - others[0] == len(others) - 1
    return last if together and last > max(2 * len(others), others[-1] + 9) else None


def notes_on(parts: dict[str, Part]) -> list[str]:
    """What a user should know of the data: labels that no training sample has, samples that two parts share."""
    notes, train = list[str](), parts["train"]
    classes = train.classes
    count, names = (classes, ()) if isinstance(classes, int) else (len(classes or ()), classes or ())
    # Labels that would have to be read sample by sample, and were not so far, stay unread.
    if count and (isinstance(train.source, MemorySource) or train.source.has_read_targets):
        labels = targets(train)
        occurs = torch.bincount(labels[(labels >= 0) & (labels < count)], minlength=count) > 0
        if missing := [(names or range(count))[row] for row in torch.nonzero(~occurs).flatten().tolist()]:
            notes.append(f"No training sample has {len(missing)} of the {count} labels: {_some(missing)}.")
    if names and all(map(str.isdecimal, names)) and (lone := _lone_label(sorted(map(int, names)))) is not None:
        notes.append(
            f"The label {lone} is a class of its own. Where it marks samples without a label, give "
            f"loss=nn.CrossEntropyLoss(ignore_index={lone})."
        )
    return [*notes, *_shared(parts)]


def _shared(parts: dict[str, Part]) -> list[str]:
    """A note for each two parts in memory that hold the same inputs.

    None on data that repeats by nature, where most training samples are there twice, or on more than `COMPARED`.
    """
    sources = {name: part.source for name, part in parts.items()}
    if sum(len(part.indices) for part in parts.values()) > COMPARED:
        return []
    rows = {
        name: [_digest(source.samples.x, row) for row in parts[name].indices.tolist()]
        for name, source in sources.items()
        if isinstance(source, MemorySource)
    }
    if "train" not in rows or 2 * len(set(rows["train"])) <= len(rows["train"]):
        return []
    notes = []
    for (name, those), (other, these) in itertools.combinations(rows.items(), 2):
        known = set(those)
        if places := [place for place, row in enumerate(these) if row in known]:
            notes.append(
                f"{len(places)} of {len(these)} {other} samples are in {name} too, so that scores are too good: "
                f"{other} samples {_some(parts[other].indices[places].tolist())}. Keep each in one part, or give "
                "their groups to Split."
            )
    return notes


def _digest(inputs: Any, row: int) -> bytes:
    total = hashlib.blake2b(digest_size=16)
    for leaf in tree_leaves(inputs):
        total.update(leaf[row].reshape(-1).contiguous().view(torch.uint8).numpy())
    return total.digest()


def _some(items: list[Any]) -> str:
    return ", ".join(map(str, items[:10])) + (", ..." if len(items) > 10 else "")


def check_parts(parts: dict[str, Part]) -> None:
    """Parts are of one kind and shape, and share no sample. Raises DataError."""
    first = parts["train"]
    for name, part in parts.items():
        if isinstance(first.source, MemorySource) != isinstance(part.source, MemorySource):
            raise DataError(
                f"train and {name} are of two kinds (arrays in memory, and a Dataset); give both as the same,"
                f" so that both are normalized alike"
            )
        if isinstance(first.source, MemorySource) and isinstance(part.source, MemorySource):
            forms = [_form(source.samples.x) for source in (first.source, part.source)]
            if forms[0] != forms[1]:
                raise DataError(f"train is {forms[0]}, {name} is {forms[1]}; give all parts the same type and shape")
    for (name, part), (other_name, other_part) in itertools.combinations(parts.items(), 2):
        if _origin(part) == _origin(other_part):
            shared = set(part.indices.tolist()) & set(other_part.indices.tolist())
            if shared:
                raise DataError(
                    f"{name} and {other_name} have {len(shared)} samples in common; give different ones, or "
                    f"leave {other_name} out and a share of the training part is held out for it"
                )


def _form(inputs: Any) -> str:
    return ", ".join(f"{leaf.dtype} {list(leaf.shape[1:])}" for leaf in tree_leaves(inputs))


def _origin(part: Part) -> int:
    if isinstance(part.source, MemorySource):
        first: Tensor = tree_leaves(part.source.samples.x)[0]
        return first.data_ptr()
    return id(part.source.dataset)


def training_order(train: Part, batch_size: int | None, *, drawable: int) -> Order:
    """The order of the loader's sampler, or a shuffled one; no batch size where a batch sampler has its own."""
    if train.loader is None:
        assert batch_size is not None
        return shuffled(train.indices, batch_size)
    return sampled(train.loader, train.indices, batch_size=batch_size, bounded=train.bounded, drawable=drawable)


def part_record(part: Part, *, split_off: bool) -> dict[str, Any]:
    """What a run records of a part: its size, a digest of which samples it has, and where it is from."""
    digest = hashlib.sha256(part.indices.numpy().astype("<i8").tobytes()).hexdigest()
    return {"size": len(part.indices), "indices_sha256": digest, "split_off_train": split_off}
