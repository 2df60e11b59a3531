"""`archgrad search`: find an architecture in a space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from archgrad.cli import command_file as folder
from archgrad.cli.commands.setup import begin, limit_of, prepare, seed, write_onnx
from archgrad.cli.inputs import spaces
from archgrad.cli.schemas.commands import TABLE_DATA
from archgrad.cli.schemas.search import SearchOptions
from archgrad.costs.count import macs, params
from archgrad.costs.memory import peak_memory
from archgrad.methods.darts import darts
from archgrad.methods.darts_prime.darts_prime import darts_prime
from archgrad.methods.freenas.freenas import freenas
from archgrad.methods.monas.monas import monas
from archgrad.methods.monas.rewards import mixed, under
from archgrad.methods.multimodal_random.multimodal_random import multimodal_random
from archgrad.methods.radars.radars import radars
from archgrad.methods.random_search import random_search
from archgrad.methods.toponas.toponas import toponas
from archgrad.methods.unas.unas import unas
from archgrad.report import page
from archgrad.report.data.run_folder import write_record
from archgrad.results.result import Found
from archgrad.run.run import Run

_PLAIN: dict[str, Callable[..., Found]] = {
    "unas": unas, "darts": darts, "darts_prime": darts_prime, "toponas": toponas,
    "multimodal_random": multimodal_random,
}  # fmt: skip
_CLASSES, _CHANNELS, _SIDE = 10, 3, 32  # of images where no data says otherwise: those of CIFAR-10


def search(options: SearchOptions) -> dict[str, Any]:
    """Search a space; returns the run's record."""
    out = Path(options.out)
    if options.method == "freenas":
        return _free(options, out)
    run, task, onnx = prepare("search", options, out, trials=options.trials, workers=options.workers)
    space, made = spaces.make(_form(options), task)
    limit, share = limit_of(options.limit, task.example), options.search_fraction
    folder.write(out, "search", options)
    with folder.resumable(out):
        if options.method == "random_search":
            found = random_search(space, task, run, limit=limit, shared=options.shared, search_fraction=share)
        elif options.method == "monas":
            count = macs(task.example)
            reward = under() if options.alpha is None else mixed(count, alpha=options.alpha)
            found = monas(
                space, task, run, reward=reward, limit=limit, costs=(count, params()), search_fraction=share
            )
        elif options.method == "radars":
            bound = peak_memory(task.example, batch=options.batch_size)
            memory = bound.at_most(gib=options.memory_gib) if options.memory_gib else None
            found = radars(space, task, run, limit=limit, memory=memory, search_fraction=share)
        else:
            found = _PLAIN[options.method](space, task, run, limit=limit, search_fraction=share)
        _record(found, out, made)
        write_onnx(found, out, onnx)
    return found.record


def _free(options: SearchOptions, out: Path) -> dict[str, Any]:
    """FreeNAS, which needs no data; of data that is given it takes the shape and the classes."""
    run, onnx, shape = _shaped(options, out)
    table = None
    if options.table:
        from archgrad.cli.inputs import accuracy_table as tables

        table = tables.load(options.table, data=options.table_data or TABLE_DATA[0])
    space, made = spaces.make(_form(options), shape)
    limit = limit_of(options.limit, shape.example)
    folder.write(out, "search", options)
    with folder.resumable(out):
        found = freenas(
            space,
            run,
            example=shape.example,
            rounds=options.rounds or 1,
            norm=options.norm or "off",
            seeds=options.seeds or 3,
            limit=limit,
        )
        if table is not None:
            found.record.update(tables.judged(found.record, found.architecture, table))
        _record(found, out, made)
        write_onnx(found, out, onnx)
    return found.record


def _shaped(options: SearchOptions, out: Path) -> tuple[Run, bool, spaces.Fits]:
    if options.data:
        run, task, onnx = prepare("search", options, out)
        return run, onnx, task
    run, onnx = begin("search", options, out)
    side = options.size or _SIDE
    example = torch.ones(1, options.in_channels or _CHANNELS, side, side)
    seed(options.seed)
    return run, onnx, spaces.Shape(options.classes or _CLASSES, example)


def _form(options: SearchOptions) -> spaces.SpaceDescription:
    factorized = options.method == "unas" if options.factorized is None else options.factorized
    return spaces.form(options.space, cells=options.cells, channels=options.channels, factorized=factorized)


def _record(found: Found, out: Path, space: dict[str, Any]) -> None:
    """Add the space to what the method wrote: for the reader, and for `archgrad train`."""
    found.record["space"] = space
    found.record["settings"] = {"space": spaces.described(space), **found.record["settings"]}
    write_record(out, found.record)
    page.write(out)
