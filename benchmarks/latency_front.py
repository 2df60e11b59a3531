"""A bound on measured latency, swept: is it kept on a fresh measurement, and at what accuracy, beside random search?

    python benchmarks/latency_front.py --seeds 3 --out benchmarks/results/latency_front.json

The 64 networks of benchmarks/cells.py, whose accuracies are known from its results, so that the best network under a
bound is known too. Latency is one forward pass of 256 images on this machine's CPU, one thread. Both methods get the
same CPU time, as numbers of steps worked out from the time of a step measured beforehand; random search spends a part
of it on training eight networks under the bound. Each network handed back is measured anew, `--again` times, in turns
with the cheapest network, whose own change since the beginning tells how busy the machine has become.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cells import ALL, GOOD, LAYERS, Layers, picks, task
from saving import save_results

import archgrad as ag
from archgrad.methods import UnasTerms

METHODS: dict[str, Callable[..., ag.Found]] = {
    "unas": functools.partial(ag.unas, terms=UnasTerms(gap="none"), search_fraction=1.0),
    "random": functools.partial(ag.random_search, search_fraction=1.0),
}
RESULTS = Path(__file__).parent / "results" / "cells.json"
ARCHITECTURES = [ag.Architecture({f"layer{i}": GOOD.index(some[i]) for i in range(LAYERS)}) for some in ALL]


def searched(name: str, data: ag.Classification, limit: ag.Limit, *, seed: int, steps: int) -> tuple[ag.Found, float]:
    torch.manual_seed(seed)
    run = ag.Run(steps=steps, seed=seed, trials=8, device="cpu", progress=False)
    began = time.process_time()
    return METHODS[name](Layers(), data, run, limit=limit), time.process_time() - began


def milliseconds(x: torch.Tensor) -> list[float]:
    """Every network's latency, measured in turns."""
    networks = {str(i): ag.build(Layers(), a) for i, a in enumerate(ARCHITECTURES)}
    return [timing.median_ms for timing in ag.latency(x, repeats=20, warmup=3).timings(networks).values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of CPU for each search")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.4, 0.55, 0.7, 0.85])
    parser.add_argument("--again", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = task(chosen.images, 100)
    truth = json.loads(RESULTS.read_text())["truth"]
    accuracy = [statistics.fmean(truth[", ".join(some)]) for some in ALL]
    x = torch.cat([data.example] * 256)
    cost = ag.latency(x, repeats=10, warmup=2)
    took = milliseconds(x)
    print(f"latencies {min(took):.2f} to {max(took):.2f} ms", flush=True)
    steps = {}
    for name in METHODS:
        wide = cost.at_most(ms=2 * max(took))
        searched(name, data, wide, seed=99, steps=16)
        short, long = (searched(name, data, wide, seed=99, steps=n)[1] for n in (16, 80))
        steps[name] = max(64, round((chosen.seconds - short) / max((long - short) / 64, 1e-3)))
        print(f"{name}: {steps[name]} steps", flush=True)
    settings = {key: value for key, value in vars(chosen).items() if key != "out"}
    body = {"settings": settings, "torch": torch.__version__, "latency_ms": took}
    rows: list[dict[str, Any]] = []
    for fraction in chosen.fractions:
        bound = fraction * max(took)
        best = max(a for a, ms in zip(accuracy, took, strict=True) if ms <= bound)
        for name in METHODS:
            for seed in range(chosen.seeds):
                found, seconds = searched(name, data, cost.at_most(ms=bound), seed=seed, steps=steps[name])
                place, cheapest = ALL.index(picks(found.architecture, GOOD)), took.index(min(took))
                pair = {"found": found.network, "cheapest": ag.build(Layers(), ARCHITECTURES[cheapest])}
                turns = [cost.timings(pair) for _ in range(chosen.again)]
                busy = min(t["cheapest"].median_ms for t in turns) / min(took)
                fresh = [t["found"].median_ms for t in turns]
                row = {
                    "method": name, "seed": seed, "fraction": fraction, "bound_ms": bound, "steps": steps[name],
                    "seconds": round(seconds, 1), "regret": best - accuracy[place], "accuracy": accuracy[place],
                    "fresh_ms": fresh, "busy": busy, "picks": list(found.architecture.values()),
                    "surrogate": {key: found.record["surrogate"][key] for key in ("rmse", "rank_correlation")},
                }  # fmt: skip
                rows.append(row)
                print(json.dumps(row), flush=True)
                save_results(chosen.out, {**body, "rows": rows})
    for fraction in chosen.fractions:
        for name in METHODS:
            same = [r for r in rows if r["method"] == name and r["fraction"] == fraction]
            parts = [min(r["fresh_ms"]) / max(r["busy"], 1.0) / r["bound_ms"] for r in same]
            regrets = [100 * r["regret"] for r in same]
            print(
                f"{fraction:.2f} {name:8s} regret {statistics.fmean(regrets):.2f} ± {statistics.stdev(regrets):.2f}  "
                f"latency / bound {statistics.fmean(parts):.2f}, largest {max(parts):.2f}"
            )


if __name__ == "__main__":
    main()
