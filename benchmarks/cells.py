"""UNAS, DARTS and random search on a supernet small enough to enumerate, at equal cost.

    python benchmarks/cells.py --seeds 5 --out benchmarks/results/cells.json

Three layers of four operations, 64 networks, on Fashion-MNIST. The truth about each network is its mean test
accuracy over several trainings on its own (`--trainings`), from fresh weights. Every search gets the same CPU time
(`--seconds`, as a number of steps that is worked out from the time of a step measured beforehand), and its result is
judged by the truth: regret is the best network's accuracy minus that of the network found; rank correlation is
Spearman's, of what the search says of all 64 networks with the truth. Searches never see the test images.
Data: found through ARCHGRAD_DATA.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from saving import save_results
from torch import Tensor, nn

import archgrad as ag
from archgrad.costs import rank_correlation
from archgrad.methods import UnasTerms
from archgrad.spaces import operation

LABELS = ("skip_connect", "max_pool_3x3", "sep_conv_3x3", "dil_conv_5x5")
CHANNELS = (8, 16, 16)
LAYERS = len(CHANNELS)


class Layers(nn.Module):
    """Stem, three layers that are chosen, head: [B, 1, 28, 28] to [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        first = CHANNELS[0]
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(first))
        layers: list[nn.Module] = []
        for i, (before, width) in enumerate(zip((first, *CHANNELS), CHANNELS, strict=False)):
            if width != before:
                layers.append(nn.Sequential(nn.ReLU(), nn.Conv2d(before, width, 1, stride=2), nn.BatchNorm2d(width)))
            candidates = {label: operation(label, width, affine=False, pool_norm=True) for label in LABELS}
            layers.append(ag.OpChoice(candidates, name=f"layer{i}"))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(CHANNELS[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)).relu().mean((2, 3)))


ALL = [
    ag.Architecture({f"layer{i}": pick for i, pick in enumerate(picks)})
    for picks in itertools.product(range(len(LABELS)), repeat=LAYERS)
]

# Rows without a choice by validation data train on it too, so that all rows have the same labelled images.
WITHOUT: dict[str, Callable[..., ag.Found]] = {
    "unas": functools.partial(ag.unas, terms=UnasTerms(gap="batch")),
    "unas, weights alone for a tenth": functools.partial(ag.unas, terms=UnasTerms(warm_up=0.1)),
    "unas, gap of pairs": functools.partial(ag.unas, terms=UnasTerms(gap="pairwise")),
    "unas, no gap": functools.partial(ag.unas, terms=UnasTerms(gap="none")),
    "unas, score function": functools.partial(ag.unas, terms=UnasTerms(estimator="score_function")),
    "darts": functools.partial(ag.darts, search_recipe=ag.Recipe()),
}
METHODS: dict[str, Callable[..., ag.Found]] = {
    **{name: functools.partial(method, finalists=None) for name, method in WITHOUT.items()},
    "unas, finalists": ag.unas,
    "darts, finalists": functools.partial(ag.darts, search_recipe=ag.Recipe()),
    "single path": functools.partial(ag.random_search, shared=True, finalists=None),
    "single path, finalists": functools.partial(ag.random_search, shared=True),
    "random": ag.random_search,
}


def task(images: int, tests: int) -> ag.Classification:
    path = Path(os.environ.get("ARCHGRAD_DATA", "")) / "fashion_mnist" / "fashion_mnist.npz"
    if not path.is_file():
        sys.exit(f"skipped: {path} is not there; set ARCHGRAD_DATA to the folder that holds fashion_mnist/")
    z = np.load(path)
    x, y, tx, ty = (z[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    valid = slice(images, 2 * images)
    shape = lambda a: a.reshape(-1, 28, 28, 1)  # noqa: E731
    return ag.Classification(
        (shape(x[:images]), y[:images].astype(np.int64)), (shape(x[valid]), y[valid].astype(np.int64)),
        (shape(tx[:tests]), ty[:tests].astype(np.int64)), batch_size=64,
    )  # fmt: skip


def truth(space: nn.Module, data: ag.Classification, *, epochs: int, trainings: int) -> list[list[float]]:
    """Test accuracies of every network, trained on its own: [64][trainings]."""
    rows = []
    for number, architecture in enumerate(ALL):
        scores = []
        for seed in range(trainings):
            torch.manual_seed(1000 * seed + number)
            network = ag.build(space, architecture, weights="fresh")
            run = ag.Run(epochs=epochs, seed=seed, device="cpu", progress=False)
            ag.fit(network, data, run)
            scores.append(data.evaluate(network, "test")["accuracy"])
        rows.append(scores)
        print(f"{number:2d} {dict(architecture)} {statistics.fmean(scores):.4f}", flush=True)
    return rows


def searched(name: str, data: ag.Classification, *, seed: int, steps: int) -> tuple[ag.Found, float]:
    """A search without training afterwards, and its seconds of CPU."""
    torch.manual_seed(seed)
    trials = len(ALL) if name.startswith("single path") else 8
    data = data.with_validation() if name in WITHOUT else data
    run = ag.Run(steps=steps, seed=seed, trials=trials, device="cpu", progress=False)
    began = time.process_time()
    found = METHODS[name](Layers(), data, run, search_fraction=1.0)
    return found, time.process_time() - began


def scores_of(found: ag.Found, name: str) -> list[float] | None:
    """What the search says of every network: log-probability, or validation accuracy with shared weights."""
    if name == "random":
        return None
    if name.startswith("single path"):
        tried = {ag.Architecture(row["architecture"]): row["score"] for row in found.record["trials"]}
        return [tried.get(architecture, float("nan")) for architecture in ALL]
    last = next(row for row in reversed(found.history) if "weight/layer0/" + LABELS[0] in row)
    logs = [[np.log(last[f"weight/layer{i}/{label}"]) for label in LABELS] for i in range(LAYERS)]
    return [float(sum(logs[i][a[f"layer{i}"]] for i in range(LAYERS))) for a in ALL]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--tests", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=12, help="of each training alone")
    parser.add_argument("--trainings", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0, help="of CPU for each search")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = task(chosen.images, chosen.tests)
    alone = truth(Layers(), data, epochs=chosen.epochs, trainings=chosen.trainings)
    true = [statistics.fmean(scores) for scores in alone]
    variances = [statistics.variance(scores) for scores in alone] if chosen.trainings > 1 else [float("nan")]
    noise = statistics.fmean(variances) ** 0.5
    print(f"best {max(true):.4f}, mean {statistics.fmean(true):.4f}, root mean square deviation of one {noise:.4f}")
    rows = []
    for name in METHODS:
        # The first call pays for what is loaded once; half of the second is what does not grow with the steps.
        searched(name, data, seed=99, steps=16)
        short, long = (searched(name, data, seed=99, steps=n)[1] for n in (16, 64))
        steps = max(32, round((chosen.seconds - short) / max((long - short) / 48, 1e-4)))
        for seed in range(chosen.seeds):
            found, seconds = searched(name, data, seed=seed, steps=steps)
            said = scores_of(found, name)
            known = [] if said is None else [i for i, s in enumerate(said) if s == s]
            rank = rank_correlation([said[i] for i in known], [true[i] for i in known]) if known else None
            accuracy = true[ALL.index(found.architecture)]
            row = {
                "method": name, "seed": seed, "steps": steps, "seconds": round(seconds, 1), "accuracy": accuracy,
                "regret": max(true) - accuracy, "rank": rank, "picks": list(found.architecture.values()),
            }  # fmt: skip
            rows.append(row)
            print(json.dumps(row), flush=True)
    for name in METHODS:
        same = [row for row in rows if row["method"] == name]
        regrets, ranks = [r["regret"] for r in same], [r["rank"] for r in same if r["rank"] is not None]
        spread = f"{100 * statistics.fmean(regrets):.2f} ± {100 * statistics.stdev(regrets):.2f}"
        rank = f"{statistics.fmean(ranks):.2f} ± {statistics.stdev(ranks):.2f}" if ranks else "-"
        print(f"{name:24s} regret {spread:14s} rank {rank}")
    if chosen.out:
        settings = {key: value for key, value in vars(chosen).items() if key != "out"}
        body = {"settings": settings, "torch": torch.__version__, "truth": alone, "rows": rows}
        save_results(chosen.out, body)


if __name__ == "__main__":
    main()
