"""What `archgrad transfer` can be told."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from archgrad.cli.schemas.commands import DATA, LIMITS, LimitedOptions


class TransferOptions(LimitedOptions):
    """`archgrad transfer`."""

    positional: ClassVar = {"model": "MODEL", "data": "SOURCE", "target": "TARGET"}

    model: str = Field(description="package.module:callable, path/to/file.py:callable, or timm:NAME.")
    data: str = Field(description=f"The source, of which there is much: {DATA}.")
    target: str = Field(description="The target, of which few images are trained on: as the source, of one shape.")
    out: str = Field("runs/transfer", description="The run's folder.")
    limit: str | None = Field(None, description=f"{LIMITS}. Default: as `gamma` has it.")
    gamma: float = Field(0.3, ge=0, description="Weight of the penalty on what is kept.")
    process: Literal["redraw", "cotrain", "frozen"] = Field(
        "redraw", description="Weights of the search: drawn afresh each round, trained on, or --weights as they are."
    )
    weights: str | None = Field(
        None, description="Trained weights: a .safetensors file, or a state dict by torch.save."
    )
    keep: list[str] = Field([], description="Leave this layer's channels as they are; may be repeated.")
    inputs: bool = Field(False, description="Input features may go too.")
    shots: list[int] = Field([5], description="Target images of each class; may be repeated. Default: 5.")
    draws: int = Field(5, ge=1, description="Draws of the shots.")
    restarts: int = Field(3, ge=1, description="Trainings on each draw.")
    shot_steps: int = Field(100, ge=1, description="Steps of each training on shots.")
    norm: Literal["shots", "source"] = Field(
        "shots", description="BatchNorm where source weights are kept: statistics of the shots, or the source's."
    )
