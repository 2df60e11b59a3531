"""Read a network.pt2 back, once it is sure that nothing in the file can execute code."""

from __future__ import annotations

import copy
import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec, tree_unflatten

from archgrad import files
from archgrad.errors import RunError
from archgrad.tasks.task import tensors

# torch.export.load unpickles without restraint what these do not cover: custom objects, pickled tensors.
_PLAIN = re.compile(
    r"[^/]+/(data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/\w+_config\.json"
    r"|models/\w+\.json|\.?data/\w+|archive_format|archive_version|version|byteorder|\.format_version|\.storage_alignment)"
)
_SAMPLES = re.compile(r"[^/]+/data/sample_inputs/\w+\.pt")


def load(path: Path, *, flat: bool = True) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network of a torch.export program, and the inputs [B, ...] that it was exported with.

    `flat`: it takes and returns flat tensors, as ONNX has them; else the nests of the network.

    Raises RunError when the file is missing, damaged, or holds pickled objects.
    """
    if not path.is_file():
        raise RunError(
            f"{path} is missing. It is written when a run ends, where the network can be exported: give the "
            "folder of such a run, or end this one with archgrad resume."
        )
    try:
        _refuse_objects(path)
        program = torch.export.load(path)
    except (*files.UNREADABLE, NotImplementedError, AssertionError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path} is damaged ({error}). archgrad resume writes it again.") from None
    if program.example_inputs is None:
        raise RunError(f"{path} holds no example inputs. archgrad resume writes it again.")
    exported = program.module()
    # A program's own module refuses eval(); its graph in a module of the ordinary kind does not. Plain code
    # takes and returns flat tensors, which is what ONNX has.
    exported.graph.set_codegen(fx.graph.CodeGen())
    network: nn.Module = fx.GraphModule(exported, exported.graph)
    if not flat:
        assert program.call_spec.out_spec is not None
        network = _Nested(network, program.call_spec.out_spec)
    return network, tuple(tensors(program.example_inputs))


class _Nested(nn.Module):
    """A network of flat tensors that returns the nest of the one that it was exported from."""

    def __init__(self, flat: nn.Module, spec: TreeSpec) -> None:
        super().__init__()
        self.flat, self._spec = flat, spec

    def __deepcopy__(self, memo: dict[int, Any]) -> _Nested:
        return _Nested(copy.deepcopy(self.flat, memo), self._spec)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return tree_unflatten(list(self.flat(*tensors((inputs, named)))), self._spec)


def _refuse_objects(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        files.refuse_more_than_free(path, sum(member.file_size for member in archive.infolist()), RunError)
        for name in archive.namelist():
            data = archive.read(name)
            if _SAMPLES.fullmatch(name):
                try:
                    torch.load(io.BytesIO(data), weights_only=True)
                except pickle.UnpicklingError:
                    raise _objects(path, name) from None
            elif not _PLAIN.fullmatch(name) or (name.endswith(".json") and _pickled(data)):
                raise _objects(path, name)


def _pickled(config: bytes) -> bool:
    return re.search(rb'"use_pickle"\s*:\s*true', config) is not None


def _objects(path: Path, name: str) -> RunError:
    return RunError(
        f"{path} holds pickled objects ({name}), which can execute code and are not read. Give a file that "
        "archgrad wrote."
    )
