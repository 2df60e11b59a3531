"""What the commands that search or train begin and end with: task, run, recipe, limit, ONNX."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
import typer
from torch import nn

from archgrad.cli import command_file
from archgrad.cli.inputs import data, models
from archgrad.cli.schemas import limits
from archgrad.cli.schemas.options import NetworkOptions, Options, RunOptions
from archgrad.cli.schemas.recipe import DistillOptions, RecipeOptions
from archgrad.cli.schemas.slim import SlimOptions
from archgrad.costs.count import macs, params
from archgrad.costs.file_size import file_size
from archgrad.costs.latency import latency
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError, MissingExtra, ModelError
from archgrad.extract.export import export_onnx
from archgrad.extract.onnx_file import PACKAGES
from archgrad.extract.preprocessing import Preprocessing
from archgrad.extract.runtimes import Runtime
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.tasks import Distilled, chance_level
from archgrad.tasks.task import Checkable, Inputs, Task, evaluate, higher_is_better
from archgrad.training.recipe import OptimizerFactory, Recipe, adam, adamw, sgd
from archgrad.training.schedules import Schedule, constant, cosine

_OPTIMIZERS: dict[str, OptimizerFactory] = {"sgd": sgd, "adam": adam, "adamw": adamw}
_MUCH = 0.05  # of the better of two scores
_SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "constant": constant}


def begin(
    command: str, options: RunOptions, out: Path, *, trials: int | None = None, workers: str | None = None
) -> Run:
    """The run of a command, before anything is written.

    Raises InputError for a device or a folder that cannot be used, MissingExtra for ONNX without its extra.
    """
    set_threads(options)
    writes_onnx(options.onnx)
    run = Run(
        epochs=options.epochs,
        steps=options.steps,
        trials=trials,
        seconds=options.seconds,
        seed=options.seed,
        folder=out,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
        workers=int(workers) if workers and workers.isdecimal() else workers,
    )
    command_file.check(out, command, options)
    return run.accept(*options.accept)


def seed(number: int) -> None:
    """Seed everything: a network's first weights are drawn before its run begins."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def set_threads(options: Options) -> None:
    """Use the CPU threads that are asked for."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)


def load_network(options: NetworkOptions, task: Task) -> nn.Module:
    """The network of MODEL, with --weights, checked on the task. Raises InputError where it cannot be used."""
    network = models.load(options.model, classes=data.classes_of(task), example=task.example)
    if options.weights:
        models.read_weights(network, options.weights)
    check_network(network, task)
    check_layers(network, options.keep)
    return network


def check_network(network: nn.Module, task: Task) -> None:
    """Raise ModelError where the network does not fit the task, if the task can tell."""
    if isinstance(task, Checkable):
        task.check(network)


def with_teacher(task: Task, options: DistillOptions, network: nn.Module | None = None) -> Task:
    """The task, with a teacher where --distill asks for one.

    Args:
        task: of the data.
        options: of the command.
        network: the command's own, with its weights, which teaches where no other does.

    Raises InputError for a teacher that cannot be used, or whose outputs are not compared.
    """
    if not options.distill:
        return task
    teacher = network
    if options.teacher:
        teacher = models.load(options.teacher, classes=data.classes_of(task), example=task.example)
    assert teacher is not None
    if options.teacher_weights:
        models.read_weights(teacher, options.teacher_weights)
    try:
        distilled = Distilled(
            task, teacher, weight=options.distill_weight or 0.5, temperature=options.temperature or 4.0
        )
        check_network(teacher, task)
    except (ConfigError, ModelError) as error:
        raise type(error)(
            f"--distill: the teacher cannot be used: {error}. A function given as --task may return "
            f"archgrad.Distilled(...) itself, with a loss of yours or with features."
        ) from error
    if options.teacher and (doubts := chance_level.judged(task, teacher, evaluate(task, teacher)).doubts):
        raise ModelError(f"--distill: the teacher cannot be trained: {doubts}. Give its --teacher-weights.")
    return distilled


def check_normalization(network: nn.Module, task: Task, options: SlimOptions) -> None:
    """Ask for --normalize where trained weights do better by another one than by that of the training part.

    Where it was given, and by another one the weights do much better, that is said. Raises ConfigError, which says
    what the weights score by each of the usual ones.
    """
    if not options.weights or options.pretrained is False or not options.check_weights:
        return
    scores = scores_of_other_normalizations(network, task, data=options.normalize is None)
    if not options.normalize and scores:
        raise unknown_normalization(options.weights, scores)
    if not scores:
        return
    better, own = max if higher_is_better(task) else min, next(iter(evaluate(task, network).values()))
    best = better(scores, key=scores.__getitem__)
    if abs(scores[best] - own) > _MUCH * max(abs(own), abs(scores[best])) and better(own, scores[best]) != own:
        typer.echo(
            f"Warning: by --normalize {options.normalize} the given weights score {own:.4g} on the validation part, "
            f"and {scores[best]:.4g} by {best}. Is it what their images were normalized by?", err=True,
        )  # fmt: skip


def scores_of_other_normalizations(network: nn.Module, task: Task, *, data: bool = True) -> dict[str, float]:
    """What trained weights score by each usual normalization; where `data`, only if that of the data is not best."""
    scores = chance_level.scores_by_normalization(task, network)
    better = max if higher_is_better(task) else min
    return scores if scores and not (data and scores.get("data") == better(scores.values())) else {}


def unknown_normalization(weights: str, scores: Mapping[str, float]) -> ConfigError:
    """The error that asks for --normalize."""
    listed = ", ".join(f"{name} {score:.4g}" for name, score in scores.items())
    return ConfigError(
        f"--weights {weights} was given, and not how the images that they were trained on were normalized. On the "
        f"validation part they score, by each: {listed}. Give --normalize with one of these, or MEANS/DEVIATIONS, a "
        f"number a channel."
    )


def check_layers(network: nn.Module, paths: Sequence[str]) -> None:
    """Raise ConfigError where --keep names a layer that the network does not have."""
    known = [path for path, _ in network.named_modules() if path]
    for path in paths:
        if path not in known:
            near = get_close_matches(path, known, n=5, cutoff=0.3) or known[:5]
            raise ConfigError(f"--keep {path}: the network has no such layer. Near it are {', '.join(near)}.")


def recipe_of(options: RecipeOptions, default: Recipe = Recipe()) -> Recipe:
    """The recipe that is asked for; what is not given stays as in the default."""
    rates = {"learning_rate": options.learning_rate, "weight_decay": options.weight_decay}
    given = {name: rate for name, rate in rates.items() if rate is not None}
    factory = _OPTIMIZERS[options.optimizer] if options.optimizer else default.optimizer_factory
    changes = {
        "optimizer_factory": functools.partial(factory, **given) if given else factory,
        "schedule": _SCHEDULES[options.schedule] if options.schedule else None,
        "best_epoch": options.best_epoch or None,
        **{name: getattr(options, name) for name in ("clip", "average", "accumulate", "drop_path")},
    }
    return dataclasses.replace(default, **{name: value for name, value in changes.items() if value is not None})


def recipes_of(options: RecipeOptions, method: Callable[..., Found]) -> dict[str, Recipe]:
    """The recipes that a method takes, by argument: of the network handed back, and of the weights of its search.

    Optimizer, its rates, schedule and clip hold in both; the rest has no effect on weights that are thrown away.
    """
    parameters = inspect.signature(method).parameters
    defaults: dict[str, Recipe] = {
        name: parameters[name].default for name in ("recipe", "search_recipe") if name in parameters
    }
    recipes = {name: recipe_of(options, default) for name, default in defaults.items()}
    if searched := recipes.get("search_recipe"):
        recipes["search_recipe"] = dataclasses.replace(
            defaults["search_recipe"],
            optimizer_factory=searched.optimizer_factory, schedule=searched.schedule, clip=searched.clip,
        )  # fmt: skip
    return recipes


def limit_of(text: str | None, example: Inputs, *, onnx: bool | None) -> Limit | None:
    """The limit of --limit, on networks of inputs like `example`; `onnx`: whether --onnx was given.

    A time without a runtime is that of the file which the run leaves: in ONNX Runtime, or where no ONNX file is
    written in eager PyTorch. Raises LimitError; MissingExtra for a runtime that is not installed.
    """
    if text is None:
        return None
    limit = limits.parse(text)
    if limit.cost in ("macs", "params"):
        return cost_of(limit.cost, example).at_most(limit.bound, fraction=limit.fraction)
    named = limit.cost.removesuffix("_ms").removesuffix("_kb")
    runtime = ("onnx" if writes_onnx(onnx) else "eager") if named == "latency" else named.removesuffix("_int8")
    dtype: Literal["float32", "int8"] = "int8" if named.endswith("_int8") else "float32"
    if limit.cost in limits.SIZES:
        file = cast(Literal["onnx", "executorch"], runtime)
        return file_size(example, runtime=file, dtype=dtype).at_most(kb=limit.bound)
    return latency(example, runtime=cast(Runtime, runtime), dtype=dtype).at_most(ms=limit.bound)


def limits_of(texts: Sequence[str], example: Inputs, *, onnx: bool | None) -> list[Limit] | None:
    """The limits of a --limit that may be repeated; None where there are none. Raises as `limit_of` does."""
    return [limit for text in texts if (limit := limit_of(text, example, onnx=onnx))] or None


def cost_of(name: str, example: Inputs) -> macs | params:
    """The counted cost of that name."""
    return macs(example) if name == "macs" else params()


def writes_onnx(asked: bool | None) -> bool:
    """Whether network.onnx is written. Raises MissingExtra where it is asked for and cannot be."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if asked and missing:
        raise MissingExtra(missing[0], "export")
    return not missing if asked is None else asked


def write_onnx(found: Found, out: Path, asked: bool | None) -> None:
    """Write network.onnx, pixels in and labels out where the data says how; a failure is noted in the record."""
    if not writes_onnx(asked) or found.example is None:
        return
    try:
        preprocessing = Preprocessing.of(found.record.get("data"))
        note = export_onnx(found.network, found.example, out / "network.onnx", preprocess=preprocessing).note
    except (ConfigError, ModelError) as error:
        note = str(error)
    if note:
        found.record["notes"] = [*found.record.get("notes", []), f"network.onnx: {note}"]
        found.save(out)
