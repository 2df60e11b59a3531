"""DNAL on a supernet of sums, beside UNAS and random search over the same blocks, at the same MACs and steps.

    python benchmarks/sums.py --seeds 3 --out benchmarks/results/sums.json
    python benchmarks/sums.py --methods dnal --seeds 1 --steps 100 --out one.json

Five layers of MBConv blocks, of three kernel sizes and two expansions, on Fashion-MNIST at 14 x 14 (2,000 images to
train and validate on, 2,000 for the test). DNAL adds up all blocks of a layer, and removes blocks and channels of
blocks (`ag.mobile_backbone(mixed="sum")`, `ag.slim`); the others choose one block a layer, and train what they found
from fresh weights for half of the steps. "random draw" is one architecture under the limit, trained in all steps.
Rows that --out holds are not run again.
Data: found through ARCHGRAD_DATA.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from discreteness import task
from saving import save_results
from torch import nn

import archgrad as ag
from archgrad.spaces import Widths

Searched = Callable[[ag.Classification, ag.Run, ag.Limit], ag.Found]


SIZES: dict[str, Any] = {
    "widths": Widths(8, 8, (12, 16, 24), 64), "cells": (2, 2, 1), "strides": (1, 2, 2), "stem_stride": 1,
    "classes": 10, "in_channels": 1,
}  # fmt: skip
DEAREST = " ".join(["k7e6"] * sum(SIZES["cells"]))


def backbone(mixed: Literal["choice", "sum"]) -> nn.Module:
    return ag.mobile_backbone(**SIZES, mixed=mixed)


def dnal(data: ag.Classification, run: ag.Run, limit: ag.Limit) -> ag.Found:
    return ag.dnal(ag.slim(backbone("sum"), data.example), data, run, limit=limit)


def unas(data: ag.Classification, run: ag.Run, limit: ag.Limit) -> ag.Found:
    return ag.unas(backbone("choice"), data, run, limit=limit)


def random(data: ag.Classification, run: ag.Run, limit: ag.Limit) -> ag.Found:
    return ag.random_search(backbone("choice"), data, run, limit=limit)


def draw(data: ag.Classification, run: ag.Run, limit: ag.Limit) -> ag.Found:
    run.trials = 1
    return ag.random_search(backbone("choice"), data, run, limit=limit, search_fraction=0.01)


METHODS: dict[str, Searched] = {"dnal": dnal, "unas": unas, "random search": random, "random draw": draw}


def searched(name: str, data: ag.Classification, *, steps: int, seed: int, fraction: float) -> dict[str, Any]:
    """One row, at a share of the MACs of the most expensive choice of blocks."""
    torch.manual_seed(seed)
    begun, cost = time.process_time(), ag.macs(data.example)
    limit = cost.at_most(fraction * cost.of(ag.mobile_network(DEAREST, **SIZES)))
    found = METHODS[name](data, ag.Run(steps=steps, seed=seed, trials=5, device="cpu", progress=False), limit)
    return {
        "method": name, "seed": seed, "accuracy": found.score, "macs": found.costs["macs"], "bound": limit.bound,
        "params": found.costs["params"], "cpu_seconds": round(time.process_time() - begun, 1),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| method | seeds | accuracy, % | MACs, M | parameters | CPU s |", "|---" * 6 + "|"]
    for name in METHODS:
        same = [row for row in rows if row["method"] == name]
        if same:
            scores = [100 * row["accuracy"] for row in same]
            spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            macs, params, seconds = (
                statistics.fmean(r[key] for r in same) for key in ("macs", "params", "cpu_seconds")
            )
            lines.append(
                f"| {name} | {len(same)} | {statistics.fmean(scores):.1f}{spread} | {macs / 1e6:.2f} | {params:,.0f} "
                f"| {seconds:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400, help="of search and training together")
    parser.add_argument("--fraction", type=float, default=0.3, help="of the MACs of the most expensive blocks")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    asked = {"steps": chosen.steps, "fraction": chosen.fraction}
    body: dict[str, Any] = {**asked, "rows": []}
    if chosen.out.is_file():
        body = json.loads(chosen.out.read_text())
        if {name: body.get(name) for name in asked} != asked:
            sys.exit(f"{chosen.out} holds rows of another run, not of {asked}: name another file with --out")
    data, rows = task("fashion_mnist"), body["rows"]
    done = {(row["method"], row["seed"]) for row in rows}
    for seed in range(chosen.seeds):
        for name in chosen.methods:
            if (name, seed) not in done:
                rows.append(searched(name, data, steps=chosen.steps, seed=seed, fraction=chosen.fraction))
                print(json.dumps(rows[-1]), flush=True)
                save_results(chosen.out, body)
    print(table(rows))


if __name__ == "__main__":
    main()
