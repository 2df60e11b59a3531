"""Count multiply-adds while a network runs, by the module that runs them."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from archgrad.costs.mixing import is_alive
from archgrad.multiply_adds import FLOPS


class Call(NamedTuple):
    """What runs where: all in a network's paths.

    Attributes:
        path: the first of the module's.
        callers: those that run it though it stands, by its first path, in none of them: it is shared.
        place: that of its paths on which it runs.
    """

    path: str
    callers: tuple[str, ...]
    place: str


_ROOMS = ("aten", "prims", "prim", "profiler", "c10d", "_c10d_functional", "higher_order", "inductor")
_MULTIPLYING = (
    "fft", "linalg", "cholesky", "triangular_solve", "lu_", "inverse", "sparse", "int_mm", "weight_int",
    "lstm", "gru", "rnn", "cudnn_rnn", "mkldnn_rnn",
)  # fmt: skip
_NORMS = ("linalg_vector_norm",)  # which count no more than the norms that they are parts of


class Counting(FlopCounterMode):
    """torch's counter, with more operations, and a memory for those that it does not know.

    A module that stands in several places of the network counts under the first of its paths, as `named_modules` has
    it; torch's own names would be of the last.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(display=False)
        self.flop_registry = FLOPS
        # torch's own tracker hangs hooks on tensors that fail where a forward asks for gradients of its own.
        self.mod_tracker = contextlib.nullcontext()  # type: ignore[assignment]
        self.own: dict[Call, float] = {}  # what a module runs itself
        self.unknown: dict[tuple[str, str], None] = {}
        self._network = network
        self._paths: dict[nn.Module, list[str]] = {}
        for path, module in network.named_modules(remove_duplicate=False):
            self._paths.setdefault(module, []).append(path)
        self._running = [("", "")]  # first path and place
        self._inside: dict[tuple[str, nn.Module], list[str]] = {}
        self._turns: collections.Counter[tuple[str, nn.Module]] = collections.Counter()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Inside, it knows which module runs."""

        def enter(module: nn.Module, _inputs: object) -> None:
            known = self._paths.get(module)
            self._running.append((known[0], self._place(module, known)) if known else self._running[-1])

        def leave(module: nn.Module, _inputs: object, _output: object) -> None:
            self._running.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _place(self, module: nn.Module, paths: list[str]) -> str:
        """Of a module's paths the one in what runs it; of several, as in Sequential(m, m), one after another."""
        if len(paths) == 1:
            return paths[0]
        for _, around in reversed(self._running):
            if (around, module) not in self._inside:
                self._inside[around, module] = self._nearest(around, paths)
            if nearest := self._inside[around, module]:
                self._turns[around, module] += 1
                return nearest[(self._turns[around, module] - 1) % len(nearest)]
        return paths[0]

    def _nearest(self, around: str, paths: list[str]) -> list[str]:
        """The shortest of the paths below `around`, those that can be picked."""
        inside = [p for p in paths if not around or p.startswith(f"{around}.")]
        depth = min((p.count(".") for p in inside), default=0)
        nearest = [p for p in inside if p.count(".") == depth]
        return [p for p in nearest if len(nearest) == 1 or is_alive(self._network, p)] or nearest

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        name, (path, place) = str(func_packet), self._running[-1]
        room, _, operation = name.partition(".")
        if func_packet in self.flop_registry:
            callers = dict.fromkeys(p for p, _ in self._running if not f"{path}.".startswith(f"{p}." if p else ""))
            call = Call(path, (*callers,), place)
            flops = self.flop_registry[func_packet](*args, **kwargs, out_val=out)
            self.own[call] = self.own.get(call, 0.0) + flops
        elif room not in _ROOMS or (operation.strip("_").startswith(_MULTIPLYING) and operation not in _NORMS):
            self.unknown[path, name] = None
        return out

    def left_out(self) -> list[str]:
        """A sentence for each module and operation that is not counted."""
        names = dict(self._network.named_modules())
        return [
            f"MACs leave out {operation} in {path or 'forward'} ({type(names[path]).__name__})"
            for path, operation in self.unknown
        ]
