"""TopoNAS with DARTS-PRIME's schedule and pull, beside each alone, DARTS and UNAS.

    python benchmarks/combination.py --data digits --seeds 10 --out benchmarks/results/combination.json
    python benchmarks/combination.py --data fashion_mnist --seeds 10 --out benchmarks/results/combination.json

One cell of three nodes, four operations ("none", a max pooling, a skip connection, a separable 3x3), so that the
second node keeps two of three inputs and the third two of four; data and steps as in `discreteness.py`. Everyone has
the same steps of search, its own default options, and the same training of what was found, from fresh weights; the
pace of DARTS-PRIME is F = 4. Topology: the factorized distribution over subsets. UNAS samples one path, and so runs
over the topology, or over the space whose edges are chosen one by one ("single inputs"). Rows are saved one by one; a
stopped run goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from discreteness import OPERATIONS, Row, spread, task
from saving import save_results

import archgrad as ag
from archgrad.choices import topology
from archgrad.methods import DartsPrimeTerms

PRIME = DartsPrimeTerms(f=4)
Search = Callable[[ag.Classification, ag.Run, float], ag.Found]


def cell(*, single: bool = False) -> torch.nn.Module:
    operations = tuple(o for o in OPERATIONS if not (single and o == "none"))
    return ag.darts_cells(channels=8, cells=1, in_channels=1, nodes=3, operations=operations, factorized=single)


METHODS: dict[str, Search] = {
    "darts": lambda data, run, share: ag.darts(cell(), data, run, search_fraction=share),
    "toponas": lambda data, run, share: ag.toponas(cell(), data, run, search_fraction=share),
    "darts_prime": lambda data, run, share: ag.darts_prime(cell(), data, run, terms=PRIME, search_fraction=share),
    "toponas with darts_prime": lambda data, run, share: ag.darts_prime(
        topology(cell()), data, run, terms=PRIME, search_fraction=share
    ),
    "unas, topology": lambda data, run, share: ag.unas(topology(cell()), data, run, search_fraction=share),
    "unas, single inputs": lambda data, run, share: ag.unas(cell(single=True), data, run, search_fraction=share),
    "random search": lambda data, run, share: ag.random_search(cell(), data, run, search_fraction=share),
}


def searched(data: ag.Classification, name: str, *, seed: int, steps: tuple[int, int]) -> Row:
    run = ag.Run(steps=sum(steps), seed=seed, device="cpu", progress=False)
    torch.manual_seed(seed)
    began = time.process_time()
    found = METHODS[name](data, run, steps[0] / sum(steps))
    gap = (found.record.get("discretization") or {}).get("gap")
    return {
        "method": name, "seed": seed, "accuracy": found.score, "gap": gap, "params": found.costs["params"],
        "macs": found.costs["macs"], "cell": found.record["architecture_text"],
        "seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def table(rows: list[Row]) -> str:
    lines = ["| search | seeds | gap, points | different cells | accuracy, % | parameters | s |", "|---" * 7 + "|"]
    for name in METHODS:
        same = [row for row in rows if row["method"] == name]
        if same:
            gap = "–" if same[0]["gap"] is None else spread(same, "gap", 100, 1)
            lines.append(
                f"| {name} | {len(same)} | {gap} | {len({row['cell'] for row in same})} "
                f"| {spread(same, 'accuracy', 100, 1)} | {spread(same, 'params', 1, 0)} "
                f"| {spread(same, 'seconds', 1, 0)} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "fashion_mnist"), default="digits")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--search-steps", type=int, default=150)
    parser.add_argument("--train-steps", type=int, default=150)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    steps = (chosen.search_steps, chosen.train_steps)
    asked = {"steps": list(steps), "torch": torch.__version__}
    result: dict[str, Any] = {**asked, "rows": {}}
    if chosen.out.is_file():
        result = json.loads(chosen.out.read_text())
        if any(result.get(key) != value for key, value in asked.items()):
            parser.error(f"{chosen.out} holds rows of another run: name another file with --out")
    data, rows = task(chosen.data), result["rows"].setdefault(chosen.data, [])
    done = {(row["seed"], row["method"]) for row in rows}
    for seed, name in itertools.product(range(chosen.seeds), METHODS):
        if (seed, name) not in done:
            rows.append(searched(data, name, seed=seed, steps=steps))
            print(json.dumps(rows[-1]), flush=True)
            save_results(chosen.out, result)
    for name, found in result["rows"].items():
        print(f"\n{name}\n\n{table(found)}")


if __name__ == "__main__":
    main()
