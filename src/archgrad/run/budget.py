"""What a run may use, of steps and of seconds, and how much of it its phases have used."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archgrad.errors import ConfigError, RunError
from archgrad.run import validation


@dataclass
class Phase:
    """One loop of a run.

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
        seconds: the time in the loop, in every process that took part, when the loop last looked at the clock.
        origin: the monotonic time from which they count; None before the loop begins.
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
    seconds: float = 0.0
    origin: float | None = None

    @property
    def location(self) -> str:
        """Where it is, in words: "in phase 'search' at step 12"."""
        return f"in phase {self.name!r} at step {self.step}"

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "index": self.index, "phase": self.name, "steps": self.planned, "step": self.step,
            "seconds": self.seconds, "limit": self.limit, "progress": self.progress,
        }  # fmt: skip

    def resume(self, state: dict[str, Any], path: Path) -> None:
        """Go to where the checkpoint at `path` was made. Raises RunError when it is of another phase."""
        if (self.name, self.planned) != (state["phase"], state["steps"]):
            raise RunError(
                f"{path} does not fit this program: it is of phase {state['phase']!r} with {state['steps']} "
                f"steps, and the program is at phase {self.name!r} with {self.planned}. Run the program and "
                "data that the folder was begun with, or choose another folder."
            )
        self.step, self.seconds, self.progress = state["step"], state["seconds"], state["progress"]


class Budget:
    """The budgets of a run, and what its phases have used of them.

    Attributes:
        epochs, steps: of training, of all phases together; None: no such budget.
        trials: networks tried; None: no such budget.
        seconds: inside loops, of all phases together; None: no such budget.
        steps_per_epoch: as `total_steps` was given it.
        seconds_used: by phases that have ended.
    """

    def __init__(self, *, epochs: int | None, steps: int | None, trials: int | None, seconds: float | None) -> None:
        self.epochs = validation.count("epochs", epochs)
        self.steps = validation.count("steps", steps)
        self.trials = validation.count("trials", trials)
        self.seconds = validation.seconds("seconds", seconds)
        self.steps_per_epoch: int | None = None
        self.seconds_used = 0.0
        self._steps_used = self._phases = 0
        # Whether numbers of steps are forecasts, so that time alone ends phases.
        self._forecast = False

    def record(self) -> dict[str, Any]:
        """All budgets by name, None where there is none."""
        return {"epochs": self.epochs, "steps": self.steps, "trials": self.trials, "seconds": self.seconds}

    def total_steps(
        self, steps_per_epoch: int, *, default_epochs: int, step_seconds: Callable[[], float] | None
    ) -> int:
        """See `Run.total_steps`."""
        self.steps_per_epoch = validation.count("steps_per_epoch", steps_per_epoch) or 1
        allowed = [self.epochs * self.steps_per_epoch] if self.epochs else []
        allowed += [self.steps] if self.steps else []
        self._forecast = self.seconds is not None and not allowed
        if self.seconds is not None and not allowed and step_seconds:
            return max(1, int(self.seconds / step_seconds()))
        return min(allowed, default=default_epochs * self.steps_per_epoch)

    def begin_phase(self, name: str, n: int, *, time_fraction: float, counted: bool) -> Phase:
        """The next phase: of n steps, or of what is left of the budgets."""
        left = max(0, self.steps - self._steps_used) if self.steps and counted else n
        limit = None if self._forecast and counted and n else min(n, left)
        seconds = self.seconds and min(time_fraction * self.seconds, self.seconds - self.seconds_used)
        return Phase(self._phases, name, n, limit, seconds, counted)

    @property
    def last_phase(self) -> int:
        """The index of the phase that was entered last; -1 before the first."""
        return self._phases - 1

    def enter(self) -> None:
        """A phase is entered."""
        self._phases += 1

    def end_phase(self, phase: Phase, *, used: float) -> None:
        """Take the phase's steps from the budget; `used` are the seconds in loops so far."""
        self._steps_used += phase.step if phase.counted else 0
        self.seconds_used = used

    def too_short(self, steps: int, *, phase: str, warm_up: float, least: int) -> ConfigError | None:
        """The error for a budget that leaves too few steps after a phase's warm-up; None where it leaves enough."""
        left = steps - math.ceil(warm_up * steps)
        if left >= least:
            return None
        factor = least / (1.0 - warm_up) / max(steps, 1)
        budgets = {"epochs": self.epochs, "steps": self.steps, "seconds": self.seconds}
        given = {name: value for name, value in budgets.items() if value}
        enough = ", ".join(f"{name}={math.ceil(value * factor)}" for name, value in given.items())
        shown = " and ".join(f"{name}={value:g}" for name, value in given.items())
        warm = f", of which {left} come after its warm-up of {warm_up:.0%}" if warm_up else ""
        return ConfigError(
            f"{f'The budget of {shown}' if shown else 'The default budget'} leaves about {steps} training steps for "
            f"the {phase}{warm}. At least {least} are needed. "
            f"Give Run({enough or 'epochs=...'}) or more{', or a shorter warm-up' if warm_up else ''}."
        )
