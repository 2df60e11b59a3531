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
from torch import nn

import archgrad as ag

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / folder) for folder in ("conformance", "methods", "gates", "control", "rl", ".")]

Case = Callable[[Path], object]
METHODS = (
    "dnal", "slim_front", "pruning_transfer", "unas", "darts", "darts_prime", "toponas", "radars, bound", "monas",
    "random_search", "random_search, shared", "multimodal_random",
)  # fmt: skip
OUTPUT = ag.Output(checkpoint_seconds=0.0)
# Of Python's audited events those that change files; the first argument names the file.
OPERATIONS = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink",
    "shutil.rmtree",
}  # fmt: skip


def cases() -> dict[str, Case]:
    """Every method on what the tests try it on, tasks of several kinds, a loop of one's own, and exports."""
    import test_freenas
    import test_methods
    import test_nnilqr
    import test_rl_darts
    import test_tasks
    from planted import limit

    def planted(name: str, folder: Path) -> None:
        run = test_methods.quiet(name, epochs=6, folder=folder, output=OUTPUT)
        test_methods.found_by(name, run, limit=limit())

    def on_task(kind: str, name: str, folder: Path) -> None:
        task = {**test_tasks.KINDS, **test_tasks.MORE_KINDS}[kind]()
        outputs = {"classification": 2, **dict.fromkeys(test_tasks.MORE_KINDS, 8)}.get(kind, 1)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            found = test_tasks.METHODS[name][0](
                test_tasks.space(name, outputs=outputs), task, test_tasks.quiet(folder=folder, output=OUTPUT)
            )
        if name == "slim_front":
            found.save(folder)

    found: dict[str, Case] = {name: functools.partial(planted, name) for name in METHODS}
    quiet = {"device": "cpu", "progress": False}
    found["freenas"] = lambda folder: ag.freenas(
        test_freenas.nasbench(), ag.Run(seed=3, folder=folder, **quiet), example=test_freenas.X, seeds=2
    )
    found["nnilqr"] = lambda folder: ag.nnilqr(
        None, test_nnilqr.pendulum(), test_nnilqr.quiet(folder=folder, output=OUTPUT), terms=test_nnilqr.SHORT
    )
    found["rl_darts"] = lambda folder: test_rl_darts.found_by(test_rl_darts.quiet(folder=folder, output=OUTPUT))
    for kind, name in (
        ("regression", "dnal"), ("negative scores", "slim_front"), ("masks, inputs by name", "dnal"),
        ("several labels, distilled", "dnal"), ("masks, inputs by name", "darts"), ("regression", "monas"),
        ("several labels, distilled", "unas"), ("negative scores", "random_search"),
    ):  # fmt: skip
        found[f"{name}: {kind}"] = functools.partial(on_task, kind, name)
    return found | {"a loop of one's own": own_loop, "an export": exported}


def own_loop(folder: Path) -> None:
    """Gates trained in a loop of one's own, its state kept by a `Run`."""
    import test_gate_trainer
    from safetensors.torch import save_file

    space, limit = test_gate_trainer.planted()
    optimizer = torch.optim.SGD(ag.weights(space), lr=0.05)
    trainer = ag.GateTrainer(space, limit=limit, steps=60)
    run = ag.Run(folder=folder, device="cpu", progress=False, output=OUTPUT)
    run.begin("own loop", {}, network=space)
    run.register_state(space=space, optimizer=optimizer, gates=trainer)
    for step in run.steps(60):
        test_gate_trainer.train(trainer, space, optimizer, range(step, step + 1))
    network = trainer.cut()
    run.finish()
    save_file(network.state_dict(), folder / "partial")
    (folder / "partial").replace(folder / "network.safetensors")


def exported(folder: Path) -> None:
    """A network written again and again under one name: what stands there is always whole."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)).eval()
    if (path := folder / "network.onnx").exists():
        import onnx

        onnx.checker.check_model(onnx.load(str(path)))
    ag.export_onnx(network, torch.zeros(1, 8), path)


def result(folder: Path) -> dict[str, str]:
    """Digests of the networks that a folder holds."""
    paths = [path for kind in ("network*.safetensors", "*.onnx") for path in folder.rglob(kind)]
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
