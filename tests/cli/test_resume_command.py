"""Stopped by a signal and resumed: the exit statuses, and the same network bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SLIM


def _process(*arguments: str | Path, stop_at: int, by: signal.Signals) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "JOB_STOP_AT": str(stop_at), "JOB_STOP_BY": str(int(by))}
    command = [sys.executable, "-m", "archgrad", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_stopped_twice_damaged_and_resumed_is_the_run_never_stopped(
    slimmed: Path, place: Path, tmp_path: Path, cli: Callable, no_onnx: None
) -> None:
    out = tmp_path / "run"
    first = _process(
        "slim",
        f"{place / 'net.py'}:Net",
        place / "data.npz",
        *SLIM,
        "--out",
        out,
        stop_at=24,
        by=signal.SIGTERM,
    )
    assert first.returncode == 143, first.stderr
    assert "Stopped by SIGTERM" in first.stderr
    assert f"archgrad resume {out}" in first.stderr
    assert "Traceback" not in first.stderr
    assert not (out / "network.safetensors").exists()

    moved = tmp_path / "moved"
    out.rename(moved)
    second = _process("resume", moved, stop_at=28, by=signal.SIGINT)
    assert second.returncode == 130, second.stderr
    assert "Stopped by SIGINT" in second.stderr
    assert f"archgrad resume {moved}" in second.stderr

    newest = max((moved / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-100])
    result = cli("resume", moved, "--json")
    assert result.exit_code == 0, result.output
    assert "Fell back to what was saved before it" in str(json.loads(result.stdout)["notes"])
    assert 'variable JOB_STOP_AT (given nothing, in the folder "28")' in str(json.loads(result.stdout)["notes"])
    for name in ("network.safetensors", "architecture.json"):
        assert (moved / name).read_bytes() == (slimmed / name).read_bytes()


def test_a_signal_before_the_run_began_says_so(place: Path, tmp_path: Path) -> None:
    # The first training-mode call of the network is made while its channels are followed.
    early = tmp_path / "early.py"
    early.write_text("import os, signal\ndef net():\n    os.kill(os.getpid(), signal.SIGINT)\n")
    done = _process(
        "slim", f"{early}:net", place / "data.npz", "--out", tmp_path / "run", stop_at=0, by=signal.SIGINT
    )
    assert done.returncode == 130
    assert "Nothing was begun" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_finished_run_is_resumed_to_the_same_end(slimmed: Path, tmp_path: Path, cli: Callable) -> None:
    again = shutil.copytree(slimmed, tmp_path / "again")
    (again / "network.safetensors").unlink()
    result = cli("resume", again)
    assert result.exit_code == 0, result.output
    assert "slimmed by DNAL" in result.stdout
    assert (again / "network.safetensors").read_bytes() == (slimmed / "network.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is no folder of a run that the command line began"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"command": "dance", "directory": "/", "options": {}}', "'dance' is no command"),
        ('{"command": "slim", "directory": "/", "options": {"epochs": 3}}', "MODEL is missing"),
    ],
)
def test_what_is_no_run_folder_is_refused(
    tmp_path: Path, refused: Callable[..., str], text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / "command.json").write_text(text)
    assert said in refused("resume", tmp_path)


@pytest.mark.parametrize("option", ["model", "data", "task"])
def test_code_inside_the_run_folder_is_not_run_and_other_code_is_named(
    place: Path, tmp_path: Path, refused: Callable[..., str], option: str
) -> None:
    """A stranger's folder brings its own code along."""
    folder, ran = tmp_path / "run", tmp_path / "ran"
    folder.mkdir()
    code = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n"
    options = {"model": f"{place / 'net.py'}:Net", "data": str(place / "data.npz"), "steps": 2}
    options |= {"data": None} if option == "task" else {}
    for directory, name in ((folder, "run/own.py"), (tmp_path, "own.py")):
        (directory / "own.py").write_text(code)
        body = {"command": "slim", "directory": str(tmp_path), "options": options | {option: f"{name}:made"}}
        (folder / "command.json").write_text(json.dumps(body))
        message = refused("resume", folder)
        if directory == folder:
            assert f"names code inside the run's own folder, {folder / 'own.py'}" in message and not ran.exists()
        else:
            assert f"resume runs code of {tmp_path / 'own.py'}" in message.replace(f"{place / 'net.py'}, ", "")
            assert ran.exists(), "the negative control: this code is run"
