"""Everything about running: seed, device, budgets, folder, exact resume, signals, log and progress."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import Tensor

from archgrad.errors import ChoiceError, RunError
from archgrad.run import distributed as agreement
from archgrad.run import stateful as kept
from archgrad.run import validation as checked
from archgrad.run.checkpointing import Saving
from archgrad.run.device import Machine
from archgrad.run.folder import RunFolder, device_name, versions
from archgrad.run.history import History
from archgrad.run.phase import Phase
from archgrad.run.progress import ProgressView
from archgrad.run.records import Record, Records
from archgrad.run.resource_errors import watched
from archgrad.run.rng import Randomness
from archgrad.run.signals import Listener, Stopped
from archgrad.run.stateful import Kept

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Run", "Stopped"]

Moved = TypeVar("Moved")
# What a loop does before its next step, as a number of which the greatest of all processes counts: 0 is to go on, a
# signal is its number and _SIGNALS.
_SAVE, _SIGNALS = 1, 1


class Run:
    """One run of a method: its seed, device, budgets and folder.

    `epochs` and `steps` bound the training steps of all phases together, `trials` the networks tried,
    `seconds` the time inside loops. `folder` keeps everything (None: in memory only); `on_log` is given each record.
    `device` is "auto", "cpu", "cuda", "cuda:N" or "mps"; `devices` how many of them, a process each, by Fabric.
    `workers` is for methods that try networks apart: None tries them in this process, a number in so many others,
    "ray" or "ray://host:port" on a Ray cluster; the result is the same. State is saved every `checkpoint_seconds`.

    Raises ConfigError for a setting that cannot be used, MissingExtra when TensorBoard is not installed.
    """

    def __init__(
        self,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        trials: int | None = None,
        seconds: float | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
        device: str = "auto",
        precision: str = "32-true",
        devices: int = 1,
        workers: int | str | None = None,
        checkpoint_seconds: float = 30.0,
        tensorboard: bool = False,
        progress: bool = True,
        on_log: Callable[[Record], object] | None = None,
    ) -> None:
        self.epochs = checked.count("epochs", epochs)
        self.max_steps = checked.count("steps", steps)
        self.trials = checked.count("trials", trials)
        self.seconds = checked.seconds("seconds", seconds)
        self.seed = checked.seed(seed)
        self.folder = checked.folder(folder)
        self.workers = checked.workers(workers)
        self.worked = False  # whether workers have had something to do
        self._machine = Machine(device, precision=precision, devices=devices, workers=self.workers)
        self._checkpoint_seconds = checked.seconds("checkpoint_seconds", checkpoint_seconds, zero=True) or 0.0
        self._tensorboard = checked.tensorboard(tensorboard, self.folder)
        self._shows_progress = progress
        self._on_log = on_log
        self._view = ProgressView(enabled=False)
        self._random = Randomness(self.seed)
        self._signals = Listener()
        self._files = RunFolder(self.folder) if self.folder else None
        self._history = History(None, tensorboard=False)
        self.notes: list[str] = []
        self._saving = Saving(
            self.folder, machine=self._machine, random=self._random, notes=self.notes, note=self.note
        )  # fmt: skip
        self._computed: Record = {}
        self._status = "not begun"
        self._phase: Phase | None = None
        self._phases = self._steps_used = 0
        self._epoch = 100  # steps between two looks at whether all processes hold the same
        self._forecast = False  # whether numbers of steps are forecasts, and time alone ends phases
        self._seconds_used = 0.0

    def __repr__(self) -> str:
        return f"<Run, {self._status}: {checked.shown(vars(self))}>"

    @property
    def fabric(self) -> Fabric:
        """Lightning Fabric for this device, precision and number of processes, launched when first used."""
        return self._machine.fabric

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self._machine.device

    @property
    def precision(self) -> str:
        """The precision, by Fabric's name; it acts through `fabric`."""
        return self._machine.precision

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return self._machine.rank

    @property
    def world(self) -> int:
        """The number of processes."""
        return self._machine.world

    @property
    def progress(self) -> float:
        """Used fraction of the present phase's budget, in [0, 1]; 0 outside of phases.

        max(step / steps of the phase, seconds in the phase / (time_fraction * seconds)), as far as there are such
        budgets. It is the same throughout a step and in all processes, never falls, and is saved and restored.
        Schedules, warm-up, annealing and ramps go by it.
        """
        return self._phase.progress if self._phase else 0.0

    @property
    def location(self) -> str:
        """Where the run is, in words: "in phase 'search' at step 12"."""
        return self._phase.place if self._phase else "between phases"

    @property
    def good_state(self) -> str:
        """A sentence on the last good state; empty where none is saved."""
        return self._saving.good_state().strip()

    @property
    def history(self) -> Records:
        """What was logged: {"phase", "step", "time", figures} each."""
        return self._history.records

    def mean(self, values: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The mean over all processes of each tensor, [...] as given; what is None stays so. For gradients."""
        return agreement.mean(values, self._machine)

    def mean_loss(self, value: Tensor) -> Tensor:
        """The mean over all processes of a loss, [] or [B], with this process's gradient."""
        (whole,) = self.mean([value.detach()])
        return value if whole is None or self.world == 1 else value + (whole - value.detach())

    def to_device(self, batch: Moved) -> Moved:
        """The batch on this run's device: a tensor, or any nest of tuples, lists and dicts of them."""
        return self._machine.move(batch)

    def begin(self, method: str, settings: Mapping[str, Any]) -> None:
        """Take the folder, find out whether this resumes a run, and seed torch, numpy and `random`.

        Every process is seeded alike, so that all sample the same architectures.
        Raises RunError when the folder holds another run or one that is running, ConfigError when the
        settings are not JSON.
        """
        if self._status != "not begun":
            raise RunError(f"run.begin was called on a run that is {self._status}. Make a Run for each method.")
        budgets = {"epochs": self.epochs, "steps": self.max_steps, "trials": self.trials}
        same = budgets | {"seconds": self.seconds, "seed": self.seed, "precision": self.precision}
        # Trials elsewhere are not phases of this run: the one cannot go on where the other was.
        same |= {"workers": True} if self.workers else {}
        identity = checked.identity(method, settings, same)
        self._history = History(self.folder if self.rank == 0 else None, tensorboard=self._tensorboard)
        self._saving.history = self._history
        self._view = ProgressView(enabled=self._shows_progress and self.rank == 0)
        if self._files:
            self._begin_folder(self._files, identity)
        self._status = "running"
        self._random.seed_all()

    def _begin_folder(self, files: RunFolder, identity: Record) -> None:
        if self.rank == 0:
            files.acquire()
        try:
            held = files.read(identity)
            self._computed = files.computed()
        except RunError:
            files.release()
            raise
        made_with = versions() | {"device": device_name(self.device), "processes": self.world}
        self._saving.replaying = held is not None
        self._machine.wait()
        if held and held["made_with"] != made_with:
            self.note(f"Resumed on {made_with}, before on {held['made_with']}: last bits may differ.")
        if self.rank == 0:
            files.begin(identity, held, made_with)
        if held:
            self._history.recall()
        else:
            self._history.write()

    def total_steps(
        self, steps_per_epoch: int, *, default_epochs: int, measure_step: Callable[[], float] | None = None
    ) -> int:
        """The training steps of all phases together.

        What `epochs` and `steps` allow, whichever is less; `default_epochs` where the run has no budget. Where
        `seconds` is the only budget, a forecast: seconds / measure_step(), with measure_step() in seconds, measured
        once in the run's life. From then on, phases end when their time is up and not at a number of steps. Use the
        forecast for constants that need one, such as a learning rate of logits; everything else goes by `progress`.

        A method plans with it behind `run.begin`:

            run.begin("my method", settings)
            total = run.total_steps(task.steps_per_epoch, default_epochs=60, measure_step=measure)
            steps = round(0.5 * total)
            run.require_steps(steps, phase="search", warm_up=0.2)
            for step in run.steps(steps, phase="search", time_fraction=0.5):
                rate = schedule(run.progress)
                ...
            for step in run.steps(total - steps, phase="train"):  # all the time that is left
                ...

        where `measure` is `lambda: seconds_per_call(train_a_copy, device=run.device)` (`archgrad.run.device`).
        """
        self._epoch = per_epoch = checked.count("steps_per_epoch", steps_per_epoch) or 1
        allowed = [self.epochs * per_epoch] if self.epochs else []
        allowed += [self.max_steps] if self.max_steps else []
        self._forecast = self.seconds is not None and not allowed
        if self.seconds is None or allowed or measure_step is None:
            return min(allowed, default=default_epochs * per_epoch)
        return max(1, int(self.seconds / self.compute_once("step_seconds", measure_step)))

    def require_steps(self, steps: int, *, phase: str, warm_up: float = 0.0, least: int = 5) -> None:
        """Refuse a phase that cannot do anything sensible in its budget, before it starts.

        Args:
            steps: of the phase, planned by `total_steps`.
            phase: what messages call it.
            warm_up: fraction of the phase in which nothing is decided.
            least: steps that must be left behind the warm-up.

        Raises:
            ConfigError: fewer are left. What `begin` wrote is removed, so that the folder can be used again.
        """
        behind = steps - math.ceil(warm_up * steps)
        if behind >= least:
            return
        self.withdraw()
        raise checked.too_short(vars(self), steps, behind, phase=phase, warm_up=warm_up, least=least)

    def register_state(self, **parts: Kept) -> None:
        """Name what is saved and restored from now on, in place of what was named before.

        Gradients are not saved: zero them inside each step. Raises ChoiceError for a part without
        `state_dict` and `load_state_dict`.
        """
        if self._phase:
            raise ChoiceError("run.register_state was called inside a loop of run.steps. Call it before the loop.")
        kept.check(parts)
        self._saving.parts = dict(parts)

    def steps(
        self, n: int, *, phase: str = "search", time_fraction: float = 1.0, counted: bool = True
    ) -> Generator[int, None, None]:
        """The steps 0 to n - 1 of a phase, fewer when a budget is used up; resumes where the run was stopped.

        Where `total_steps` gave a forecast, because `seconds` is the only budget, the steps go on until the time of
        the phase is up, however many they are (no step for n = 0). A phase that an earlier process finished yields
        nothing: its end state is loaded into what is registered. Leaving the loop with `break` ends the phase.

        Args:
            n: number of steps.
            phase: its name in the history.
            time_fraction: the part of the budget of `seconds` that this phase may use, at most what earlier phases
                left of it. Leave it out in the last phase, which then takes all that is left.
            counted: whether these are training steps. Others leave the budget of steps alone, and are never more
                than n.

        Raises Stopped after SIGTERM or SIGINT, RunError when the state cannot be saved or restored.
        """
        checked.phase(phase, time_fraction)
        total = checked.count("n", n, zero=True) or 0
        if self._status != "running":
            raise RunError(f"run.steps was called on a run that is {self._status}. Call run.begin first.")
        if self._saving.parts is None:
            raise ChoiceError("run.steps was called before run.register_state. Name what is to be saved first.")
        if self._phase:
            raise ChoiceError(f"The loop of phase {self._phase.name!r} is still open. Leave it first.")
        self._saving.settle(self._phases - 1)
        left = self.max_steps - self._steps_used if self.max_steps and counted else total
        limit = None if self._forecast and counted and total else max(0, min(total, left))
        seconds = self.seconds and min(time_fraction * self.seconds, self.seconds - self._seconds_used)
        return self._guarded(Phase(self._phases, phase, total, limit, seconds, counted))

    def _guarded(self, phase: Phase) -> Generator[int, None, None]:
        # A data loader tells of a dead worker by a signal, which may arrive while the state is saved.
        with watched(self, phase):
            yield from self._walk(phase)

    def _walk(self, phase: Phase) -> Generator[int, None, None]:
        self._phase = phase
        self._phases += 1
        self._signals.listen()
        try:
            if self._enter(phase):
                return
            over = self._is_over(phase)
            while not over:
                if what := self._what_now(phase):
                    self._saving.save(phase, phase.step)
                if what > _SIGNALS:
                    self._stop(phase, what - _SIGNALS)
                yield phase.step
                phase.step += 1
                over = self._is_over(phase)
                self._view.step(phase.step, progress=phase.progress)
                self._saving.stay_alike(check=phase.step % self._epoch == 0)
            self._saving.save(phase, "end")
            if (what := self._what_now(phase)) > _SIGNALS:
                self._stop(phase, what - _SIGNALS)
        except GeneratorExit:
            phase.step += 1
            if not self._signals.wanted:
                self._saving.leave(phase)
            raise
        finally:
            self._signals.rest()
            self._view.stop()
            self._steps_used += phase.step if phase.counted else 0
            self._seconds_used += phase.seconds
            self._phase = None

    def _enter(self, phase: Phase) -> bool:
        """Load what is held of the phase, or save its start; True when it was finished before."""
        held, path = self._saving.resume(phase) if self._saving.replaying else (None, None)
        if held and held["finished"]:
            return True
        if self._saving.replaying and (lost := self._saving.end_replay(phase, path)):
            self.note(f"{lost} checkpoints of later phases are void: phase {phase.name!r} is run again.")
        self._history.open_phase(f"{phase.index:04d}-{phase.name}", step=phase.step)
        self._view.start(phase.name, total=phase.limit, done=phase.step, progress=phase.progress)
        phase.begin()
        self._saving.at = time.monotonic()
        if not held:
            self._saving.begin_alike()
            self._saving.save(phase, 0)
        return False

    def _is_over(self, phase: Phase) -> bool:
        """Whether the phase's budget is used up; brings its progress up to date, the same in every process."""
        used = phase.used_fraction()
        phase.progress = used if self.seconds is None else self._machine.greatest(used)
        return phase.progress >= 1.0

    def _what_now(self, phase: Phase) -> int:
        """Whether to save, and whether to stop and why, the same in every process."""
        due = time.monotonic() - self._saving.at >= self._checkpoint_seconds and phase.step > phase.entered
        wanted = self._signals.wanted
        return self._machine.greatest(wanted + _SIGNALS if wanted else _SAVE if due else 0)

    def _stop(self, phase: Phase, reason: int) -> NoReturn:
        self.close()
        place = f"Stopped by {signal.Signals(reason).name} in phase {phase.name!r} after {phase.step} steps."
        saved = f"The state is saved in {self.folder}: run the same program again to go on from there."
        lost = "Nothing is saved: give Run(folder=...) to be able to resume."
        raise Stopped(f"{place} {saved if self.folder else lost}", reason)

    @property
    def stop_requested(self) -> bool:
        """Whether a signal asks to stop: for what takes long inside one step."""
        return bool(self._signals.wanted)

    def stop_here(self) -> NoReturn:
        """Stop inside a step, by the signal that came; a resumed run begins at the last state saved."""
        assert self._phase
        self._stop(self._phase, self._signals.wanted)

    def generator(self, name: str) -> torch.Generator:
        """The CPU generator of that name, seeded from (seed, name); its state is saved and restored."""
        return self._random.generator(name)

    def isolated_rng(self, name: str) -> AbstractContextManager[None]:
        """The global generators seeded from (seed, name) inside, and as they were behind."""
        return self._random.apart(name)

    def log(self, figures: Mapping[str, float | Tensor], *, step: int | None = None) -> None:
        """Add a record {phase, step, time, figures} to `history` and history.jsonl, and show it.

        Figures with a slash in their name, of which there may be hundreds, are not shown. `time` is in seconds
        inside loops since the run began. Tensors hold one number, [1] or [].
        """
        checked.begun(self._status, "log")
        numbers, phase = checked.figures(figures), self._phase
        seconds = self._seconds_used + (phase.seconds if phase else 0.0)
        at = step if step is not None or phase is None else phase.step
        record = {"phase": phase.name if phase else None, "step": at, "time": round(seconds, 3)}
        self._history.add(record | numbers, numbers, on_log=self._on_log if self.rank == 0 else None)
        self._view.figures({name: value for name, value in numbers.items() if "/" not in name})

    def log_step(
        self, figures: Mapping[str, float | Tensor], more: Mapping[str, float] = MappingProxyType({}), *, step: int
    ) -> None:
        """Log a training step; `more` is what is only there now and then, such as an epoch's figures."""
        self.log({**figures, **more}, step=step)

    def check_finite(
        self, figures: Mapping[str, float | Tensor], *, again: Callable[[], object] | None = None
    ) -> None:
        """Raise NonFiniteError when a number, or any element of a tensor `[...]`, is NaN or infinite.

        The message says which term of a loss it was (`diagnosis.term`), which parameter, and, where `again` computes
        the figures once more, which module's output was the first.
        """
        self._saving.check_finite(figures, self.location, again=again)

    def check_gradients(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Raise NonFiniteError, which names a parameter, when one of their gradients [...] is NaN or infinite."""
        self._saving.check_gradients(parameters, gradients, self.location)

    def compute_once(self, key: str, compute: Callable[[], Any]) -> Any:
        """The JSON value of `compute()`, computed once in a run's life: for figures measured by a clock.

        A resumed program skips `compute`, so it must change nothing; what it draws at random does not count.
        """
        checked.begun(self._status, "compute_once")
        if key not in self._computed:
            before = self._random.state()
            value = self._machine.from_first(compute() if self.rank == 0 else None)
            self._random.set_state(before)
            self._computed[key] = checked.plain(key, value)
            if self._files and self.rank == 0:
                self._files.write_computed(self._computed)
        return self._computed[key]

    def note(self, text: str) -> None:
        """Keep a warning that the user should read in `notes`, once, and show it."""
        if text not in self.notes:
            self.notes.append(text)
            self._view.note(text)

    def finish(self) -> None:
        """Mark the run finished and let go of its folder."""
        if self._status != "running":
            raise RunError(f"run.finish was called on a run that is {self._status}.")
        self._saving.settle(self._phases - 1)
        if self._saving.replaying:
            self._history.write()
        if self.workers and not self.worked:
            self.note(f"workers={self.workers!r} was given, and nothing was tried apart: this method used none.")
        if self._files and self.rank == 0:
            self._files.mark_finished()
        self.close()
        self._status = "finished"

    def withdraw(self) -> None:
        """Close a run in which nothing was trained, and remove what `begin` wrote: another may take the folder.

        What an earlier process has written stays.
        """
        self.close()
        untouched = not self._saving.replaying and self._saving.last is None
        if self._files and self.rank == 0 and untouched:
            self._files.forget()

    def close(self) -> None:
        """Let go of the folder without marking the run finished: it can be resumed."""
        self._status = "closed"
        self._view.stop()
        self._history.close()
        if self._files:
            self._files.release()
