"""Latency: one forward pass, timed on this machine, in PyTorch or in ONNX Runtime.

A timing is a median with its 10th and 90th percentile, since single timings on a shared machine say little. Networks
that are to be compared are timed in turns (A B A B ...), so that a busy moment of the machine slows all of them.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.modules import Choice
from archgrad.copy_and_run import by_name, call, copied, modes_kept, run_on_example, shapes
from archgrad.costs.limits import Limit, WithoutGradient
from archgrad.errors import ConfigError, ModelError, one_line
from archgrad.extract.export import encode_onnx
from archgrad.extract.onnx_file import Session
from archgrad.tasks.task import Inputs, arguments, mapped

Runtime = Literal["eager", "onnx"]
_NOISY = 0.5


@dataclass(frozen=True)
class Timing:
    """How long one forward pass took: median, 10th and 90th percentile over `repeats`, in milliseconds."""

    median_ms: float
    low_ms: float
    high_ms: float
    repeats: int
    runtime: Runtime
    device: str
    threads: int

    @property
    def spread(self) -> float:
        """`(high - low) / median`."""
        return (self.high_ms - self.low_ms) / self.median_ms

    @property
    def noisy(self) -> bool:
        """Whether the spread is above one half: the machine was busy, so measure again when it is not."""
        return self.spread > _NOISY


@checked
@dataclass(frozen=True, repr=False, eq=False)
class Latency(WithoutGradient):
    """The median time of one forward pass, measured anew each time, as a cost in milliseconds.

    A copy of the network is timed in eval mode. A network with choices (held, or inside `using`) is timed in place
    in eager mode, where its parameters are on the device: a supernet takes longer to copy than to run.

    Few `repeats` and `warmup` passes keep a search cheap. Runtime "onnx" exports each network first, which takes
    seconds, and times the bytes that `archgrad.export_onnx` writes.

    Args:
        x: input of the network, [B, ...], or a tuple or dict of such; this batch size is timed.
        device: where it runs; None: where each network's parameters are.
        runtime: "eager" (PyTorch) or "onnx" (ONNX Runtime, on the CPU).
        repeats: passes that are timed.
        warmup: passes before them.
        threads: CPU threads of one pass; torch's own setting is put back.

    Raises:
        ConfigError: a device that is not here; an unknown runtime; "onnx" on a device other than the CPU; repeats or
            threads below 1; warmup below 0.

    Example:
        >>> import torch, archgrad as ag
        >>> cost = ag.latency(torch.zeros(1, 64), repeats=3, warmup=1)
        >>> cost.of(torch.nn.Linear(64, 64)) > 0
        True
        >>> cost.at_most(ms=4.0)
        Limit(latency at most 4 ms)
    """

    x: Inputs
    device: str | torch.device | None = field(default="cpu", kw_only=True)
    runtime: Runtime = field(default="eager", kw_only=True)
    repeats: int = field(default=50, kw_only=True)
    warmup: int = field(default=10, kw_only=True)
    threads: int = field(default=1, kw_only=True)
    name: ClassVar[str] = "latency"
    unit: ClassVar[str] = "ms"
    measured: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(repeats=self.repeats, warmup=self.warmup, threads=self.threads)
        if self.device is not None:
            object.__setattr__(self, "device", _present(self.device, self.runtime))

    def __repr__(self) -> str:
        return f"latency({self.device or 'where the network is'}, {self.runtime}, example {shapes(self.x)})"

    def of(self, network: nn.Module) -> float:
        """The median of a fresh measurement, in milliseconds."""
        return self.timing(network).median_ms

    def timing(self, network: nn.Module) -> Timing:
        """A fresh measurement with its spread; errors as of `timings`."""
        return self.timings({"network": network})["network"]

    def timings(self, networks: Mapping[str, nn.Module]) -> dict[str, Timing]:
        """Time several networks in turns (A B A B ...), so that the ratio of two medians is fair.

        Raises:
            ModelError: a network does not run on the example, or cannot be exported.
            MissingExtra: "onnx" without onnx, onnxscript or onnxruntime.
        """
        passes, devices = [], []
        with contextlib.ExitStack() as stack:
            for network in networks.values():
                device = torch.device("cpu" if self.runtime == "onnx" else self.device or _device_of(network))
                inputs = arguments(_moved(self.x, device))
                if self.runtime == "onnx":
                    passes.append(_onnx_pass(encode_onnx(network, self.x).data, inputs, self.threads))
                else:
                    passes.append(_eager_pass(stack.enter_context(_ready(network, inputs, device)), inputs, device))
                devices.append(str(device))
            stack.enter_context(_threads(self.threads))
            rows = _in_turns(passes, repeats=self.repeats, warmup=self.warmup)
        return {
            name: _timing(row, runtime=self.runtime, device=device, threads=self.threads)
            for name, row, device in zip(networks, rows, devices, strict=True)
        }

    def at_most(self, *, ms: float | None = None, fraction: float | None = None) -> Limit:
        """A limit of `ms` milliseconds, or of a fraction of what the unchanged network takes.

        Raises:
            LimitError: both or neither is given; `ms` not above 0; a fraction outside (0, 1].
        """
        return Limit(self, bound=ms, fraction=fraction)


latency = Latency


def measure_onnx(
    path: str | Path, example: Inputs, *, repeats: int = 50, warmup: int = 10, threads: int = 1
) -> Timing:
    """Time an ONNX file in ONNX Runtime on the CPU: the file that ships, as it is.

    `example` is the input, or a tuple of inputs in the file's order, each `[B, ...]`.

    Raises:
        ConfigError: repeats or threads below 1; warmup below 0.
        ModelError: the file cannot be read as ONNX, or does not run on the example.
        MissingExtra: onnxruntime is not installed.
    """
    _check(repeats=repeats, warmup=warmup, threads=threads)
    if not Path(path).is_file():
        raise ModelError(f"{path} is no file. Give an ONNX file, such as export_onnx writes")
    inputs = arguments(_moved(example, torch.device("cpu")))
    rows = _in_turns([_onnx_pass(Path(path).read_bytes(), inputs, threads)], repeats=repeats, warmup=warmup)
    return _timing(rows[0], runtime="onnx", device="cpu", threads=threads)


def _check(*, repeats: int, warmup: int, threads: int) -> None:
    for name, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0), ("threads", threads, 1)):
        if value < least:
            raise ConfigError(f"{name}={value}: give a whole number of at least {least}")


def _present(device: str | torch.device, runtime: Runtime) -> torch.device:
    try:
        present = torch.device(device)
        torch.empty(0, device=present)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={str(device)!r} cannot be used here ({one_line(error)}). Give a device that PyTorch "
            f'sees on this machine, such as "cpu"'
        ) from error
    if runtime == "onnx" and present.type != "cpu":
        raise ConfigError(
            f'runtime="onnx" on device={str(device)!r}: ONNX Runtime is timed on the CPU. Give device="cpu", '
            f'or runtime="eager"'
        )
    return present


def _moved(example: Inputs, device: torch.device) -> Inputs:
    return mapped(lambda x: x.detach().to(device), example)


def _device_of(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def _ready(network: nn.Module, inputs: tuple[Tensor, ...], device: torch.device) -> Iterator[nn.Module]:
    """The network in eval mode on the device, once it has run: a copy, or a space itself, put back afterwards."""
    devices = {tensor.device for tensor in itertools.chain(network.parameters(), network.buffers())}
    in_place = _has_choices(network) and devices == {torch.empty(0, device=device).device}
    ready = network if in_place else copied(network).to(device)
    with modes_kept(ready):
        ready.eval()
        with _without_gradient(ready):
            run_on_example(ready, inputs)
        yield ready


def _has_choices(network: nn.Module) -> bool:
    return any(isinstance(module, Choice) for module in network.modules())


def _without_gradient(network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inference mode, unless it is a space itself: what its modules might cache has to stay fit for training."""
    return torch.no_grad() if _has_choices(network) else torch.inference_mode()


def _eager_pass(ready: nn.Module, inputs: tuple[Tensor, ...], device: torch.device) -> Callable[[], object]:
    no_gradient, named = _without_gradient(ready), by_name(ready, inputs) is not None

    def run() -> object:
        with no_gradient:
            result = call(ready, inputs) if named else ready(*inputs)
        if device.type != "cpu":
            # Kernels are only queued by then.
            torch.accelerator.synchronize(device)
        return result

    return run


def _onnx_pass(data: bytes, inputs: tuple[Tensor, ...], threads: int) -> Callable[[], object]:
    try:
        session = Session(data, threads=threads)
        feed = session.prepare(inputs)
        session.run(feed)
    except RuntimeError as error:
        raise ModelError(
            f"the ONNX network does not run on the example: {one_line(error)}. Give the tensors that it "
            f"takes, in order, with the batch size that it was exported for"
        ) from error
    return lambda: session.run(feed)


def _in_turns(passes: list[Callable[[], object]], *, repeats: int, warmup: int) -> list[list[float]]:
    rows: list[list[float]] = [[] for _ in passes]
    for turn in range(warmup + repeats):
        for run, row in zip(passes, rows, strict=True):
            start = time.perf_counter_ns()
            run()
            nanoseconds = time.perf_counter_ns() - start
            if turn >= warmup:
                row.append(nanoseconds / 1e6)
    return rows


def _timing(row: list[float], *, runtime: Runtime, device: str, threads: int) -> Timing:
    low, median, high = (float(value) for value in np.percentile(row, (10, 50, 90)))
    return Timing(
        median_ms=median,
        low_ms=low,
        high_ms=high,
        repeats=len(row),
        runtime=runtime,
        device=device,
        threads=threads,
    )


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
