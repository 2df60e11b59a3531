"""What makes the command line comfortable: dry runs, init, completion, and what a mistyped name may have meant."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from archgrad.cli.schemas.configuration import resolve
from archgrad.cli.schemas.slim import SlimOptions


@pytest.fixture
def wide(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, for runs whose paths are relative."""
    monkeypatch.chdir(tmp_path)
    return place


def test_a_dry_run_of_slim_says_what_slim_does_and_writes_nothing(cli: Callable, wide: Path) -> None:
    options = [f"{wide}/net.py:Net", wide / "data.npz", "--limit", "macs=0.5", "--epochs", "4", "--batch-size", "16"]
    plan = json.loads(cli("slim", *options, "--dry-run", "--json").stdout)
    assert not list(Path.cwd().iterdir())
    assert (plan["steps"], plan["steps_per_epoch"]) == (4 * 3, 3)
    assert plan["data"] == {"train": 54, "valid": 18, "test": 18}
    assert plan["limit"]["bound"] == pytest.approx(0.5 * plan["before"]["macs"])
    assert plan["predicted_peak_bytes"] > 4 * plan["before"]["params"]
    assert 0 < plan["step_seconds"] <= plan["seconds"]
    assert "last" in plan["frozen"] and plan["gates"] == 2
    text = cli("slim", *options, "--dry-run").stdout
    assert "nothing was written" in text and "12, at 3 an epoch" in text and "runs/slim (free)" in text


def test_a_dry_run_tells_what_the_run_would_note_of_the_data(cli: Callable, wide: Path, tmp_path: Path) -> None:
    given = dict(np.load(wide / "data.npz"))
    given["x"][-30:] = given["x"][:30]
    np.savez(tmp_path / "shared.npz", **given)
    options = ["--limit", "macs=0.5", "--epochs", "1", "--batch-size", "16", "--dry-run", "--json"]
    plan = json.loads(cli("slim", f"{wide}/net.py:Net", tmp_path / "shared.npz", *options).stdout)
    assert any("so that scores are too good" in note for note in plan["notes"])


@pytest.mark.parametrize("method", ["darts", "random_search", "radars"])
def test_a_dry_run_of_search(cli: Callable, wide: Path, method: str) -> None:
    where = ["--space", f"{wide}/space.py:Space", "--data", wide / "data.npz", "--batch-size", "16"]
    plan = json.loads(cli("search", "--method", method, *where, "--steps", "20", "--dry-run", "--json").stdout)
    assert (plan["steps"], plan["search_steps"], plan["train_steps"]) == (20, 10, 10)
    assert (plan["predicted_peak_bytes"] is None) == (method == "radars")
    assert not list(Path.cwd().iterdir())


def test_a_dry_run_of_transfer(cli: Callable, wide: Path) -> None:
    data = wide / "data.npz"
    plan = json.loads(cli("transfer", f"{wide}/net.py:Net", data, data, "--dry-run", "--json", "--steps", "9").stdout)
    assert (plan["command"], plan["steps"], plan["limit"]) == ("transfer", 9, None)


def test_a_dry_run_refuses_what_the_run_would(refused: Callable[..., str], wide: Path) -> None:
    said = refused("slim", f"{wide}/net.py:Net", wide / "data.npz", "--limit", "macs=0.01", "--dry-run")
    assert "the lowest reachable is" in said
    assert "leave --dry-run out" in refused("search", "--method", "freenas", "--dry-run")
    assert not list(Path.cwd().iterdir())


def test_init_writes_what_slim_takes_and_a_script(cli: Callable, wide: Path) -> None:
    seen = json.loads(cli("init", f"{wide}/net.py:Net", wide / "data.npz", "--out", "mine", "--json").stdout)
    assert seen["input"] == [[1, 1, 8, 8]] and seen["limit"] == "macs=0.5"
    assert seen["gates"] == {"first": 8, "second": 8} and list(seen["frozen"]) == ["last"]
    held = yaml.safe_load(Path("mine/slim.yaml").read_text())
    options = resolve(SlimOptions, {}, Path("mine/slim.yaml"))
    assert options.limit == ["macs=0.5"] and options.model.endswith("net.py:Net") and set(held) >= {"model", "data"}
    script = Path("mine/slim.py").read_text()
    ast.parse(script)
    assert "net = Net(classes=3)" in script and f"sys.path.insert(0, {str(wide)!r})" in script


def test_the_script_of_init_slims(cli: Callable, wide: Path) -> None:
    cli("init", f"{wide}/net.py:Net", wide / "data.npz", "--out", "mine")
    script = Path("mine/slim.py")
    brief = (
        script.read_text()
        .replace("epochs=60", "epochs=2, progress=False")
        .replace(", folder='mine/run-of-script'", "")
    )
    lines = [line for line in brief.splitlines() if not line.startswith("ag.export_onnx")]
    exec(compile("\n".join(lines), str(script), "exec"), {"__name__": "script"})


def test_init_writes_nothing_over(cli: Callable, refused: Callable[..., str], wide: Path) -> None:
    Path("mine").mkdir()
    Path("mine/slim.py").write_text("mine")
    said = refused("init", f"{wide}/net.py:Net", wide / "data.npz", "--out", "mine")
    assert "mine/slim.py" in said and "nothing is written over" in said
    assert Path("mine/slim.py").read_text() == "mine" and not Path("mine/slim.yaml").exists()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (("search", "--method", "dart", "--data", "digits"), "Did you mean darts?"),
        (("search", "--space", "nasbench", "--data", "digits"), "Did you mean nasbench201?"),
        (("slim", "net.py:Net", "digits", "--limit", "latency=4"), "Did you mean latency_ms?"),
        (("slim", "net.py:Net", "digits", "--limit", "mac=0.5"), "Did you mean macs?"),
        (("score", "--sample", "2", "--proxy", "synflo"), "Did you mean synflow?"),
    ],
)
def test_what_a_mistyped_name_may_have_meant(refused: Callable[..., str], given: tuple[str, ...], meant: str) -> None:
    assert meant in refused(*given)


def test_mistyped_commands_and_options(cli: Callable) -> None:
    assert "slim" in cli("slm").output
    assert "--limit" in cli("slim", "a", "b", "--limti", "macs=0.5").output


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("archgrad sl", ["slim"]),
        ("archgrad search --method da", ["darts", "darts_prime"]),
        ("archgrad search --space m", ["mobile"]),
        ("archgrad score --proxy syn", ["synflow"]),
        ("archgrad slim a b --limit lat", ["latency_ms="]),
    ],
)
def test_a_shell_completes_names(typed: str, completed: list[str]) -> None:
    told = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_ARCHGRAD_COMPLETE": "complete_bash"}
    code = "from archgrad.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **told}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == completed


def test_help_never_loads_torch() -> None:
    code = (
        "import sys, typer.main\nfrom typer.testing import CliRunner\nfrom archgrad.cli.app import app\n"
        "for name in ('', *typer.main.get_command(app).commands):\n"
        "    done = CliRunner().invoke(app, [*filter(None, [name]), '--help'])\n"
        "    assert done.exit_code == 0 and 'Usage' in done.output, name\n"
        "assert not {'torch', 'numpy', 'scipy', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
