"""How every record begins: the method and its settings, and the conditions that it ran under."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

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
