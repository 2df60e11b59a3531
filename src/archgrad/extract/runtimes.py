"""The runtimes that ship networks: what each needs, and one forward pass in each."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from archgrad.errors import ConfigError, MissingExtra
from archgrad.extract.onnx_file import PACKAGES, Session, named_inputs
from archgrad.tasks.task import tensors

Runtime = Literal["eager", "compile", "onnx", "openvino", "executorch"]
# What each needs beyond PyTorch, and the extra that brings it.
NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "onnx": (PACKAGES, "export"),
    "openvino": ((*PACKAGES, "openvino"), "openvino"),
    "executorch": (("executorch",), "executorch"),
}
_SCALARS = {
    0: torch.uint8, 1: torch.int8, 3: torch.int32, 4: torch.int64, 5: torch.float16, 7: torch.float64, 11: torch.bool,
}  # fmt: skip
FILES: dict[str, str] = {".onnx": "onnx", ".pte": "executorch"}  # a file's ending, and its runtime


def kind_of_file(path: Path, given: str) -> str:
    """The runtime of a file that is to be written, by its ending.

    Raises:
        ConfigError: the ending is none that is known; the message begins with what was given.
    """
    kind = FILES.get(path.suffix)
    if kind is None:
        ending = f"ends in {path.suffix!r}" if path.suffix else "has no ending"
        program = "; archgrad.export_program writes a torch.export program" if path.suffix == ".pt2" else ""
        raise ConfigError(
            f"{given} {ending}: give .onnx for an ONNX file, or .pte for an ExecuTorch program{program}"
        )
    return kind


class Loaded(Protocol):
    """A file's bytes in a runtime."""

    def prepare(self, inputs: object) -> Any:
        """What `run` takes, from a nest of tensors."""
        ...

    def run(self, feed: Any) -> Sequence[Any]:
        """The outputs."""
        ...


def require(runtime: str, *, to_export: bool = True) -> None:
    """Raise MissingExtra where a package of the runtime is not installed; with `to_export`, also one to export."""
    packages, extra = NEEDS.get(runtime, ((), ""))
    for package in packages:
        needed = to_export or package not in ("onnx", "onnxscript")
        if needed and importlib.util.find_spec(package) is None:
            raise MissingExtra(package, extra)


def loaded(data: bytes | Path, runtime: str, inputs: tuple[Any, ...], *, threads: int) -> Loaded:
    """A file, its bytes or its path, in its runtime, ready to run on these inputs.

    Raises:
        RuntimeError: the bytes are no network that the runtime runs.
    """
    if runtime == "onnx":
        return Session(data, threads=threads)
    return OpenVino(data, inputs, threads=threads) if runtime == "openvino" else Executorch(data, threads=threads)


class OpenVino:
    """An ONNX file in OpenVINO on the CPU, in float32, for inputs of given shapes."""

    def __init__(self, data: bytes | Path, inputs: tuple[Any, ...], *, threads: int) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(data)
        self._names = [slot.any_name for slot in model.inputs]
        feed = named_inputs(self._names, inputs)
        model.reshape({name: list(array.shape) for name, array in feed.items()})
        properties = {
            "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
        }  # fmt: skip
        self._request = core.compile_model(model, "CPU", properties).create_infer_request()

    def prepare(self, inputs: object) -> Any:
        """Arrays by the names of the file's inputs."""
        return named_inputs(self._names, inputs)

    def run(self, feed: Any) -> list[Any]:
        """The outputs as arrays."""
        return list(self._request.infer(feed).values())


class Executorch:
    """An ExecuTorch program on the CPU."""

    def __init__(self, data: bytes | Path, *, threads: int | None = None) -> None:
        require("executorch")
        with silence():
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime as Executor

            if threads is not None:  # one pool of threads for the process
                portable_lib._unsafe_reset_threadpool(threads)
            content = data.read_bytes() if isinstance(data, Path) else data
            self._program = Executor.get().load_program(content)  # the method needs it alive
            self._method = self._program.load_method("forward")

    def slots(self) -> list[tuple[list[int | None], torch.dtype]]:
        """Shape and type of each input."""
        metas = [self._method.metadata.input_tensor_meta(i) for i in range(self._method.metadata.num_inputs())]
        return [([*meta.sizes()], _SCALARS.get(meta.dtype(), torch.float32)) for meta in metas]

    def prepare(self, inputs: object) -> list[Tensor]:
        """The tensors in order."""
        return [leaf.detach().cpu().contiguous() for leaf in tensors(inputs)]

    def run(self, feed: list[Tensor]) -> list[Any]:
        """The outputs as tensors, whose memory the next run writes anew."""
        return list(self._method.execute(feed))

    def outputs(self, inputs: object) -> list[Tensor]:
        """What it computes from the network's inputs."""
        return [output.clone() for output in self.run(self.prepare(inputs))]


def contiguous(network: nn.Module) -> nn.Module:
    """The network itself, its weights in the usual layout: XNNPACK's passes fail on weights in channels_last."""
    return network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


def executorch_bytes(program: ExportedProgram) -> bytes:
    """The bytes of an ExecuTorch program, in XNNPACK where that knows the operators."""
    require("executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with silence():
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        return bytes(lowered.to_executorch().buffer)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Swallow what exporters and runtimes print: by print, by warnings, by a log handler that holds stderr."""
    logger = logging.getLogger("torch")
    level = logger.level
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)
