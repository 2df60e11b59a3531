"""Searches of NAS-Bench-201's supernet on real images, and what the cells are worth: looked up in the table.

    python benchmarks/collapse.py --seeds 3 --out benchmarks/results/collapse.json

The supernet (8 channels, 1 cell a stage) is searched on CIFAR-10 (the JPEG copy, few images, halved to 16 x 16) by
each method for the same number of steps. Every row has the same labelled images: where it ends with finalists, a
sixth of them is the validation part that decides; published forms train on all of them. Accuracies are those of the
published table after 200 epochs, "rank" is among all cells by the first data set, and "random cell" is the mean of
the space. No search sees the table.
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
from slim_tasks import cifar10_part

import archgrad as ag
from archgrad.methods import DartsPrimeTerms, UnasTerms, adam_of_unas
from archgrad.tasks import DATA

# As the authors' code has it for CIFAR: rates 2e-3 to 3e-4 and 6e-4 to 1e-4, schedules that begin after the warm-up.
PUBLISHED_UNAS = functools.partial(
    ag.unas, finalists=None,
    terms=UnasTerms(gap="pairwise", per_image=True, softening=0.0, warm_up=0.15, rate=2e-3, floor=0.15, restart=True),
    search_recipe=ag.Recipe(optimizer_factory=adam_of_unas, schedule=ag.warm_up_cosine(0, last=1 / 3)),
)  # fmt: skip
METHODS: dict[str, Callable[..., ag.Found]] = {
    "single path, published": functools.partial(ag.random_search, shared=True, finalists=None),
    "single path": functools.partial(ag.random_search, shared=True),
    "darts, published": functools.partial(ag.darts, finalists=None),
    "darts": ag.darts,
    "darts_prime, published": functools.partial(ag.darts_prime, finalists=None),
    "darts_prime, static": functools.partial(
        ag.darts_prime, finalists=None, terms=DartsPrimeTerms(schedule="static")
    ),
    "darts_prime": ag.darts_prime,
    "unas, published": PUBLISHED_UNAS,
    "unas, weights alone for a tenth": functools.partial(ag.unas, terms=UnasTerms(warm_up=0.1), finalists=None),
    "unas, no finalists": functools.partial(ag.unas, finalists=None),
    "unas": ag.unas,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1200, help="with labels, of every row")
    parser.add_argument("--steps", type=int, nargs="+", default=[960])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(os.environ.get("ARCHGRAD_DATA", "")) / "nasbench201" / "nasbench201.npz"
    if not path.is_file():
        sys.exit(f"skipped: {path} is not there; set ARCHGRAD_DATA to the folder that holds nasbench201/")
    tables = {data: ag.Tabular.load(path, data=data) for data in DATA}
    space = ag.nasbench201_cells(channels=8, cells=1)
    ordered = sorted((tables[DATA[0]].score(cell) for cell in tables[DATA[0]]), reverse=True)
    sixth = chosen.images // 6
    valid, train, tests = (
        cifar10_part(first, count, halved=True)
        for first, count in ((0, sixth), (sixth, chosen.images - sixth), (50000, 500))
    )
    task = ag.Classification(train, valid, tests, batch_size=64, augment=(ag.flip(), ag.crop(2)))
    rows = json.loads(chosen.out.read_text())["rows"] if chosen.out.is_file() else []
    done = {(r["method"], r.get("steps"), r["seed"]) for r in rows}  # older rows are counted in epochs
    for steps in sorted(chosen.steps):
        for seed in range(chosen.seeds):
            for name in chosen.methods:
                if (name, steps, seed) in done:
                    continue
                torch.manual_seed(seed)
                decides = name.startswith("single path") or getattr(METHODS[name], "keywords", {}).get(
                    "finalists", True
                )
                data = task if decides else task.with_validation()
                begun = time.process_time()
                run = ag.Run(steps=steps, seed=seed, device="cpu", progress=False, trials=50)
                found = METHODS[name](ag.nasbench201_cells(channels=8, cells=1), data, run, search_fraction=1.0)
                cell = space.to_string(found.architecture)
                rows.append({
                    "method": name, "steps": steps, "seed": seed, "cell": cell,
                    "skips": cell.count("skip_connect"), "convolutions": cell.count("nor_conv"),
                    **{data: table.score(cell) for data, table in tables.items()},
                    "rank": 1 + ordered.index(tables[DATA[0]].score(cell)),
                    "finalists": [
                        [r["from"], space.to_string(ag.Architecture({
                            k: tuple(v) if isinstance(v, list) else v for k, v in r["architecture"].items()
                        })), r["score"]]
                        for r in found.record.get("finalists", ())
                    ],
                    "cpu_seconds": round(time.process_time() - begun, 1),
                })  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
                save_results(chosen.out, {"images": chosen.images, "rows": rows})
    print(
        "| search | steps | seeds | skips of 6 | convolutions | "
        + " | ".join(DATA)
        + " | rank |\n"
        + "|---" * 9
        + "|"
    )
    for name in METHODS:
        for steps in sorted(chosen.steps):
            same = [r for r in rows if r["method"] == name and r.get("steps") == steps]
            if same:
                figures = [f"{statistics.mean(r[k] for r in same):.1f}" for k in ("skips", "convolutions")]
                for data in DATA:
                    values = [r[data] for r in same]
                    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                    figures.append(f"{statistics.mean(values):.1f}{spread}")
                ranks = ", ".join(f"{r['rank']:,}" for r in same)
                print(f"| {name} | {steps} | {len(same)} | {' | '.join(figures)} | {ranks} |")
    means = [f"{statistics.mean(map(t.score, t)):.1f}" for t in tables.values()]
    print(f"| random cell | – | – | 1.2 | 2.4 | {' | '.join(means)} | – |")


if __name__ == "__main__":
    main()
