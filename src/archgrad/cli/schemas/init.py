"""The options of `archgrad init`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from archgrad.cli.schemas.options import DATA, MODEL, ImageOptions
from archgrad.cli.schemas.task import TaskOptions, normalization


class InitOptions(ImageOptions):
    """`archgrad init`."""

    positional: ClassVar = {"model": "MODEL", "data": "DATA"}

    model: str = Field(description=f"{MODEL}.")
    data: str = Field(description=f"{DATA}.")
    out: str = Field("archgrad-run", description="The folder that the two files are written into.")
    weights: str | None = Field(None, description="Trained weights that the script begins with.")
    normalize: str | None = Field(None, description=TaskOptions.model_fields["normalize"].description)

    @field_validator("normalize")
    @classmethod
    def _check_normalize(cls, text: str | None) -> str | None:
        normalization(text)
        return text
