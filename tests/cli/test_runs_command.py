"""`archgrad runs`: finished, stopped, running and damaged folders, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import Result

from archgrad.cli.commands.doctor import EXTRAS
from archgrad.run.output import Output
from archgrad.run.run import Run


def begun(folder: Path, *, steps: int) -> Run:
    run = Run(folder=folder, device="cpu", progress=False, output=Output(checkpoint_seconds=0))
    run.begin("test", {})
    run.register_state(network=nn.Linear(1, 1))
    loop = run.steps(9, phase="search")
    for step in range(steps):
        next(loop)
        run.log({"loss": 0.5}, step=step)
    loop.close()
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with one run of each state, and some that are damaged."""
    folder = tmp_path / "runs"
    finished = begun(folder / "finished", steps=3)
    finished.finish()
    (folder / "finished" / "record.json").write_text('{"after": {"accuracy": 0.75, "macs": 3}}')
    begun(folder / "deep" / "er" / "stopped", steps=2).close()
    for name, content in (("cut", '{"identity": {"met'), ("other", "[1, 2]"), ("empty", "{}"), ("binary", "\udcff")):
        (folder / name).mkdir()
        (folder / name / "run.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    (folder / "lost").mkdir()
    (folder / "lost" / "history.jsonl").touch()
    (folder / "no run" / "checkpoints").mkdir(parents=True)
    return folder


def rows(cli: Callable[..., Result], folder: Path) -> dict[str, Any]:
    done = cli("runs", folder, "--json")
    assert done.exit_code == 0, done.output
    return {Path(row["folder"]).name: row for row in json.loads(done.stdout)}


def test_every_state_is_told(runs: Path, cli: Callable[..., Result]) -> None:
    running = begun(runs / "running", steps=4)
    found = rows(cli, runs)
    assert {name: row["state"] for name, row in found.items()} == {
        "finished": "finished", "stopped": "stopped", "running": "running",
        **dict.fromkeys(("cut", "other", "empty", "binary", "lost"), "damaged"),
    }  # fmt: skip
    assert found["finished"]["score"] == {"accuracy": 0.75}
    assert (found["stopped"]["method"], found["stopped"]["phase"], found["stopped"]["step"]) == ("test", "search", 1)
    assert found["running"]["step"] == 3 and found["running"]["started"].startswith("20")
    assert all(0 <= row["age_seconds"] < 3600 for row in found.values())
    assert "is not JSON" in found["cut"]["reason"] and "missing" in found["lost"]["reason"]
    running.close()
    assert rows(cli, runs)["running"]["state"] == "stopped", "the lock alone says that it runs"


def test_without_history_the_checkpoint_tells(runs: Path, cli: Callable[..., Result]) -> None:
    folder = runs / "deep" / "er" / "stopped"
    (folder / "history.jsonl").write_text('{"phase": 3}\nnot JSON\n')
    (folder / "checkpoints" / "9-x.safetensors").write_text("no name of a checkpoint")
    assert (rows(cli, runs)["stopped"]["phase"], rows(cli, runs)["stopped"]["step"]) == ("search", 1)


def test_as_text(runs: Path, cli: Callable[..., Result], refused: Callable[..., str]) -> None:
    done = cli("runs", runs)
    lines = done.stdout.splitlines()
    assert done.exit_code == 0 and len(lines) == 8
    assert lines[0].split() == ["folder", "method", "state", "phase", "step", "started", "last", "write", "score"]
    (finished,) = (line for line in lines if "runs/finished " in line)
    assert finished.endswith("accuracy 0.75") and " s ago" in finished
    assert "There is no run below" in cli("runs", runs / "no run").stdout
    assert "Give the folder that your runs are in" in refused("runs", runs / "absent")


def test_torch_is_not_imported(runs: Path) -> None:
    code = (
        "import sys\nfrom archgrad.cli.app import app\n"
        f"try:\n    app(['runs', {str(runs)!r}])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_doctor(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARCHGRAD_DATA", str(tmp_path / "absent"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    found = json.loads(cli("doctor", "--json").stdout)
    assert found["devices"][0]["name"] == "cpu"
    assert found["memory_bytes"] > 0 and found["disk_bytes"] > 0 and found["threads"]["cores"] >= 1
    assert found["versions"]["torch"] and found["extras"]["rl"]["for"]
    assert found["extras"]["export"]["missing"] == ["onnxscript"]
    assert any("archgrad[export]" in one and "onnxscript" in one for one in found["missing"])
    assert any("which is no folder" in one for one in found["missing"])
    assert all(one["readable"] or one["why"] for one in found["energy"].values())
    done = cli("doctor")
    assert done.exit_code == 0
    assert "missing:" in done.stdout and "ONNX files" in done.stdout and "GiB free here" in done.stdout
    monkeypatch.setenv("ARCHGRAD_DATA", str(tmp_path))
    assert not any("ARCHGRAD_DATA" in one for one in json.loads(cli("doctor", "--json").stdout)["missing"])


def test_doctor_knows_every_extra() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert set(EXTRAS) == set(tomllib.loads(text)["project"]["optional-dependencies"]) - {"dev"}
