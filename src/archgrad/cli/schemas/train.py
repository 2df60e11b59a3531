"""The options of `archgrad train`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from archgrad.cli.schemas.options import RunOptions, named_space
from archgrad.cli.schemas.recipe import DistillOptions, RecipeOptions
from archgrad.cli.schemas.task import TaskOptions


class TrainOptions(RecipeOptions, DistillOptions, TaskOptions, RunOptions):
    """`archgrad train`."""

    positional: ClassVar = {"network": "ARCHITECTURE.json|MODEL", "data": "DATA"}
    panel = "Network"

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

    @field_validator("space")
    @classmethod
    def _check_space(cls, name: str | None) -> str | None:
        return name and named_space(name)

    @property
    def architecture(self) -> str | None:
        """The architecture's file, None to train a plain network."""
        return self.network if self.network.endswith(".json") else None

    @model_validator(mode="after")
    def _check_together(self) -> TrainOptions:
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
