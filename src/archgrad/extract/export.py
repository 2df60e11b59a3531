"""A plain network as a file that runs without archgrad: ONNX, or a torch.export program.

Every file is checked before it is written: its bytes are loaded and run beside the network, on the example, on other
figures and on other batch sizes. A file that computes something else is not written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map, tree_map_only

from archgrad import files
from archgrad.argument_types import checked
from archgrad.copy_and_run import by_name, call, copied, in_mode, require_values, run_on_example
from archgrad.errors import ConfigError, ModelError, RunError, one_line
from archgrad.extract import onnx_file, runtimes
from archgrad.extract.export_trials import AXES, BATCH, HEIGHT, WIDTH, largest_difference, make_trials, with_batch
from archgrad.extract.preprocessing import Preprocessing, check_preprocessing, with_preprocessing
from archgrad.extract.returned import plain_outputs, returning, tensors_by_name
from archgrad.extract.runtimes import silence
from archgrad.tasks.task import Inputs, Task, arguments, description, first_tensor, tensors

TOLERANCE = 1e-4
Encoder = Callable[[ExportedProgram], bytes]
# From the bytes of a file to what it computes: from a network's arguments to its outputs.
Loader = Callable[[bytes], Callable[[tuple[Any, ...]], Sequence[Tensor]]]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: of the file.
        dynamic_batch: whether it takes any batch size.
        largest_difference: the largest relative difference from eager.
        dynamic: which of "batch", "height" and "width" are open.
        note: why the batch size is fixed; "" where it is open.
    """

    path: Path
    dynamic_batch: bool
    largest_difference: float
    dynamic: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Encoded:
    """A file's bytes, and what `Exported` says of them."""

    data: bytes
    largest_difference: float
    dynamic: tuple[str, ...]
    note: str = ""

    @property
    def dynamic_batch(self) -> bool:
        """Whether the file takes any batch size."""
        return BATCH in self.dynamic

    def write(self, path: Path) -> Exported:
        """Put the bytes into a file, whole or not at all."""
        files.write_bytes(path, self.data, RunError)
        return Exported(path, self.dynamic_batch, self.largest_difference, self.dynamic, self.note)


@checked
def export_onnx(
    network: nn.Module,
    example: Inputs,
    path: str | Path,
    *,
    dynamic: Sequence[str] = (BATCH,),
    preprocess: Task | Preprocessing | None = None,
) -> Exported:
    """Write one ONNX file, weights inside, and check it in ONNX Runtime against the network.

    The batch size is left open where the network allows it, and else fixed to the example's, with a note. The network
    itself is not changed. Where the exporter's simplifications change the result, the file is written without them.
    The file's outputs are the tensors among the network's outputs, in order, with the names that a dict has for them.

    Args:
        network: what `build` or a search returned, or any other plain network.
        example: the network's input, or a tuple or dict of its inputs, each `[B, ...]`.
        path: of the file.
        dynamic: sizes to leave open: "batch", and "height" and "width" of images `[B, C, H, W]`. The file is then
            checked on images of other sizes too; nothing is written where these cannot be open.
        preprocess: a task whose normalization goes into the file, with its class names as metadata, or a
            `Preprocessing` of your own. Of normalized images the file then takes uint8 pixels [B, C, H, W]; of a
            classification its last output is `label`, [B], the index of the largest score.

    Raises:
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
        ConfigError: `dynamic` names another size, or one of images for a network that takes none; a normalization
            that does not fit the network's input.
        ModelError: the network does not run on the example, cannot be exported, or every way of exporting it computes
            something else by more than 1e-4 of the largest output (or of 1, where that is more).
        RunError: the file cannot be written.

    Example:
        >>> import torch, archgrad as ag
        >>> written = ag.export_onnx(torch.nn.Linear(4, 2), torch.zeros(1, 4), "small.onnx")
        >>> written.dynamic_batch, written.largest_difference < 1e-4
        (True, True)
    """
    if preprocess is not None and not isinstance(preprocess, Preprocessing | Task):
        raise ConfigError(f"preprocess={preprocess!r}: give a task, or archgrad.extract.preprocessing.Preprocessing")
    encoded = encode_onnx(network, example, dynamic=dynamic)
    if preprocess is not None:
        given = preprocess if isinstance(preprocess, Preprocessing) else Preprocessing.of(description(preprocess))
        encoded = preprocessed(encoded, given, example)
    return encoded.write(Path(path))


@checked
def export_program(
    network: nn.Module, example: Inputs, path: str | Path, *, dynamic: Sequence[str] = (BATCH,)
) -> Exported:
    """Write a torch.export program, which `torch.export.load` reads back without archgrad.

    Arguments, checks and errors are those of `export_onnx`; no further package is needed. Outputs in data classes,
    such as those of Hugging Face, come back as dicts, so that whoever loads the file needs none of their classes.

    Args:
        network: what `build` or a search returned, or any other plain network.
        example: the network's input, or a tuple or dict of its inputs, each `[B, ...]`.
        path: of the file.
        dynamic: sizes to leave open, as in `export_onnx`.

    Example:
        >>> import torch, archgrad as ag
        >>> ag.export_program(torch.nn.Linear(4, 2), torch.zeros(1, 4), "small.pt2").dynamic_batch
        True
        >>> torch.export.load("small.pt2").module()(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """
    encoded = _encode(
        network, example, [_program_bytes], load=_program_runner, form="a torch.export program", dynamic=dynamic,
        outputs=plain_outputs,
    )  # fmt: skip
    return encoded.write(Path(path))


def export_open_program(network: nn.Module, example: Inputs, path: Path) -> Exported:
    """`export_program` with height and width of images open too, where the network takes images of other sizes."""
    images = any(leaf.dim() == 4 for leaf in tensors(arguments(example)))
    if images:
        with contextlib.suppress(ModelError):
            return export_program(network, example, path, dynamic=(BATCH, *AXES))
    return export_program(network, example, path)


@checked
def export_executorch(network: nn.Module, example: Inputs, path: str | Path) -> Exported:
    """Write an ExecuTorch program (.pte), in XNNPACK where that knows the operators, for the example's shapes.

    Arguments, checks and errors are those of `export_onnx`. It needs the extra `executorch`.

    Args:
        network: what `build` or a search returned, or any other plain network.
        example: the network's input, or a tuple or dict of its inputs, each `[B, ...]`.
        path: of the file.

    Example:
        >>> import torch, archgrad as ag
        >>> ag.export_executorch(torch.nn.Linear(4, 2), torch.zeros(1, 4), "small.pte")  # doctest: +SKIP
    """
    return encode_executorch(network, example).write(Path(path))


def encode_executorch(network: nn.Module, example: Inputs) -> Encoded:
    """The bytes that `export_executorch` writes, checked; errors as there."""
    runtimes.require("executorch")

    def load(data: bytes) -> Callable[[tuple[Any, ...]], Sequence[Tensor]]:
        session = runtimes.Executorch(data)
        return lambda inputs: session.run(session.prepare(inputs))

    network = runtimes.contiguous(copied(network))
    return _encode(
        network, example, [runtimes.executorch_bytes], load=load, form="ExecuTorch", dynamic=(), outputs=plain_outputs
    )


def encode_onnx(network: nn.Module, example: Inputs, *, dynamic: Sequence[str] = (BATCH,)) -> Encoded:
    """The bytes that `export_onnx` writes, checked; errors as there."""
    onnx_file.require_packages(*onnx_file.PACKAGES)
    # The exporter simplifies by comparing constants with a tolerance: x + 1e-10 becomes x, and 0 / 1e-10 NaN.
    encoders = [functools.partial(onnx_file.encode, optimize=optimize) for optimize in (True, False)]
    return _encode(
        network, example, encoders, load=lambda data: onnx_file.Session(data).outputs, form="ONNX", dynamic=dynamic,
        outputs=tensors_by_name,
    )  # fmt: skip


def preprocessed(encoded: Encoded, preprocessing: Preprocessing, example: Inputs) -> Encoded:
    """A file with its preprocessing, loaded and compared with the file without; errors as of `export_onnx`."""
    data = with_preprocessing(encoded.data, preprocessing)
    (first, *more) = tensors(arguments(example))
    if not more and first.is_floating_point():
        batches = (len(first), len(first) + 2) if BATCH in encoded.dynamic else (len(first),)
        difference = check_preprocessing(data, encoded.data, preprocessing, shape=first.shape, batches=batches)
        encoded = dataclasses.replace(encoded, largest_difference=max(encoded.largest_difference, difference))
    return dataclasses.replace(encoded, data=data)


def _encode(
    network: nn.Module, example: Inputs, encoders: Sequence[Encoder], *, load: Loader, form: str,
    dynamic: Sequence[str], outputs: Callable[[Any], Any],
) -> Encoded:  # fmt: skip
    """The first of several ways that computes what the network computes: an open batch size comes first."""
    if unknown := [name for name in dynamic if name not in (BATCH, *AXES)]:
        raise ConfigError(f"dynamic names {unknown}; it takes any of {BATCH!r}, {HEIGHT!r} and {WIDTH!r}")
    inputs = tree_map_only(Tensor, lambda x: x.detach().cpu().clone(), arguments(example))
    require_values(network)
    plain = returning(outputs, in_mode(_unwrapped(copied(network)).cpu()), inputs)
    sizes = tuple(name for name in (HEIGHT, WIDTH) if name in dynamic)
    if sizes and all(x.dim() != 4 for x in tensors(inputs)):
        raise ConfigError(
            f"dynamic names {' and '.join(sizes)}, sizes of images [B, C, H, W], and the network takes none: leave "
            f"them out; other axes keep the example's length"
        )
    ways = [(BATCH, *sizes)] if BATCH in dynamic and _share_batch(inputs) else []
    reason, cause = "" if ways else "its inputs share no batch size", None
    note = ""
    for axes in (*ways, sizes):
        try:
            trials = make_trials(plain, inputs, axes)
            with silence():
                program = _trace(plain, inputs, axes)
        except ModelError:
            raise
        except Exception as error:  # noqa: BLE001 - the exporters' errors share no other base
            reason, cause = one_line(error), error
        else:
            for encode in encoders:
                try:
                    with silence():
                        data = encode(program)
                        difference = largest_difference(load(data), trials)
                except Exception as error:  # noqa: BLE001 - likewise, and ONNX Runtime's
                    reason, cause = one_line(error), error
                    continue
                if difference <= TOLERANCE:
                    return Encoded(data, difference, axes, note)
                reason = f"the file's outputs are off by {difference:.2g}, {TOLERANCE:g} is allowed in float32"
                cause = None
        note = f"the batch size is fixed to the example's: {reason}" if BATCH in axes else ""
    raise ModelError(
        f"{type(network).__name__} cannot be exported to {form}: {reason}. {_advice(plain, sizes)}"
    ) from cause


def traced(network: nn.Module, example: Inputs) -> ExportedProgram:
    """A network's torch.export program for the example's sizes.

    Raises:
        ModelError: the network does not run on the example, or cannot be exported.
    """
    inputs = tree_map_only(Tensor, lambda x: x.detach().cpu().clone(), arguments(example))
    require_values(network)
    plain = returning(plain_outputs, in_mode(_unwrapped(copied(network)).cpu()), inputs)
    run_on_example(plain, inputs)
    try:
        with silence():
            return _trace(plain, inputs, ())
    except Exception as error:  # the exporters' errors share no base
        raise ModelError(
            f"{type(network).__name__} cannot be exported: {one_line(error)}. {_advice(plain, ())}"
        ) from error


def _advice(plain: nn.Module, sizes: Sequence[str]) -> str:
    if spoilt := [name for name, p in plain.named_parameters() if not p.isfinite().all()]:
        return f"Its weights hold NaN or infinite values ({', '.join(spoilt[:3])}): train it anew"
    reduced = {p.dtype for p in plain.parameters() if p.is_floating_point()} & {torch.float16, torch.bfloat16}
    if reduced:
        return (
            f"Its weights are {', '.join(sorted(map(str, reduced)))}: export network.float(), and convert or "
            f"quantize the file"
        )
    if sizes:
        return (
            f"dynamic asks for {' and '.join(sizes)} of any size: pool to a fixed size in front of linear layers and "
            f"take sizes from the tensors, or leave them out of dynamic"
        )
    return (
        "A network can be exported when its operations are PyTorch's own and its path does not depend on the data; "
        "rewrite that part"
    )


def _unwrapped(network: nn.Module) -> nn.Module:
    """What a wrapper for several devices or a compiled network runs."""
    while isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or "_orig_mod" in dict(
        network.named_children()
    ):
        network = network.get_submodule("_orig_mod" if "_orig_mod" in network._modules else "module")
    return network


def _share_batch(inputs: tuple[Any, ...]) -> bool:
    leaves = tensors(inputs)
    return all(leaf.dim() > 0 for leaf in leaves) and len({len(leaf) for leaf in leaves}) == 1


def _trace(plain: nn.Module, inputs: tuple[Any, ...], axes: Sequence[str]) -> ExportedProgram:
    shapes = None
    if axes:
        batch = Dim("batch")

        def open_axes(leaf: Any) -> dict[int, Any] | None:
            if not isinstance(leaf, Tensor):
                return None
            sizes = {axis: Dim.DYNAMIC for name, axis in AXES.items() if name in axes and leaf.dim() == 4}
            return {0: batch, **sizes} if BATCH in axes else sizes

        shapes = _by_parameter(plain, tree_map(open_axes, inputs))
        if BATCH in axes:  # torch.export takes a size of 1 for a constant
            inputs = with_batch(inputs, max(2, len(first_tensor(inputs))))
    named = by_name(plain, inputs)
    program = torch.export.export(plain, inputs if named is None else (), named, dynamic_shapes=shapes, strict=False)
    # Stack traces would carry the user's source and folders into the file.
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _by_parameter(plain: nn.Module, shapes: tuple[Any, ...]) -> Any:
    """The shapes of all arguments; for a forward(*args) by the names of its parameters, as torch.export has it."""
    if by_name(plain, shapes) is not None:
        return dict(inspect.signature(plain.forward).bind(**shapes[0]).arguments)
    parameters = list(inspect.signature(plain.forward).parameters.values())
    several = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_POSITIONAL), None)
    if several is None:
        return shapes
    named = {p.name: shape for p, shape in zip(parameters[:several], shapes, strict=False)}
    return {**named, parameters[several].name: tuple(shapes[several:])}


def _program_bytes(program: ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _program_runner(data: bytes) -> Callable[[tuple[Any, ...]], Sequence[Tensor]]:
    module = torch.export.load(io.BytesIO(data)).module()

    def run(inputs: tuple[Any, ...]) -> list[Tensor]:
        with torch.no_grad():
            return tensors(call(module, tree_map_only(Tensor, torch.clone, inputs)))

    return run
