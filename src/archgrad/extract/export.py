"""A plain network as a file that runs without archgrad: ONNX, or a torch.export program.

What is written is checked first: the file's bytes are loaded and run beside the network, on the example and
on other batch sizes, and nothing is written that computes something else.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map

from archgrad import files
from archgrad.errors import MissingExtra, ModelError, RunError, one_line
from archgrad.tasks.task import Inputs, arguments, mapped, tensors

_TOLERANCE = 1e-4
# What torch.export, the ONNX exporter and a user's forward raise; the exporters' errors are RuntimeErrors.
_FAULTS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError)

_Runner = Callable[[tuple[Tensor, ...]], Sequence[Tensor]]


@dataclass(frozen=True)
class Exported:
    """What was written: where, whether any batch size runs, the largest relative difference from eager."""

    path: Path
    dynamic_batch: bool
    largest_difference: float


def export_onnx(network: nn.Module, example: Inputs, path: str | Path) -> Exported:
    """Writes one ONNX file, weights inside, and checks it in ONNX Runtime against the network.

    `example` is the network's input, or a tuple or dict of its inputs, each `[B, ...]`. The batch size is left open
    where the network allows it, and else fixed to the example's. The network itself is not changed.

    Raises:
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
        ModelError: the network does not run on the example, cannot be exported, or the file computes
            something else by more than 1e-4 of the largest output (or of 1, where that is more).
        RunError: the file cannot be written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "export")
    return _export(network, example, Path(path), encode=_onnx_bytes, load=_onnx_runner)


def export_program(network: nn.Module, example: Inputs, path: str | Path) -> Exported:
    """Writes a torch.export program, which `torch.export.load` reads back without archgrad.

    `example` is the network's input, or a tuple or dict of its inputs, each `[B, ...]`. The batch size is left open
    where the network allows it, and else fixed to the example's. The network itself is not changed.

    Raises:
        ModelError: the network does not run on the example, cannot be exported, or the file computes
            something else by more than 1e-4 of the largest output (or of 1, where that is more).
        RunError: the file cannot be written.
    """
    return _export(network, example, Path(path), encode=_program_bytes, load=_program_runner)


def _export(
    network: nn.Module,
    example: Inputs,
    path: Path,
    *,
    encode: Callable[[ExportedProgram], bytes],
    load: Callable[[bytes], _Runner],
) -> Exported:
    inputs = arguments(mapped(lambda x: x.detach().cpu(), example))
    plain = _plain_copy(network, inputs)
    reason, cause = "", None
    for dynamic in (True, False) if _share_batch(inputs) else (False,):
        try:
            with _silence():
                data = encode(_traced(plain, inputs, dynamic=dynamic))
                difference = _difference(plain, load(data), _trials(inputs, dynamic=dynamic))
        except _FAULTS as error:
            reason, cause = one_line(error), error
            continue
        if difference <= _TOLERANCE:
            files.write_bytes(path, data, RunError)
            return Exported(path, dynamic, difference)
        cause = None
        reason = f"the file's outputs are off by {difference:.2g}, {_TOLERANCE:g} is allowed in float32"
    raise ModelError(
        f"{type(network).__name__} cannot be exported to {path.name}: {reason}. A network can be exported "
        f"when its operations are PyTorch's own and its path does not depend on the data; rewrite that part"
    ) from cause


def _plain_copy(network: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    try:
        plain = copy.deepcopy(network).cpu().eval()
        with torch.no_grad():
            plain(*inputs)
    except _FAULTS as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors(inputs))
        raise ModelError(
            f"{type(network).__name__} does not run on the example of {shapes}: {one_line(error)}. Give the "
            f"tensors that its forward takes, as one tensor, a tuple in order, or a dict"
        ) from error
    return plain


def _share_batch(inputs: tuple[Tensor, ...]) -> bool:
    found = tensors(inputs)
    return all(tensor.dim() > 0 for tensor in found) and len({len(tensor) for tensor in found}) == 1


def _traced(plain: nn.Module, inputs: tuple[Tensor, ...], *, dynamic: bool) -> ExportedProgram:
    shapes = None
    if dynamic:
        batch = Dim("batch")
        shapes = tree_map(lambda _: {0: batch}, inputs)
        # torch.export takes a size of 1 for a constant.
        inputs = _with_batch(inputs, max(2, len(tensors(inputs)[0])))
    program = torch.export.export(plain, inputs, dynamic_shapes=shapes, strict=False)
    # Stack traces would carry the user's source and folders into the file.
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _with_batch(inputs: tuple[Tensor, ...], size: int) -> tuple[Tensor, ...]:
    rows = torch.arange(size)
    return tree_map(lambda x: x[rows % len(x)], inputs)  # type: ignore[no-any-return]


def _trials(inputs: tuple[Tensor, ...], *, dynamic: bool) -> list[tuple[Tensor, ...]]:
    if not dynamic:
        return [inputs]
    size = len(tensors(inputs)[0])
    # Flipped, so that a file which kept the example's figures as constants is found out.
    other = tree_map(lambda x: x.flip(-1), _with_batch(inputs, size + 2))
    return [inputs, _with_batch(inputs, 1), other]


def _difference(plain: nn.Module, run: _Runner, trials: list[tuple[Tensor, ...]]) -> float:
    largest = 0.0
    for inputs in trials:
        with torch.no_grad():
            wanted = [leaf for leaf in tree_leaves(plain(*inputs)) if isinstance(leaf, Tensor)]
        got = run(inputs)
        if [leaf.shape for leaf in wanted] != [leaf.shape for leaf in got]:
            return float("inf")
        for one, other in zip(wanted, got, strict=True):
            if one.numel():
                scale = max(1.0, one.double().abs().max().item())
                gap = (one.double() - other.double()).abs().max().item() / scale
                # `not <=` so that NaN counts as the largest difference, not as none.
                largest = gap if not gap <= largest else largest
    return largest


def _onnx_bytes(program: ExportedProgram) -> bytes:
    exported = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
    assert exported is not None
    data: bytes = exported.model_proto.SerializeToString()
    return data


def _onnx_runner(data: bytes) -> _Runner:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort

    # ONNX Runtime's errors share no base but Exception.
    faults = (ort.Fail, ort.InvalidArgument, ort.InvalidGraph, ort.NotImplemented, ort.RuntimeException)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except faults as error:
        raise RuntimeError(str(error)) from error
    names = [slot.name for slot in session.get_inputs()]

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(names, tensors(inputs), strict=True)}
        try:
            return [torch.as_tensor(value) for value in session.run(None, feed)]
        except faults as error:
            raise RuntimeError(str(error)) from error

    return run


def _program_bytes(program: ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _program_runner(data: bytes) -> _Runner:
    module = torch.export.load(io.BytesIO(data)).module()

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        with torch.no_grad():
            return [leaf for leaf in tree_leaves(module(*inputs)) if isinstance(leaf, Tensor)]

    return run


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    # The exporters report by print, by warnings, and by a log handler that holds the real stderr.
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
