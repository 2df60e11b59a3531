"""The search space that --space names, built for the data, or read from the record beside an architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from archgrad import files
from archgrad.choices.access import choices, relax
from archgrad.choices.architecture import Architecture
from archgrad.choices.relaxations import Softmax
from archgrad.cli.inputs import data, models
from archgrad.cli.schemas.options import SPACES
from archgrad.copy_and_run import copied, in_mode
from archgrad.errors import ConfigError, ModelError
from archgrad.proxies import scoring
from archgrad.spaces.darts import darts_cells
from archgrad.spaces.mobile import PROXYLESS, mobile_backbone
from archgrad.spaces.nasbench201 import nasbench201_cells
from archgrad.tasks.task import Checkable, Inputs, tensors

_CELLS = {"darts": 8, "nasbench201": 5, "mobile": 4}
_CHANNELS = 16
# Images of at least _LARGE pixels a side get the forms for ImageNet; below _MIDDLE mobile halves one stage less.
_LARGE, _MIDDLE = 96, 48


class _Sizes(TypedDict):
    cells: int
    channels: int
    classes: int
    in_channels: int


class Fits(Protocol):
    """What a space is made to fit: a task, or `Shape` where there is no data."""

    @property
    def example(self) -> Inputs:
        """Inputs [1, ...] as the network sees them."""
        ...


@dataclass(frozen=True)
class Shape:
    """Classes and an example, without data."""

    classes: int
    example: Inputs

    def check(self, network: nn.Module) -> None:
        """Run the network on the example. Raises ModelError where it fails, or has weights that give no scores."""
        assert isinstance(self.example, Tensor)
        scoring.theta(network)
        with torch.no_grad():
            scoring.run(in_mode(network), self.example)


class SpaceDescription(BaseModel):
    """What a space is, as a record keeps it; a space of the user's own is its MODEL and no more."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    kind: str
    cells: int | None = Field(None, ge=1)
    channels: int | None = Field(None, ge=1)
    factorized: bool | None = None

    @model_validator(mode="after")
    def _sized(self) -> SpaceDescription:
        if self.built_in and not (self.cells and self.channels):
            raise ValueError(f"the space {self.kind} needs cells and channels")
        return self

    @property
    def built_in(self) -> bool:
        """Whether it is a built-in space."""
        return self.kind in SPACES


def describe(kind: str, *, cells: int | None, channels: int | None, factorized: bool) -> SpaceDescription:
    """A space of this kind, in the published size where none is given."""
    if kind not in SPACES:
        return SpaceDescription(kind=kind, cells=None, channels=None)
    return SpaceDescription(
        kind=kind,
        cells=cells or _CELLS[kind],
        channels=channels or _CHANNELS,
        factorized=factorized if kind == "darts" else None,
    )


def build_space(description: SpaceDescription, task: Fits) -> tuple[nn.Module, dict[str, Any]]:
    """The space for a task's classes and images, and its record.

    Raises:
        DataError, ModelError, ConfigError: data that are no images, a MODEL that makes no space for this task.
    """
    kind, classes = description.kind, data.classes_of(task)
    if not description.built_in:
        space = models.load(kind, classes=classes, example=task.example)
        _check(space, task)
        return space, {"kind": kind} | ({} if classes is None else {"classes": classes})
    example = task.example
    if not isinstance(example, Tensor) or example.ndim != 4:
        shapes = [list(x.shape) for x in tensors(example)]
        raise ModelError(
            f"the space {kind} takes images [B, C, H, W], and the data's samples have the shapes {shapes}. Give a "
            "network of your own that contains choices: --space path/to/file.py:callable"
        )
    if classes is None:
        raise ConfigError(
            f"the space {kind} ends in one output for each class, and the task does not say how many there are. "
            "Give it an attribute classes, or a network of your own that contains choices: --space file.py:callable"
        )
    assert description.cells and description.channels
    sizes = _Sizes(
        cells=description.cells, channels=description.channels, classes=classes, in_channels=int(example.shape[1])
    )  # fmt: skip
    space, more = _MAKERS[kind](description, sizes, min(example.shape[2:]))
    return space, {"kind": kind, **sizes, **more}


def in_words(record: dict[str, Any]) -> str:
    """A space's record in a few words."""
    if record["kind"] not in SPACES:
        return str(record["kind"])
    forms = {True: ["factorized"], False: ["published"], None: []}[record.get("factorized")]
    cells = {"darts": "cells", "nasbench201": "cells a stage", "mobile": "layers a stage"}[record["kind"]]
    parts = [*forms, f"{record['cells']} {cells}", f"{record['channels']} channels"]
    return f"{record['kind']} ({', '.join(parts)})"


def recorded(architecture: Path) -> SpaceDescription | None:
    """What the record of the run beside an architecture's file says of its space; None without such a record.

    Raises ConfigError where it is damaged.
    """
    path = architecture.parent / "record.json"
    if not path.is_file():
        return None
    try:
        content = files.read_text(path, ConfigError, most=files.RECORD)
        body = files.parse_json(content, ConfigError, source=str(path), finite=False)
        given = body.get("space") if isinstance(body, dict) else body
        return None if given is None else SpaceDescription.model_validate(given)
    except (OSError, ValueError, RecursionError) as error:
        wrong = [fault["msg"] for fault in error.errors()] if isinstance(error, ValidationError) else [str(error)]
        raise ConfigError(
            f"{path} is damaged ({'; '.join(wrong)}), so the space of {architecture} is not known from it. "
            "Move it away, and give --space with --cells and --channels."
        ) from None


def searched_in(
    path: Path, architecture: Architecture, kind: str | None, *, cells: int | None, channels: int | None
) -> SpaceDescription | None:
    """The space that an architecture was searched in, by its record or as asked for; None where neither says.

    Args:
        path: of the architecture's file.
        architecture: what it holds.
        kind: of the space, where that was given.
        cells, channels: of a space of one size, where the record is lost.

    Raises:
        ConfigError: the space is a user's code, which is run only where it is asked for.
    """
    space = recorded(path)
    if space and kind in (None, space.kind):
        if kind is None and not space.built_in:
            raise ConfigError(
                f"{path} was found in a space of your own. To run its code, name it: --space {space.kind}"
            )
        return space
    match kind:
        case None:
            return None
        case "darts":
            # Its two forms name their choices differently, and spaces of few cells have reductions alone.
            factorized = any(name.endswith(".input0") for name in architecture)
            reductions = all(name.startswith("reduce.") for name in architecture)
            return describe(kind, cells=2 if reductions else None, channels=None, factorized=factorized)
        case "mobile":
            return describe(
                kind, cells=cells or max((len(architecture) - 1) // 5, 1), channels=channels, factorized=False
            )
    return describe(kind, cells=None, channels=None, factorized=False)


def _check(space: nn.Module, task: Fits) -> None:
    """Run all candidates of a user's space once, on a copy, so that what does not fit is named at once."""
    if choices(space) and isinstance(task, Checkable):
        task.check(relax(copied(space), Softmax))


def _darts(description: SpaceDescription, sizes: _Sizes, side: int) -> tuple[nn.Module, dict[str, Any]]:
    stem: Literal["cifar", "imagenet"] = "imagenet" if side >= _LARGE else "cifar"
    space = darts_cells(**sizes, factorized=bool(description.factorized), stem=stem)
    return space, {"factorized": bool(description.factorized), "stem": stem}


def _nasbench201(description: SpaceDescription, sizes: _Sizes, side: int) -> tuple[nn.Module, dict[str, Any]]:
    return nasbench201_cells(**sizes), {}


def _mobile(description: SpaceDescription, sizes: _Sizes, side: int) -> tuple[nn.Module, dict[str, Any]]:
    first = sizes["channels"]

    def scaled(width: int) -> int:
        return max(1, round(width * first / PROXYLESS.first))

    widths = replace(
        PROXYLESS,
        stem=scaled(PROXYLESS.stem),
        first=first,
        stages=tuple(scaled(width) for width in PROXYLESS.stages),
        head=scaled(PROXYLESS.head),
    )
    stem_stride = 2 if side >= _LARGE else 1
    strides = (1 if side < _MIDDLE else 2, 2, 2, 1, 2, 1)
    space = mobile_backbone(
        widths=widths,
        cells=(*[sizes["cells"]] * (len(widths.stages) - 1), 1),
        strides=strides,
        stem_stride=stem_stride,
        classes=sizes["classes"],
        in_channels=sizes["in_channels"],
    )
    return space, {"stem_stride": stem_stride, "strides": list(strides)}


_MAKERS: dict[str, Callable[[SpaceDescription, _Sizes, int], tuple[nn.Module, dict[str, Any]]]] = {
    "darts": _darts,
    "nasbench201": _nasbench201,
    "mobile": _mobile,
}
