"""From a schema's fields to the options of a typer command."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from archgrad.cli.schemas.limits import COSTS
from archgrad.cli.schemas.methods import SEARCHES
from archgrad.cli.schemas.options import NEGATIVES, SPACES, Options
from archgrad.cli.schemas.score import PROXIES
from archgrad.cli.suggestions import completes

JSON = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else, on stdout.")
]
CONFIG = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE.yaml", help="Options by name; the command line wins over it."),
]
DRY_RUN = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done: steps, memory, limit, time. Nothing is written.")
]
_COMPLETED = {
    "method": completes(lambda: SEARCHES),
    "space": completes(lambda: SPACES),
    "proxy": completes(lambda: (*PROXIES, "all")),
    "limit": completes(lambda: [f"{name}=" for name in COSTS]),
    "data": completes(lambda: ("digits",)),
}
_SWITCHES = {
    **{name: f"--{name}/{negative}" for name, negative in NEGATIVES.items()},
    **{
        name: f"--{name.replace('_', '-')}"
        for name in ("shared", "partial", "inputs", "searched", "best_epoch", "distill")
    },
}
_METAVARS = {
    "teacher": "MODEL", "teacher_weights": "FILE",
    "limit": "NAME=VALUE", "keep": "PATH", "weights": "FILE", "out": "DIR", "model": "MODEL", "space": "SPACE",
    "method": "METHOD", "data": "DATA", "task": "FILE.py:FUNCTION", "metric": "NAME|CODE",
    "table": "FILE.npz", "arch": "TEXT",
    "architectures": "FILE", "sample": "N", "workers": "N|ray", "proxy": "NAME", "shots": "N",
}  # fmt: skip


def describe(call: Callable[..., None], schema: type[Options], *, dry_run: bool) -> Callable[..., None]:
    """Give `call(*, config, as_json[, dry_run], <fields>)` the signature that typer reads its options from.

    Every default is None there, so that an option that was not given can be told from one that was: a YAML file may
    give it.
    """
    # The command's own options first, those that all commands have last.
    options = sorted(schema.model_fields.keys() - schema.positional.keys(), key=lambda name: _rank(name, schema))
    parameters = [_parameter(name, schema, schema.positional.get(name)) for name in (*schema.positional, *options)]
    parameters += [_keyword("config", CONFIG, None), _keyword("as_json", JSON, False)]
    parameters += [_keyword("dry_run", DRY_RUN, False)] if dry_run else []
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameter(name: str, schema: type[Options], argument: str | None) -> inspect.Parameter:
    field = schema.model_fields[name]
    text = field.description or ""
    info: Any
    if argument:
        info = typer.Argument(metavar=argument, help=text, show_default=False)
    else:
        default = field.get_default()
        has_default = isinstance(default, int | float | str) and default is not False and default != ""
        info = typer.Option(
            *filter(None, [_SWITCHES.get(name)]),
            metavar=_METAVARS.get(name, _metavar(field.annotation)),
            help=f"{text} Default: {default}." if has_default else text,
            show_default=False,
            rich_help_panel=_panel(name, schema),
            autocompletion=_COMPLETED.get(name),
        )
    return _keyword(name, Annotated[field.annotation | None, info], None)  # type: ignore[operator]


def _metavar(annotation: Any) -> str | None:
    """What stands for a value of this type; None for a switch."""
    kinds = {*typing.get_args(annotation), annotation}
    return next((word for kind, word in ((int, "N"), (float, "X"), (str, "TEXT")) if kind in kinds), None)


def _keyword(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _panel(name: str, schema: type[Options]) -> str:
    """The heading of the group that an option comes from."""
    return _group(name, schema).panel


def _rank(name: str, schema: type[Options]) -> tuple[int, int]:
    return schema.__mro__.index(_group(name, schema)), list(schema.model_fields).index(name)


def _group(name: str, schema: type[Options]) -> type[Options]:
    """The group that an option comes from; --out, whose default each command has of its own, is in that of all."""
    groups = [group for group in reversed(schema.__mro__) if issubclass(group, Options)]
    return Options if name == "out" else next(group for group in groups if name in group.__annotations__)
