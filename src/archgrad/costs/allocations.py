"""What tensors take, watched: storages that autograd saves, and storages that are made and freed."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Saved:
    """Counts inside a `with` block what autograd saves for backward passes (of first order), each storage once.

    Args:
        known: tensors whose storages do not count, since they are there anyway: parameters, buffers, inputs.

    Attributes:
        saved_bytes: so far.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        self.saved_bytes = 0
        # Storages are held until the end, so that no address comes twice.
        self._seen = {id(storage): storage for storage in map(Tensor.untyped_storage, known)}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._seen:
            self._seen[id(storage)] = storage
            self.saved_bytes += storage.nbytes()
        # An output that its own node held would keep the graph alive until the garbage collector comes by.
        return tensor.detach()

    def __enter__(self) -> Saved:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, value, trace)
        self._seen.clear()


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches inside a `with` block what tensors are made and freed, on any device, each storage once.

    Attributes:
        events: what was allocated (above 0) and freed again (below 0), in bytes, in order.
        held_bytes: what was made inside the block and is still there.
        peak_bytes: the most that was held at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[int] = []
        self.held_bytes = self.peak_bytes = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if _is_dense(t)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if _is_dense(tensor) and id(storage := tensor.untyped_storage()) not in given:
                self._take_up(storage)
        return result

    def _take_up(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def freed(_: object) -> None:
            del self._alive[key]
            self.held_bytes -= size
            self.events.append(-size)

        self._alive[key] = weakref.ref(storage, freed)
        self.held_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        self.events.append(size)


def _is_dense(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided
