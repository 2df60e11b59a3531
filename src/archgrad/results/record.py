"""The human-intervention card of a run: what a person decided, counted against the library's defaults.

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
from archgrad.tasks.classification import Classification

# What is asked for, which no default could know, and where things are put.
_GOALS = ("space", "task", "run", "limit", "memory")
_BUDGETS = ("epochs", "steps", "trials", "seconds", "precision")
_OF_DATA = ("batch_size", "valid_fraction", "smoothing")  # entries of a task's record of itself
_OURS = ("archgrad.", "torch.")
_MOST = 12


def heading(method: Callable[..., object], settings: Mapping[str, Any], title: str) -> dict[str, Any]:
    """How a method's record begins: method, title, settings, and as "chosen" its `departures`."""
    name = getattr(method, "__name__", type(method).__name__)
    return {"method": name, "title": title, "settings": settings, "chosen": departures(method, settings)}


def departures(method: Callable[..., object], settings: Mapping[str, Any]) -> list[str]:
    """A method's options that are not at their defaults, as "name=value"; those of its Terms as "terms.name=value".

    Args:
        method: whose signature says the defaults.
        settings: what the run was begun with; an option that is not among them, such as an optimizer, is not seen.
    """
    found: list[str] = []
    for name, parameter in inspect.signature(method).parameters.items():
        if name in _GOALS or name not in settings or parameter.default is inspect.Parameter.empty:
            continue
        given, default = _plain(settings[name]), _plain(parameter.default)
        if dataclasses.is_dataclass(parameter.default) and not hasattr(parameter.default, "record"):
            found += [f"{name}.{key}={value}" for key, value in given.items() if value != default[key]]
        elif given != default and (given or default is not None):
            found.append(f"{name}={'given' if isinstance(given, dict | list) else given}")
    return found


def card(
    space: nn.Module, run: Run, *, options: Iterable[str], data: Mapping[str, Any], weights_given: bool = False,
    transfers: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The card, as JSON: {"items": [{"item", "count", "what"}], "total", "compute", "seeds", "missing_inputs"}.

    Args:
        space: the space that was searched.
        run: after its last step.
        options: `departures` of the method.
        data: what the task says of itself, `splits`; empty for one that needs no data.
        weights_given: whether it begins with weights that were trained before.
        transfers: whether what was found is for other data than it was found on.
    """
    budgets = {name: getattr(run, "max_steps" if name == "steps" else name) for name in _BUDGETS}
    of_run = _off(Run, budgets)
    of_data = _off(Classification, {name: data[name] for name in _OF_DATA if name in data})
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
        "other data used in place of the target's": ["the source data"] if transfers else [],
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


def _off(made: Callable[..., object], given: Mapping[str, Any]) -> list[str]:
    """What was given otherwise than the defaults have it, as "name=value"."""
    known = inspect.signature(made).parameters
    return [f"{name}={value}" for name, value in given.items() if value != known[name].default]


def _plain(value: Any) -> Any:
    """As it stands in a record: JSON, and the names of functions."""
    if not isinstance(value, type) and hasattr(value, "record"):
        return _plain(value.record())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return getattr(value, "__name__", value) if callable(value) else value


def _fixed(space: nn.Module) -> list[str]:
    """Modules with parameters of their own that belong to no candidate."""
    inside = {m for same in choices(space).values() for choice in same for m in choice.modules()}
    for node in space.modules():
        if callable(shares := getattr(node, "shares", None)):  # what several choices weigh together
            inside |= {m for path, m in node.named_modules() if path and _has_own(m) and all(shares(path))}
    return [
        name or type(module).__name__
        for name, module in space.named_modules()
        if module not in inside and _has_own(module)
    ]


def _has_own(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))
