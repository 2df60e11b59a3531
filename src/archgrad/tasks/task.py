"""What a network is judged on: the contract between tasks and everything that trains on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

# Of a network: one, several in order, or several by name, which the network takes as one dict.
Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
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
    return mapped(lambda x: x[:count], inputs), target[:count]


def arguments(inputs: Inputs | Sequence[Tensor]) -> tuple[Any, ...]:
    """What a network is called with: each of a tuple, or the tensor, or the dict of named ones, alone."""
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


def tensors(inputs: Any) -> list[Tensor]:
    """All tensors of a network's inputs, in order."""
    return [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]


def mapped(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """The inputs with a function applied to each tensor."""
    return tree_map(function, inputs)  # type: ignore[no-any-return]


def stable_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) that depends on `parts` alone: the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
