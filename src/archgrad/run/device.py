"""Where a run computes: device, precision and processes, through Lightning Fabric."""

from __future__ import annotations

import atexit
import contextlib
import functools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from archgrad.errors import ArchgradError, ConfigError, ResourceError, full_text
from archgrad.run import failures, validation

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)

# How often the first process says that it still computes; each time the others' patience begins anew.
_BEAT_SECONDS = 60.0


class Machine:
    """One device, or several processes; Fabric is imported and launched when it is first needed.

    Attributes:
        alone: whether this is the only process.
        precision: by Fabric's name.
    """

    def __init__(self, device: str, *, precision: str, devices: int, workers: int | str | None) -> None:
        self._asked = validation.device(device)
        self.precision = validation.precision(precision, self._asked)
        self._processes = validation.devices(devices, self._asked)
        self._fabric: Fabric | None = None
        self._beats: Any = None  # the group of all processes in which the first one says that it lives
        self._first_works = False
        self._layout = validation.layout(self._processes)
        self.alone = self._layout == (1, 1)
        if workers and not self.alone:
            raise ConfigError(
                "workers and several devices were given. Networks are tried by workers, each on one device, or "
                "trained one after another on several: leave one of the two out."
            )

    @property
    def fabric(self) -> Fabric:
        """Fabric, launched."""
        if self._fabric is None:
            from lightning_fabric import Fabric
            from lightning_fabric.strategies.ddp import DDPStrategy

            devices, nodes = self._layout
            self._fabric = Fabric(
                accelerator=self._asked.type,
                strategy="auto" if self.alone else DDPStrategy(timeout=failures.PATIENCE),
                devices=devices if self._asked.index is None else [self._asked.index],
                num_nodes=nodes,
                precision=cast(Any, self.precision),
            )
            self._fabric.launch()
            if not self.alone:
                atexit.register(_leave)
                # Which all of them have to make.
                self._beats = torch.distributed.new_group(backend="gloo", timeout=failures.PATIENCE)
        return self._fabric

    @functools.cached_property
    def device(self) -> torch.device:
        """The device of this process."""
        if not self.alone:
            return self.fabric.device
        return torch.device("cuda", self._asked.index or 0) if self._asked.type == "cuda" else self._asked

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return 0 if self.alone else self.fabric.global_rank

    @property
    def world(self) -> int:
        """The number of processes; 1 while the first one computes for all."""
        return 1 if self.alone or self._first_works else self.fabric.world_size

    def greatest(self, number: Number) -> Number:
        """The greatest `number` of all processes."""
        if self.world == 1:
            return number
        kind = torch.float64 if isinstance(number, float) else torch.int64
        numbers = torch.tensor(number, device=self.device, dtype=kind)
        torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
        return type(number)(numbers)

    def by_first(self, compute: Callable[[], Value]) -> Value:
        """What the first process computes, alone: the others wait, and exchange nothing with it.

        What it raises there ends the others at once: with the same error where it is one of archgrad's, so that all
        go the same way, else with a ResourceError that names it. It may take as long as it likes: the others wait
        while it says that it lives, and raise a ResourceError where it is gone.
        """
        if self.world == 1:
            return compute()
        told: tuple[ArchgradError | str, Any] = ("", None)
        if self.rank == 0:
            self._first_works = True
            try:
                with _beating(self._beats):
                    told = ("", compute())
            except BaseException as error:
                self._first_works = False
                failure = error if isinstance(error, ArchgradError) else full_text(error)
                with contextlib.suppress(RuntimeError):  # of a process that is gone: the error itself says more
                    self.fabric.broadcast((failure, None))
                raise
            finally:
                self._first_works = False
        else:
            _wait_for_first(self._beats)
        failure, value = self.fabric.broadcast(told)
        if isinstance(failure, ArchgradError):
            failure.add_note("It was raised in the first process of this run, which computes this for all.")
            raise failure
        if failure:
            raise ResourceError(
                f"The first process of this run failed at what it does for all: {failure}. See what it printed, and "
                f"start the program again."
            )
        return cast(Value, value)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            self.fabric.barrier()


@contextlib.contextmanager
def _beating(beats: Any) -> Iterator[None]:
    """In the first process: tell the others, while it computes and when it has, from a thread of its own."""
    over = threading.Event()

    def beat() -> None:
        with contextlib.suppress(RuntimeError):  # of a process that is gone: the next exchange says more
            while True:
                done = over.wait(_BEAT_SECONDS)
                torch.distributed.broadcast(torch.tensor(int(done)), 0, group=beats)
                if done:
                    return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _wait_for_first(beats: Any) -> None:
    """In the others: until the first process has computed. Raises ResourceError where it is gone, or says nothing."""
    done = torch.tensor(0)
    try:
        while not done:
            torch.distributed.broadcast(done, 0, group=beats)
    except RuntimeError as error:
        raise ResourceError(failures.explain(error) or f"The first process of this run is gone ({error}).") from error


def seconds_per_call(call: Callable[[], object], *, device: torch.device, repeats: int = 3) -> float:
    """The median time of a call in seconds, after one that is not counted: to measure a training step on a copy."""
    times = []
    for _ in range(repeats + 1):
        _wait_for(device)
        began = time.perf_counter()
        call()
        _wait_for(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _wait_for(device: torch.device) -> None:
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def _leave() -> None:
    """Leave the group of processes before the interpreter ends: threads of gloo that outlive it abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
