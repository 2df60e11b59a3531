"""int8: an ONNX file quantized by ONNX Runtime, with scales from calibration inputs."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from archgrad.errors import ModelError, one_line
from archgrad.extract.onnx_file import Session, require_packages
from archgrad.extract.runtimes import silence

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


def quantize(
    data: bytes, feeds: Sequence[Feed], *, only: Collection[str] = (), without: Collection[str] = ()
) -> bytes:
    """Static int8 quantization: weights a scale for each channel, activations one each, from the feeds' range.

    Args:
        data: of `prepared`.
        feeds: calibration inputs.
        only: nodes to quantize; empty: all layers and what lies between them.
        without: nodes that stay in float.

    Raises:
        ModelError: ONNX Runtime cannot quantize the file.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

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
            )  # fmt: skip
        except Exception as error:  # onnxruntime.quantization raises plain exceptions of many kinds
            raise ModelError(f"ONNX Runtime cannot quantize the file: {one_line(error)}") from error
        return after.read_bytes()


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


class OnnxNetwork(nn.Module):
    """An ONNX file in the place of the network that it was made from, for whatever scores networks.

    Args:
        data: of the file.
        output: of the network, whose nest the file's outputs are put into.
        batch: the batch size that the file takes, or None for any.
    """

    def __init__(self, data: bytes, output: Any, *, batch: int | None = None) -> None:
        super().__init__()
        self._session, self._batch = Session(data), batch
        self._leaves, self._spec = tree_flatten(output)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The outputs, in the nest of the network's."""
        given: tuple[Any, ...] = (named,) if named else inputs
        values = iter(joined([self._session.outputs(part) for part in split(given, self._batch)]))
        return tree_unflatten([next(values) if isinstance(x, Tensor) else x for x in self._leaves], self._spec)


def split(inputs: tuple[Any, ...], batch: int | None) -> list[tuple[Any, ...]]:
    """Inputs in parts of one batch size; the last is filled up with its own samples."""
    leaves, spec = tree_flatten(inputs)
    size = next((len(x) for x in leaves if isinstance(x, Tensor) and x.dim()), 1)
    if batch is None or batch == size:
        return [inputs]
    parts = []
    for start in range(0, size, batch):
        rows = torch.arange(start, start + batch).clamp(max=size - 1)
        part = [x[rows] if isinstance(x, Tensor) and x.dim() else x for x in leaves]
        parts.append(tree_unflatten(part, spec))
    return parts


def joined(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The outputs of parts, one behind the other."""
    return [torch.cat(list(same)) if len(parts) > 1 else same[0] for same in zip(*parts, strict=True)]
