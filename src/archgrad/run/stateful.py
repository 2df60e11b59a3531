"""The parts of a program that a run saves and restores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

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


def states(parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """The state of each part, and of modules the buffers that are not persistent, which theirs leaves out."""
    found: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
    for name, part in parts.items():
        if held := {path: buffer for path, _, _, buffer in _unsaved(part)}:
            found[f"{name}, buffers"] = held
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
        held = saved.get(f"{name}, buffers", {})
        try:
            part.load_state_dict(own[name])
            for key, module, buffer_name, buffer in _unsaved(part):
                if key in held:
                    module._buffers[buffer_name] = held[key].to(buffer.device)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path} does not fit the part {name!r} of this program: {error}. "
                "Run the program that the folder was begun with, or choose another folder."
            ) from error


def _unsaved(part: object) -> list[tuple[str, nn.Module, str, Tensor]]:
    """Path, module, name and value of each buffer that is not in a module's state."""
    modules = part.named_modules() if isinstance(part, nn.Module) else ()
    return [
        (f"{path}.{name}", module, name, buffer)
        for path, module in modules
        for name, buffer in module.named_buffers(recurse=False)
        if name in module._non_persistent_buffers_set
    ]
