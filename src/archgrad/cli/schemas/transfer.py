"""The options of `archgrad transfer`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from archgrad.cli.schemas.limits import LIMITS, LimitOptions
from archgrad.cli.schemas.options import DATA, NetworkOptions, RunOptions
from archgrad.cli.schemas.task import NormalizedOptions


class FewShotOptions(NormalizedOptions):
    """The target data, and how structures are compared on few samples of it."""

    panel = "Few samples"

    target: str = Field(
        description="The target, of which few images are trained on: as SOURCE, with inputs of the same shape."
    )
    shots: list[int] = Field([5], description="Target images of each class; may be repeated. Default: 5.")
    draws: int = Field(5, ge=1, description="Draws of the shots.")
    restarts: int = Field(3, ge=1, description="Trainings on each draw.")
    shot_steps: int = Field(100, ge=1, description="Steps of each training on shots.")
    norm: Literal["shots", "source"] = Field(
        "shots", description="BatchNorm where source weights are kept: statistics of the shots, or the source's."
    )


class TransferOptions(FewShotOptions, NetworkOptions, LimitOptions, RunOptions):
    """`archgrad transfer`."""

    positional: ClassVar = {"model": "MODEL", "data": "SOURCE", "target": "TARGET"}
    panel = "Search"

    data: str = Field(description=f"The source, of which there is much: {DATA}.")
    out: str = Field("runs/transfer", description="The run's folder.")
    limit: str | None = Field(None, description=f"{LIMITS}. Default: as `gamma` has it.")
    gamma: float = Field(0.3, ge=0, description="Weight of the penalty on what is kept.")
    process: Literal["redraw", "cotrain", "frozen"] = Field(
        "redraw", description="Weights of the search: drawn afresh each round, trained on, or --weights as they are."
    )
    inputs: bool = Field(False, description="Prune input features too.")
