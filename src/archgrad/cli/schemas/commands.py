"""What each command can be told: one schema for the command line, YAML files and command.json."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from archgrad import files
from archgrad.cli.schemas import methods
from archgrad.cli.suggestions import meant
from archgrad.errors import ConfigError, LimitError

Schema = TypeVar("Schema", bound="Options")

DATA = (
    '"digits", a .npz file, a folder of images (CLASS/*.png or train/CLASS/*.png), a saved Hugging Face data set, or '
    "a function that gives a Dataset, arrays (x, y), or a dict of such parts: path/to/file.py:callable"
)
LIMITS = (
    "macs=0.5 or macs=50% (half of what the network takes), macs=20M, macs=20e6, params=0.5, params=300k, "
    "latency_ms=4.0"
)
ELSEWHERE = {
    "dnal": "slims a network that you have: archgrad slim MODEL DATA",
    "nnilqr": "controls a process: archgrad control SYSTEM",
    "rl_darts": "plays environments, which are code: archgrad.rl_darts in Python",
    "pruning_transfer": "prunes a network that you have for few data: archgrad transfer MODEL SOURCE TARGET",
}
METHODS = tuple(name for name in methods.METHODS if name not in ELSEWHERE)
SPACES = ("darts", "nasbench201", "mobile")
COSTS = ("macs", "params", "latency_ms")
TABLE_DATA = ("cifar10", "cifar100", "imagenet16_120")
AUGMENTATIONS = "flip, crop=PIXELS and cutout=PIXELS, joined by commas: flip,crop=4,cutout=8"
_CODE = ("model", "network", "space")  # what names code, or a kind of ours, and no path but an architecture's
_NESTED = 8  # levels of a configuration; a list in an option is the second
# What switches an option off, where that is not --no-NAME.
NEGATIVES = {"pretrained": "--retrain", "factorized": "--published"}
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?"


class LimitText(NamedTuple):
    """A limit as it was written: a fraction of what the network takes, or a bound."""

    cost: str
    bound: float | None
    fraction: float | None


class Options(BaseModel):
    """What all commands share: nothing is converted, and nothing unknown is let through."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    positional: ClassVar[Mapping[str, str]] = {}  # the fields that are arguments, and how each is written

    threads: int | None = Field(None, ge=1, description="CPU threads; default: what PyTorch takes.")

    @field_validator("out", check_fields=False)
    @classmethod
    def _somewhere(cls, folder: str | None) -> str | None:
        if folder == "":
            raise ValueError("'' was given. Give a folder; the present one is .")
        return folder


class DataOptions(Options):
    """The data and how batches are made of it."""

    data: str = Field(description=f"{DATA}.")
    size: int | None = Field(None, ge=1, description="Resize all images to this side, in pixels.")
    skip_corrupt: bool = Field(False, description="Leave out images that cannot be read, and name them.")
    batch_size: int = Field(128, ge=1, description="Samples in a training batch.")
    augment: str = Field("", description=f"{AUGMENTATIONS}.")

    @field_validator("augment")
    @classmethod
    def _augmentations(cls, text: str) -> str:
        augmentations(text)
        return text


class RunOptions(Options):
    """Budgets, seed, device and folder."""

    epochs: int | None = Field(None, ge=1, description="Training epochs in all; default 60 (train: 30).")
    steps: int | None = Field(None, ge=1, description="Training steps in all.")
    seconds: float | None = Field(None, gt=0, description="Training time in all.")
    seed: int = Field(0, ge=0, lt=2**32, description="The same seed gives the same network.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    precision: str = Field("32-true", description="Lightning Fabric's names, such as bf16-mixed.")
    onnx: bool | None = Field(None, description="Write network.onnx; default: where the export extra is installed.")


class WorkOptions(DataOptions, RunOptions):
    """What slim and train share."""


class LimitedOptions(WorkOptions):
    """What slim and search share besides."""

    limit: str | None = Field(None, description=f"{LIMITS}.")

    @field_validator("limit", mode="before")
    @classmethod
    def _one_limit(cls, given: object) -> object:
        if isinstance(given, Mapping) and len(given) == 1:
            ((name, value),) = given.items()
            given = f"{name}={value}"
        if isinstance(given, str):
            limit(given)
        return given


class SlimOptions(LimitedOptions):
    """`archgrad slim`."""

    positional: ClassVar = {"model": "MODEL", "data": "DATA"}

    limit: str | None = Field(None, description=f"{LIMITS}. Default: as `sparsity` has it.")
    model: str = Field(description="package.module:callable, path/to/file.py:callable, or timm:NAME.")
    out: str = Field("runs/slim", description="The run's folder.")
    weights: str | None = Field(
        None, description="Trained weights: a .safetensors file, or a state dict by torch.save."
    )
    pretrained: bool | None = Field(
        None, description="Whether the weights are trained; default: yes where --weights is given."
    )
    keep: list[str] = Field([], description="Leave this layer's channels as they are; may be repeated.")
    round_to: int | None = Field(
        None, ge=1, description="Widths are multiples of this; default 8, less for narrow layers."
    )
    sparsity: float = Field(3.0, ge=0, description="Strength of the pressure on gates, without a limit.")
    joint: bool | None = Field(
        None, description="Train weights and gates at once; default: with a limit, where weights are not trained."
    )
    gate_epochs: int | None = Field(
        None, ge=1, description="Epochs of the gates; default: a sixth of all, with --joint a half."
    )


class TrainOptions(WorkOptions):
    """`archgrad train`."""

    positional: ClassVar = {"network": "ARCHITECTURE.json|MODEL", "data": "DATA"}

    network: str = Field(description="A MODEL as for slim, or the ARCHITECTURE.json of a run.")
    model: str | None = Field(None, description="Of a slimmed architecture: the MODEL that it was found in.")
    space: str | None = Field(
        None, description="Of a searched architecture: its space; default: what the run's record beside it says."
    )
    out: str = Field("runs/train", description="The run's folder.")
    keep: list[str] = Field([], description="Of a slimmed architecture: as it was given to slim; may be repeated.")
    cells: int | None = Field(None, ge=1, description="Cells; default: as searched (published for CIFAR: 20).")
    channels: int | None = Field(
        None, ge=1, description="Channels of the first cell; default: as searched (published for CIFAR: 36)."
    )
    auxiliary: float = Field(0.0, ge=0, description="Weight of the loss of an auxiliary head (published: 0.4).")
    drop_path: float = Field(0.0, ge=0, lt=1, description="Probability of dropping a path (published: 0.2).")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd or adamw.")
    learning_rate: float | None = Field(None, gt=0, description="Default: sgd 0.05, adamw 0.001.")
    weight_decay: float | None = Field(None, ge=0, description="Default: sgd 0.0005, adamw 0.05.")
    clip: float | None = Field(None, gt=0, description="Largest norm of the gradient, such as 5.")
    average: float | None = Field(
        None, gt=0, lt=1, description="Decay of a moving average of the weights, such as 0.999, which is kept."
    )
    smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing.")

    @field_validator("space")
    @classmethod
    def _space(cls, name: str | None) -> str | None:
        return name and named_space(name)

    @property
    def architecture(self) -> str | None:
        """The architecture's file, None to train a plain network."""
        return self.network if self.network.endswith(".json") else None

    @model_validator(mode="after")
    def _together(self) -> TrainOptions:
        if self.model and not self.architecture:
            raise ValueError(
                f"model={self.model!r} goes with an architecture, and {self.network!r} is no .json file. "
                f"Leave --model out to train {self.network!r} as it is"
            )
        given = [name for name in ("space", "cells", "channels") if getattr(self, name)]
        if given and (self.model or not self.architecture):
            raise ValueError(
                f"{' and '.join(given)} may be given for an architecture that was searched alone: ARCHITECTURE.json, "
                "without --model"
            )
        return self


class InitOptions(Options):
    """`archgrad init`."""

    positional: ClassVar = {"model": "MODEL", "data": "DATA"}

    model: str = Field(description="package.module:callable, path/to/file.py:callable, or timm:NAME.")
    data: str = Field(description=f"{DATA}.")
    out: str = Field("archgrad-run", description="The folder that the two files are written into.")
    size: int | None = Field(None, ge=1, description="Resize all images to this side, in pixels.")
    skip_corrupt: bool = Field(False, description="Leave out images that cannot be read, and name them.")


class DemoOptions(Options):
    """`archgrad demo`."""

    out: str = Field("runs/demo", description="The run's folder.")
    seed: int = Field(0, ge=0, lt=2**32, description="The same seed gives the same network.")
    epochs: int = Field(60, ge=3, description="Training epochs, for the slimmed network and for the baseline.")
    # So small a network is slower on several.
    threads: int = Field(1, ge=1, description="CPU threads.")


def resolve(schema: type[Schema], given: Mapping[str, Any], config: Path | None = None) -> Schema:
    """The options of a command: those given, then those in the YAML file, then the defaults.

    Raises ConfigError for a file that cannot be read, an unknown key or a value that is not allowed.
    """
    held = _read(config) if config else {}
    told = {name: value for name, value in given.items() if value is not None and value != []}
    try:
        return schema.model_validate({**held, **told})
    except ValidationError as error:
        lines = []
        for one in error.errors():
            key = str(one["loc"][0]) if one["loc"] else ""
            place = f"--{key.replace('_', '-')}" if key in told else f"{key} (in {config})" if config else key
            lines.append(_explained(schema, one, key, place))
        raise ConfigError("\n".join(lines)) from None


def limit(text: str) -> LimitText:
    """Read a limit such as macs=0.5. Raises LimitError."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or name not in COSTS:
        raise LimitError(f"limit {text!r} is not understood.{meant(name, COSTS)} Allowed are {LIMITS}")
    match = re.fullmatch(rf"(?P<number>{_NUMBER})\s*(?P<unit>%|[kmgt]?)", value, flags=re.IGNORECASE)
    if not match:
        raise LimitError(f"limit {text!r}: {value!r} is not a number above 0. Allowed are {LIMITS}")
    number, unit = float(match["number"]), match["unit"].lower()
    if name == "latency_ms":
        if unit or not 0 < number < math.inf:
            raise LimitError(f"limit {text!r}: give milliseconds above 0, such as latency_ms=4.0")
        return LimitText("latency_ms", number, None)
    if unit == "%" or (not unit and number <= 1):
        fraction = number / 100 if unit == "%" else number
        if not 0 < fraction <= 1:
            raise LimitError(
                f"limit {text!r}: a fraction is above 0 and at most 1 (or 100%); for instance {name}=0.5"
            )
        return LimitText(name, None, fraction)
    bound = number * _SCALES[unit]
    if not 0 < bound < math.inf or not bound.is_integer():
        raise LimitError(
            f"limit {text!r} is neither a fraction (above 0, at most 1) nor a whole number of {name}. "
            f"Allowed are {LIMITS}"
        )
    return LimitText(name, bound, None)


def named_space(text: str) -> str:
    """A ready space's name, or a MODEL's, unchanged. Raises ConfigError."""
    place, colon, attribute = text.rpartition(":")
    if text in SPACES or (colon and place not in ("", "timm") and attribute):
        return text
    raise ConfigError(
        f"space {text!r} is not known.{meant(text, SPACES)} Allowed are {', '.join(SPACES)}, and a network "
        "of your own with choices: package.module:callable or path/to/file.py:callable"
    )


def augmentations(text: str) -> list[tuple[str, int | None]]:
    """Read augmentations such as flip,crop=4: their names and pixels. Raises ConfigError."""
    found: list[tuple[str, int | None]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"flip|(?:(crop|cutout)=([1-9]\d*))", part)
        if not match:
            raise ConfigError(f"augment={text!r}: {part!r} is not understood. Allowed are {AUGMENTATIONS}")
        found.append((match[1], int(match[2])) if match[1] else ("flip", None))
    return found


def is_code(text: str) -> bool:
    """Whether this names a callable, package.module:callable or path/to/file.py:callable, and no path that exists."""
    return re.fullmatch(r"(?:.+\.py|[A-Za-z_][\w.]*):[A-Za-z_][\w.]*", text) is not None and not Path(text).exists()


def anchored(options: Schema) -> Schema:
    """The same with absolute paths, so that the command means the same from any folder."""
    update: dict[str, Any] = {}
    for name in ("data", "target", "weights", "table", "architectures", "model", "network", "space"):
        text = getattr(options, name, None)
        if isinstance(text, list):  # the models of score are named by their places
            continue
        path, colon, attribute = text.rpartition(":") if text else ("", "", "")
        if text and is_code(text):
            if path.endswith(".py"):
                update[name] = f"{Path(path).absolute()}{colon}{attribute}"
        elif text and text != "digits" and (name not in _CODE or text.endswith(".json")):
            update[name] = os.path.normpath(Path(text).absolute())
    return options.model_copy(update=update)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = files.read_text(path, ConfigError, most=files.MIB)
        _refuse_tricks(content)
        held = yaml.safe_load(content)
    except FileNotFoundError as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error.strerror}. Check --config.") from None
    except (yaml.YAMLError, ValueError, LookupError, OverflowError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path} is not YAML ({reason}). Write one `option: value` a line.") from None
    if held is None:
        return {}
    if not isinstance(held, dict):
        raise ConfigError(f"{path} holds a {type(held).__name__}. Write one `option: value` a line.")
    return {str(key).replace("-", "_"): value for key, value in held.items()}


def _refuse_tricks(content: str) -> None:
    """Raise ValueError for what small files blow up by, or hide a value by: aliases, deep nesting, a key twice."""
    import yaml

    depth, keys = 0, list[str]()
    waiting = True  # for a key of the outermost mapping, not for its value
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases are not read: write the value out")
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.NodeEvent):
            if depth == 1:
                keys += [event.value] if waiting and isinstance(event, yaml.ScalarEvent) else []
                waiting = not waiting
            depth += isinstance(event, yaml.CollectionStartEvent)
        if depth > _NESTED:
            raise ValueError(f"it is nested deeper than {_NESTED} levels")
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"{twice[0]!r} is there twice")


def _explained(schema: type[Options], error: Any, key: str, place: str) -> str:
    allowed = sorted(schema.model_fields)
    if error["type"] == "extra_forbidden":
        given = f"{place}: unknown option, given {files.shown(error['input'])}.{meant(key, allowed)}"
        return f"{given} Allowed are {', '.join(allowed)}."
    reason = error["msg"].removeprefix("Value error, ").rstrip(".")
    if error["type"] == "missing":
        return f"{key.upper()} is missing: {schema.model_fields[key].description}"
    if error["type"] == "value_error":
        return f"{place}: {reason}." if place else f"{reason}."
    # A key that is no text has no field.
    described = schema.model_fields[key].description if key in schema.model_fields else "Write options by name."
    return f"{place}: {files.shown(error['input'])} was given. {reason}. {described}"
