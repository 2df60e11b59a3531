"""The table of methods: a new method is a row here, and nothing else in the command line.

From its row follow what `archgrad search` accepts, how it calls the method, the dry run, the help, and
`archgrad methods`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from archgrad.cli.schemas.options import Options, ShapeOptions, TableOptions


class MonasOptions(Options):
    """Of MONAS."""

    panel = "Search"

    alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="monas: reward alpha * accuracy - (1 - alpha) * MACs, scaled to the space; "
        "default: accuracy alone, under the limit.",
    )


class RadarsOptions(Options):
    """Of RADARS."""

    panel = "Search"

    memory_gib: float | None = Field(
        None, gt=0, description="radars: bound on the memory of the search, in GiB; default: what is free."
    )


class RandomSearchOptions(Options):
    """Of random search."""

    panel = "Search"

    shared: bool = Field(False, description="random_search: try architectures with the weights of one supernet.")


class TrialOptions(Options):
    """Of methods that try architectures one by one."""

    panel = "Search"

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

    @field_validator("workers", mode="before")
    @classmethod
    def _check_workers(cls, given: object) -> object:
        text = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
        is_count = isinstance(text, str) and text.isdecimal() and int(text) > 0
        if isinstance(text, str) and not is_count and text != "ray" and not text.startswith("ray://"):
            raise ValueError(f"{given!r} was given. Allowed are a number of at least 1, ray and ray://HOST:PORT")
        return text


class FreenasOptions(ShapeOptions, TableOptions):
    """Of FreeNAS, which needs no data."""

    panel = "Search"

    rounds: int | None = Field(None, ge=1, description="freenas: rounds of scoring and dropping; default 1.")
    norm: Literal["off", "eval", "train"] | None = Field(
        None, description="freenas: normalization off (default), in eval or in train mode; it decides the answer."
    )
    seeds: int | None = Field(None, ge=1, description="freenas: draws of the weights; default 3.")


class MethodOptions(MonasOptions, RadarsOptions, RandomSearchOptions, TrialOptions, FreenasOptions):
    """Every option that only some methods take."""


Arguments = dict[str, Any]


def _monas(options: Any, example: Any) -> Arguments:
    from archgrad.costs.count import macs, params
    from archgrad.methods.monas.rewards import mixed, under

    count = macs(example)
    reward = under() if options.alpha is None else mixed(count, alpha=options.alpha)
    return {"reward": reward, "costs": (count, params())}


def _radars(options: Any, example: Any) -> Arguments:
    from archgrad.costs.memory import peak_memory

    bound = peak_memory(example, batch=options.batch_size)
    return {"memory": bound.at_most(gib=options.memory_gib) if options.memory_gib else None}


def _freenas(options: Any, example: Any) -> Arguments:
    given = {name: getattr(options, name) for name in ("rounds", "norm", "seeds")}
    return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: as --method takes it.
        function: package.module:function, imported when it is called.
        elsewhere: what runs it, where `archgrad search` does not.
        options: groups of options that not every method takes.
        arguments: from the options of `archgrad search` and an example of the inputs to the arguments that only
            this method takes.
        trains: what a step of its search trains. A method that trains nothing needs no data.
        passes: forward passes of the supernet whose memory a step of the search holds at once.
        factorized: whether it takes the darts space in its factorized form by default.
    """

    name: str
    function: str
    elsewhere: str = ""
    options: tuple[type[Options], ...] = ()
    arguments: Callable[[Any, Any], Arguments] = lambda options, example: {}
    trains: Literal["supernet", "networks", "paths", "nothing"] = "supernet"
    passes: int = 1
    factorized: bool = False

    @property
    def module(self) -> str:
        """The module that the function is in."""
        return self.function.partition(":")[0]

    def load(self) -> Callable[..., Any]:
        """The function."""
        function: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function.split(":")[1])
        return function

    def takes(self, option: str) -> bool:
        """Whether an option that only some methods take is one of this method's."""
        own = {name for group in self.options for name in group.model_fields}
        return option in own - Options.model_fields.keys()


_ROWS = (
    Method("unas", "archgrad.methods.unas.unas:unas", passes=2, factorized=True),
    Method("darts", "archgrad.methods.darts:darts"),
    Method("darts_prime", "archgrad.methods.darts_prime.darts_prime:darts_prime"),
    Method("toponas", "archgrad.methods.toponas.toponas:toponas"),
    Method(
        "radars", "archgrad.methods.radars.radars:radars",
        options=(RadarsOptions,), arguments=_radars, trains="paths",
    ),
    Method(
        "monas", "archgrad.methods.monas.monas:monas",
        options=(MonasOptions, TrialOptions), arguments=_monas, trains="networks",
    ),
    Method(
        "multimodal_random", "archgrad.methods.multimodal_random.multimodal_random:multimodal_random",
        options=(TrialOptions,), trains="networks",
    ),
    Method(
        "nnilqr", "archgrad.control.nnilqr:nnilqr", elsewhere="controls a process: archgrad control SYSTEM"
    ),
    Method(
        "rl_darts", "archgrad.rl.rl_darts:rl_darts",
        elsewhere="plays environments, which are code: archgrad.rl_darts in Python",
    ),
    Method(
        "random_search", "archgrad.methods.random_search:random_search",
        options=(RandomSearchOptions, TrialOptions), trains="networks",
        arguments=lambda options, example: {"shared": options.shared},
    ),
    Method(
        "freenas", "archgrad.methods.freenas.freenas:freenas",
        options=(FreenasOptions,), arguments=_freenas, trains="nothing",
    ),
    Method(
        "dnal", "archgrad.methods.dnal.dnal:dnal", elsewhere="slims a network that you have: archgrad slim MODEL DATA"
    ),
    Method(
        "pruning_transfer", "archgrad.methods.pruning_transfer.pruning_transfer:pruning_transfer",
        elsewhere="prunes a network that you have for few data: archgrad transfer MODEL SOURCE TARGET",
    ),
)  # fmt: skip
METHODS = {method.name: method for method in _ROWS}
SEARCHES = tuple(method.name for method in _ROWS if not method.elsewhere)
