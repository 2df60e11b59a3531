"""The options of `archgrad slim`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from archgrad.cli.schemas.limits import LIMITS, parse, parse_front
from archgrad.cli.schemas.options import NetworkOptions, Options, RunOptions, as_given
from archgrad.cli.schemas.recipe import DistillOptions, RecipeOptions
from archgrad.cli.schemas.task import TaskOptions


class FrontOptions(Options):
    """One limit, several at once, or a front."""

    panel = "Search"

    limit: list[str] = Field(
        [],
        description=f"{LIMITS}; may be repeated, and all hold. macs=0.75,0.5,0.25: a network at each. Default: as "
        "`sparsity` has it.",
    )
    within: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Of a front, the smallest network within so many points of the whole network's score; without "
        "--limit, of macs=0.75,0.5,0.25.",
    )

    @field_validator("limit", mode="before")
    @classmethod
    def _check_limit(cls, given: object) -> object:
        if isinstance(given, Mapping):  # limit: {macs: 0.5, params: 0.4} in a YAML file
            given = [f"{name}={value}" for name, value in given.items()]
        texts = [given] if isinstance(given, str) else given
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts) and not parse_front(texts):
            for text in texts:
                parse(text)
        return texts


class SlimOptions(RecipeOptions, DistillOptions, NetworkOptions, FrontOptions, TaskOptions, RunOptions):
    """`archgrad slim`."""

    positional: ClassVar = {"model": "MODEL", "data": "DATA"}
    panel = "Search"
    teaches_itself: ClassVar[bool] = True

    out: str = Field("runs/slim", description="The run's folder.")
    pretrained: bool | None = Field(
        None, description="Whether the weights are trained; default: yes where --weights is given."
    )
    check_weights: bool = Field(
        True, description="Stop where trained weights score near chance, before anything is trained."
    )
    round_to: str | None = Field(
        None,
        description="Widths are multiples of this; default 8, less for narrow layers; under a limit on latency auto: "
        "what is measured to suit its runtime here.",
    )
    sparsity: float | None = Field(
        None,
        ge=0,
        description="Gates as published, at this strength of their regularizer; default without a limit: 3.",
    )
    gate_epochs: int | None = Field(
        None,
        ge=1,
        description="Epochs of the gates; default: a tenth of all; as published a sixth, at most 10.",
    )

    @field_validator("round_to", mode="before")
    @classmethod
    def _check_round_to(cls, given: object) -> object:
        if given is None or given == "auto" or (re.fullmatch(r"[1-9]\d*", str(given)) and given is not True):
            return given if given is None else str(given)
        raise ValueError(f"{given!r} is no multiple. Give a whole number from 1 up, or auto")

    @property
    def rounding(self) -> int | Literal["auto"] | None:
        """What widths are to be multiples of."""
        if self.round_to is None or self.round_to == "auto":
            return "auto" if self.round_to else None
        return int(self.round_to)

    @property
    def front(self) -> tuple[str, tuple[float, ...]] | None:
        """The cost and the fractions of a front; None where one network is asked for."""
        return parse_front(self.limit or (["macs=0.75,0.5,0.25"] if self.within is not None else []))

    @model_validator(mode="after")
    def _check_front(self) -> SlimOptions:
        if self.within is not None and self.front is None:
            raise ValueError(
                f"within={self.within:g} chooses among several budgets, and limit={', '.join(self.limit)} is one. "
                f"Give --limit macs=0.75,0.5,0.25, or leave it out"
            )
        for name in ("sparsity", "gate_epochs"):
            if self.front is not None and (given := as_given(self, name)):
                raise ValueError(f"{given} goes with one network; a front has several")
        return self
