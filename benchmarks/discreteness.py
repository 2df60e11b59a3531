"""What each part of DARTS-PRIME does: {softmax, clipped} x {static, dynamic} x {none, proximity, ADMM}.

    python benchmarks/discreteness.py --data digits --seeds 3 --out benchmarks/results/discreteness.json
    python benchmarks/discreteness.py --data fashion_mnist --seeds 3 --out benchmarks/results/discreteness.json
    python benchmarks/discreteness.py --tables --out benchmarks/results/discreteness.json

One cell of two nodes, four operations ("none", a max pooling, a skip connection, a separable 3x3), on the digits of
scikit-learn, or on 2,000 images of Fashion-MNIST at 14x14 (found through ARCHGRAD_DATA). All variants get the same
steps of search, the same 4 : 1 division of the training part, one step of the architecture in five of the weights
(static: f = 5; dynamic: f = 4), and the same training of what was found, from fresh weights. Softmax, static and none
together are DARTS at that pace. Rows are saved one by one; a stopped run goes on. Printed at the end: the tables.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from saving import save_results

import archgrad as ag
from archgrad.methods import DartsPrimeTerms

ACTIVATIONS, SCHEDULES, REGULARISERS = ("softmax", "clipped"), ("static", "dynamic"), ("none", "proximity", "admm")
VARIANTS = tuple(itertools.product(ACTIVATIONS, SCHEDULES, REGULARISERS))
PACE = {"static": 5, "dynamic": 4}
OPERATIONS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")
IMAGES = 2000
Row = dict[str, Any]


def task(name: str) -> ag.Classification:
    if name == "digits":
        return ag.Classification.load("digits", batch_size=64)
    path = Path(os.environ.get("ARCHGRAD_DATA", "")) / "fashion_mnist" / "fashion_mnist.npz"
    if not path.is_file():
        sys.exit(f"skipped: {path} is not there; set ARCHGRAD_DATA to the folder that holds fashion_mnist/")
    z = np.load(path)

    def part(images: str, labels: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        x = z[images][:count].reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4), dtype=np.float32)
        return x.round().astype(np.uint8)[..., None], z[labels][:count].astype(np.int64)

    train, test = part("x_train", "y_train", IMAGES), part("x_test", "y_test", IMAGES)
    return ag.Classification(train, None, test, batch_size=64)


def space() -> torch.nn.Module:
    return ag.darts_cells(channels=8, cells=1, in_channels=1, nodes=2, operations=OPERATIONS)


def searched(data: ag.Classification, variant: tuple[str, str, str], *, seed: int, steps: tuple[int, int]) -> Row:
    """One variant with one seed: all that the tables are made of."""
    activation, schedule, regularizer = variant
    run = ag.Run(steps=sum(steps), seed=seed, device="cpu", progress=False)
    terms = DartsPrimeTerms(activation, schedule, PACE[schedule], regularizer=regularizer)  # type: ignore[arg-type]
    torch.manual_seed(seed)
    began = time.process_time()
    found = ag.darts_prime(
        space(), data, run, terms=terms, search_fraction=steps[0] / sum(steps), weights_fraction=0.8
    )
    shown = [row for row in found.history if "distance" in row]
    return {
        "seed": seed, "activation": activation, "schedule": schedule, "regularizer": regularizer,
        "distance": [[row["step"], round(row["distance"], 4)] for row in shown],
        "gap": found.record["discretization"]["gap"], "supernet": found.record["discretization"]["supernet"],
        "accuracy": found.score, "params": found.costs["params"], "macs": found.costs["macs"],
        "architecture_steps": sum("architecture_loss" in row for row in found.history),
        "cell": found.record["architecture_text"], "alarms": len(found.record["alarms"]),
        "seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def tables(rows: list[Row]) -> str:
    """Markdown: every variant, and each part's effect between rows that differ in it alone."""
    seeds = len({row["seed"] for row in rows})
    lines = [
        f"| activation, schedule, regularizer ({seeds} seeds) | distance at a quarter, half, end | gap, points "
        "| different cells | accuracy, % | parameters |",
        "|---" * 6 + "|",
    ]
    for variant in VARIANTS:
        same = [row for row in rows if _variant(row) == variant]
        if not same:
            continue
        distance = ", ".join(f"{statistics.fmean(_at(row, share) for row in same):.2f}" for share in (0.25, 0.5, 1.0))
        cells = len({row["cell"] for row in same})
        figures = (spread(same, "gap", 100, 1), f"{cells} of {len(same)}", spread(same, "accuracy", 100, 1))
        lines.append(
            f"| {', '.join(variant)} | {distance} | {' | '.join(figures)} | {spread(same, 'params', 1, 0)} |"
        )
    lines += ["", "| change, all else and the seed equal | pairs | distance at the end | gap, points "
              "| accuracy, points | parameters |", "|---" * 6 + "|"]  # fmt: skip
    for name, before, after in (
        ("activation", "softmax", "clipped"), ("schedule", "static", "dynamic"),
        ("regularizer", "none", "proximity"), ("regularizer", "none", "admm"),
    ):  # fmt: skip
        others = {_key(row, name): row for row in rows if row[name] == before}
        pairs = [(others[k], row) for row in rows if row[name] == after and (k := _key(row, name)) in others]
        if pairs:
            effects = [
                _effect(pairs, lambda row: _at(row, 1.0), 2),
                *(_effect(pairs, lambda row, n=n: 100 * row[n], 1) for n in ("gap", "accuracy")),  # type: ignore[misc]
                _effect(pairs, lambda row: row["params"], 0),
            ]
            lines.append(f"| {before} to {after} | {len(pairs)} | {' | '.join(effects)} |")
    return "\n".join(lines)


def _variant(row: Row) -> tuple[str, ...]:
    return row["activation"], row["schedule"], row["regularizer"]


def _key(row: Row, without: str) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("seed", "activation", "schedule", "regularizer") if name != without)


def _at(row: Row, share: float) -> float:
    """The distance once this share of the search had passed."""
    last = row["distance"][-1][0]
    return float(next(value for step, value in row["distance"] if step >= share * last))


def spread(rows: list[Row], name: str, times: float, digits: int) -> str:
    values = [times * row[name] for row in rows]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):,.{digits}f} ± {deviation:,.{digits}f}"


def _effect(pairs: list[tuple[Row, Row]], figure: Callable[[Row], float], digits: int) -> str:
    """Mean difference and its standard error."""
    values = [figure(after) - figure(before) for before, after in pairs]
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):+,.{digits}f} ± {error:,.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "fashion_mnist"), default="digits")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--search-steps", type=int, default=150)
    parser.add_argument("--train-steps", type=int, default=150)
    parser.add_argument("--tables", action="store_true", help="print the tables of --out, and search nothing")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    steps = (chosen.search_steps, chosen.train_steps)
    asked = {"steps": list(steps), "torch": torch.__version__}
    result: dict[str, Any] = {**asked, "rows": {}}
    if chosen.out.is_file():
        result = json.loads(chosen.out.read_text())
        if not chosen.tables and (other := {k: result.get(k) for k, v in asked.items() if result.get(k) != v}):
            sys.exit(f"{chosen.out} holds rows of another run ({other}, not {asked}): name another file with --out")
    if not chosen.tables:
        data, rows = task(chosen.data), result["rows"].setdefault(chosen.data, [])
        done = {(row["seed"], *_variant(row)) for row in rows}
        for seed, variant in itertools.product(range(chosen.seeds), VARIANTS):
            if (seed, *variant) not in done:
                rows.append(searched(data, variant, seed=seed, steps=steps))
                print(json.dumps({k: v for k, v in rows[-1].items() if k != "distance"}), flush=True)
                save_results(chosen.out, result)
    for name, rows in result["rows"].items():
        print(f"\n{name}\n\n{tables(rows)}")


if __name__ == "__main__":
    main()
