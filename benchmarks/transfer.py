"""A structure found on a large source task, trained again on a few images of a target task, beside its rivals.

    python benchmarks/transfer.py --seeds 3 --out benchmarks/results/transfer.json

Pairs of tasks:
  digits    0-4 to 5-9, with as many inputs of pure noise planted beside the 64 pixels; an MLP
  mnist     MNIST to Fashion-MNIST, 784 pixels; an MLP
  cifar     CIFAR-10 (JPEG copy, 16 x 16), airplane ... deer to dog ... truck; a small VGG
  digits, fresh and clothes, fresh    other halves of the classes, of digits beside other noise and of Fashion-MNIST
Every structure has the same MACs; the gates of the MLPs stand on inputs too. Besides the rivals of
`archgrad.transfer`: DNAL's mask, the structure that the same method finds on all training data of the target, and
those by magnitudes and squared gradients averaged over draws of the weights. Each network takes the one of `--rates`
that is best on the validation part of the target, apart for each number of shots.
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
from archgrad.training import constant

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
    "digits": (digits, 0.2, TransferProtocol(draws=3, restarts=1), ""),
    "mnist": (mnist, 0.2, TransferProtocol(draws=3, restarts=1), "fashion_mnist/fashion_mnist.npz"),
    # Looked at once, after everything had been settled on the others.
    "digits, fresh": (
        functools.partial(digits, ((0, 3, 4, 7, 9), (1, 2, 5, 6, 8)), seed=1),
        0.2,
        TransferProtocol(draws=3, restarts=1),
        "",
    ),
    "clothes, fresh": (
        clothes,
        0.2,
        TransferProtocol(draws=3, restarts=1),
        "fashion_mnist/fashion_mnist.npz",
    ),
    "cifar": (cifar, 0.35, TransferProtocol(draws=3, restarts=1), "cifar10/cifar10_jpeg.npz"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument(
        "--rates",
        nargs="+",
        type=float,
        default=[0.001, 0.003, 0.01, 0.03],
        help="of Adam on the shots, to choose among",
    )
    parser.add_argument("--shots", nargs="+", type=int, default=[5])
    parser.add_argument("--seeds", type=int, default=3)
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
                rows.append(measured(pair, seed, chosen.steps, rates=chosen.rates, shots=chosen.shots))
                save_results(chosen.out, {"rows": rows})
                print(f"{pair}, seed {seed}: {rows[-1]['cpu_seconds']} s", flush=True)
    for pair in chosen.pairs:
        print("\n".join(table([row for row in rows if row["pair"] == pair and row["steps"] == chosen.steps])))


def measured(pair: str, seed: int, steps: int, *, rates: Sequence[float], shots: Sequence[int]) -> dict[str, object]:
    """All networks of one pair and seed."""
    begun = time.process_time()
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
    recipes = [
        ag.Recipe(optimizer_factory=functools.partial(ag.adam, learning_rate=rate), schedule=constant)
        for rate in rates
    ]
    tried = ag.transfer(
        space, found.architecture, run(), source=source, target=target, others=others,
        protocol=replace(protocol, recipe=recipes, shots=shots),
    )  # fmt: skip
    taken = tried.record.get("recipes", {}).get("taken", {})
    networks = [
        {**one, "rates": {f"{count} shots": rates[taken.get(f"{one['name']}, {count} shots", 0)] for count in shots}}
        for one in ({**tried.record["after"], "name": "this run"}, *tried.record["baselines"])
    ]
    inputs = found.architecture.get("1.inputs", ())
    return {
        "pair": pair, "seed": seed, "steps": steps, "fraction": fraction, "source_accuracy": found.score,
        "inputs": [len(inputs), sum(i >= 64 for i in inputs)] if pair.startswith("digits") else len(inputs),
        "overlap": {name: overlap(found.architecture, other) for name, other in others.items()},
        "networks": networks, "cpu_seconds": round(time.process_time() - begun, 1),
    }  # fmt: skip


def overlap(one: ag.Architecture, other: ag.Architecture) -> float:
    """Jaccard overlap of the parts that two structures keep."""
    first, second = ({(n, i) for n, pick in each.items() for i in pick} for each in (one, other))
    return len(first & second) / len(first | second)


def table(rows: list[dict]) -> list[str]:
    """Means and deviations over seeds of the mean accuracy over draws, in %, and how far each is from this run."""
    if not rows:
        return []
    keys = [key for key in rows[0]["networks"][0] if key.endswith("shots")]
    lines = [
        f"\n{rows[0]['pair']}, {len(rows)} seeds, {statistics.mean(row['cpu_seconds'] for row in rows):.0f} CPU s"
    ]
    lines.append(f"| network | {' | '.join(f'{key} | less this run | rates' for key in keys)} | MACs |")
    lines.append("|---" * (3 * len(keys) + 2) + "|")
    for place, one in enumerate(rows[0]["networks"]):
        figures = []
        for key in keys:
            values = [100 * row["networks"][place][key][0] for row in rows]
            less = [value - 100 * row["networks"][0][key][0] for value, row in zip(values, rows, strict=True)]
            figures += [
                _spread(values), _error(less) if place else "",
                ", ".join(f"{row['networks'][place]['rates'][key]:g}" for row in rows),
            ]  # fmt: skip
        macs = statistics.mean(row["networks"][place]["macs"] for row in rows)
        lines.append(f"| {one['name']} | {' | '.join(figures)} | {macs:,.0f} |")
    overlaps = {name: statistics.mean(row["overlap"][name] for row in rows) for name in rows[0]["overlap"]}
    lines.append("overlap with " + ", ".join(f"{name} {value:.2f}" for name, value in overlaps.items()))
    return lines


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _error(differences: Sequence[float]) -> str:
    """Mean difference, seed by seed, and the standard error of that mean."""
    error = f" ± {statistics.stdev(differences) / len(differences) ** 0.5:.1f}" if len(differences) > 1 else ""
    return f"{statistics.mean(differences):+.1f}{error}"


if __name__ == "__main__":
    main()
