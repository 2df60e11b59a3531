"""`--dry-run`: what slim, search or transfer would do, found out without writing anything."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from archgrad.choices.access import choices, relax, sample
from archgrad.choices.relaxations import Softmax
from archgrad.cli.commands.setup import check_paths, limit_of, prepare
from archgrad.cli.inputs import models, spaces
from archgrad.cli.schemas.commands import SlimOptions
from archgrad.cli.schemas.search import SearchOptions
from archgrad.cli.schemas.transfer import TransferOptions
from archgrad.costs.count import macs, params
from archgrad.costs.limits import Limit
from archgrad.costs.memory import GIB
from archgrad.errors import ConfigError
from archgrad.extract.discretize import build
from archgrad.gates.selection import GateConstraint, WidthRounding
from archgrad.run.run import Run
from archgrad.spaces.slim.slimmable import frozen, slim
from archgrad.supernets.constraint import ArchitectureConstraint
from archgrad.supernets.lifecycle import predict_peak_memory, prepare_supernet, split_steps
from archgrad.tasks import Classification
from archgrad.tasks.task import Task
from archgrad.training.recipe import sgd

Plan = dict[str, Any]
Planned = SlimOptions | SearchOptions | TransferOptions
# Methods that train networks one by one, and those that hold several passes of one supernet at once.
_APART = ("random_search", "monas", "multimodal_random")
_PASSES = {"unas": 2}


def plan(command: str, options: Planned) -> Plan:
    """What the command would do.

    Raises:
        InputError: what the command itself would refuse, such as a limit that cannot be kept.
        ConfigError: freenas, which trains nothing.
    """
    if isinstance(options, SearchOptions) and options.method == "freenas":
        raise ConfigError("freenas trains nothing and takes seconds: leave --dry-run out")
    # The same checks as in earnest. The run that is made here is never begun, so its folder is only looked at.
    _, task, _ = prepare(command, options, Path(options.out))
    run = Run(epochs=options.epochs, steps=options.steps, seconds=options.seconds, seed=options.seed,
              device=options.device, precision=options.precision, progress=False)  # fmt: skip
    total = run.total_steps(task.steps_per_epoch, default_epochs=60)
    run.begin("dry", {})
    try:
        body = _searched(options, task, run) if isinstance(options, SearchOptions) else _slimmed(options, task, run)
    finally:
        run.close()
    known: Plan = {
        "command": command,
        "steps": total,
        "steps_per_epoch": task.steps_per_epoch,
        "device": str(run.device),
        "folder": options.out,
        "folder_state": "holds this run: it would go on" if (Path(options.out) / "run.json").exists() else "free",
        "data": {name: task.splits[name]["size"] for name in ("train", "valid", "test")},
        "notes": list(run.notes),
        **body,
    }
    each = known["step_seconds"]
    known["seconds"] = None if each is None else min(each * total, options.seconds or float("inf"))
    return known


def _slimmed(options: SlimOptions | TransferOptions, task: Classification, run: Run) -> Plan:
    network = models.load(options.model, classes=task.classes, example=task.example)
    if options.weights:
        models.read_weights(network, options.weights)
    task.check(network)
    check_paths(network, options.keep)
    space = slim(network, task.example, keep=options.keep).to(run.device)
    round_to = options.round_to if isinstance(options, SlimOptions) else 1
    limit = limit_of(options.limit, task.example)
    constraint = GateConstraint(space, limit, WidthRounding(round_to)) if limit else None
    return {
        "predicted_peak_bytes": predict_peak_memory(space, task, run, optimizer=sgd),
        "before": _figures(network, task),
        "limit": _limit(limit, constraint.bound if constraint else None),
        "step_seconds": _timed(network.to(run.device), task, run),
        "timed": "a training step of the whole network; steps after the cut are shorter",
        "gates": len(choices(space)),
        "frozen": frozen(space),
    }


def _searched(options: SearchOptions, task: Classification, run: Run) -> Plan:
    factorized = options.method == "unas" if options.factorized is None else options.factorized
    form = spaces.form(options.space, cells=options.cells, channels=options.channels, factorized=factorized)
    space, made = spaces.make(form, task)
    first, rest = split_steps(run, task, options.search_fraction)
    limit = limit_of(options.limit, task.example)
    bound = None
    if limit is not None:
        # A measured bound is settled by the search itself, on hundreds of networks.
        bound = limit.bound if limit.cost.measured else ArchitectureConstraint(space, limit).bound
    apart = options.method in _APART
    drawn = build(space, sample(space, generator=torch.Generator().manual_seed(options.seed)), weights="fresh")
    mixed = space if apart else relax(prepare_supernet(space, run, needs=options.method), Softmax)
    bounded = options.method == "radars"
    peak = None if bounded else predict_peak_memory(
        mixed, task, run, optimizer=sgd, passes=_PASSES.get(options.method, 1), drawn=5 if apart else 0
    )  # fmt: skip
    trained = drawn.to(run.device) if apart or bounded else mixed
    return {
        "method": options.method,
        "space": spaces.described(made),
        "search_steps": first,
        "train_steps": rest,
        "predicted_peak_bytes": peak,
        "one_of_the_space": _figures(drawn, task),
        "limit": _limit(limit, bound),
        "step_seconds": _timed(trained, task, run),
        "timed": "a training step of " + ("one drawn network" if trained is drawn else
                 "the supernet; a step of the search takes two or more of them"),
    }  # fmt: skip


def _figures(network: nn.Module, task: Classification) -> dict[str, float]:
    return {"params": params().of(network), "macs": macs(task.example).of(network)}


def _limit(limit: Limit | None, bound: float | None) -> Plan | None:
    return None if limit is None else {"cost": limit.cost.name, "unit": limit.cost.unit, "bound": bound}


def _timed(network: nn.Module, task: Task, run: Run) -> float:
    """Seconds of a forward and backward pass: the faster of two, after one to warm up."""
    batch = run.to_device(task.stream(seed=run.seed)(0))
    weights = [p for p in network.parameters() if p.requires_grad]
    network.train()
    took = []
    for _ in range(3):
        began = time.perf_counter()
        torch.autograd.grad(task.loss(network, batch), weights, allow_unused=True)
        took.append(time.perf_counter() - began)
    return min(took[1:])


def lines(plan: Mapping[str, Any]) -> list[str]:
    """The plan as a person reads it."""
    data, limit, peak = plan["data"], plan["limit"], plan["predicted_peak_bytes"]
    figures = plan.get("before") or plan["one_of_the_space"]
    whose = "before" if "before" in plan else "one network of the space"
    bound = limit and ("settled by measuring" if limit["bound"] is None else f"{limit['bound']:,.6g} {limit['unit']}")
    rows = [
        ("steps", f"{plan['steps']:,}, at {plan['steps_per_epoch']:,} an epoch" + _divided(plan)),
        ("data", f"{data['train']:,} to train, {data['valid']:,} to validate, {data['test']:,} to test"),
        ("memory at the peak", "not foreseen" if peak is None else f"{peak / GIB:,.3g} GiB, predicted"),
        (whose, f"{figures['params']:,.0f} parameters, {figures['macs']:,.0f} MACs"),
        ("limit", f"{limit['cost']} at most {bound}" if limit else "none"),
        ("time", f"about {plan['seconds']:,.3g} s on {plan['device']}, at {plan['step_seconds']:.3g} s for "
                 f"{plan['timed']}"),
        ("folder", f"{plan['folder']} ({plan['folder_state']})"),
    ]  # fmt: skip
    if "gates" in plan:
        rows.insert(4, ("can be slimmed", f"{plan['gates']} groups; {len(plan['frozen'])} layers are frozen"))
    said = [f"{name + ':':<26}{text}" for name, text in rows]
    return [f"archgrad {plan['command']} would do this; nothing was written.", *said, *plan["notes"]]


def _divided(plan: Mapping[str, Any]) -> str:
    return f"; {plan['search_steps']:,} search, {plan['train_steps']:,} train" if "search_steps" in plan else ""
