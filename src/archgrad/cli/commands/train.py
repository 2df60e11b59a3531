"""`archgrad train`: a plain network, a slimmed architecture, or one that was searched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from archgrad.choices.architecture import Architecture
from archgrad.cli import command_file, command_output, run_setup
from archgrad.cli.inputs import data, models, spaces
from archgrad.cli.schemas.train import TrainOptions
from archgrad.copy_and_run import in_mode
from archgrad.errors import ConfigError, ModelError
from archgrad.extract.discretize import build
from archgrad.results.record import conditions
from archgrad.results.result import Found, keep, measured, note_remarks
from archgrad.run.run import Run
from archgrad.spaces.slim.slimmable import slim
from archgrad.supernets.lifecycle import Described
from archgrad.tasks.task import Task
from archgrad.training.fit import fit

Record = dict[str, Any]
_LOAD = 'import torch\nnetwork = torch.export.load("network.pt2").module()   # needs torch alone\n'


@dataclass(frozen=True)
class _Subject:
    """What is trained.

    Attributes:
        network: with fresh weights, and what is there for training alone.
        architecture: empty for a plain network.
        title: of the report.
        finished: from the trained network to the one that is handed back.
        record: what the report shows besides.
    """

    network: nn.Module
    architecture: Architecture
    title: str
    finished: Callable[[nn.Module], nn.Module] = lambda network: network
    record: Record = field(default_factory=dict)


def execute(options: TrainOptions) -> command_output.Outcome:
    """Train from fresh weights; the outcome is the run's record."""
    out = Path(options.out)
    run = run_setup.begin("train", options, out)
    task = run_setup.with_teacher(data.load_task(options), options)
    run_setup.seed(options.seed)
    subject = _subject(options, task)
    run_setup.check_network(subject.network, task)
    command_file.write(out, "train", options)
    with command_file.resumable(out):
        fit(subject.network, task, run, recipe=run_setup.recipe_of(options), auxiliary=options.auxiliary)
        found = _trained(subject, options, task=task, run=run)
        found.save(out)
        run_setup.write_onnx(found, out, options.onnx)
    return command_output.of_record(found.record, command_output.files_in(out))


def _subject(options: TrainOptions, task: Task) -> _Subject:
    if options.architecture is None:
        network = models.load(options.network, classes=data.classes_of(task), example=task.example)
        return _Subject(network, Architecture({}), f"{type(network).__name__} trained")
    architecture = Architecture.load(options.architecture)
    if options.model:
        network = models.load(options.model, classes=data.classes_of(task), example=task.example)
        run_setup.check_network(network, task)
        run_setup.check_layers(network, options.keep)
        network = build(slim(network, task.example, keep=options.keep), architecture, weights="fresh")
        return _Subject(network, architecture, f"{type(network).__name__} trained")
    description = spaces.searched_in(
        Path(options.architecture), architecture, options.space, cells=options.cells, channels=options.channels
    )
    if description is None:
        raise ConfigError(
            f"{options.architecture} is an architecture, and no record beside it says which space it is of. Give "
            "--space darts (or another) where it was searched, --model package.module:callable where it was slimmed."
        )
    return _searched(options, task, architecture=architecture, description=description)


def _searched(
    options: TrainOptions, task: Task, *, architecture: Architecture, description: spaces.SpaceDescription
) -> _Subject:
    """The network of an architecture in the form that is trained for good."""
    space, space_record = spaces.build_space(description, task)
    drop_path = options.drop_path or 0.0
    cells = options.cells if options.cells != description.cells else None
    channels = options.channels if options.channels != description.channels else None
    if description.kind in ("darts", "nasbench201"):
        # Given a size, even the same, they take the form that is trained for good.
        cells = cells or description.cells
    plain = functools.partial(build, space, architecture, weights="fresh", cells=cells, channels=channels)
    network = plain(auxiliary=options.auxiliary > 0, drop_path=drop_path)
    space_record |= {name: value for name, value in (("cells", cells), ("channels", channels)) if value is not None}
    described = dict(space.describe(architecture)) if isinstance(space, Described) else {}
    return _Subject(
        network,
        architecture,
        f"{spaces.in_words(space_record)} trained",
        finished=lambda trained: _bare(trained, plain()) if options.auxiliary or drop_path else trained,
        record={"space": space_record, **described},
    )


def _bare(trained: nn.Module, plain: nn.Module) -> nn.Module:
    """The plain network with the trained weights: without an auxiliary head, without drop-path."""
    suffix = ".drop_path"
    # Drop-path wraps an operation: "....3.op.weight" where the plain network has "....3.weight".
    wrapped = {f"{path.removesuffix(suffix)}.op." for path, _ in trained.named_modules() if path.endswith(suffix)}
    state = {}
    for name, tensor in trained.state_dict().items():
        around = next((prefix for prefix in wrapped if name.startswith(prefix)), "")
        state[f"{around.removesuffix('op.')}{name.removeprefix(around)}"] = tensor
    missing = [name for name in plain.state_dict() if name not in state]
    if missing:
        raise ModelError(
            f"the trained network lacks {missing[:3]} ({len(missing)} in all), which it has without auxiliary head "
            "and drop-path. Let the space's `resized` name its modules alike with and without them."
        )
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    return plain.to(next(trained.parameters()).device)


def _trained(subject: _Subject, options: TrainOptions, *, task: Task, run: Run) -> Found:
    network, example = in_mode(subject.finished(subject.network)), run.to_device(task.example)
    keep(subject.architecture, network, run)
    columns, score = measured({"network": network}, task, run, example)
    note_remarks(network, task, run, example)
    settings = {"recipe": run_setup.recipe_of(options).record(), "auxiliary": options.auxiliary}
    after = columns["network"]
    record = {
        "method": "train",
        "title": subject.title,
        "after": after,
        "settings": settings,
        **conditions(run, task, score=score),
        "load": _LOAD,
        **subject.record,
    }
    costs: dict[str, float] = {name: after[name] for name in ("params", "macs") if name in after}
    return Found(subject.architecture, network, after.get(score or ""), costs, run.history, record, example)
