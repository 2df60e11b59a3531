"""The human-intervention card of a search: what a person decided, counted against the library's defaults.

Source: Alletto, Huang, Francois-Lavet, Nakata, Rabusseau, "RandomNet: towards fully automatic neural architecture
design for multimodal learning", arXiv 2003.01181 (2020), proposes to judge automatic design by a checklist of the
intervention that it needs. Its items were not at hand: the items here are ours. Lower is better.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from archgrad.choices.access import choices
from archgrad.run.run import Run
from archgrad.tasks.splits import Split
from archgrad.training.recipe import Recipe

# What is asked for, which no default could know, and where things are put.
_GOALS = ("space", "task", "run", "limit")
_BUDGETS = ("epochs", "steps", "trials", "seconds", "precision")
_OF_DATA = {"batch_size": 128, "smoothing": 0.0}  # entries of a task's record of itself, and their defaults
_OURS = ("archgrad.", "torch.")
_MOST = 12


def departures(method: Callable[..., object], settings: Mapping[str, Any]) -> list[str]:
    """The options of a method that differ from their defaults, as "name=value"; in a dataclass "name.field=value".

    Args:
        method: its signature holds the defaults.
        settings: what the run was begun with. An option that is not among them, such as a function, is not counted.
    """
    changed: list[str] = []
    for name, parameter in inspect.signature(method).parameters.items():
        if name in _GOALS or name not in settings or parameter.default is inspect.Parameter.empty:
            continue
        value, default = settings[name], parameter.default
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            defaults = default.record() if isinstance(default, Recipe) else dataclasses.asdict(default)
            changed += [f"{name}.{key}={entry}" for key, entry in value.items() if entry != defaults[key]]
        elif value != default and (value or default is not None):
            changed.append(f"{name}={'given' if isinstance(value, dict | list) else value}")
    return changed


def card(
    space: nn.Module, run: Run, *, options: Iterable[str], data: Mapping[str, Any], weights_given: bool = False
) -> dict[str, Any]:
    """The card, as JSON: {"items": [{"item", "count", "what"}], "total", "compute", "seeds", "missing_inputs"}.

    Args:
        space: the space that was searched.
        run: after its last step.
        options: the `departures` of the method.
        data: the task's description of its data; empty where there are none.
        weights_given: whether the search begins with trained weights.
    """
    budgets = {name: getattr(run, "max_steps" if name == "steps" else name) for name in _BUDGETS}
    of_run = _changed(Run, budgets)
    of_data = [f"{name}={data[name]}" for name, default in _OF_DATA.items() if data.get(name, default) != default]
    of_data += _changed(Split, {name: data[name] for name in ("valid_fraction",) if name in data})
    task = ["data"] if data else []
    own = sorted({type(m).__name__ for m in space.modules() if not type(m).__module__.startswith(_OURS)})
    rows = {
        "given without a default": ["space", *task],
        "made for this data, of these and of the options": [*task, *of_data],
        "layers fixed by hand, outside all choices": _fixed(space),
        "parts trained before": ["weights"] if weights_given else [],
        "steps of preprocessing": list(data.get("augmentation") or []),
        "options off their defaults": [*options, *of_run, *of_data],
        "decisions during and after the search": [],
        "classes of one's own code in the space": own,
    }
    items = [{"item": name, "count": len(what), "what": what[:_MOST]} for name, what in rows.items()]
    # The second is part of others.
    total = sum(len(what) for place, what in enumerate(rows.values()) if place != 1)
    last = next((row["time"] for row in reversed(run.history) if "time" in row), None)
    return {
        "items": items, "total": total,
        "compute": {"seconds": last, "device": str(run.device), "seeds": 1},
        "missing_inputs": bool(getattr(space, "handles_missing", False)),
    }  # fmt: skip


def _changed(function: Callable[..., object], values: Mapping[str, Any]) -> list[str]:
    """The values that differ from the function's defaults, as "name=value"."""
    parameters = inspect.signature(function).parameters
    return [f"{name}={value}" for name, value in values.items() if value != parameters[name].default]


def _fixed(space: nn.Module) -> list[str]:
    """Modules with parameters of their own that belong to no candidate."""
    inside = {m for same in choices(space).values() for choice in same for m in choice.modules()}
    for node in space.modules():
        if callable(mixing_terms := getattr(node, "mixing_terms", None)):  # what several choices weigh together
            inside |= {m for path, m in node.named_modules() if path and _has_own(m) and all(mixing_terms(path))}
    return [
        name or type(module).__name__
        for name, module in space.named_modules()
        if module not in inside and _has_own(module)
    ]


def _has_own(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))
