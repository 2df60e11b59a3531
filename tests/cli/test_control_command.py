"""`archgrad control`: a run, its resume, and what is refused."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from archgrad.control import nnilqr


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer training steps."""
    method = inspect.unwrap(nnilqr.nnilqr)
    monkeypatch.setattr(method, "__kwdefaults__", {
        **method.__kwdefaults__, "terms": nnilqr.NnilqrTerms(fit=30, refit=3, search=10),
    })  # fmt: skip


@pytest.mark.parametrize("options", [[], ["--searched"]])
def test_a_run_that_was_finished_is_the_same_when_resumed(cli: Callable, tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "run"
    given = cli("control", "cart_pole", "--trials", "14", "--out", str(out), "--json", *options)
    record = json.loads(given.stdout)
    assert record["after"]["rollouts"] == 14 and record["after"]["cost"] <= record["after"]["cost_at_first"]
    assert len(record["picks"]) == (3 if options else 0)
    assert (out / "control.safetensors").is_file() and "Cost against real" in (out / "report.html").read_text()
    again = json.loads(cli("resume", str(out), "--json").stdout)
    assert again["control"] == record["control"]


def test_another_system_is_refused(refused: Callable[..., str]) -> None:
    assert "vehicle" in refused("control", "rocket")
