"""Parts of the training samples: two stratified shares, a few of each class, or the part joined with another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from archgrad.errors import DataError
from archgrad.tasks.datasets import Samples
from archgrad.tasks.parts import Part
from archgrad.tasks.sources import DatasetSource, MemorySource
from archgrad.tasks.task import stable_seed


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
            "or a SubsetRandomSampler, or make two Classification tasks of your own"
        )
    labels = train.source.labels()[train.indices]
    generator = torch.Generator().manual_seed(stable_seed("halves", seed))
    pieces: tuple[list[Tensor], list[Tensor]] = [], []
    seen = taken = 0
    for label in torch.unique(labels):
        members = train.indices[labels == label]
        members = members[torch.randperm(len(members), generator=generator)]
        seen += len(members)
        # Rounded so that the sum over classes comes near the share too, not each class alone.
        fewest = int(fraction * len(members))
        first = fewest + (fraction * seen - taken - fewest >= 0.5)
        first = max(1, min(first, len(members) - 1))
        taken += first
        pieces[0].append(members[:first])
        pieces[1].append(members[first:])
    one, other = (torch.cat(found).sort().values for found in pieces)
    if len(other) == 0:
        raise DataError(
            f"{len(labels)} training samples, one of each class, cannot be divided: give at least two samples of "
            "some class"
        )
    first_part = Part(train.source, one, train.loader, train.bounded)
    return first_part, Part(train.source, other, train.loader, train.bounded)


def few(train: Part, count: int, *, classes: Sequence[str], seed: int) -> Part:
    """`count` training samples of each class.

    Raises DataError where a class has fewer, or where a sampler of the user's own may draw anything.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise DataError(f"{count!r} shots: give a whole number of samples of each class, at least 1")
    if not train.bounded:
        raise DataError("shots cannot be drawn from a training part with a sampler of your own; give the Dataset")
    labels = train.source.labels()[train.indices]
    held = torch.bincount(labels, minlength=len(classes))
    if int(held.min()) < count:
        least = int(held.argmin())
        raise DataError(
            f"{count} shots of each class: class {classes[least]!r} has {int(held[least])} training samples of "
            f"{len(labels)} in {len(classes)} classes; give fewer shots, or more data"
        )
    generator = torch.Generator().manual_seed(stable_seed("shots", count, seed))
    pieces = []
    for label in range(len(classes)):
        members = train.indices[labels == label]
        pieces.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return Part(train.source, torch.cat(pieces).sort().values, train.loader, train.bounded)


def join(first: Part, second: Part) -> Part:
    """Two parts of one task as one, in an order of its own: a sampler of the user's knows the first alone."""
    one, other = first.source, second.source
    if one is other:
        return Part(one, torch.cat([first.indices, second.indices]).sort().values)
    indices = torch.cat([first.indices, second.indices + len(one)])
    if isinstance(one, MemorySource) and isinstance(other, MemorySource):
        held = Samples(
            torch.cat([one.held.x, other.held.x]), torch.cat([one.held.y, other.held.y]), one.held.class_names
        )
        memory = MemorySource(held)
        memory.mean, memory.std = one.mean, one.std
        return Part(memory, indices)
    assert isinstance(one, DatasetSource) and isinstance(other, DatasetSource)
    return Part(one.extended(other), indices)
