"""Everything about running: seed, device, budgets, folder, exact resume, signals, log and progress."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import torch
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.errors import ChoiceError, RunError
from archgrad.report.data.run_format import Record
from archgrad.run import distributed, stateful, validation
from archgrad.run.budget import Budget, Phase
from archgrad.run.checkpointing import Checkpointing
from archgrad.run.device import Machine, Value
from archgrad.run.folder import RunFolder
from archgrad.run.loop import Loop, moved, only_thread, watched
from archgrad.run.nonfinite import FiniteChecks
from archgrad.run.output import History, Log, Output
from archgrad.run.rng import Randomness
from archgrad.run.signals import Stopped
from archgrad.run.stateful import Stateful

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Output", "Run", "Stopped"]


@checked
class Run:
    """One run of a method: its seed, device, budgets and folder.

    Args:
        epochs, steps: budgets of training, of all phases together.
        trials: budget of networks tried.
        seconds: budget of time inside loops; of several budgets, the one that is used up first ends the run.
        seed: of all random numbers.
        folder: where state, log and result go, so that the same program goes on after a stop; None: in memory only.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        devices: how many of them, each with a process of its own.
        precision: "32-true" or "bf16-mixed"; the weights are float32 in both.
        compile: compile steps of training (`torch.compile`), but for short trials and where candidates come and go.
        workers: for methods that try networks one by one: None tries them in this process, a number in so many worker
            processes, "ray" or "ray://host:port" on a Ray cluster. The result is the same.
        progress: show progress on the terminal.
        output: what is logged and how often, and how often state is saved.

    Raises:
        ConfigError: a setting that cannot be used.
        MissingExtra: TensorBoard is not installed.

    Example:
        >>> import archgrad as ag
        >>> ag.Run(epochs=20, seed=1)
        <Run, not begun: epochs 20, seed 1>
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
        devices: int = 1,
        precision: str = "32-true",
        compile: bool = False,  # noqa: A002
        workers: int | str | None = None,
        progress: bool = True,
        output: Output = Output(),
    ) -> None:
        self._budget = Budget(epochs=epochs, steps=steps, trials=trials, seconds=seconds)
        self.epochs, self.max_steps, self.trials, self.seconds = epochs, steps, trials, self._budget.seconds
        self.seed, self.compile = validation.seed(seed), compile
        self.folder = validation.folder(folder)
        self.workers = validation.workers(workers)
        self.worked = False  # whether workers had something to do
        self._output = output
        validation.tensorboard(output.tensorboard, self.folder)
        self._shows_progress = progress
        self._machine = Machine(device, precision=precision, devices=devices, workers=self.workers)
        self._random = Randomness(self.seed)
        self._files = RunFolder(self.folder) if self.folder else None
        self._log = Log(output)
        self._checkpoints = checkpoints = Checkpointing(
            self.folder, every_seconds=output.checkpoint_seconds, machine=self._machine, random=self._random,
            log=self._log,
        )  # fmt: skip
        self._checks = FiniteChecks(self._machine, self._log, parts=lambda: checkpoints.parts or {})
        self._loop = Loop(
            self.folder, self._budget, self._checkpoints, checks=self._checks, machine=self._machine, log=self._log
        )  # fmt: skip
        self._computed: Record = {}
        self._accepted: frozenset[str] = frozenset()
        self._status, self.failed = "not begun", False  # failed: a later Run of this process may take the folder

    def __repr__(self) -> str:
        names = self._budget.record() | {"seed": self.seed, "workers": self.workers, "folder": self.folder}
        shown = ", ".join(f"{name} {value}" for name, value in names.items() if value is not None)
        return f"<Run, {self._status}: {shown}>"

    @property
    def fabric(self) -> Fabric:
        """Lightning Fabric for this device, precision and number of processes, launched when first used."""
        return self._machine.fabric

    @functools.cached_property
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
        """The number of processes; 1 inside `compute_once`."""
        return self._machine.world

    @property
    def progress(self) -> float:
        """Used fraction of the present phase's budget, in [0, 1]; 0 outside of phases.

        max(step / steps of the phase, seconds in the phase / (time_fraction * seconds)), as far as there are such
        budgets. It never falls within a phase, is the same in all processes, and is saved and restored.
        """
        return phase.progress if (phase := self._loop.phase) else 0.0

    @property
    def location(self) -> str:
        """Where the run is, in words: "in phase 'search' at step 12"."""
        return self._loop.location

    @property
    def good_state(self) -> str:
        """A sentence on the last good state; empty where none is saved."""
        return self._loop.good_state

    @property
    def history(self) -> list[Record]:
        """What was logged: {"phase", "step", "time", figures} each. Each call makes a new list."""
        return self._log.history.records

    @property
    def notes(self) -> list[str]:
        """Warnings that the user should read."""
        return self._log.notes

    def mean(self, values: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The mean over all processes of each tensor, [...] as given; what is None stays so. For gradients."""
        return list(values) if self._machine.alone or self.world == 1 else distributed.mean(values, self._machine)

    def mean_loss(self, value: Tensor) -> Tensor:
        """The mean over all processes of a loss, [] or [B], with this process's gradient."""
        (mean,) = self.mean([value.detach()])
        return value if mean is None or self._machine.alone or self.world == 1 else value + (mean - value.detach())

    def to_device(self, batch: Value) -> Value:
        """The batch on this run's device: a tensor, or any nest of tuples, lists and dicts of them."""
        there: Value = moved(batch, self.device)
        return there

    def accept(self, *parts: str) -> Self:
        """Resume although "data", "network" or "settings" (else ConfigError) differ; the report says so."""
        self._accepted = validation.accepted(parts)
        return self

    def begin(
        self, method: str, settings: Mapping[str, Any], *, task: object = None, network: nn.Module | None = None
    ) -> None:
        """Take the folder, find out whether this resumes a run, and seed torch, numpy and `random`.

        What the `task` holds and what the `network` computes is part of the run's identity. Raises RunError when the
        folder holds another run or one that is running, ConfigError when the settings are not JSON.
        """
        if self._status != "not begun":
            raise RunError(f"run.begin was called on a run that is {self._status}. Make a Run for each method.")
        numbers = {"precision": self.precision, "dtype": str(torch.get_default_dtype())}
        same = self._budget.record() | {"seed": self.seed, **numbers}
        same |= {name: True for name in ("workers", "compile") if getattr(self, name)}  # workers: trials, no phases
        self._checkpoints.task, about_data = task, getattr(task, "notes", ())
        task, network = (task, network) if self._files else (None, None)  # else nothing is resumed and compared
        identity = validation.identity(method, settings, same, task=task, network=network)
        history = History(self.folder if (first := self.rank == 0) else None, tensorboard=self._output.tensorboard)
        self._log.open(history, shown=self._shows_progress and first, first=first)
        if self._files:
            opened = self._files.open(identity, self._machine, accept=self._accepted, holder=self)
            self._checkpoints.replaying, self._computed, notes = opened
            self._checkpoints.run_id = self._files.id
            about_data = [*notes, *about_data]
        for note in about_data:
            self.note(note)
        (history.recall if self._checkpoints.replaying else history.write)()
        self._status = "running"
        self._random.seed_all()

    def total_steps(
        self, steps_per_epoch: int, *, default_epochs: int, measure_step: Callable[[], float] | None = None
    ) -> int:
        """The training steps of all phases together.

        What `epochs` and `steps` allow, whichever is less; `default_epochs` where the run has no budget. Where
        `seconds` is the only budget, a forecast: seconds / measure_step(), with measure_step() in seconds, measured
        once in the run's life. From then on, phases end when their time is up and not at a number of steps. Use the
        forecast for constants that need one, such as a learning rate of logits; everything else goes by `progress`.
        """
        timed = (lambda: float(self.compute_once("step_seconds", measure_step))) if measure_step else None
        return self._budget.total_steps(steps_per_epoch, default_epochs=default_epochs, step_seconds=timed)

    def require_steps(self, steps: int, *, phase: str, warm_up: float = 0.0, least: int = 5) -> None:
        """Refuse a phase that is too short, before it starts.

        Raises ConfigError where of its `steps`, as `total_steps` planned them, fewer than `least` are left after the
        fraction `warm_up`. What `begin` wrote is removed, so that the folder can be used again.
        """
        if error := self._budget.too_short(steps, phase=phase, warm_up=warm_up, least=least):
            self.withdraw()
            raise error

    def register_state(self, **parts: Stateful) -> None:
        """Name what is saved and restored from now on, gradients left out; ChoiceError for a part without state."""
        if self._loop.phase:
            raise ChoiceError("run.register_state was called inside a loop of run.steps. Call it before the loop.")
        stateful.check(parts)
        self._checkpoints.register(parts)

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

        Raises:
            Stopped: after SIGTERM, SIGINT or SIGHUP.
            RunError: the state cannot be saved or restored.
        """
        validation.phase(phase, time_fraction)
        total = validation.count("n", n, zero=True) or 0
        if self._status != "running":
            raise RunError(f"run.steps was called on a run that is {self._status}. Call run.begin first.")
        if self._checkpoints.parts is None:
            raise ChoiceError("run.steps was called before run.register_state. Name what is to be saved first.")
        if self._loop.phase:
            raise ChoiceError(f"The loop of phase {self._loop.phase.name!r} is still open. Leave it first.")
        self.check_unread()
        self._checkpoints.confirm_end(self._budget.last_phase)
        return self._steps(self._budget.begin_phase(phase, total, time_fraction=time_fraction, counted=counted))

    def _steps(self, phase: Phase) -> Generator[int, None, None]:
        try:
            with only_thread(self):
                yield from self._loop.steps(phase)
        except Stopped:
            self.close()
            raise
        finally:
            self.failed |= self._loop.failed

    @property
    def stop_requested(self) -> bool:
        """Whether a signal asks to stop: for what takes long inside one step."""
        return bool(self._loop.signals.requested)

    def stop_here(self) -> NoReturn:
        """Stop inside a step, by the signal that came; a resumed run begins at the last state saved."""
        self.close()
        raise self._loop.stopped(self._loop.signals.requested)

    def generator(self, name: str) -> torch.Generator:
        """The CPU generator of that name, seeded from (seed, name); its state is saved and restored."""
        return self._random.generator(name)

    def isolated_rng(self, name: str) -> AbstractContextManager[None]:
        """The global generators seeded from (seed, name) inside, and as they were afterwards."""
        return self._random.isolated(name)

    def log(self, figures: Mapping[str, float | Tensor], *, step: int | None = None) -> None:
        """Add a record {phase, step, time, figures} to `history` and history.jsonl, and show it.

        Figures with a slash in their name, of which there may be hundreds, are not shown. `time` is in seconds
        inside loops since the run began. Tensors hold one number, [1] or [].
        """
        self._require_begun("log")
        with watched(self):  # `on_log` is the user's
            self._log.add(figures, phase=self._loop.phase, step=step, seconds=self._loop.seconds)

    def log_step(
        self, figures: Mapping[str, float | Tensor], more: Mapping[str, float] | None = None, *, step: int
    ) -> None:
        """Log a training step, every `Output.log_every` steps and at the end of its phase.

        Tensors hold one number, [1] or []. `more` is what is there now and then: a step that has it is always logged.
        Raises NonFiniteError for what an accelerator computed since the last that was.
        """
        if self._log.is_due(figures, step, always=bool(more)):
            self.log(self._checks.read({**figures, **(more or {})}, self), step=step)

    def check_finite(
        self, figures: Mapping[str, float | Tensor], *, again: Callable[[], object] | None = None
    ) -> None:
        """Raise NonFiniteError when a number, or any element of a tensor `[...]`, is NaN or infinite.

        The message says which term of a loss (`nonfinite.term`), which parameter, and, where `again` computes the
        figures once more, which module's output was the first. On a GPU tensors are looked at where a step is logged.
        """
        self._checks.figures(figures, self, again=again)

    def check_gradients(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Raise NonFiniteError, which names a parameter, when one of their gradients [...] is NaN or infinite."""
        self._checks.gradients(parameters, gradients, self)

    def check_unread(self) -> None:
        """Raise NonFiniteError for what an accelerator computed since it was looked at: after training unlogged."""
        self._checks.read({}, self)

    def compute_once(self, key: str, compute: Callable[[], Any]) -> Any:
        """The JSON value of `compute()`, computed once in a run's life: for figures measured by a clock.

        A resumed program skips `compute`, so it must change nothing; what it draws does not count. Of several
        processes the first computes it as if it were the only one; the others raise ResourceError where it fails.
        """
        self._require_begun("compute_once")
        if key not in self._computed:
            before = self._random.state()
            value = self._machine.by_first(lambda: validation.plain(key, compute()))
            self._random.set_state(before)
            self.check_unread()
            self._computed[key] = value
            if self._files and self.rank == 0:
                self._files.write_computed(self._computed)
        return self._computed[key]

    def note(self, text: str, *, kept: bool = True) -> None:
        """Show a line that the user should read; keep it in `notes`, once, where it is a warning."""
        self._log.note(text, kept=kept)

    def finish(self) -> None:
        """Mark the run finished and let go of its folder."""
        if self._status != "running":
            raise RunError(f"run.finish was called on a run that is {self._status}.")
        self.check_unread()
        self._checkpoints.confirm_end(self._budget.last_phase)
        if self._checkpoints.replaying:
            self._log.history.write()
        if self.workers and not self.worked:
            self.note(f"workers={self.workers!r} was given, but this method has no use for workers.")
        if self._files and self.rank == 0:
            self._files.mark_finished()
        self.close()
        self._status = "finished"

    def withdraw(self) -> None:
        """Close a run in which nothing was trained, and remove what `begin` wrote: another may take the folder.

        What an earlier process has written stays.
        """
        self.close()
        untouched = not self._checkpoints.replaying and self._checkpoints.newest is None
        if self._files and self.rank == 0 and untouched:
            self._files.forget()

    def _require_begun(self, what: str) -> None:
        if self._status == "not begun":
            raise RunError(f"run.{what} was called on a run that is not begun. Call run.begin first.")

    def close(self) -> None:
        """Let go of the folder without marking the run finished: it can be resumed."""
        self._status = "closed"
        self._checkpoints.close()
        self._log.close()
        if self._files:
            self._files.release()
