"""Runs that are resumed with one thing changed, drawn with a seed: which changes are noticed.

A draw begins a run, changes one setting of the program (of network, recipe, task, data, method or process), and
resumes the run with it. The change is "refused" by its name or "noted" in the run; else it is "missed", or, where it
changes nothing that is computed, "went on". Controls are resumed by the same program, built anew, in this process or
in another one with other hashes and in another place: they must go on without a word.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import linecache
import os
import random
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from reliability_program import ALSO, HARMLESS, PROGRAM, SETTINGS, Settings
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, WeightedRandomSampler

import archgrad as ag
from archgrad.errors import RunError


def samples(settings: Settings) -> tuple[Tensor, Tensor]:
    """Inputs [N, 1, 6, 6] and labels [N]."""
    x = torch.randn(60, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    x, y = (32 * x).clamp(-128, 127) + 128, torch.arange(60) % 3
    x = x.to(torch.uint8) if settings["inputs"] == "uint8" else x
    if settings["pixel"]:
        x[settings["pixel"], 0, 2, 3] = 255 - x[settings["pixel"], 0, 2, 3]
    order = {
        "as drawn": list(range(60)), "reversed": list(range(60))[::-1], "two exchanged": [1, 0, *range(2, 60)]
    }  # fmt: skip
    x, y = x[order[settings["order"]]], y[order[settings["order"]]]
    other = {"rolled": y.roll(1), "two exchanged": y[[*range(40), 41, 40, *range(42, 60)]], "as drawn": y}
    y = other.get(settings["labels"], torch.cat([y[:50], (y[50:51] + 1) % 3, y[51:]]))
    return x[: settings["samples"]], y[: settings["samples"]]


def task_of(settings: Settings, program: dict[str, Any]) -> Any:
    """The task of a program."""
    x, y = samples(settings)
    items = functools.partial(program["items"], own=settings["data"] == "own draws")
    data: Any = (x, y) if settings["data"] == "arrays" else items(x + settings["source"], y)
    if settings["data"] == "Subset":
        data = Subset(data, [*range(settings["subset"], 50)])
    elif settings["data"] == "ConcatDataset":
        halves = [items(x[:30], y[:30]), items(x[30:], y[30:])]
        data = ConcatDataset(halves[::-1] if settings["concatenated"] else halves)
    elif settings["data"] == "DataLoader":
        weights = torch.ones(len(x)).index_fill(0, torch.arange(5), settings["sampled"])
        sampler = WeightedRandomSampler(weights, settings["draws"])
        more = {"num_workers": settings["loaders"], "drop_last": settings["drop_last"]}
        data = DataLoader(data, settings["batch_size"], sampler=sampler, pin_memory=settings["pinned"], **more)
    test: Any = None
    if settings["test"] != "split off":
        test = (255 - x[:20] if settings["test"] == "given" else 254 - x[:20], y[:20])
        test = test if settings["data"] == "arrays" else items(*test)
    augment = {"none": [], "noise": [program["noise"]], "flip": [ag.flip()], "crop": [ag.crop(settings["crop"])]}
    groups = torch.arange(settings["samples"]) // settings["groups"] if settings["groups"] else None
    stratify = None if groups is not None else settings["stratify"]
    split = ag.Split(settings["valid_fraction"], settings["split_seed"], stratify=stratify, groups=groups)
    options = {
        "batch_size": settings["batch_size"], "augment": augment[settings["augment"]], "split": split,
        "normalize": settings["normalize"],
    }  # fmt: skip
    if settings["task"] in ("Supervised", "weighted", "own module"):
        score = ag.lower("loss") if settings["score"] == "loss" else ag.higher(settings["metric_name"])
        metrics = {settings["metric_name"]: program["METRIC"]}
        options["collate_fn"] = program["collate"] if settings["data"] == "Dataset" else None
        loss = {"weighted": "WEIGHTED", "own module": "MARGIN"}.get(settings["task"], "loss")
        return ag.Supervised(data, None, test, loss=program[loss], metrics=metrics, score=score, **options)
    smoothed = nn.CrossEntropyLoss(label_smoothing=settings["smoothing"])
    weight = settings["class_weight"]
    task = ag.Classification(data, None, test, classes=3, loss=smoothed, class_weight=weight, **options)
    if settings["task"] == "Distilled":
        torch.manual_seed(settings["teacher"])
        more = {"weight": settings["distilled"], "features": settings["features"]}
        return ag.Distilled(task, program["Net"](), temperature=settings["temperature"], **more)
    return task


def imported(settings: Settings, folder: Path) -> dict[str, Any]:
    """The program of these settings: a module in a file of this folder, or, for half of the settings, no file."""
    text = PROGRAM.format(**settings, moved_lines="\n" * settings["moved"])
    if settings["exec"]:
        sys.modules["theirs"] = types.ModuleType("theirs")
        exec(text, vars(sys.modules["theirs"]))
        return vars(sys.modules["theirs"])
    path = folder / settings["place"] / "theirs.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    linecache.checkcache(str(path))
    spec = importlib.util.spec_from_file_location("theirs", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["theirs"] = module
    spec.loader.exec_module(module)
    return vars(module)


class Stop(Exception):
    """A run has begun, or has gone on."""


MADE: list[ag.Run] = []  # the present one


def stop(record: Settings) -> None:
    """Raises Stop."""
    raise Stop


def made(**options: Any) -> ag.Run:
    """A run, which stops at the first step that it logs."""
    MADE[:] = [ag.Run(**options)]
    return MADE[0]


def run_program(settings: Settings, folder: Path) -> list[str]:
    """Begin a run of these settings in a folder, or resume it, until it logs a step; its notes."""
    with contextlib.suppress(Stop):
        to_first_step(settings, folder)
    MADE[0].close()
    return MADE[0].notes


def to_first_step(settings: Settings, folder: Path) -> None:
    """Begin a run of these settings, or resume it. Raises Stop once it logs."""
    torch.set_default_dtype(getattr(torch, settings["dtype"]))
    torch.set_num_threads(settings["threads"])
    program = imported(settings, folder.parent)
    steps = settings["steps"] + 2 * (settings["method"] != "fit")
    budget = {"epochs": 1} if settings["unit"] == "epochs" else {"steps": steps}
    output = ag.Output(
        checkpoint_seconds=settings["checkpoint_seconds"],
        log_every=settings["log_every"],
        on_log=stop,
    )
    options: Settings = {
        "seed": settings["seed"], "folder": folder, "device": settings["device"], "progress": False,
        "precision": settings["precision"], "output": output,
    }  # fmt: skip
    if settings["method"] in OTHERS:
        OTHERS[settings["method"]](settings, program, options)
        return
    if settings["method"] == "random_search":
        budget |= {"trials": settings["trials"]}
    run = made(**budget, **options)
    torch.manual_seed(settings["given"])
    network = program["Space" if settings["method"] in ("darts", "random_search") else "Net"]()
    task = task_of(settings, program)
    factory, schedule = program["FACTORIES"][settings["factory"]], program["SCHEDULES"][settings["schedule"]]
    recipe = ag.Recipe(optimizer_factory=factory, schedule=schedule)
    if settings["method"] == "fit":
        more = {name: settings[name] for name in ("clip", "average", "accumulate")}
        ag.fit(network, task, run, recipe=ag.Recipe(factory, schedule, **more))
    elif settings["method"] == "darts":
        more = {name: settings[name] for name in ("search_fraction", "weights_fraction", "second_order")}
        ag.darts(network, task, run, recipe=recipe, rate=settings["gate_rate"], finalists=None, **more)
    elif settings["method"] == "random_search":
        ag.random_search(network, task, run, recipe=recipe)
    else:
        slimmed(settings, network, task, run, recipe)


def slimmed(settings: Settings, network: nn.Module, task: Any, run: ag.Run, recipe: ag.Recipe) -> None:
    """A run of a method that slims."""
    space = ag.slim(network, task.example)
    more: Settings = {
        "recipe": recipe, "pretrained": True, "check_weights": False, "round_to": settings["round_to"],
    }  # fmt: skip
    cost = ag.macs(task.example) if settings["cost"] == "macs" else ag.params()
    if settings["method"] == "front":
        ag.slim_front(space, task, run, cost=cost, fractions=settings["fractions"], **more)
        return
    limits = [cost.at_most(fraction=settings["fraction"])]
    if settings["at_most"]:
        limits = [ag.params().at_most(settings["at_most"])]
    if settings["second_limit"]:
        limits.append(ag.peak_memory(task.example).at_most(fraction=settings["second_limit"]))
    more |= {"gate_epochs": settings["gate_epochs"], "reg": settings["reg"]}
    ag.dnal(space, task, run, limit=limits[0] if len(limits) == 1 else limits, **more)


def of_cells(settings: Settings, program: Settings, options: Settings) -> None:
    """DARTS on cells."""
    space = ag.darts_cells(
        channels=settings["channels"], cells=settings["cells"], classes=3, in_channels=1, nodes=settings["nodes"],
        operations=["none", "sep_conv_3x3", settings["operations"]],
    )  # fmt: skip
    run = made(steps=4, **options)
    ag.darts(space, task_of(settings, program), run, finalists=None)


def of_game(settings: Settings, program: Settings, options: Settings) -> None:
    """RL-DARTS on the pixel game."""
    from archgrad.rl import PpoTerms

    torch.manual_seed(7)
    space = ag.impala_cells(size=6, depths=(4,), nodes=2, features=8, norm="none")
    task = ag.Reinforcement(program["game"](), num_envs=settings["num_envs"], train_levels=settings["levels"])
    terms = PpoTerms(rollout_steps=settings["rollout"], minibatch_size=8, epochs=1, reseed_every=2)
    run = made(**options)
    ag.rl_darts(space, task, run, environment_steps=96, terms=terms, episodes=4, baselines=False)


def of_system(settings: Settings, program: Settings, options: Settings) -> None:
    """NNiLQR on a pendulum."""
    from archgrad.control import Equations, NnilqrTerms, quadratic_cost

    edge = torch.full((1,), settings["bound"], dtype=torch.float64)
    system = Equations(
        name="pendulum", step=program["pendulum"], cost=quadratic_cost((1.0, 0.1, settings["price"]), (0.0,) * 3),
        start=torch.tensor([settings["start"], 0.0]), low=-edge, high=edge, horizon=settings["horizon"],
    )  # fmt: skip
    run = made(trials=6, **options)
    ag.nnilqr(None, system, run, terms=NnilqrTerms(explore=4, fit=20, refit=5, search=5))


def of_scores(settings: Settings, program: Settings, options: Settings) -> None:
    """FreeNAS, which trains nothing."""
    run = made(**options)
    torch.manual_seed(0)
    space = ag.nasbench201_cells(channels=2, cells=1)
    example = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(settings["example"]))
    ag.freenas(space, run, example=example, seeds=settings["seeds"], norm=settings["norm"])


OTHERS: dict[str, Callable[[Settings, Settings, Settings], None]] = {
    "cells": of_cells, "rl": of_game, "control": of_system, "freenas": of_scores,
}  # fmt: skip


def drawn(number: int, seed: int, draw: random.Random) -> tuple[str, Settings, Settings]:
    """The name of a setting, the settings that a run is begun with, and those with that one changed.

    Each setting comes once before any comes again.
    """
    names = [*SETTINGS]
    random.Random(f"{seed} {number // len(names)}").shuffle(names)
    name = names[number % len(names)]
    values, needed = SETTINGS[name]
    base = {each: choices[0] for each, (choices, _) in SETTINGS.items()} | {"exec": draw.random() < 0.3}
    base |= draw.choice(ALSO) | needed
    base["exec"] &= name not in HARMLESS  # which a file may be read for
    base[name], other = draw.sample(values, 2)
    return name, base, base | {name: other}


def outcome(base: Settings, changed: Settings, begun: Path) -> str:
    """ "refused", "noted", "went on", or what is wrong."""
    folder = begun.with_name("resumed")
    shutil.rmtree(folder, ignore_errors=True)
    if not (begun / "run.json").exists():
        run_program(base, begun)
    shutil.copytree(begun, folder)
    try:
        notes = run_program(changed, folder)
    except RunError as error:
        return "refused" if "differs in" in str(error) else f"another reason: {error}"
    except ag.ArchgradError as error:
        return f"refused for itself: {type(error).__name__}"
    return "noted" if any("Resumed under other conditions" in note for note in notes) else "went on"


def attempt(number: int, seed: int, place: Path) -> dict[str, Any]:
    """The row of one draw; every tenth is a control, half of those in a process of its own."""
    draw = random.Random(f"{seed} {number}")
    name, base, changed = drawn(number, seed, draw)
    changed = base if number % 10 == 0 else changed
    shown = {n: value for n, value in base.items() if n != "exec" and value != SETTINGS[n][0][0]}
    key = "-".join(f"{n}={value}" for n, value in shown.items()).replace("/", "") or "first"
    begun = place / f"{key}{'-exec' if base['exec'] else ''}" / "begun"
    try:
        if changed is base and number % 20 == 0:
            found = elsewhere(base, begun, hash_seed=number)
        else:
            found = outcome(base, changed, begun)
    except Exception as error:  # noqa: BLE001 - told in the row
        found = f"{type(error).__name__}: {error}"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
    if changed is base:
        return {"number": number, "setting": "nothing", "found": found}
    if name not in HARMLESS and found == "went on":
        found = "missed"
    change = f"{base[name]} to {changed[name]}"
    return {"number": number, "setting": name, "change": change, "given": key, "found": found}


def elsewhere(base: Settings, begun: Path, *, hash_seed: int) -> str:
    """What comes of the same program in another process, with other hashes, imports in another order, and moved."""
    if not (begun / "run.json").exists():
        run_program(base, begun)
    there = begun.parent / "moved" / "here"
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(begun, there)
    program = (
        f"import scipy.stats, sys; sys.path[:0] = {sys.path!r}; import json, archgrad.report, numpy, torch\n"
        f"import reliability_resumes as r; from pathlib import Path\n"
        f"print(r.run_program({base!r}, Path({str(there)!r})))"
    )
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return "noted" if "other conditions" in done.stdout else "went on"


def resumes(count: int, seed: int, record: Callable[[dict[str, Any]], None], start: int = 0) -> None:
    """Draw so many changes, and as many controls as make a tenth of all."""
    with tempfile.TemporaryDirectory() as place:
        for number in range(start, count + count // 9):
            record(attempt(number, seed, Path(place)))


if __name__ == "__main__":
    import sys

    resumes(int(sys.argv[1]), int(sys.argv[2]), lambda row: print(json.dumps(row), flush=True))
