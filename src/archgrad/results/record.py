"""What every record holds: the method and its settings, the conditions that it ran under, the widths of layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices.access import choices
from archgrad.choices.architecture import Architecture
from archgrad.choices.gate import Gate
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


def widths(space: nn.Module, architecture: Architecture) -> list[dict[str, Any]]:
    """For each gate what it cuts, and how many entries it had and keeps; nothing of what a removed block held."""
    members: dict[str, Gate] = {n: gate for n, (gate, *_) in choices(space).items() if isinstance(gate, Gate)}
    removed = [gate for name, gate in members.items() if gate.vanishing is not None and not _kept(architecture[name])]
    gone = {coupling.module for block in removed for coupling in block.couplings}
    return [
        {"name": name, "kind": _kind(space, gate), "before": gate.size, "after": _kept(architecture[name])}
        for name, gate in members.items()
        if gate in removed or not all(coupling.module in gone for coupling in gate.couplings)
    ]


def _kept(pick: object) -> int:
    return len(pick) if isinstance(pick, tuple) else 0


def _kind(space: nn.Module, gate: Gate) -> str:
    """What a gate's entries are: "block", "heads", "stream" where several layers write into them, or "channels"."""
    if gate.vanishing is not None:
        return "block"
    sides = [(coupling.module, coupling.side.partition(" ")[0]) for coupling in gate.couplings]
    if any(side == "heads" for _, side in sides):
        return "heads"
    writers = {module for module, side in sides if side == "out" and _mixes(space.get_submodule(module))}
    return "stream" if len(writers) > 1 else "channels"


def _mixes(layer: nn.Module) -> bool:
    """Whether each output of a layer is made of many inputs: not those of BatchNorm or a depthwise convolution."""
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() > 1 and getattr(layer, "groups", 1) == 1
