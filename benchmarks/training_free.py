"""All 15,625 cells of NAS-Bench-201 scored without training: how fast, and how good the cell is that comes first.

    python benchmarks/training_free.py --seeds 10 --out benchmarks/results/training_free.json

1. SynFlow of every cell: one by one as published; many in a pass with the weights of one supernet; each distinct
   graph once; in the mean over draws of the weights, on one channel, at smaller images and fewer cells a stage. Each
   with cells a second, and the Spearman correlation with the one-by-one scores of `proxies.json` and with accuracy.
2. One cell out of all, no accuracy used. First the `--share` of the distinct graphs of the highest mean
   SynFlow; of these the highest sum of log ranks (the rule of AZ-NAS) of proxies on random inputs, for networks
   with fresh weights a seed. Two combinations: "all" has expressivity, progressivity, trainability, MACs,
   NASWOT and SynFlow; it was fixed before any accuracy was looked up. "without size" has trainability, NASWOT
   and jacob_cov; it was fixed after the first cell of "all" had been looked up, and before any of its own: what
   grows with a network's size has its maximum at six 3x3 convolutions whatever the data. A stopped run goes on
   with the next seed.

Data: found through ARCHGRAD_DATA.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from proxies import BLOCKS, folder, network, ranked, with_blocks
from saving import save_results
from scipy.stats import spearmanr

import archgrad as ag
from archgrad import proxies
from archgrad.proxies import mean_channels, synflow_each
from archgrad.tasks import DATA

HERE = Path(__file__).parent / "results"
COMBINED = {
    "all": ("expressivity", "progressivity", "trainability", "macs", "naswot", "synflow"),
    "without size": ("trainability", "naswot", "jacob_cov"),
}
ONE = torch.ones(1, 3, 32, 32)


def distinct() -> tuple[list[str], np.ndarray]:
    """One cell of each graph, and for every cell of the table the place of its graph among these."""
    with np.load(folder() / "nasbench201" / "nasbench201.npz", allow_pickle=False) as table:
        cells, graphs = table["arch"].astype(str), table["rep_index"]
    first, place = np.unique(graphs, return_inverse=True)
    return [str(cells[i]) for i in first], place


def flows(tables: dict[str, ag.Tabular]) -> list[dict[str, object]]:
    every = list(tables["cifar10"])
    graphs, place = distinct()
    stored = json.loads((HERE / "proxies.json").read_text())["cells"]
    known = [cell for cell in every if cell in stored]
    truth = ranked([stored[cell]["synflow, shape"] for cell in known])
    row = {cell: i for i, cell in enumerate(every)}
    chosen = [row[cell] for cell in known]

    begun = time.process_time()
    for cell in every[:: len(every) // 100][:100]:
        proxies.synflow(network(cell), ONE)
    plain = 100 / (time.process_time() - begun)
    rows: list[dict[str, object]] = [{"way": "one by one", "cells": 100, "cells_per_second": plain}]

    torch.manual_seed(0)
    full = ag.nasbench201_cells()
    some = [full.from_string(cell) for cell in known[:128]]
    begun = time.process_time()
    scores = synflow_each(full, some, ONE)
    speed = len(some) / (time.process_time() - begun)
    rows.append({
        "way": "stacked, weights of one supernet", "cells": len(some), "cells_per_second": speed,
        "agreement": float(spearmanr(scores, truth[: len(some)]).statistic),
    })  # fmt: skip
    for cells, size in ((5, 32), (5, 16), (5, 8), (1, 32), (1, 8)):
        torch.manual_seed(0)
        small = mean_channels(ag.nasbench201_cells(cells=cells))
        architectures = [small.from_string(cell) for cell in graphs]
        begun = time.process_time()
        found = ranked(synflow_each(small, architectures, torch.ones(1, 1, size, size)))[place]
        speed = len(every) / (time.process_time() - begun)
        accuracy = [float(spearmanr(found, [t.score(c) for c in every]).statistic) for t in tables.values()]
        rows.append({
            "way": f"distinct graphs, mean over draws, {cells} cells a stage, {size} x {size}", "cells": len(every),
            "cells_per_second": speed, "agreement": float(spearmanr(found[chosen], truth).statistic),
            "accuracy": accuracy,
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def finalists(share: float) -> dict[str, float]:
    """The distinct graphs of the highest mean SynFlow, and that."""
    torch.manual_seed(0)
    small = mean_channels(ag.nasbench201_cells())
    graphs, _ = distinct()
    scores = ranked(synflow_each(small, [small.from_string(c) for c in graphs], torch.ones(1, 1, 32, 32)))
    best = np.argsort(-scores)[: int(share * len(graphs))]
    return {graphs[i]: float(scores[i]) for i in best}


def scored(few: dict[str, float], seed: int, batch: int) -> dict[str, list[float]]:
    """The proxies of a few cells, with the weights and inputs of a seed."""
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    scores: dict[str, list[float]] = {"synflow": list(few.values())}
    for cell in few:
        torch.manual_seed(seed)
        net = with_blocks(cell)
        for name in ("expressivity", "progressivity", "trainability"):
            scores.setdefault(name, []).append(getattr(proxies, name)(net, x, blocks=BLOCKS, seed=seed))
        for name in ("macs", "naswot", "jacob_cov"):
            scores.setdefault(name, []).append(getattr(proxies, name)(net, x))
    return scores


def decided(tables: dict[str, ag.Tabular]) -> list[dict[str, object]]:
    """The cell that FreeNAS decides by default, and six skip connections, where long searches by DARTS end."""
    space = ag.nasbench201_cells()
    found = ag.freenas(space, ag.Run(seed=0, device="cpu", progress=False), example=torch.ones(1, 3, 32, 32))
    skips = dict.fromkeys(found.architecture, 0)
    labels = found.record["labels"]
    skips = {name: list(labels[name]).index("skip_connect") for name in skips}
    rows = []
    for name, architecture in (("freenas", found.architecture), ("six skip connections", ag.Architecture(skips))):
        cell = space.to_string(architecture)
        ranks = {d: 1 + sum(t.score(other) > t.score(cell) for other in t) for d, t in tables.items()}
        rows.append(
            {"way": name, "cell": cell, "score": {d: t.score(cell) for d, t in tables.items()}, "rank": ranks}
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--share", type=float, default=0.01)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tables = {d: ag.Tabular.load(folder() / "nasbench201" / "nasbench201.npz", data=d) for d in DATA}
    done = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}

    def save() -> None:
        save_results(arguments.out, done)

    if "flows" not in done:
        done["flows"] = flows(tables)
        save()
    if "decided" not in done:
        done["decided"] = decided(tables)
        save()
    few = finalists(arguments.share)
    picks = done.setdefault("picks", {})
    for seed in range(arguments.seeds):
        if str(seed) not in picks:
            begun = time.process_time()
            scores = scored(few, seed, arguments.batch)
            chosen = {
                name: proxies.az_nas({part: scores[part] for part in parts}) for name, parts in COMBINED.items()
            }
            chosen |= {f"{name} alone": ranked(column).tolist() for name, column in scores.items()}
            best = {name: list(few)[int(np.argmax(column))] for name, column in chosen.items()}
            picks[str(seed)] = {"best": best, "seconds": time.process_time() - begun}
            save()
            print(seed, picks[str(seed)]["seconds"], flush=True)

    print("\n| choice | " + " | ".join(DATA) + " |\n|---|---|---|---|")
    rows = {name: [p["best"][name] for p in picks.values()] for name in picks["0"]["best"]}
    rows["mean of the finalists"] = list(few)
    for name, cells in rows.items():
        figures = [[t.score(c) for c in cells] for t in tables.values()]
        spread = [statistics.stdev(f) if len(f) > 1 else 0.0 for f in figures]
        shown = " | ".join(f"{statistics.mean(f):.2f} ± {s:.2f}" for f, s in zip(figures, spread, strict=True))
        print(f"| {name} | {shown} |")
    print("| the best cell of each | " + " | ".join(f"{t.optimum:.2f}" for t in tables.values()) + " |")


if __name__ == "__main__":
    main()
