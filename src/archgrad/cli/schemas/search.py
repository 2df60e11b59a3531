"""What `archgrad search` can be told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from archgrad.cli.schemas.commands import (
    DATA,
    ELSEWHERE,
    LIMITS,
    METHODS,
    SPACES,
    TABLE_DATA,
    LimitedOptions,
    named_space,
)
from archgrad.cli.suggestions import meant

# What only some methods have, and what a method that trains nothing has no use for.
_OWN = {
    ("alpha",): ("monas",),
    ("memory_gib",): ("radars",),
    ("shared",): ("random_search",),
    ("trials", "workers"): ("random_search", "monas", "multimodal_random"),
    ("rounds", "norm", "seeds", "classes", "in_channels", "table", "table_data"): ("freenas",),
}
_OF_TRAINING = ("epochs", "steps", "seconds", "search_fraction", "batch_size", "augment", "precision")


class SearchOptions(LimitedOptions):
    """`archgrad search`."""

    limit: str | None = Field(None, description=f"{LIMITS}; a fraction is of the most expensive architecture.")
    data: str = Field(
        "", description=f"{DATA}. freenas reads none: of data that is given it takes shape and classes."
    )
    method: str = Field("unas", description=f"{', '.join(METHODS)}.")
    space: str = Field("darts", description=f"{', '.join(SPACES)}, or a MODEL of your own that contains choices.")
    out: str = Field("runs/search", description="The run's folder.")
    channels: int | None = Field(None, ge=1, description="Channels of the first cell or block; default 16.")
    cells: int | None = Field(
        None,
        ge=1,
        description="darts: cells, default 8; nasbench201: cells a stage, default 5; mobile: layers a stage but the "
        "last, default 4.",
    )
    factorized: bool | None = Field(
        None, description="The form of the darts space; default: as UNAS has it for unas, else as published."
    )
    search_fraction: float = Field(
        0.5, gt=0, le=1, description="Share of the steps searched in; the rest trains the result."
    )
    shared: bool = Field(False, description="random_search: try architectures with the weights of one supernet.")
    memory_gib: float | None = Field(
        None, gt=0, description="radars: bound on the memory of the search, in GiB; default: what is free."
    )
    alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="monas: reward alpha * accuracy - (1 - alpha) * MACs, scaled to the space; "
        "default: accuracy alone, under the limit.",
    )
    trials: int | None = Field(
        None,
        ge=1,
        description="Architectures tried: random_search, default 10, with --shared 50; monas, 30; "
        "multimodal_random, 40.",
    )
    workers: str | None = Field(
        None,
        description="Processes that try architectures side by side, a number, or a Ray cluster: ray, "
        "ray://HOST:PORT. The result is the same.",
    )
    rounds: int | None = Field(None, ge=1, description="freenas: rounds of scoring and dropping; default 1.")
    norm: Literal["off", "eval", "train"] | None = Field(
        None, description="freenas: normalization off (default), in eval or in train mode; it decides the answer."
    )
    seeds: int | None = Field(None, ge=1, description="freenas: draws of the weights; default 3.")
    classes: int | None = Field(None, ge=1, description="freenas without data: classes; default 10.")
    in_channels: int | None = Field(
        None,
        ge=1,
        description="freenas without data: channels of the images; default 3. Their side is --size, or 32.",
    )
    table: str | None = Field(
        None, description="freenas, nasbench201: a .npz table of accuracies that the scores are held against."
    )
    table_data: Literal["cifar10", "cifar100", "imagenet16_120"] | None = Field(
        None, description=f"The table's data set: {', '.join(TABLE_DATA)}; default: the first."
    )

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        if name in ELSEWHERE:
            raise ValueError(f"{name} {ELSEWHERE[name]}")
        if name not in METHODS:
            raise ValueError(f"{name!r} was given.{meant(name, METHODS)} Allowed are {', '.join(METHODS)}")
        return name

    @field_validator("workers", mode="before")
    @classmethod
    def _workers(cls, given: object) -> object:
        told = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
        if isinstance(told, str) and not (told.isdecimal() and int(told)) and not re.fullmatch(r"ray(://\S+)?", told):
            raise ValueError(f"{given!r} was given. Allowed are a number of at least 1, ray and ray://HOST:PORT")
        return told

    @field_validator("space")
    @classmethod
    def _space(cls, name: str) -> str:
        return named_space(name)

    @model_validator(mode="after")
    def _together(self) -> SearchOptions:
        for names, owners in _OWN.items():
            if self.method not in owners and (given := self._given(names)):
                trains = owners[0] != "freenas" and self.method not in ("freenas", "monas")
                how = "trains one supernet: bound it by epochs, steps or seconds" if trains else "has no use for it"
                raise ValueError(f"{given} goes with --method {' or '.join(owners)}; {self.method} {how}")
        if self.method == "freenas":
            self._free()
        elif not self.data:
            raise ValueError(f"DATA is missing: {self.method} trains. Give --data: {DATA}")
        if self.space != "darts" and self.factorized is not None:
            raise ValueError(f"only the space darts has a factorized and a published form, {self.space!r} has one")
        if self.space not in SPACES and (self.cells or self.channels):
            raise ValueError(f"cells and channels are for {', '.join(SPACES)}; {self.space!r} makes its own")
        return self

    def _given(self, names: Sequence[str]) -> str:
        """The first of these options that is not at its default, as it is told; empty where none is."""
        fields = type(self).model_fields
        told = [(name, getattr(self, name)) for name in names if getattr(self, name) != fields[name].default]
        return next((name if value is True else f"{name}={value}" for name, value in told), "")

    def _free(self) -> None:
        if given := self._given(_OF_TRAINING):
            raise ValueError(f"{given} is for methods that train, and freenas trains nothing: leave it out")
        if self.data and (given := self._given(("classes", "in_channels"))):
            raise ValueError(f"{given} goes without data; {self.data!r} says both")
        if self.table_data and not self.table:
            raise ValueError(f"table_data={self.table_data} goes with a table: --table FILE.npz")
        if self.table and self.space != "nasbench201":
            raise ValueError(f"a table holds cells of the space nasbench201, and the space is {self.space!r}")
