"""The parts of a program that a run saves and restores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

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


def states(parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """The state of each part."""
    return {name: part.state_dict() for name, part in parts.items()}


def restore(parts: Mapping[str, Stateful], saved: Mapping[str, Any], path: Path) -> None:
    """Load into each part what the checkpoint at `path` holds of it; RunError where it does not fit."""
    if parts.keys() != saved.keys():
        raise RunError(
            f"{path} does not fit this program: it holds the parts {sorted(saved)}, and run.register_state named "
            f"{sorted(parts)}. Run the program that the folder was begun with, or choose another folder."
        )
    for name, part in parts.items():
        try:
            part.load_state_dict(saved[name])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise RunError(
                f"{path} does not fit the part {name!r} of this program: {error}. "
                "Run the program that the folder was begun with, or choose another folder."
            ) from error
