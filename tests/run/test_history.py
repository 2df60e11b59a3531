from __future__ import annotations

import json
import math
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from archgrad.errors import ConfigError, MissingExtra, RunError
from archgrad.run.output import Output
from archgrad.run.run import Run


def begun(folder: Path | None, **options: Any) -> Run:
    run = Run(folder=folder, device="cpu", progress=False, **options)
    run.begin("test", {})
    run.register_state()
    return run


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "history.jsonl").read_text()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_records_are_written_at_once_as_valid_json(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.log({"before": 1})
    for step in run.steps(3, phase="fit"):
        loss = torch.tensor([math.nan, math.inf, 0.5][step], requires_grad=True)
        run.log({"loss": loss, "low": -math.inf, "alive": 3})
        assert len(lines(tmp_path)) == step + 2
    run.log({"score": 0.9}, step=3)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [None, 0, 1, 2, 3]
    assert [line["phase"] for line in found] == [None, "fit", "fit", "fit", None]
    assert [line.get("loss") for line in found] == [None, "nan", "inf", 0.5, None]
    assert found[1]["low"] == "-inf"
    assert found[1]["alive"] == 3
    assert math.isnan(run.history[1]["loss"])
    assert run.history[2]["loss"] == math.inf
    times = [line["time"] for line in found]
    assert times == sorted(times)


def test_non_finite_figures_come_back_as_numbers(tmp_path: Path) -> None:
    run = begun(tmp_path)
    for _ in run.steps(1, phase="nan"):
        run.log({"loss": math.nan, "top": math.inf})
    run.finish()
    again = begun(tmp_path)
    assert list(again.steps(1, phase="nan")) == []
    assert again.history[0]["phase"] == "nan"
    assert math.isnan(again.history[0]["loss"])
    assert again.history[0]["top"] == math.inf


def test_a_resume_cuts_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    run = begun(tmp_path, output=Output(checkpoint_seconds=1000))
    steps = run.steps(10)
    for step in range(5):
        assert next(steps) == step
        run.log({"loss": step})
    run.close()
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"phase": "search", "st')
    again = begun(tmp_path)
    for step in again.steps(10):
        again.log({"loss": step})
    assert [line["step"] for line in lines(tmp_path)] == list(range(10))
    assert [record["loss"] for record in again.history] == list(range(10))


def test_lost_records_are_noted(tmp_path: Path) -> None:
    run = begun(tmp_path)
    for _ in run.steps(4):
        run.log({"loss": 0.0})
    run.finish()
    text = (tmp_path / "history.jsonl").read_text()
    (tmp_path / "history.jsonl").write_text("".join(text.splitlines(keepends=True)[:2]) + "5\n")
    again = begun(tmp_path)
    assert list(again.steps(4)) == []
    assert again.notes == ["history.jsonl has lost 2 records."]


def test_figures_are_checked() -> None:
    run = begun(None)
    with pytest.raises(RunError, match=r"shape \[2\].*take its mean"):
        run.log({"loss": torch.ones(2)})
    with pytest.raises(RunError, match="Rename"):
        run.log({"step": 1.0})


def test_notes_are_kept_once_and_survive(tmp_path: Path) -> None:
    run = begun(tmp_path)
    for _ in run.steps(2):
        run.note("careful")
        run.note("careful")
    run.close()
    again = begun(tmp_path)
    assert list(again.steps(2)) == []
    assert again.notes == ["careful"]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    run = begun(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(RunError, match="The checkpoints are intact"):
            for _ in range(100):
                run.log({"loss": 0.123456789})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    run.close()


def test_tensorboard_needs_its_extra_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="without a folder"):
        Run(device="cpu", output=Output(tensorboard=True))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    sys.path_importer_cache.clear()
    with pytest.raises(MissingExtra, match=r"archgrad\[tensorboard\]"):
        Run(device="cpu", output=Output(tensorboard=True), folder=tmp_path)


def test_tensorboard_gets_a_folder_for_each_phase(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = begun(tmp_path, output=Output(tensorboard=True))
    for phase in ("a", "b"):
        for _ in run.steps(2, phase=phase):
            run.log({"loss": 0.5})
    run.finish()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "tensorboard" / "0001-b"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(0, 0.5), (1, 0.5)]
    assert (tmp_path / "tensorboard" / "0000-a").is_dir()
