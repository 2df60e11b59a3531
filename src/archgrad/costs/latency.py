"""Latency: one forward pass, timed on this machine, in PyTorch or in a runtime that ships networks.

A timing is a median with its 10th and 90th percentile, since single timings on a shared machine say little. Networks
that are to be compared are timed in turns (A B A B ...), so that a busy moment of the machine slows all of them.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices.modules import Choice
from archgrad.copy_and_run import by_name, copied, modes_kept, run_on_example, shapes
from archgrad.costs.limits import Limit, WithoutGradient, one_bound
from archgrad.errors import ConfigError, ModelError, one_line
from archgrad.extract import runtimes
from archgrad.extract.export import encode_executorch, encode_onnx
from archgrad.extract.export_trials import with_batch
from archgrad.extract.quantization import int8_onnx, int8_program
from archgrad.extract.runtimes import Runtime
from archgrad.tasks.task import Inputs, arguments, mapped

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

    Few `repeats` and `warmup` passes keep a search cheap. Where the runtime takes a file, each network is exported
    first, which takes seconds, and the bytes are timed that `archgrad.export_onnx` writes. Name the runtime that you
    ship: the order of two networks can differ between runtimes. With `dtype="int8"` they are quantized first, with
    scales from x alone, on which time does not depend; accuracy in int8 is what `Found.export(int8=True)` measures.

    Args:
        x: input of the network, [B, ...], or a tuple or dict of such.
        device: where it runs; None: where each network's parameters are.
        runtime: "eager" (PyTorch), "compile" (`torch.compile`), or on the CPU "onnx" (ONNX Runtime), "openvino" (the
            same file in OpenVINO, in float32) or "executorch" (with XNNPACK).
        repeats: passes that are timed.
        warmup: passes before them.
        threads: CPU threads of one pass; torch's own setting is put back.
        batch: samples of one pass, those of x repeated or left out; None: as many as x has.
        dtype: "float32", as the network is, or "int8", as its quantized file is; the latter takes a runtime of files.

    Raises:
        ConfigError: a device that is not here; an unknown runtime; a file's runtime on a device other than the CPU;
            int8 in a runtime that takes no file; repeats, threads or batch below 1; warmup below 0.
        MissingExtra: a package of the runtime is not installed.

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
    batch: int | None = field(default=None, kw_only=True)
    dtype: Literal["float32", "int8"] = field(default="float32", kw_only=True)
    unit: ClassVar[str] = "ms"
    measured: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_protocol(repeats=self.repeats, warmup=self.warmup, threads=self.threads, batch=self.batch)
        runtimes.require(self.runtime)
        if self.dtype == "int8" and self.runtime not in runtimes.NEEDS:
            raise ConfigError(
                f'dtype="int8" with runtime="{self.runtime}": networks are quantized as files. Give runtime= one of '
                f"{', '.join(runtimes.NEEDS)}"
            )
        if self.device is not None:
            object.__setattr__(self, "device", _present(self.device, self.runtime))

    def __repr__(self) -> str:
        runtime = f"{self.runtime} in int8" if self.dtype == "int8" else self.runtime
        return f"latency({self.device or 'where the network is'}, {runtime}, example {shapes(self.x)})"

    @property
    def name(self) -> str:
        """What records call it: "latency", with its runtime where that is not eager PyTorch, and with int8."""
        name = "latency" if self.runtime == "eager" else f"{self.runtime} latency"
        return f"int8 {name}" if self.dtype == "int8" else name

    @checked
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
        """
        passes, devices = [], []
        with contextlib.ExitStack() as stack:
            for network in networks.values():
                of_file = self.runtime in runtimes.NEEDS
                device = torch.device("cpu" if of_file else self.device or _device_of(network))
                inputs = arguments(_moved(self.x, device))
                inputs = with_batch(inputs, self.batch) if self.batch else inputs
                if of_file:
                    data = encoded_file(network, inputs, runtime=self.runtime, dtype=self.dtype)
                    passes.append(file_pass(data, self.runtime, inputs, self.threads))
                else:
                    ready = stack.enter_context(_ready(network, inputs, device))
                    passes.append(_torch_pass(ready, inputs, device, compiled=self.runtime == "compile"))
                devices.append(str(device))
            rows = in_turns(passes, repeats=self.repeats, warmup=self.warmup, threads=self.threads)
        return {
            name: timing(row, runtime=self.runtime, device=device, threads=self.threads)
            for name, row, device in zip(networks, rows, devices, strict=True)
        }

    def at_most(self, bound: float | None = None, *, ms: float | None = None, fraction: float | None = None) -> Limit:
        """A limit of `ms` milliseconds, which may stand alone, or of a fraction of what the unchanged network takes.

        Raises:
            LimitError: not exactly one is given; a bound not above 0; a fraction outside (0, 1].
        """
        return Limit(self, bound=one_bound(self.name, {"bound": bound, "ms": ms}), fraction=fraction)


latency = Latency


def encoded_file(network: nn.Module, inputs: tuple[Any, ...], *, runtime: str, dtype: str) -> bytes:
    """The bytes that a runtime takes; in int8 with scales from these inputs. Raises ModelError."""
    example = inputs if len(inputs) > 1 else inputs[0]
    if runtime == "executorch":
        return int8_program(network, [inputs]) if dtype == "int8" else encode_executorch(network, example).data
    data = encode_onnx(network, example).data
    return int8_onnx(data, [inputs]) if dtype == "int8" else data


def check_protocol(*, repeats: int, warmup: int, threads: int, batch: int | None) -> None:
    """Raise ConfigError for numbers that nothing can be timed by."""
    least = {"repeats": (repeats, 1), "warmup": (warmup, 0), "threads": (threads, 1), "batch": (batch, 1)}
    for name, (value, bound) in least.items():
        if value is not None and value < bound:
            raise ConfigError(f"{name}={value}: give a whole number of at least {bound}")


def _present(device: str | torch.device, runtime: Runtime) -> torch.device:
    try:
        present = torch.device(device)
        torch.empty(0, device=present)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={str(device)!r} cannot be used here ({one_line(error)}). Give a device that PyTorch "
            f'sees on this machine, such as "cpu"'
        ) from error
    if runtime in runtimes.NEEDS and present.type != "cpu":
        raise ConfigError(
            f'runtime="{runtime}" on device={str(device)!r}: this runtime is timed on the CPU. Give device="cpu", '
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


def _torch_pass(
    ready: nn.Module, inputs: tuple[Tensor, ...], device: torch.device, *, compiled: bool
) -> Callable[[], object]:
    no_gradient, named = _without_gradient(ready), by_name(ready, inputs) is not None
    network: Callable[..., object] = ready
    if compiled:
        with runtimes.silence():
            network = torch.compile(ready)

    def run() -> object:
        with no_gradient:
            result = network(**inputs[0]) if named else network(*inputs)  # type: ignore[arg-type]
        if device.type != "cpu":
            # Kernels are only queued by then.
            torch.accelerator.synchronize(device)
        return result

    if compiled:
        try:
            with runtimes.silence():
                run()
        except Exception as error:  # the compiler's errors share no base
            raise ModelError(
                f"{type(ready).__name__} cannot be compiled by torch.compile: {one_line(error)}. It needs a C++ "
                f'compiler on the CPU; time runtime="eager", or the runtime that you ship'
            ) from error
    return run


def file_pass(data: bytes | Path, runtime: str, inputs: tuple[Any, ...], threads: int) -> Callable[[], object]:
    """One pass of a file, its bytes or its path, in its runtime.

    Raises:
        ModelError: they do not run there on these inputs.
    """
    try:
        network = runtimes.loaded(data, runtime, inputs, threads=threads)
        feed = network.prepare(inputs)
        network.run(feed)
    except RuntimeError as error:
        raise ModelError(
            f"the {runtime} network does not run on the example of {shapes(inputs)}: {one_line(error)}. Give the "
            f"tensors that it takes, in order, with the batch size that it was exported for"
        ) from error
    return lambda: network.run(feed)


def in_turns(passes: Sequence[Callable[[], object]], *, repeats: int, warmup: int, threads: int) -> list[list[float]]:
    """Milliseconds of each of `repeats` passes, run in turns, after `warmup` of each."""
    rows: list[list[float]] = [[] for _ in passes]
    with _threads(threads):
        for turn in range(warmup + repeats):
            for run, row in zip(passes, rows, strict=True):
                start = time.perf_counter_ns()
                run()
                nanoseconds = time.perf_counter_ns() - start
                if turn >= warmup:
                    row.append(nanoseconds / 1e6)
    return rows


def timing(row: Sequence[float], *, runtime: Runtime, device: str, threads: int) -> Timing:
    """The summary of passes."""
    low, median, high = (float(value) for value in np.percentile(row, (10, 50, 90)))
    return Timing(
        median_ms=median, low_ms=low, high_ms=high, repeats=len(row), runtime=runtime, device=device, threads=threads
    )  # fmt: skip


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
