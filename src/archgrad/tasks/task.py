"""What a network is judged on: the contract between tasks and everything that trains on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

Inputs = Tensor | tuple[Tensor, ...]
Batch = tuple[Inputs, Tensor]


class Task(Protocol):
    """Training batches, a loss, and a score.

    `steps_per_epoch` is the number of training batches in one pass over the training part.
    """

    steps_per_epoch: int

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Callable[[int], Batch]:
        """Training batch number `step` (0, 1, 2, ... across epochs): a pure function of its four numbers."""
        ...

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """What training minimises on this batch: a scalar. Never draws data."""
        ...

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        """Figures on "train", "valid" or "test"; the first is the score (higher is better).

        The network is evaluated in eval mode; the mode of every submodule is restored.
        """
        ...


@runtime_checkable
class Scored(Protocol):
    """A task that scores architectures themselves, such as `archgrad.Tabular`: nothing is trained on it.

    `perfect` is what a network without fault scores: 1 for a share, 100 for a %.
    """

    perfect: float

    def score(self, architecture: Mapping[str, Any], /) -> float:
        """The architecture's score, higher is better."""
        ...


def first(batch: Batch, count: int) -> Batch:
    """The first `count` examples of a batch, all of them where there are no more."""
    inputs, target = batch
    return (tuple(x[:count] for x in inputs) if isinstance(inputs, tuple) else inputs[:count]), target[:count]


def stable_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) that depends on `parts` alone: the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
