"""One loop of a run: its number, name, and how much of its budget of steps and seconds is used."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archgrad.errors import RunError


@dataclass
class Phase:
    """A phase of a run.

    Attributes:
        index: its number in the run.
        name: its name in the history.
        planned: the number of steps that the program asked for.
        limit: the number of steps that the budgets of epochs and steps leave; None where only time ends the phase.
        seconds_limit: the seconds that it may take; None without such a budget.
        counted: whether its steps count against the budget of steps.
        step: the steps that are taken.
        entered: the step that this process began at.
        progress: used fraction of the budget in [0, 1], as of the present step.
    """

    index: int
    name: str
    planned: int
    limit: int | None
    seconds_limit: float | None
    counted: bool = True
    step: int = 0
    entered: int = 0
    progress: float = 0.0
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

    def begin(self) -> None:
        """Start the clock of this process."""
        self.began, self.entered = time.monotonic(), self.step

    def used_fraction(self) -> float:
        """The used fraction of the budget now: of the steps or of the seconds, whichever is more; it never falls."""
        used = [self.progress]
        if self.limit is not None:
            used.append(self.step / self.limit if self.limit else 1.0)
        if self.seconds_limit is not None:
            used.append(self.seconds / self.seconds_limit if self.seconds_limit > 0 else 1.0)
        return min(1.0, max(used))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "phase": self.name, "steps": self.planned, "step": self.step, "seconds": self.seconds,
            "limit": self.limit, "progress": self.progress,
        }  # fmt: skip

    def resume(self, state: dict[str, Any], path: Path) -> None:
        """Go to where the checkpoint at `path` was made. Raises RunError when it is of another phase."""
        if (self.name, self.planned) != (state["phase"], state["steps"]):
            raise RunError(
                f"{path} does not fit this program: it is of phase {state['phase']!r} with {state['steps']} "
                f"steps, and the program is at phase {self.name!r} with {self.planned}. Run the program and "
                "data that the folder was begun with, or choose another folder."
            )
        self.step, self.seconds_before, self.progress = state["step"], state["seconds"], state["progress"]
