"""What a run saves and restores: the state of its parts, its history and random states, in checkpoints."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from archgrad.errors import NonFiniteError, RunError
from archgrad.run import distributed as agreement
from archgrad.run import nonfinite as diagnosis
from archgrad.run import stateful as kept
from archgrad.run.checkpoint_file import Mark, Series, State
from archgrad.run.device import Machine
from archgrad.run.disk import check_disk_space
from archgrad.run.history import History
from archgrad.run.phase import Phase
from archgrad.run.rng import Randomness
from archgrad.run.stateful import Kept


class Saving:
    """The checkpoints of one run, written by its first process.

    Attributes:
        parts: what is kept; None before `Run.keep`.
        notes: of the run, in its hands too.
        history: of the run.
        replaying: while the program passes through what an earlier process did, until the phase in progress.
        last: the last good checkpoint.
        at: when it was last saved, by the monotonic clock.
    """

    def __init__(
        self, folder: Path | None, *, machine: Machine, random: Randomness, notes: list[str],
        note: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._series = Series(folder / "checkpoints") if folder else None
        self._machine, self._random, self.notes = machine, random, notes
        # An abandoned run, which this would keep alive, has to let go of its folder.
        self._weak_note = weakref.WeakMethod(note)
        self.history = History(None, tensorboard=False)
        self.parts: Mapping[str, Kept] | None = None
        self.replaying = False
        self.last: Path | None = None
        self.at = 0.0

    def resume(self, phase: Phase) -> tuple[State | None, Path | None]:
        """Load the newest state of a phase, if there is one; also its path.

        Raises RunError when it does not fit this program.
        """
        held, path, warnings = self._series.newest(phase.index) if self._series else (None, None, [])
        if held and path:
            try:
                warnings = [*self._restore(phase, held, path), *warnings]
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                if isinstance(error, RunError):
                    raise
                raise RunError(
                    f"{path} holds no state of a run ({error}). Go on from an older checkpoint, or start the run in "
                    "another folder."
                ) from error
        for warning in warnings:
            self._note(warning)
        self._machine.wait()
        return held, path

    def _restore(self, phase: Phase, held: State, path: Path) -> list[str]:
        phase.resume(held, path)
        kept.restore(self.parts or {}, held["parts"], path)
        lost = self.history.rewind(held["records"])
        told = [f"history.jsonl has lost {lost} records."] if lost and self._machine.rank == 0 else []
        self._machine.set_state(held["precision"])
        if self._machine.world > 1:
            # The first process saved for all; its own device is the first.
            held["random"]["cuda"] = held["random"]["cuda"][:1] * torch.cuda.device_count()
        self._random.set_state(held["random"])
        self.last = path
        return [*told, *map(str, held["notes"])]

    def end_replay(self, phase: Phase, held: Path | None) -> int:
        """Go on from `held`; returns how many checkpoints of later phases that makes void."""
        self.replaying = False
        lost = self._series.discard(phase.index, held) if self._series and self._machine.rank == 0 else 0
        self.history.write()
        return lost

    def settle(self, index: int) -> None:
        """Make the end of a phase that was left early its real end."""
        if self._series and self._machine.rank == 0 and not self.replaying:
            self._series.settle(index)

    def _note(self, text: str) -> None:
        if note := self._weak_note():
            note(text)

    def begin_alike(self) -> None:
        """Give every process what the first one holds."""
        agreement.begin(self.parts or {}, self._machine)

    def stay_alike(self, *, check: bool) -> None:
        """Average running statistics over the processes; where asked, make sure that all else is the same in them.

        Raises RunError where it is not.
        """
        agreement.settle(self.parts or {}, self._machine)
        if check:
            agreement.check(self.parts or {}, self._machine)

    def save(self, phase: Phase, mark: Mark) -> None:
        """Save the state; notes where the disk is short.

        Raises NonFiniteError when a parameter is NaN or infinite: what was saved before stays the last. Raises
        RunError when the disk is full, or would be before long.
        """
        self.at = time.monotonic()
        if not self._series or self._machine.rank > 0:
            return
        if wrong := self._damage():
            raise NonFiniteError(f"{wrong} {self.good_state()}The state of phase {phase.name!r} is not saved.")
        self.history.sync()
        state = phase.state() | {
            "finished": isinstance(mark, str),
            "records": len(self.history.records),
            "notes": self.notes,
            "parts": kept.states(self.parts or {}),
            "random": self._random.state(),
            "precision": self._machine.state(),
        }
        if mark == 0 and (warning := check_disk_space(self._series.folder, state)):
            self._note(warning)
        path = self._series.save(state, index=phase.index, phase=phase.name, mark=mark)
        self.last = self.last if mark == "left" else path
        self.at = time.monotonic()

    def leave(self, phase: Phase) -> None:
        """Save where a loop was left; notes where that was not possible.

        It counts as the phase's end once the program has gone on.
        """
        try:
            if not sys.is_finalizing():
                self.save(phase, "left")
        except (RunError, RuntimeError, NonFiniteError, MemoryError) as error:
            # The loop may be closed by an error of the program, which this one must not hide.
            self._note(f"The end of phase {phase.name!r} was not saved: {error}")

    def check_finite(
        self, figures: Mapping[str, float | Tensor], place: str, *, again: Callable[[], object] | None
    ) -> None:
        """Raise NonFiniteError where a figure is NaN or infinite, in any process."""
        bad = {name: x for name, x in figures.items() if not torch.isfinite(torch.as_tensor(x)).all()}
        if self._machine.greatest(len(bad)) and not bad:
            self._refuse(f"{', '.join(figures)} became NaN or infinite {place}, in another process.")
        if bad:
            parts = self.parts or {}
            found = [diagnosis.of_figures(bad, parts), diagnosis.of_modules(parts, again) if again else ""]
            self._refuse(f"{', '.join(bad)} became NaN or infinite {place}.", *found)

    def check_gradients(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], place: str) -> None:
        """Raise NonFiniteError where a gradient is NaN or infinite."""
        if not diagnosis.finite(gradients):
            told = diagnosis.of_gradients(parameters, gradients, self.parts or {})
            self._refuse(f"A gradient became NaN or infinite {place}, from a finite loss.", told)

    def _refuse(self, *told: str) -> NoReturn:
        advice = (
            f"{self.good_state()}Try a lower learning rate, gradient clipping, or "
            f'precision="32-true" (now {self._machine.precision!r}), in a new folder.'
        )
        raise NonFiniteError(" ".join(filter(None, (*told, advice))))

    def _damage(self) -> str:
        parts = self.parts or {}
        return "" if diagnosis.finite(diagnosis.parameters(parts)) else diagnosis.of_parameters(parts)

    def good_state(self) -> str:
        """A sentence on the last good state; empty where none is saved."""
        return f"The last good state is {self.last}. " if self.last else ""
