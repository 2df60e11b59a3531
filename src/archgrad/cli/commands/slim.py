"""What the commands do, from checked options to a run's folder; search, score and train have files of their own."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from archgrad.cli import command_file as folder
from archgrad.cli.commands.setup import check_paths, limit_of, onnx_wanted, prepare, set_threads, write_onnx
from archgrad.cli.inputs import exported_program as program
from archgrad.cli.inputs import models
from archgrad.cli.schemas import commands as configuration
from archgrad.cli.schemas.commands import DemoOptions, SlimOptions, TrainOptions
from archgrad.errors import RunError
from archgrad.extract.export import Exported, export_onnx
from archgrad.methods.dnal import dnal
from archgrad.report.data.run_format import COMMAND
from archgrad.spaces.slim.slimmable import slim as gated

Record = dict[str, Any]


def slim(options: SlimOptions) -> Record:
    """Slim a network; returns the run's record."""
    out = Path(options.out)
    run, task, onnx = prepare("slim", options, out)
    network = models.load(options.model, classes=task.classes, example=task.example)
    if options.weights:
        models.read_weights(network, options.weights)
    task.check(network)
    check_paths(network, options.keep)
    space = gated(network, task.example, keep=options.keep)
    folder.write(out, "slim", options)
    limit = limit_of(options.limit, task.example)
    trained = options.weights is not None if options.pretrained is None else options.pretrained
    # What did best of all in docs/benchmarks/slim.md.
    joint = limit is not None and not trained if options.joint is None else options.joint
    with folder.resumable(out):
        found = dnal(
            space,
            task,
            run,
            limit=limit,
            sparsity=options.sparsity,
            pretrained=trained,
            joint=joint,
            gate_epochs=options.gate_epochs,
            round_to=options.round_to,
        )
        write_onnx(found, out, onnx)
    return found.record


def demo(options: DemoOptions) -> Record:
    """Slim a small CNN on real digits; returns the run's record."""
    from archgrad.demo import demo as show

    set_threads(options)
    out = Path(options.out)
    onnx = onnx_wanted(None)
    folder.check(out, "demo", options)
    folder.write(out, "demo", options)
    with folder.resumable(out):
        found = show(out, seed=options.seed, epochs=options.epochs)
        write_onnx(found, out, onnx)
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
            case "search":
                from archgrad.cli.commands.search import search
                from archgrad.cli.schemas.search import SearchOptions

                return search(configuration.resolve(SearchOptions, told))
            case "control":
                from archgrad.cli.commands.control import control
                from archgrad.cli.schemas.control import ControlOptions

                return control(configuration.resolve(ControlOptions, told))
            case "score":
                from archgrad.cli.commands.score import score
                from archgrad.cli.schemas.score import ScoreOptions

                return score(configuration.resolve(ScoreOptions, told))
            case "train":
                from archgrad.cli.commands.train import train

                return train(configuration.resolve(TrainOptions, told))
            case "transfer":
                from archgrad.cli.commands.transfer import transfer_command
                from archgrad.cli.schemas.transfer import TransferOptions

                return transfer_command(configuration.resolve(TransferOptions, told))
            case "demo":
                return demo(configuration.resolve(DemoOptions, told))
    raise RunError(f"{out / COMMAND} is damaged: {held['command']!r} is no command. Give it again in full.")


def export(out: Path, path: Path | None) -> Exported:
    """Write the network of a run as ONNX, checked against PyTorch."""
    if not out.is_dir():
        raise RunError(f"There is no run folder {out}. Give the folder that was --out.")
    network, example = program.load(out / "network.pt2")
    return export_onnx(network, example, path or out / "network.onnx")
