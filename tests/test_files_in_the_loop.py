"""How many of the library's files take part in a step of a search: what a reader of a method has to open."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import archgrad as ag

SOURCE = Path(ag.__file__).parent
# What every loop goes through, and what the network consists of.
GROUND = {"run", "tasks", "choices", "spaces"}
MOST = 4  # outside of these rooms
MOST_OF_ALL = 20


class Watch:
    """Notes each file of the library in which a call happens between the first and the last step of a phase."""

    def __init__(self, phase: str) -> None:
        self.phase, self.files, self.steps, self._since = phase, set[str](), 0, set[str]()

    def on_log(self, row: dict[str, Any]) -> None:
        """A step ends where it is logged; what follows the last one does not count."""
        if row["phase"] == self.phase and "loss" in row:
            self.files |= self._since if self.steps else set()
            self.steps += 1
            self._since = set()
            sys.setprofile(self._profile)
        elif self.steps:
            sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            self._since.add(frame.f_code.co_filename)


def slimmed(task: ag.Classification, run: ag.Run) -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    ag.dnal(ag.slim(net, task.example), task, run, pretrained=True, check_weights=False)


def searched(method: Callable[..., ag.Found]) -> Callable[[ag.Classification, ag.Run], object]:
    return lambda task, run: method(
        ag.nasbench201_cells(channels=4, cells=1, in_channels=1), task, run, search_fraction=0.5
    )


METHODS = {"dnal": (slimmed, "gates"), "darts": (searched(ag.darts), "search"), "unas": (searched(ag.unas), "search")}


def files_in_the_loop(method: str) -> set[Path]:
    search, phase = METHODS[method]
    watch, task, before = Watch(phase), ag.Classification.load("digits", batch_size=256), sys.getprofile()
    try:
        output = ag.Output(log_every=1, on_log=watch.on_log)
        search(task, ag.Run(steps=48, device="cpu", progress=False, output=output))
    finally:
        sys.setprofile(before)
    assert watch.steps > task.steps_per_epoch, "an epoch was watched"
    return {path.relative_to(SOURCE) for path in map(Path, watch.files) if path.is_relative_to(SOURCE)}


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_a_search_enters_few_files(method: str) -> None:
    torch.manual_seed(0)
    files = files_in_the_loop(method)
    outside = sorted(str(path) for path in files if path.parts[0] not in GROUND)
    assert 1 <= len(outside) <= MOST, outside
    assert len(files) <= MOST_OF_ALL, sorted(map(str, files))
