"""The options of `archgrad search`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from archgrad.cli.schemas.limits import LIMITS, LimitOptions
from archgrad.cli.schemas.methods import METHODS, SEARCHES, Method, MethodOptions
from archgrad.cli.schemas.options import (
    DATA,
    SPACES,
    Options,
    RunOptions,
    SpaceOptions,
    as_given,
    check_shape,
    check_space,
    check_table,
    named_space,
)
from archgrad.cli.schemas.recipe import DistillOptions, RecipeOptions
from archgrad.cli.schemas.task import TaskOptions, missing_task
from archgrad.cli.suggestions import meant

# A method that trains nothing has no use for these.
_OF_TRAINING = (
    *("epochs", "steps", "seconds", "precision", "search_fraction", "batch_size", "augment"),
    *(
        name
        for group in (RecipeOptions, DistillOptions)
        for name in group.model_fields
        if name not in Options.model_fields
    ),
)


class SearchOptions(
    MethodOptions, RecipeOptions, DistillOptions, SpaceOptions, LimitOptions, TaskOptions, RunOptions
):
    """`archgrad search`."""

    panel = "Search"
    needs_task: ClassVar[bool] = False

    limit: str | None = Field(
        None,
        description=f"{LIMITS}; a fraction is of the most expensive architecture. Hundreds of networks are "
        "timed, so that latency_ms is eager PyTorch here; onnx_ms takes seconds for each.",
    )
    data: str | None = Field(None, description=f"{DATA}. freenas reads its shape and classes alone.")
    method: str = Field("unas", description=f"{', '.join(SEARCHES)}.")
    space: str = Field("darts", description=f"{', '.join(SPACES)}, or a MODEL of your own that contains choices.")
    out: str = Field("runs/search", description="The run's folder.")
    search_fraction: float | None = Field(
        None, gt=0, le=1,
        description="Fraction of the budget that is searched in; the rest trains the result. Default: the method's "
        "own, 0.5 for most.",
    )  # fmt: skip

    @field_validator("method")
    @classmethod
    def _check_method(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"{name!r} was given.{meant(name, SEARCHES)} Allowed are {', '.join(SEARCHES)}")
        if METHODS[name].elsewhere:
            raise ValueError(f"{name} {METHODS[name].elsewhere}")
        return name

    @field_validator("space")
    @classmethod
    def _check_space(cls, name: str) -> str:
        return named_space(name)

    @model_validator(mode="after")
    def _check_together(self) -> SearchOptions:
        method = METHODS[self.method]
        for name in MethodOptions.model_fields:
            owners = [other for other in SEARCHES if METHODS[other].takes(name)]
            if owners and self.method not in owners and (given := as_given(self, name)):
                raise ValueError(f"{given} goes with --method {' or '.join(owners)}; {self.method} has no use for it")
        if method.trains == "nothing":
            self._check_untrained(method)
        elif not (self.data or self.task):
            raise ValueError(missing_task(self.method))
        check_space(self.space, self)
        check_table(self.space, self)
        return self

    def _check_untrained(self, method: Method) -> None:
        for name in _OF_TRAINING:
            if given := as_given(self, name):
                raise ValueError(f"{given} is for methods that train, and {method.name} trains nothing: leave it out")
        check_shape(self.data or self.task, self)
