"""Latency of exported files, as they are: ONNX in ONNX Runtime or OpenVINO, ExecuTorch programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from archgrad.argument_types import checked
from archgrad.costs.latency import Timing, check_protocol, file_pass, in_turns, timing
from archgrad.errors import ConfigError, ModelError, one_line
from archgrad.extract import onnx_file, runtimes
from archgrad.extract.runtimes import Runtime
from archgrad.tasks.task import Inputs, arguments


@checked
def measure_files(
    files: Mapping[str, str | Path],
    example: Inputs | None = None,
    *,
    runtime: Runtime | None = None,
    shapes: Sequence[Sequence[int]] = (),
    batch: int = 1,
    threads: int = 1,
    repeats: int = 50,
    warmup: int = 10,
) -> dict[str, Timing]:
    """Time exported files in turns (A B A B ...), by the protocol of `archgrad.latency`: the files that ship.

    Args:
        files: {name: path} of ONNX files (.onnx) and ExecuTorch programs (.pte).
        example: the input, or a tuple of inputs in the files' order, each [B, ...]; None: random ones of the shapes
            that each file says.
        runtime: "onnx" or "openvino" for ONNX files; None: ONNX Runtime, and ExecuTorch for its programs.
        shapes: of the inputs, where a file leaves more open than the batch size.
        batch: samples of a pass, where the file leaves that open.
        threads: CPU threads of one pass.
        repeats: passes that are timed.
        warmup: passes before them.

    Raises:
        ConfigError: a number below 1; a runtime that does not take such a file; shapes are missing.
        ModelError: a file cannot be read, or does not run on the example.
        MissingExtra: a package of the runtime is not installed.

    Example:
        >>> import torch, archgrad as ag
        >>> path = ag.export_onnx(torch.nn.Linear(4, 2), torch.zeros(1, 4), "small.onnx").path
        >>> ag.measure_files({"small": path}, repeats=5)["small"].median_ms > 0
        True
    """
    check_protocol(repeats=repeats, warmup=warmup, threads=threads, batch=batch)
    if not files:
        raise ConfigError("no file was given; name ONNX files (.onnx) or ExecuTorch programs (.pte)")
    runs: dict[str, Runtime] = {name: _runtime(Path(path), runtime) for name, path in files.items()}
    passes: list[Callable[[], object]] = []
    for name, path in files.items():
        given = _random(Path(path), shapes=shapes, batch=batch) if example is None else arguments(example)
        passes.append(file_pass(Path(path), runs[name], given, threads))
    rows = in_turns(passes, repeats=repeats, warmup=warmup, threads=threads)
    return {
        name: timing(row, runtime=runs[name], device="cpu", threads=threads)
        for name, row in zip(files, rows, strict=True)
    }


def _runtime(path: Path, asked: Runtime | None) -> Runtime:
    of_file = runtimes.FILES.get(path.suffix)
    if of_file is None or not path.is_file():
        reason = "is no file" if of_file else "is of no known kind"
        raise ModelError(f"{path} {reason}. Give an ONNX file (.onnx), such as export_onnx writes, or a .pte file")
    allowed = ("onnx", "openvino") if of_file == "onnx" else ("executorch",)
    if asked is not None and asked not in allowed:
        raise ConfigError(f'runtime="{asked}" does not take {path}. Give {" or ".join(allowed)}, or leave it out')
    runtimes.require(asked or of_file, to_export=False)
    return asked or cast(Runtime, of_file)


def _random(path: Path, *, shapes: Sequence[Sequence[int]], batch: int) -> tuple[Any, ...]:
    """Inputs of the shapes and types that a file says: whole numbers are zero, bytes and floats random."""
    try:
        slots = (onnx_file.Session if path.suffix == ".onnx" else runtimes.Executorch)(path).slots()
    except RuntimeError as error:
        raise ModelError(f"{path} does not run: {one_line(error)}. Give a file that was exported") from error
    if shapes and len(shapes) != len(slots):
        raise ConfigError(f"{path} has {len(slots)} inputs, and {len(shapes)} shapes were given. Give one for each")
    generator, inputs = torch.Generator().manual_seed(0), []
    for i, (sizes, dtype) in enumerate(slots):
        said = [batch if axis == 0 and n is None else n for axis, n in enumerate(sizes)]
        shape = [*shapes[i]] if shapes else [n for n in said if n is not None]
        if len(shape) < len(sizes):
            listed = ", ".join("any" if n is None else str(n) for n in sizes)
            raise ConfigError(f"{path} takes inputs of [{listed}]. Give all sizes: --shape 1,3,224,224")
        if dtype == torch.uint8:
            inputs.append(torch.randint(0, 256, shape, dtype=dtype, generator=generator))
        elif dtype.is_floating_point:
            inputs.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            inputs.append(torch.zeros(shape, dtype=dtype))
    return tuple(inputs)
