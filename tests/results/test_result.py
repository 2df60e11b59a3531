"""Results: what is written, and what happens where it cannot be."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import archgrad as ag
from archgrad.errors import RunError


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
    assert found.network[0].out_features == 3
    assert found.costs["params"] == 3 * 5 + 2 * 4
    assert not found.network.training


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
