"""Runs that are resumed with one thing changed, drawn with a seed: which changes are noticed.

A draw begins a run, changes one setting of the program (of network, recipe, task, data, method or process), and
resumes the run with it. The change is "refused" by its name or "noted" in the run; else it is "missed".
Controls are resumed by the same program, built anew: they must go on without a word.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

import archgrad as ag
from archgrad.errors import RunError

Settings = dict[str, Any]
PROGRAM = """
FACTOR, DECAY = {factor}, {decay}
TABLE, KIND, MEAN = {{"a": {{"b": {table}}}}}, {kind!r}, torch.full((1,), {mean})
ARGS = argparse.Namespace(gain={gain})

class Helper:
    def scale(self, x):
        return {helped} * x

class Shape:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return self.by * x

def scaled(x):
    return {scaled} * x

class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, {width}, {kernel}, stride={stride}, padding=2, dilation={dilation}, bias={bias},
                              padding_mode={mode!r})
        self.norm = nn.BatchNorm2d({width}, eps={eps}, momentum={bn_momentum})
        self.options = {{"power": {power}}}
        self.window = torch.full((1, 1, 1, 1), {window})
        self.register_buffer("mask", torch.full((1, {width}, 1, 1), {mask}), persistent=False)
        self.shape = Shape({shaped})
        self.conv.weight.requires_grad_({trained})

    def bent(self, x):
        return {bent} * x

    def forward(self, x):
        x = self.norm(self.conv(x * self.window)) * self.mask
        return self.bent(self.shape(x)) * self.options["power"]

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.act = {activation}
        self._secret = {secret}
        self.drop = nn.Dropout({dropout})
        self.head = nn.Linear({width}, 3)
        self.functions = [lambda x: {listed} * x]
        self.inner.register_forward_hook(lambda module, given, made: {hook} * made)

    def forward(self, x):
        x = FACTOR * scaled(self.functions[0](self.inner(x.float() - MEAN))) * TABLE["a"]["b"] * ARGS.gain
        x = Helper().scale(x.abs() if KIND == "abs" else x) * self._secret
        return self.head(self.drop(self.act(x)).mean((2, 3)))

class Space(Net):
    def __init__(self):
        super().__init__()
        self.act = ag.OpChoice({{"a": nn.{operation}(), "b": nn.Identity()}}, name="op")

class Rates:
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, parameters):
        return torch.optim.SGD(parameters, lr=self.rate, momentum={momentum})

def by_closure(rate):
    def optimizer(parameters, weight_decay={default}):
        return torch.optim.{optimizer}(parameters, lr=rate, weight_decay=DECAY * weight_decay)
    return optimizer

def by_dict(options):
    return lambda parameters: torch.optim.SGD(parameters, lr=options["rates"][0])

FACTORIES = {{"class": Rates({rate}), "closure": by_closure({rate}), "dict": by_dict({{"rates": [{rate}]}}),
              "partial": functools.partial(torch.optim.SGD, lr={rate})}}

def schedule(progress):
    return 1.0 - {slope} * progress

def noise(x, generator):
    return x + {noise} * torch.randn(x.shape, generator=generator)

def loss(output, target):
    return nn.functional.cross_entropy(output, target, reduction="none") * {weighed}

def collate(samples):
    x, y = torch.utils.data.default_collate(samples)
    return {collated} * x, y

class Metric:
    def __init__(self, least):
        self.least = least

    def __call__(self, output, target):
        return (output.max(1).values > self.least).float()

METRIC = Metric({least})
"""
ACTIVATIONS = [
    "torch.relu", "nn.ReLU()", "nn.GELU()", "nn.functional.gelu", "nn.LeakyReLU(0.3)", "Shape(2.0)",
    "functools.partial(nn.functional.leaky_relu, negative_slope=0.2)", "lambda x: x.clamp(0, 6)",
]  # fmt: skip
# Values of each setting, the first of which stands where another one is changed; and settings that make it matter.
SETTINGS: dict[str, tuple[list[Any], Settings]] = {
    "factor": ([1.0, 0.5, 2.0], {}), "scaled": ([1.0, 0.9, 1.1], {}), "width": ([4, 5, 6], {}),
    "kernel": ([3, 5], {}), "stride": ([1, 2], {}), "dilation": ([1, 2], {}), "bias": ([True, False], {}),
    "mode": (["zeros", "reflect", "circular"], {}), "eps": ([1e-5, 1e-3], {}), "bn_momentum": ([0.1, 0.2], {}),
    "power": ([1.0, 2.0, 0.5], {}), "window": ([1.0, 0.5, 1.5], {}), "mask": ([1.0, 0.5, 2.0], {}),
    "shaped": ([1.0, 2.0, 3.0], {}), "trained": ([True, False], {}), "bent": ([1.0, 1.5, 2.5], {}),
    "activation": (ACTIVATIONS, {"method": "dnal"}), "dropout": ([0.1, 0.2, 0.3], {}),
    "listed": ([1.0, 1.2, 1.4], {}), "hook": ([1.0, 1.5, 2.0], {}), "table": ([1.0, 0.5, 2.0], {}),
    "kind": (["abs", "none"], {}), "mean": ([0.0, 1.0, 2.0], {}), "gain": ([1.0, 0.9, 1.1], {}),
    "helped": ([1.0, 0.9, 1.1], {}), "secret": ([1.0, 0.9, 1.1], {}),
    "operation": (["Tanh", "ReLU"], {"method": "darts"}),
    "decay": ([1.0, 0.5, 2.0], {"factory": "closure"}), "momentum": ([0.9, 0.8, 0.0], {"factory": "class"}),
    "default": ([1e-4, 1e-3], {"factory": "closure"}), "optimizer": (["Adam", "AdamW"], {"factory": "closure"}),
    "rate": ([0.1, 0.2, 0.05], {}), "factory": (["class", "closure", "dict", "partial"], {}),
    "slope": ([0.5, 0.25, 0.9], {}), "noise": ([0.1, 0.2, 0.3], {"augment": "noise"}),
    "crop": ([1, 2], {"augment": "crop"}), "augment": (["none", "noise", "flip", "crop"], {}),
    "weighed": ([1.0, 2.0, 0.5], {"task": "Supervised"}), "least": ([0.0, 0.5, 1.0], {"task": "Supervised"}),
    "collated": ([1.0, 2.0, 0.5], {"data": "Dataset", "task": "Supervised"}), "batch_size": ([10, 9, 12, 15, 20], {}),
    "split_seed": ([0, 1, 2, 3], {}), "valid_fraction": ([0.2, 0.3], {}),
    "score": (["loss", "metric"], {"task": "Supervised"}), "clip": ([None, 1.0, 5.0], {"method": "fit"}),
    "average": ([None, 0.9], {"method": "fit"}), "accumulate": ([1, 2], {"method": "fit"}),
    "seed": ([3, 4, 5], {}), "steps": ([2, 3, 4], {}), "precision": (["32-true", "bf16-mixed"], {}),
    "dtype": (["float32", "float64"], {}), "threads": ([1, 2], {}),
    "task": (["Classification", "Supervised", "Distilled"], {}), "teacher": ([0, 1, 2], {"task": "Distilled"}),
    "temperature": ([4.0, 2.0], {"task": "Distilled"}), "distilled": ([0.5, 0.25], {"task": "Distilled"}),
    "method": (["fit", "dnal", "darts", "front"], {}), "fraction": ([0.8, 0.7, 0.9], {"method": "dnal"}),
    "cost": (["macs", "params"], {"method": "dnal"}), "round_to": ([1, 2], {"method": "dnal"}),
    "given": ([0, 1, 2], {"method": "dnal"}), "fractions": ([(0.8, 0.6), (0.8, 0.5)], {"method": "front"}),
    "search_fraction": ([0.5, 0.4], {"method": "darts"}),
    "labels": (["as drawn", "rolled", "two exchanged", "one other"], {}), "pixel": ([0, 1, 7, 33, 59], {}),
    "samples": ([60, 59, 58], {}), "order": (["as drawn", "reversed", "two exchanged"], {}),
    "sampled": ([1.0, 2.0, 0.5], {"data": "DataLoader", "test": "given"}),
    "draws": ([60, 40], {"data": "DataLoader", "test": "given"}),
    "data": (["arrays", "Dataset"], {}), "test": (["split off", "given", "another"], {}),
    "inputs": (["float32", "uint8"], {}),
}  # fmt: skip
ALSO: list[Settings] = [{}, {"data": "Dataset"}, {"method": "dnal"}, {"method": "darts"}, {"task": "Supervised"}]


class Items(Dataset[Any]):
    """Samples one by one."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


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
    data: Any = Items(x, y) if settings["data"] == "Dataset" else (x, y)
    test: Any = (
        None
        if settings["test"] == "split off"
        else (255 - x[:20] if settings["test"] == "given" else 254 - x[:20], y[:20])
    )
    augment = {"none": [], "noise": [program["noise"]], "flip": [ag.flip()], "crop": [ag.crop(settings["crop"])]}
    split = ag.Split(seed=settings["split_seed"], valid_fraction=settings["valid_fraction"])
    options = {
        "batch_size": settings["batch_size"], "augment": augment[settings["augment"]], "split": split,
    }  # fmt: skip
    if test is not None and settings["data"] != "arrays":
        test = Items(*test)
    if settings["data"] == "DataLoader":
        weights = torch.ones(len(x)).index_fill(0, torch.arange(5), settings["sampled"])
        data = DataLoader(
            Items(x, y), settings["batch_size"], sampler=WeightedRandomSampler(weights, settings["draws"])
        )
    if settings["task"] == "Supervised":
        score = ag.lower("loss") if settings["score"] == "loss" else ag.higher("metric")
        metrics = {"metric": program["METRIC"]}
        options["collate_fn"] = program["collate"] if settings["data"] == "Dataset" else None
        return ag.Supervised(data, None, test, loss=program["loss"], metrics=metrics, score=score, **options)
    task = ag.Classification(data, None, test, classes=3, **options)
    if settings["task"] == "Distilled":
        torch.manual_seed(settings["teacher"])
        return ag.Distilled(task, program["Net"](), weight=settings["distilled"], temperature=settings["temperature"])
    return task


def run_program(settings: Settings, folder: Path) -> ag.Run:
    """Begin a run of these settings in a folder, or resume it; the run, once it has ended."""
    torch.set_default_dtype(getattr(torch, settings["dtype"]))
    torch.set_num_threads(settings["threads"])
    program: dict[str, Any] = {"torch": torch, "nn": nn, "ag": ag, "functools": functools, "argparse": argparse}
    program["__name__"] = "theirs"
    exec(PROGRAM.format(**settings), program)
    torch.manual_seed(settings["given"])
    network = program["Space" if settings["method"] == "darts" else "Net"]()
    task = task_of(settings, program)
    run = ag.Run(
        steps=settings["steps"] + 2 * (settings["method"] != "fit"), seed=settings["seed"], folder=folder,
        device="cpu", progress=False, precision=settings["precision"],
    )  # fmt: skip
    factory = program["FACTORIES"][settings["factory"]]
    recipe = ag.Recipe(optimizer_factory=factory, schedule=program["schedule"])
    if settings["method"] == "fit":
        more = {name: settings[name] for name in ("clip", "average", "accumulate")}
        ag.fit(network, task, run, recipe=ag.Recipe(factory, program["schedule"], **more))
    elif settings["method"] == "darts":
        ag.darts(network, task, run, search_fraction=settings["search_fraction"], recipe=recipe, finalists=None)
    else:
        space = ag.slim(network, task.example)
        options: Any = {
            "recipe": recipe,
            "pretrained": True,
            "check_weights": False,
            "round_to": settings["round_to"],
        }
        cost = ag.macs(task.example) if settings["cost"] == "macs" else ag.params()
        if settings["method"] == "dnal":
            ag.dnal(space, task, run, limit=cost.at_most(fraction=settings["fraction"]), **options)
        else:
            ag.slim_front(space, task, run, cost=cost, fractions=settings["fractions"], **options)
    return run


def drawn(draw: random.Random) -> tuple[str, Settings, Settings]:
    """The name of a setting, the settings that a run is begun with, and those with that one changed."""
    name = draw.choice([*SETTINGS])
    values, needed = SETTINGS[name]
    base = {each: choices[0] for each, (choices, _) in SETTINGS.items()} | draw.choice(ALSO) | needed
    base[name], other = draw.sample(values, 2)
    return name, base, base | {name: other}


def outcome(base: Settings, changed: Settings, begun: Path) -> str:
    """ "refused", "noted", or what is wrong."""
    folder = begun.with_name("resumed")
    shutil.rmtree(folder, ignore_errors=True)
    if not (begun / "run.json").exists():
        run_program(base, begun)
    shutil.copytree(begun, folder)
    try:
        run = run_program(changed, folder)
    except RunError as error:
        return "refused" if "differs in" in str(error) else f"another reason: {error}"
    except ag.ArchgradError as error:
        return f"refused for itself: {type(error).__name__}"
    return "noted" if any("Resumed under other conditions" in note for note in run.notes) else "missed"


def attempt(number: int, seed: int, place: Path) -> dict[str, Any]:
    """The row of one draw; every tenth is a control."""
    draw = random.Random(f"{seed} {number}")
    name, base, changed = drawn(draw)
    changed = base if number % 10 == 0 else changed
    key = "-".join(f"{n}={base[n]}" for n in base if base[n] != SETTINGS[n][0][0]).replace("/", "") or "first"
    begun = place / key / "begun"
    try:
        found = outcome(base, changed, begun)
    except Exception as error:  # noqa: BLE001 - told in the row
        found = f"{type(error).__name__}: {error}"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
    if changed is base:
        return {"number": number, "setting": "nothing", "found": {"missed": "went on"}.get(found, found)}
    change = f"{base[name]} to {changed[name]}"
    return {"number": number, "setting": name, "change": change, "given": key, "found": found}


def resumes(count: int, seed: int, record: Callable[[dict[str, Any]], None], start: int = 0) -> None:
    """Draw so many changes, and as many controls as make a tenth of all."""
    with tempfile.TemporaryDirectory() as place:
        for number in range(start, count + count // 9):
            record(attempt(number, seed, Path(place)))


if __name__ == "__main__":
    import sys

    resumes(int(sys.argv[1]), int(sys.argv[2]), lambda row: print(json.dumps(row), flush=True))
