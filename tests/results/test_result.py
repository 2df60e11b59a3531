"""Results: what is written, and what happens where it cannot be."""

from __future__ import annotations

import copy
import json
import math
import pickle
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import archgrad as ag
from archgrad.choices.access import choices
from archgrad.errors import ModelError, RunError
from archgrad.results.record import widths


@pytest.fixture
def found() -> ag.Found:
    space = ag.relax(
        ag.slim(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.zeros(2, 4)), ag.softmax
    )
    for logits in ag.logits(space):
        logits.data[:3] = 9.0
    return ag.derive(space, threshold=0.1)


def test_derive_gives_a_plain_network_of_what_weighs_most(found: ag.Found) -> None:
    assert list(found.architecture.values()) == [(0, 1, 2)]
    assert found.network.get_submodule("0").out_features == 3
    assert found.costs["params"] == 3 * 5 + 2 * 4
    assert not found.network.training


def test_a_copy_shares_what_it_holds_and_a_deep_copy_nothing(found: ag.Found) -> None:
    assert vars(copy.copy(found)) == vars(found) and copy.copy(found) is not found
    deep = copy.deepcopy(found)
    assert deep.architecture == found.architecture and deep.record == found.record
    assert deep.record is not found.record and deep.network is not found.network
    with pytest.raises(RunError, match="not pickled"):
        pickle.dumps(found)


def test_saves_into_a_new_folder(found: ag.Found, tmp_path: Path) -> None:
    found.save(tmp_path / "a" / "b")
    assert ag.Architecture.load(tmp_path / "a" / "b" / "architecture.json") == found.architecture
    assert (tmp_path / "a" / "b" / "report.html").read_text().startswith("<!doctype html>")


def test_a_full_disk_is_an_error_that_says_so(found: ag.Found, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(RunError, match=r"could not be written to .*make room there"):
            found.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_file_where_the_folder_should_be(found: ag.Found, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        found.save(tmp_path / "taken")


class Fragile(nn.Module):
    """Features through BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(torch.relu(self.norm(self.first(x))))


def slimmed(folder: Path, *, test: Any = None, metrics: Any = None) -> ag.Found:
    torch.manual_seed(0)
    x, y = torch.randn(40, 4), torch.arange(40) % 2
    network, parts = Fragile(), [(x, y), (x[:10], y[:10]), test or (x[10:20], y[10:20])]
    datasets = [TensorDataset(*part) for part in parts]
    task = ag.Classification(*datasets, classes=2, metrics=metrics or {}, batch_size=8)
    run = ag.Run(steps=4, folder=folder, device="cpu", progress=False)
    return ag.dnal(ag.slim(network, x[:1]), task, run, limit=ag.params().at_most(fraction=0.8))


def test_figures_that_are_not_finite_are_kept_with_where_they_come_from(tmp_path: Path) -> None:
    x = torch.randn(9, 4)
    x[7, 1] = torch.nan
    for _ in range(2):  # the run goes on to the same end when it is resumed
        found = slimmed(tmp_path, test=(x, torch.arange(9) % 2))
        assert math.isnan(found.record["after"]["loss"])
        assert any("1 sample (by their place in the data: 7)" in note for note in found.record["notes"])
        assert found.score is not None and math.isfinite(found.score)
    assert "not finite" in ag.Found.report(found)
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def failing_late(output: torch.Tensor, target: torch.Tensor) -> float:
    if len(target) == 7:  # the test part alone has batches of this size
        raise OSError("the metric's server is gone")
    return 0.5


def test_a_step_that_fails_after_training_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> None:
        raise ValueError("no page today")

    monkeypatch.setattr("archgrad.results.result.page.write", broken)
    test = (torch.randn(7, 4), torch.arange(7) % 2)
    found = slimmed(tmp_path, test=test, metrics={"late": failing_late})
    assert found.score is None and found.costs["params"] > 0
    assert {"architecture.json", "network.safetensors", "network.pt2"} <= {p.name for p in tmp_path.iterdir()}
    notes = json.loads((tmp_path / "record.json").read_text())["notes"]
    assert any("scoring on the test part failed" in n and "test_result.py, line" in n for n in notes)
    assert any("report.html could not be drawn: ValueError: no page today" in n for n in notes)


def spoil(network: nn.Module, name: str, value: float) -> nn.Module:
    with torch.no_grad():
        dict([*network.named_parameters(), *network.named_buffers()])[name].reshape(-1)[0] = value
    return network


@pytest.mark.parametrize(
    ("name", "value"),
    [("norm.running_var", -1.0), ("norm.running_var", math.nan), ("norm.running_mean", math.nan),
     ("last.bias", math.inf), ("first.weight", math.nan)],
)  # fmt: skip
def test_weights_that_are_no_numbers_are_refused_before_training(name: str, value: float) -> None:
    task = ag.Classification((torch.randn(40, 4), torch.arange(40) % 2))
    with pytest.raises(ModelError, match=name):
        ag.fit(spoil(Fragile(), name, value), task, ag.Run(steps=1, device="cpu", progress=False))


class Residual(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, 12, 3, padding=1), nn.Conv2d(12, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.two(torch.relu(self.one(x)))


def test_a_removed_block_is_not_listed_with_its_widths() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 6), nn.Flatten())
    space = ag.slim(nn.Sequential(*plain, nn.Linear(2, 3)), example=torch.randn(2, 1, 8, 8))
    full = ag.Architecture({name: tuple(range(gate[0].size)) for name, gate in choices(space).items()})
    assert {row["kind"] for row in widths(space, full)} == {"channels"}
    blocks = nn.Sequential(nn.Conv2d(1, 8, 3), Residual(8), Residual(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    space = ag.slim(nn.Sequential(*blocks, nn.Linear(8, 3)), example=torch.randn(2, 1, 8, 8))
    whole = {name: tuple(range(gate[0].size)) for name, gate in choices(space).items()}
    rows = widths(space, ag.Architecture({**whole, "1.branch": (), "2.one": (0, 5)}))
    assert {row["name"]: (row["kind"], row["after"]) for row in rows} == {
        "0": ("stream", 8), "1.branch": ("block", 0), "2.branch": ("block", 1), "2.one": ("channels", 2),
    }  # fmt: skip
    assert "1.one" in {row["name"] for row in widths(space, ag.Architecture(whole))}
