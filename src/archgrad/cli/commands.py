"""What the commands do, from checked options to a run's folder."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import random
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from archgrad.choices.architecture import Architecture
from archgrad.cli import configuration, folder, models, program
from archgrad.cli.configuration import DemoOptions, Options, SlimOptions, TrainOptions, WorkOptions
from archgrad.costs.count import macs, params
from archgrad.costs.latency import latency
from archgrad.costs.limits import Limit
from archgrad.derive.discretise import build
from archgrad.derive.export import Exported, export_onnx
from archgrad.errors import ConfigError, MissingExtra, ModelError, RunError
from archgrad.methods.dnal import dnal
from archgrad.report import page, text
from archgrad.search.fit import fit
from archgrad.search.found import Found, figures, latencies
from archgrad.search.run import Run
from archgrad.spaces.slim import slim as gated
from archgrad.tasks import Classification, crop, cutout, flip
from archgrad.tasks.task import Inputs

Record = dict[str, Any]
_AUGMENTATIONS = {"crop": crop, "cutout": cutout}
_LOAD = 'import torch\nnetwork = torch.export.load("network.pt2").module()   # needs torch alone\n'


def slim(options: SlimOptions) -> Record:
    """Slim a network; returns the run's record."""
    out = Path(options.out)
    run, task, onnx = _prepared("slim", options, out)
    network = models.load(options.model, classes=task.classes, example=task.example)
    if options.weights:
        models.read_weights(network, options.weights)
    task.check(network)
    _check_paths(network, options.keep)
    space = gated(network, task.example, keep=options.keep)
    folder.write(out, "slim", options)
    with folder.resumable(out):
        found = dnal(
            space,
            task,
            run,
            limit=_limit(options.limit, task.example),
            sparsity=options.sparsity,
            pretrained=options.weights is not None if options.pretrained is None else options.pretrained,
            joint=options.joint,
            gate_epochs=options.gate_epochs,
            round_to=options.round_to,
        )
        _write_onnx(found, out, onnx)
    return found.record


def train(options: TrainOptions) -> Record:
    """Train a plain network, or that of an architecture, from fresh weights; returns the run's record."""
    out = Path(options.out)
    run, task, onnx = _prepared("train", options, out)
    network = models.load(options.model or options.network, classes=task.classes, example=task.example)
    task.check(network)
    architecture = Architecture({})
    if options.architecture:
        architecture = Architecture.load(options.architecture)
        _check_paths(network, options.keep)
        space = gated(network, task.example, keep=options.keep)
        network = build(space, architecture, weights="fresh")
    folder.write(out, "train", options)
    with folder.resumable(out):
        fit(network, task, run)
        found = _trained(network, architecture, task=task, run=run)
        found.save(out)
        _write_onnx(found, out, onnx)
    return found.record


def demo(options: DemoOptions) -> Record:
    """Slim a small CNN on real digits; returns the run's record."""
    from archgrad.demo import demo as show

    _set_threads(options)
    out = Path(options.out)
    onnx = _onnx_wanted(None)
    folder.check(out, "demo", options)
    folder.write(out, "demo", options)
    with folder.resumable(out):
        found = show(out, seed=options.seed, epochs=options.epochs)
        _write_onnx(found, out, onnx)
    return found.record


def resume(out: Path) -> Record:
    """Run the command again that a run's folder was begun with; returns its record."""
    held = folder.read(out)
    out = out.absolute()
    told, directory = {**held["options"], "out": str(out)}, Path(held["directory"])
    # Where the command was given, so that a model's code finds what it found then.
    with contextlib.chdir(directory if directory.is_dir() else Path.cwd()):
        match held["command"]:
            case "slim":
                return slim(configuration.resolve(SlimOptions, told))
            case "train":
                return train(configuration.resolve(TrainOptions, told))
            case "demo":
                return demo(configuration.resolve(DemoOptions, told))
    raise RunError(f"{out / folder.COMMAND} is damaged: {held['command']!r} is no command. Give it again in full.")


def export(out: Path, path: Path | None) -> Exported:
    """Write the network of a run as ONNX, checked against PyTorch."""
    if not out.is_dir():
        raise RunError(f"There is no run folder {out}. Give the folder that was --out.")
    network, example = program.load(out / "network.pt2")
    return export_onnx(network, example, path or out / "network.onnx")


def report(out: Path) -> tuple[Record, Path]:
    """Draw a run's report anew; returns its record and the page."""
    if not out.is_dir():
        raise RunError(f"There is no run folder {out}. Give the folder that was --out.")
    written = page.write(out)
    record: Record = json.loads((out / "record.json").read_text(encoding="utf-8"))
    text.check(record)
    return record, written


def _prepared(command: str, options: WorkOptions, out: Path) -> tuple[Run, Classification, bool]:
    """The run, the task, and whether ONNX is to be written; everything random is seeded after this."""
    _set_threads(options)
    onnx = _onnx_wanted(options.onnx)
    run = Run(
        epochs=options.epochs,
        steps=options.steps,
        seconds=options.seconds,
        seed=options.seed,
        folder=out,
        device=options.device,
        precision=options.precision,
    )
    folder.check(out, command, options)
    augment = [
        flip() if pixels is None else _AUGMENTATIONS[name](pixels)
        for name, pixels in configuration.augmentations(options.augment)
    ]
    task = Classification.load(
        options.data,
        size=options.size,
        skip_corrupt=options.skip_corrupt,
        batch_size=options.batch_size,
        augment=augment,
    )
    # The network's first weights are drawn before the run begins.
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)
    random.seed(options.seed)
    return run, task, onnx


def _set_threads(options: Options) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)


def _onnx_wanted(asked: bool | None) -> bool:
    missing = [p for p in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(p) is None]
    if asked and missing:
        raise MissingExtra(missing[0], "export")
    return not missing if asked is None else asked


def _limit(written: str | None, example: Inputs) -> Limit | None:
    if written is None:
        return None
    limit = configuration.limit(written)
    if limit.cost == "latency_ms":
        return latency(example).at_most(ms=limit.bound)
    cost = macs(example) if limit.cost == "macs" else params()
    return cost.at_most(limit.bound, fraction=limit.fraction)


def _check_paths(network: nn.Module, paths: list[str]) -> None:
    known = [name for name, _ in network.named_modules() if name]
    for path in paths:
        if path not in known:
            near = get_close_matches(path, known, n=5, cutoff=0.3) or known[:5]
            raise ConfigError(f"--keep {path}: the network has no such layer. Near it are {', '.join(near)}.")


def _trained(network: nn.Module, architecture: Architecture, *, task: Classification, run: Run) -> Found:
    example = run.to_device(task.example)
    columns: Record = run.remember("figures", lambda: figures(network, task, example))
    times = run.remember(
        "latency", lambda: latencies({"network": network}, example, runtimes=("eager", "onnx"))["network"]
    )
    record = {
        "method": "train",
        "title": f"{type(network).__name__} trained",
        "after": {**columns, "latency_ms": times},
        "run": {"seed": run.seed, "epochs": run.epochs, "steps": run.max_steps, "seconds": run.seconds},
        "versions": {"torch": torch.__version__},
        "device": str(run.device),
        "data": task.splits,
        "notes": list(run.notes),
        "load": _LOAD,
    }
    costs = {name: columns[name] for name in ("params", "macs")}
    return Found(architecture, network.eval(), next(iter(columns.values())), costs, run.history, record, example)


def _write_onnx(found: Found, out: Path, wanted: bool) -> None:
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
