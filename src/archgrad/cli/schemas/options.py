"""Groups of options that commands share; a command's schema joins some of them and adds its own.

The schemas are the only description of the options: the command line, YAML files and command.json follow from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from archgrad.cli.suggestions import meant
from archgrad.errors import ConfigError

MODEL = "package.module:callable, path/to/file.py:callable, or timm:NAME"
DATA = (
    '"digits", a .npz file, a folder of images (CLASS/*.png or train/CLASS/*.png), a saved Hugging Face data set, or '
    "a function that gives a Dataset, arrays (x, y), or a dict of such parts: path/to/file.py:callable"
)
SPACES = ("darts", "nasbench201", "mobile")
TABLE_DATA = ("cifar10", "cifar100", "imagenet16_120")
# What switches an option off, where that is not --no-NAME.
NEGATIVES = {"pretrained": "--retrain", "factorized": "--published"}
AUGMENTATIONS = (
    "flip, crop=PIXELS, cutout=PIXELS, rotate=DEGREES, brightness=PERCENT, and of spectrograms time_mask=COLUMNS and "
    "frequency_mask=ROWS, joined by commas: flip,crop=4,cutout=8"
)


class Options(BaseModel):
    """What all commands share: nothing is converted, and nothing unknown is let through."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True, allow_inf_nan=False)
    # The fields that are arguments, and how each is written in the help.
    positional: ClassVar[Mapping[str, str]] = {}
    # The heading that a group's options have in the help.
    panel: ClassVar[str] = "Run"

    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; default: what PyTorch takes.")

    @field_validator("out", check_fields=False)
    @classmethod
    def _check_out(cls, folder: str | None) -> str | None:
        if folder == "":
            raise ValueError("'' was given. Give a folder; the current one is .")
        return folder


class ImageOptions(Options):
    """How images are read."""

    panel = "Data"

    size: int | None = Field(None, ge=1, description="Resize all images to this side, in pixels.")
    skip_corrupt: bool = Field(False, description="Leave out images that cannot be read, and name them.")


class BatchOptions(ImageOptions):
    """How training batches are drawn from the data."""

    panel = "Data"

    batch_size: int = Field(128, ge=1, description="Samples in a training batch.")
    augment: str = Field("", description=f"{AUGMENTATIONS}.")

    @field_validator("augment")
    @classmethod
    def _check_augment(cls, text: str) -> str:
        augmentations(text)
        return text


class RunOptions(Options):
    """Budgets, seed, device and precision."""

    panel = "Run"

    epochs: int | None = Field(None, ge=1, description="Training epochs in all; default 60 (train: 30).")
    steps: int | None = Field(None, ge=1, description="Training steps in all.")
    seconds: float | None = Field(None, gt=0, description="Training time in all.")
    seed: int = Field(0, ge=0, lt=2**32, description="The same seed gives the same network.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    precision: str = Field("32-true", description="32-true or bf16-mixed.")
    compile: bool = Field(False, description="Compile the steps of training (torch.compile), but for short trials.")
    onnx: bool | None = Field(None, description="Write network.onnx; default: where the export extra is installed.")
    accept: list[str] = Field(
        [], description="data, network or settings: resume although it differs from that of the run; may be repeated."
    )


class NetworkOptions(Options):
    """A network that is slimmed."""

    panel = "Network"

    model: str = Field(description=f"{MODEL}.")
    weights: str | None = Field(
        None, description="Trained weights: a .safetensors file, or a state dict by torch.save."
    )
    keep: list[str] = Field([], description="Leave this layer's channels as they are; may be repeated.")


class SpaceOptions(Options):
    """The size and form of a search space."""

    panel = "Network"

    cells: int | None = Field(
        None,
        ge=1,
        description="darts: cells, default 8; nasbench201: cells a stage, default 5; mobile: layers a stage but the "
        "last, default 4.",
    )
    channels: int | None = Field(None, ge=1, description="Channels of the first cell or block; default 16.")
    factorized: bool | None = Field(
        None, description="Whether the darts space is factorized; default: yes for unas, else as published."
    )


class ShapeOptions(Options):
    """What a space is made for where there is no data."""

    panel = "Data"

    classes: int | None = Field(None, ge=1, description="Without data: classes; default 10.")
    in_channels: int | None = Field(
        None, ge=1, description="Without data: channels of the images; default 3. Their side is --size, or 32."
    )


class TableOptions(Options):
    """A table of accuracies that scores are compared with."""

    panel = "Table"

    table: str | None = Field(
        None, description="A .npz table of accuracies of nasbench201 cells that scores are compared with."
    )
    table_data: Literal["cifar10", "cifar100", "imagenet16_120"] | None = Field(
        None, description=f"The table's data set: {', '.join(TABLE_DATA)}; default: the first."
    )


def as_given(options: Options, name: str) -> str:
    """An option as it was given, such as "trials=3", or its name where it is a switch; empty at its default."""
    value = getattr(options, name)
    if value == type(options).model_fields[name].get_default():
        return ""
    return name if value is True else f"{name}={value}"


def check_space(space: str, options: SpaceOptions) -> None:
    """Raise ValueError where the size or form given is none of the space's."""
    if space != "darts" and options.factorized is not None:
        raise ValueError(f"only the space darts has a factorized and a published form, {space!r} has one")
    if space not in SPACES and (options.cells or options.channels):
        raise ValueError(f"cells and channels are for {', '.join(SPACES)}; {space!r} makes its own")


def check_shape(data: str | None, options: ShapeOptions) -> None:
    """Raise ValueError where classes or channels are given beside data, which says both."""
    for name in ("classes", "in_channels"):
        if data and (given := as_given(options, name)):
            raise ValueError(f"{given} goes without data; {data!r} says both")


def check_table(space: str, options: TableOptions, *others: str) -> None:
    """Raise ValueError for a table of another space, and for options of a table (and `others`) without one."""
    for name in ("table_data", *others):
        if not options.table and (given := as_given(options, name)):
            raise ValueError(f"{given} goes with a table: --table FILE.npz")
    if options.table and space != "nasbench201":
        raise ValueError(f"a table holds cells of the space nasbench201, and the space is {space!r}")


def named_space(text: str) -> str:
    """A built-in space's name, or a MODEL's, unchanged. Raises ConfigError."""
    place, colon, attribute = text.rpartition(":")
    if text in SPACES or (colon and place not in ("", "timm") and attribute):
        return text
    raise ConfigError(
        f"space {text!r} is not known.{meant(text, SPACES)} Allowed are {', '.join(SPACES)}, and a network "
        "of your own with choices: package.module:callable or path/to/file.py:callable"
    )


def augmentations(text: str) -> list[tuple[str, int | None]]:
    """Read augmentations such as flip,crop=4: their names and sizes. Raises ConfigError."""
    parsed: list[tuple[str, int | None]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"flip|(?:(crop|cutout|rotate|brightness|time_mask|frequency_mask)=([1-9]\d*))", part)
        if not match:
            raise ConfigError(f"augment={text!r}: {part!r} is not understood. Allowed are {AUGMENTATIONS}")
        parsed.append((match[1], int(match[2])) if match[1] else ("flip", None))
    return parsed
