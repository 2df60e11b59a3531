"""Processes that are killed (SIGKILL), at random moments or at each of their file operations, and begun again.

Methods and tasks are those of the tests, tiny, with a checkpoint after every step; what they end in is compared, bit
by bit, with what the same program ends in when it is left alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from reliability_cases import Case, cases

# Of Python's audited events those that change files; the first argument names the file.
OPERATIONS = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink",
    "shutil.rmtree",
}  # fmt: skip


def result(folder: Path) -> dict[str, str]:
    """Digests of the networks that a folder holds."""
    paths = [path for kind in ("network*.safetensors", "*.onnx", "*.pt2") for path in folder.rglob(kind)]
    return {str(path.relative_to(folder)): hashlib.sha256(same_anywhere(path)).hexdigest() for path in sorted(paths)}


def same_anywhere(path: Path) -> bytes:
    """The bytes of a file; of a .pt2 file without the addresses of graphs that torch writes into it."""
    if path.suffix != ".pt2":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = [name for name in sorted(archive.namelist()) if not name.endswith("serialization_id")]
        return b"".join(re.sub(rb'graph_id\\*": \d+', b"", archive.read(name)) for name in names)


def forked(work: Callable[[], object]) -> Any:
    """A process that does this, silently."""

    def silent() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            work()

    process = multiprocessing.get_context("fork").Process(target=silent)
    process.start()
    return process


def killed(case: Case, folder: Path, *, moments: random.Random, seconds: float) -> int:
    """Begin a case in a process of its own again and again, killed at random, until it ends; how often it was."""
    kills = 0
    while True:
        process = forked(functools.partial(case, folder))
        process.join(moments.uniform(0.0, seconds))
        if process.exitcode is None:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            kills += 1
            seconds *= 1.3  # so that it ends
        elif process.exitcode == 0:
            return kills
        else:
            raise RuntimeError(f"{folder} ended with status {process.exitcode}")


def kill(count: int, seed: int, record: Callable[[dict[str, Any]], None], *, done: set[str]) -> None:
    """So many kills, over all cases; a row each, those that are `done` left out."""
    every = cases()
    with tempfile.TemporaryDirectory() as place:
        for name, case in every.items():
            if name in done:
                continue
            moments, home = random.Random(f"{seed} {name}"), Path(place) / name.replace(" ", "-")
            began = time.monotonic()
            forked(functools.partial(case, home / "whole")).join()
            took, row = time.monotonic() - began, {"method": name, "kills": 0, "runs": 0, "equal": 0}
            while row["kills"] < count / len(every):
                folder = home / str(row["runs"])
                row["kills"] += killed(case, folder, moments=moments, seconds=took)
                row["runs"] += 1
                row["equal"] += bool(wanted := result(home / "whole")) and result(folder) == wanted
            record(row | {"seconds_alone": round(took, 2)})
            shutil.rmtree(home)


def watched(folder: Path, before: Callable[[int], None]) -> None:
    """From now on call `before` with its number before each file operation of this process in a folder."""
    seen, place = [0], str(folder.resolve())

    def operation(path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike) and str(Path(os.fsdecode(path)).absolute()).startswith(place):
            before(seen[0])
            seen[0] += 1

    def hook(event: str, given: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in OPERATIONS:
            operation(given[0])

    synchronize = os.fsync

    def fsync(handle: int) -> None:
        operation(Path(f"/proc/self/fd/{handle}").readlink())
        synchronize(handle)

    os.fsync = fsync
    sys.addaudithook(hook)


def invoked(arguments: list[str], folder: Path, *, states: Path | None = None) -> int:
    """Exit status of a command in a process of its own, which copies the folder before each file operation in it."""

    def work() -> None:
        from reliability_inputs import command

        if states:
            watched(folder, lambda number: copied(folder, states / str(number)))
        status, output, raised = command(*arguments)
        if raised is not None or status:
            Path(f"{folder}.error").write_text(f"{raised!r}\n{output}")
        os._exit(70 if raised is not None else status)

    process = forked(work)
    process.join()
    return int(process.exitcode)


def copied(folder: Path, to: Path) -> None:
    """Put a copy of a folder, or of its absence, in a place."""
    shutil.rmtree(to, ignore_errors=True)
    if folder.exists():
        shutil.copytree(folder, to, symlinks=True)


def content(folder: Path) -> str:
    """A digest of the names, modes and bytes in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)} {path.lstat().st_mode}\0".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def commands() -> dict[str, tuple[list[str], str]]:
    """Each command of the material, and the folder, copied for it, that it works in."""
    short = ["--steps", "4", "--batch-size", "18", "--threads", "1", "--no-onnx", "--out", "work/out"]
    net = ["net.py:Net", "data.npz"]
    few = ["--draws", "1", "--restarts", "1", "--shot-steps", "2", "--shots", "2"]
    return {
        "slim": (["slim", *net, "--limit", "macs=0.5", *short], ""),
        "slim, a front": (["slim", *net, "--limit", "macs=0.75,0.5", "--steps", "20", *short[2:]], ""),
        "slim, distilled": (["slim", *net, "--weights", "weights.pt", "--no-check-weights", "--distill",
                             "--limit", "macs=0.5", *short], ""),
        "search": (["search", "--data", "data.npz", "--space", "nasbench201", "--method", "darts", "--cells", "1",
                    "--channels", "2", *short], ""),
        "train": (["train", *net, *short], ""),
        "transfer": (["transfer", *net, "data.npz", *few, *short, "--steps", "30"], ""),
        "control": (["control", "cart_pole", "--trials", "12", "--out", "work/out"], ""),
        "demo": (["demo", "--epochs", "3", "--out", "work/out"], ""),
        "resume": (["resume", "work/stopped"], "stopped"),
        "init": (["init", *net, "--out", "work/out"], ""),
        "report": (["report", "work/run"], "run"),
        "compare": (["compare", "run", "search", "--out", "work/compare.html"], ""),
        "score": (["score", "--space", "nasbench201", "--cells", "1", "--sample", "2", "--proxy", "params",
                   "--out", "work/out"], ""),
        "export": (["export", "work/run", "--out", "work/run/again.onnx"], "run"),
        "export --int8": (["export", "work/run", "--int8", "--out", "work/run/again.int8.onnx"], "run"),
        "package": (["package", "work/run", "--out", "work/package"], "run"),
    }  # fmt: skip


def at_operations(
    names: list[str], record: Callable[[dict[str, Any]], None], *, done: set[tuple[str, int]], every: int = 1
) -> None:
    """Give each command again on what a kill before every so many-th file operation leaves; a row each, but `done`.

    What SIGKILL leaves at an operation is the folder as it is there: it is copied there, and no second process has to
    come as far. Operations that leave the same files are tried once. Commands are given in processes forked from this
    one, which has imported and computed everything once.
    """
    from reliability_inputs import command, material

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        material(Path(place))
        folder, states = Path(place) / "work", Path(place) / "states"
        for name in names:
            arguments, needed = commands()[name]
            shutil.rmtree(states, ignore_errors=True)
            for prepared in ("warm", "recorded"):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                if needed:
                    shutil.copytree(needed, folder / needed)
                if prepared == "warm":
                    command(*arguments)
            if status := invoked(arguments, folder, states=states):
                raise RuntimeError(f"{name} ended with {status}: {Path(f'{folder}.error').read_text()}")
            wanted, operations, tried = result(folder), len(list(states.iterdir())), dict[str, dict[str, Any]]()
            for at in range(0, operations, every):
                if (name, at) in done:
                    continue
                same = content(states / str(at))
                if same not in tried:
                    copied(states / str(at), folder)
                    status = invoked(arguments, folder)
                    left = [path.name for path in folder.rglob(".*.partial")]
                    tried[same] = {"status": status, "equal": result(folder) == wanted, "left": left}
                row = {"command": name, "operation": at, "operations": operations, "states": len(tried)}
                record(row | tried[same])


if __name__ == "__main__":
    at_operations(sys.argv[1:] or [*commands()], lambda row: print(json.dumps(row), flush=True), done=set())
