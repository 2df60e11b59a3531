"""`archgrad export`: the network of a finished run as ONNX."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from archgrad.cli.command_output import Outcome
from archgrad.cli.commands.resume import reopened
from archgrad.cli.inputs import data, exported_program
from archgrad.cli.schemas.task import TaskOptions
from archgrad.errors import ConfigError, RunError
from archgrad.extract import runtimes
from archgrad.extract.export import export_executorch, export_onnx
from archgrad.extract.export_trials import AXES, BATCH
from archgrad.extract.preprocessing import Preprocessing
from archgrad.report import page
from archgrad.report.data.run_folder import ended, write_record
from archgrad.report.data.run_format import RECORD
from archgrad.results.int8 import export_int8


def export_run(
    run: Path, path: Path | None, *, dynamic: str | None = None, preprocess: bool = True, resize: bool = False
) -> Outcome:
    """Write the network of a run as ONNX or as an ExecuTorch program, checked against PyTorch.

    Args:
        run: the folder of the run.
        path: of the file, .onnx, or .pte for ExecuTorch; None: RUN/network.onnx.
        dynamic: sizes of images to leave open beside the batch size: "height", "width", or both joined by a comma.
        preprocess: whether the file takes pixels and gives labels, where the run's data says how.
        resize: whether it takes pixels of any size.
    """
    if not run.is_dir():
        raise RunError(f"There is no run folder {run}. Give the folder that was --out.")
    sizes = _sizes(dynamic)
    _check_program(path, sizes=bool(sizes), resize=resize)
    network, example = exported_program.load(run / "network.pt2")
    preprocessing = _resizing(preprocessing_of(run) if preprocess else None, example, asked=resize)
    if path is not None and path.suffix == ".pte":
        exported, preprocessing = export_executorch(network, example, path), None
    else:
        exported = export_onnx(
            network, example, path or run / "network.onnx", dynamic=(BATCH, *sizes), preprocess=preprocessing
        )
    batch = "any batch size" if exported.dynamic_batch else "the batch size of its example alone"
    open_sizes = "".join(f", any {size}" for size in sizes)
    difference = exported.largest_difference
    return Outcome(
        {
            "path": str(exported.path), "dynamic_batch": exported.dynamic_batch, "dynamic": list(exported.dynamic),
            "largest_difference": difference,
        },
        f"{exported.path}: takes {_taken(preprocessing)}{batch}{open_sizes}; "
        f"largest difference from PyTorch {difference:.2g}",
    )  # fmt: skip


def check_export(*, int8: bool, dynamic: str | None, resize: bool, bounds: Mapping[str, float | None]) -> None:
    """Raise ConfigError for options that do not go together; `bounds` are those of --int8."""
    if resize and dynamic:
        raise ConfigError(f"--dynamic {dynamic} lets the network see images of other sizes, --resize does not")
    for option, bound in bounds.items():
        if bound is not None and not int8:
            raise ConfigError(f"{option} {bound:g} goes with --int8")
    if int8 and dynamic:
        raise ConfigError(f"--dynamic {dynamic} goes without --int8, whose file has the example's height and width")


def export_int8_run(
    run: Path, path: Path | None, *, max_drop: float, max_ms: float | None = None, max_kb: float | None = None,
    preprocess: bool = True, resize: bool = False,
) -> Outcome:  # fmt: skip
    """Write the network of a run as ONNX in int8, calibrated and scored on the run's data; noted in its record.

    Args:
        run: the folder of the run.
        path: of the file; None: RUN/network.int8.onnx.
        max_drop: of the validation score that int8 may cost, in points.
        max_ms: that the int8 file may take.
        max_kb: that it may have.
        preprocess: as in `export_run`.
        resize: likewise.
    """
    if not run.is_dir():
        raise RunError(f"There is no run folder {run}. Give the folder that was --out.")
    path = (path or run / "network.int8.onnx").absolute()
    program = path.suffix == ".pte"
    _check_program(path, sizes=False, resize=resize)
    runtimes.require("executorch" if program else "onnx")
    network, example = exported_program.load(run / "network.pt2", flat=False)
    record = dict(ended(run)[0])
    folder = run.absolute()
    with reopened(run, action="export") as (command, options):
        if not isinstance(options, TaskOptions) or not (options.data or options.task):
            raise ConfigError(
                f"{run} was begun by archgrad {command.name}, which keeps no data to calibrate int8 on. In a "
                f"program: found.export(path, task=task, int8=True)"
            )
        task = data.load_task(options)
        preprocessing = Preprocessing.of(record.get("data")) if preprocess and not program else None
        preprocessing = _resizing(preprocessing, example, asked=resize)
        done = export_int8(
            network, task, path, max_drop=max_drop, max_ms=max_ms, max_kb=max_kb, preprocess=preprocessing
        )
    write_record(folder, {**record, "int8": done.record()})
    return Outcome(done.record(), f"{done.report()}\n{path} is written, and {page.write(folder)} says so")


def _check_program(path: Path | None, *, sizes: bool, resize: bool) -> None:
    kind = runtimes.kind_of_file(path, f"--out {path}") if path is not None else "onnx"
    if kind == "executorch" and (sizes or resize):
        reason = "has no preprocessing that could resize" if resize else "is for the example's sizes"
        raise ConfigError(
            f"--out {path}: an ExecuTorch program {reason}; leave out {'--resize' if resize else '--dynamic'}, or "
            f"write an .onnx file"
        )


def preprocessing_of(run: Path) -> Preprocessing:
    """What the record of a run says of its data."""
    record, _ = ended(run) if (run / RECORD).exists() else ({}, [])
    return Preprocessing.of(record.get("data"))


def _resizing(preprocessing: Preprocessing | None, example: Sequence[Tensor], *, asked: bool) -> Preprocessing | None:
    """With the size of the example, where resizing is asked for."""
    if not asked:
        return preprocessing
    if preprocessing is None or not preprocessing.mean or len(example) != 1 or example[0].dim() != 4:
        raise ConfigError("--resize is for runs on images, whose file takes pixels; leave it out")
    height, width = example[0].shape[2:]
    return dataclasses.replace(preprocessing, size=(height, width))


def _taken(preprocessing: Preprocessing | None) -> str:
    if preprocessing is None or not preprocessing.mean:
        return ""
    return f"pixels from 0 to 255{', any height and width' if preprocessing.size else ''}, "


def _sizes(text: str | None) -> list[str]:
    names = [name.strip() for name in text.split(",")] if text else []
    if unknown := [name for name in names if name not in AXES]:
        raise ConfigError(
            f"--dynamic {text}: {unknown[0]!r} is no size of an image. Give height, width, or height,width; the "
            f"batch size is open anyway"
        )
    return [name for name in AXES if name in names]
