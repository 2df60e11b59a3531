"""Audio-visual digits: encoders and fusion found at random, beside one sense alone, fixed networks, and UNAS.

    python benchmarks/multimodal.py --seeds 3 --out benchmarks/results/multimodal.json

Digits are spoilt as levels A and B of `archgrad.av_digits` are, from the user's own copies of MNIST and the Free
Spoken Digit Dataset, found through ARCHGRAD_DATA. Every row has the same number of training steps in all, but that of
UNAS, whose steps are dearer: it has as many as take about the time of the random search. What a person decided for a
row is the total of its intervention card (docs/methods/multimodal_random.md); of fixed networks, that of a card made
for them here: their layers are all hand-made, and encoders trained before count. Rows that are there are not run
again.
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
from typing import Any

import torch
from saving import machine, save_results
from torch import Tensor, nn

import archgrad as ag
from archgrad.methods import UnasTerms, card
from archgrad.trials import best_so_far

TRIALS = 20
WIDTHS = {"8": (8,), "16": (16,), "8 doubling": (8, 16, 32)}
RECIPE = ag.Recipe(optimizer_factory=functools.partial(ag.adamw, learning_rate=2e-3))
UNAS_STEPS = 0.15  # of a random search's, which take about as long
BLOCKS = {"image": 3, "audio": 4}
Figures = dict[str, Any]


class LeNet(nn.Module):
    """Blocks of 3 x 3 convolutions, 8 channels doubling, BatchNorm, ReLU, a pool; and what each says on average."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self.name = name
        channels = [1, *(8 * 2**i for i in range(BLOCKS[name]))]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
                nn.MaxPool2d(2, ceil_mode=True),
            )
            for a, b in itertools.pairwise(channels)
        )  # fmt: skip
        side = -(-size // 2 ** BLOCKS[name])
        self.linear = nn.Linear(channels[-1] * side * side, 64)
        self.head = nn.Linear(64, 10)

    def levels(self, x: dict[str, Tensor]) -> list[Tensor]:
        """The mean over places behind each block, [B, C], and the last features, [B, 64]."""
        y, found = x[self.name], []
        for block in self.blocks:
            y = block(y)
            found.append(y.mean(dim=(2, 3)))
        return [*found, self.linear(y.flatten(1)).relu()]

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.head(self.levels(x)[-1])


class Late(nn.Module):
    """Both LeNets, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.audio = LeNet("image", 28), LeNet("audio", 56)
        self.head = nn.Sequential(nn.Linear(128, 100), nn.ReLU(), nn.Linear(100, 10))

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([self.image.levels(x)[-1], self.audio.levels(x)[-1]], dim=1))


class Fused(nn.Module):
    """Layers over levels of frozen encoders: h_l = act(W [h_(l-1), image level, audio level]), as in MFAS."""

    def __init__(self, layers: list[tuple[int, int, int]], widths: dict[str, list[int]]) -> None:
        super().__init__()
        self.layers, before = layers, 0
        self.linear = nn.ModuleList()
        for i, j, _ in layers:
            self.linear.append(nn.Linear(before + widths["image"][i] + widths["audio"][j], 64))
            before = 64
        self.head = nn.Linear(64, 10)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        h: list[Tensor] = []
        for (i, j, act), linear in zip(self.layers, self.linear, strict=True):
            y = linear(torch.cat([*h, x[f"image{i}"], x[f"audio{j}"]], dim=1))
            h = [y.relu() if act == 0 else y.sigmoid()]
        return self.head(h[0])


class Whole(nn.Module):
    """A fusion with the encoders that it stands on."""

    def __init__(self, encoders: dict[str, nn.Module], fused: nn.Module) -> None:
        super().__init__()
        self.encoders, self.fused = nn.ModuleDict(encoders), fused

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        levels = {f"{n}{i}": f for n, e in self.encoders.items() for i, f in enumerate(e.levels(x))}
        return self.fused(levels)


def run_of(steps: int, seed: int, **settings: Any) -> ag.Run:
    return ag.Run(steps=steps, seed=seed, device="cpu", progress=False, **settings)


def by_hand(network: nn.Module, task: ag.Classification, steps: int, *, weights_given: bool = False) -> Figures:
    """What a network made by hand costs, and the total of its intervention card."""
    told = card(network, run_of(steps, 0), options=[], data=task.splits, weights_given=weights_given)
    return {"macs": ag.macs(task.example).of(network), "intervention": told["total"]}


def fixed(make: Callable[[], nn.Module], task: ag.Classification, steps: int, seed: int) -> Figures:
    torch.manual_seed(seed)
    network = make()
    valid = ag.fit(network, task, run_of(steps, seed), recipe=RECIPE)["accuracy"]
    return {"valid": valid, "test": task.evaluate(network, "test")["accuracy"], **by_hand(network, task, steps)}


def random(task: ag.Classification, steps: int, seed: int, *, only: str | None = None) -> Figures:
    torch.manual_seed(seed)
    example = task.example
    space = ag.fusion({n: x for n, x in example.items() if only in (None, n)}, classes=10, widths=WIDTHS)
    found = ag.multimodal_random(space, task, run_of(steps, seed))
    first = [r["score"] for r in found.record["trials"]]
    return {
        "valid": max(first), "test": found.score, "trials": len(first), "best_so_far": best_so_far(first),
        "macs": found.costs["macs"], "intervention": found.record["card"]["total"],
        "architecture": found.record["architecture_text"],
    }  # fmt: skip


def unas(task: ag.Classification, steps: int, seed: int) -> Figures:
    torch.manual_seed(seed)
    space = ag.fusion(task.example, classes=10, widths=WIDTHS)
    steps = round(UNAS_STEPS * steps)
    terms = UnasTerms(estimator="score_function")  # the others run all candidates in every step
    run = run_of(steps, seed)
    found = ag.unas(space, task, run, terms=terms, search_recipe=RECIPE, recipe=RECIPE)
    told = card(space, run, options=["terms.estimator=score_function"], data=task.splits)
    return {
        "valid": task.evaluate(found.network)["accuracy"], "test": found.score, "steps": steps,
        "macs": found.costs["macs"], "intervention": told["total"],
        "architecture": space.describe(found.architecture)["architecture_text"],
    }  # fmt: skip


def mfas_like(task: ag.Classification, steps: int, seed: int) -> Figures:
    """Half of the steps for each encoder alone; then random fusions of their frozen levels, at next to no cost."""
    encoders: dict[str, nn.Module] = {}
    for name, size in (("image", 28), ("audio", 56)):
        torch.manual_seed(seed)
        encoders[name] = LeNet(name, size)
        ag.fit(encoders[name], task, run_of(steps // 2, seed), recipe=RECIPE)
    held: dict[str, tuple[dict[str, Tensor], Tensor]] = {}
    for part in ("train", "valid", "test"):
        rows: list[tuple[dict[str, Tensor], Tensor]] = []
        for x, y in task._batches(part):
            with torch.no_grad():
                levels = {f"{n}{i}": f for n, e in encoders.items() for i, f in enumerate(e.eval().levels(x))}
            rows.append((levels, y))
        held[part] = ({n: torch.cat([r[0][n] for r in rows]) for n in rows[0][0]}, torch.cat([r[1] for r in rows]))
    widths = {n: [held["train"][0][f"{n}{i}"].shape[1] for i in range(BLOCKS[n] + 1)] for n in BLOCKS}
    parts = [ag.Modalities(*held[part]) for part in ("train", "valid", "test")]
    small = ag.Classification(*parts, batch_size=128, classes=10)
    generator, tried = torch.Generator().manual_seed(seed), []

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    for number in range(TRIALS):
        layers = [(draw(len(widths["image"])), draw(len(widths["audio"])), draw(2)) for _ in range(1 + draw(3))]
        torch.manual_seed(number)
        network = Fused(layers, widths)
        valid = ag.fit(network, small, run_of(3 * small.steps_per_epoch, seed), recipe=RECIPE)["accuracy"]
        tried.append((valid, -number, network, layers))
    valid, _, network, layers = max(tried, key=lambda one: one[:2])
    hand = by_hand(Whole(encoders, network), task, steps, weights_given=True)
    return {"valid": valid, "test": small.evaluate(network, "test")["accuracy"], "architecture": str(layers), **hand}


ROWS: dict[str, Callable[[ag.Classification, int, int], Figures]] = {
    "random search": random,
    "LeNet late fusion": functools.partial(fixed, Late),
    "random search, image alone": functools.partial(random, only="image"),
    "random search, audio alone": functools.partial(random, only="audio"),
    "random fusion of frozen LeNets (MFAS-like)": mfas_like,
    "UNAS": unas,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--levels", nargs="+", default=["A", "B"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--pairs", type=int, nargs=3, default=[8000, 500, 1000])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = Path(os.environ.get("ARCHGRAD_DATA", ""))
    mnist, fsdd = data / "mnist" / "mnist.npz", data / "fsdd" / "fsdd.npz"
    if not (mnist.is_file() and fsdd.is_file()):
        sys.exit(
            f"skipped: {mnist} or {fsdd} is not there; set ARCHGRAD_DATA to the folder that holds mnist/ and fsdd/"
        )
    held = json.loads(chosen.out.read_text()) if chosen.out.is_file() else {"machine": machine(), "rows": []}
    held["scale"] = {"pairs": chosen.pairs, "batch": chosen.batch, "steps": chosen.steps, "trials": TRIALS}
    done = {(r["row"], r["level"], r["seed"]) for r in held["rows"]}
    for seed in range(chosen.seeds):
        for level in chosen.levels:
            left = [name for name in chosen.rows if (name, level, seed) not in done]
            if not left:
                continue
            task = ag.av_digits(
                mnist, fsdd, level=level, pairs=tuple(chosen.pairs), seed=seed, batch_size=chosen.batch
            )  # fmt: skip
            for name in left:
                begun = time.perf_counter()
                figures = ROWS[name](task, chosen.steps, seed)
                row = {"row": name, "level": level, "seed": seed, "steps": chosen.steps, **figures}
                held["rows"].append(row | {"seconds": round(time.perf_counter() - begun, 1)})
                print(json.dumps(held["rows"][-1]), flush=True)
                save_results(chosen.out, held)
    show(held["rows"], chosen.levels)


def show(rows: list[Figures], levels: list[str]) -> None:
    """The table of the page: means over seeds, and standard deviations."""
    print(
        "| level | row | seeds | test accuracy, % | steps | seconds | MACs, M | intervention |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for level in levels:
        for name in dict.fromkeys((*ROWS, *(r["row"] for r in rows))):
            same = [r for r in rows if r["row"] == name and r["level"] == level]
            if not same:
                continue
            tests = [100 * r["test"] for r in same]
            spread = f" ± {statistics.stdev(tests):.1f}" if len(tests) > 1 else ""
            macs = [r["macs"] / 1e6 for r in same]
            size = " to ".join(dict.fromkeys((f"{min(macs):.1f}", f"{max(macs):.1f}")))
            hand = same[0]["intervention"]
            seconds = statistics.mean(r["seconds"] for r in same)
            steps, mean = same[0]["steps"], statistics.mean(tests)
            score, cost = f"{mean:.1f}{spread}", f"{seconds:.0f} | {size}"
            print(f"| {level} | {name} | {len(same)} | {score} | {steps:,} | {cost} | {hand} |")


if __name__ == "__main__":
    main()
