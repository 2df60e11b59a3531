"""Zero-cost proxies against the accuracies of NAS-Bench-201, beside published figures and beside size alone.

    python benchmarks/proxies.py --cells 500 --out benchmarks/results/proxies.json
    python benchmarks/proxies.py --out benchmarks/results/proxies.json --show

Each of the sampled cells is built as published (16 channels, 5 cells a stage, 10 classes, 32 x 32) with fresh weights
of one seed, and scored by every proxy: on CIFAR-10 images (the JPEG copy) and on random inputs and labels. Scores
are ranked against the test accuracies after 200 epochs on three data sets, and against the scores that others
published for the same cells. The cells are drawn from those for which published scores are at hand. A stopped run
goes on where it was. Data: found through ARCHGRAD_DATA.
"""

from __future__ import annotations

import argparse
import csv
import functools
import gzip
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from saving import save_results
from scipy.stats import spearmanr
from torch import Tensor, nn

import archgrad as ag
from archgrad import proxies
from archgrad.choices import choices
from archgrad.proxies import rank_agreement
from archgrad.spaces import NASBench201, nasbench201_operation
from archgrad.tasks import DATA

Batch = tuple[Tensor, Tensor]
BLOCKS = ("stem", *(f"body.{i}" for i in range(17)))
PARTS: dict[str, Callable[..., float]] = {
    name: functools.partial(getattr(proxies, name), blocks=BLOCKS)
    for name in ("expressivity", "progressivity", "trainability")
}
DATA_FREE = {name: getattr(proxies, name) for name in ("params", "macs", "synflow", "zen", "meco")}
DATA_BASED = {
    **{n: getattr(proxies, n) for n in ("naswot", "jacob_cov", "grad_norm", "snip", "fisher", "zico", "grasp")},
    "swap": functools.partial(proxies.swap, repeats=1),
    "linear_regions": functools.partial(proxies.linear_regions, repeats=1),
    "ntk_condition": functools.partial(proxies.ntk_condition, repeats=1),
}
# Images a proxy is given: as many as published, and 16 where that takes too long. Random inputs: 16, and to the parts
# of AZ-NAS 64, as published; they get no images.
EXAMPLES = dict.fromkeys(("naswot", "jacob_cov", "grad_norm", "snip", "fisher", "zico", "grasp"), 64)
# Proxies of one round are scored for all its cells before those of the next, so that a run cut short has whole
# columns; images say most, so random inputs get the first 100 cells where both are given.
ROUNDS = [
    ([(name, "shape") for name in DATA_FREE], None),
    ([(name, "noise") for name in EXAMPLES if name != "grasp"], 100),
    ([(name, "images") for name in EXAMPLES if name not in ("grasp", "zico")], None),
    ([(name, "noise") for name in PARTS], None),
    ([("zico", "images")], None),
    ([(name, "images") for name in DATA_BASED if name not in EXAMPLES], None),
    ([("grasp", "images")], None),
]
LOWER_IS_BETTER = {"ntk_condition"}
PUBLISHED = {  # Spearman on all or many cells; those marked * are recalled, not read
    "synflow": ".737 / .763 / .751", "jacob_cov": ".731 / .704 / .701", "snip": ".596 / .637 / .578",
    "grad_norm": ".594 / .637 / .578", "grasp": ".514 / .547 / .549", "fisher": ".360 / .385 / .327",
    "naswot": "– / .80 / –", "zico": ".80 / .81 / .79 *", "zen": ".38 / .36 / .40 *", "az_nas": ".913 / – / –",
    "swap": "– / .90 / – (regularized)",
}  # fmt: skip
STORED = {"synflow": "synflow", "jacob_cov": "jacov", "snip": "snip", "grad_norm": "grad_norm", "fisher": "fisher",
          "grasp": "grasp", "zen": "zen", "params": "params", "macs": "flops", "naswot": "nwot"}  # fmt: skip


def folder() -> Path:
    found = Path(os.environ.get("ARCHGRAD_DATA", ""))
    if not (found / "nasbench201" / "nasbench201.npz").is_file():
        sys.exit("skipped: set ARCHGRAD_DATA to the folder that holds nasbench201/ and cifar10/")
    return found


def stored() -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """Published scores by (data set, source), cell and proxy."""
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    with gzip.open(folder() / "nasbench201" / "nasbench201_zero_cost_proxies_sample.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            scores = {name: float(row[column]) for name, column in STORED.items() if row[column]}
            found.setdefault((row["dataset"], row["source"]), {})[row["arch"]] = scores
    return found


def images(count: int) -> Batch:
    """Normalized CIFAR-10 training images [count, 3, 32, 32] of the JPEG copy, and their labels."""
    z = np.load(folder() / "cifar10" / "cifar10_jpeg.npz", allow_pickle=False)
    header, body, offsets = z["header"].tobytes(), z["body"].tobytes(), z["offsets"]
    chosen = np.random.default_rng(0).permutation(int(z["n_train"]))[:count]
    pixels = [np.asarray(Image.open(io.BytesIO(header + body[offsets[i] : offsets[i + 1]]))) for i in chosen]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    return x.contiguous(), torch.from_numpy(z["labels"][chosen].astype(np.int64))


def network(cell: str) -> nn.Module:
    torch.manual_seed(0)
    return ag.nasbench201_network(cell)


def with_blocks(cell: str) -> nn.Module:
    """The same network with its cells as modules, which the published one, a graph of operations, has not."""
    space = ag.nasbench201_cells(cells=1)
    picks, candidates = space.from_string(cell), choices(space)

    def edge(name: str, width: int) -> nn.Module:
        return nasbench201_operation(candidates[name][0].labels[picks[name]], width, affine=True)

    return NASBench201(edge, channels=16, cells=5, classes=10, in_channels=3, affine=True)


def measure(cells: list[str], out: Path) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16, 3, 32, 32, generator=generator), torch.randint(10, (16,), generator=generator)
    random = torch.randn(64, 3, 32, 32, generator=generator)
    x, labels = images(64)
    done = json.loads(out.read_text()) if out.is_file() else {"cells": {}, "seconds": {}}
    for wanted, most in ROUNDS:
        for place, cell in enumerate(cells[:most]):
            scores = done["cells"].setdefault(cell, {})
            missing = [(name, kind) for name, kind in wanted if f"{name}, {kind}" not in scores]
            net = network(cell) if missing else None
            for name, kind in missing:
                begun, count = time.process_time(), EXAMPLES.get(name, 16)
                proxy = {**DATA_FREE, **DATA_BASED, **PARTS}[name]
                batch = (x[:count], labels[:count]) if kind == "images" else random if name in PARTS else noise
                score = proxy(with_blocks(cell) if name in PARTS else net, batch)
                scores[f"{name}, {kind}"] = float(f"{score:.8g}")
                seconds = done["seconds"].setdefault(f"{name}, {kind}", [0.0, 0])
                seconds[0], seconds[1] = seconds[0] + time.process_time() - begun, seconds[1] + 1
            if missing and (place % 10 == 9 or place == len(cells[:most]) - 1):
                save_results(out, done)
                print(f"{wanted[-1]}: {place + 1} of {len(cells[:most])} cells", flush=True)


def ranked(scores: list[float]) -> np.ndarray:
    """The scores, with what is undefined below all others."""
    values = np.array(scores)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    return np.where(np.isnan(values), low - 2, np.clip(values, low - 1, high + 1))


def columns(cells: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Each proxy's scores by cell, higher is better; combinations over the cells that have all their parts."""
    found: dict[str, dict[str, float]] = {}
    for cell, scores in cells.items():
        for name, score in scores.items():
            sign = -1 if name.partition(",")[0] in LOWER_IS_BETTER else 1
            found.setdefault(name, {})[cell] = sign * score
    for kind in ("images", "noise"):
        jacob, snip, naswot = (f"{n}, {kind}" for n in ("jacob_cov", "snip", "naswot"))
        joined = {
            "az_nas": ([f"{n}, {kind}" for n in PARTS] + ["macs, shape"], proxies.az_nas, 1),
            "te_nas": ([f"ntk_condition, {kind}", f"linear_regions, {kind}"], proxies.rank_vote, -1),
            "vote of synflow, jacob_cov, snip": (["synflow, shape", jacob, snip], proxies.rank_vote, -1),
            "vote of synflow, naswot, macs": (["synflow, shape", naswot, "macs, shape"], proxies.rank_vote, -1),
        }
        for name, (parts, join, sign) in joined.items():
            if all(part in found for part in parts):
                common = [c for c in cells if all(c in found[part] for part in parts)]
                scores_of = {part: [found[part][c] for c in common] for part in parts}
                found[f"{name}, {kind}"] = dict(zip(common, (sign * s for s in join(scores_of)), strict=True))
    return found


def measured(
    scores: Mapping[str, float], cells: Sequence[str], tables: Mapping[str, ag.Tabular]
) -> dict[str, dict[str, float | None]]:
    """How far these cells' scores rank as their accuracies do, on each data set."""
    given = [scores[cell] for cell in cells]
    return {data: rank_agreement(given, [table.score(cell) for cell in cells]) for data, table in tables.items()}


def _three(figures: Mapping[str, Mapping[str, float | None]], name: str) -> str:
    digits = 1 if name == "regret" else 3
    return " / ".join("–" if (v := figures[d][name]) is None else f"{v:.{digits}f}" for d in DATA)


def show(out: Path) -> None:
    done = json.loads(out.read_text())
    tables = {data: ag.Tabular.load(folder() / "nasbench201" / "nasbench201.npz", data=data) for data in DATA}
    found = columns(done["cells"])
    each = {name: measured(scores, list(scores), tables) for name, scores in found.items()}

    def three(name: str, figure: str) -> str:
        return _three(each[name], figure)

    print("| proxy | inputs | cells | Spearman | published | Kendall | best tenth | regret of the best, points | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in sorted(found, key=lambda n: -(each[n]["cifar10"]["spearman"] or -1.0)):
        proxy, kind = name.rsplit(", ", 1)
        seconds, count = done["seconds"].get(name, (float("nan"), 1))
        figures = " | ".join(three(name, f) for f in ("kendall", "top_tenth", "regret"))
        spent = f"{seconds / count:.2f}" if count and seconds == seconds else "–"
        print(
            f"| {proxy} | {kind} | {len(found[name])} | {three(name, 'spearman')} | {PUBLISHED.get(proxy, '')} "
            f"| {figures} | {spent} |"
        )
    common = [cell for cell in done["cells"] if all(cell in scores for scores in found.values())]
    print(f"\n| proxy | inputs | Spearman on the {len(common)} cells that all have |\n|---|---|---|")
    same = {name: measured(scores, common, tables) for name, scores in found.items()}
    for name in sorted(found, key=lambda n: -(same[n]["cifar10"]["spearman"] or -1.0)):
        print(f"| {' | '.join(name.rsplit(', ', 1))} | {_three(same[name], 'spearman')} |")
    print("\n| proxy | inputs | source A | source B |\n|---|---|---|---|")
    published = stored()
    for name, scores in found.items():
        proxy, kind = name.rsplit(", ", 1)
        if proxy not in STORED:
            continue
        agreements = []
        for source in "AB":
            theirs = published["cifar10", source]
            common = [c for c in scores if c in theirs and proxy in theirs[c]]
            both = ranked([scores[c] for c in common]), ranked([theirs[c][proxy] for c in common])
            agreements.append(f"{spearmanr(*both).statistic:.4f} ({len(common)})" if len(common) > 2 else "–")
        print(f"| {proxy} | {kind} | {' | '.join(agreements)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--show", action="store_true", help="print the tables of what is measured, and measure nothing"
    )
    arguments = parser.parse_args()
    if not arguments.show:
        known = sorted({cell for (data, _), rows in stored().items() if data == "cifar10" for cell in rows})
        if not 1 <= arguments.cells <= len(known):
            parser.error(f"--cells {arguments.cells}: give 1 to {len(known)}")
        order = np.random.default_rng(0).permutation(len(known))[: arguments.cells]
        measure([known[i] for i in order], arguments.out)
    show(arguments.out)


if __name__ == "__main__":
    main()
