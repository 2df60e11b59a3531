"""Searches of NAS-Bench-201's supernet on real images, and what the cells are worth: looked up in the table.

    python benchmarks/collapse.py --seeds 3 --out benchmarks/results/collapse.json

The supernet (8 channels, 1 cell a stage) is searched on CIFAR-10 (the JPEG copy, few images, halved to 16 x 16) for
each of `--epochs` epochs by each method, few and many, so that a collapse to skip connections shows. Accuracies are
those of the published table after 200 epochs; "random" is the mean of all cells. No search sees the table.
Data: found through ARCHGRAD_DATA.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from saving import save_results
from slim_tasks import cifar10

import archgrad as ag
from archgrad.methods import DartsPrimeTerms, UnasTerms
from archgrad.tasks import DATA

METHODS: dict[str, Callable[..., ag.Found]] = {
    "darts": ag.darts,
    "unas": ag.unas,
    "unas, no gap": functools.partial(ag.unas, terms=UnasTerms(gap="none")),
    "unas, weights alone for a quarter": functools.partial(ag.unas, terms=UnasTerms(warm_up=0.25)),
    "unas, weights alone for half": functools.partial(ag.unas, terms=UnasTerms(warm_up=0.5)),
    "darts_prime": ag.darts_prime,
    "darts_prime, static": functools.partial(ag.darts_prime, terms=DartsPrimeTerms(schedule="static")),
    "single path": functools.partial(ag.random_search, shared=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--epochs", type=int, nargs="+", default=[8, 25])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(os.environ.get("ARCHGRAD_DATA", "")) / "nasbench201" / "nasbench201.npz"
    if not path.is_file():
        sys.exit(f"skipped: {path} is not there; set ARCHGRAD_DATA to the folder that holds nasbench201/")
    tables = {data: ag.Tabular.load(path, data=data) for data in DATA}
    task = cifar10(chosen.images, 500, halved=True)
    rows = json.loads(chosen.out.read_text())["rows"] if chosen.out.is_file() else []
    done = {(r["method"], r["epochs"], r["seed"]) for r in rows}
    for epochs in sorted(chosen.epochs):
        for seed in range(chosen.seeds):
            for name in chosen.methods:
                if (name, epochs, seed) in done:
                    continue
                torch.manual_seed(seed)
                space = ag.nasbench201_cells(channels=8, cells=1)
                begun = time.perf_counter()
                run = ag.Run(epochs=epochs, seed=seed, device="cpu", progress=False, trials=50)
                found = METHODS[name](space, task, run, search_fraction=1.0)
                cell = space.to_string(found.architecture)
                rows.append({
                    "method": name, "epochs": epochs, "seed": seed, "cell": cell,
                    "skips": cell.count("skip_connect"), "convolutions": cell.count("nor_conv"),
                    **{data: table.score(cell) for data, table in tables.items()},
                    "seconds": round(time.perf_counter() - begun, 1),
                })  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
                save_results(chosen.out, {"images": chosen.images, "rows": rows})
    print("| search | epochs | skips of 6 | convolutions | " + " | ".join(DATA) + " |\n|---|---|---|---|---|---|---|")
    for name in METHODS:
        for epochs in sorted(chosen.epochs):
            same = [r for r in rows if r["method"] == name and r["epochs"] == epochs]
            if same:
                figures = [f"{statistics.mean(r[k] for r in same):.1f}" for k in ("skips", "convolutions")]
                for data in DATA:
                    values = [r[data] for r in same]
                    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                    figures.append(f"{statistics.mean(values):.1f}{spread}")
                print(f"| {name} | {epochs} | {' | '.join(figures)} |")
    means = [f"{statistics.mean(map(t.score, t)):.1f}" for t in tables.values()]
    print(f"| random cell | – | 1.2 | 2.4 | {' | '.join(means)} |")


if __name__ == "__main__":
    main()
