"""In which order training samples come, and training batches as a pure function of the step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from archgrad.errors import DataError
from archgrad.tasks.sources import Key, Source, seeded
from archgrad.tasks.task import Batch, stable_seed


def order_of(loader: DataLoader[Any]) -> Any:
    """What decides the order: the sampler, or the batch sampler of a user's own."""
    return loader.sampler if loader.batch_size is not None else loader.batch_sampler


def draw(sampler: Any, *, seed: int, epoch: int) -> list[Any]:
    """One pass of a sampler under a seed; its own generator and the global ones are left as they were."""
    inner: Any = getattr(sampler, "sampler", None)
    owners: list[Any] = [
        each for each in (sampler, inner) if isinstance(getattr(each, "generator", None), torch.Generator)
    ]
    states = [owner.generator.get_state() for owner in owners]
    drawn_seed = stable_seed("sampler", seed, epoch)
    for each in (sampler, inner):
        if hasattr(each, "set_epoch"):
            each.set_epoch(epoch)
    for owner in owners:
        owner.generator.manual_seed(drawn_seed)
    with seeded(drawn_seed):
        drawn = list(sampler)
    for owner, state in zip(owners, states, strict=True):
        owner.generator.set_state(state)
    return drawn


@dataclass(frozen=True)
class Order:
    """The batches of an epoch, `steps` lists of indices, as a function of (seed, epoch)."""

    steps: int
    epoch: Callable[[int, int], list[list[int]]]


def shuffled(indices: Tensor, batch_size: int) -> Order:
    """Full batches of a random permutation; one smaller batch where there is no full one."""
    steps = max(1, len(indices) // batch_size)

    def epoch(seed: int, number: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(stable_seed("order", seed, number))
        order = indices[torch.randperm(len(indices), generator=generator)]
        return [batch.tolist() for batch in torch.split(order[: steps * batch_size], batch_size)]

    return Order(steps, epoch)


def sampled(loader: DataLoader[Any], part: Tensor, *, batch_size: int | None, bounded: bool, drawable: int) -> Order:
    """Batches in the order of a loader's own sampler, from which samples outside `part` are left out.

    `batch_size` is the loader's or less, None where a batch sampler makes the batches. `drawable` is how many
    samples the sampler draws from. Passes follow one another until the epoch is full,
    which for a sampler over `part` alone is one pass.
    """
    sampler = order_of(loader)
    try:
        length = len(sampler)
    except TypeError as error:
        raise DataError("the DataLoader's sampler has no length; give it a __len__") from error
    if batch_size is None:
        return Order(length, lambda seed, number: draw(sampler, seed=seed, epoch=number))
    samples_drawn = max(1, round(length * len(part) / drawable)) if bounded else length
    steps = max(1, samples_drawn // batch_size)
    members = set(part.tolist())

    def epoch(seed: int, number: int) -> list[list[int]]:
        order: list[int] = []
        for pass_number in itertools.count():
            drawn = draw(sampler, seed=stable_seed("pass", seed, pass_number), epoch=number)
            found = [index for index in drawn if index in members] if bounded else drawn
            order += found
            if not found or len(order) >= min(steps * batch_size, samples_drawn):
                break
        if not order:
            raise DataError("the DataLoader's sampler draws no sample of the training part; give valid and test")
        order = order[: min(steps * batch_size, samples_drawn)]
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    return Order(steps, epoch)


class Stream:
    """Training batch number `step` as a pure function; in order it costs nothing extra, a jump re-seeks."""

    def __init__(
        self,
        source: Source,
        order: Order,
        *,
        seed: int,
        rank: int,
        world: int,
        augment: tuple[Callable[[Any, torch.Generator], Any], ...],
    ) -> None:
        self._source, self._order, self._augment = source, order, augment
        self._seed, self._rank, self._world = seed, rank, world
        self._next = -1
        self._batches: Iterator[Batch] = iter(())

    def __call__(self, step: int) -> Batch:
        """The batch of this step, on the CPU. Raises DataError below 0."""
        if step < 0:
            raise DataError(f"step {step}: steps count from 0")
        if step != self._next:
            self._batches = self._source.batches(
                _keys(self._order, step, seed=self._seed, rank=self._rank, world=self._world)
            )
        # Until the batch is here nothing is known to be in place, should this be interrupted.
        self._next = -1
        batch = next(self._batches)
        self._next = step + 1
        if not self._augment:
            return batch
        inputs, target = batch
        generator = torch.Generator().manual_seed(stable_seed("augment", self._seed, step, self._rank))
        for augmentation in self._augment:
            inputs = augmentation(inputs, generator)
            if inputs is None:
                raise DataError(f"the augmentation {augmentation!r} returns None. Return the augmented inputs.")
        return inputs, target


# No method of a stream: its batches would hold the stream that holds them, and the workers behind them would end when
# garbage is next collected, which takes five seconds, and not at once.
def _keys(order: Order, step: int, *, seed: int, rank: int, world: int) -> Iterator[Key]:
    epoch, first = divmod(step, order.steps)
    for number in itertools.count(epoch):
        batches = order.epoch(seed, number)
        if len(batches) < order.steps:
            raise DataError(
                f"the DataLoader's sampler drew {len(batches)} batches in epoch {number}; its length "
                f"promises {order.steps}. Correct its __len__"
            )
        for position in range(first, order.steps):
            # Every `world`-th sample; all processes get equally many.
            batch = batches[position]
            share = batch[: len(batch) // world * world][rank::world]
            yield share, stable_seed("fetch", seed, number * order.steps + position, rank)
        first = 0
