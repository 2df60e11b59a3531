"""Values, settings, data, networks, architectures and run folders that are no good: only errors of archgrad come out.

They are drawn by the benchmark of reliability, which goes on with more of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import reliability_python

FINE = {"returned", "refused", reliability_python.OF_THE_USER}


def test_hostile_inputs_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [reliability_python.attempt(number, seed=1) for number in range(180)]
    assert {row["kind"] for row in rows} == reliability_python.KINDS.keys()
    assert {row["found"] for row in rows} >= {"returned", "refused"}
    assert [row for row in rows if row["found"] not in FINE] == []
