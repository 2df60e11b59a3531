"""The processes of one run: the same weights in all of them, and means over them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from archgrad.errors import RunError
from archgrad.run.device import Machine


def broadcast_state(parts: Mapping[str, object], machine: Machine) -> None:
    """Give every process the first one's parameters and buffers, live supports included."""
    if machine.world > 1:
        for _, network in _networks(parts):
            tensors = [*network.parameters(), *network.buffers()]
            _exchange(tensors, lambda flat: torch.distributed.broadcast(flat, 0))


def average_statistics(parts: Mapping[str, object], machine: Machine) -> None:
    """Average the running statistics, which each process gathers on its own batches."""
    if machine.world > 1:
        for _, network in _networks(parts):
            statistics = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
            _exchange(statistics, lambda flat: _average(flat, machine))


def check_equal(parts: Mapping[str, object], machine: Machine) -> None:
    """Raise RunError, in every process, where these do not hold the same parameters and supports."""
    if machine.world == 1:
        return
    for name, network in _networks(parts):
        supports = [buffer for buffer in network.buffers() if not buffer.is_floating_point()]
        mine = _digest([*network.parameters(), *supports])
        if machine.greatest(mine) != -machine.greatest(-mine):
            raise RunError(
                f"The {machine.world} processes no longer hold the same {name!r}: something in the program depends "
                "on the process that it runs in: random numbers of its own, a clock, data that are not the same. "
                "Draw from run.generator(...), decide by run.compute_once(...), and go on from the last checkpoint."
            )


def mean(values: Sequence[Tensor | None], machine: Machine) -> list[Tensor | None]:
    """The mean over all processes of each tensor, in one exchange for each dtype; None stays None."""
    if machine.world == 1:
        return list(values)
    means = [None if value is None else value.detach().clone() for value in values]
    _exchange([value for value in means if value is not None], lambda flat: _average(flat, machine))
    return means


def _average(flat: Tensor, machine: Machine) -> None:
    """Put the mean over all processes in place of a tensor."""
    torch.distributed.all_reduce(flat)
    flat /= machine.world


def _networks(parts: Mapping[str, object]) -> list[tuple[str, nn.Module]]:
    return [(name, part) for name, part in parts.items() if isinstance(part, nn.Module)]


def _exchange(tensors: Iterable[Tensor], exchange: Callable[[Tensor], object]) -> None:
    """Let a function change all of these in place, those of one dtype in one flat tensor."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor.detach())
    for dtype, some in by_dtype.items():
        flat = torch.cat([tensor.reshape(-1) for tensor in some])
        exchange(flat.view(torch.uint8) if dtype == torch.bool else flat)
        for tensor, piece in zip(some, torch.split(flat, [tensor.numel() for tensor in some]), strict=True):
            tensor.copy_(piece.view(tensor.shape))


def _digest(tensors: Iterable[Tensor]) -> int:
    """A number below 2^56 that depends on every bit of these."""
    digest = hashlib.blake2b(digest_size=7)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest(), "big")
