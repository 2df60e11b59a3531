"""The options of `archgrad score`, and what is known of each proxy."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from archgrad.cli.schemas.options import (
    DATA,
    MODEL,
    SPACES,
    ImageOptions,
    ShapeOptions,
    SpaceOptions,
    TableOptions,
    as_given,
    check_shape,
    check_space,
    check_table,
    named_space,
)
from archgrad.cli.suggestions import meant
from archgrad.errors import ConfigError


class Proxy(NamedTuple):
    """A proxy: what it needs, and how it ranked networks elsewhere.

    Attributes:
        needs: "nothing", "inputs", "labels", or "others", whose scores it joins over all networks.
        published: rank correlation with accuracy on NAS-Bench-201: CIFAR-10 / CIFAR-100 / ImageNet16-120.
        darts: Spearman on 500 networks of the DARTS space, measured.
        lower: whether a lower score is better.
        joins: the proxies that it joins.
    """

    needs: Literal["nothing", "inputs", "labels", "others"]
    published: str = ""
    darts: str = ""
    lower: bool = False
    joins: tuple[str, ...] = ()


RANDOM_INPUTS = ("expressivity", "progressivity", "trainability")  # of random inputs even where there are images
_PARTS = (*RANDOM_INPUTS, "macs")
# Read in published code or tables, but for what is called measured: 491 cells (naswot 200), validation accuracy.
PROXIES: dict[str, Proxy] = {
    "params": Proxy("nothing", ".69 / .69 / .67, measured", ".51"),
    "macs": Proxy("nothing", ".66 / .66 / .65, measured, as FLOPs", ".47"),
    "synflow": Proxy("nothing", ".74 / .76 / .75; best tenth .18", ".22"),
    "zen": Proxy("nothing", ".38 / .36 / .40, recalled"),
    "meco": Proxy("nothing"),
    "jacob_cov": Proxy("inputs", ".73 / .70 / .70; best tenth .15", "-.10"),
    "naswot": Proxy("inputs", ".70 / .74 / .75, measured"),
    "swap": Proxy("inputs", "CIFAR-100 .90, regularized by size"),
    "linear_regions": Proxy("inputs"),
    "ntk_condition": Proxy("inputs", lower=True),
    "expressivity": Proxy("inputs"),
    "progressivity": Proxy("inputs"),
    "trainability": Proxy("inputs"),
    "grad_norm": Proxy("labels", ".59 / .64 / .58; best tenth -.36", "-.02"),
    "snip": Proxy("labels", ".60 / .64 / .58; best tenth -.36", "-.02"),
    "grasp": Proxy("labels", ".51 / .55 / .55", ".30"),
    "fisher": Proxy("labels", ".36 / .39 / .33; best tenth -.38", "-.31"),
    "zico": Proxy("labels", "Kendall .61 / .61 / .59, a weak source"),
    "az_nas": Proxy("others", "Kendall CIFAR-10 .74, one run", joins=_PARTS),
    "te_nas": Proxy("others", lower=True, joins=("ntk_condition", "linear_regions")),
}
WITHOUT_DATA = tuple(name for name, proxy in PROXIES.items() if proxy.needs == "nothing")


class ScoreOptions(SpaceOptions, ShapeOptions, TableOptions, ImageOptions):
    """`archgrad score`."""

    positional: ClassVar = {"model": "[MODEL]..."}
    panel = "Networks"

    model: list[str] = Field([], description=f"Networks: {MODEL}.")
    arch: list[str] = Field([], description="An architecture of the space, as text; may be repeated.")
    architectures: str | None = Field(
        None, description="A file of them: one a line, a JSON list, or an architecture.json."
    )
    sample: int | None = Field(None, ge=1, description="This many of the space, or of the table, at random.")
    proxy: list[str] = Field(
        [],
        description=f"{', '.join(PROXIES)}, or all; may be repeated. Default: those that need no data, "
        f"{', '.join(WITHOUT_DATA)}.",
    )
    space: str = Field("nasbench201", description=f"{', '.join(SPACES)}, or a MODEL of your own with choices.")
    data: str | None = Field(None, description=f"{DATA}. Without: random inputs, and no proxies that need labels.")
    batch_size: int = Field(64, ge=1, description="Inputs that a score is computed from, where it needs any.")
    table_epochs: Literal[12, 200] | None = Field(None, description="Epochs of the accuracies: 200 (default) or 12.")
    partial: bool = Field(False, description="The table may lack cells.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of weights, random inputs and samples.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    out: str | None = Field(None, description="Keep the scores and a report in this folder; archgrad resume goes on.")

    @field_validator("space")
    @classmethod
    def _check_space(cls, name: str) -> str:
        return named_space(name)

    @field_validator("proxy")
    @classmethod
    def _check_proxies(cls, names: list[str]) -> list[str]:
        for name in names:
            if name != "all" and name not in PROXIES:
                raise ValueError(
                    f"{name!r} was given.{meant(name, PROXIES)} Allowed are {', '.join(PROXIES)}, and all"
                )
        return names

    @model_validator(mode="after")
    def _check_together(self) -> ScoreOptions:
        if not (self.model or self.arch or self.architectures or self.sample):
            raise ValueError("there is nothing to score: give a MODEL, --arch, --architectures or --sample")
        of_spaces = ("arch", "architectures", "sample", "cells", "channels", "factorized", "table")
        for name in of_spaces:
            if self.model and as_given(self, name):
                raise ValueError(
                    f"MODEL {self.model[0]!r} and --{name} do not go together: score them in two commands"
                )
        check_table(self.space, self, "table_epochs", "partial")
        check_shape(self.data, self)
        check_space(self.space, self)
        return self

    def chosen_proxies(self, networks: int) -> list[str]:
        """The proxies asked for, each once; all that can be computed for so many networks where "all" is.

        Raises ConfigError for one that needs labels without data, or other networks beside a single one.
        """
        names = list(dict.fromkeys(self.proxy)) or list(WITHOUT_DATA)
        for name in names:
            if name != "all" and (missing := self._missing(name, networks)):
                raise ConfigError(f"proxy {name} needs {missing}")
        if "all" in names:
            names = [name for name in PROXIES if not self._missing(name, networks)]
        return names

    def _missing(self, name: str, networks: int) -> str:
        if PROXIES[name].needs == "labels" and not self.data:
            free = ", ".join(name for name, proxy in PROXIES.items() if proxy.needs in ("nothing", "inputs"))
            return f"labels: give --data, or one of those that need none: {free}"
        if PROXIES[name].needs == "others" and networks < 2:
            return "other networks to compare with, and there is one: give more, or --sample N"
        return ""
