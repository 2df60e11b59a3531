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
import shutil
import signal
import sys
import tempfile
import time
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
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


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


def watched(folder: Path, at: int, count: Callable[[int], None]) -> None:
    """From now on kill this process before its file operation number `at` in a folder; tell how many there were."""
    seen, place = [0], str(folder.resolve())

    def operation(path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike) and str(Path(os.fsdecode(path)).absolute()).startswith(place):
            if seen[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1
            count(seen[0])

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


def invoked(arguments: list[str], folder: Path, *, at: int = -1) -> tuple[int, int]:
    """Exit status (-9 where killed) and file operations of a command in a process of its own."""
    number = multiprocessing.get_context("fork").Value("i", 0)

    def work() -> None:
        from reliability_inputs import command

        torch.set_num_threads(1)
        watched(folder, at, lambda seen: setattr(number, "value", seen))
        status, output, raised = command(*arguments)
        if raised is not None or status:
            Path(f"{folder}.error").write_text(f"{raised!r}\n{output}")
        os._exit(70 if raised is not None else status)

    process = forked(work)
    process.join()
    return process.exitcode, number.value


def commands() -> dict[str, tuple[list[str], str]]:
    """Each command of the material, and the folder, copied for it, that it works in."""
    short = ["--steps", "4", "--batch-size", "18", "--threads", "1", "--no-onnx", "--out", "work/out"]
    net = ["net.py:Net", "data.npz"]
    return {
        "slim": (["slim", *net, "--limit", "macs=0.5", *short], ""),
        "slim, a front": (["slim", *net, "--limit", "macs=0.75,0.5", "--steps", "20", *short[2:]], ""),
        "slim, distilled": (["slim", *net, "--weights", "weights.pt", "--no-check-weights", "--distill",
                             "--limit", "macs=0.5", *short], ""),
        "search": (["search", "--data", "data.npz", "--cells", "3", "--channels", "2", *short], ""),
        "train": (["train", *net, *short], ""),
        "control": (["control", "cart_pole", "--trials", "4", "--out", "work/out"], ""),
        "init": (["init", *net, "--out", "work/out"], ""),
        "report": (["report", "work/run"], "run"),
        "compare": (["compare", "run", "search", "--out", "work/compare.html"], ""),
        "export": (["export", "work/run", "--out", "work/run/again.onnx"], "run"),
        "export --int8": (["export", "work/run", "--int8", "--out", "work/run/again.int8.onnx"], "run"),
        "package": (["package", "work/run", "--out", "work/package"], "run"),
    }  # fmt: skip


def at_operations(
    names: list[str], record: Callable[[dict[str, Any]], None], *, done: set[tuple[str, int]], every: int = 1
) -> None:
    """Kill each command before every so many-th file operation, and give it again; a row each, but those `done`."""
    from reliability_inputs import material

    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        material(Path(place))
        folder = Path(place) / "work"
        for name in names:
            arguments, needed = commands()[name]

            def prepare(needed: str = needed) -> None:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                if needed:
                    shutil.copytree(needed, folder / needed)

            prepare()
            status, operations = invoked(arguments, folder)
            wanted = result(folder)
            if status:
                raise RuntimeError(f"{name} ended with {status}: {Path(f'{folder}.error').read_text()}")
            for at in range(0, operations, every):
                if (name, at) in done:
                    continue
                prepare()
                first, _ = invoked(arguments, folder, at=at)
                second, _ = invoked(arguments, folder)
                row = {"command": name, "operation": at, "operations": operations, "killed": first == -signal.SIGKILL}
                left = [path.name for path in folder.rglob(".*.partial")]
                record(row | {"status": second, "equal": result(folder) == wanted, "left": left})


if __name__ == "__main__":
    at_operations(sys.argv[1:], lambda row: print(json.dumps(row), flush=True), done=set())
