"""A run's report as one self-contained HTML page: no script, nothing fetched, readable in light and dark."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from archgrad.errors import RunError
from archgrad.report import control, fronts, graphs, intervention, play, rounds, scored, scores, svg, text
from archgrad.report.pictures import Chart, History, charts, jump, scatter
from archgrad.report.weights import weights

_TEMPLATE = "page.html.jinja"
_MOST_SCORED = 100


def page(record: text.Record, history: History = ()) -> str:
    """The report as HTML; what the record or the history lacks is left out.

    Raises:
        RunError: a part of the record is of another kind than it should be.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    text.check(record)
    scored.check(record)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    given = record.get("graphs") or []
    pictures = _pictures(record)
    facts = {"method": record.get("method"), "device": record.get("device"), **(record.get("run") or {})}
    return environment.get_template(_TEMPLATE).render(
        title=text.title(record),
        method=record.get("method"),
        device=record.get("device"),
        light=svg.LIGHT,
        dark=svg.DARK,
        rules=Markup(svg.style(svg.variables())),
        columns=text.columns(record),
        rows=text.rows(record),
        limit=text.limit_line(record),
        gap=text.gap_line(record),
        layers=_layers(record),
        alarms=[str(alarm) for alarm in record.get("alarms") or []],
        graphs=[(one.get("name") or "", Markup(drawn)) for one, drawn in zip(given, pictures, strict=True)],
        architecture=str(record.get("architecture_text") or "").strip(),
        picks=text.picks(record),
        scored=_scored(record),
        candidates=[(one.choice, one.caption, Markup(one.svg)) for one in scores.candidates(record)],
        clouds=[(chart, Markup(chart.svg)) for chart in scores.clouds(record)],
        weights=_weights(history),
        charts=_charts(record, history),
        baselines=text.rivals(record),
        film=play.film(record),
        cells=play.cells(record),
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
        card=intervention.rows(record),
        load=record.get("load"),
    )


def write(folder: str | Path) -> Path:
    """Reads a run folder's record.json and history.jsonl, writes its report.html, and returns that path.

    Each graph of the record is written beside it as an SVG file.

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
    contents = {"report.html": page(record, history)}
    names = graphs.file_names(record.get("graphs") or [])
    contents |= {name: svg.alone(drawn) for name, drawn in zip(names, _pictures(record), strict=True)}
    for name, content in contents.items():
        _replace(folder / name, content)
    return folder / "report.html"


def _replace(target: Path, content: str) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        # JSON may hold halves of characters, which no file can.
        temporary.write_text(content, encoding="utf-8", errors="replace")
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"{target} cannot be written: {error.strerror}. Free space, or give write access") from error


def _pictures(record: text.Record) -> list[str]:
    given = record.get("graphs") or []
    return [graphs.draw(one, part=f"graphs[{place}]") for place, one in enumerate(given)]


def _charts(record: text.Record, history: History) -> list[tuple[Chart, Markup]]:
    others = (jump(record), scatter(record.get("surrogate") or {}))
    searched = [*control.charts(record), *fronts.charts(record), *rounds.charts(record), *play.charts(record)]
    found = [*searched, *charts(history, record.get("limit")), *(one for one in others if one)]
    return [(chart, Markup(chart.svg)) for chart in found]


def _scored(record: text.Record) -> dict[str, Any] | None:
    if not scored.is_scored(record):
        return None
    return {
        "networks": scored.networks(record, most=_MOST_SCORED),
        "names": scored.names(record, most=_MOST_SCORED),
        "left_out": max(0, len(record["networks"]) - _MOST_SCORED),
        "trust": scored.trust(record),
    }


def _weights(history: History) -> dict[str, Any]:
    found = weights(history)
    return {
        "charts": [(one.choice, one.leader, Markup(one.svg)) for one in found.charts],
        "legend": [(label, Markup(sample)) for label, sample in found.legend],
        "left_out": found.left_out,
    }


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
        return json.loads(content, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise _damaged(path, f"line {line + error.lineno - 1}: {error.msg}") from error
    except RecursionError as error:
        raise _damaged(path, f"line {line}: nested too deeply") from error


def _integer(digits: str) -> float:
    # An integer that no float can hold is infinite, as a float of that size is.
    return int(digits) if len(digits) < 300 else float(digits)


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


def _groups(parts: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    groups = []
    for heading, part in parts.items():
        pairs = [(key.replace("_", " "), text.value_text(value)) for key, value in (part or {}).items()]
        pairs = [(key, value) for key, value in pairs if value != "null"]
        if pairs:
            groups.append((heading, pairs))
    return groups
