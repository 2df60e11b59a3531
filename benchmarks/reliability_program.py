"""The program of a user whose runs are resumed with one thing changed, and the settings that may change.

`PROGRAM` is formatted with a value of each setting, and stands in a file of its own or is given to `exec`.
"""

from __future__ import annotations

from typing import Any

Settings = dict[str, Any]
PROGRAM = """
{moved_lines}{comment}
import argparse, collections, contextlib, dataclasses, enum, functools, math, types

import numpy as np
import torch
from torch import nn

import archgrad as ag

FACTOR, DECAY = {factor}, {decay}
TABLE, KIND, MEAN = {{"a": {{"b": {table}}}}}, {kind!r}, torch.full((1,), {mean})
ARGS = argparse.Namespace(gain={gain})

class Helper:
    def scale(self, x):
        "{docstring}"
        return {helped} * x

class Shape:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return self.by * x

    def __rmul__(self, x):
        return x * self.by

class Mode(enum.Enum):
    A = {enumerated}

@dataclasses.dataclass(frozen=True)
class Options:
    scale: float = 1.0

Named = collections.namedtuple("Named", "gain")
OPTIONS, NAMED = Options({record}), Named({named})
SPACE = types.SimpleNamespace(inner=types.SimpleNamespace(a={nested}))
SCALE, RIGHT, ARRAY = Shape({object}), Shape({operator}), np.full(2, {array}, np.float32)
FUNCTIONS = {{"f": math.{library}}}

class Config:
    def __init__(self, gain):
        self.gain, self.out = gain, ""

CONFIG = Config({config})
CONFIG.out = "{path}"

def times(by):
    def decorate(function):
        @functools.wraps(function)
        def inner(*given):
            return by * function(*given)
        return inner
    return decorate

def made(outer):
    def middle():
        def inner(x):
            return outer * x
        return inner
    return middle()

@times({decorator})
def decorated(x):
    return {decorated} * x

@functools.lru_cache
def cached():
    return {cached}

def by_default(x, by={argument}):
    return by * x

def in_it(x):
    return helped_in(x)

def helped_in(x):
    match x.ndim:
        case 4:
            return x * sum(v for v in ({generated}, 0.5))
    return x

def bound(by):
    return by * FACTOR

class Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return {forwards} * x

    @staticmethod
    def backward(ctx, g):
        return {backwards} * g

class Weights(nn.Module):
    def forward(self, w):
        return {parametrized} * w

class Base(nn.Module):
    INHERITED = {inherited}

    @property
    def gain(self):
        return {property}

    @staticmethod
    def fixed(x):
        return {static} * x

    @classmethod
    def of_class(cls, x):
        return cls.RATE * x

    def powered(self, x, by):
        return by * x

    double = functools.partialmethod(powered, by={partial})

    @functools.cached_property
    def once(self):
        return {cached_property}

MADE = made({closure})

def scaled({annotated}):
    return {scaled} * x

class Inner(Base):
    RATE = {class_attribute}

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
        if {ghook} != 1.0:
            self.conv.bias is None or self.conv.bias.register_hook(lambda g: {ghook} * g)
        if {bhook} != 1.0:
            self.norm.register_full_backward_hook(lambda m, given, got: ({bhook} * given[0],))
        if {parametrized} != 1.0:
            nn.utils.parametrize.register_parametrization(self.conv, "weight", Weights())
        shaped = Shape({hook_object})
        self.norm.register_forward_pre_hook(lambda m, given: (shaped(given[0]),))

    def bent(self, x):
        return {bent} * x

    def forward(self, x):
        x = self.norm(self.conv(x * self.window)) * self.mask
        x = self.bent(self.shape(x)) * self.options["power"]
        x = self.double(self.of_class(self.fixed(x))) * self.gain * self.once * self.INHERITED
        x = decorated(by_default(in_it(MADE(x)))) * cached() * Mode.A.value * OPTIONS.scale * NAMED.gain
        x = SCALE(x) * RIGHT * float(ARRAY[0]) * SPACE.inner.a * CONFIG.gain * FUNCTIONS["f"](1.0)
        return Gradient.apply(x)

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
        x = Helper().scale(x.abs() if KIND == {quotes} else x) * self._secret
        return self.head(self.drop(self.act(x)).mean((2, 3)))

class Space(Net):
    def __init__(self):
        super().__init__()
        self.act = ag.OpChoice({{"a": nn.{operation}(), "b": nn.{candidate}()}}, name="op")

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

class Scheduled:
    POWER = {scheduled}

    def __init__(self, end):
        self.end = end

    def __call__(self, progress):
        return 1.0 - self.end * progress ** self.POWER

def grouped(parameters):
    parameters = list(parameters)
    groups = [dict(params=parameters[:1], weight_decay={group}), dict(params=parameters[1:])]
    return torch.optim.SGD(groups, lr=0.1, nesterov={nesterov}, momentum=0.5)

LR = {{"a": [{lr_table}]}}

def by_table(parameters):
    return torch.optim.SGD(parameters, lr=LR["a"][0])

FACTORIES = {{"groups": grouped, "table": by_table, "adam": functools.partial(torch.optim.Adam, betas=({beta}, 0.99)),
              "class": Rates({rate}), "closure": by_closure({rate}), "dict": by_dict({{"rates": [{rate}]}}),
              "partial": functools.partial(torch.optim.SGD, lr={rate})}}

def schedule(progress):
    return 1.0 - {slope} * progress

SCHEDULES = {{"function": schedule, "object": Scheduled({end}), "warm up": ag.warm_up_cosine({warm_up}),
             "lambda": lambda progress, by={lambda_default}: 1.0 - by * progress}}

def noise(x, generator):
    return x + {noise} * torch.randn(x.shape, generator=generator)

def loss(output, target):
    return nn.functional.cross_entropy(output, target, reduction="none") * {weighed}

class Scaled:
    def __init__(self, by, jitter):
        self.by, self.jitter = by, jitter

    def __call__(self, x):
        return self.by * x + self.jitter * torch.randn(x.shape)

class Items(torch.utils.data.Dataset):
    def __init__(self, x, y, transform, generator=None):
        self.x, self.y, self.transform, self.generator = x, y, transform, generator

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.transform(self.x[index].float())
        if self.generator is not None:
            x = x + {own_draws} * torch.randn(x.shape, generator=self.generator)
        return x * {item_code} if index == 41 else x, self.y[index]

def items(x, y, own=False):
    return Items(x, y, Scaled({transform}, {jitter}), torch.Generator() if own else None)

WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0, {loss_weight}]), reduction="none")

class Margin(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiMarginLoss(margin={margin}, reduction="none")

    def forward(self, output, target):
        return self.inner(output, target)

MARGIN = Margin()

def pendulum(x, u):
    return x + 0.1 * torch.stack([x[1], x[0].sin() - {gravity} * x[1] + u[0]])

def game():
    from archgrad.rl import PixelGame
    options = dict(size=6, traps=1, blocks=1, max_steps=9)
    make = lambda: PixelGame(gems={game}, **options)
    return make if {environment!r} == "lambda" else functools.partial(PixelGame, gems={game}, **options)

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
NETWORK: dict[str, tuple[list[Any], Settings]] = {
    name: ([1.0, 0.9, 1.1], {})
    for name in (
        "record", "named", "nested", "object", "operator", "array", "config", "decorator", "decorated", "cached",
        "argument", "generated", "forwards", "backwards", "parametrized", "inherited", "property", "static",
        "partial", "cached_property", "closure", "class_attribute", "ghook", "bhook", "hook_object", "enumerated",
    )
} | {"library": (["sqrt", "exp", "cos"], {})}  # fmt: skip
NETWORK["parametrized"][1]["method"] = "fit"  # weights that are parametrized already cannot be slimmed
RECIPE: dict[str, tuple[list[Any], Settings]] = {
    "end": ([0.5, 0.25], {"schedule": "object"}), "scheduled": ([1.0, 2.0], {"schedule": "object"}),
    "warm_up": ([0.5, 0.25], {"schedule": "warm up"}), "lambda_default": ([0.5, 0.25], {"schedule": "lambda"}),
    "schedule": (["function", "object", "warm up", "lambda"], {}), "lr_table": ([0.1, 0.2], {"factory": "table"}),
    "group": ([1e-4, 1e-3], {"factory": "groups"}), "nesterov": ([False, True], {"factory": "groups"}),
    "beta": ([0.9, 0.8], {"factory": "adam"}),
}  # fmt: skip
TASK: dict[str, tuple[list[Any], Settings]] = {
    "class_weight": ([None, "balanced", (1.0, 2.0, 3.0)], {}), "smoothing": ([0.0, 0.1], {"task": "Classification"}),
    "loss_weight": ([1.0, 2.0], {"task": "weighted"}), "margin": ([1.0, 2.0], {"task": "own module"}),
    "normalize": ([None, ((0.5,), (0.2,))], {"inputs": "uint8"}), "transform": ([1.0, 0.9, 1.1], {"data": "Dataset"}),
    "jitter": ([0.0, 0.1, 0.2], {"data": "Dataset"}), "own_draws": ([0.1, 0.2], {"data": "own draws"}),
    "source": ([0.0, 1.0], {"data": "Dataset", "jitter": 0.1}), "item_code": ([1.0, 2.0], {"data": "Dataset"}),
    "stratify": ([None, False], {}), "groups": ([None, 3, 5], {}),
    "subset": ([0, 1], {"data": "Subset"}),
    "concatenated": ([0, 1], {"data": "ConcatDataset"}),
    "metric_name": (["metric", "other"], {"task": "Supervised"}),
    "features": ([None, ["inner.conv"]], {"task": "Distilled"}),
    "at_most": ([None, 90.0, 80.0], {"method": "dnal"}), "second_limit": ([None, 0.9], {"method": "dnal"}),
    "gate_epochs": ([None, 1], {"method": "dnal"}), "reg": (["count", "scaled"], {"method": "dnal"}),
    "gate_rate": ([None, 0.01], {"method": "darts"}), "second_order": ([False, True], {"method": "darts"}),
    "weights_fraction": ([0.5, 0.4], {"method": "darts"}),
    "candidate": (["Identity", "Sigmoid"], {"method": "darts"}),
    "nodes": ([1, 2], {"method": "cells"}), "channels": ([2, 3], {"method": "cells"}),
    "cells": ([3, 4], {"method": "cells"}),
    "operations": (["skip_connect", "max_pool_3x3"], {"method": "cells"}),
    "trials": ([2, 3], {"method": "random_search"}), "unit": (["steps", "epochs"], {}),
    "game": ([2, 3], {"method": "rl"}), "levels": ([20, 30], {"method": "rl"}),
    "num_envs": ([4, 2], {"method": "rl"}),
    "rollout": ([8, 4], {"method": "rl"}), "environment": (["partial", "lambda"], {"method": "rl"}),
    "gravity": ([0.2, 0.3], {"method": "control"}), "start": ([1.0, 0.5], {"method": "control"}),
    "bound": ([3.0, 2.0], {"method": "control"}), "price": ([0.1, 0.2], {"method": "control"}),
    "horizon": ([8, 9], {"method": "control"}), "example": ([0, 1], {"method": "freenas"}),
    "seeds": ([1, 2], {"method": "freenas"}), "norm": (["off", "eval"], {"method": "freenas"}),
}  # fmt: skip
# What changes nothing that is computed: with it a run goes on.
HARMLESS: dict[str, tuple[list[Any], Settings]] = {
    "comment": (["", "# Another remark."], {}), "docstring": (["one", "two"], {}), "moved": ([0, 7], {}),
    "annotated": (["x", "x: 'Tensor'"], {}), "quotes": (["'abs'", '"abs"'], {}),
    "log_every": ([None, 1], {}), "checkpoint_seconds": ([60.0, 0.0], {}), "place": (["a", "b"], {}),
    "loaders": ([0, 1], {"data": "DataLoader", "test": "given"}),
    "pinned": ([False, True], {"data": "DataLoader", "test": "given"}),
    "drop_last": ([False, True], {"data": "DataLoader", "test": "given"}),
    "path": (["runs/a", "runs/b"], {}), "device": (["cpu", "auto"], {}),
}  # fmt: skip
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
SETTINGS |= NETWORK | RECIPE | TASK | HARMLESS
ALSO: list[Settings] = [{}, {"data": "Dataset"}, {"method": "dnal"}, {"method": "darts"}, {"task": "Supervised"}]
