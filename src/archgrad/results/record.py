"""How every record begins: the method and its settings, and the conditions that it ran under."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from archgrad.fingerprint import described
from archgrad.run.run import Run
from archgrad.tasks.task import description, higher_is_better


def heading(method: Callable[..., object], settings: Mapping[str, Any], title: str) -> dict[str, Any]:
    """What was run: `method`, `title`, `settings`."""
    return {"method": getattr(method, "__name__", type(method).__name__), "title": title, "settings": settings}


def conditions(run: Run, task: object = None, *, score: str | None = None) -> dict[str, Any]:
    """What it ran under: `run`, `versions`, `device`, `data`, `score`, `notes`.

    Args:
        run: after its last step, so that its notes are complete.
        task: describes its data, and says whether a higher score is better.
        score: the name of the score; None where nothing was scored.
    """
    budgets = {"epochs": run.epochs, "steps": run.max_steps, "trials": run.trials, "seconds": run.seconds}
    scored = {"score": {"name": score, "higher_is_better": higher_is_better(task)}} if score else {}
    return {
        "run": {"seed": run.seed, **budgets},
        "versions": {"torch": torch.__version__},
        "device": str(run.device),
        "data": description(task),
        **scored,
        "notes": list(run.notes),
    }


def settings_record(settings: Any) -> dict[str, Any]:
    """A method's settings, a dataclass, as JSON: what its run is begun with and its report shows."""
    return {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return [round(number, 6) for number in value.tolist()]
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if hasattr(value, "record"):
        return value.record()
    if dataclasses.is_dataclass(value):
        return settings_record(value)
    return described(value) if callable(value) else value
