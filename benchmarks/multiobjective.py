"""Accuracy against latency and energy on NAS-Bench-201: how fast searches command the field.

    python benchmarks/multiobjective.py --seeds 20 --trials 300 --out benchmarks/results/multiobjective.json

Scores and costs are looked up, so that a trial takes milliseconds. What is compared is the hypervolume of all trials
so far, as a share of that of the whole table's front, after so many different cells were paid for.

    pi5        CIFAR-100 accuracy, latency and energy on a Raspberry Pi 5 (LiteRT): three goals
    eyeriss    CIFAR-100 accuracy and latency on Eyeriss (the table has no energy of it): two goals

The corner is at the lower quartile of the accuracy and at the upper quartiles of the costs of all cells. Searches see
the column that they are judged by: the figures say how fast a front is found, nothing about generalization.
"spread" runs one search for each of four alphas, each with a quarter of the trials, and takes their trials in turns.
A prior is made of 500 random cells: alpha times the rank by SynFlow, less 1 - alpha times the rank by costs.
NSGA-II with a population of 20 and mutation of the front, neither of which tries a cell twice, are rivals with and
without the prior. Optuna's NSGA-II, population 50, is run as a peer where optuna is installed.
Rows that --out already holds are kept and not run again, so a run that was stopped goes on.
Data: the table nasbench201/nasbench201.npz, found through ARCHGRAD_DATA.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from saving import save_results
from torch import nn

import archgrad as ag
from archgrad.choices import Uniform
from archgrad.costs import TableColumn
from archgrad.errors import LimitError
from archgrad.methods import MonasTerms, Reward, accurate, mixed, soft, under
from archgrad.proxies import mean_channels, synflow_each
from archgrad.trials import front, hypervolume

ALPHAS = (0.5, 0.75, 0.9, 0.97)
PEER = 1000  # trials of NSGA-II, whose end the others are held against
COUNTS = (10, 25, 50, 100, 150, 200, 250, 300, 400, 600, 800, 1000)
COSTS = {
    "pi5": ("lat_ms_hw360_pi5_litert_cifar100", "energy_mj_hw360_pi5_litert_cifar100"),
    "eyeriss": ("lat_ms_help_eyeriss",),
}
Trials = list[ag.Architecture]
Prior = dict[str, torch.Tensor]


class Bench:
    """One choice of goals, one seed."""

    def __init__(self, table: ag.Tabular, space: nn.Module, goals: str, *, seed: int, trials: int) -> None:
        self.table, self.space, self.seed, self.trials = table, space, seed, trials
        self.costs: list[TableColumn] = [TableColumn(table, name) for name in COSTS[goals]]
        every = list(table)
        points = np.array([self.point(cell) for cell in every])
        self.corner = tuple(np.quantile(points, 0.75, axis=0))
        self.bounds = dict(zip((c.name for c in self.costs), np.quantile(points[:, 1:], 0.25, axis=0), strict=True))
        self.whole = hypervolume([tuple(p) for p in points], self.corner)
        self.good = float(np.quantile(-points[:, 0], 0.9)) / 100

    def point(self, cell: str | ag.Architecture) -> tuple[float, ...]:
        return (-self.table.score(cell), *(self.table.cost(cell, cost.name) for cost in self.costs))

    def curve(self, tried: Sequence[ag.Architecture]) -> list[float]:
        """The share of the whole front's volume after each of COUNTS trials; the last stands where a search ended."""
        points = [self.point(a) for a in dict.fromkeys(tried)]
        return [round(hypervolume(points[:n], self.corner) / self.whole, 5) for n in COUNTS if n <= self.trials]

    def volume(self, tried: Sequence[ag.Architecture]) -> float:
        """The share of the whole front's volume that all of them command."""
        return round(hypervolume([self.point(a) for a in dict.fromkeys(tried)], self.corner) / self.whole, 5)

    @functools.cached_property
    def synflow(self) -> tuple[Trials, np.ndarray]:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [ag.sample(self.space, generator=generator) for _ in range(500)]
        torch.manual_seed(self.seed)
        one = mean_channels(ag.nasbench201_cells(cells=1))
        return drawn, standing(synflow_each(one, drawn, torch.ones(1, 1, 8, 8)))

    def prior(self, alpha: float) -> Prior:
        drawn, flow = self.synflow
        price = np.mean([standing([c.predict(a) for a in drawn]) for c in self.costs], axis=0)
        worth = {a: float(v) for a, v in zip(drawn, alpha * flow - (1 - alpha) * price, strict=True)}
        return ag.prior(
            self.space, lambda some: [worth[a] for a in some], generator=torch.Generator().manual_seed(self.seed)
        )

    def random(self, prior: Prior | None, trials: int, seed: int = 0) -> Trials:
        policy, found = Uniform(self.space, prior=prior), dict[ag.Architecture, None]()
        generator = torch.Generator().manual_seed(1000 * seed + self.seed)
        for _ in range(20 * trials):
            if len(found) < trials:
                found[policy.sample(generator)] = None
        return list(found)

    def monas(self, reward: Reward, prior: Prior | None, trials: int, seed: int = 0) -> Trials:
        run = ag.Run(trials=trials, seed=1000 * seed + self.seed, device="cpu", progress=False)
        found = ag.monas(
            self.space, self.table, run, reward=reward, costs=self.costs, prior=prior, terms=MonasTerms(patience=100)
        )
        return [ag.Architecture(one["architecture"]) for one in found.record["trials"]]

    def spread(self, one: Callable[[float], Trials]) -> Trials:
        turns = itertools.zip_longest(*(one(alpha) for alpha in ALPHAS))
        return [a for turn in turns for a in turn if a is not None]

    def nsga2(self) -> Trials:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        tried: Trials = []

        def objective(trial: optuna.Trial) -> tuple[float, ...]:
            names = ag.sample(self.space, generator=torch.Generator().manual_seed(0))
            tried.append(ag.Architecture({n: trial.suggest_categorical(n, list(range(5))) for n in names}))
            return self.point(tried[-1])

        sampler = optuna.samplers.NSGAIISampler(seed=self.seed)
        study = optuna.create_study(directions=["minimize"] * (1 + len(self.costs)), sampler=sampler)
        study.optimize(objective, n_trials=PEER)
        return tried

    def fresh(self, make: Callable[[], ag.Architecture], tried: dict[ag.Architecture, None], rng: Random) -> None:
        """Try what `make` makes, unless it was tried: then again, and at last any cell that was not."""
        made = next((a for a in (make() for _ in range(50)) if a not in tried), None)
        while made is None or made in tried:
            made = self.changed(made or next(iter(tried)), rng, chance=1.0)
        tried[made] = None

    def changed(self, cell: ag.Architecture, rng: Random, *, chance: float) -> ag.Architecture:
        """Each pick of a cell drawn anew by chance; one at least."""
        sure = rng.choice(list(cell))
        return ag.Architecture(
            {n: rng.randrange(5) if n == sure or rng.random() < chance else p for n, p in cell.items()}
        )

    def nsga2_unique(self, prior: Prior | None) -> Trials:
        """NSGA-II with a population of 20, uniform crossover, and no cell tried twice."""
        rng, size = Random(self.seed), 20
        tried = dict.fromkeys(self.random(prior, size))
        population = list(tried)
        while len(tried) < self.trials:
            order = {a: place for place, a in enumerate(self.sorted(population))}

            def child(population: Trials = population, order: dict[ag.Architecture, int] = order) -> ag.Architecture:
                first, second = (min(rng.sample(population, 2), key=order.__getitem__) for _ in range(2))
                crossed = {n: rng.choice((p, second[n])) for n, p in first.items()}
                return self.changed(ag.Architecture(crossed), rng, chance=1 / 6)

            before = len(tried)
            for _ in range(min(size, self.trials - before)):
                self.fresh(child, tried, rng)
            population = self.sorted([*population, *list(tried)[before:]])[:size]
        return list(tried)

    def sorted(self, cells: Trials) -> Trials:
        """By fronts, and within one by crowding distance, the loneliest first."""
        left, ordered = list(cells), list[ag.Architecture]()
        while left:
            points = [self.point(a) for a in left]
            best = front(points)
            lonely = dict.fromkeys(best, 0.0)
            for goal in range(len(points[0])):
                along = sorted(best, key=lambda i, goal=goal: points[i][goal])
                span = points[along[-1]][goal] - points[along[0]][goal]
                lonely[along[0]] = lonely[along[-1]] = math.inf
                for i, j, k in zip(along, along[1:], along[2:], strict=False):
                    lonely[j] += (points[k][goal] - points[i][goal]) / span if span else 0.0
            ordered += [left[i] for i in sorted(best, key=lambda i: -lonely[i])]
            left = [a for i, a in enumerate(left) if i not in set(best)]
        return ordered

    def mutation(self, prior: Prior | None) -> Trials:
        """After 20 draws, one pick of a random member of the front changed; no cell is tried twice."""
        rng = Random(self.seed)
        tried = dict.fromkeys(self.random(prior, 20))
        while len(tried) < self.trials:
            cells = list(tried)
            best = [cells[i] for i in front([self.point(a) for a in cells])]
            self.fresh(lambda best=best: self.changed(rng.choice(best), rng, chance=0.0), tried, rng)
        return list(tried)

    def methods(self) -> dict[str, Callable[[], Trials]]:
        n, part = self.trials, -(-self.trials // len(ALPHAS))
        limits = [cost.at_most(float(self.bounds[cost.name])) for cost in self.costs]
        found: dict[str, Callable[[], Trials]] = {
            "random": lambda: self.random(None, n),
            "random, prior (spread)": lambda: self.spread(
                lambda a: self.random(self.prior(a), part, seed=1 + ALPHAS.index(a))
            ),
            "monas mixed 0.75": lambda: self.monas(mixed(*self.costs, alpha=0.75), None, n),
            "monas mixed 0.75, prior": lambda: self.monas(mixed(*self.costs, alpha=0.75), self.prior(0.75), n),
            "monas under": lambda: self.monas(under(*limits), None, n),
            "monas under, prior": lambda: self.monas(under(*limits), self.prior(0.5), n),
            "monas soft": lambda: self.monas(soft(*limits), None, n),
            "monas accurate": lambda: self.monas(accurate(*self.costs, least=self.good), None, n),
            "monas mixed (spread)": lambda: self.spread(
                lambda a: self.monas(mixed(*self.costs, alpha=a), None, part, seed=1 + ALPHAS.index(a))
            ),
            "monas mixed, prior (spread)": lambda: self.spread(
                lambda a: self.monas(mixed(*self.costs, alpha=a), self.prior(a), part, seed=1 + ALPHAS.index(a))
            ),
        }
        for name, prior in (("", lambda: None), (", prior", lambda: self.prior(0.75))):
            found[f"NSGA-II, 20 different{name}"] = lambda prior=prior: self.nsga2_unique(prior())
            found[f"mutation of the front{name}"] = lambda prior=prior: self.mutation(prior())
        if importlib.util.find_spec("optuna"):
            found["NSGA-II (Optuna)"] = self.nsga2
        return found


def standing(values: Sequence[float]) -> np.ndarray:
    """Ranks with mean 0 and variance 1."""
    ranks = np.argsort(np.argsort(np.asarray(values))).astype(float)
    return (ranks - ranks.mean()) / ranks.std()


def table_of(rows: list[dict[str, object]], goals: str, trials: int) -> str:
    counts = [n for n in COUNTS if n <= trials]
    lines = [f"| {goals} | " + " | ".join(map(str, counts)) + " | cells |", "|---" * (len(counts) + 2) + "|"]
    for name in dict.fromkeys(str(r["method"]) for r in rows):
        own = [r for r in rows if r["method"] == name and r["goals"] == goals and r["curve"]]
        if own:
            columns = zip(*(r["curve"] for r in own), strict=True)  # type: ignore[arg-type]
            cells = [f"{100 * statistics.mean(c):.1f} ± {100 * statistics.pstdev(c):.1f}" for c in columns]
            paid = statistics.mean(float(r["cells"]) for r in own)  # type: ignore[arg-type]
            lines.append(f"| {name} ({len(own)}) | " + " | ".join(cells) + f" | {paid:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--methods", nargs="+", help="their names begin so; default: all")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(os.environ.get("ARCHGRAD_DATA", "")) / "nasbench201" / "nasbench201.npz"
    if not path.is_file():
        sys.exit(f"skipped: {path} is not there; set ARCHGRAD_DATA to the folder that holds nasbench201/")
    if not importlib.util.find_spec("optuna"):
        print("optuna is not installed: its NSGA-II is left out; `pip install optuna` for the peer", flush=True)
    table, space = ag.Tabular.load(path, data="cifar100"), ag.nasbench201_cells(channels=1, cells=1)
    asked = {"trials": chosen.trials, "torch": torch.__version__}
    result = json.loads(chosen.out.read_text()) if chosen.out.is_file() else {**asked, "rows": []}
    if other := {k: result.get(k) for k, v in asked.items() if result.get(k) != v}:
        sys.exit(f"{chosen.out} holds rows of another run ({other}, not {asked}): name another file with --out")
    rows: list[dict[str, object]] = result["rows"]
    done = {(r["seed"], r["goals"], r["method"]) for r in rows}
    for seed, goals in itertools.product(range(chosen.seeds), COSTS):
        bench = Bench(table, space, goals, seed=seed, trials=chosen.trials)
        for name, method in bench.methods().items():
            if (seed, goals, name) in done or not name.startswith(tuple(chosen.methods or [""])):
                continue
            start, tried, failed = time.perf_counter(), list[ag.Architecture](), ""
            try:
                tried = method()
            except LimitError as error:
                failed = str(error)
            row = {"seed": seed, "goals": goals, "method": name, "cells": len(set(tried)), "end": bench.volume(tried)}
            rows.append({**row, "curve": bench.curve(tried) if tried else [], "failed": failed,
                         "seconds": round(time.perf_counter() - start, 1)})  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
            save_results(chosen.out, {**result, "rows": rows})
    for goals in COSTS:
        print(table_of(rows, goals, chosen.trials), end="\n\n")
        ends = [float(r["end"]) for r in rows if r["goals"] == goals and "Optuna" in str(r["method"]) and "end" in r]  # type: ignore[arg-type]
        if ends:
            print(f"NSGA-II after {PEER} trials: {100 * statistics.mean(ends):.1f} %", end="\n\n")


if __name__ == "__main__":
    main()
