"""Parts of the training samples: split off, divided in two, a few of each class, or joined with another part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from archgrad.argument_types import noted
from archgrad.errors import DataError
from archgrad.tasks.parts import Part, strata, targets
from archgrad.tasks.samples import Samples
from archgrad.tasks.sources import DatasetSource, MemorySource
from archgrad.tasks.task import stable_seed


@dataclass(frozen=True)
class Split:
    """How parts that are not given are split off the training part, and how it is divided for bilevel methods.

    Args:
        valid_fraction: of the training samples, for each part that is missing; above 0 and below 1.
        seed: what is drawn by.
        stratify: a label or number for each training sample, [N], or a function from a sample to it: every part gets
            its share of each label, or of each tenth of the numbers. Default: the target where it is one number a
            sample. False: not stratified.
        groups: a group for each training sample, [N], or a function from a sample to it, such as the person who was
            recorded. The samples of a group stay together, in one part; not with `stratify`.

    Raises:
        DataError: a fraction or seed that makes no sense, or both of stratify and groups.

    Example:
        >>> import archgrad as ag
        >>> people = [number // 9 for number in range(1797)]
        >>> ag.Classification(ag.digits(), split=ag.Split(0.1, groups=people))
        <Classification, 10 classes, inputs [1, 8, 8]: train 1,437, valid 180, test 180>
    """

    valid_fraction: float = 0.2
    seed: int = 0
    stratify: Any = None
    groups: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.valid_fraction, int | float) or not 0 < self.valid_fraction < 1:
            raise DataError(f"valid_fraction={self.valid_fraction}: give a share between 0 and 1, for instance 0.2")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise DataError(f"Split(seed={self.seed!r}): give a whole number")
        if self.groups is not None and self.stratify is not None:
            raise DataError("Split: groups stay together, and cannot be stratified too; give one of the two")

    def resolve(self, source: MemorySource | DatasetSource) -> None:
        """Give a source its strata and groups, one a sample."""
        if self.stratify is False:
            source.strata = torch.zeros(len(source), dtype=torch.int64)
        elif self.stratify is not None:
            source.strata = strata(_values(self.stratify, source, "stratify"))
        if self.groups is not None:
            source.groups = torch.from_numpy(
                np.unique(_values(self.groups, source, "groups"), return_inverse=True)[1]
            )


def _values(option: Any, source: MemorySource | DatasetSource, name: str) -> np.ndarray[Any, Any]:
    if callable(option):
        with noted(f"Split({name}=) with a sample"):
            option = [option(source.sample(index)) for index in range(len(source))]
    try:
        values = np.asarray(option)
    except (ValueError, TypeError, RuntimeError):  # ragged, or tensors that are no numbers
        values = np.empty((), dtype=object)
    if values.shape != (len(source),) or values.dtype.kind not in "biufSU":
        raise DataError(
            f"Split({name}=) is {values.dtype} of shape {list(values.shape)}; give one number or string for each of "
            f"the {len(source)} training samples"
        )
    return values


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
    generator = torch.Generator().manual_seed(stable_seed("split", seed))
    if train.source.groups is not None:
        return _split_groups(train, missing, fraction=fraction, generator=generator)
    labels = train.strata
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
    for name, rows in pieces.items():
        indices = torch.cat(rows).sort().values
        if len(indices) == 0:
            raise DataError(
                f"{len(labels)} samples are too few to split off {' and '.join(missing)}: give at least "
                f"{len(missing) + 1} of some class, or the parts themselves"
            )
        parts[name] = train.only(indices)
    return parts


def _split_groups(train: Part, missing: list[str], *, fraction: float, generator: torch.Generator) -> dict[str, Part]:
    """As `split_off`, with the samples of a group in one part."""
    pieces = _grouped(train, dict.fromkeys(missing, fraction), rest="train", generator=generator)
    return {name: train.only(indices) for name, indices in pieces.items()}


def _grouped(train: Part, fractions: dict[str, float], *, rest: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Whole groups in a drawn order: to each name until it has its fraction of the samples, and what is left."""
    assert train.source.groups is not None
    groups = train.source.groups[train.indices]
    distinct = torch.unique(groups)
    order = iter(distinct[torch.randperm(len(distinct), generator=generator)].tolist())
    pieces: dict[str, list[Tensor]] = {rest: [], **{name: [] for name in fractions}}
    for name, fraction in fractions.items():
        while sum(map(len, pieces[name])) < fraction * len(groups) and (group := next(order, None)) is not None:
            pieces[name].append(train.indices[groups == group])
    pieces[rest] = [train.indices[groups == group] for group in order]
    if not all(pieces.values()):
        raise DataError(
            f"{len(distinct)} groups of {len(groups)} samples cannot be shared by {', '.join(pieces)}: give more "
            f"groups, smaller ones, or the parts themselves"
        )
    return {name: torch.cat(rows).sort().values for name, rows in pieces.items()}


def divide(train: Part, *, fraction: float, seed: int) -> tuple[Part, Part]:
    """The training part as two: `fraction` of each class, to within one sample, and the rest.

    Each class of two samples or more is in both; the sample of a class of one is in the first. Raises DataError
    where nothing is left for the second, or where a sampler of the user's own may draw anything.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise DataError(f"fraction={fraction!r}: give the first part's share, above 0 and below 1, for instance 0.5")
    if not train.bounded:
        raise DataError(
            "a training part with a sampler or batch sampler of your own cannot be divided, since the sampler may "
            "draw for one share what belongs to the other; give the Dataset itself, a DataLoader with shuffle=True "
            "or a SubsetRandomSampler, or make two tasks of your own"
        )
    generator = torch.Generator().manual_seed(stable_seed("halves", seed))
    if train.source.groups is not None:
        groups = _grouped(train, {"first": fraction}, rest="second", generator=generator)
        return train.only(groups["first"]), train.only(groups["second"])
    labels = train.strata
    pieces: tuple[list[Tensor], list[Tensor]] = [], []
    seen = taken = 0
    for label in torch.unique(labels):
        members = train.indices[labels == label]
        members = members[torch.randperm(len(members), generator=generator)]
        seen += len(members)
        # Rounded so that the sum over classes comes near the share too, not each class alone.
        fewest = int(fraction * len(members))
        count = fewest + (fraction * seen - taken - fewest >= 0.5)
        count = max(1, min(count, len(members) - 1))
        taken += count
        pieces[0].append(members[:count])
        pieces[1].append(members[count:])
    first, second = (torch.cat(rows).sort().values for rows in pieces)
    if len(second) == 0:
        raise DataError(
            f"{len(labels)} training samples, one of each class, cannot be divided: give at least two samples of "
            "some class"
        )
    return train.only(first), train.only(second)


def few(train: Part, count: int, *, classes: Sequence[str], seed: int) -> Part:
    """`count` training samples of each class.

    Raises DataError where a class has fewer, or where a sampler of the user's own may draw anything.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise DataError(f"{count!r} shots: give a whole number of samples of each class, at least 1")
    if not train.bounded:
        raise DataError("shots cannot be drawn from a training part with a sampler of your own; give the Dataset")
    labels = targets(train)
    counts = torch.bincount(labels[labels >= 0], minlength=len(classes))[: len(classes)]
    if int(counts.min()) < count:
        least = int(counts.argmin())
        raise DataError(
            f"{count} shots of each class: class {classes[least]!r} has {int(counts[least])} training samples of "
            f"{len(labels)} in {len(classes)} classes; give fewer shots, or more data"
        )
    generator = torch.Generator().manual_seed(stable_seed("shots", count, seed))
    pieces = []
    for label in range(len(classes)):
        members = train.indices[labels == label]
        pieces.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return train.only(torch.cat(pieces).sort().values)


def join(first: Part, second: Part) -> Part:
    """Two parts of one task as one, in an order of its own: a sampler of the user's knows the first alone."""
    source, added = first.source, second.source
    if source is added:
        return Part(source, torch.cat([first.indices, second.indices]).sort().values, batch_size=first.batch_size)
    indices = torch.cat([first.indices, second.indices + len(source)])
    joined: MemorySource | DatasetSource
    if isinstance(source, MemorySource) and isinstance(added, MemorySource):
        nests = ((source.samples.x, source.samples.y), (added.samples.x, added.samples.y))
        x, y = tree_map(lambda *tensors: torch.cat(tensors), *nests)
        joined = MemorySource(Samples(x, y, source.samples.class_names))
        joined.mean, joined.std = source.mean, source.std
    else:
        assert isinstance(source, DatasetSource) and isinstance(added, DatasetSource)
        joined = source.extended(added)
    return Part(joined, indices, batch_size=first.batch_size)
