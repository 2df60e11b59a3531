"""What running costs, and what is lost when it is stopped: by kill -9, by dying workers, over long runs.

    python benchmarks/reliability.py --out benchmarks/results/reliability.json
    python benchmarks/reliability.py --parts kill --kills 100 --out benchmarks/results/reliability.json

kill      every method on a tiny task of the tests, tasks of other kinds, a loop of one's own and exports, in a
          process that is killed (SIGKILL) at random moments and begun again until it ends; its networks are compared,
          bit by bit, with those of a run that was left alone
operations  each command, given again on what a kill before each of its file operations leaves
inputs    hostile inputs of the command line: they end in status 0 or 2
python    hostile inputs of the library: they return, or raise an error of archgrad's own
resumes   runs that are resumed with one thing changed: it is noticed
workers   200 trials by worker processes, one of which kills itself in every 20th trial; the same with one worker and
          no deaths, for the speed-up
ray       the same on a Ray cluster of this machine
soak      a search of 20,000 steps: resident memory, open files and threads after 2,000 and at the end
overhead  a loop over `Run.steps` with `Run.log_step`, as one phase or a phase (so a checkpoint) an epoch, and with
          `archgrad.training.take_step`, which also looks for NaN in loss and gradients, over the same loop without,
          and that loop over itself; and a step that only logs, and a checkpoint, by themselves. The two loops of a
          pair take turns, epoch by epoch, and the allocator gives no memory back meanwhile: whether it does is
          chance, and moves the time of so small a network by a fifth

startup   how long commands take until they have started
networks  random networks, drawn by the tests' grammar and slimmed, for --seconds: held is built

One thread. Rows replace those of the same part in --out. Those of kill, operations, inputs, python and resumes are
appended to files beside it as they are made, so that a stop loses none and the same command goes on.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import reliability_inputs
import reliability_kills
import reliability_resumes
import reliability_startup
import torch
from saving import save_results
from torch import Tensor, nn

import archgrad as ag
from archgrad.trials import Job, Outcome, Workers

KINDS = ("by hand", "run", "run, a phase an epoch", "take_step")
# What glibc's allocator is told, by the environment of a process of its own.
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TOP_PAD_": "100000000"
}  # fmt: skip


class Costly:
    """A trial of about half a second of computing; where told, every 20th kills its worker at its first try."""

    def __init__(self, notes: Path, *, deadly: bool) -> None:
        self.notes, self.deadly = str(notes), deadly

    def __call__(self, job: Job) -> Outcome:
        number = int(job.name.rpartition("-")[2])
        (Path(self.notes) / f"{number} {time.monotonic_ns()}").touch()
        if self.deadly and number % 20 == 19 and len(list(Path(self.notes).glob(f"{number} *"))) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        until = time.process_time() + 0.5
        total = 0.0
        while time.process_time() < until:
            total += float(torch.randn(64, 64).square().sum())
        return Outcome({"score": float(number)})


def trials(count: int, workers: int | str, *, deadly: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        notes = Path(place) / "notes"
        notes.mkdir()
        run = ag.Run(workers=workers, folder=Path(place) / "run", device="cpu", progress=False)
        run.begin("reliability", {})
        run.register_state()
        asked = [Job(f"trial-{i}", ag.Architecture({"n": i})) for i in range(count)]
        for _ in run.steps(1):
            pool = Workers(run, Costly(notes, deadly=deadly))
            began = time.monotonic()
            pool.ahead(asked)
            scores = [pool.result(job).figures["score"] for job in asked]
            took = time.monotonic() - began
            pool.close()
        run.finish()
        lines = [
            json.loads(line)["trial"] for line in (Path(place) / "run" / "trials.jsonl").read_text().splitlines()
        ]
        row = {
            "workers": workers, "trials": count, "results": len(scores), "in_order": scores == sorted(scores),
            "counted": len(lines), "counted_once": len(set(lines)), "begun": len(list(notes.iterdir())),
            "deaths": count // 20 if deadly else 0, "seconds": round(took, 1),
        }  # fmt: skip
    print(row, flush=True)
    return row


def side_by_side(kind: str, count: int) -> list[dict[str, Any]]:
    several: int | str = "ray" if kind == "ray" else 2
    rows = [
        trials(count, several, deadly=True),
        trials(count // 5, several, deadly=False),
        trials(count // 5, 1, deadly=False),
    ]
    ratio = rows[2]["seconds"] / rows[1]["seconds"]
    print(f"{kind}: {ratio:.2f} times as fast as one worker, start of the workers included")
    return [{**row, "speed_up": round(ratio, 3)} for row in rows]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def resident() -> dict[str, int]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"), "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
    }  # fmt: skip


def soak(steps: int) -> list[dict[str, Any]]:
    """A DARTS of two small choices; figures are taken from inside its loss."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=generator)
    seen: list[dict[str, Any]] = []  # the first, and the last

    class Watched(ag.Classification):
        calls = 0

        def loss(self, network: nn.Module, batch: Any) -> Tensor:
            self.calls += 1
            if self.calls % 500 == 0 and self.calls >= 2 * steps // 10:  # two losses a step
                seen[1:] = [{"step": self.calls // 2, **resident()}]
            return super().loss(network, batch)

    choices = {name: nn.Sequential(nn.Linear(8, n), nn.ReLU(), nn.Linear(n, 8)) for name, n in (("a", 4), ("b", 8))}
    space = nn.Sequential(ag.OpChoice(choices, name="one"), nn.Linear(8, 2))
    with tempfile.TemporaryDirectory() as place:
        run = ag.Run(
            steps=steps,
            folder=Path(place) / "run",
            device="cpu",
            progress=False,
            output=ag.Output(checkpoint_seconds=5.0),
        )
        ag.darts(space, Watched((x, (x[:, 0] > 0).long()), batch_size=50), run, search_fraction=1.0, finalists=None)
    growth = seen[1]["resident_bytes"] / seen[0]["resident_bytes"] - 1.0
    print(seen, f"grown by {100 * growth:.2f} %")
    return [*seen, {"growth": growth}]


def overhead(rounds: int, networks: Sequence[str]) -> list[dict[str, Any]]:
    """CPU time of a loop over that of the same loop by hand, the two in turns, epoch by epoch."""
    from networks import resnet20

    images = torch.randn(640, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pictures = ag.Classification((images, torch.arange(640) % 10), batch_size=64)
    digits = ag.Classification.load("digits", batch_size=64)
    rows = []
    for name, make, task, epochs in (("resnet20", resnet20, pictures, 2), ("small", network, digits, 30)):
        if name not in networks:
            continue
        loops = Loops(make, task, epochs)
        row = {"network": name, "rounds": rounds, "epochs": epochs, **loops.alone()}
        row |= {kind: paired(loops, kind, rounds) for kind in KINDS}
        rows.append(row)
        print(row, flush=True)
    return rows


def paired(loops: Loops, kind: str, rounds: int) -> dict[str, float]:
    """Median, range, and 95 % interval of the median, of the ratios of pairs."""
    pairs = []
    for number in range(rounds + 1):
        both, seconds = (loops.epochs_of(kind), loops.epochs_of("by hand")), [0.0, 0.0]
        for epoch in range(loops.epochs):
            for side in (0, 1) if (epoch + number) % 2 else (1, 0):
                began = time.process_time()
                next(both[side])
                seconds[side] += time.process_time() - began
        for side in both:
            next(side, None)  # its end
        pairs.append(seconds)
    del pairs[0]
    ratios = sorted(by_run / by_hand for by_run, by_hand in pairs)
    # The order statistics between which the median of so many lies with a probability of at least 95 %.
    tails = [2 * sum(math.comb(rounds, i) for i in range(k)) <= 0.05 * 2**rounds for k in range(rounds // 2)]
    edge = max((k for k, small in enumerate(tails) if small), default=0)
    return {
        "median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1],
        "median_from": ratios[max(0, edge - 1)], "median_to": ratios[rounds - max(1, edge)],
        "by_hand_ms_an_epoch": round(1e3 * statistics.median(by_hand for _, by_hand in pairs) / loops.epochs, 1),
    }  # fmt: skip


class Loops:
    """The same training by hand and by a run, as generators that pause after each epoch."""

    def __init__(self, make: Callable[[], nn.Module], task: ag.Classification, epochs: int) -> None:
        self.make, self.task, self.epochs = make, task, epochs

    def begun(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = self.make().train()
        return net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)

    def step_on(self, net: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> Tensor:
        loss = self.task.loss(net, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def epochs_of(self, kind: str) -> Iterator[None]:
        from archgrad.training import load_batch, take_step

        (net, optimizer), batches = self.begun(), self.task.stream(seed=0)
        each = self.task.steps_per_epoch
        if kind == "by hand":
            for epoch in range(self.epochs):
                for step in range(each):
                    self.step_on(net, optimizer, batches(epoch * each + step))
                yield
            return
        with tempfile.TemporaryDirectory() as place:
            run = ag.Run(folder=Path(place) / "run", device="cpu", progress=False)
            run.begin("overhead", {})
            run.register_state(network=net, optimizer=optimizer)
            phases = self.epochs if kind == "run, a phase an epoch" else 1
            for phase in range(phases):
                for step in run.steps(self.epochs * each // phases, phase=f"fit-{phase}"):
                    number = phase * each + step
                    if kind == "take_step":
                        batch = load_batch(batches, number, run)
                        loss = take_step(optimizer, run, functools.partial(self.task.loss, net, batch))
                    else:
                        loss = self.step_on(net, optimizer, batches(number))
                    run.log_step({"loss": loss}, step=step)
                    if phases == 1 and (step + 1) % each == 0 and step + 1 < self.epochs * each:
                        yield
                yield  # once the end of the phase is saved
            run.close()

    def alone(self, *, logged: int = 2000, saved: int = 20) -> dict[str, float]:
        """CPU time of a step that does nothing but log, and of a checkpoint."""
        with tempfile.TemporaryDirectory() as place:
            net, optimizer = self.begun()
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()  # so that it has a state
            run = ag.Run(folder=Path(place) / "run", device="cpu", progress=False)
            run.begin("overhead", {})
            run.register_state(network=net, optimizer=optimizer)
            began, loss = time.process_time(), torch.tensor(1.0)
            for step in run.steps(logged, phase="log"):
                run.log_step({"loss": loss}, step=step)
            between = time.process_time()
            for i in range(saved):  # each at its end
                list(run.steps(1, phase=f"save-{i}"))
            run.close()
        return {
            "step_us": round(1e6 * (between - began) / logged, 1),
            "checkpoint_ms": round(1e3 * (time.process_time() - between) / saved, 2),
        }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def counted(rows: list[dict[str, Any]], kind: str, *, fine: Collection[str]) -> list[dict[str, Any]]:
    """How often each outcome came of each kind, and every row whose outcome is not fine."""
    counts = collections.Counter((row[kind], row["found"] if row["found"] in fine else "wrong") for row in rows)
    by_kind: dict[str, dict[str, Any]] = {}
    for (name, found), number in sorted(counts.items()):
        by_kind.setdefault(name, {kind: name})[found] = number
    return [*by_kind.values(), *(row for row in rows if row["found"] not in fine)]


def kill(count: int, seed: int, path: Path) -> list[dict[str, Any]]:
    done = {row["method"] for row in read(path)}
    reliability_kills.kill(count, seed, functools.partial(append, path), done=done)
    return read(path)


def operations(names: list[str], path: Path, *, every: int) -> list[dict[str, Any]]:
    """A row for each command: its file operations, and after how many of the kills the result was the same."""
    done = {(row["command"], row["operation"]) for row in read(path)}
    reliability_kills.at_operations(names, functools.partial(append, path), done=done, every=every)
    rows = read(path)
    return [
        {
            "command": name, "operations": here[-1]["operations"], "kills": len(here),
            "states": here[-1]["states"],
            "ended": sum(row["status"] == 0 for row in here), "equal": sum(row["equal"] for row in here),
            "wrong": [row for row in here if row["status"] or not row["equal"]],
        }
        for name in dict.fromkeys(row["command"] for row in rows)
        if (here := [row for row in rows if row["command"] == name])
    ]  # fmt: skip


def inputs(count: int, seed: int, path: Path) -> list[dict[str, Any]]:
    return counted(reliability_inputs.inputs(count, seed, path), "kind", fine=("status 0", "status 2"))


def python(count: int, seed: int, path: Path) -> list[dict[str, Any]]:
    import reliability_python

    rows = reliability_python.inputs(count, seed, path)
    return counted(rows, "kind", fine=("returned", "refused", reliability_python.OF_THE_USER))


def resumes(count: int, seed: int, path: Path) -> list[dict[str, Any]]:
    start = max((row["number"] for row in read(path)), default=-1) + 1
    reliability_resumes.resumes(count, seed, functools.partial(append, path), start)
    return counted(read(path), "setting", fine=("refused", "noted", "went on"))


def networks(seed: int, seconds: float) -> list[dict[str, Any]]:
    """Random networks, slimmed: how many are exact, have nothing to remove, or are wrong."""
    sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / folder) for folder in ("", "properties")]
    from fuzz_slim import drawn

    counts, slowest, wrong = drawn(seed, seconds)
    figures = {"networks": counts.total(), **counts, "slowest_s": round(slowest, 1)}
    return [{"seeds_from": seed, **figures, "wrong": wrong}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("kill", "operations", "inputs", "python", "resumes", "workers", "ray", "soak", "overhead")
    parts += ("startup", "networks")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--every", type=int, default=1, help="of a command's file operations, so many-th are tried")
    parser.add_argument("--inputs", type=int, default=2_000)
    parser.add_argument("--python-inputs", type=int, default=8_000)
    parser.add_argument("--resumes", type=int, default=500)
    parser.add_argument("--commands", nargs="+", default=[*reliability_kills.commands()])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--soak-steps", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=1800.0, help="for random networks")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--networks", nargs="+", choices=("resnet20", "small"), default=["resnet20", "small"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if "overhead" in given.parts and not os.environ.keys() >= ALLOCATOR.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    torch.set_num_threads(1)
    run: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "kill": lambda: kill(given.kills, given.seed, given.out.with_suffix(".kill.jsonl")),
        "operations": lambda: operations(
            given.commands, given.out.with_suffix(".operations.jsonl"), every=given.every
        ),
        "inputs": lambda: inputs(given.inputs, given.seed, given.out.with_suffix(".inputs.jsonl")),
        "python": lambda: python(given.python_inputs, given.seed, given.out.with_suffix(".python.jsonl")),
        "resumes": lambda: resumes(given.resumes, given.seed, given.out.with_suffix(".resumes.jsonl")),
        "workers": lambda: side_by_side("workers", given.trials),
        "ray": lambda: side_by_side("ray", given.trials),
        "soak": lambda: soak(given.soak_steps),
        "overhead": lambda: overhead(given.rounds, given.networks),
        "startup": reliability_startup.startup,
        "networks": lambda: networks(given.seed, given.seconds),
    }
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    for part in given.parts:
        kept[part] = run[part]()
        save_results(given.out, kept)


if __name__ == "__main__":
    main()
