"""A method that runs inside another one, in a phase of its run and without its test part."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol, cast

from torch import nn

from archgrad.choices.access import logits
from archgrad.costs.limits import Limit
from archgrad.errors import ConfigError
from archgrad.results.result import Found
from archgrad.run.run import Run
from archgrad.run.stateful import Stateful
from archgrad.tasks.task import Task


class Inner(Protocol):
    """A method for supernets: `archgrad.darts`, `archgrad.unas`, or one with options bound by functools.partial."""

    def __call__(
        self, space: nn.Module, task: Task, run: Run, /, *, limit: Limit | None, search_fraction: float
    ) -> Found:
        """Search the space in the share `search_fraction` of the run's steps."""
        ...


def search_inside(
    inner: Inner,
    space: Callable[[], nn.Module],
    task: Task,
    run: Run,
    *,
    steps: int,
    name: str,
    limit: Limit | None = None,
    time_fraction: float = 1.0,
) -> tuple[Found, nn.Module]:
    """Search a space by a method within the run of another method; resumes exactly with that run.

    Args:
        inner: the method. It searches in all steps, trains no result, and scores on the validation part.
        space: makes the space; nothing else refers to it, so that its memory is freed once the method has its copy.
        task: its test part is not read.
        run: the method's phases become phases of it, called `<name>-<phase>`.
        steps: of the method.
        name: of this part of the run; unique in it.
        limit: on what the method finds.
        time_fraction: of a budget in seconds.

    Returns:
        What it found, with the weights of its supernet; and that supernet, with its logits.

    Raises:
        ConfigError: the method kept no space with logits (`run.register_state(space=...)`).
    """
    part = _Part(run, name, steps, time_fraction)
    try:
        found = inner(space(), cast(Task, _Withheld(task)), part, limit=limit, search_fraction=1.0)
    finally:
        run.failed |= part.failed
    searched = part.kept.get("space")
    if not isinstance(searched, nn.Module) or not logits(searched):
        raise ConfigError(
            f"{getattr(inner, '__name__', type(inner).__name__)} has no logits to decide by: give a method that "
            f"relaxes its space, such as archgrad.darts or archgrad.unas"
        )
    return found, searched


class _Withheld:
    """A task that scores on its validation part in place of its test part."""

    def __init__(self, task: Task) -> None:
        self._task = task
        # Set here, since `isinstance` of a Protocol does not see `__getattr__` from Python 3.12 on.
        for name in ("split", "losses", "check"):
            if hasattr(task, name):
                setattr(self, name, getattr(task, name))

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        return self._task.evaluate(network, "valid" if part == "test" else part)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


class _Part(Run):
    """A part of a run as a run of its own, without folder and budgets; see `search_inside`.

    It acts on the machine, the log and the checkpoints of the whole.
    """

    def __init__(self, run: Run, name: str, steps: int, time_fraction: float) -> None:
        vars(self).update(vars(run))
        self.folder = self.epochs = self.seconds = self.trials = None
        self.compile = False  # a part is short, and is a network of its own each time
        self._whole, self._name, self.max_steps, self._time_fraction = run, name, steps, time_fraction
        self._left = steps
        self.kept: dict[str, Stateful] = {}

    def begin(
        self, method: str, settings: Mapping[str, Any], *, task: object = None, network: nn.Module | None = None
    ) -> None:
        """The run has begun."""

    def finish(self) -> None:
        """The run goes on."""

    def total_steps(
        self, steps_per_epoch: int, *, default_epochs: int, measure_step: Callable[[], float] | None = None
    ) -> int:
        assert self.max_steps is not None
        return self.max_steps

    def require_steps(self, steps: int, *, phase: str, warm_up: float = 0.0, least: int = 5) -> None:
        """Nothing: the outer method decides how many steps there are."""

    def register_state(self, **parts: Stateful) -> None:
        self.kept |= parts
        self._whole.register_state(**parts)

    def steps(
        self, n: int, *, phase: str = "search", time_fraction: float = 1.0, counted: bool = True
    ) -> Generator[int, None, None]:
        n, self._left = min(n, self._left), self._left - min(n, self._left)
        fraction = time_fraction * self._time_fraction
        return self._whole.steps(n, phase=f"{self._name}-{phase}", time_fraction=fraction, counted=counted)

    def compute_once(self, key: str, compute: Callable[[], Any]) -> Any:
        return self._whole.compute_once(f"{self._name}-{key}", compute)
