"""`archgrad search`: find an architecture in a space, by the method that the table of methods names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from archgrad.cli import command_file, command_output, run_setup
from archgrad.cli.inputs import accuracy_table, data, spaces
from archgrad.cli.schemas.methods import METHODS
from archgrad.cli.schemas.options import TABLE_DATA
from archgrad.cli.schemas.search import SearchOptions
from archgrad.costs.limits import Limit
from archgrad.report import page
from archgrad.report.data.run_folder import write_record
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.tasks.task import Task

_CLASSES, _CHANNELS, _SIDE = 10, 3, 32  # of images where no data says otherwise: those of CIFAR-10
_LARGER = """
Next, a larger network of the same cells:
  archgrad train {out}/architecture.json DATA --cells 20 --channels 36 --auxiliary 0.4 --drop-path 0.2"""


def execute(options: SearchOptions) -> command_output.Outcome:
    """Search a space; the outcome is the run's record."""
    out, method = Path(options.out), METHODS[options.method]
    function = method.load()
    run = run_setup.begin("search", options, out, trials=options.trials, workers=options.workers)
    task = run_setup.with_teacher(data.load_task(options), options) if options.data or options.task else None
    table = accuracy_table.load(options.table, data=options.table_data or TABLE_DATA[0]) if options.table else None
    run_setup.seed(options.seed)
    subject = _shape(options) if task is None else task
    space, described = spaces.build_space(described_space(options), subject)
    limit = run_setup.limit_of(options.limit, subject.example, onnx=False)  # each of hundreds would be exported
    arguments = method.arguments(options, subject.example)
    command_file.write(out, "search", options)
    with command_file.resumable(out):
        if method.trains == "nothing":
            found: Found = function(space, run, example=subject.example, limit=limit, **arguments)
        else:
            assert task is not None
            found = searched(space, task, run, options, limit)
        if table is not None:
            found.record.update(accuracy_table.compare(found.record, found.architecture, table))
        _record(found, out, described)
        run_setup.write_onnx(found, out, options.onnx)
    larger = _LARGER.format(out=options.out) if options.space == "darts" else ""
    return command_output.of_record(found.record, command_output.files_in(out), larger)


def searched(space: nn.Module, task: Task, run: Run, options: SearchOptions, limit: Limit | None) -> Found:
    """What the method finds that the options ask for, of those that train."""
    method = METHODS[options.method]
    function = method.load()
    found: Found = function(
        space, task, run, limit=limit, search_fraction=search_fraction(options, function),
        **run_setup.recipes_of(options, function), **method.arguments(options, task.example),
    )  # fmt: skip
    return found


def search_fraction(options: SearchOptions, function: Callable[..., Any]) -> float:
    """The one that is asked for, else the method's own."""
    own: float = inspect.signature(function).parameters["search_fraction"].default
    return own if options.search_fraction is None else options.search_fraction


def described_space(options: SearchOptions) -> spaces.SpaceDescription:
    """The space that is asked for."""
    factorized = METHODS[options.method].factorized if options.factorized is None else options.factorized
    return spaces.describe(options.space, cells=options.cells, channels=options.channels, factorized=factorized)


def _shape(options: SearchOptions) -> spaces.Shape:
    side = options.size or _SIDE
    return spaces.Shape(options.classes or _CLASSES, torch.ones(1, options.in_channels or _CHANNELS, side, side))


def _record(found: Found, out: Path, space: dict[str, Any]) -> None:
    """Add the space to what the method wrote: for the reader, and for `archgrad train`."""
    found.record["space"] = space
    found.record["settings"] = {"space": spaces.in_words(space), **found.record["settings"]}
    write_record(out, found.record)
    page.write(out)
