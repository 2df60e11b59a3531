"""Everything about running: seed, device, budgets, folder, exact resume, signals, log and progress."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import Tensor

from archgrad.errors import ChoiceError, NonFiniteError, RunError
from archgrad.search import parts as kept
from archgrad.search import settings as checked
from archgrad.search.checkpoint import Mark, Series, State
from archgrad.search.folder import RunFolder, device_name, versions
from archgrad.search.history import History, Record
from archgrad.search.machine import Machine
from archgrad.search.parts import Kept
from archgrad.search.phase import Phase
from archgrad.search.progress import ProgressView
from archgrad.search.randomness import Randomness
from archgrad.search.signals import Listener, Stopped

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Run", "Stopped"]

Moved = TypeVar("Moved")
# Why a loop ends, as a number: the greatest of all processes counts, 0 is to go on, signals are 2 and 15.
_TIME_IS_UP = 1


class Run:
    """One run of a method: its seed, device, budgets and folder.

    `epochs` and `steps` bound the training steps of all phases together, `trials` the networks tried,
    `seconds` the time inside loops. `folder` keeps everything (None: in memory only); `on_log` is given each record.
    `device` is "auto", "cpu", "cuda", "cuda:N" or "mps". State is saved every `checkpoint_seconds`.

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
        processes: int = 1,
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
        self.folder = Path(folder) if folder is not None else None
        self._machine = Machine(device, precision=precision, processes=processes)
        self._checkpoint_seconds = checked.seconds("checkpoint_seconds", checkpoint_seconds, zero=True) or 0.0
        self._tensorboard = checked.tensorboard(tensorboard, self.folder)
        self._progress = progress
        self._on_log = on_log
        self._view = ProgressView(enabled=False)
        self._random = Randomness(self.seed)
        self._signals = Listener()
        self._files = RunFolder(self.folder) if self.folder else None
        self._series = Series(self.folder / "checkpoints") if self.folder else None
        self._history = History(None, tensorboard=False)
        self.notes: list[str] = []
        self._parts: Mapping[str, Kept] | None = None
        self._remembered: Record = {}
        self._status = "not begun"
        # True while the program passes through what an earlier process did, until the phase in progress.
        self._replaying = False
        self._phase: Phase | None = None
        self._phases = self._steps_used = 0
        self._seconds_used = self._saved_at = 0.0
        self._last_checkpoint: Path | None = None

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
    def passed(self) -> float:
        """How much of the present loop is behind, in [0, 1]; 0 outside."""
        return self._phase.step / self._phase.given if self._phase else 0.0

    @property
    def history(self) -> list[Record]:
        """What was logged: {"phase", "step", "time", figures} each."""
        return self._history.records

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
        identity = checked.identity(method, settings, same)
        self._history = History(self.folder if self.rank == 0 else None, tensorboard=self._tensorboard)
        self._view = ProgressView(enabled=self._progress and self.rank == 0)
        if self._files:
            self._begin_folder(self._files, identity)
        self._status = "running"
        self._random.seed_all()

    def _begin_folder(self, files: RunFolder, identity: Record) -> None:
        if self.rank == 0:
            files.acquire()
        try:
            held = files.held(identity)
            self._remembered = files.remembered()
        except RunError:
            files.release()
            raise
        made_with = versions() | {"device": device_name(self.device), "processes": self.world}
        self._replaying = held is not None
        self._machine.wait()
        if held and held["made_with"] != made_with:
            self.note(f"Resumed on {made_with}, before on {held['made_with']}: last bits may differ.")
        if self.rank == 0:
            files.begin(identity, held, made_with)
        if held:
            self._history.recall()
        else:
            self._history.write()

    def total_steps(self, steps_per_epoch: int, *, default_epochs: int) -> int:
        """The steps of all phases together: what `epochs` and `steps` allow, else `default_epochs` allows."""
        per_epoch = checked.count("steps_per_epoch", steps_per_epoch) or 1
        allowed = [self.epochs * per_epoch] if self.epochs else []
        allowed += [self.max_steps] if self.max_steps else []
        return min(allowed, default=default_epochs * per_epoch)

    def keep(self, **parts: Kept) -> None:
        """Name what is saved and restored from now on, in place of what was named before.

        Gradients are not saved: zero them inside each step. Raises ChoiceError for a part without
        `state_dict` and `load_state_dict`.
        """
        if self._phase:
            raise ChoiceError("run.keep was called inside a loop of run.steps. Call it before the loop.")
        kept.check(parts)
        self._parts = dict(parts)

    def steps(self, n: int, *, phase: str = "search", share: float = 1.0) -> Generator[int, None, None]:
        """The steps 0 to n - 1 of a phase, fewer when a budget is used up; resumes where the run was stopped.

        `share` is the part of the `seconds` budget that this phase may use. A phase that an earlier process
        finished yields nothing: its end state is loaded into what is kept. Leaving the loop with `break`
        ends the phase.

        Raises Stopped after SIGTERM or SIGINT, RunError when the state cannot be saved or restored.
        """
        checked.phase(phase, share)
        total = checked.count("n", n, zero=True) or 0
        if self._status != "running":
            raise RunError(f"run.steps was called on a run that is {self._status}. Call run.begin first.")
        if self._parts is None:
            raise ChoiceError("run.steps was called before run.keep. Name what is to be saved first.")
        if self._phase:
            raise ChoiceError(f"The loop of phase {self._phase.name!r} is still open. Leave it first.")
        self._settle()
        left = self.max_steps - self._steps_used if self.max_steps else total
        return self._walk(Phase(self._phases, phase, total, share, end=max(0, min(total, left))))

    def _walk(self, phase: Phase) -> Generator[int, None, None]:
        self._phase = phase
        self._phases += 1
        self._signals.listen()
        try:
            if self._enter(phase):
                return
            while phase.step < phase.end and (reason := self._why_end(phase)) != _TIME_IS_UP:
                if reason:
                    self._save(phase, phase.step)
                    self._stop(phase, reason)
                yield phase.step
                phase.step += 1
                self._view.step(phase.step)
                if time.monotonic() - self._saved_at >= self._checkpoint_seconds:
                    self._save(phase, phase.step)
            self._save(phase, "end")
            if (reason := self._why_end(phase)) > _TIME_IS_UP:
                self._stop(phase, reason)
        except GeneratorExit:
            phase.step += 1
            self._leave(phase)
            raise
        finally:
            self._signals.rest()
            self._view.stop()
            self._steps_used += phase.step
            self._seconds_used += phase.seconds
            self._phase = None

    def _enter(self, phase: Phase) -> bool:
        """Load what is held of the phase, or save its start; True when it was finished before."""
        held, path = self._resume(phase) if self._replaying else (None, None)
        if held and held["finished"]:
            return True
        if self._replaying:
            self._end_replay(phase, path)
        self._history.open_phase(f"{phase.index:04d}-{phase.name}", step=phase.step)
        self._view.start(phase.name, total=phase.end, done=phase.step)
        phase.began = self._saved_at = time.monotonic()
        if not held:
            self._save(phase, 0)
        return False

    def _resume(self, phase: Phase) -> tuple[State | None, Path | None]:
        held, path, warnings = self._series.newest(phase.index) if self._series else (None, None, [])
        if held and path:
            self._restore(phase, held, path)
        for warning in warnings:
            self.note(warning)
        self._machine.wait()
        return held, path

    def _restore(self, phase: Phase, held: State, path: Path) -> None:
        phase.resume(held, path)
        kept.restore(self._parts or {}, held["parts"], path)
        lost = self._history.rewind(held["records"])
        if lost and self.rank == 0:
            self.note(f"history.jsonl has lost {lost} records.")
        for text in held["notes"]:
            self.note(text)
        self._machine.set_state(held["precision"])
        if self.world > 1:
            # The first process saved for all; its own device is the first.
            held["random"]["cuda"] = held["random"]["cuda"][:1] * torch.cuda.device_count()
        self._random.set_state(held["random"])
        self._last_checkpoint = path

    def _end_replay(self, phase: Phase, held: Path | None) -> None:
        self._replaying = False
        if self._series and self.rank == 0 and (lost := self._series.discard(phase.index, held)):
            self.note(f"{lost} checkpoints of later phases are void: phase {phase.name!r} is run again.")
        self._history.write()

    def _why_end(self, phase: Phase) -> int:
        """Why to end the loop now, the same in every process."""
        up = _TIME_IS_UP if phase.time_is_up(self.seconds, self._seconds_used) else 0
        return self._machine.greatest(self._signals.wanted or up)

    def _stop(self, phase: Phase, reason: int) -> NoReturn:
        self.close()
        place = f"Stopped by {signal.Signals(reason).name} in phase {phase.name!r} after {phase.step} steps."
        saved = f"The state is saved in {self.folder}: run the same program again to go on from there."
        lost = "Nothing is saved: give Run(folder=...) to be able to resume."
        raise Stopped(f"{place} {saved if self.folder else lost}", reason)

    def _leave(self, phase: Phase) -> None:
        """Save where a loop was left; it counts as the phase's end once the program has gone on."""
        if self._signals.wanted or sys.is_finalizing():
            return
        try:
            self._save(phase, "left")
        except (RunError, RuntimeError) as error:
            # The loop may be closed by an error of the program, which this one must not hide.
            self.note(f"The end of phase {phase.name!r} was not saved: {error}")

    def _settle(self) -> None:
        if self._series and self.rank == 0 and not self._replaying:
            self._series.settle(self._phases - 1)

    def _save(self, phase: Phase, mark: Mark) -> None:
        self._saved_at = time.monotonic()
        if not self._series or self.rank > 0:
            return
        self._history.sync()
        state = phase.state() | {
            "finished": isinstance(mark, str),
            "records": len(self.history),
            "notes": self.notes,
            "parts": kept.states(self._parts or {}),
            "random": self._random.state(),
            "precision": self._machine.state(),
        }
        path = self._series.save(state, index=phase.index, phase=phase.name, mark=mark)
        self._last_checkpoint = self._last_checkpoint if mark == "left" else path
        self._saved_at = time.monotonic()

    def _need_begin(self, what: str) -> None:
        if self._status == "not begun":
            raise RunError(f"run.{what} was called on a run that is not begun. Call run.begin first.")

    def generator(self, name: str) -> torch.Generator:
        """The CPU generator of that name, seeded from (seed, name); its state is saved and restored."""
        return self._random.generator(name)

    def log(self, figures: Mapping[str, float | Tensor], *, step: int | None = None) -> None:
        """Add a record {phase, step, time, figures} to `history` and history.jsonl, and show it.

        Figures with a slash in their name, of which there may be hundreds, are not shown. `time` is in seconds
        inside loops since the run began. Tensors hold one number, [1] or [].
        """
        self._need_begin("log")
        numbers, phase = checked.figures(figures), self._phase
        seconds = self._seconds_used + (phase.seconds if phase else 0.0)
        at = step if step is not None or phase is None else phase.step
        record = {"phase": phase.name if phase else None, "step": at, "time": round(seconds, 3)}
        self._history.add(record | numbers, numbers, on_log=self._on_log if self.rank == 0 else None)
        self._view.figures({name: value for name, value in numbers.items() if "/" not in name})

    def check_finite(self, figures: Mapping[str, float | Tensor]) -> None:
        """Raise NonFiniteError when a number, or any element of a tensor `[...]`, is NaN or infinite."""
        bad = [name for name, value in figures.items() if not torch.isfinite(torch.as_tensor(value)).all()]
        if bad:
            place = f"in phase {self._phase.name!r} at step {self._phase.step}" if self._phase else "between phases"
            saved = f"The last good state is {self._last_checkpoint}. " if self._last_checkpoint else ""
            raise NonFiniteError(
                f"{', '.join(bad)} became NaN or infinite {place}. {saved}Try a lower learning rate, "
                f'gradient clipping, or precision="32-true" (now {self.precision!r}), in a new folder.'
            )

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """The JSON value of `compute()`, computed once in a run's life: for figures measured by a clock.

        A resumed program skips `compute`, so it must change nothing; what it draws at random does not count.
        """
        self._need_begin("remember")
        if key not in self._remembered:
            before = self._random.state()
            value = self._machine.from_first(compute() if self.rank == 0 else None)
            self._random.set_state(before)
            self._remembered[key] = checked.plain(key, value)
            if self._files and self.rank == 0:
                self._files.remember(self._remembered)
        return self._remembered[key]

    def note(self, text: str) -> None:
        """Keep a warning that the user should read in `notes`, once, and show it."""
        if text not in self.notes:
            self.notes.append(text)
            self._view.note(text)

    def finish(self) -> None:
        """Mark the run finished and let go of its folder."""
        if self._status != "running":
            raise RunError(f"run.finish was called on a run that is {self._status}.")
        self._settle()
        if self._replaying:
            self._history.write()
        if self._files and self.rank == 0:
            self._files.mark_finished()
        self.close()
        self._status = "finished"

    def close(self) -> None:
        """Let go of the folder without marking the run finished: it can be resumed."""
        self._status = "closed"
        self._view.stop()
        self._history.close()
        if self._files:
            self._files.release()
