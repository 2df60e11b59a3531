"""One loop of a run: its number, name, steps and time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archgrad.errors import RunError


@dataclass
class Phase:
    """A phase of `given` steps, of which the step budget leaves `end`; `step` of them are taken.

    `counted` is whether they count against the budget of steps, `entered` the step that this process began at.
    """

    index: int
    name: str
    given: int
    time_fraction: float
    end: int
    counted: bool = True
    step: int = 0
    entered: int = 0
    seconds_before: float = 0.0
    began: float = 0.0

    @property
    def place(self) -> str:
        """Where it is, in words: "in phase 'search' at step 12"."""
        return f"in phase {self.name!r} at step {self.step}"

    @property
    def seconds(self) -> float:
        """The time in the loop, in every process that took part."""
        return self.seconds_before + (time.monotonic() - self.began if self.began else 0.0)

    def time_is_up(self, budget: float | None, used: float) -> bool:
        """Whether this phase's share of `budget` seconds, or what earlier phases left of it, is used up."""
        return budget is not None and self.seconds >= min(budget * self.time_fraction, budget - used)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"phase": self.name, "steps": self.given, "step": self.step, "seconds": self.seconds}

    def resume(self, held: dict[str, Any], path: Path) -> None:
        """Go to where the checkpoint at `path` was made. Raises RunError when it is of another phase."""
        if (self.name, self.given) != (held["phase"], held["steps"]):
            raise RunError(
                f"{path} does not fit this program: it is of phase {held['phase']!r} with {held['steps']} "
                f"steps, and the program is at phase {self.name!r} with {self.given}. Run the program and "
                "data that the folder was begun with, or choose another folder."
            )
        self.step, self.seconds_before = held["step"], held["seconds"]
