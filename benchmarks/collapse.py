"""Searches of NAS-Bench-201's supernet on real images, and what the cells are worth: looked up in the table.

    python benchmarks/collapse.py --images 6000 --steps 2700 --seeds 3 --out benchmarks/results/collapse.json

The supernet (4 channels, 1 cell a stage) is searched on CIFAR-10 (the JPEG copy, some of it, halved to 16 x 16) by
each method for the same number of steps. Every row has the same labelled images: where it ends with finalists, a
sixth of them is the validation part that decides; published forms train on all of them. Accuracies are those of the
published table after 200 epochs, "rank" is among all cells by the first data set, and "random cell" is the mean of
the space. No search sees the table. Searches and their forms: searches.py.
Data: found through ARCHGRAD_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from saving import save_results
from searches import BARE, ROWS, SEARCHES, by_row, paired, search
from slim_tasks import cifar10_part

import archgrad as ag
from archgrad.tasks import DATA

DRAWN = "random, 32 draws"
USUAL = tuple(
    row
    for row in ROWS
    if not row.startswith("random") and not any(part in row for part in ("no gap", "score function"))
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1200, help="with labels, of every row")
    parser.add_argument("--steps", type=int, nargs="+", default=[1350])
    parser.add_argument("--channels", type=int, default=4, help="of the supernet's first stage")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--methods", nargs="+", choices=ROWS, default=USUAL, metavar="ROW",
                        help=f"of {', '.join(SEARCHES)}; with '{BARE}' the form without")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(os.environ.get("ARCHGRAD_DATA", "")) / "nasbench201" / "nasbench201.npz"
    if not path.is_file():
        sys.exit(f"skipped: {path} is not there; set ARCHGRAD_DATA to the folder that holds nasbench201/")
    tables = {data: ag.Tabular.load(path, data=data) for data in DATA}
    space = ag.nasbench201_cells(channels=chosen.channels, cells=1)
    ordered = sorted((tables[DATA[0]].score(cell) for cell in tables[DATA[0]]), reverse=True)
    sixth = chosen.images // 6
    valid, train, tests = (
        cifar10_part(first, count, halved=True)
        for first, count in ((0, sixth), (sixth, chosen.images - sixth), (50000, 500))
    )
    task = ag.Classification(train, valid, tests, batch_size=chosen.batch, augment=(ag.flip(), ag.crop(2)))
    asked = {name: getattr(chosen, name) for name in ("images", "channels", "batch")}
    body = json.loads(chosen.out.read_text()) if chosen.out.is_file() else {**asked, "rows": []}
    if {name: body.get(name) for name in asked} != asked:
        sys.exit(f"{chosen.out} holds rows of another run, not of {asked}: name another file with --out")
    rows = body["rows"]
    done = {(r["method"], r["steps"], r["seed"]) for r in rows}
    for steps in sorted(chosen.steps):
        for seed in range(chosen.seeds):
            for name in chosen.methods:
                if (name, steps, seed) in done:
                    continue
                torch.manual_seed(seed)
                begun, network = time.process_time(), ag.nasbench201_cells(channels=chosen.channels, cells=1)
                found = search(name, network, task, steps=steps, seed=seed, trials=50)
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
                save_results(chosen.out, body)
    print(
        "| search | steps | seeds | skips of 6 | convolutions | "
        + " | ".join(DATA)
        + f" | rank | CIFAR-10 of its own choice | {DATA[0]} less random search's |\n"
        + "|---" * 11
        + "|"
    )
    for (name, steps), same in by_row(rows, "steps").items():
        figures = [f"{statistics.mean(r[k] for r in same):.1f}" for k in ("skips", "convolutions")]
        for data in DATA:
            values = [r[data] for r in same]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            figures.append(f"{statistics.mean(values):.1f}{spread}")
        ranks = ", ".join(f"{r['rank']:,}" for r in same)
        chosen_first = [r["finalists"][0][1] if r["finalists"] else r["cell"] for r in same]
        own = f"{statistics.mean(map(tables[DATA[0]].score, chosen_first)):.1f}"
        drawn = [r for r in rows if r["method"] == DRAWN and r["steps"] == steps]
        less = "–" if name == DRAWN else paired(same, drawn, DATA[0])
        print(f"| {name} | {steps} | {len(same)} | {' | '.join(figures)} | {ranks} | {own} | {less} |")
    means = [f"{statistics.mean(map(t.score, t)):.1f}" for t in tables.values()]
    print(f"| random cell | – | – | 1.2 | 2.4 | {' | '.join(means)} | – | – | – |")


if __name__ == "__main__":
    main()
