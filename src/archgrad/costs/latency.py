"""Latency: one forward pass, timed on this machine, in PyTorch or in ONNX Runtime.

A median with its 10th and 90th percentile, since single timings on a shared machine say little. Networks
that are to be compared are timed in turns (A B A B ...), so that a slow moment of the machine strikes all.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import itertools
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from archgrad.choices.modules import Choice
from archgrad.costs.limits import Limit, refuse_gradient, shapes
from archgrad.errors import ConfigError, MissingExtra, ModelError, one_line
from archgrad.tasks.task import Inputs, arguments, mapped, tensors

Runtime = Literal["eager", "onnx"]
_NOISY = 0.5
_FAULTS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError)


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


def measure(
    network: nn.Module,
    example: Inputs,
    *,
    device: str | torch.device | None = None,
    runtime: Runtime = "eager",
    repeats: int = 50,
    warmup: int = 10,
    threads: int = 1,
) -> Timing:
    """Times a copy of the network in evaluation mode; the network itself is not changed.

    A network with choices (held, or inside `using`) is timed in place in eager mode, where its parameters are on
    the device, and its modes are put back: a supernet takes longer to copy than to run.

    `example` is the input, or a tuple of inputs, each `[B, ...]`; its batch size is the one that is timed.
    It runs on `device`, or where the network's parameters are. "onnx" exports the copy and times it in ONNX
    Runtime, on the CPU. `threads` are the CPU threads of one forward pass; torch's own setting is put
    back afterwards.

    Raises:
        ConfigError: an unknown runtime; a device that is not here; "onnx" on a device other than the CPU;
            repeats or threads below 1; warmup below 0.
        ModelError: the network does not run on the example, or cannot be exported.
        MissingExtra: "onnx" without onnx, onnxscript or onnxruntime.
    """
    timings = compare(
        {"network": network},
        example,
        device=device,
        runtime=runtime,
        repeats=repeats,
        warmup=warmup,
        threads=threads,
    )
    return timings["network"]


def compare(
    networks: Mapping[str, nn.Module],
    example: Inputs,
    *,
    device: str | torch.device | None = None,
    runtime: Runtime = "eager",
    repeats: int = 50,
    warmup: int = 10,
    threads: int = 1,
) -> dict[str, Timing]:
    """Times several networks in turns (A B A B ...), so that the ratio of two medians is fair.

    Arguments and errors as in `measure`.
    """
    _check(runtime, repeats=repeats, warmup=warmup, threads=threads)
    wanted = None if device is None else _present(device, runtime)
    passes, devices = [], []
    with contextlib.ExitStack() as stack:
        for network in networks.values():
            place = wanted or (torch.device("cpu") if runtime == "onnx" else _device_of(network))
            inputs = arguments(_moved(example, place))
            ready = stack.enter_context(_ready(network, inputs, place, copied=runtime == "onnx"))
            if runtime == "onnx":
                passes.append(_onnx_pass(_onnx_bytes(ready, inputs), inputs, threads))
            else:
                passes.append(_eager_pass(ready, inputs, place))
            devices.append(str(place))
        stack.enter_context(_threads(threads))
        rows = _in_turns(passes, repeats=repeats, warmup=warmup)
    return {
        name: _timing(row, runtime=runtime, device=place, threads=threads)
        for name, row, place in zip(networks, rows, devices, strict=True)
    }


def measure_onnx(
    path: str | Path,
    example: Inputs,
    *,
    repeats: int = 50,
    warmup: int = 10,
    threads: int = 1,
) -> Timing:
    """Times an ONNX file in ONNX Runtime on the CPU: the file that ships, as it is.

    `example` is the input, or a tuple of inputs in the file's order, each `[B, ...]`.

    Raises:
        ConfigError: repeats or threads below 1; warmup below 0.
        ModelError: the file cannot be read as ONNX, or does not run on the example.
        MissingExtra: onnxruntime is not installed.
    """
    _check("onnx", repeats=repeats, warmup=warmup, threads=threads)
    if not Path(path).is_file():
        raise ModelError(f"{path} is no file. Give an ONNX file, such as export_onnx writes")
    inputs = arguments(_moved(example, torch.device("cpu")))
    rows = _in_turns([_onnx_pass(Path(path).read_bytes(), inputs, threads)], repeats=repeats, warmup=warmup)
    return _timing(rows[0], runtime="onnx", device="cpu", threads=threads)


def latency(
    x: Inputs,
    *,
    device: str | torch.device = "cpu",
    runtime: Runtime = "eager",
    repeats: int = 50,
    warmup: int = 10,
    threads: int = 1,
) -> Latency:
    """The time of one forward pass on input `x`, `[B, ...]` or a tuple of such, as a cost in milliseconds.

    Few `repeats` and `warmup` passes keep a search cheap; "onnx" exports each network first, which takes seconds.

    Raises:
        ConfigError: a device that is not here; an unknown runtime; "onnx" on a device other than the CPU;
            repeats or threads below 1; warmup below 0.
    """
    return Latency(x, device=device, runtime=runtime, repeats=repeats, warmup=warmup, threads=threads)


class Latency:
    """The median time of one forward pass: measured anew each time, so without a gradient."""

    name: str = "latency"
    unit: str = "ms"
    measured: bool = True

    def __init__(
        self,
        x: Inputs,
        *,
        device: str | torch.device = "cpu",
        runtime: Runtime = "eager",
        repeats: int = 50,
        warmup: int = 10,
        threads: int = 1,
    ) -> None:
        _check(runtime, repeats=repeats, warmup=warmup, threads=threads)
        self.x = x
        self.device = _present(device, runtime)
        self.runtime: Runtime = runtime
        self.repeats = repeats
        self.warmup = warmup
        self.threads = threads

    def __repr__(self) -> str:
        return f"latency({self.device}, {self.runtime}, example {shapes(self.x)})"

    def timing(self, network: nn.Module) -> Timing:
        """A fresh measurement of a copy of the network on this cost's device, with its spread."""
        return measure(
            network,
            self.x,
            device=self.device,
            runtime=self.runtime,
            repeats=self.repeats,
            warmup=self.warmup,
            threads=self.threads,
        )

    def of(self, network: nn.Module) -> float:
        """The median of a fresh measurement, in milliseconds."""
        return self.timing(network).median_ms

    def expected(self, space: nn.Module) -> NoReturn:
        """Raises LimitError: what is read off a clock has no gradient with respect to the mixing weights."""
        refuse_gradient(self, space)

    def at_most(self, *, ms: float | None = None, fraction: float | None = None) -> Limit:
        """A limit of `ms` milliseconds, or of a fraction of what the unchanged network takes.

        Raises:
            LimitError: both or neither is given; `ms` not above 0; a fraction outside (0, 1].
        """
        return Limit(self, bound=ms, fraction=fraction)


def _check(runtime: str, *, repeats: int, warmup: int, threads: int) -> None:
    if runtime not in ("eager", "onnx"):
        raise ConfigError(f'runtime={runtime!r} is unknown. Give "eager" (PyTorch) or "onnx" (ONNX Runtime)')
    for name, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0), ("threads", threads, 1)):
        if value < least:
            raise ConfigError(f"{name}={value}: give a whole number of at least {least}")


def _present(device: str | torch.device, runtime: Runtime) -> torch.device:
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={str(device)!r} cannot be used here ({one_line(error)}). Give a device that PyTorch "
            f'sees on this machine, such as "cpu"'
        ) from error
    if runtime == "onnx" and wanted.type != "cpu":
        raise ConfigError(
            f'runtime="onnx" on device={str(device)!r}: ONNX Runtime is timed on the CPU. Give device="cpu", '
            f'or runtime="eager"'
        )
    return wanted


def _moved(example: Inputs, device: torch.device) -> Inputs:
    return mapped(lambda x: x.detach().to(device), example)


def _device_of(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def _ready(
    network: nn.Module, inputs: tuple[Tensor, ...], device: torch.device, *, copied: bool
) -> Iterator[nn.Module]:
    """The network in evaluation mode on the device, once it has run: a copy, or a space itself for a while."""
    here = {tensor.device for tensor in itertools.chain(network.parameters(), network.buffers())}
    copied = copied or not _has_choices(network) or here != {torch.empty(0, device=device).device}
    modes = {} if copied else {module: module.training for module in network.modules()}
    try:
        try:
            ready = (copy.deepcopy(network).to(device) if copied else network).eval()
            with _without_gradient(ready):
                ready(*inputs)
        except _FAULTS as error:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors(inputs))
            raise ModelError(
                f"{type(network).__name__} does not run on the example of {shapes}: {one_line(error)}. Give the "
                f"tensors that its forward takes, as one tensor, a tuple in order, or a dict"
            ) from error
        yield ready
    finally:
        for module, mode in modes.items():
            module.training = mode


def _has_choices(network: nn.Module) -> bool:
    return any(isinstance(module, Choice) for module in network.modules())


def _without_gradient(network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inference mode, unless it is a space itself: what its modules might cache has to stay fit for training."""
    return torch.no_grad() if _has_choices(network) else torch.inference_mode()


def _eager_pass(ready: nn.Module, inputs: tuple[Tensor, ...], device: torch.device) -> Callable[[], object]:
    quiet = _without_gradient(ready)

    def once() -> object:
        with quiet:
            result = ready(*inputs)
        if device.type != "cpu":
            # Kernels are only queued by then.
            torch.accelerator.synchronize(device)
        return result

    return once


def _onnx_bytes(plain: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "export")
    logger = logging.getLogger("torch")
    level = logger.level
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            # The exporter's reports on its own work; failures arrive as exceptions.
            warnings.simplefilter("ignore")
            logger.setLevel(logging.CRITICAL + 1)
            program = torch.export.export(plain, inputs, strict=False)
            exported = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
            assert exported is not None
            data: bytes = exported.model_proto.SerializeToString()
    except _FAULTS as error:
        raise ModelError(
            f"{type(plain).__name__} cannot be exported to ONNX for timing: {one_line(error)}. Rewrite that "
            f'part, or time it with runtime="eager"'
        ) from error
    finally:
        logger.setLevel(level)
    return data


def _onnx_pass(data: bytes, inputs: tuple[Tensor, ...], threads: int) -> Callable[[], object]:
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtra("onnxruntime", "export")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # ONNX Runtime's errors share no base but Exception.
    faults = (ort.Fail, ort.InvalidArgument, ort.InvalidGraph, ort.InvalidProtobuf, ort.NotImplemented)
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        names = [slot.name for slot in session.get_inputs()]
        feed = {name: tensor.numpy() for name, tensor in zip(names, tensors(inputs), strict=True)}
        session.run(None, feed)
    except (*faults, ort.RuntimeException, ValueError, TypeError) as error:
        raise ModelError(
            f"the ONNX network does not run on the example: {one_line(error)}. Give the tensors that it "
            f"takes, in order, with the batch size that it was exported for"
        ) from error
    return lambda: session.run(None, feed)


def _in_turns(passes: list[Callable[[], object]], *, repeats: int, warmup: int) -> list[list[float]]:
    rows: list[list[float]] = [[] for _ in passes]
    for turn in range(warmup + repeats):
        for once, row in zip(passes, rows, strict=True):
            start = time.perf_counter_ns()
            once()
            taken = time.perf_counter_ns() - start
            if turn >= warmup:
                row.append(taken / 1e6)
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
