"""A bound on measured latency, swept: is it kept on a fresh measurement, and at what accuracy, beside random search?

    python benchmarks/latency_front.py --seeds 2 --out benchmarks/results/latency_front.json

A small mobile space on CIFAR-10, latency of one forward pass of 32 images on this machine's CPU, one thread. Both
methods get the same CPU time in all, as numbers of steps worked out from the time of a step measured beforehand;
half of the steps train what was found. Each network handed back is measured anew, `--again` times, and each of these
readings is compared with the bound. Data: CIFAR-10 (JPEG copy), found through ARCHGRAD_DATA.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from slim import cifar10
from torch import nn

import archgrad as ag
from archgrad.costs.latency import Latency
from archgrad.spaces.mobile import Widths

METHODS: dict[str, Callable[..., ag.Found]] = {"unas": ag.unas, "random": ag.random_search}


def space() -> nn.Module:
    widths = Widths(stem=16, first=12, stages=(16, 24, 40), head=80)
    return ag.mobile_backbone(widths=widths, cells=(2, 3, 2), strides=(1, 2, 2), classes=10)


def searched(name: str, data: ag.Classification, limit: ag.Limit, *, seed: int, steps: int) -> tuple[ag.Found, float]:
    torch.manual_seed(seed)
    run = ag.Run(steps=steps, seed=seed, trials=8, device="cpu", progress=False)
    began = time.process_time()
    return METHODS[name](space(), data, run, limit=limit), time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--tests", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=90.0, help="of CPU for each search and training")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.45, 0.6, 0.75, 0.9])
    parser.add_argument("--again", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = cifar10(chosen.images, chosen.tests)
    x = torch.cat([data.example] * 32)
    cost: Latency = ag.latency(x, repeats=10, warmup=2)
    rows = []
    for name in METHODS:
        wide = cost.at_most(fraction=1.0)
        searched(name, data, wide, seed=99, steps=16)
        short, long = (searched(name, data, wide, seed=99, steps=n)[1] for n in (16, 48))
        steps = max(64, round((chosen.seconds - short) / max((long - short) / 32, 1e-3)))
        print(f"{name}: {steps} steps", flush=True)
        for fraction in chosen.fractions:
            for seed in range(chosen.seeds):
                found, seconds = searched(name, data, cost.at_most(fraction=fraction), seed=seed, steps=steps)
                bound = found.record["limit"]["bound"]
                fresh = [cost.of(found.network) for _ in range(chosen.again)]
                surrogate = found.record["surrogate"]
                row = {
                    "method": name, "seed": seed, "fraction": fraction, "steps": steps, "seconds": round(seconds, 1),
                    "accuracy": found.score, "bound_ms": bound, "fresh_ms": fresh,
                    "kept": statistics.median(fresh) <= bound, "rmse_ms": surrogate["rmse"],
                    "rank_correlation": surrogate["rank_correlation"], "picks": found.record["architecture_text"],
                }  # fmt: skip
                rows.append(row)
                print(json.dumps(row), flush=True)
    for fraction in chosen.fractions:
        for name in METHODS:
            same = [r for r in rows if r["method"] == name and r["fraction"] == fraction]
            ratio = statistics.fmean(statistics.median(r["fresh_ms"]) / r["bound_ms"] for r in same)
            accuracy = [100 * r["accuracy"] for r in same]
            spread = statistics.stdev(accuracy) if len(accuracy) > 1 else float("nan")
            print(
                f"{fraction:.2f} {name:8s} accuracy {statistics.fmean(accuracy):.1f} ± {spread:.1f}  "
                f"latency / bound {ratio:.2f}  kept {sum(r['kept'] for r in same)} of {len(same)}"
            )
    if chosen.out:
        settings = {key: value for key, value in vars(chosen).items() if key != "out"}
        chosen.out.write_text(json.dumps({"settings": settings, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
