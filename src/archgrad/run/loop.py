"""The loop over the steps of a run's phases: budgets, checkpoints, signals and what is shown."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import weakref
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from archgrad.errors import ArchgradError, ResourceError, RunError, annotate, notes_of, text_of
from archgrad.run import failures
from archgrad.run.budget import Budget, Phase
from archgrad.run.checkpoint_file import Mark
from archgrad.run.checkpointing import Checkpointing
from archgrad.run.device import Machine
from archgrad.run.nonfinite import FiniteChecks
from archgrad.run.output import Log
from archgrad.run.signals import SignalListener, Stopped

# What a loop does before its next step, as a number of which the greatest of all processes counts: 0 is to go on, a
# signal is its number and _SIGNALS.
_SAVE, _SIGNALS = 1, 1


class Stepping(Protocol):
    """A run in a loop."""

    failed: bool

    @property
    def location(self) -> str:
        """Where it is, in words."""


_STEPPING: weakref.WeakKeyDictionary[Stepping, int] = weakref.WeakKeyDictionary()  # the thread of each
_LOCK = threading.Lock()


@contextlib.contextmanager
def only_thread(run: Stepping) -> Iterator[None]:
    """Around a loop. Raises RunError while a run of another thread is in one: both would draw from one generator."""
    mine = threading.get_ident()
    with _LOCK:
        alive = {thread.ident for thread in threading.enumerate()} - {mine}
        if others := [run for run, thread in _STEPPING.items() if thread in alive and not run.failed]:
            raise RunError(
                f"Another thread of this process trains (it is {others[0].location}). Both would draw random numbers "
                "from torch's one generator, so that neither result could be had again. Train one after the other, "
                "or each in a process of its own."
            )
        _STEPPING[run] = mine
    try:
        yield
    finally:
        with _LOCK:
            _STEPPING.pop(run, None)


class Located(Protocol):
    """A run, or its loop; `failed` becomes True where a step fails."""

    failed: bool

    @property
    def location(self) -> str:
        """Where it is, in words."""

    @property
    def good_state(self) -> str:
        """A sentence on the last good state; empty where none is saved."""


@contextlib.contextmanager
def watched(run: Located) -> Iterator[None]:
    """Around a step: say where memory ran out or a worker died, what to reduce, and which state is the last good one.

    Any other error passes, with a note that says where the run was. Raises ResourceError.
    """
    try:
        yield
    except ArchgradError as error:
        run.failed = True
        _note_place(error, run)
        raise
    except Exception as error:  # a user's loss or metric may raise anything
        run.failed = True
        resources = isinstance(error, MemoryError | RuntimeError | OSError | EOFError)
        if resources and (explanation := _explain(error)):
            raise ResourceError(f"{explanation} It happened {run.location}. {run.good_state}".rstrip()) from error
        # The error stays as it was raised, with its own traceback.
        _note_place(error, run)
        raise


def _note_place(error: Exception, run: Located) -> None:
    """Note where the run was, where neither the error nor another note says so."""
    told = [text_of(error), *notes_of(error)]
    if not any(run.location in text for text in told):
        annotate(error, f"archgrad was {run.location}. {run.good_state}".rstrip())


def _explain(error: BaseException) -> str:
    try:
        return failures.explain(error)
    except RuntimeError as death:  # torch reports a worker that died wherever the program is, so here too
        return failures.explain(death)


def moved(batch: Any, device: torch.device) -> Any:
    """See `Run.to_device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, tuple | list):
        return getattr(batch, "_make", type(batch))(moved(item, device) for item in batch)
    return {key: moved(item, device) for key, item in batch.items()} if isinstance(batch, dict) else batch


class Loop:
    """The phases of one run, one after another.

    Attributes:
        phase: the present one; None between phases.
        signals: what asks it to stop.
        failed: whether a step failed.
    """

    def __init__(
        self, folder: Path | None, budget: Budget, checkpoints: Checkpointing, *, checks: FiniteChecks,
        machine: Machine, log: Log,
    ) -> None:  # fmt: skip
        self._folder, self._budget, self._checkpoints = folder, budget, checkpoints
        self._checks, self._machine, self._log = checks, machine, log
        self.phase: Phase | None = None
        self.signals = SignalListener()
        self.failed = False

    @property
    def location(self) -> str:
        """Where the run is, in words: "in phase 'search' at step 12"."""
        return self.phase.location if self.phase else "between phases"

    @property
    def good_state(self) -> str:
        """A sentence on the last good state; empty where none is saved."""
        return self._checkpoints.good_state().strip()

    @property
    def precision(self) -> str:
        """By Fabric's name."""
        return self._machine.precision

    @property
    def seconds(self) -> float:
        """The time in loops since the run began."""
        phase = self.phase
        if phase and phase.origin is not None:
            phase.seconds = time.monotonic() - phase.origin
        return self._budget.seconds_used + (phase.seconds if phase else 0.0)

    def steps(self, phase: Phase) -> Generator[int, None, None]:
        """The steps of a phase. Raises Stopped after a signal."""
        self.phase = phase
        self._budget.enter()
        self.signals.start()
        try:
            # A data loader reports a dead worker by a signal, which may arrive while the state is saved.
            with watched(self):
                yield from self._steps(phase)
        except GeneratorExit:
            phase.step += 1
            if not self.signals.requested:
                self._leave(phase)
            raise
        finally:
            self.signals.stop()
            self._log.end_phase(phase)
            self._budget.end_phase(phase, used=self.seconds)
            self.phase = None

    def _steps(self, phase: Phase) -> Generator[int, None, None]:
        if self._enter(phase):
            return
        over = self._is_over(phase)
        while not over:
            if what := self._what_now(phase):
                self._save(phase, phase.step)
                self._stop_if(what)
            yield phase.step
            phase.step += 1
            over = self._is_over(phase)
            if time.monotonic() >= self._log.view.due_at:
                self._log.show(phase)
            if not self._machine.alone:
                self._checkpoints.synchronize(check=phase.step % (self._budget.steps_per_epoch or 100) == 0)
        self._checks.read({}, self)
        self._log.add_deferred(phase, seconds=self.seconds)
        self._save(phase, "end")
        self._stop_if(self._what_now(phase))

    def _save(self, phase: Phase, mark: Mark) -> None:
        """Save the state. Raises NonFiniteError for a step before, which a resumed run would never look at."""
        self._checks.read({}, self)
        self._checkpoints.save(phase, mark)

    def _leave(self, phase: Phase) -> None:
        """Log and save where a loop was left, but for what is wrong there: Python drops errors of a closing loop."""
        if self._checks.is_wrong():
            self._log.note(f"The end of phase {phase.name!r} was not saved: a loss or a gradient is NaN or infinite.")
            return
        self._log.add_deferred(phase, seconds=self.seconds)
        self._checkpoints.leave(phase)

    def _enter(self, phase: Phase) -> bool:
        """Load what was saved of the phase, or save its start; True when it was finished before."""
        checkpoints = self._checkpoints
        state, path = checkpoints.resume(phase) if checkpoints.replaying else (None, None)
        if state and state["finished"]:
            return True
        if checkpoints.replaying and (lost := checkpoints.end_replay(phase, path)):
            self._log.note(f"{lost} checkpoints of later phases are void: phase {phase.name!r} is run again.")
        self._log.open_phase(phase)
        phase.origin, phase.entered = time.monotonic() - phase.seconds, phase.step
        if state is None:
            checkpoints.begin(phase)
        return False

    def _is_over(self, phase: Phase) -> bool:
        """Whether the phase's budget is used up; brings its progress up to date, the same in every process.

        Progress is the used fraction of the steps or of the seconds, whichever is more, and never falls.
        """
        used = phase.progress
        if phase.limit is not None:
            used = max(used, phase.step / phase.limit if phase.limit else 1.0)
        if phase.seconds_limit is not None:
            in_phase = self.seconds - self._budget.seconds_used
            used = max(used, in_phase / phase.seconds_limit if phase.seconds_limit > 0 else 1.0)
            used = used if self._machine.alone else self._machine.greatest(used)
        phase.progress = min(1.0, used)
        return phase.progress >= 1.0

    def _what_now(self, phase: Phase) -> int:
        """Whether to save, and whether to stop and why, the same in every process."""
        requested = self.signals.requested
        due = phase.step > phase.entered and time.monotonic() >= self._checkpoints.due_at
        what = requested + _SIGNALS if requested else _SAVE if due else 0
        return what if self._machine.alone else self._machine.greatest(what)

    def _stop_if(self, what: int) -> None:
        if what > _SIGNALS:
            raise self.stopped(what - _SIGNALS)

    def stopped(self, reason: int) -> Stopped:
        """The exception that ends the program by a signal, inside a phase."""
        assert self.phase
        place = (
            f"Stopped by {signal.Signals(reason).name} in phase {self.phase.name!r} after {self.phase.step} steps."
        )
        saved = f"The state is saved in {self._folder}: run the same program again to go on from there."
        lost = "Nothing is saved: give Run(folder=...) to be able to resume."
        return Stopped(f"{place} {saved if self._folder else lost}", reason)
