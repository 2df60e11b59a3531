"""What the commands that search or train begin and end with: task, run, limit, ONNX."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from archgrad.cli import command_file as folder
from archgrad.cli.inputs import data
from archgrad.cli.schemas import commands as configuration
from archgrad.cli.schemas.commands import Options, RunOptions, WorkOptions
from archgrad.costs.count import macs, params
from archgrad.costs.latency import latency
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError, MissingExtra, ModelError
from archgrad.extract.export import export_onnx
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.tasks import Classification, crop, cutout, flip
from archgrad.tasks.task import Inputs

_AUGMENTATIONS = {"crop": crop, "cutout": cutout}


class Prepared(NamedTuple):
    """The run, the task, and whether ONNX is to be written."""

    run: Run
    task: Classification
    onnx: bool


def prepare(
    command: str, options: WorkOptions, out: Path, *, trials: int | None = None, workers: str | None = None,
    smoothing: float = 0.0,
) -> Prepared:  # fmt: skip
    """What a command begins with; everything random is seeded after this.

    Raises InputError for data, a device or a folder that cannot be used, MissingExtra for ONNX without its extra.
    """
    run, onnx = begin(command, options, out, trials=trials, workers=workers)
    augment = [
        flip() if pixels is None else _AUGMENTATIONS[name](pixels)
        for name, pixels in configuration.augmentations(options.augment)
    ]
    task = data.load(
        options.data,
        size=options.size,
        skip_corrupt=options.skip_corrupt,
        batch_size=options.batch_size,
        augment=augment,
        smoothing=smoothing,
    )
    seed(options.seed)
    return Prepared(run, task, onnx)


def begin(
    command: str, options: RunOptions, out: Path, *, trials: int | None = None, workers: str | None = None
) -> tuple[Run, bool]:
    """The run, and whether ONNX is to be written; without data. Raises as `prepare`."""
    set_threads(options)
    onnx = onnx_wanted(options.onnx)
    run = Run(
        epochs=options.epochs,
        steps=options.steps,
        trials=trials,
        seconds=options.seconds,
        seed=options.seed,
        folder=out,
        device=options.device,
        precision=options.precision,
        workers=int(workers) if workers and workers.isdecimal() else workers,
    )
    folder.check(out, command, options)
    return run, onnx


def seed(number: int) -> None:
    """Seed everything: a network's first weights are drawn before its run begins."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def set_threads(options: Options) -> None:
    """Take the CPU threads that are asked for."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)


def onnx_wanted(asked: bool | None) -> bool:
    """Whether network.onnx is written. Raises MissingExtra where it is asked for and cannot be."""
    missing = [p for p in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(p) is None]
    if asked and missing:
        raise MissingExtra(missing[0], "export")
    return not missing if asked is None else asked


def limit_of(written: str | None, example: Inputs) -> Limit | None:
    """The limit that was written, on networks of inputs like `example`. Raises LimitError."""
    if written is None:
        return None
    limit = configuration.limit(written)
    if limit.cost == "latency_ms":
        return latency(example).at_most(ms=limit.bound)
    cost = macs(example) if limit.cost == "macs" else params()
    return cost.at_most(limit.bound, fraction=limit.fraction)


def check_paths(network: nn.Module, paths: Sequence[str]) -> None:
    """Raise ConfigError when --keep names a layer that the network does not have."""
    known = [path for path, _ in network.named_modules() if path]
    for path in paths:
        if path not in known:
            near = get_close_matches(path, known, n=5, cutoff=0.3) or known[:5]
            raise ConfigError(f"--keep {path}: the network has no such layer. Near it are {', '.join(near)}.")


def write_onnx(found: Found, out: Path, wanted: bool) -> None:
    """Write network.onnx; where that fails the result stands, and its record says why."""
    if not wanted or found.example is None:
        return
    note = ""
    try:
        export_onnx(found.network, found.example, out / "network.onnx")
    except ModelError as error:
        note = str(error)
    if note:
        found.record["notes"] = [*found.record.get("notes", []), note]
        found.save(out)
