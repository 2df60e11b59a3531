"""A structure found on a large source task, trained again on a few images of a target task, beside its rivals.

    python benchmarks/transfer.py --seeds 5 --out benchmarks/results/transfer.json

Pairs of tasks:
  digits    0-4 to 5-9, with as many inputs of pure noise planted beside the 64 pixels; an MLP
  mnist     MNIST to Fashion-MNIST, 784 pixels; an MLP
  cifar     CIFAR-10 (JPEG copy, 16 x 16), airplane ... deer to dog ... truck; a small VGG
  digits, fresh and clothes, fresh    other halves of the classes, of digits beside other noise and of Fashion-MNIST
Every structure has the same MACs; the gates of the MLPs stand on inputs too. Besides the rivals of
`archgrad.transfer`: DNAL's mask, the structure that the same method finds on all training data of the target, and
those by magnitudes and squared gradients averaged over draws of the weights. With several `--rates` each network is
shown at its best.
Searches and source networks take `--steps` steps each. Rows that --out already holds are kept and not run again.
Data: found through ARCHGRAD_DATA; pairs without their data are left out.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import vgg
from PIL import Image
from saving import save_results
from torch import nn

import archgrad as ag
from archgrad.methods import PruningTerms, TransferProtocol

DATA = Path(os.environ.get("ARCHGRAD_DATA", ""))
Pair = tuple[ag.Classification, ag.Classification, nn.Module]
Arrays = tuple[np.ndarray, np.ndarray]


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def classes(x: np.ndarray, y: np.ndarray, chosen: Sequence[int]) -> Arrays:
    inside = np.isin(y, list(chosen))
    return x[inside], np.searchsorted(sorted(chosen), y[inside]).astype(np.int64)


def digits(sides: tuple[Sequence[int], Sequence[int]] = (range(5), range(5, 10)), *, seed: int = 0) -> Pair:
    held, noise = ag.digits(), np.random.default_rng(seed)
    pixels = held.x.flatten(1).numpy() / np.float32(255)
    x = np.concatenate([pixels, noise.normal(0.3, 0.35, pixels.shape).astype(np.float32)], 1)
    parts = [classes(x, held.y.numpy(), chosen) for chosen in sides]
    source, target = (ag.Classification(part, batch_size=64, split=ag.Split(0.3)) for part in parts)
    return source, target, mlp(128, 128, 64, 64, 5)


def mnist() -> Pair:
    def task(name: str) -> ag.Classification:
        z = np.load(DATA / name / f"{name}.npz")
        parts = {part: (z[f"x_{part}"], z[f"y_{part}"].astype(np.int64)) for part in ("train", "test")}
        x, y = parts["train"]
        test = tuple(one[:2000] for one in parts["test"])
        return ag.Classification((x[:6000], y[:6000]), (x[-500:], y[-500:]), test, batch_size=64)

    return task("mnist"), task("fashion_mnist"), mlp(784, 128, 64, 64, 10)


def clothes() -> Pair:
    """Five classes of Fashion-MNIST to the other five."""
    z = np.load(DATA / "fashion_mnist" / "fashion_mnist.npz")
    train, test = ((z[f"x_{part}"][:12000], z[f"y_{part}"][:12000]) for part in ("train", "test"))

    def task(chosen: Sequence[int]) -> ag.Classification:
        (x, y), (tx, ty) = classes(*train, chosen), classes(*test, chosen)
        return ag.Classification((x[:-500], y[:-500]), (x[-500:], y[-500:]), (tx[:2000], ty[:2000]), batch_size=64)

    return task(range(0, 10, 2)), task(range(1, 10, 2)), mlp(784, 128, 64, 64, 5)


def cifar() -> Pair:
    z = np.load(DATA / "cifar10" / "cifar10_jpeg.npz")
    header, body, offsets = z["header"].tobytes(), z["body"].tobytes(), z["offsets"]

    def part(first: int, count: int) -> Arrays:
        rows = range(first, first + count)
        raw = [np.asarray(Image.open(io.BytesIO(header + body[offsets[i] : offsets[i + 1]]))) for i in rows]
        pixels = np.stack(raw).reshape(count, 16, 2, 16, 2, 3).mean((2, 4)).round().astype(np.uint8)
        return pixels, z["labels"][first : first + count]

    parts = [part(0, 8000), part(int(z["n_train"]) - 1000, 1000), part(int(z["n_train"]), 3000)]

    def task(chosen: range) -> ag.Classification:
        train, valid, test = (classes(*one, chosen) for one in parts)
        return ag.Classification(train, valid, test, batch_size=64, augment=(ag.flip(), ag.crop(2)))

    return task(range(5)), task(range(5, 10)), vgg((16, "M", 32, "M", 64, 64, "M"), classes=5)


PAIRS: dict[str, tuple[Callable[[], Pair], float, TransferProtocol, str]] = {
    "digits": (digits, 0.2, TransferProtocol(shots=(1, 5, 20), draws=3, restarts=2), ""),
    "mnist": (mnist, 0.2, TransferProtocol(shots=(1, 5, 20), draws=3, restarts=2), "fashion_mnist/fashion_mnist.npz"),
    # Looked at once, after everything had been settled on the others.
    "digits, fresh": (
        functools.partial(digits, ((0, 3, 4, 7, 9), (1, 2, 5, 6, 8)), seed=1),
        0.2,
        TransferProtocol(shots=(5,), draws=3, restarts=2),
        "",
    ),
    "clothes, fresh": (
        clothes,
        0.2,
        TransferProtocol(shots=(5,), draws=3, restarts=2),
        "fashion_mnist/fashion_mnist.npz",
    ),
    "cifar": (cifar, 0.35, TransferProtocol(shots=(1, 5, 20), draws=3, restarts=1), "cifar10/cifar10_jpeg.npz"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--rates", nargs="+", type=float, default=[0.01], help="of Adam on the shots")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(chosen.out.read_text())["rows"] if chosen.out.is_file() else []
    done = {(row["pair"], row["seed"], row["steps"]) for row in rows}
    for seed in range(chosen.seeds):
        for pair in chosen.pairs:
            needs = PAIRS[pair][3]
            if needs and not (DATA / needs).is_file():
                print(f"skipped: {pair} needs {needs} in the folder that ARCHGRAD_DATA names")
            elif (pair, seed, chosen.steps) not in done:
                rows.append(measured(pair, seed, chosen.steps, rates=chosen.rates))
                save_results(chosen.out, {"rows": rows})
                print(f"{pair}, seed {seed}: {rows[-1]['seconds']} s", flush=True)
    for pair in chosen.pairs:
        print("\n".join(table([row for row in rows if row["pair"] == pair and row["steps"] == chosen.steps])))


def measured(pair: str, seed: int, steps: int, *, rates: Sequence[float]) -> dict[str, object]:
    """All networks of one pair and seed."""
    begun = time.perf_counter()
    make, fraction, protocol, _ = PAIRS[pair]
    torch.manual_seed(seed)
    source, target, network = make()
    x = source.example
    space = ag.slim(network, x, inputs=pair != "cifar")
    limit = ag.macs(x).at_most(fraction=fraction)

    def run() -> ag.Run:
        return ag.Run(steps=steps, seed=seed, device="cpu", progress=False)

    def pruned(task: ag.Classification, **terms: Any) -> ag.Found:
        return ag.pruning_transfer(
            space, task, run(), limit=limit, gamma=1.0, search_fraction=0.9, terms=PruningTerms(**terms)
        )

    found = pruned(source)
    others = {
        "DNAL's mask": ag.dnal(space, source, run(), limit=limit, round_to=1).architecture,
        "found on all of the target": pruned(target).architecture,
        "magnitude over redraws (ours)": pruned(source, statistic="magnitude").architecture,
        "gradient over redraws (ours)": pruned(source, statistic="gradient").architecture,
    }
    of_rates = []
    for rate in rates:
        recipe = replace(protocol.recipe, optimizer_factory=functools.partial(ag.adam, learning_rate=rate))
        tried = ag.transfer(
            space, found.architecture, run(), source=source, target=target, others=others,
            protocol=replace(protocol, recipe=recipe),
        )  # fmt: skip
        of_rates.append([{**tried.record["after"], "name": "this run"}, *tried.record["baselines"]])
    inputs = found.architecture.get("1.inputs", ())
    return {
        "pair": pair, "seed": seed, "steps": steps, "fraction": fraction, "source_accuracy": found.score,
        "inputs": [len(inputs), sum(i >= 64 for i in inputs)] if pair.startswith("digits") else len(inputs),
        "overlap": {name: overlap(found.architecture, other) for name, other in others.items()},
        "networks": of_rates[0], "rates": {str(r): networks for r, networks in zip(rates, of_rates, strict=True)},
        "seconds": round(time.perf_counter() - begun, 1),
    }  # fmt: skip


def overlap(one: ag.Architecture, other: ag.Architecture) -> float:
    """Jaccard overlap of the parts that two structures keep."""
    first, second = ({(n, i) for n, pick in each.items() for i in pick} for each in (one, other))
    return len(first & second) / len(first | second)


def table(rows: list[dict]) -> list[str]:
    """Mean and deviation over seeds of the mean accuracy over draws, in %; each network at its own best rate."""
    if not rows:
        return []
    rates = list(rows[0].get("rates", {})) if len(rows[0].get("rates", {})) > 1 else []
    keys = [key for key in rows[0]["networks"][0] if key.endswith("shots")]
    lines = [f"\n{rows[0]['pair']}, {len(rows)} seeds", f"| network | {' | '.join(keys)} | MACs |"]
    lines.append("|---" * (len(keys) + 2) + "|")
    for place, one in enumerate(rows[0]["networks"]):
        figures = []
        for key in keys:
            tried = [[100 * row["rates"][rate][place][key][0] for row in rows] for rate in rates]
            values = max(tried, key=statistics.mean, default=[100 * row["networks"][place][key][0] for row in rows])
            at = f" (at {rates[tried.index(values)]})" if rates else ""
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            figures.append(f"{statistics.mean(values):.1f}{spread}{at}")
        macs = statistics.mean(row["networks"][place]["macs"] for row in rows)
        lines.append(f"| {one['name']} | {' | '.join(figures)} | {macs:,.0f} |")
    overlaps = {name: statistics.mean(row["overlap"][name] for row in rows) for name in rows[0]["overlap"]}
    lines.append("overlap with " + ", ".join(f"{name} {value:.2f}" for name, value in overlaps.items()))
    return lines


if __name__ == "__main__":
    main()
