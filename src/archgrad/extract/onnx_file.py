"""ONNX: from a torch.export program to the bytes of a file, and from bytes to a session of ONNX Runtime."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils._pytree import tree_unflatten

from archgrad.errors import MissingExtra
from archgrad.extract.lstm_projections import without_projections
from archgrad.tasks.task import tensors

_DTYPES = {
    "tensor(uint8)": torch.uint8, "tensor(int8)": torch.int8, "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64, "tensor(bool)": torch.bool, "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
}  # fmt: skip
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_HANDING_ON = (torch.ops.aten.dropout.default, torch.ops.aten.clone.default, torch.ops.aten.alias.default)


def require_packages(*packages: str) -> None:
    """Raise MissingExtra where one of these packages is not installed; ONNX Runtime is to report nothing."""
    # Since 1.31 it writes an identity and events into the home folder when it is imported, and sends them.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "export")


def encode(program: ExportedProgram, *, optimize: bool) -> bytes:
    """The bytes of an ONNX file with the weights inside; `optimize`: simplified by the exporter."""
    program = without_projections(program)
    if optimize:
        _drop_zero_terms(program)
    exported = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False, optimize=optimize)
    assert exported is not None
    _name_outputs(exported.model.graph, _output_names(program))
    model = exported.model_proto
    # The exporter transposes weights and leaves their old shapes behind, on which shape inference fails, and with it
    # every tool that begins with it, such as onnxruntime.quantization. Shapes can be inferred from what stays.
    weights = {tensor.name for tensor in model.graph.initializer}
    stale = [info for info in model.graph.value_info if info.name in weights]
    for info in stale:
        model.graph.value_info.remove(info)
    data: bytes = model.SerializeToString()
    return data


def _output_names(program: ExportedProgram) -> list[str]:
    """The keys of the dict that a program returns; none where it returns something else."""
    form = program.call_spec.out_spec
    returned = None if form is None else tree_unflatten(range(form.num_leaves), form)
    return list(returned) if isinstance(returned, dict) else []


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Give the outputs of an ONNX graph these names, but for those that inputs and weights have, and ""."""
    inside = [value for node in graph for value in node.outputs]
    taken = set[str](value.name for value in (*graph.inputs, *graph.initializers.values()))
    known = {*taken, *names, *(value.name for value in inside)}
    for value, name in zip(graph.outputs, names, strict=False):
        if not name or name in taken or value.name in taken:
            continue
        for other in inside:
            if other.name == name and other is not value:
                fresh = (f"{name}_{number}" for number in itertools.count(1))
                other.name = next(new for new in fresh if new not in known)
                known.add(other.name)
        value.name = name
        taken.add(name)


def _drop_zero_terms(program: ExportedProgram) -> None:
    """x for each x + zeros_like(y) of the shape of x, in place, as a branch leaves it that was removed from a sum.

    ONNX Runtime computes such a sum, and OpenVINO fails on it in int8.
    """
    for node in program.graph.nodes:
        terms = [term for term in node.args if isinstance(term, Node)]
        if node.target is not torch.ops.aten.add.Tensor or node.kwargs or len(terms) != len(node.args):
            continue
        given = [term for term in terms if not _is_zeros(term)]
        kept = given[0] if len(given) == 1 else None
        same = kept is not None and all(
            kept.meta["val"].shape == other.meta["val"].shape and kept.meta["val"].dtype == other.meta["val"].dtype
            for other in (node, *terms)
        )
        if same and not any(user.op == "output" for user in node.users):  # whose names the program keeps
            node.replace_all_uses_with(kept)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def _is_zeros(node: Node) -> bool:
    """Whether a tensor was made as zeros, and handed on as they are."""
    while node.target in _HANDING_ON and isinstance(node.args[0], Node):
        node = node.args[0]
    return node.target is torch.ops.aten.zeros_like.default


class Session:
    """An ONNX file in ONNX Runtime on the CPU.

    Args:
        data: the bytes of the file, or its path, beside which ONNX Runtime looks for weights that are not in it.
        threads: CPU threads of one pass; None: as ONNX Runtime has it.

    Raises:
        MissingExtra: onnxruntime is not installed.
        RuntimeError: the bytes are no network that ONNX Runtime runs; `prepare` and `run` raise it too.
    """

    def __init__(self, data: bytes | Path, *, threads: int | None = None) -> None:
        require_packages("onnxruntime")
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as ort

        # ONNX Runtime's errors share no base but Exception.
        self._errors = (
            ort.Fail, ort.InvalidArgument, ort.InvalidGraph, ort.InvalidProtobuf, ort.NoSuchFile,
            ort.NotImplemented, ort.RuntimeException, ValueError, TypeError,
        )  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except self._errors as error:
            raise RuntimeError(str(error)) from error

    @property
    def names(self) -> list[str]:
        """Of the inputs."""
        return [slot.name for slot in self._session.get_inputs()]

    def slots(self) -> list[tuple[list[int | None], torch.dtype]]:
        """Shape, None where a size is open, and type of each input."""
        return [
            ([n if isinstance(n, int) else None for n in slot.shape], _DTYPES.get(slot.type, torch.float32))
            for slot in self._session.get_inputs()
        ]

    def prepare(self, inputs: object) -> dict[str, Any]:
        """What `run` takes, from a nest of tensors in the order of the file's inputs, or a dict with their names."""
        return named_inputs(self.names, inputs)

    def run(self, feed: dict[str, Any]) -> list[Any]:
        """The outputs as arrays."""
        try:
            return self._session.run(None, feed)  # type: ignore[no-any-return]
        except self._errors as error:
            raise RuntimeError(str(error)) from error

    def outputs(self, inputs: object) -> list[Tensor]:
        """The outputs, as tensors, on a nest of tensors in the order of the file's inputs."""
        return [torch.as_tensor(value) for value in self.run(self.prepare(inputs))]


def named_inputs(names: Sequence[str], inputs: object) -> dict[str, Any]:
    """Arrays by a file's names of inputs, from a nest of tensors in their order, or a dict with their names."""
    named = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else None
    if isinstance(named, dict) and names:  # a dict that is one argument leads its names: batch_a, batch_b
        for lead in {names[0].removesuffix(str(key)) for key in named}:
            if all(name.startswith(lead) and name[len(lead) :] in named for name in names):
                inputs = [named[name[len(lead) :]] for name in names]
    leaves = tensors(inputs)
    if len(names) != len(leaves):
        raise RuntimeError(f"the file has the inputs {[*names]}, the example {len(leaves)} tensors")
    if unknown := {str(tensor.dtype) for tensor in leaves if tensor.dtype == torch.bfloat16}:
        raise RuntimeError(f"inputs of {', '.join(unknown)} cannot be handed over: give the example as float32")
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, leaves, strict=True)}
