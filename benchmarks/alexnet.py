"""MONAS on a space like the paper's, on networks that are really trained and timed.

    python benchmarks/alexnet.py --seeds 20 --out benchmarks/results/alexnet.json

Two convolutions with pooling and a linear layer: filters of {8, 16, 32, 48, 64} and kernels of {3, 5, 7, 9} each, 400
networks (the paper's AlexNet-like space, as recalled). Each is trained once, on --images images of CIFAR-10 (the JPEG
copy, halved to 16 x 16), and timed on this machine, one image at a time on one thread, in two sweeps. Searches then
try networks of this table: a trial is what it would have been, without waiting for it. Judged on validation accuracy
and latency by the share of the hypervolume that all 400 command, after so many different networks; the corner is at
the lower quartile of the accuracies and the upper one of the latencies. The same with peak power in place of latency,
as the machine's counter or the labelled estimate gives it, for the paper's reward: accuracy, if power is below a
bound. Rows are kept; a stopped run goes on.
Data: found through ARCHGRAD_DATA.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from saving import machine, save_results
from scipy.stats import spearmanr
from slim_tasks import cifar10
from torch import nn

import archgrad as ag
from archgrad.choices import Uniform
from archgrad.costs import TableColumn
from archgrad.methods import MonasTerms, Reward, accurate, mixed, under
from archgrad.trials import hypervolume

FILTERS, KERNELS = (8, 16, 32, 48, 64), (3, 5, 7, 9)
DECISIONS = {"filters 1": FILTERS, "kernel 1": KERNELS, "filters 2": FILTERS, "kernel 2": KERNELS}
EVERY = list(itertools.product(*DECISIONS.values()))
COUNTS = (5, 10, 20, 30, 40, 60)
Row = dict[str, Any]


def network(f1: int, k1: int, f2: int, k2: int) -> nn.Module:
    """[B, 3, 16, 16] to [B, 10]."""
    return nn.Sequential(
        nn.Conv2d(3, f1, k1, padding=k1 // 2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(f1, f2, k2, padding=k2 // 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * f2, 10),
    )  # fmt: skip


class Choices(nn.Module):
    """What is decided; the networks themselves are made by `network`."""

    def __init__(self) -> None:
        super().__init__()
        self.decided = nn.ModuleList(
            ag.OpChoice({str(value): nn.Identity() for value in values}, name=name)
            for name, values in DECISIONS.items()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for one in self.decided:
            x = one(x)
        return x


class Table:
    """The networks by architecture: a task that looks scores up, and what latencies are looked up in."""

    perfect = 1.0

    def __init__(self, rows: list[Row]) -> None:
        self.rows = {tuple(row["network"]): row for row in rows}

    def row(self, architecture: Mapping[str, Any]) -> Row:
        return self.rows[tuple(values[architecture[name]] for name, values in DECISIONS.items())]

    def score(self, architecture: Mapping[str, Any], /) -> float:
        return float(self.row(architecture)["valid"])

    def cost(self, cell: Mapping[str, Any], name: str | None = None) -> float:
        return float(self.row(cell)[name or "lat_ms"])


def measure(result: dict[str, Any], save: Callable[[], None], *, images: int, epochs: int) -> None:
    task = cifar10(images, 1000, halved=True)
    rows, example = result["networks"], torch.randn(1, 3, 16, 16)
    clock = ag.latency(example, repeats=100)
    for shape in EVERY[len(rows) :]:
        torch.manual_seed(0)
        net, began = network(*shape), time.perf_counter()
        ag.fit(net, task, ag.Run(epochs=epochs, seed=0, device="cpu", progress=False))
        rows.append({
            "network": shape, "valid": task.evaluate(net)["accuracy"], "test": task.evaluate(net, "test")["accuracy"],
            "lat_ms": clock.of(net), "macs": ag.macs(example).of(net), "seconds": time.perf_counter() - began,
        })  # fmt: skip
        if len(rows) % 10 == 0:
            save()
            print(f"{len(rows)} of {len(EVERY)} networks", flush=True)
    for row in rows:
        if "lat_ms_again" not in row:
            row["lat_ms_again"] = clock.of(network(*row["network"]))
    power = ag.peak_power(example)
    for key in ("power_w", "power_w_again"):
        for row in rows:
            if key not in row:
                row[key] = power.of(network(*row["network"]))
    result.setdefault("power", power.name)
    save()


def searches(
    table: Table, space: nn.Module, goal: str, *, seed: int, trials: int
) -> dict[str, Callable[[], list[Any]]]:
    cost = TableColumn(table, goal, unit={"lat_ms": "ms", "power_w": "W"}[goal])
    good = float(np.quantile([row["valid"] for row in table.rows.values()], 0.8))

    def taught(reward: Reward) -> list[Any]:
        run = ag.Run(trials=trials, seed=seed, device="cpu", progress=False)
        found = ag.monas(space, table, run, reward=reward, costs=[cost], terms=MonasTerms(patience=100))
        return [ag.Architecture(one["architecture"]) for one in found.record["trials"]]

    def random() -> list[Any]:
        generator, drawn = torch.Generator().manual_seed(seed), dict[ag.Architecture, None]()
        while len(drawn) < trials:
            drawn[Uniform(space).sample(generator)] = None
        return list(drawn)

    if goal == "power_w":
        return {
            "random": random, "monas mixed 0.75": lambda: taught(mixed(cost, alpha=0.75)),
            "monas under the median power": lambda: taught(under(cost.at_most(middle(table, goal)))),
        }  # fmt: skip
    return {
        "random": random,
        **{f"monas mixed {a}": functools.partial(taught, mixed(cost, alpha=a)) for a in (0.25, 0.5, 0.75, 0.9)},
        "monas under the median latency": lambda: taught(under(cost.at_most(middle(table, goal)))),
        "monas in the best fifth of accuracy": lambda: taught(accurate(cost, least=good)),
    }


def middle(table: Table, goal: str) -> float:
    figures = sorted(row[goal] for row in table.rows.values())
    return float(figures[len(figures) // 2])


def judged(table: Table, tried: list[Any], goal: str) -> Row:
    """After each of COUNTS networks: the share of the field, and how far below the best under the median cost."""
    every = [(-row["valid"], row[goal]) for row in table.rows.values()]
    corner, bound = tuple(np.quantile(np.array(every), 0.75, axis=0)), middle(table, goal)
    whole, points = hypervolume(every, corner), [(-table.score(a), table.cost(a, goal)) for a in tried]
    best = max(-loss for loss, cost in every if cost < bound)
    found = [max((-loss for loss, cost in points[:n] if cost < bound), default=0.0) for n in COUNTS]
    shares = [hypervolume(points[:n], corner) / whole for n in COUNTS]
    return {"share": shares, "regret": [best - score for score in found]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    asked = {"images": chosen.images, "epochs": chosen.epochs, "torch": torch.__version__}
    result: dict[str, Any] = {**asked, "machine": machine(), "networks": [], "searches": []}
    if chosen.out.is_file():
        result = json.loads(chosen.out.read_text())
        if any(result.get(key) != value for key, value in asked.items()):
            parser.error(f"{chosen.out} holds rows of another run: name another file with --out")

    def save() -> None:
        save_results(chosen.out, result)

    measure(result, save, images=chosen.images, epochs=chosen.epochs)
    table, space = Table(result["networks"]), Choices()
    done = {(row.get("goal", "lat_ms"), row["search"], row["seed"]) for row in result["searches"]}
    for seed, goal in itertools.product(range(chosen.seeds), ("lat_ms", "power_w")):
        for name, search in searches(table, space, goal, seed=seed, trials=COUNTS[-1]).items():
            if (goal, name, seed) not in done:
                tried = search()
                row = {"goal": goal, "search": name, "seed": seed, "networks": len(tried)}
                result["searches"].append({**row, **judged(table, tried, goal)})
        save()
    rows = result["networks"]
    twice = spearmanr([r["lat_ms"] for r in rows], [r["lat_ms_again"] for r in rows]).statistic
    counted = spearmanr([r["lat_ms"] for r in rows], [r["macs"] for r in rows]).statistic
    print(f"latency: {min(r['lat_ms'] for r in rows):.3f} to {max(r['lat_ms'] for r in rows):.3f} ms; ", end="")
    print(f"rank correlation of two sweeps {twice:.3f}, of latency and MACs {counted:.3f}")
    valid = [100 * r["valid"] for r in rows]
    print(f"validation accuracy: {min(valid):.1f} to {max(valid):.1f} %, mean {statistics.mean(valid):.1f}\n")
    twice = spearmanr([r["power_w"] for r in rows], [r["power_w_again"] for r in rows]).statistic
    timed = spearmanr([r["power_w"] for r in rows], [r["lat_ms"] for r in rows]).statistic
    print(
        f"{result['power']}: {min(r['power_w'] for r in rows):.3f} to {max(r['power_w'] for r in rows):.3f} W; ",
        end="",
    )
    print(f"rank correlation of two sweeps {twice:.3f}, of power and latency {timed:.3f}")
    for goal, figure in (("lat_ms", "share"), ("power_w", "share"), ("power_w", "regret")):
        own = [row for row in result["searches"] if row.get("goal", "lat_ms") == goal]
        print("\n".join(table_of(own, goal, figure)))


def table_of(rows: list[Row], goal: str, figure: str) -> list[str]:
    """Means and deviations over seeds, in %, after each of COUNTS networks."""
    lines = [f"\n| {goal}, {figure}: search | {' | '.join(map(str, COUNTS))} | networks |"]
    lines.append("|---" * (len(COUNTS) + 2) + "|")
    for name in dict.fromkeys(row["search"] for row in rows):
        own = [row for row in rows if row["search"] == name]
        columns = zip(*(row[figure] for row in own), strict=True)
        cells = [f"{100 * statistics.mean(c):.1f} ± {100 * statistics.pstdev(c):.1f}" for c in columns]
        networks = statistics.mean(row["networks"] for row in own)
        lines.append(f"| {name} ({len(own)}) | {' | '.join(cells)} | {networks:.0f} |")
    return lines


if __name__ == "__main__":
    main()
