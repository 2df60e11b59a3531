"""DATA as a function of the user's: what it may give, resuming from elsewhere, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from archgrad.cli.inputs.data import load
from archgrad.cli.schemas.options import BatchOptions
from archgrad.errors import ConfigError, DataError, ModelError

Cli = Callable[..., object]

CODE = """
import torch
import archgrad as ag

def part(n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 8, 8, generator=g)
    return x, (x[:, 0].mean((1, 2)) > 0).long()

def arrays():
    return part(120, 0)

def parts():
    sizes = {"train": 80, "valid": 40, "test": 30}
    return {name: torch.utils.data.TensorDataset(*part(n, n)) for name, n in sizes.items()}

def drawn():
    x = torch.randn(60, 3)
    return x, torch.arange(60) % 2

def senses():
    y = torch.arange(60) % 2
    return ag.Modalities({"image": torch.rand(60, 1, 8, 8), "audio": torch.rand(60, 1, 16, 16)}, y)

def space(classes):
    inputs = {"image": ag.image_encoder(1), "audio": ag.audio_encoder(1)}
    return ag.fusion(inputs, classes=classes, widths={"4": (4,)})

class Items(torch.utils.data.Dataset):
    def __init__(self):
        self.x, self.y = part(60, 0)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])

def items():
    return Items()

class Choosing(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.choice = ag.OpChoice({"3": torch.nn.Conv2d(2, 4, 3), "relu": torch.nn.Conv2d(2, 4, 3)}, name="one")
        self.head = torch.nn.Linear(144, classes)

    def forward(self, x):
        return self.head(self.choice(x).flatten(1))

def wrong():
    return {"training": part(10, 0)}

def needs(path):
    return part(10, 0)

def fails():
    raise KeyError("no such column")

def nothing():
    return None

class Net(torch.nn.Sequential):
    def __init__(self, classes, in_channels):
        conv = torch.nn.Conv2d(in_channels, 16, 3)
        super().__init__(conv, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, classes))
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def task(name: str, **more: object) -> object:
    return load(name, BatchOptions.model_validate({"batch_size": 16, **more}))


def test_a_pair_of_arrays_a_dict_of_parts_and_named_inputs(code: Path) -> None:
    whole, split_steps, senses = (task(f"{code}:{name}") for name in ("arrays", "parts", "senses"))
    assert [whole.splits[part]["size"] for part in ("train", "valid", "test")] == [72, 24, 24]
    assert [split_steps.splits[part]["size"] for part in ("train", "valid", "test")] == [80, 40, 30]
    assert set(senses.example) == {"image", "audio"}


def test_what_it_draws_is_the_same_each_time_and_leaves_the_generators_alone(code: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, other = (task(f"{code}:drawn").stream(seed=0)(0)[0] for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("{code}:wrong", DataError, "gives a dict of \\['training'\\]"),
        ("{code}:needs", ModelError, "DATA .* needs the arguments path"),
        ("{code}:fails", ModelError, "raised KeyError: 'no such column' .*mine.py, line"),
        ("{code}:nothing", DataError, "train is a NoneType"),
        ("{code}:none", ConfigError, "has no 'none'"),
        ("{code}", ConfigError, "mine.py:FUNCTION"),
        ("{code}.py:load", ConfigError, "DATA: there is no file"),
        ("no_such_package.data:load", ConfigError, "DATA: there is no module 'no_such_package'"),
        ("no_such_folder", DataError, "no_such_folder"),
    ],
)
def test_what_is_no_data_is_refused(name: str, error: type[Exception], said: str, code: Path) -> None:
    with pytest.raises(error, match=said):
        task(name.format(code=code))


def test_options_for_folders_of_images_are_refused(code: Path) -> None:
    with pytest.raises(ConfigError, match="makes its own data"):
        task(f"{code}:arrays", size=8)


def test_a_path_that_exists_is_a_path(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(code.parent)
    (code.parent / "mine:arrays").mkdir()
    with pytest.raises(DataError, match="mine:arrays"):
        task("mine:arrays")


def test_slim_begins_in_one_folder_and_resumes_from_another(
    code: Path, cli: Callable, no_onnx: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(code.parent)
    begun = cli("slim", "mine.py:Net", "mine.py:parts", "--limit", "macs=0.9", "--steps", "8", "--out", "run")
    assert begun.exit_code == 0, begun.output
    assert json.loads(Path("run/command.json").read_text())["options"]["data"] == f"{code}:parts"
    monkeypatch.chdir("/")
    again = cli("resume", code.parent / "run")
    assert again.exit_code == 0, again.output


def test_named_inputs_are_searched(code: Path, cli: Callable, no_onnx: None) -> None:
    result = cli(
        "search", "--data", f"{code}:senses", "--space", f"{code}:space", "--method", "multimodal_random",
        "--trials", "2", "--steps", "8", "--batch-size", "16", "--out", code.parent / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


def test_workers_need_not_find_the_file(code: Path, cli: Callable, no_onnx: None) -> None:
    weights = []
    for workers in ([], ["--workers", "2"]):
        out = code.parent / f"run{len(weights)}"
        result = cli(
            "search", "--data", f"{code}:items", "--space", f"{code}:Choosing", "--method", "random_search",
            "--trials", "2", "--steps", "8", "--batch-size", "16", "--out", out, *workers,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        weights.append((out / "network.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_init_writes_a_script_that_runs(code: Path, cli: Callable) -> None:
    result = cli("init", f"{code}:Net", f"{code}:parts", "--out", code.parent / "made")
    assert result.exit_code == 0, result.output
    assert "# size" not in (code.parent / "made" / "slim.yaml").read_text()
    script = (code.parent / "made" / "slim.py").read_text()
    quick = script.replace("epochs=60", "steps=8, progress=False").replace("ag.export_onnx", "print")
    (code.parent / "quick.py").write_text(quick)
    ran = subprocess.run(
        [sys.executable, "quick.py"], cwd=code.parent, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


METRICS = """
import torch

def recall(logits, labels):
    return ((logits.argmax(1) == 1) & (labels == 1)).sum() / (labels == 1).sum().clamp(min=1)

class Hits:
    # Made with the number of classes; accumulates over the whole part.

    def __init__(self, num_classes):
        self.classes = num_classes
        self.reset()

    def reset(self):
        self.right = 0

    def update(self, logits, labels):
        assert logits.shape[1] == self.classes
        self.right += int((logits.argmax(1) == labels).sum())

    def compute(self):
        return torch.tensor(float(self.right))
"""


@pytest.mark.parametrize(
    ("metric", "score", "higher"),
    [
        (["{code}:recall"], "recall", True),
        (["{code}:Hits"], "Hits", True),
        (["loss"], "loss", False),
        ([], "accuracy", True),
    ],
)
def test_weights_of_classes_and_metric_of_a_classification(
    place: Path, tmp_path: Path, cli: Callable, no_onnx: None, metric: list[str], score: str, higher: bool
) -> None:
    (tmp_path / "mine.py").write_text(METRICS)
    words = [word.format(code=tmp_path / "mine.py") for word in metric]
    result = cli(
        "train", f"{place / 'net.py'}:Net", place / "data.npz", "--steps", "2", "--batch-size", "18", "--no-onnx",
        *(("--metric", *words) if words else ()), "--class-weight", "1,0.5,2", "--json", "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["score"] == {"name": score, "higher_is_better": higher} and score in record["after"]
    assert record["data"]["class_weight"] == [1.0, 0.5, 2.0]


def test_normalization_is_the_users(tmp_path: Path, cli: Callable, no_onnx: None) -> None:
    (tmp_path / "linear.py").write_text(
        "from torch import nn\ndef net(classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    for text, mean in (("0.25/0.5", [0.25]), ("none", [0.0])):
        result = cli(
            "train", f"{tmp_path}/linear.py:net", "digits", "--steps", "1", "--normalize", text, "--json",
            "--out", tmp_path / text.replace("/", "-"),
        )  # fmt: skip
        normalization = json.loads(result.stdout)["data"]["normalization"]
        assert normalization["mean"] == mean


TASK = """
import torch
import archgrad as ag

class Level:
    '''The mean of a signal: a regression, judged by its error.'''

    higher_is_better = False

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(64, 1, 8, 8, generator=generator)
        self.y = self.x.mean((1, 2, 3), keepdim=False)[:, None]
        self.example, self.steps_per_epoch = self.x[:1], 4

    def stream(self, *, seed, rank=0, world=1):
        return lambda step: (self.x[step % 4 * 16 : step % 4 * 16 + 16], self.y[step % 4 * 16 : step % 4 * 16 + 16])

    def loss(self, network, batch):
        return torch.nn.functional.mse_loss(network(batch[0]), batch[1])

    def evaluate(self, network, part="valid"):
        mode = network.training
        network.eval()
        with torch.no_grad():
            error = float(self.loss(network, (self.x, self.y)))
        network.train(mode)
        return {"mse": error}

    def split(self, fraction):
        return self, self

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(1, 8, 3), torch.nn.Linear(8, 1)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))

class Space(torch.nn.Module):
    def __init__(self):
        super().__init__()
        kinds = {"3": torch.nn.Conv2d(1, 8, 3, padding=1), "1": torch.nn.Conv2d(1, 8, 1)}
        self.choice, self.head = ag.OpChoice(kinds, name="conv"), torch.nn.Linear(8, 1)

    def forward(self, x):
        return self.head(torch.relu(self.choice(x)).mean((2, 3)))

def number():
    return 3
"""


@pytest.fixture
def level(tmp_path: Path) -> Path:
    (tmp_path / "level.py").write_text(TASK)
    return tmp_path / "level.py"


@pytest.mark.parametrize(
    "command",
    [
        ["slim", "{code}:Net", "--limit", "macs=0.7", "--steps", "12"],
        ["train", "{code}:Net", "--steps", "4", "--optimizer", "adam", "--schedule", "constant"],
        ["search", "--space", "{code}:Space", "--method", "darts", "--steps", "4"],
    ],
    ids=lambda command: command[0],
)
def test_a_task_of_ones_own_is_run_and_resumed(
    level: Path, cli: Callable, no_onnx: None, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    words = [word.format(code="level.py") for word in command]
    monkeypatch.chdir(level.parent)
    result = cli(*words, "--task", "level.py:Level", "--out", "run", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert "mse" in record["after"] and record["score"] == {"name": "mse", "higher_is_better": False}
    assert json.loads(Path("run/command.json").read_text())["options"]["task"] == f"{level}:Level"
    monkeypatch.chdir("/")
    again = cli("resume", level.parent / "run", "--json")
    assert json.loads(again.stdout)["after"] == record["after"]


def test_what_is_no_task_is_refused(level: Path, refused: Callable[..., str]) -> None:
    out = ("--out", level.parent / "run")
    said = refused("train", f"{level}:Net", "--task", f"{level}:number", *out)
    assert "which lacks 5 of what it needs: example" in said
    assert "has no 'none'" in refused("train", f"{level}:Net", "--task", f"{level}:none", *out)
    said = refused("search", "--space", "darts", "--task", f"{level}:Level", *out)
    assert "the task does not say how many there are" in said
