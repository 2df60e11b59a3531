"""How a run stands: what the board says of one that goes on, and a record of it as far as it is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from archgrad.report import numbers
from archgrad.report.charts.curves import JUMP, SCORE, TRIED, WEIGHT
from archgrad.report.charts.steps import is_finite
from archgrad.report.data.run_folder import Checkpoint, Folder, newest_checkpoint

_STATES = {
    "not begun": "Not begun",
    "running": "Running",
    "stopped": "Stopped",
    "finished": "Finished",
    "damaged": "Damaged",
}
_NO_FIGURES = ("phase", "step", "time", "epoch")
_MOST_FIGURES = 6


def provisional(folder: Folder) -> dict[str, Any]:
    """A record of a run that has none yet, from run.json and the newest checkpoint."""
    identity = _mapping(folder.run.get("identity"))
    if not identity:
        return {"title": folder.path.resolve().name}
    settings = _mapping(identity.get("settings"))
    made_with, limit = _mapping(folder.run.get("made_with")), _mapping(settings.get("limit"))
    method = str(identity.get("method") or "")
    budgets = {key: identity.get(key) for key in ("seed", "epochs", "steps", "trials", "seconds")}
    return {
        "method": method,
        "title": f"{folder.path.resolve().name}: a run of {method}",
        "settings": settings,
        "run": {key: value for key, value in budgets.items() if value is not None},
        "device": made_with.get("device"),
        # A fraction is of a network that is not known here.
        "limit": {"cost": limit["cost"], "bound": limit["bound"]} if numbers.is_number(limit.get("bound")) else {},
        "notes": list(newest_checkpoint(folder.path).notes),
        **_fronts(folder.history),
    }


def _fronts(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fronts of a search as far as it has come, from what it logged of each trial: its score and its costs.

    The score is "tried/higher" or "tried/lower", by which is better.
    """
    kind = next((one for row in history for one in ("higher", "lower") if f"{TRIED}{one}" in row), None)
    if kind is None:
        return {}
    key, sign = f"{TRIED}{kind}", 1.0 if kind == "higher" else -1.0
    fronts = []
    names = dict.fromkeys(name for row in history for name in row if name.startswith(TRIED) and name != key)
    for name in names:
        points = [(row[name], row[key]) for row in history if is_finite(row.get(name)) and is_finite(row.get(key))]
        best, front = -math.inf, list[int]()
        for _, minus, place in sorted((cost, -sign * score, k) for k, (cost, score) in enumerate(points)):
            if -minus > best:
                best, front = -minus, [*front, place]
        costs, scores = ([point[side] for point in points] for side in (0, 1))
        fronts.append({"cost": name.removeprefix(TRIED), "costs": costs, "scores": scores, "front": front})
    return {"fronts": fronts, "score": {"name": "score", "higher_is_better": kind == "higher"}}


def status(folder: Folder, *, more: Sequence[str] = ()) -> dict[str, Any]:
    """State, phase, step, time and last figures, as the page shows them; `more` are further problems."""
    last = folder.history[-1] if folder.history else {}
    ended = folder.state == "finished"
    checkpoint = newest_checkpoint(folder.path) if not ended else Checkpoint()
    # Records between phases have no name.
    named = [record for record in folder.history[-50:] if record.get("phase")]
    phase = str(named[-1]["phase"]) if named else checkpoint.phase
    step = named[-1].get("step") if named else None
    same = checkpoint.phase == phase
    limit = checkpoint.limit if same else None
    facts = [("phase", phase)] if phase else []
    if is_finite(step):
        facts.append(("step", f"{step + 1:,.0f} of {limit:,}" if limit else f"{step:,.0f}"))
    if is_finite(last.get("time")):
        facts.append(("time in loops", numbers.seconds(last["time"])))
    if (left := _seconds_left(folder, named, limit)) is not None:
        facts.append(("time left in this phase", f"about {numbers.seconds(left)}"))
    facts += _last(folder.history)
    progress = checkpoint.progress if same else 0.0
    if limit and is_finite(step):
        progress = max(progress, min(1.0, (step + 1) / limit))
    return {
        "kind": folder.state.replace(" ", "-"),
        "state": _STATES[folder.state],
        "told": _sentence(folder),
        "progress": round(1000 * progress),
        "facts": [] if ended else facts,
        "problems": [*folder.problems, *more],
    }


def _seconds_left(folder: Folder, named: Sequence[Mapping[str, Any]], steps: int | None) -> float | None:
    """By the pace of the phase's last records, or what a budget in seconds has left; None where neither is known."""
    if folder.state != "running" or not named:
        return None
    last = named[-1]
    same = [row for row in named if row.get("phase") == last.get("phase") and is_finite(row.get("step"))]
    timed = [(float(row["step"]), float(row["time"])) for row in same if is_finite(row.get("time"))]
    if not timed:
        return None
    budget = _mapping(folder.run.get("identity")).get("seconds")
    if steps is None:
        return max(0.0, budget - timed[-1][1]) if is_finite(budget) else None
    (first, began), (step, now) = timed[0], timed[-1]
    return max(0.0, (steps - step - 1) * (now - began) / (step - first)) if step > first and now > began else None


def _last(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The newest value of each figure that is no weight or score, of the last records."""
    found: dict[str, Any] = {}
    for record in reversed(history[-200:]):
        for name, value in record.items():
            if name not in _NO_FIGURES and not name.startswith((WEIGHT, SCORE, TRIED, JUMP)) and is_finite(value):
                found.setdefault(name, value)
    shown = list(found.items())[:_MOST_FIGURES]
    return [(numbers.label(name), numbers.figure(name, value)) for name, value in shown]


def _sentence(folder: Folder) -> str:
    started = folder.run.get("started")
    began = f"Begun {_time(started)}." if started else ""
    match folder.state:
        case "running":
            return f"{began} This page follows it.".strip()
        case "stopped":
            again = f"To go on: archgrad resume {folder.path}" if folder.command else "Run the same program to go on"
            return f"{began} It was stopped or killed before its end. {again}.".strip()
        case "finished":
            done = folder.run.get("finished")
            return f"{began} Ended {_time(done)}.".strip() if done else ""
        case "damaged":
            return "What is left of the run can be seen below. Start it again in another folder."
    return "Nothing has been logged in this folder. This page follows it."


def _time(given: object) -> str:
    return str(given).replace("T", " ").replace("+00:00", " UTC")[:40]


def _mapping(given: object) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else {}
