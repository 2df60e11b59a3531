"""The options of `archgrad demo`."""

from __future__ import annotations

from pydantic import Field

from archgrad.cli.schemas.options import Options


class DemoOptions(Options):
    """`archgrad demo`."""

    out: str = Field("runs/demo", description="The run's folder.")
    seed: int = Field(0, ge=0, lt=2**32, description="The same seed gives the same network.")
    epochs: int = Field(60, ge=3, description="Training epochs, for the slimmed network and for the baseline.")
    # So small a network is slower on several.
    threads: int = Field(1, ge=1, description="CPU threads.")
