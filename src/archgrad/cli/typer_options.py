"""From a schema's fields to the options of a typer command."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from archgrad.cli.schemas.commands import METHODS, NEGATIVES, SPACES, DataOptions, Options, RunOptions
from archgrad.cli.schemas.score import PROXIES
from archgrad.cli.suggestions import completes

JSON = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else, on stdout.")
]
CONFIG = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE.yaml", help="Options by name; the command line wins over it."),
]
DRY = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done: steps, memory, limit, time. Nothing is written.")
]
_COMPLETED = {
    "method": completes(lambda: METHODS),
    "space": completes(lambda: SPACES),
    "proxy": completes(lambda: (*PROXIES, "all")),
    "limit": completes(lambda: ("macs=", "params=", "latency_ms=")),
    "data": completes(lambda: ("digits",)),
}
_DECLARED = {
    **{name: (f"--{name}/{negative}",) for name, negative in NEGATIVES.items()},
    "shared": ("--shared",),
    "partial": ("--partial",),
    "inputs": ("--inputs",),
}
_METAVARS = {
    "limit": "NAME=VALUE", "keep": "PATH", "weights": "FILE", "out": "DIR", "model": "MODEL", "space": "SPACE",
    "method": "METHOD", "data": "DATA", "table": "FILE.npz", "arch": "TEXT", "architectures": "FILE",
    "sample": "N", "workers": "N|ray", "proxy": "NAME", "shots": "N",
}  # fmt: skip
_SEARCH = (
    "method",
    "limit",
    "search",
    "shared",
    "alpha",
    "memory_gib",
    "trials",
    "workers",
    "rounds",
    "norm",
    "seeds",
)
_TABLE = ("table", "table_data", "table_epochs", "partial")
_FEW = ("target", "shots", "draws", "restarts", "shot_steps")
_SCORED = ("arch", "architectures", "sample", "proxy")
_PANELS = dict.fromkeys(_SEARCH, "Search") | dict.fromkeys(_TABLE, "Table") | dict.fromkeys(_SCORED, "What")
_PANELS |= dict.fromkeys(_FEW, "Few samples") | dict.fromkeys(("gamma", "process"), "Search")
_PANELS |= dict.fromkeys(("classes", "in_channels"), "Data") | dict.fromkeys(
    ("auxiliary", "drop_path", "optimizer", "learning_rate", "weight_decay", "clip", "average", "smoothing"),
    "Training",
)


def describe(run: Callable[..., None], schema: type[Options], *, dry: bool = False) -> Callable[..., None]:
    """Give a function `run(*, config, as_json[, dry_run], <fields>)` the signature that typer reads its options from.

    Every field's default is None there: what was not given is told from what was, so that a file can say it.
    """
    names = [*schema.positional, *(name for name in schema.model_fields if name not in schema.positional)]
    parameters = [_parameter(name, schema, schema.positional.get(name)) for name in names]
    parameters += [_keyword("config", CONFIG, None), _keyword("as_json", JSON, False)]
    parameters += [_keyword("dry_run", DRY, False)] if dry else []
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameter(name: str, schema: type[Options], argument: str | None) -> inspect.Parameter:
    field = schema.model_fields[name]
    text = field.description or ""
    info: Any
    if argument:
        info = typer.Argument(metavar=argument, help=text, show_default=False)
    else:
        default = field.get_default()
        said = isinstance(default, int | float | str) and default is not False and default != ""
        info = typer.Option(
            *_DECLARED.get(name, ()),
            metavar=_METAVARS.get(name),
            help=f"{text} Default: {default}." if said else text,
            show_default=False,
            rich_help_panel=_panel(name),
            autocompletion=_COMPLETED.get(name),
        )
    return _keyword(name, Annotated[field.annotation | None, info], None)  # type: ignore[operator]


def _keyword(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _panel(name: str) -> str:
    if name in Options.model_fields or name in RunOptions.model_fields or name == "out":
        return "Run"
    return "Data" if name in DataOptions.model_fields else _PANELS.get(name, "Network")
