"""`--dry-run`: what slim, search or transfer would do; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import nn

from archgrad.choices.access import choices, decisions, relax, sample
from archgrad.choices.relaxations import Softmax
from archgrad.cli import run_setup
from archgrad.cli.command_output import Outcome
from archgrad.cli.commands.search import described_space, search_fraction, searched
from archgrad.cli.commands.slim import slimmed
from archgrad.cli.commands.transfer import protocol_of, pruned
from archgrad.cli.inputs import data, spaces
from archgrad.cli.schemas.methods import METHODS
from archgrad.cli.schemas.options import Options
from archgrad.cli.schemas.search import SearchOptions
from archgrad.cli.schemas.slim import SlimOptions
from archgrad.cli.schemas.transfer import TransferOptions
from archgrad.costs.count import macs, params
from archgrad.costs.limits import Limit
from archgrad.costs.memory import GIB
from archgrad.errors import ConfigError
from archgrad.extract.discretize import build
from archgrad.gates.selection import GateConstraint
from archgrad.gates.width_rounding import WidthRounding
from archgrad.methods.pruning_transfer.transfer import check
from archgrad.report import numbers
from archgrad.run.run import Run
from archgrad.spaces.slim.slimmable import frozen, slim
from archgrad.supernets.constraint import SAMPLES, ArchitectureConstraint
from archgrad.supernets.lifecycle import predict_peak_memory, prepare_supernet, split_steps
from archgrad.tasks.classification import Classification
from archgrad.tasks.task import Task, description
from archgrad.training.recipe import adam

Plan = dict[str, Any]
_ASKED_BY_GATES = 20  # networks that are exported and timed for a measured limit


def plan(command: str, options: Options) -> Outcome:
    """What the command would do.

    Raises:
        InputError: what the command itself would refuse, such as a limit that cannot be kept.
        ConfigError: a method that trains nothing.
    """
    assert isinstance(options, SlimOptions | SearchOptions | TransferOptions)
    if isinstance(options, SearchOptions) and METHODS[options.method].trains == "nothing":
        raise ConfigError(f"{options.method} trains nothing and takes seconds: leave --dry-run out")
    # The checks of the command itself. This run is never begun, so its folder is only looked at.
    run_setup.begin(command, options, Path(options.out))
    task = data.load(options.data, options) if isinstance(options, TransferOptions) else data.load_task(options)
    if not (isinstance(options, SearchOptions) and options.method == "radars"):  # it first runs every candidate
        _rehearse(options, task)
    run_setup.seed(options.seed)
    run = Run(epochs=options.epochs, steps=options.steps, seconds=options.seconds, seed=options.seed,
              device=options.device, precision=options.precision, progress=False)  # fmt: skip
    total = run.total_steps(task.steps_per_epoch, default_epochs=60)
    run.begin("dry", {}, task=task)
    try:
        body = _search(options, task, run) if isinstance(options, SearchOptions) else _slim(options, task, run)
    finally:
        run.close()
    parts = description(task)
    body |= {
        "command": command,
        "steps": total,
        "steps_per_epoch": task.steps_per_epoch,
        "device": str(run.device),
        "folder": options.out,
        "folder_state": _folder_state(Path(options.out)),
        "data": {name: parts.get(name, {}).get("size") for name in ("train", "valid", "test")},
        "notes": list(run.notes),
    }
    # A budget of seconds is for training steps alone.
    body["seconds"] = min(body["step_seconds"] * total, options.seconds or float("inf")) + body["limit_seconds"]
    return Outcome(body, "\n".join(_lines(body)))


class _Training(BaseException):  # a trial that fails by an Exception is left out
    """The rehearsal has come to the first training step, or to hundreds of measurements: nothing was refused."""


class _Rehearsal(Run):
    """A run without a folder that stops where the long part would begin."""

    def steps(self, n: int, *, phase: str = "search", time_fraction: float = 1.0, counted: bool = True) -> NoReturn:
        """Raises _Training."""
        raise _Training

    def compute_once(self, key: str, compute: Callable[[], Any]) -> Any:
        """The value, unless it is the prices of the networks that a measured limit asks for."""
        if key.startswith("prices"):
            raise _Training
        return super().compute_once(key, compute)


def _rehearse(options: SlimOptions | SearchOptions | TransferOptions, task: Task) -> None:
    """What the command checks before its first training step; it raises what the command would."""
    run_setup.seed(options.seed)
    run = _Rehearsal(
        epochs=options.epochs, steps=options.steps, seconds=options.seconds, seed=options.seed, device=options.device,
        precision=options.precision, compile=options.compile, progress=False,
        trials=options.trials if isinstance(options, SearchOptions) else None,
    )  # fmt: skip
    try:
        if isinstance(options, SearchOptions):
            task = run_setup.with_teacher(task, options)
            space, _ = spaces.build_space(described_space(options), task)
            limit = run_setup.limit_of(options.limit, task.example, onnx=False)
            searched(space, task, run, options, limit)
        elif isinstance(options, SlimOptions):
            network = run_setup.load_network(options, task)
            task = run_setup.with_teacher(task, options, network)
            limits = None if options.front else run_setup.limits_of(options.limit, task.example, onnx=options.onnx)
            slimmed(slim(network, task.example, keep=options.keep), task, run, options, limits)
        else:
            target = data.load(options.target, options.model_copy(update={"augment": ""}))
            network = run_setup.load_network(options, task)
            space = slim(network, task.example, keep=options.keep, inputs=options.inputs)
            check(space, cast(Classification, task), target, protocol_of(options))
            pruned(space, task, run, options)
    except _Training:
        pass
    finally:
        run.close()


def _folder_state(folder: Path) -> str:
    if not (folder / "run.json").exists():
        return "free"
    return "holds this run, finished" if (folder / "record.json").exists() else "holds this run: it would go on"


def _slim(options: SlimOptions | TransferOptions, task: Task, run: Run) -> Plan:
    network = run_setup.load_network(options, task)
    if isinstance(options, SlimOptions):
        run_setup.check_normalization(network, task, options)
        task = run_setup.with_teacher(task, options, network)
    space = slim(network, task.example, keep=options.keep).to(run.device)
    round_to = options.rounding if isinstance(options, SlimOptions) else 1
    limits = _limits_of(options, task)
    began = time.perf_counter()
    bounds = [
        GateConstraint(space, limit, WidthRounding(None if round_to == "auto" else round_to)).bound
        for limit in limits
    ]
    asked = (time.perf_counter() - began) / 2  # a bound asks for the whole and the smallest network
    measured = any(limit.cost.measured for limit in limits)
    told = [_limit(limit, bound) for limit, bound in zip(limits, bounds, strict=True)]
    factory = run_setup.recipe_of(options).optimizer_factory if isinstance(options, SlimOptions) else adam
    return {
        "predicted_peak_bytes": predict_peak_memory(space, task, run, optimizer=factory),
        "before": _figures(network, task),
        "limit": told[0] if told else None,
        "other_limits": told[1:],
        "step_seconds": _step_seconds(network.to(run.device), task, run),
        "timed": "a training step of the unslimmed network; steps after the cut are shorter",
        "limit_seconds": _ASKED_BY_GATES * asked if measured else 0.0,
        "gates": len(choices(space)),
        "frozen": frozen(space),
    }


def _limits_of(options: SlimOptions | TransferOptions, task: Task) -> list[Limit]:
    """All that hold at once, or those of a front."""
    if isinstance(options, TransferOptions):
        limit = run_setup.limit_of(options.limit, task.example, onnx=options.onnx)
        return [limit] if limit else []
    if options.front is not None:
        cost = run_setup.cost_of(options.front[0], task.example)
        return [cost.at_most(fraction=fraction) for fraction in options.front[1]]
    return run_setup.limits_of(options.limit, task.example, onnx=options.onnx) or []


def _search(options: SearchOptions, task: Task, run: Run) -> Plan:
    method, task = METHODS[options.method], run_setup.with_teacher(task, options)
    space, described = spaces.build_space(described_space(options), task)
    search_steps, train_steps = split_steps(run, task, search_fraction(options, method.load()))
    limit = run_setup.limit_of(options.limit, task.example, onnx=False)
    bound = None
    if limit is not None:
        # A measured bound is settled by the search itself, on hundreds of networks.
        bound = limit.bound if limit.cost.measured else ArchitectureConstraint(space, limit).bound
    sampled = build(space, sample(space, generator=torch.Generator().manual_seed(options.seed)), weights="fresh")
    trained, peak = sampled.to(run.device), None
    recipes, asked = run_setup.recipes_of(options, method.load()), 0.0
    if limit is not None and limit.cost.measured:
        began = time.perf_counter()
        limit.cost.of(sampled)
        # So many networks are measured first, for the surrogate of the limit.
        wanted = min(max(2 * sum(c.size for c in decisions(space).values()), SAMPLES[0]), SAMPLES[1])
        asked = wanted * (time.perf_counter() - began)
    if method.trains == "networks":
        peak = predict_peak_memory(space, task, run, optimizer=recipes["recipe"].optimizer_factory, drawn=5)
    elif method.trains == "supernet":
        trained = relax(prepare_supernet(space, run, needs=options.method), Softmax)
        factory = recipes["search_recipe"].optimizer_factory
        peak = predict_peak_memory(trained, task, run, optimizer=factory, passes=method.passes)
    return {
        "method": options.method,
        "space": spaces.in_words(described),
        "search_steps": search_steps,
        "train_steps": train_steps,
        "predicted_peak_bytes": peak,
        "one_of_the_space": _figures(sampled, task),
        "limit": _limit(limit, bound),
        "limit_seconds": asked,
        "step_seconds": _step_seconds(trained, task, run),
        "timed": "a training step of " + ("one sampled network" if trained is sampled else
                 "the supernet; a step of the search takes two or more of them"),
    }  # fmt: skip


def _figures(network: nn.Module, task: Task) -> dict[str, float]:
    return {"params": params().of(network), "macs": macs(task.example).of(network)}


def _limit(limit: Limit | None, bound: float | None) -> Plan | None:
    return None if limit is None else {"cost": limit.cost.name, "unit": limit.cost.unit, "bound": bound}


def _step_seconds(network: nn.Module, task: Task, run: Run) -> float:
    """Seconds of a forward and backward pass: the faster of two, after one to warm up."""
    batch = run.to_device(task.stream(seed=run.seed)(0))
    weights = [p for p in network.parameters() if p.requires_grad]
    network.train()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        torch.autograd.grad(task.loss(network, batch), weights, allow_unused=True)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _lines(plan: Mapping[str, Any]) -> list[str]:
    """The plan as a person reads it."""
    limit, peak = plan["limit"], plan["predicted_peak_bytes"]
    figures = plan.get("before") or plan["one_of_the_space"]
    whose = "before" if "before" in plan else "one network of the space"
    limits = [each for each in (limit, *plan.get("other_limits", [])) if each]
    rows = [
        ("steps", f"{plan['steps']:,}, at {plan['steps_per_epoch']:,} an epoch" + _divided(plan)),
        ("data", _data(plan["data"])),
        ("memory at the peak", "not predicted" if peak is None else f"{peak / GIB:,.3g} GiB, predicted"),
        (whose, f"{figures['params']:,.0f} parameters, {figures['macs']:,.0f} MACs"),
        ("limit", "; ".join(map(_bounded, limits)) or "none"),
        ("time", f"about {plan['seconds']:,.3g} s on {plan['device']}, at {plan['step_seconds']:.3g} s for "
                 f"{plan['timed']}" + _measuring(plan["limit_seconds"])),
        ("folder", f"{plan['folder']} ({plan['folder_state']})"),
    ]  # fmt: skip
    if "gates" in plan:
        rows.insert(
            4,
            (
                "can be slimmed",
                f"{numbers.counted(plan['gates'], 'group')}; frozen: {numbers.counted(len(plan['frozen']), 'layer')}",
            ),
        )
    aligned = [f"{name + ':':<26}{text}" for name, text in rows]
    return [f"archgrad {plan['command']} would do this; nothing was written.", *aligned, *plan["notes"]]


def _measuring(seconds: float) -> str:
    return f", {seconds:,.3g} s of it to measure networks for the limit" if seconds else ""


def _bounded(limit: Mapping[str, Any]) -> str:
    name, unit = numbers.label(str(limit["cost"])), str(limit["unit"])
    bound = "settled by measuring" if limit["bound"] is None else numbers.amount(limit["bound"], unit)
    return f"at most {bound}" if name == unit and limit["bound"] is not None else f"{name} at most {bound}"


def _data(sizes: Mapping[str, int | None]) -> str:
    purposes = {"train": "to train", "valid": "to validate", "test": "to test"}
    known = [f"{sizes[part]:,} {purpose}" for part, purpose in purposes.items() if sizes[part] is not None]
    return ", ".join(known) or "the task does not say how many samples it has"


def _divided(plan: Mapping[str, Any]) -> str:
    return f"; {plan['search_steps']:,} search, {plan['train_steps']:,} train" if "search_steps" in plan else ""
