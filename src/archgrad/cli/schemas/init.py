"""The options of `archgrad init`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from archgrad.cli.schemas.options import DATA, MODEL, ImageOptions


class InitOptions(ImageOptions):
    """`archgrad init`."""

    positional: ClassVar = {"model": "MODEL", "data": "DATA"}

    model: str = Field(description=f"{MODEL}.")
    data: str = Field(description=f"{DATA}.")
    out: str = Field("archgrad-run", description="The folder that the two files are written into.")
