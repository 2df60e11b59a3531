"""archgrad finds a neural network's architecture by gradient, under the limit that your device sets.

The public names are imported when they are first used, so that `import archgrad` costs next to nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archgrad.choices.access import draw, hold, logits, relax, restrict, sample, using, weights
    from archgrad.choices.architecture import Architecture
    from archgrad.choices.lazy import Lazy
    from archgrad.choices.modules import Gate, InputChoice, OpChoice
    from archgrad.choices.relaxations import gumbel_softmax, scaled_sigmoid, softmax, two_temperature
    from archgrad.classifier import ArchgradClassifier
    from archgrad.costs.count import macs, params
    from archgrad.costs.energy import energy
    from archgrad.costs.latency import latency
    from archgrad.costs.limits import Limit, black_box
    from archgrad.costs.memory import peak_memory
    from archgrad.derive.discretise import build, decide
    from archgrad.derive.export import export_onnx, export_program
    from archgrad.errors import (
        ArchgradError,
        ArchitectureError,
        ChoiceError,
        ConfigError,
        DataError,
        InputError,
        LimitError,
        MissingExtra,
        ModelError,
        NonFiniteError,
        ResourceError,
        RunError,
    )
    from archgrad.methods.darts import darts
    from archgrad.methods.darts_prime import darts_prime
    from archgrad.methods.dnal import dnal
    from archgrad.methods.freenas import freenas
    from archgrad.methods.monas import monas
    from archgrad.methods.multimodal_random import multimodal_random
    from archgrad.methods.nnilqr import nnilqr
    from archgrad.methods.pruning_transfer import pruning_transfer
    from archgrad.methods.radars import radars
    from archgrad.methods.random_search import random_search
    from archgrad.methods.rl_darts import rl_darts
    from archgrad.methods.toponas import toponas
    from archgrad.methods.unas import unas
    from archgrad.search.fit import adam, adamw, fit, recalibrate, sgd
    from archgrad.search.found import Found, derive
    from archgrad.search.prior import prior, warm_start
    from archgrad.search.run import Run
    from archgrad.search.schedules import warm_up_cosine
    from archgrad.search.signals import Stopped
    from archgrad.search.transfer import transfer
    from archgrad.spaces.darts import darts_cells, darts_network
    from archgrad.spaces.encoders import audio_encoder, image_encoder, vector_encoder, waveform_encoder
    from archgrad.spaces.fusion import fusion
    from archgrad.spaces.impala import impala_cells, impala_network
    from archgrad.spaces.mobile import mobile_backbone, mobile_network
    from archgrad.spaces.nasbench201 import nasbench201_cells, nasbench201_network
    from archgrad.spaces.slim import frozen, slim
    from archgrad.tasks.audiovisual import av_digits
    from archgrad.tasks.augmentation import crop, cutout, flip
    from archgrad.tasks.classification import Classification
    from archgrad.tasks.datasets import digits
    from archgrad.tasks.multimodal import Modalities
    from archgrad.tasks.reinforcement import Reinforcement
    from archgrad.tasks.tabular import Tabular

__version__ = importlib.metadata.version("archgrad")

__all__ = [
    "ArchgradClassifier",
    "ArchgradError",
    "Architecture",
    "ArchitectureError",
    "ChoiceError",
    "Classification",
    "ConfigError",
    "DataError",
    "Found",
    "Gate",
    "InputChoice",
    "InputError",
    "Lazy",
    "Limit",
    "LimitError",
    "MissingExtra",
    "Modalities",
    "ModelError",
    "NonFiniteError",
    "OpChoice",
    "Reinforcement",
    "ResourceError",
    "Run",
    "RunError",
    "Stopped",
    "Tabular",
    "__version__",
    "adam",
    "adamw",
    "audio_encoder",
    "av_digits",
    "black_box",
    "build",
    "crop",
    "cutout",
    "darts",
    "darts_cells",
    "darts_network",
    "darts_prime",
    "decide",
    "derive",
    "digits",
    "dnal",
    "draw",
    "energy",
    "export_onnx",
    "export_program",
    "fit",
    "flip",
    "freenas",
    "frozen",
    "fusion",
    "gumbel_softmax",
    "hold",
    "image_encoder",
    "impala_cells",
    "impala_network",
    "latency",
    "logits",
    "macs",
    "mobile_backbone",
    "mobile_network",
    "monas",
    "multimodal_random",
    "nasbench201_cells",
    "nasbench201_network",
    "nnilqr",
    "params",
    "peak_memory",
    "prior",
    "pruning_transfer",
    "radars",
    "random_search",
    "recalibrate",
    "relax",
    "restrict",
    "rl_darts",
    "sample",
    "scaled_sigmoid",
    "sgd",
    "slim",
    "softmax",
    "toponas",
    "transfer",
    "two_temperature",
    "unas",
    "using",
    "vector_encoder",
    "warm_start",
    "warm_up_cosine",
    "waveform_encoder",
    "weights",
]

_HOMES = {
    "choices.access": ("draw", "hold", "logits", "relax", "restrict", "sample", "using", "weights"),
    "choices.architecture": ("Architecture",),
    "choices.lazy": ("Lazy",),
    "choices.modules": ("Gate", "InputChoice", "OpChoice"),
    "choices.relaxations": ("gumbel_softmax", "scaled_sigmoid", "softmax", "two_temperature"),
    "classifier": ("ArchgradClassifier",),
    "costs.count": ("macs", "params"),
    "costs.energy": ("energy",),
    "costs.latency": ("latency",),
    "costs.limits": ("Limit", "black_box"),
    "costs.memory": ("peak_memory",),
    "derive.discretise": ("build", "decide"),
    "derive.export": ("export_onnx", "export_program"),
    "errors": (
        "ArchgradError", "ArchitectureError", "ChoiceError", "ConfigError", "DataError", "InputError",
        "LimitError", "MissingExtra", "ModelError", "NonFiniteError", "ResourceError",
        "RunError",
    ),
    "methods.darts": ("darts",),
    "methods.darts_prime": ("darts_prime",),
    "methods.dnal": ("dnal",),
    "methods.freenas": ("freenas",),
    "methods.monas": ("monas",),
    "methods.multimodal_random": ("multimodal_random",),
    "methods.nnilqr": ("nnilqr",),
    "methods.pruning_transfer": ("pruning_transfer",),
    "methods.radars": ("radars",),
    "methods.random_search": ("random_search",),
    "methods.rl_darts": ("rl_darts",),
    "methods.toponas": ("toponas",),
    "methods.unas": ("unas",),
    "search.fit": ("adam", "adamw", "fit", "recalibrate", "sgd"),
    "search.schedules": ("warm_up_cosine",),
    "search.found": ("Found", "derive"),
    "search.prior": ("prior", "warm_start"),
    "search.run": ("Run",),
    "search.signals": ("Stopped",),
    "search.transfer": ("transfer",),
    "spaces.darts": ("darts_cells", "darts_network"),
    "spaces.encoders": ("audio_encoder", "image_encoder", "vector_encoder", "waveform_encoder"),
    "spaces.fusion": ("fusion",),
    "spaces.impala": ("impala_cells", "impala_network"),
    "spaces.mobile": ("mobile_backbone", "mobile_network"),
    "spaces.nasbench201": ("nasbench201_cells", "nasbench201_network"),
    "spaces.slim": ("frozen", "slim"),
    "tasks.audiovisual": ("av_digits",),
    "tasks.augmentation": ("crop", "cutout", "flip"),
    "tasks.classification": ("Classification",),
    "tasks.datasets": ("digits",),
    "tasks.multimodal": ("Modalities",),
    "tasks.reinforcement": ("Reinforcement",),
    "tasks.tabular": ("Tabular",),
}  # fmt: skip
_HOME = {name: f"archgrad.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'archgrad' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """Importing the sub-package archgrad.derive does not put it in the place of the function `derive`."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name == "derive" and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        # A class of the user's that is sent to a worker takes what it refers to with it, as `ag`.
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
