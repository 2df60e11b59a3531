"""The checks of each step for NaN and infinity: at once on the CPU, on an accelerator where a step is logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from archgrad.run import nonfinite, step_checks
from archgrad.run.checkpointing import Checkpointing
from archgrad.run.device import Machine
from archgrad.run.output import Log

Figures = Mapping[str, float | Tensor]


class Checked(nonfinite.Diagnosed, step_checks.Located, Protocol):
    """A run."""


class FiniteChecks:
    """The checks of one run. Asking an accelerator for a value waits for all its work, so that is done seldom.

    Args:
        machine: of the device.
        log: how often steps are logged; where each is, each is looked at.
        checkpoints: of the parts that messages name.
    """

    def __init__(self, machine: Machine, log: Log, checkpoints: Checkpointing) -> None:
        self._machine, self._log, self._checkpoints = machine, log, checkpoints
        self._largest: Tensor | None = None  # magnitude that the device computed since it was looked at

    def figures(self, figures: Figures, run: nonfinite.Diagnosed, *, again: Callable[[], object] | None) -> None:
        """See `Run.check_finite`."""
        if self._later:
            self._add(value for value in figures.values() if isinstance(value, Tensor))
            figures = {name: value for name, value in figures.items() if not isinstance(value, Tensor)}
            if not figures:
                return
        wrong = len(step_checks.wrong_figures(figures))
        if wrong if self._machine.world == 1 else self._machine.greatest(wrong):
            raise nonfinite.figures_error(figures, run, parts=self._parts, again=again)

    def gradients(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], run: nonfinite.Diagnosed
    ) -> None:
        """See `Run.check_gradients`."""
        if self._later:
            self._add(gradients)
        elif not step_checks.finite(gradients):
            raise nonfinite.gradients_error(parameters, gradients, run, parts=self._parts)

    def read(self, figures: Figures, run: Checked) -> Figures:
        """The figures, those on an accelerator as numbers, after one wait for it.

        Raises NonFiniteError for what it computed since the wait before.
        """
        there = {n: v for n, v in figures.items() if isinstance(v, Tensor) and v.numel() == 1 and not v.is_cpu}
        waiting, self._largest = self._largest, None
        rows = [*there.values(), *([] if waiting is None else [waiting])]
        exact = torch.float32 if self._machine.device.type == "mps" else torch.float64
        values = torch.stack([row.detach().reshape(()).to(exact) for row in rows]).tolist() if rows else []
        wrong = waiting is not None and not math.isfinite(values[-1])
        if wrong if self._machine.world == 1 else self._later and self._machine.greatest(int(wrong)):
            with step_checks.watched(run):
                raise nonfinite.late_error(run)
        pairs = zip(there.items(), values, strict=False)
        return {**figures, **{n: v if t.is_floating_point() else int(v) for (n, t), v in pairs}}

    def is_wrong(self) -> bool:
        """Whether `read` would raise for what this process's accelerator computed; nothing is asked of others."""
        return self._largest is not None and not math.isfinite(self._largest.item())

    @property
    def _later(self) -> bool:
        return self._log.interval > 1 and self._machine.device.type != "cpu"

    @property
    def _parts(self) -> Mapping[str, Any]:
        return self._checkpoints.parts or {}

    def _add(self, tensors: Iterable[Tensor | None]) -> None:
        given = [t.detach() for t in tensors if t is not None and step_checks.measurable(t)]
        if given:
            now = get_total_norm(given, norm_type=math.inf)
            self._largest = now if self._largest is None else torch.maximum(self._largest, now)
