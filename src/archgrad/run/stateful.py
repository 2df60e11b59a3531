"""The parts of a program that a run saves and restores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from archgrad.copy_and_run import is_plain, put
from archgrad.digests import digest
from archgrad.errors import ChoiceError, RunError


class Stateful(Protocol):
    """What a run can save and restore: a module, an optimizer, a schedule."""

    def state_dict(self) -> Any:
        """The state, as a nest of dict, list, tuple, numbers, str, tensors and arrays."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Go on from a state that `state_dict` returned."""


def check(parts: Mapping[str, object]) -> None:
    """Raise ChoiceError for a part that cannot be saved and restored."""
    for name, part in parts.items():
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise ChoiceError(
                f"run.register_state({name}=...) was given a {type(part).__name__}. Allowed is what has state_dict "
                "and load_state_dict, such as a module or an optimizer."
            )


def of_task(task: object) -> dict[str, Any]:
    """The task as a part, where it can have a state: what a loss counts or averages from step to step."""
    return {"task": task} if hasattr(task, "state_dict") and hasattr(task, "load_state_dict") else {}


def buffers(parts: Mapping[str, object]) -> dict[str, dict[str, Tensor]]:
    """Of modules the buffers that are not persistent, which their state leaves out, by the first path of each."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, part in parts.items():
        seen: dict[int, tuple[str, Tensor]] = {}
        for path, module in part.named_modules() if isinstance(part, nn.Module) else ():
            for own, buffer in module.named_buffers(recurse=False):
                if own in module._non_persistent_buffers_set and is_plain(buffer):
                    seen.setdefault(id(buffer), (f"{path}.{own}", buffer))
        found[name] = dict(seen.values())
    return found


def states(parts: Mapping[str, Stateful], begun: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The state of each part, and the buffers that are not persistent and have changed.

    Args:
        parts: by name.
        begun: digests of these buffers when the parts were registered.
    """
    found: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
    if "task" in found:  # the network itself may be what computes its loss
        modules = [part for part in parts.values() if isinstance(part, nn.Module)]
        known = {id(t) for m in modules for t in (*m.parameters(), *m.buffers())}
        found["task"] = {key: value for key, value in found["task"].items() if id(value) not in known}
    for name, held in buffers(parts).items():
        changed = {path: t for path, t in held.items() if digest(t) != begun.get(name, {}).get(path)}
        if changed:
            found[f"{name}, buffers"] = changed
    return found


def restore(parts: Mapping[str, Stateful], saved: Mapping[str, Any], path: Path) -> None:
    """Load into each part what the checkpoint at `path` holds of it; RunError where it does not fit."""
    own = {name: state for name, state in saved.items() if not name.endswith(", buffers")}
    if "task" not in own:  # of a run that was begun before tasks were saved
        parts = {name: part for name, part in parts.items() if name != "task"}
    if parts.keys() != own.keys():
        raise RunError(
            f"{path} does not fit this program: it holds the parts {sorted(own)}, and run.register_state named "
            f"{sorted(parts)}. Run the program that the folder was begun with, or choose another folder."
        )
    for name, part in parts.items():
        here = buffers({name: part})[name]
        try:
            part.load_state_dict(own[name])
            for key, value in saved.get(f"{name}, buffers", {}).items():
                if key in here:
                    put(part, key, value)  # type: ignore[arg-type]
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path} does not fit the part {name!r} of this program: {error}. "
                "Run the program that the folder was begun with, or choose another folder."
            ) from error
