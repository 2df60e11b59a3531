"""Watch memory: the storages that autograd saves, and the storages that are allocated and freed."""

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
        known: tensors whose storages do not count, since they exist before: parameters, buffers, inputs.

    Attributes:
        saved_bytes: so far.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        self.saved_bytes = 0
        # Storages are kept until the end, so that no address is used twice.
        self._seen = {id(storage): storage for storage in map(Tensor.untyped_storage, known)}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._seen:
            self._seen[id(storage)] = storage
            self.saved_bytes += storage.nbytes()
        # An output held by its own node would keep the graph alive until the next garbage collection.
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
    """Watches inside a `with` block which tensors are allocated and freed, on any device, each storage once.

    Attributes:
        events: bytes allocated (above 0) and freed (below 0), in order.
        held_bytes: allocated inside the block and not freed yet.
        peak_bytes: the most that was held at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[int] = []
        self.held_bytes = self.peak_bytes = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __repr__(self) -> str:
        return f"<Allocations, {self.held_bytes:,} bytes held, {self.peak_bytes:,} at the peak>"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if _is_dense(t)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if _is_dense(tensor) and id(storage := tensor.untyped_storage()) not in inputs:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
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
