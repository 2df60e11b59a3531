"""Hostile inputs of the command line, drawn with a seed: damaged run folders, data, weights, configurations, options.

Each input goes to a command, in this process's children. It must end in status 0 or 2 within ten seconds of the
processor, without a traceback, and without having executed what a pickle or a path in it asks for.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

CPU_SECONDS, CLOCK_SECONDS, A_CHILD = 10, 300, 100
MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.last = nn.Linear(8, classes)

    def forward(self, x):
        return self.last(torch.relu(self.body(x)).mean((2, 3)))
"""
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**200, 1e308, -1e308, 1e-320, float("nan"), float("inf"), "", "nan",
    "../../../etc/passwd", "/dev/zero", "\x00", "a" * 5000, "é\ud800", "\x1b[2J", "<script>window.evil=1</script>",
    "{{7*7}}", [], {}, [[]], [0, 0], {"a": {}}, [[[[[[[[[]]]]]]]]], [None], {"": None}, "os:system", "macs=0.5",
]  # fmt: skip
WORDS = [
    "0", "-1", "nan", "inf", "1e999", "9" * 400, "", " ", "\x00", "\u00e9\ud800", "a" * 100_000, "/dev/zero", "/",
    "/dev/null", ".", "..", "~", "--", "-", "--help", "*", "%s%n", "{{7*7}}", "$(touch canary)", "; touch canary",
    "os:system", "builtins:exec", "net.py:Net", "net.py:nothing", "nothing.py:Net", "timm:nothing", "data.npz",
    "images", "digits", "run", "macs=0.5", "macs=nan", "macs=0.5,0.25", "params=1e400", "onnx_ms=0", "peak_bytes=-1",
    "latency_ms=1", "adam", "sgd", "flip,crop=-1", "crop=99999999", "imagenet", "none", "0.5/0.5", "0/0",
    "1,3,224,224", "cuda:99", "cpu", "unas", "darts", "monas", "[1,2", "{a: 1", "\u202e", "1,2,3", "true", "1.5",
    "run/record.json", "config.yaml",
]  # fmt: skip
# The commands that read a run folder, and how often: those that train or export take most of the time.
OF_A_RUN = {
    "runs": 40, "report": 15, "compare": 12, "board": 15, "resume": 6, "latency": 4, "export": 2, "package": 2,
    "train": 2, "slim": 1, "int8": 1,
}  # fmt: skip


class Canary:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "executed")


def command(*arguments: str | Path) -> tuple[int, str, BaseException | None]:
    """Status, output, and what was raised and not explained, of a command in this process."""
    from typer.testing import CliRunner

    from archgrad.cli.app import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="archgrad")
    raised = result.exception if not isinstance(result.exception, SystemExit) else None
    return result.exit_code, result.output, raised


def material(place: Path) -> None:
    """What inputs are made of: code, data, weights, a configuration, and folders of runs that have ended."""
    (place / "net.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = (rng.normal(size=(60, 1, 8, 8)) + y[:, None, None, None]).astype(np.float32)
    np.savez(place / "data.npz", x=x, y=y)
    for name, kind in (("a", "png"), ("b", "jpg"), ("c", "tiff")):
        (place / "images" / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "images" / name / f"{number}.{kind}")
    (place / "config.yaml").write_text("data: data.npz\nlimit: macs=0.5\nsteps: 2\nbatch_size: 18\nonnx: false\n")
    sys.path.insert(0, str(place))
    import net

    torch.save(net.Net().state_dict(), place / "weights.pt")
    shared = ("--steps", "4", "--batch-size", "18", "--threads", "1")
    runs: list[tuple[str, ...]] = [
        ("slim", "net.py:Net", "data.npz", "--limit", "macs=0.5", *shared, "--out", "run"),
        ("slim", "net.py:Net", "data.npz", "--limit", "macs=0.75,0.5", "--steps", "20", *shared[2:], "--no-onnx",
         "--out", "front"),
        ("search", "--data", "data.npz", "--cells", "3", "--channels", "2", *shared, "--no-onnx", "--out", "search"),
        ("export", "run", "--int8"), ("package", "run", "--out", "run/package"),
        # So that the children have what these load.
        ("report", "run"), ("compare", "run", "search"), ("resume", "run"),
    ]  # fmt: skip
    for given in runs:
        status, output, raised = command(*given)
        if status or raised is not None:
            raise RuntimeError(f"{' '.join(given)} ended with {status}: {output}") from raised
    # One that was stopped: its newest checkpoint is that of its first step.
    shutil.copytree("run", "stopped")
    body = json.loads(Path("stopped/run.json").read_text())
    Path("stopped/run.json").write_text(json.dumps({**body, "status": "running", "finished": None}))
    for path in Path("stopped").glob("network*"):
        path.unlink()
    for path in Path().glob("*/lock"):
        path.unlink()  # it would be one for all


def damaged(raw: bytes, draw: random.Random) -> bytes:
    """Bytes cut, flipped, overwritten, doubled, or with a number in them made huge."""
    content = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(max(1, len(content)))
        kind = draw.choice(("cut", "flip", "write", "repeat", "huge", "insert"))
        if kind == "cut":
            del content[at:]
        elif kind == "flip" and content:
            content[at] ^= 1 << draw.randrange(8)
        elif kind == "repeat":
            content[at:at] = bytes(content[at : at + 200]) * draw.randint(1, 50)
        elif kind == "huge":
            content[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"9999"])
        else:
            end = at + 9 if kind == "write" else at
            content[at:end] = draw.randbytes(9)
    return bytes(content)


def spoilt(body: Any, draw: random.Random) -> Any:
    """A JSON value with hostile values, or keys, in some places of it."""
    for _ in range(draw.randint(1, 3)):
        here = body
        while isinstance(here, dict | list) and here:
            key = draw.choice([*here] if isinstance(here, dict) else range(len(here)))
            below = here[key]
            if isinstance(below, dict | list) and below and draw.random() < 0.7:
                here = below
                continue
            if isinstance(here, dict) and draw.random() < 0.2:
                here[str(draw.choice(VALUES))] = here.pop(key)
            else:
                here[key] = copy.deepcopy(draw.choice(VALUES))
            break
        else:
            body = copy.deepcopy(draw.choice(VALUES))
    return body


def replaced(path: Path, draw: random.Random, canary: Path) -> str:
    """Put something else in a file's place; what."""
    kind = draw.choice(
        ("empty", "folder", "pipe", "device", "loop", "pickle", "torch pickle", "gone", "noise", "bomb")
    )
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Canary(canary)))
    elif kind == "torch pickle":
        torch.save({"state_dict": Canary(canary), "weight": torch.ones(1)}, path)
    elif kind == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", bytes(10**7))
    elif kind != "gone":
        path.write_bytes(b"" if kind == "empty" else draw.randbytes(300))
    return kind


def change(path: Path, draw: random.Random, canary: Path) -> str:
    """Change one file; how."""
    if draw.random() < 0.2:
        return replaced(path, draw, canary)
    raw = path.read_bytes()
    path.unlink()  # a link to the material
    if path.suffix in (".json", ".jsonl") and draw.random() < 0.8:
        text = raw.decode(errors="replace")  # of a file that was changed before
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        with contextlib.suppress(ValueError, IndexError):
            at = draw.randrange(len(lines))
            lines[at] = json.dumps(spoilt(json.loads(lines[at]), draw))
            path.write_text("\n".join(lines) + "\n")
            return "spoilt"
    path.write_bytes(damaged(raw, draw))
    return "damaged"


def of_a_run(draw: random.Random, canary: Path) -> tuple[str, list[str]]:
    """A changed run folder, and a command that reads it."""
    name = draw.choice(("run", "run", "stopped", "front", "search"))
    files = sorted(path for path in Path(name).rglob("*") if path.is_file() and path.suffix != ".html")
    # The small files that say what a run is are as often drawn as all others together.
    likely = [path for path in files if path.suffix in (".json", ".jsonl", ".safetensors")]
    told = []
    for _ in range(draw.choice((1, 1, 2))):
        path = draw.choice(likely if draw.random() < 0.7 else files)
        if path.is_file():
            told.append(f"{path}: {change(path, draw, canary)}")
    to = draw.choices([*OF_A_RUN], [*OF_A_RUN.values()])[0]
    given = {
        "export": ["export", name, "--out", "out.onnx"], "int8": ["export", name, "--int8", "--out", "out.onnx"],
        "package": ["package", name, "--out", "out", *draw.choice(([], ["--int8"]))],
        "compare": ["compare", name, "search", "--out", "out.html"], "runs": ["runs", "."],
        "train": ["train", f"{name}/architecture.json", "data.npz", "--steps", "1", "--no-onnx", "--out", "out"],
        "slim": ["slim", "net.py:Net", "data.npz", "--limit", "macs=0.5", "--steps", "4", "--batch-size", "18",
                 "--threads", "1", "--out", name],
        "latency": ["latency", f"{name}/network.onnx", "--repeats", "1"],
    }  # fmt: skip
    return "; ".join(told), given.get(to, [to, name])


def of_data(draw: random.Random, canary: Path) -> tuple[str, list[str]]:
    """Changed arrays or images, and a command that reads them."""
    name = draw.choice(("data.npz", "images"))
    if name == "images":
        paths = sorted(path for path in Path(name).rglob("*") if path.is_file())
        told = [f"{path}: {change(path, draw, canary)}" for path in draw.sample(paths, 2)]
    elif draw.random() < 0.5:
        told = [change(Path(name), draw, canary)]
    else:
        arrays = dict(np.load(name))
        shapes = [(0,), (60,), (1, 60), (60, 0), (60, 1, 8, 8), (2,), (), (60, 1, 1, 1, 1), (59,)]
        kinds: list[Any] = [np.float64, np.float16, np.int8, np.uint64, bool, complex, "U3", "S2", "M8[s]", object]
        key, kind = draw.choice(["x", "y"]), draw.choice(kinds)
        array = np.full(draw.choice(shapes), draw.choice([0, 1, 255, -1, 1e30, float("nan")])).astype(float)
        with contextlib.suppress(ValueError, OverflowError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = array.astype(kind)
        arrays[draw.choice([key, key, "other", "x_train"])] = array
        Path(name).unlink()
        with contextlib.suppress(ValueError):
            np.savez(name, **arrays)
        told = [f"{key} {array.shape} {array.dtype}"]
    more = draw.choice(([], ["--skip-corrupt"], ["--size", "8"], ["--normalize", "none"]))
    to = [["slim", "net.py:Net", name, "--dry-run"], ["init", "net.py:Net", name, "--out", "out"],
          ["train", "net.py:Net", name, "--steps", "1", "--no-onnx", "--out", "out"]]  # fmt: skip
    given = draw.choices(to, (8, 1, 1))[0]
    return "; ".join(told), [*given, *(more if given[0] != "init" else [])]


def of_weights(draw: random.Random, canary: Path) -> tuple[str, list[str]]:
    """Changed weights or a changed configuration."""
    path = Path(draw.choice(("weights.pt", "run/network.safetensors", "config.yaml", "run/network.pt2")))
    how = change(path, draw, canary)
    if path.suffix == ".yaml":
        return f"{path}: {how}", ["slim", "net.py:Net", "--config", str(path), "--dry-run"]
    if path.suffix == ".pt2":
        return f"{path}: {how}", ["slim", str(path), "data.npz", "--dry-run"]
    return f"{path}: {how}", ["slim", "net.py:Net", "data.npz", "--weights", str(path), "--dry-run"]


def of_options(draw: random.Random, canary: Path) -> tuple[str, list[str]]:
    """A command line of words that are wrong, or not meant so."""
    import typer

    from archgrad.cli.app import app

    commands: Any = typer.main.get_command(app)
    name = draw.choice(sorted(commands.commands))
    options = [option for parameter in commands.commands[name].params for option in parameter.opts]
    flags = [option for option in options if option.startswith("--")]
    arguments = [draw.choice(WORDS) for _ in range(draw.choice((0, 1, 1, 2, 2, 3)))]
    for _ in range(draw.randint(0, 3)):
        arguments += [draw.choice(flags), *([draw.choice(WORDS)] if draw.random() < 0.8 else [])]
    if draw.random() < 0.5:
        draw.shuffle(arguments)
    # What would train for long, or serve for ever, is only planned.
    if "--dry-run" in flags:
        arguments.append("--dry-run")
    elif name in ("demo", "control", "score", "train", "board"):
        arguments = [*arguments, "--no-such-option"] if draw.random() < 0.2 else ["--help", *arguments]
    return "", [name, *arguments]


KINDS: dict[str, tuple[Callable[[random.Random, Path], tuple[str, list[str]]], float]] = {
    "run folder": (of_a_run, 0.4), "data": (of_data, 0.25), "weights": (of_weights, 0.15),
    "options": (of_options, 0.2),
}  # fmt: skip


def late(number: int, frame: object) -> None:
    raise TimeoutError(f"more than {CPU_SECONDS} s of the processor, or {CLOCK_SECONDS} s")


def attempt(number: int, seed: int, good: Path) -> dict[str, Any]:
    """The row of one input, in a copy of the material."""
    draw, began = random.Random(f"{seed} {number}"), time.process_time()
    kind = draw.choices([*KINDS], [weight for _, weight in KINDS.values()])[0]
    with tempfile.TemporaryDirectory() as place:
        here = Path(place) / "here"
        shutil.copytree(good, here, copy_function=os.link)
        with contextlib.chdir(here):
            canary = here / "canary"
            what, given = KINDS[kind][0](draw, canary)
            row = {"number": number, "kind": kind, "what": what[:300], "command": " ".join(given)[:300]}
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            signal.setitimer(signal.ITIMER_REAL, CLOCK_SECONDS)
            try:
                if given[0] == "board" and kind == "run folder":
                    from archgrad.report.board import Board

                    status, output, raised = 0, str(Board(Path(given[1])).page()), None
                else:
                    status, output, raised = command(*given)
            except BaseException as error:  # noqa: BLE001 - told in the row
                status, output, raised = -1, "", error
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            found = f"{type(raised).__name__}: {raised}"[:300] if raised else f"status {status}"
            if status in (0, 2) and not raised and "Traceback (most recent" in output:
                found = "a traceback in the output"
            executed = canary.exists()
    return row | {"found": "executed" if executed else found, "seconds": round(time.process_time() - began, 2)}


def batch(numbers: range, out: Path, attempt: Callable[[int], dict[str, Any]]) -> None:
    """Try some inputs in a child; one that takes the child with it is a row too."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        signal.signal(signal.SIGPROF, late)
        signal.signal(signal.SIGALRM, late)
        try:  # never back into the parent's code, which would remove the material
            with contextlib.redirect_stderr(io.StringIO()), out.open("a") as lines:
                for number in numbers:
                    lines.write(json.dumps({"number": number, "kind": "unknown", "found": "died"}) + "\n")
                    lines.flush()
                    lines.write(json.dumps(attempt(number)) + "\n")
                    lines.flush()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def batches(count: int, out: Path, attempt: Callable[[int], dict[str, Any]]) -> None:
    """Try so many inputs, those after the ones that `out` has; rows are appended to it."""
    while (start := max(rows_of(out), default=-1) + 1) < count:
        batch(range(start, min(count, start + A_CHILD)), out, attempt)


def rows_of(out: Path) -> dict[int, dict[str, Any]]:
    """The last row of each input."""
    lines = out.read_text().splitlines() if out.exists() else []
    return {row["number"]: row for row in map(json.loads, lines)}


def inputs(count: int, seed: int, out: Path) -> list[dict[str, Any]]:
    """Try so many inputs, those after the ones that `out` has; rows are appended to it."""
    for name in ("archgrad.cli.commands.slim", "archgrad.cli.commands.train", "archgrad.cli.commands.export"):
        __import__(name)
    with tempfile.TemporaryDirectory() as place:
        good = Path(place) / "good"
        good.mkdir()
        with contextlib.chdir(good):
            material(good)
        batches(count, out, lambda number: attempt(number, seed, good))
    return [row for _, row in sorted(rows_of(out).items())]


if __name__ == "__main__":
    inputs(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
