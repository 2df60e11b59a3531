"""From the command line and a YAML file to the checked options of a command."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from archgrad import files
from archgrad.cli.schemas.options import Options
from archgrad.cli.suggestions import meant
from archgrad.errors import ConfigError

Schema = TypeVar("Schema", bound=Options)

_PATHS = ("data", "target", "weights", "table", "architectures")
_CODE = ("task", "metric", "model", "network", "space")  # name code, a built-in, or an architecture's file
_DEEPEST = 8  # levels of a configuration; a list in an option is the second


def resolve(schema: type[Schema], given: Mapping[str, Any], config: Path | None = None) -> Schema:
    """The options of a command: those given, then those in the YAML file, then the defaults.

    Raises ConfigError for a file that cannot be read, an unknown key or a value that is not allowed.
    """
    from_file = _read(config) if config else {}
    given = {name: value for name, value in given.items() if value is not None and value != []}
    try:
        return schema.model_validate({**from_file, **given})
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            key = str(fault["loc"][0]) if fault["loc"] else ""
            place = f"--{key.replace('_', '-')}" if key in given else f"{key} (in {config})" if config else key
            lines.append(_explained(schema, fault, key, place))
        raise ConfigError("\n".join(lines)) from None


def anchored(options: Schema) -> Schema:
    """The same options with absolute paths, so that the command means the same from any folder."""
    update: dict[str, Any] = {}
    for name in (*_PATHS, *_CODE):
        text = getattr(options, name, None)
        if not text or isinstance(text, list):  # the models of score are named by their places
            continue
        path, colon, attribute = text.rpartition(":")
        if is_code(text):
            if path.endswith(".py"):
                update[name] = f"{Path(path).absolute()}{colon}{attribute}"
        elif text != "digits" and (name in _PATHS or text.endswith(".json")):
            update[name] = os.path.normpath(Path(text).absolute())
    return options.model_copy(update=update)


def is_code(text: str) -> bool:
    """Whether this names a callable, package.module:callable or path/to/file.py:callable, and no path that exists."""
    return re.fullmatch(r"(?:.+\.py|[A-Za-z_][\w.]*):[A-Za-z_][\w.]*", text) is not None and not Path(text).exists()


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = files.read_text(path, ConfigError, most=files.MIB)
        _refuse_tricks(content)
        body = yaml.safe_load(content)
    except FileNotFoundError as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error.strerror}. Check --config.") from None
    except (yaml.YAMLError, ValueError, LookupError, OverflowError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path} is not YAML ({reason}). Write one `option: value` a line.") from None
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise ConfigError(f"{path} holds a {type(body).__name__}. Write one `option: value` a line.")
    return {str(key).replace("-", "_"): value for key, value in body.items()}


def _refuse_tricks(content: str) -> None:
    """Raise ValueError for what makes a small file huge or hides a value: aliases, deep nesting, a repeated key."""
    import yaml

    depth, keys = 0, list[str]()
    awaits_key = True  # in the outermost mapping, where keys and values take turns
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases are not read: write the value out")
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.NodeEvent):
            if depth == 1:
                keys += [event.value] if awaits_key and isinstance(event, yaml.ScalarEvent) else []
                awaits_key = not awaits_key
            depth += isinstance(event, yaml.CollectionStartEvent)
        if depth > _DEEPEST:
            raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"{twice[0]!r} is there twice")


def _explained(schema: type[Options], fault: Any, key: str, place: str) -> str:
    allowed = sorted(schema.model_fields)
    if fault["type"] == "extra_forbidden":
        given = f"{place}: unknown option, given {files.shown(fault['input'])}.{meant(key, allowed)}"
        return f"{given} Allowed are {', '.join(allowed)}."
    reason = fault["msg"].removeprefix("Value error, ").rstrip(".")
    if fault["type"] == "missing":
        return f"{key.upper()} is missing: {schema.model_fields[key].description}"
    if fault["type"] == "value_error":
        return f"{place}: {reason}." if place else f"{reason}."
    # A key that is no text has no field.
    described = schema.model_fields[key].description if key in schema.model_fields else "Write options by name."
    return f"{place}: {files.shown(fault['input'])} was given. {reason}. {described}"
