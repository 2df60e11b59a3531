"""The options of `archgrad slim`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from archgrad.cli.schemas.limits import LIMITS, LimitOptions
from archgrad.cli.schemas.options import NetworkOptions, RunOptions
from archgrad.cli.schemas.recipe import DistillOptions, RecipeOptions
from archgrad.cli.schemas.task import TaskOptions


class SlimOptions(RecipeOptions, DistillOptions, NetworkOptions, LimitOptions, TaskOptions, RunOptions):
    """`archgrad slim`."""

    positional: ClassVar = {"model": "MODEL", "data": "DATA"}
    panel = "Search"
    teaches_itself: ClassVar[bool] = True

    limit: str | None = Field(None, description=f"{LIMITS}. Default: as `sparsity` has it.")
    out: str = Field("runs/slim", description="The run's folder.")
    pretrained: bool | None = Field(
        None, description="Whether the weights are trained; default: yes where --weights is given."
    )
    check_weights: bool = Field(
        True, description="Stop where trained weights score near chance, before anything is trained."
    )
    round_to: int | None = Field(
        None, ge=1, description="Widths are multiples of this; default 8, less for narrow layers."
    )
    sparsity: float | None = Field(
        None,
        ge=0,
        description="Gates as published, at this strength of their regularizer; default without a limit: 3.",
    )
    gate_epochs: int | None = Field(
        None,
        ge=1,
        description="Epochs of the gates; default: a fifth of all, of trained weights a tenth.",
    )
