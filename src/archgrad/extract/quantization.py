"""int8: an ONNX file quantized by ONNX Runtime, an ExecuTorch program by PT2E; scales from calibration inputs."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import platform
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten, tree_unflatten

from archgrad.copy_and_run import by_name, copied, in_mode
from archgrad.errors import ModelError, one_line
from archgrad.extract.export import traced
from archgrad.extract.onnx_file import Session, named_inputs, require_packages
from archgrad.extract.returned import plain_outputs
from archgrad.extract.runtimes import Executorch, contiguous, executorch_bytes, require, silence
from archgrad.tasks.task import tensors

Feed = Mapping[str, Any]  # arrays by the names of a file's inputs
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Beside layers, what would else have to leave int8 between them.
_BETWEEN = (
    "Relu",
    "Clip",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
    "Reshape",
    "Transpose",
    "Flatten",
)


def prepared(data: bytes) -> bytes:
    """The file with BatchNorm folded and all shapes inferred, as quantization wants it.

    Raises:
        MissingExtra: onnx or onnxruntime is not installed.
        ModelError: ONNX Runtime cannot prepare it.
    """
    require_packages("onnx", "onnxruntime")
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with _places() as (before, after):
        before.write_bytes(data)
        for symbolic in (False, True):  # symbolic shapes need sympy's solver, and fail on some networks
            with contextlib.suppress(Exception):
                quant_pre_process(str(before), str(after), skip_symbolic_shape=not symbolic)
                return after.read_bytes()
    return data


def layers(data: bytes) -> dict[str, str]:
    """Layers with weights: {name of the node: path of the module, where the weight tells it}."""
    import onnx

    graph = onnx.load_from_string(data).graph
    weights = {tensor.name for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        named = [name for name in node.input if name in weights]
        if node.op_type in _LAYERS and named:
            path = next((name.removesuffix(".weight") for name in named if name.endswith(".weight")), node.name)
            found[node.name] = path
    return found


def int8_onnx(data: bytes, inputs: Sequence[tuple[Any, ...]]) -> bytes:
    """An ONNX file in int8, every layer, calibrated by a network's inputs; errors as of `quantize`."""
    names = Session(data).names
    return quantize(prepared(data), [named_inputs(names, part) for part in inputs])


def quantize(
    data: bytes, feeds: Sequence[Feed], *, only: Collection[str] = (), without: Collection[str] = ()
) -> bytes:
    """Static int8 quantization: weights a scale for each channel, activations one each, from the feeds' range.

    On a processor that adds pairs of products in 16 bits weights have 7 bits, so that no pair saturates.

    Args:
        data: of `prepared`.
        feeds: calibration inputs.
        only: nodes to quantize; empty: all layers and what lies between them.
        without: nodes that stay in float.

    Raises:
        ModelError: ONNX Runtime cannot quantize the file; weights or feeds are not finite.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    if names := _nonfinite(pair for feed in feeds for pair in feed.items()):
        raise ModelError(f"the calibration input {names[0]} holds NaN or infinite values: clean the data, or skip it")

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    with _places() as (before, after):
        before.write_bytes(data)
        try:
            quantize_static(
                str(before), str(after), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                op_types_to_quantize=[*_LAYERS, *_BETWEEN, "Add"], nodes_to_quantize=[*only] or None,
                nodes_to_exclude=[*without], activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                reduce_range=_adds_in_16_bits(),
            )  # fmt: skip
        except Exception as error:  # onnxruntime.quantization raises plain exceptions of many kinds
            tensors_of_file = onnx.load_from_string(data).graph.initializer
            names = _nonfinite((one.name, onnx.numpy_helper.to_array(one)) for one in tensors_of_file)
            reason = f"{', '.join(names[:3])}: NaN or infinite. Train the network anew" if names else one_line(error)
            raise ModelError(f"ONNX Runtime cannot quantize the file: {reason}") from error
        return after.read_bytes()


def _nonfinite(named: Iterable[tuple[str, Any]]) -> list[str]:
    """The names of arrays that hold NaN or infinite values."""
    return [name for name, array in named if array.dtype.kind == "f" and not np.isfinite(array).all()]


def _adds_in_16_bits() -> bool:
    """Whether this processor multiplies bytes as x86 without VNNI does; where it does not say so, x86 is taken to."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return not cpuinfo.is_file() or "vnni" not in cpuinfo.read_text(encoding="utf-8")


def int8_program(network: nn.Module, inputs: Sequence[tuple[Any, ...]]) -> bytes:
    """An ExecuTorch program in int8, calibrated by inputs of one shape; errors as of `quantized_program`."""
    plain = contiguous(in_mode(copied(network).cpu()))
    return executorch_bytes(quantized_program(plain, inputs))


def quantized_program(network: nn.Module, feeds: Sequence[tuple[Any, ...]]) -> ExportedProgram:
    """A network quantized for XNNPACK by torchao's PT2E: weights a scale for each channel, activations one each.

    Args:
        network: a plain network in eval mode.
        feeds: calibration inputs, all of one shape, for which the program is.

    Raises:
        MissingExtra: executorch is not installed.
        ModelError: the network cannot be traced or quantized.
    """
    require("executorch")
    with silence():
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
        from torchao.quantization.pt2e import quantize_pt2e

    named = by_name(network, feeds[0]) is not None
    program = traced(network, feeds[0] if len(feeds[0]) > 1 else feeds[0][0]).module()
    config = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True)
    try:
        with silence(), torch.no_grad():
            observed = quantize_pt2e.prepare_pt2e(program, xnnpack_quantizer.XNNPACKQuantizer().set_global(config))
            for feed in feeds:
                observed(**feed[0]) if named else observed(*feed)
            quantized = quantize_pt2e.convert_pt2e(observed)
            given, by_names = ((), dict(feeds[0][0])) if named else (feeds[0], None)
            return torch.export.export(quantized, given, by_names)
    except Exception as error:
        raise ModelError(f"PT2E cannot quantize the network for XNNPACK: {one_line(error)}") from error


@contextlib.contextmanager
def _places() -> Iterator[tuple[Path, Path]]:
    """Two files in a folder of their own, and silence."""
    before = logging.root.manager.disable
    with tempfile.TemporaryDirectory() as folder, silence():
        logging.disable(logging.CRITICAL)
        try:
            yield Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        finally:
            logging.disable(before)


class FileNetwork(nn.Module):
    """An ONNX file or ExecuTorch program in the place of the network that it was made from, to be scored.

    Args:
        data: of the file.
        output: of the network, whose nest the file's outputs are put into.
        batch: the batch size that the file takes, or None for any.
        runtime: "onnx" or "executorch".
    """

    def __init__(self, data: bytes, output: Any, *, batch: int | None = None, runtime: str = "onnx") -> None:
        super().__init__()
        self._session = Session(data) if runtime == "onnx" else Executorch(data)
        self._batch, self._output = batch, output

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The outputs, in the nest of the network's."""
        given: tuple[Any, ...] = (named,) if named else inputs
        parts = [self._session.outputs(part) for part in split(given, self._batch)]
        share = 1.0 if self._batch is None else size_of(given) / (self._batch * len(parts))
        return refilled(self._output, iter(joined(parts, share)))


def refilled(output: Any, values: Iterator[Tensor]) -> Any:
    """A network's output with other tensors, in the order of a file's outputs; data classes field by field.

    Raises:
        ModelError: a data class that cannot be copied, or that holds tensors beside its fields.
    """
    if isinstance(output, Tensor):
        return next(values)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return _refilled_fields(output, values)
    if isinstance(output, MutableMapping):
        made = copy.copy(output)
        made.update({name: refilled(value, values) for name, value in output.items()})
        return made
    leaves, spec = tree_flatten(output)
    if not spec.is_leaf():
        return tree_unflatten([refilled(leaf, values) for leaf in leaves], spec)
    plain = plain_outputs(output)
    return output if plain is output else refilled(plain, values)


def _refilled_fields(output: Any, values: Iterator[Tensor]) -> Any:
    kind, names = type(output).__name__, [field.name for field in dataclasses.fields(output)]
    if more := [
        name for name, value in getattr(output, "__dict__", {}).items() if name not in names and _held(value)
    ]:
        raise ModelError(
            f"the network returns {kind}, which holds tensors in {', '.join(more)} beside its fields, and an ONNX "
            "file gives the fields alone. Make them fields, or return a dict"
        )
    try:
        made = copy.copy(output)
        for name in names:
            value = refilled(getattr(output, name), values)
            try:
                setattr(made, name, value)
            except dataclasses.FrozenInstanceError:
                object.__setattr__(made, name, value)
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"the network returns {kind}, of which no copy is made: {one_line(error)}. Return a dict"
        ) from error
    return made


def _held(value: Any) -> list[Tensor]:
    return tensors(plain_outputs(value))


def size_of(inputs: tuple[Any, ...]) -> int:
    """The number of samples in a network's inputs."""
    return next((len(x) for x in tensors(inputs) if x.dim()), 1)


def split(inputs: tuple[Any, ...], batch: int | None) -> list[tuple[Any, ...]]:
    """Inputs in parts of one batch size; the last is filled up with its own samples."""
    leaves, spec = tree_flatten(inputs)
    size = size_of(inputs)
    if batch is None or batch == size:
        return [inputs]
    parts = []
    for start in range(0, size, batch):
        rows = torch.arange(start, start + batch).clamp(max=size - 1)
        part = [x[rows] if isinstance(x, Tensor) and x.dim() else x for x in leaves]
        parts.append(tree_unflatten(part, spec))
    return parts


def joined(parts: Sequence[Sequence[Tensor]], share: float = 1.0) -> list[Tensor]:
    """The outputs of parts, one behind the other; of their rows the first `share`, without what filled them up."""
    whole = [torch.cat(list(same)) if len(parts) > 1 else same[0] for same in zip(*parts, strict=True)]
    return [x[: round(len(x) * share)] if x.dim() else x for x in whole]
