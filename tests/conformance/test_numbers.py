"""A loss or a gradient that becomes NaN stops every method: with a diagnosis, and with a good state to go on from."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import limit, task
from test_methods import METHODS, found_by, quiet
from torch import Tensor, nn

import archgrad as ag
from archgrad.errors import NonFiniteError
from archgrad.run.checkpoint_file import load


class Poisoned(ag.Classification):
    """A task whose loss, or whose loss's gradient, is NaN from the so-many-th training loss on."""

    kind = "loss"
    left: list[int]

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        loss = super().loss(network, batch)
        if not (loss.requires_grad and network.training):
            return loss
        self.left[0] -= 1
        if self.left[0] > 0:
            return loss
        if self.kind == "loss":
            return loss * math.nan
        # 0, with a derivative of infinity times 0.
        return loss + (next(p for p in network.parameters() if p.requires_grad) * 0.0).sqrt().sum()


def poisoned(kind: str, after: int) -> Poisoned:
    made = copy.copy(task())
    made.__class__ = Poisoned
    made.kind, made.left = kind, [after]  # type: ignore[attr-defined]
    return made  # type: ignore[return-value]


def stopped(name: str, kind: str, run: ag.Run, *, after: int) -> str:
    method, problem = METHODS[name]
    with pytest.raises(NonFiniteError) as caught:
        method(problem.space(), poisoned(kind, after), run, limit=limit())
    run.close()
    return str(caught.value)


LOSSES = ("dnal", "darts", "radars", "pruning_transfer", "random_search, shared")


@pytest.mark.parametrize(("name", "kind"), [*((n, "gradient") for n in METHODS), *((n, "loss") for n in LOSSES)])
def test_stops_with_a_diagnosis(name: str, kind: str, tmp_path: Path) -> None:
    message = stopped(
        name, kind, quiet(name, epochs=6, folder=tmp_path / "run", output=ag.Output(checkpoint_seconds=0.05)), after=4
    )
    assert "in phase '" in message
    assert "The last good state is" in message
    if kind == "gradient":
        assert "The gradient of " in message or "derivative" in message
    files = [path for path in (tmp_path / "run" / "checkpoints").iterdir() if "-left" not in path.name]
    assert files
    for path in files:
        parts = load(path)["parts"]
        tensors = [t for part in parts.values() if isinstance(part, dict) for t in part.values()]
        assert not any(bool(t.isnan().any()) for t in tensors if isinstance(t, Tensor) and t.is_floating_point())


@pytest.mark.parametrize("name", ["darts", "radars"])
def test_goes_on_exactly_once_the_cause_is_gone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # its export takes seconds, and is not what this is about
    whole = found_by(name, quiet(name, epochs=6), limit=limit()).network.state_dict()
    folder = tmp_path / "run"
    stopped(
        name, "gradient", quiet(name, epochs=6, folder=folder, output=ag.Output(checkpoint_seconds=0.05)), after=30
    )
    resumed = found_by(name, quiet(name, epochs=6, folder=folder), limit=limit()).network.state_dict()
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
