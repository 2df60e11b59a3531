"""A run's report as one self-contained HTML page: no script, nothing fetched, readable in light and dark."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from archgrad.errors import RunError
from archgrad.report import text
from archgrad.report.pictures import History, charts

_TEMPLATE = "page.html.jinja"


def page(record: text.Record, history: History = ()) -> str:
    """The report as HTML; what the record or the history lacks is left out.

    Raises:
        RunError: a part of the record is of another kind than it should be.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    text.check(record)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    facts = {"method": record.get("method"), "device": record.get("device"), **(record.get("run") or {})}
    return environment.get_template(_TEMPLATE).render(
        title=text.title(record),
        method=record.get("method"),
        device=record.get("device"),
        has_before=bool(record.get("before")),
        has_after=bool(record.get("after")),
        rows=text.rows(record),
        limit=text.limit_line(record),
        layers=_layers(record),
        charts=[(chart, Markup(chart.svg)) for chart in charts(history, record.get("limit"))],
        baselines=_baselines(record),
        frozen=record.get("frozen") or [],
        notes=text.notes(record),
        groups=_groups(
            {
                "Run": facts,
                "Settings": record.get("settings"),
                "Data": record.get("data"),
                "Versions": record.get("versions"),
            }
        ),
        load=record.get("load"),
    )


def write(folder: str | Path) -> Path:
    """Reads a run folder's record.json and history.jsonl, writes its report.html, and returns that path.

    Raises:
        RunError: a file is missing, damaged, or cannot be written.
    """
    folder = Path(folder)
    record = _json(folder / "record.json", _read(folder / "record.json"))
    text.check(record)
    path = folder / "history.jsonl"
    history = []
    for place, line in enumerate(_read(path).splitlines(), start=1):
        if line.strip():
            one = _json(path, line, place)
            if not isinstance(one, dict):
                raise _damaged(path, f"line {place} is no JSON object")
            history.append(one)
    target = folder / "report.html"
    temporary = folder / f".report.html.{os.getpid()}"
    try:
        temporary.write_text(page(record, history), encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"{target} cannot be written: {error.strerror}. Free space, or give write access") from error
    return target


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RunError(
            f"{path} is missing. A report is drawn from a run folder that holds record.json and "
            f"history.jsonl; give the folder of a run that has ended"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error


def _json(path: Path, content: str, line: int = 1) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise _damaged(path, f"line {line + error.lineno - 1}: {error.msg}") from error


def _damaged(path: Path, what: str) -> RunError:
    return RunError(f"{path} is damaged ({what}). It must be JSON as a run writes it; resume or repeat the run")


def _layers(record: text.Record) -> list[dict[str, Any]]:
    # Bars share one scale, the widest layer's, so that wide and narrow layers can be told apart.
    layers = [one for one in record.get("layers") or [] if text.is_number(one.get("before")) and one["before"] > 0]
    widest = max((one["before"] for one in layers), default=1)
    result = []
    for one in layers:
        after = one.get("after")
        kept = after if text.is_number(after) else one["before"]
        result.append(
            {
                "name": str(one.get("name", "")),
                "before": one["before"],
                "after": kept,
                "whole": f"{100 * one['before'] / widest:.2f}",
                "kept": f"{100 * kept / widest:.2f}",
            }
        )
    return result


def _baselines(record: text.Record) -> dict[str, Any]:
    """Column headings and rows: the network found first, then each baseline."""
    baselines = record.get("baselines") or []
    keys = list({key: None for one in baselines for key, value in one.items() if text.is_number(value)})
    after = record.get("after") or {}
    found = [{"name": "this run", **after}] if any(text.is_number(after.get(key)) for key in keys) else []
    return {
        "headings": [text.label(key) for key in keys],
        "rows": [
            (str(one.get("name", "")), [text.figure(key, one.get(key)) for key in keys])
            for one in (*found, *baselines)
        ],
    }


def _groups(parts: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    groups = []
    for heading, part in parts.items():
        pairs = [(key.replace("_", " "), text.value_text(value)) for key, value in (part or {}).items()]
        pairs = [(key, value) for key, value in pairs if value != "null"]
        if pairs:
            groups.append((heading, pairs))
    return groups
