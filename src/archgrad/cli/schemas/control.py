"""The options of `archgrad control`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from archgrad.cli.schemas.options import Options


class ControlOptions(Options):
    """`archgrad control`."""

    positional: ClassVar = {"system": "SYSTEM"}

    system: Literal["vehicle", "cart_pole"] = Field(description="vehicle or cart_pole.")
    out: str = Field("runs/control", description="The run's folder.")
    trials: int = Field(200, ge=12, description="Real rollouts in all.")
    seconds: float | None = Field(None, gt=0, description="Time in all.")
    searched: bool = Field(False, description="Let DARTS search the network of the dynamics.")
    seed: int = Field(0, ge=0, lt=2**32, description="The same seed gives the same result.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    # So small a network is slower on several.
    threads: int = Field(1, ge=1, description="CPU threads.")
