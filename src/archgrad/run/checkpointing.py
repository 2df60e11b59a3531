"""What a run saves and restores: the state of its parts, its history and random states, in checkpoints."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from archgrad.digests import digest
from archgrad.errors import NonFiniteError, RunError
from archgrad.report.data.run_format import CHECKPOINTS
from archgrad.run import distributed, nonfinite, stateful
from archgrad.run.budget import Phase
from archgrad.run.checkpoint_file import Mark, Series, State
from archgrad.run.device import Machine
from archgrad.run.output import Log
from archgrad.run.rng import Randomness
from archgrad.run.stateful import Stateful

# Two states of the running phase stay while a third is written.
_GENERATIONS = 3
# network.safetensors, network.pt2, network.onnx and the end of an earlier phase, each no larger than a state.
_RESULTS = 4
_TEXTS = 2**20  # run.json, history.jsonl and the report, at the least


class Checkpointing:
    """The checkpoints of one run, written by its first process.

    Attributes:
        parts: what is saved; None before `Run.register_state`.
        task: what the run trains on, saved too where it has a state.
        run_id: of the run, which checkpoints name.
        replaying: while the program passes through what an earlier process did, until the phase in progress.
        newest: the last good checkpoint.
        due_at: when the next one is due, by the monotonic clock.
    """

    def __init__(
        self, folder: Path | None, *, every_seconds: float, machine: Machine, random: Randomness, log: Log
    ) -> None:
        self._series = Series(folder / CHECKPOINTS) if folder else None
        self._every_seconds, self._machine, self._random, self._log = every_seconds, machine, random, log
        self.parts: Mapping[str, Stateful] | None = None
        self.task: object = None
        self._begun: dict[str, dict[str, str]] = {}
        self.run_id = ""
        self.replaying = False
        self.newest: Path | None = None
        self.due_at = -math.inf

    def resume(self, phase: Phase) -> tuple[State | None, Path | None]:
        """Load the newest state of a phase, if there is one; also its path.

        Raises RunError when it does not fit this program.
        """
        state, path, notes = self._series.newest(phase.index, run=self.run_id) if self._series else (None, None, [])
        if state and path:
            try:
                notes = [*self._restore(phase, state, path), *notes]
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                if isinstance(error, RunError):
                    raise
                raise RunError(
                    f"{path} holds no state of a run ({error}). Go on from an older checkpoint, or start the run in "
                    "another folder."
                ) from error
        for note in notes:
            self._log.note(note)
        self._machine.wait()
        return state, path

    def _restore(self, phase: Phase, state: State, path: Path) -> list[str]:
        phase.resume(state, path)
        stateful.restore(self.parts or {}, state["parts"], path)
        lost, history = self._log.history.rewind(state["records"]), self._log.history
        notes = [f"history.jsonl has lost {lost} records."] if lost and self._machine.rank == 0 else []
        if not lost and self._machine.rank == 0 and history.checksum != state.get("history"):
            notes.append(
                "history.jsonl does not hold what this run wrote there: it was changed, or is of another run."
            )
        if self._machine.world > 1:
            # The first process saved for all; its own device is the first.
            state["random"]["cuda"] = state["random"]["cuda"][:1] * torch.cuda.device_count()
        self._random.set_state(state["random"])
        self.newest = path
        return [*notes, *map(str, state["notes"])]

    def end_replay(self, phase: Phase, newest: Path | None) -> int:
        """Go on from the checkpoint `newest`; returns how many checkpoints of later phases that makes void."""
        self.replaying = False
        lost = self._series.discard(phase.index, newest) if self._series and self._machine.rank == 0 else 0
        self._log.history.write()
        return lost

    def register(self, parts: Mapping[str, Stateful]) -> None:
        """What is saved from now on: these parts, and the task where it has a state."""
        self.parts = {**stateful.of_task(self.task), **parts}
        held = stateful.buffers(self.parts) if self._series else {}
        self._begun = {name: {path: digest(t) for path, t in own.items()} for name, own in held.items()}

    def confirm_end(self, index: int) -> None:
        """Make the end of a phase that was left early its real end."""
        if self._series and self._machine.rank == 0 and not self.replaying:
            self._series.confirm_end(index)

    def synchronize(self, *, check: bool) -> None:
        """Average running statistics over the processes; where asked, make sure that all else is the same in them.

        Raises RunError where it is not.
        """
        distributed.average_statistics(self.parts or {}, self._machine)
        if check:
            distributed.check_equal(self.parts or {}, self._machine)

    def begin(self, phase: Phase) -> None:
        """Give every process what the first one holds, and save it; notes where the disk is short.

        Soon after a checkpoint nothing is saved: the program comes here again from that one.
        """
        distributed.broadcast_state(self.parts or {}, self._machine)
        if self.newest is None or time.monotonic() >= self.due_at:
            self.save(phase, 0)

    def save(self, phase: Phase, mark: Mark) -> None:
        """Save the state; notes where the disk is short.

        Raises NonFiniteError when a parameter is NaN or infinite: what was saved before stays the last. Raises
        RunError when the disk is full, or would be before long.
        """
        self.due_at = time.monotonic() + self._every_seconds
        if not self._series or self._machine.rank > 0:
            return
        parts = self.parts or {}
        if not nonfinite.finite(nonfinite.parameters(parts)):
            wrong = nonfinite.explain_parameters(parts)
            raise NonFiniteError(f"{wrong} {self.good_state()}The state of phase {phase.name!r} is not saved.")
        self._log.history.sync()
        state = phase.state() | {
            "run": self.run_id,
            "finished": isinstance(mark, str),
            "records": len(self._log.history),
            "history": self._log.history.checksum,
            "notes": self._log.notes,
            "parts": stateful.states(parts, self._begun),
            "random": self._random.state(),
        }
        if mark == 0:
            self._log.note(check_disk_space(self._series.folder, state))
        path = self._series.save(state, index=phase.index, phase=phase.name, mark=mark)
        self.newest = self.newest if mark == "left" else path
        self.due_at = time.monotonic() + self._every_seconds

    def leave(self, phase: Phase) -> None:
        """Save where a loop was left; notes where that was not possible.

        It counts as the phase's end once the program has gone on.
        """
        try:
            if not sys.is_finalizing():
                self.save(phase, "left")
        except (RunError, RuntimeError, NonFiniteError, MemoryError) as error:
            # The loop may be closed by an error of the program, which this one must not hide.
            self._log.note(f"The end of phase {phase.name!r} was not saved: {error}")

    def close(self) -> None:
        """Save nothing from now on: another run may have the folder before an open loop of this one is collected."""
        self._series = None

    def good_state(self) -> str:
        """A sentence on the last good state; empty where none is saved."""
        return f"The last good state is {self.newest}. " if self.newest else ""


def check_disk_space(folder: Path, state: Any) -> str:
    """Whether the checkpoints of such a state fit on the disk: a warning where the result may not, else empty.

    Raises RunError when they do not.
    """
    size = sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, Tensor))
    free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    needed = _GENERATIONS * size + _TEXTS
    what = (
        f"A state of this run takes {size / 1e6:,.2f} MB on the disk, and {free / 1e6:,.2f} MB are free at {folder}"
    )
    if free < needed:
        raise RunError(
            f"{what}; {_GENERATIONS} states, with the texts beside them, need {needed / 1e6:,.2f} MB. Nothing was "
            f"begun. Make room, or choose another folder."
        )
    if free < needed + _RESULTS * size:
        return f"{what}: the checkpoints fit, the networks written at the end may not. Make room meanwhile."
    return ""
