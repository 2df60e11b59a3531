"""A front of three budgets from one run beside three separate runs of DNAL that take twice its steps.

    python benchmarks/slim_front.py --images 2000 --epochs 15 --out benchmarks/results/slim_front.json
    python benchmarks/slim_front.py --cases sign/vgg spoken/mobile --out benchmarks/results/slim_front.json

"cifar/halved": the small VGG on halved CIFAR-10 photographs, 75, 50 and 25 % of the MACs. From fresh weights, each
separate run takes all the epochs, and the front 1.5 times as many for its three networks. From trained weights
likewise, where the whole network is trained first, for all the epochs, and given to both. The cases of slim.py: their
trained networks (A), a third of those epochs for each separate run, and half of them for the front.

The score is of the test part, read once a network. CPU seconds are of the process, on one thread, with the export and
timing of the networks left out. Rows that --out already holds are kept and not run again. Data: found through
ARCHGRAD_DATA.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS
from saving import machine, save_results
from scipy import stats
from slim import CASES, RATES, Bench
from slim_tasks import TASKS, cifar10
from torch import nn

import archgrad as ag

FRACTIONS = (0.75, 0.5, 0.25)
HALVED = "cifar/halved"
Row = dict[str, Any]


def quiet(epochs: float, seed: int, task: ag.Classification) -> ag.Run:
    return ag.Run(steps=round(epochs * task.steps_per_epoch), seed=seed, device="cpu", progress=False)


def prepared(case: str, seed: int, start: str, options: argparse.Namespace) -> tuple[nn.Module, ag.Classification]:
    """The network that both begin with, and its task."""
    if case != HALVED:
        task = TASKS[CASES[case].task]()
        return Bench(CASES[case], task, seed).dense(), task
    task = cifar10(options.images, options.tests, halved=True)
    torch.manual_seed(seed)
    network = NETWORKS["small-vgg"]()
    if start == "trained":
        ag.fit(network, task, quiet(options.epochs, seed, task))
    return network, task


def one(case: str, seed: int, start: str, options: argparse.Namespace) -> list[Row]:
    """The rows of a seed: separate runs and the front, from the same weights."""
    network, task = prepared(case, seed, start, options)
    epochs = options.epochs if case == HALVED else CASES[case].epochs / 3
    recipe = ag.Recipe() if case == HALVED else Bench(CASES[case], task, seed).recipe(RATES[0])
    cost, trained = ag.macs(task.example), start == "trained"
    space, rows = ag.slim(network, task.example), []
    for fraction in FRACTIONS:
        begun, limit = time.process_time(), cost.at_most(fraction=fraction)
        found = ag.dnal(
            space, task, quiet(epochs, seed, task), limit=limit, pretrained=trained, round_to=1, recipe=recipe
        )
        rows.append(row("separate runs", fraction, found, time.process_time() - begun))
    begun = time.process_time()
    front = ag.slim_front(
        space, task, quiet(len(FRACTIONS) / 2 * epochs, seed, task), cost=cost, fractions=FRACTIONS,
        pretrained=trained, round_to=1, recipe=recipe,
    )  # fmt: skip
    seconds = (time.process_time() - begun) / len(FRACTIONS)
    rows += [row("front", point.fraction, point.found, seconds) for point in front.points]
    return [{"case": case, "seed": seed, "start": start, **each} for each in rows]


def row(method: str, fraction: float, found: ag.Found, seconds: float) -> Row:
    return {
        "method": method, "fraction": fraction, "score": found.score, "macs": found.costs["macs"],
        "cpu_seconds": seconds,
    }  # fmt: skip


def table(rows: list[Row]) -> str:
    """Mean scores, the paired differences with their interval, and CPU seconds, as Markdown."""
    lines = [
        "| case | start | MACs | front | separate runs | difference, seed by seed | mean, 95 % | processor s, front "
        "| processor s, separate |", "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for case, start, fraction in dict.fromkeys((r["case"], r["start"], r["fraction"]) for r in rows):
        cell = [r for r in rows if (r["case"], r["start"], r["fraction"]) == (case, start, fraction)]
        ours, others = ([r for r in cell if r["method"] == m] for m in ("front", "separate runs"))
        gaps = [100 * (a["score"] - b["score"]) for a, b in zip(ours, others, strict=True)]
        t = stats.t.ppf(0.975, len(gaps) - 1) if len(gaps) > 1 else float("nan")
        spread = t * statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
        means = [100 * statistics.mean(r["score"] for r in part) for part in (ours, others)]
        seconds = [statistics.mean(r["cpu_seconds"] for r in part) for part in (ours, others)]
        lines.append(
            f"| {case} | {start} | {fraction:.0%} | {means[0]:.1f} | {means[1]:.1f} | "
            f"{', '.join(f'{gap:+.1f}' for gap in gaps)} | {statistics.mean(gaps):+.1f} ± {spread:.1f} | "
            f"{seconds[0]:.0f} | {seconds[1]:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=[HALVED], choices=[HALVED, *CASES])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--tests", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=15, help="of each separate run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--starts", nargs="+", default=["fresh", "trained"], choices=["fresh", "trained"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: getattr(options, name) for name in ("images", "tests", "epochs")}
    body: Row = {"settings": settings, "machine": machine(), "rows": []}
    if options.out and options.out.exists():
        body = json.loads(options.out.read_text())
        if body["settings"] != settings:
            raise SystemExit(f"{options.out} is of other settings: {body['settings']}")
    wanted = [(c, n, s) for c in options.cases for n in options.seeds for s in options.starts]
    for case, seed, start in wanted:
        known = any((r["case"], r["seed"], r["start"]) == (case, seed, start) for r in body["rows"])
        if known or (case != HALVED and start == "fresh"):
            continue
        body["rows"] += one(case, seed, start, options)
        if options.out:
            save_results(options.out, body)
        print(table(body["rows"]), flush=True)


if __name__ == "__main__":
    main()
