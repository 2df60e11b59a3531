"""What `archgrad score` can be told, and what is known of each proxy; neither needs torch."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from archgrad.cli.schemas.commands import DATA, SPACES, TABLE_DATA, Options, named_space
from archgrad.cli.suggestions import meant
from archgrad.errors import ConfigError


class Known(NamedTuple):
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


RANDOM = ("expressivity", "progressivity", "trainability")  # of random inputs even where there are images
_PARTS = (*RANDOM, "macs")
# Read in published code or tables, but for what is called measured: 491 cells (naswot 200), validation accuracy.
PROXIES: dict[str, Known] = {
    "params": Known("nothing", ".69 / .69 / .67, measured", ".51"),
    "macs": Known("nothing", ".66 / .66 / .65, measured, as FLOPs", ".47"),
    "synflow": Known("nothing", ".74 / .76 / .75; best tenth .18", ".22"),
    "zen": Known("nothing", ".38 / .36 / .40, recalled"),
    "meco": Known("nothing"),
    "jacob_cov": Known("inputs", ".73 / .70 / .70; best tenth .15", "-.10"),
    "naswot": Known("inputs", ".70 / .74 / .75, measured"),
    "swap": Known("inputs", "CIFAR-100 .90, regularized by size"),
    "linear_regions": Known("inputs"),
    "ntk_condition": Known("inputs", lower=True),
    "expressivity": Known("inputs"),
    "progressivity": Known("inputs"),
    "trainability": Known("inputs"),
    "grad_norm": Known("labels", ".59 / .64 / .58; best tenth -.36", "-.02"),
    "snip": Known("labels", ".60 / .64 / .58; best tenth -.36", "-.02"),
    "grasp": Known("labels", ".51 / .55 / .55", ".30"),
    "fisher": Known("labels", ".36 / .39 / .33; best tenth -.38", "-.31"),
    "zico": Known("labels", "Kendall .61 / .61 / .59, a weak source"),
    "az_nas": Known("others", "Kendall CIFAR-10 .74, one run", joins=_PARTS),
    "te_nas": Known("others", lower=True, joins=("ntk_condition", "linear_regions")),
}
NEEDLESS = tuple(name for name, known in PROXIES.items() if known.needs == "nothing")


class ScoreOptions(Options):
    """`archgrad score`."""

    positional: ClassVar = {"model": "[MODEL]..."}

    model: list[str] = Field(
        [], description="Networks: package.module:callable, path/to/file.py:callable, or timm:NAME."
    )
    arch: list[str] = Field([], description="An architecture of the space, as text; may be repeated.")
    architectures: str | None = Field(
        None, description="A file of them: one a line, a JSON list, or an architecture.json."
    )
    sample: int | None = Field(None, ge=1, description="So many of the space, or of the table, at random.")
    proxy: list[str] = Field(
        [],
        description=f"{', '.join(PROXIES)}, or all; may be repeated. Default: those that need no data, "
        f"{', '.join(NEEDLESS)}.",
    )
    space: str = Field("nasbench201", description=f"{', '.join(SPACES)}, or a MODEL of your own with choices.")
    cells: int | None = Field(None, ge=1, description="As for search: cells, or cells a stage, or layers a stage.")
    channels: int | None = Field(None, ge=1, description="Channels of the first cell or block; default 16.")
    factorized: bool | None = Field(None, description="The form of the darts space; default: as published.")
    data: str = Field("", description=f"{DATA}. Without: random inputs, and no proxies that need labels.")
    skip_corrupt: bool = Field(False, description="Leave out images that cannot be read, and name them.")
    size: int | None = Field(None, ge=1, description="Side of the images, in pixels; without data 32.")
    classes: int | None = Field(None, ge=1, description="Without data: classes; default 10.")
    in_channels: int | None = Field(None, ge=1, description="Without data: channels of the images; default 3.")
    batch_size: int = Field(64, ge=1, description="Inputs that a score is made from, where it is made from any.")
    table: str | None = Field(
        None, description="A .npz table of accuracies of nasbench201 to hold the scores against."
    )
    table_data: Literal["cifar10", "cifar100", "imagenet16_120"] | None = Field(
        None, description=f"The table's data set: {', '.join(TABLE_DATA)}; default: the first."
    )
    table_epochs: Literal[12, 200] | None = Field(None, description="Epochs of the accuracies: 200 (default) or 12.")
    partial: bool = Field(False, description="The table may lack cells.")
    seed: int = Field(0, ge=0, lt=2**32, description="Of weights, random inputs and samples.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    out: str | None = Field(None, description="Keep the scores and a report in this folder; archgrad resume goes on.")

    @field_validator("space")
    @classmethod
    def _space(cls, name: str) -> str:
        return named_space(name)

    @field_validator("proxy")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name != "all" and name not in PROXIES:
                raise ValueError(
                    f"{name!r} was given.{meant(name, PROXIES)} Allowed are {', '.join(PROXIES)}, and all"
                )
        return names

    @model_validator(mode="after")
    def _together(self) -> ScoreOptions:
        cells = [name for name in ("arch", "architectures", "sample") if getattr(self, name)]
        if not self.model and not cells:
            raise ValueError("there is nothing to score: give a MODEL, --arch, --architectures or --sample")
        of_spaces = [*cells, *(name for name in ("cells", "channels", "factorized", "table") if getattr(self, name))]
        if self.model and of_spaces:
            raise ValueError(
                f"MODEL {self.model[0]!r} and --{of_spaces[0]} do not go together: score them one by one"
            )
        if self.table and self.space != "nasbench201":
            raise ValueError(f"a table holds cells of the space nasbench201, and the space is {self.space!r}")
        tabled = [name for name in ("table_data", "table_epochs", "partial") if getattr(self, name)]
        if tabled and not self.table:
            raise ValueError(f"{tabled[0]} goes with a table: --table FILE.npz")
        if self.data and (self.classes or self.in_channels):
            raise ValueError(f"classes and in_channels go without data; {self.data!r} says both")
        if self.space != "darts" and self.factorized is not None:
            raise ValueError(f"only the space darts has a factorized and a published form, {self.space!r} has one")
        if self.space not in SPACES and (self.cells or self.channels):
            raise ValueError(f"cells and channels are for {', '.join(SPACES)}; {self.space!r} makes its own")
        return self

    def wanted(self, networks: int) -> list[str]:
        """The proxies asked for, each once; all that can be computed for so many networks where "all" is.

        Raises ConfigError for one that needs labels without data, or other networks beside a single one.
        """
        names = list(dict.fromkeys(self.proxy)) or list(NEEDLESS)
        for name in names:
            if name != "all" and (lack := self._lacks(name, networks)):
                raise ConfigError(f"proxy {name} needs {lack}")
        if "all" in names:
            names = [name for name in PROXIES if not self._lacks(name, networks)]
        return names

    def _lacks(self, name: str, networks: int) -> str:
        if PROXIES[name].needs == "labels" and not self.data:
            free = ", ".join(name for name, known in PROXIES.items() if known.needs in ("nothing", "inputs"))
            return f"labels: give --data, or one of those that need none: {free}"
        if PROXIES[name].needs == "others" and networks < 2:
            return "other networks to compare with, and there is one: give more, or --sample N"
        return ""
