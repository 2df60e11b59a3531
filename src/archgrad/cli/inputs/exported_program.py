"""Read a network.pt2 back, once it is sure that nothing in the file can execute code."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten

from archgrad import files
from archgrad.errors import ModelError, RunError, one_line
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
        assert program.call_spec.in_spec is not None
        network = _Nested(network, _names(program), (program.call_spec.in_spec, program.call_spec.out_spec))
    return network, tuple(tensors(program.example_inputs))


def _names(program: ExportedProgram) -> list[str]:
    """Of the arguments, those in order first."""
    signature = program.module_call_graph[0].signature
    assert signature is not None and signature.forward_arg_names is not None
    return [*signature.forward_arg_names]


class _Nested(nn.Module):
    """A network of flat tensors that takes and returns the nests of the one that it was exported from.

    It has the names of that one's arguments, and leaves out others, such as labels. The dicts that it returns have
    their entries as attributes too, since they may have been data classes.
    """

    def __init__(self, flat: nn.Module, names: Sequence[str], specs: tuple[TreeSpec, TreeSpec]) -> None:
        super().__init__()
        self.flat, self._names, self._specs = flat, names, specs

        def forward(*inputs: Any, **named: Any) -> Any:
            return self._run(inputs, named)

        kinds = inspect.Parameter
        parameters = [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in names]
        signature = inspect.Signature([*parameters, kinds("left_out", kinds.VAR_KEYWORD)])
        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward

    def __deepcopy__(self, memo: dict[int, Any]) -> _Nested:
        return _Nested(copy.deepcopy(self.flat, memo), self._names, self._specs)

    def _run(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        given = dict(zip(self._names, inputs, strict=False)) | {n: named[n] for n in self._names if n in named}
        if len(inputs) > len(self._names) or (missing := [n for n in self._names if n not in given]):
            what = f"{len(inputs)} in order" if len(inputs) > len(self._names) else f"all but {', '.join(missing)}"
            raise ModelError(f"the network was exported with the inputs {', '.join(self._names)}; given are {what}")
        before, after = self._specs
        count = len(before.child(0).children())
        values = [given[name] for name in self._names]
        nest = values[:count], dict(zip(self._names[count:], values[count:], strict=True))
        try:
            leaves = _leaves(before, nest)
        except (KeyError, ValueError) as error:
            raise ModelError(
                f"inputs of another form than the network was exported with: {one_line(error)}"
            ) from error
        return _entries(tree_unflatten(list(self.flat(*leaves)), after))


class _Entries(dict[str, Any]):
    """A dict of outputs that is read as the data class that it may have been: by name, attribute or place."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"the exported network returns {', '.join(self)}, and no {name}")
        return self[name]

    def __missing__(self, key: object) -> Any:
        if isinstance(key, int):
            return list(self.values())[key]
        raise KeyError(key)


def _leaves(spec: TreeSpec, nest: Any) -> list[Any]:
    """The leaves of a nest in the order of the one that was exported: dicts by their names."""
    if spec.is_leaf():
        return [nest]
    if spec.type in (dict, OrderedDict):
        nest = [nest[name] for name in spec.context]
    elif spec.type not in (tuple, list):
        return tree_leaves(nest)
    return [leaf for child, part in zip(spec.children(), nest, strict=True) for leaf in _leaves(child, part)]


def _entries(nest: Any) -> Any:
    if isinstance(nest, dict):
        return _Entries({name: _entries(value) for name, value in nest.items()})
    return type(nest)(map(_entries, nest)) if type(nest) in (list, tuple) else nest


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
