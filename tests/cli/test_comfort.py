"""What makes the command line comfortable: dry runs, init, completion, and what a mistyped name may have meant."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pty
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
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
    assert f"at most {plan['before']['macs'] / 2:,.0f} MACs\n" in text and "e+" not in text
    assert "2 groups; frozen: 1 layer\n" in text
    assert "nothing was written" in text and "12, at 3 an epoch" in text and "runs/slim (free)" in text


def test_a_dry_run_foretells_the_time_that_a_measured_limit_takes(cli: Callable, wide: Path) -> None:
    slim = ["slim", f"{wide}/net.py:Net", wide / "data.npz", "--steps", "4", "--batch-size", "16"]
    search = ["search", "--data", wide / "data.npz", "--cells", "3", "--channels", "2", "--steps", "20"]
    for options, least in ((slim, 10), (search, 100)):
        plan = json.loads(cli(*options, "--limit", "latency_ms=1000", "--dry-run", "--json").stdout)
        assert plan["seconds"] > plan["limit_seconds"] > least * 1e-3, "timed for more than a millisecond"
        assert "to measure networks for the limit" in cli(*options, "--limit", "latency_ms=1000", "--dry-run").stdout
    plan = json.loads(cli(*slim, "--limit", "macs=0.5", "--dry-run", "--json").stdout)
    assert plan["limit_seconds"] == 0.0


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
    words = ["transfer", f"{wide}/net.py:Net", data, data, "--shots", "2", "--steps", "30", "--dry-run", "--json"]
    plan = json.loads(cli(*words).stdout)
    assert (plan["command"], plan["steps"], plan["limit"]) == ("transfer", 30, None)


def test_a_dry_run_refuses_what_the_run_would(refused: Callable[..., str], wide: Path) -> None:
    said = refused("slim", f"{wide}/net.py:Net", wide / "data.npz", "--limit", "macs=0.01", "--dry-run")
    assert "the lowest reachable is" in said
    assert "leave --dry-run out" in refused("search", "--method", "freenas", "--dry-run")
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    "options",
    [
        "slim {net} {data} --limit macs=0.5 --steps 1",
        "slim {net} {data} --limit macs=0.5 --steps 20 --gate-epochs 100",
        "slim {net} {data} --limit macs=0.75,0.5 --steps 2",
        "slim {net} {data} --limit macs=0.5 --steps 20 --pretrained",
        "slim {net} {data} --limit macs=0.5 --out {net_file}",
        "slim {net} {data} --limit macs=0.5 --out {net_file}/below",
        "search --data digits --space darts --cells 3 --channels 4 --method unas --steps 2",
        "search --data digits --space mobile --method toponas --steps 20",
        "search --data digits --space darts --cells 3 --channels 4 --method darts --limit latency_ms=1 --steps 20",
        "transfer {net} {data} {data} --steps 20 --shots 50",
        "transfer {net} {data} {data} --steps 1",
    ],
)
def test_a_dry_run_and_the_command_refuse_with_the_same_words(
    refused: Callable[..., str], wide: Path, options: str
) -> None:
    places = {"net": f"{wide}/net.py:Net", "net_file": f"{wide}/net.py", "data": f"{wide}/data.npz"}
    words = options.format(**places).split()
    said = refused(*words, "--dry-run")
    assert not list(Path.cwd().iterdir())
    assert said.strip() in refused(*words)


def test_init_writes_what_slim_takes_and_a_script(cli: Callable, wide: Path) -> None:
    seen = json.loads(cli("init", f"{wide}/net.py:Net", wide / "data.npz", "--out", "mine", "--json").stdout)
    assert seen["input"] == [[1, 1, 8, 8]] and seen["limit"] == "macs=0.5"
    assert seen["gates"] == {"first": 8, "second": 8} and list(seen["frozen"]) == ["last"]
    held = yaml.safe_load(Path("mine/slim.yaml").read_text())
    options = resolve(SlimOptions, {}, Path("mine/slim.yaml"))
    assert options.limit == ["macs=0.5"] and options.model.endswith("net.py:Net") and set(held) >= {"model", "data"}
    script = Path("mine/slim.py").read_text()
    ast.parse(script)
    plain = [line for line in script.splitlines() if not line.startswith("# What")]
    shown = "\n".join(line.removeprefix("# ") for line in plain if "torch" in line)
    assert shown.index("import torch") < shown.index("torch.load("), "what is uncommented together runs"
    assert "net = Net(classes=3)" in script and f"sys.path.insert(0, {str(wide)!r})" in script


def test_the_script_of_init_runs_as_it_stands_from_anywhere(
    cli: Callable, wide: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """On trained weights, with the normalization that was asked for; of the script only the epochs are changed."""
    (wide / "bright.py").write_text(BRIGHT)
    torch.save({"model": runpy.run_path(str(wide / "bright.py"))["Net"](2).state_dict()}, wide / "trained.pt")
    given = ("--weights", wide / "trained.pt", "--normalize", "imagenet", "--out", "mine")
    cli("init", f"{wide}/bright.py:Net", f"{wide}/bright.py:data", *given)
    script = Path("mine/slim.py").absolute()
    assert "normalize='imagenet'" in script.read_text() and "pretrained=True" in script.read_text()
    brief = script.read_text().replace("pretrained=True", "pretrained=True, check_weights=False")
    script.write_text(brief.replace("epochs=60", "epochs=2"))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run([sys.executable, str(script)], cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "limit on MACs" in done.stdout and not list(elsewhere.iterdir())
    assert {"report.html", "record.json"} <= {one.name for one in Path("mine/run-of-script").iterdir()}
    options = resolve(SlimOptions, {}, Path("mine/slim.yaml"))
    assert options.weights == str(wide / "trained.pt") and options.normalize == "imagenet"


def test_init_asks_for_the_normalization_of_trained_weights(
    cli: Callable, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights score by the brightness of images as they are stored, which another normalization takes away."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bright.py").write_text(BRIGHT)
    bright = runpy.run_path(str(tmp_path / "bright.py"))
    torch.save(bright["Net"](2).state_dict(), tmp_path / "trained.pt")
    given = ("init", f"{tmp_path}/bright.py:Net", f"{tmp_path}/bright.py:data", "--weights", tmp_path / "trained.pt")
    said = refused(*given, "--out", "mine")
    assert "Give --normalize with one of these" in said and "none 1" in said and not Path("mine").exists()
    cli(*given, "--out", "mine", "--normalize", "none")
    assert "normalize: none" in Path("mine/slim.yaml").read_text()


BRIGHT = """
import numpy as np
import torch
import typer


class Net(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.last = torch.nn.Linear(48, 8), torch.nn.Linear(8, classes)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([1.0] * 4 + [-1.0] * 4)[:, None].expand(8, 48) / 48)
            self.first.bias.zero_()
            self.last.weight.copy_(torch.tensor([[-1.0] * 4 + [0.01] * 4, [1.0] * 4 + [-0.01] * 4]))
            self.last.bias.copy_(torch.tensor([4 * 0.8, -4 * 0.8]))

    def forward(self, x):
        return self.last(torch.relu(self.first(x.flatten(1))))


def data():
    rng = np.random.default_rng(0)
    y = (np.arange(300) % 10 > 0).astype(int)
    x = (0.75 + 0.1 * y)[:, None, None, None] * 255 + rng.normal(0, 1, (300, 3, 4, 4))
    return x.clip(0, 255).astype(np.uint8), y
"""


def test_init_writes_nothing_over(cli: Callable, refused: Callable[..., str], wide: Path) -> None:
    Path("mine").mkdir()
    Path("mine/slim.py").write_text("mine")
    said = refused("init", f"{wide}/net.py:Net", wide / "data.npz", "--out", "mine")
    assert "mine/slim.py" in said and "nothing is written over" in said
    assert Path("mine/slim.py").read_text() == "mine" and not Path("mine/slim.yaml").exists()
    Path("mine/slim.py").unlink()
    given = ("init", f"{wide}/net.py:Net", wide / "data.npz", "--out", "mine")
    assert cli(*given).exit_code == 0
    Path("mine/slim.py").unlink()  # as where it was killed between the two
    assert cli(*given).exit_code == 0 and Path("mine/slim.py").exists()
    assert "nothing is written over" in refused(*given)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (("search", "--method", "dart", "--data", "digits"), "Did you mean darts?"),
        (("search", "--space", "nasbench", "--data", "digits"), "Did you mean nasbench201?"),
        (("slim", "net.py:Net", "digits", "--limit", "latency=4"), "Did you mean latency_ms?"),
        (("slim", "net.py:Net", "digits", "--limit", "openvino_kb=40"), "Give onnx_kb"),
        (("slim", "net.py:Net", "digits", "--limit", "openvino_int8_kb=40"), "Give onnx_int8_kb"),
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


def commands() -> dict[str, set[str]]:
    """Every command with its options."""
    from archgrad.cli.app import app

    group = typer.main.get_command(app)
    return {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }


@pytest.mark.parametrize("name", [name for name in commands() if name != "board"])  # which serves pages
def test_every_command_prints_one_object_on_request(name: str) -> None:
    assert "--json" in commands()[name]


@pytest.mark.parametrize("quiet", [False, True], ids=["colors", "NO_COLOR"])
def test_no_color_is_respected_on_a_terminal(quiet: bool) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update({"TERM": "xterm-256color", **({"NO_COLOR": "1"} if quiet else {})})
        os.execv(sys.executable, [sys.executable, "-m", "archgrad", "slim", "--nope"])
    written = b""
    with contextlib.suppress(OSError):  # how a terminal says that the program has ended
        while part := os.read(terminal, 4096):
            written += part
    os.waitpid(pid, 0)
    colored = re.search(rb"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|9[0-7])m", written)
    assert b"nope" in written and bool(colored) is not quiet
