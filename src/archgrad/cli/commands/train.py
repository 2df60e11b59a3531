"""`archgrad train`: a plain network, a slimmed architecture, or one that was searched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from archgrad.choices.architecture import Architecture
from archgrad.cli import command_file as folder
from archgrad.cli.commands.setup import check_paths, prepare, write_onnx
from archgrad.cli.inputs import models, spaces
from archgrad.cli.schemas.commands import TrainOptions
from archgrad.errors import ConfigError, ModelError
from archgrad.extract.discretize import build
from archgrad.results.record import conditions
from archgrad.results.result import Found, figures, latencies
from archgrad.run.run import Run
from archgrad.spaces.slim.slimmable import slim as gated
from archgrad.supernets.lifecycle import Described
from archgrad.tasks import Classification
from archgrad.training.fit import fit
from archgrad.training.recipe import OptimizerFactory, Recipe, adamw, sgd

Record = dict[str, Any]
_LOAD = 'import torch\nnetwork = torch.export.load("network.pt2").module()   # needs torch alone\n'
_OPTIMISERS: dict[str, OptimizerFactory] = {"sgd": sgd, "adamw": adamw}


@dataclass(frozen=True)
class _Subject:
    """What is trained.

    Attributes:
        network: with fresh weights, and what is there for training alone.
        architecture: empty for a plain network.
        title: of the report.
        finished: from the trained network to the one that is kept.
        record: what the report shows besides.
    """

    network: nn.Module
    architecture: Architecture
    title: str
    finished: Callable[[nn.Module], nn.Module] = lambda network: network
    record: Record = field(default_factory=dict)


def train(options: TrainOptions) -> Record:
    """Train from fresh weights; returns the run's record."""
    out = Path(options.out)
    run, task, onnx = prepare("train", options, out, smoothing=options.smoothing)
    subject = _subject(options, task)
    task.check(subject.network)
    folder.write(out, "train", options)
    with folder.resumable(out):
        fit(
            subject.network,
            task,
            run,
            recipe=Recipe(
                optimizer_factory=_optimizer(options),
                clip=options.clip,
                drop_path=options.drop_path,
                average=options.average,
            ),
            auxiliary=options.auxiliary,
        )
        found = _trained(subject, options, task=task, run=run)
        found.save(out)
        write_onnx(found, out, onnx)
    return found.record


def _subject(options: TrainOptions, task: Classification) -> _Subject:
    if options.architecture is None:
        network = models.load(options.network, classes=task.classes, example=task.example)
        return _Subject(network, Architecture({}), f"{type(network).__name__} trained")
    architecture = Architecture.load(options.architecture)
    if options.model:
        network = models.load(options.model, classes=task.classes, example=task.example)
        task.check(network)
        check_paths(network, options.keep)
        network = build(gated(network, task.example, keep=options.keep), architecture, weights="fresh")
        return _Subject(network, architecture, f"{type(network).__name__} trained")
    form = spaces.searched_in(
        Path(options.architecture), architecture, options.space, cells=options.cells, channels=options.channels
    )
    if form is None:
        raise ConfigError(
            f"{options.architecture} is an architecture, and no record beside it says which space it is of. Give "
            "--space darts (or another) where it was searched, --model package.module:callable where it was slimmed."
        )
    return _searched(options, task, architecture=architecture, form=form)


def _searched(
    options: TrainOptions, task: Classification, *, architecture: Architecture, form: spaces.SpaceDescription
) -> _Subject:
    """The network of an architecture in the form that is trained for good."""
    space, made = spaces.make(form, task)
    cells = options.cells if options.cells != form.cells else None
    channels = options.channels if options.channels != form.channels else None
    if form.kind in ("darts", "nasbench201"):
        # Given a size, even the same, they take the form that is trained for good.
        cells = cells or form.cells
    plain = functools.partial(build, space, architecture, weights="fresh", cells=cells, channels=channels)
    network = plain(auxiliary=options.auxiliary > 0, drop_path=options.drop_path)
    made |= {name: value for name, value in (("cells", cells), ("channels", channels)) if value is not None}
    described = dict(space.describe(architecture)) if isinstance(space, Described) else {}
    return _Subject(
        network,
        architecture,
        f"{spaces.described(made)} trained",
        finished=lambda trained: _bare(trained, plain()) if options.auxiliary or options.drop_path else trained,
        record={"space": made, **described},
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


def _optimizer(options: TrainOptions) -> OptimizerFactory:
    rates = {"learning_rate": options.learning_rate, "weight_decay": options.weight_decay}
    given = {name: rate for name, rate in rates.items() if rate is not None}
    make = _OPTIMISERS[options.optimizer]
    return functools.partial(make, **given) if given else make


def _trained(subject: _Subject, options: TrainOptions, *, task: Classification, run: Run) -> Found:
    network, example = subject.finished(subject.network).eval(), run.to_device(task.example)
    columns: Record = run.compute_once("figures", lambda: figures(network, task, example))
    times = run.compute_once(
        "latency", lambda: latencies({"network": network}, example, runtimes=("eager", "onnx"))["network"]
    )
    settings = {
        name: getattr(options, name)
        for name in (
            "optimizer", "learning_rate", "weight_decay", "clip", "average", "smoothing", "auxiliary", "drop_path",
        )
    }  # fmt: skip
    record = {
        "method": "train",
        "title": subject.title,
        "after": {**columns, "latency_ms": times},
        "settings": {name: value for name, value in settings.items() if value},
        **conditions(run, task, score=next(iter(columns))),
        "load": _LOAD,
        **subject.record,
    }
    costs = {name: columns[name] for name in ("params", "macs")}
    score = next(iter(columns.values()))
    return Found(subject.architecture, network, score, costs, run.history, record, example)
