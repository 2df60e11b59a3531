"""The parts of the data: opened from what a user gives, checked against each other, split off."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
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
from archgrad.tasks.batch_order import draw, order_of
from archgrad.tasks.datasets import Samples, samples
from archgrad.tasks.sources import DatasetSource, MemorySource
from archgrad.tasks.task import stable_seed

# A torch Dataset or DataLoader of (x, y), Samples, or a pair of arrays (x, y).
Data = Any


@dataclass
class Part:
    """A part of the data: a source, the indices of it that belong to the part, and the loader given.

    `bounded` says that `indices` are known to be all that the loader's sampler can ever draw.
    """

    source: MemorySource | DatasetSource
    indices: Tensor
    loader: DataLoader[Any] | None = None
    bounded: bool = True


def open_part(
    data: Data,
    name: str,
    *,
    classes: int | None,
    class_names: tuple[str, ...] | None,
    workers: int,
) -> Part:
    """Make a `Part` of whatever a user gave as train, valid or test. Raises DataError."""
    if isinstance(data, Samples) or (isinstance(data, tuple | list) and len(data) == 2):
        return _open_memory(data, name, classes=classes, class_names=class_names)
    loader = data if isinstance(data, DataLoader) else None
    dataset = loader.dataset if loader is not None else data
    if isinstance(dataset, IterableDataset):
        raise DataError(
            f"{name}: an IterableDataset cannot be split, counted or resumed exactly; give a map-style "
            f"Dataset (with __len__ and __getitem__)"
        )
    arrays = (str, bytes, dict, tuple, list, np.ndarray, Tensor)
    if isinstance(dataset, arrays) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{name} is a {type(data).__name__}; give a torch Dataset or DataLoader of (x, y), or a pair of "
            f"arrays (x, y). Classification.load reads a path"
        )
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise DataError(f"{name}: the dataset has no samples; give at least two classes with a sample each")
    source = DatasetSource(dataset, loader=loader, workers=workers)
    if loader is None:
        return Part(source, torch.arange(len(source)))
    indices, bounded = _drawable(loader, name)
    return Part(source, indices, loader, bounded)


def _open_memory(data: Data, name: str, *, classes: int | None, class_names: tuple[str, ...] | None) -> Part:
    if not isinstance(data, Samples):
        held = samples(data[0], data[1], classes=classes, class_names=class_names, part=name)
    else:
        held = data
        if class_names is not None and held.class_names != class_names:
            raise DataError(
                f"{name} has the classes {', '.join(held.class_names[:10])}, the training part "
                f"{', '.join(class_names[:10])}; give both the same classes"
            )
    if classes is not None and classes != len(held.class_names):
        raise DataError(f"{name}: classes={classes}, but the data has {len(held.class_names)} classes")
    return Part(MemorySource(held), torch.arange(len(held)))


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


def count_classes(train: Part, classes: int | None, missing: list[str]) -> int:
    """The number of classes of a Dataset; its labels are read only where something depends on them."""
    if classes is not None and not missing:
        return classes
    labels = train.source.labels()[train.indices]
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
    return classes or high + 1


def check_parts(parts: dict[str, Part], classes: int) -> None:
    """Parts are of one kind and shape and share no sample; labels are from now on held to `classes`."""
    first = parts["train"]
    for name, part in parts.items():
        if isinstance(part.source, DatasetSource):
            part.source.classes = classes
        if isinstance(first.source, MemorySource) != isinstance(part.source, MemorySource):
            raise DataError(
                f"train and {name} are of two kinds (arrays in memory, and a Dataset); give both as the same,"
                f" so that both are normalized alike"
            )
        if isinstance(first.source, MemorySource) and isinstance(part.source, MemorySource):
            given, other = first.source.held.x, part.source.held.x
            if given.shape[1:] != other.shape[1:] or given.dtype != other.dtype:
                raise DataError(
                    f"train is {given.dtype} {list(given.shape[1:])}, {name} is {other.dtype} "
                    f"{list(other.shape[1:])}; give all parts the same type and shape"
                )
    for (name, part), (other_name, other_part) in itertools.combinations(parts.items(), 2):
        if _origin(part) == _origin(other_part):
            shared = set(part.indices.tolist()) & set(other_part.indices.tolist())
            if shared:
                raise DataError(
                    f"{name} and {other_name} have {len(shared)} samples in common; give different ones, or "
                    f"leave {other_name} out and a share of the training part is held out for it"
                )


def _origin(part: Part) -> int:
    return part.source.held.x.data_ptr() if isinstance(part.source, MemorySource) else id(part.source.dataset)


def split_off(train: Part, missing: list[str], *, fraction: float, seed: int) -> dict[str, Part]:
    """The training part less a stratified share for each missing part, and these."""
    if not train.bounded:
        raise DataError(
            f"{' and '.join(missing)} cannot be split off a training part with a sampler of your own, which "
            f"may draw what was held out; give {' and '.join(f'{name}=' for name in missing)}"
        )
    if fraction * len(missing) >= 1:
        raise DataError(
            f"valid_fraction={fraction} for each of {' and '.join(missing)} leaves nothing to train on; "
            f"give less than {1 / len(missing):g}"
        )
    labels = train.source.labels()[train.indices]
    generator = torch.Generator().manual_seed(stable_seed("split", seed))
    pieces: dict[str, list[Tensor]] = {name: [] for name in ("train", *missing)}
    for label in torch.unique(labels):
        members = train.indices[labels == label]
        members = members[torch.randperm(len(members), generator=generator)]
        # A class with too few members to share stays in the training part.
        share = min(max(1, int(fraction * len(members) + 0.5)), (len(members) - 1) // len(missing))
        for position, name in enumerate(missing):
            pieces[name].append(members[position * share : (position + 1) * share])
        pieces["train"].append(members[len(missing) * share :])
    parts: dict[str, Part] = {}
    for name, found in pieces.items():
        indices = torch.cat(found).sort().values
        if len(indices) == 0:
            raise DataError(
                f"{len(labels)} samples are too few to split off {' and '.join(missing)}: give at least "
                f"{len(missing) + 1} of some class, or the parts themselves"
            )
        parts[name] = Part(train.source, indices, train.loader, train.bounded)
    return parts
