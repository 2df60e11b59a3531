"""Search under a bound on memory: the peak against the number of candidates, and what the bound costs in accuracy.

    python benchmarks/memory_bound.py --sizes 4 16 64 --accuracy-sizes --out benchmarks/results/memory_bound.json
    python benchmarks/memory_bound.py --sizes --accuracy-sizes --planted --episodes --seeds 3 --out planted.json

Four layers of 16 channels on the 8 x 8 digits; a candidate is a kernel, an inner width, an activation and a pooling,
so that there are up to 256 a layer. The bound is what a supernet of the three dearest of all 256 takes, over 0.9.

Rows "peak": the most that tensors held at once in a whole search, with everything that it made (`Allocations`), and
the largest step of a supernet in it. Rows "accuracy": on the test part of the digits, and of 2,000 images of
Fashion-MNIST at 14 x 14 (found through ARCHGRAD_DATA), after a search and a training of --steps weight steps
together, half each: RADARS; DARTS on a random subspace of three candidates a layer; RADARS's policy alone; random
search over networks trained apart. Rows "planted": the same in a space of 16 candidates a layer of which half are
bad, with what RADARS pruned. Good ones, of four kernels and two widths, are in the even places; behind each is the
same followed by its mean over the image, which forgets where anything was. RADARS prunes by its defaults there; by
its rule as reconstructed, two rounds in a row; and by our rule, the mean advantage of a candidate's episodes. Random
search has as many weight steps, and as many as take RADARS's time. Rows "episodes": paths drawn evenly, as RADARS
explores, what they are rewarded with, and how well that tells the good from the bad. Rows that --out holds are not
run again.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import discreteness
import torch
from saving import save_results
from torch import Tensor, nn

import archgrad as ag
from archgrad.costs import Allocations
from archgrad.methods import OffloadedSupernet, Priced, RadarsTerms, ShrinkingPolicy, SinglePathTrainer
from archgrad.training import darts_sgd

Figures = dict[str, Any]
LAYERS, CHANNELS, BATCH, WIDE = 4, 16, 64, 3
KERNELS, WIDTHS = (3, 1, 5, 7), (16, 8, 4, 2)
ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.ReLU, nn.Tanh, nn.SiLU, nn.Sigmoid)
POOLS = ("max", "avg", "none", "zero")
# The first 4 differ in kernel, the first 16 in width too, the first 64 in activation, the 256 in pooling.
Made = tuple[int, int, type[nn.Module], str]
ALL: tuple[Made, ...] = tuple((k, w, a, p) for p, a, w, k in itertools.product(POOLS, ACTIVATIONS, WIDTHS, KERNELS))
PLANTED = tuple((*one[:3], pool) for one in ALL[:8] for pool in (one[3], "mean"))  # a bad one follows each


class Zeroed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.0


class Spread(nn.Module):
    """The mean over the image, everywhere; it takes as much memory as a map, so that the bad are not the cheap."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x).contiguous()


def candidate(kernel: int, width: int, activation: type[nn.Module], pool: str) -> nn.Module:
    pools = {
        "avg": nn.AvgPool2d(3, 1, 1),
        "max": nn.MaxPool2d(3, 1, 1),
        "zero": Zeroed(),
        "mean": nn.Sequential(nn.MaxPool2d(3, 1, 1), Spread()),
    }
    return nn.Sequential(
        activation(), nn.Conv2d(CHANNELS, width, 1, bias=False), nn.BatchNorm2d(width), activation(),
        nn.Conv2d(width, CHANNELS, kernel, padding=kernel // 2, bias=False), pools.get(pool, nn.Identity()),
        nn.BatchNorm2d(CHANNELS),
    )  # fmt: skip


def space(picks: Sequence[Sequence[int]], *, lazy: bool = True, table: Sequence[Made] = ALL) -> nn.Module:
    """A layer for each row of candidates of the table."""
    layers = []
    for i, row in enumerate(picks):
        recipes = {str(j): ag.Lazy(functools.partial(candidate, *table[j])) for j in row}
        made = recipes if lazy else {label: recipe.build() for label, recipe in recipes.items()}
        layers.append(ag.OpChoice(made, name=f"layer {i}"))
    return nn.Sequential(
        nn.Conv2d(1, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), *layers, nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(4 * CHANNELS, 10),
    )  # fmt: skip


def first(size: int) -> list[range]:
    return [range(size)] * LAYERS


def digits() -> ag.Classification:
    return ag.Classification.load("digits", batch_size=BATCH)


def quiet(steps: int, seed: int, **more: object) -> ag.Run:
    return ag.Run(steps=steps, seed=seed, device="cpu", progress=False, **more)


def bound(task: ag.Classification) -> ag.Limit:
    def taken(*some: int) -> int:
        supernet = OffloadedSupernet(space([some] * LAYERS), device=torch.device("cpu"), folder=None, seed=0)
        priced = Priced(supernet, task.split(0.5)[0], quiet(1, 0), optimizer=darts_sgd, passes=1)
        return priced.peak_bytes({site: range(size) for site, size in supernet.sites.items()})

    peak = taken(*sorted(range(256), key=taken)[-WIDE:])
    return ag.peak_memory(task.example, batch=BATCH).at_most(peak_bytes=peak / 0.9)


def peak(method: str, size: int, task: ag.Classification, memory: ag.Limit, steps: int) -> dict[str, float]:
    torch.manual_seed(0)
    with Allocations() as held:
        if method == "radars":
            found = ag.radars(space(first(size)), task, quiet(steps, 0), memory=memory, search_fraction=1.0)
            step = max(row["measured_peak_bytes"] for row in found.record["rounds"])
        else:
            found = ag.darts(space(first(size)), task, quiet(steps, 0), search_fraction=1.0)
            step = next(row["predicted_peak_bytes"] for row in found.history if "predicted_peak_bytes" in row)
    return {"peak_bytes": held.peak_bytes, "step_bytes": step, "bound_bytes": memory.bound}


@dataclass(frozen=True)
class Judged:
    """What a row of accuracies is measured on: candidates of a table, a task, a bound, and weight steps."""

    size: int
    task: ag.Classification
    memory: ag.Limit
    steps: int
    table: Sequence[Made] = ALL

    def space(self, picks: Sequence[Sequence[int]] | None = None) -> nn.Module:
        """All candidates, or those picked."""
        return space(picks or first(self.size), table=self.table)

    def figures(self, accuracy: float | None, picked: Sequence[int]) -> Figures:
        """What a row says: accuracy, and how many of the candidates picked are bad."""
        return {"accuracy": accuracy or 0.0, "bad_picked": bad(picked, self.table)}


def bad(some: Iterable[int], table: Sequence[Made]) -> int:
    return sum(table[i][3] == "mean" for i in some)


def picks_of(found: ag.Found) -> list[int]:
    return [int(pick) for pick in found.architecture.values()]  # type: ignore[arg-type]


def of_layers(some: Mapping[str, Sequence[int]], table: Sequence[Made]) -> Figures:
    """How many candidates, and how many bad ones, in all layers, and without the last, where a mean loses little."""
    early = list(some.values())[:-1]
    return {
        f"{kind}{where}": sum(count(row) for row in rows)
        for where, rows in (("", list(some.values())), ("_early", early))
        for kind, count in (("", len), ("_bad", functools.partial(bad, table=table)))
    }


def with_radars(judged: Judged, seed: int, **terms: Any) -> Figures:
    found = ag.radars(
        judged.space(), judged.task, quiet(judged.steps, seed), memory=judged.memory, terms=RadarsTerms(**terms)
    )
    rounds = [
        {f"{part}{kind}": n for part in ("left", "support") for kind, n in of_layers(row[part], judged.table).items()}
        for row in found.record["rounds"]
    ]
    return {**judged.figures(found.score, picks_of(found)), "rounds": rounds}


def darts_on_random(judged: Judged, seed: int) -> Figures:
    draw = random.Random(seed)
    picks = [sorted(draw.sample(range(judged.size), min(WIDE, judged.size))) for _ in range(LAYERS)]
    torch.manual_seed(seed)
    found = ag.darts(judged.space(picks), judged.task, quiet(judged.steps, seed))
    return judged.figures(found.score, [row[i] for row, i in zip(picks, picks_of(found), strict=True)])


def policy_only(judged: Judged, seed: int) -> Figures:
    run, whole, steps = quiet(judged.steps, seed), judged.space(), judged.steps
    run.begin("policy", {})
    with OffloadedSupernet(whole, device=run.device, folder=None, seed=seed) as supernet:
        policy = ShrinkingPolicy(supernet, rate=0.05, bonus=1e-3)
        parts = judged.task.split(0.5)
        paths = SinglePathTrainer(supernet, policy, parts, run, recipe=ag.Recipe(optimizer_factory=darts_sgd))
        episodes = min(200, steps // 4)
        paths.explore(steps=steps // 2, episodes=episodes, warm_up=1 / 3, phase="explore", time_fraction=1.0)
    run.close()
    best = {site: max(range(judged.size), key=row.__getitem__) for site, row in policy.probabilities().items()}
    torch.manual_seed(seed)
    network = ag.build(whole, ag.Architecture(best), weights="fresh")
    ag.fit(network, judged.task, quiet(steps - steps // 2, seed))
    return judged.figures(judged.task.evaluate(network, "test")["accuracy"], list(best.values()))


def at_random(judged: Judged, seed: int, times: int = 1) -> Figures:
    torch.manual_seed(seed)
    found = ag.random_search(judged.space(), judged.task, quiet(times * judged.steps, seed, trials=5 * times))
    return judged.figures(found.score, picks_of(found))


ACCURACY: dict[str, Callable[[Judged, int], Figures]] = {
    "radars": with_radars, "darts, random subspace": darts_on_random, "policy only": policy_only,
    "random search": at_random,
}  # fmt: skip
# In the planted space alone. OURS was chosen on seeds 100 and 101; a search by RADARS takes the CPU time of TIMES
# random ones.
OURS: dict[str, Any] = {"standard_errors": 1.0, "episode_steps": 2}
TIMES = 3
IN_PLANTED: dict[str, Callable[[Judged, int], Figures]] = {
    "radars, two rounds in a row": functools.partial(with_radars, patience=2),
    "radars, ours": functools.partial(with_radars, **OURS),
    "random search, equal time": functools.partial(at_random, times=TIMES),
}  # fmt: skip
ALL_METHODS = ACCURACY | IN_PLANTED
ACCURACY_DATA = ("digits", "fashion_mnist")


def episodes(judged: Judged, seed: int, *, each: int, many: Sequence[int]) -> Figures:
    """Paths drawn evenly, each trained for so many steps: what rewards say after the first so many of them."""
    run, seen = quiet(each * max(many), seed), list[tuple[list[int], float]]()

    class Noting(ShrinkingPolicy):
        def note(self, path: ag.Architecture, reward: float) -> None:
            seen.append(([int(pick) for pick in path.values()], reward))  # type: ignore[arg-type]

    run.begin("episodes", {})
    with OffloadedSupernet(judged.space(), device=run.device, folder=None, seed=seed) as supernet:
        policy = Noting(supernet, rate=0.05, bonus=1e-3)
        paths = SinglePathTrainer(
            supernet, policy, judged.task.split(0.5), run, recipe=ag.Recipe(optimizer_factory=darts_sgd)
        )
        paths.explore(steps=each * max(many), episodes=max(many), warm_up=1.0, phase="explore", time_fraction=1.0)
        dropped = [_dropped(ShrinkingPolicy(supernet, rate=0.05, bonus=1e-3), seen[:n], judged) for n in many]
    run.close()
    after = [{"episodes": n, **_told(seen[:n], judged), **gone} for n, gone in zip(many, dropped, strict=True)]
    return {"each": each, "after": after}


def _dropped(policy: ShrinkingPolicy, seen: Sequence[tuple[list[int], float]], judged: Judged) -> Figures:
    """What our rule drops after these episodes, but for the last layer."""
    for path, reward in seen:
        policy.note(ag.Architecture(dict(zip(policy.active, path, strict=True))), reward)
    policy.prune_unrewarded(OURS["standard_errors"], spare={})
    begun = of_layers(dict.fromkeys(policy.active, range(judged.size)), judged.table)
    left = of_layers(policy.active, judged.table)
    poor = begun["_bad_early"] - left["_bad_early"]
    return {"dropped_bad": poor, "dropped_good": begun["_early"] - left["_early"] - poor}


def _told(seen: Sequence[tuple[list[int], float]], judged: Judged) -> Figures:
    """Mean reward of paths; how often a good candidate's mean advantage is above a bad one's, layer by layer."""
    mean = statistics.fmean(reward for _, reward in seen)
    above = []
    for layer in range(LAYERS):
        gains: dict[bool, list[float]] = {True: [], False: []}
        for i in range(judged.size):
            took = [reward - mean for path, reward in seen if path[layer] == i]
            if took:
                gains[bad([i], judged.table) > 0].append(statistics.fmean(took))
        pairs = [(g > b) + 0.5 * (g == b) for g, b in itertools.product(gains[False], gains[True])]
        above.append(round(statistics.fmean(pairs), 3))
    counts = [(bad(path[:-1], judged.table), reward) for path, reward in seen]
    by_bad = {n: [reward for each, reward in counts if each == n] for n in range(LAYERS)}
    return {
        "reward": round(mean, 4), "good_above_bad": above,
        "reward_by_bad_early": {n: round(statistics.fmean(some), 4) for n, some in by_bad.items() if some},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[4, 16, 64])
    parser.add_argument("--accuracy-sizes", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--accuracy-data", nargs="+", choices=ACCURACY_DATA, default=list(ACCURACY_DATA))
    parser.add_argument("--planted", action="store_true", help="accuracy in a space of which half is bad, too")
    parser.add_argument("--methods", nargs="+", choices=ALL_METHODS, default=list(ACCURACY), metavar="METHOD",
                        help=f"of {', '.join(ALL_METHODS)}")  # fmt: skip
    parser.add_argument("--episodes", type=int, nargs="*", help="rewards after so many paths of the planted space")
    parser.add_argument("--episode-steps", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--peak-steps", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    task = digits()
    judged = (
        {name: discreteness.task(name) for name in chosen.accuracy_data}
        if chosen.accuracy_sizes or chosen.planted
        else {}
    )
    asked = {"data": "digits", "steps": chosen.steps, "peak_steps": chosen.peak_steps, "torch": torch.__version__}
    rows: list[dict[str, object]] = []
    if chosen.out.is_file():
        held = json.loads(chosen.out.read_text())
        if {key: held.get(key) for key in asked} != asked:
            sys.exit(f"{chosen.out} holds rows of another run, not of {asked}: name another file with --out")
        rows = held["rows"]
    done = {(r["kind"], r["method"], r["size"], r.get("seed")) for r in rows}
    memory = bound(task)

    def take(kind: str, method: str, size: int, seed: int | None, work: Callable[[], Mapping[str, object]]) -> None:
        if (kind, method, size, seed) in done:
            return
        start, cpu = time.perf_counter(), time.process_time()
        row: dict[str, object] = {"kind": kind, "method": method, "size": size, "seed": seed, **work()}
        took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        rows.append(row | {name: round(some, 1) for name, some in took.items()})
        print(json.dumps(rows[-1]), flush=True)
        save_results(chosen.out, {**asked, "rows": rows})

    for size, method in itertools.product(chosen.sizes, ("radars", "darts")):
        take("peak", method, size, None, functools.partial(peak, method, size, task, memory, chosen.peak_steps))
    spaces = [("accuracy", size, ALL) for size in chosen.accuracy_sizes]
    spaces += [("planted", len(PLANTED), PLANTED)] if chosen.planted else []
    for (name, data), (kind, size, table) in itertools.product(judged.items(), spaces):
        of = Judged(size, data, memory if name == "digits" else bound(data), chosen.steps, table)
        for seed, method in itertools.product(range(chosen.seeds), chosen.methods):
            take(f"{kind}, {name}", method, size, seed, functools.partial(ALL_METHODS[method], of, seed))
        if kind == "planted" and chosen.episodes:
            for seed, each in itertools.product(range(chosen.seeds), chosen.episode_steps):
                work = functools.partial(episodes, of, seed, each=each, many=chosen.episodes)
                take(f"episodes, {name}", f"of {each} steps", size, seed, work)
    print(tables(rows))


def _pruned(rows: list[dict[str, Any]]) -> list[str]:
    """What each form of RADARS dropped before its last subspace, and what its subspaces held; sums over the seeds."""
    lines = [
        "",
        "| | RADARS | seeds | dropped but for the last layer: bad, good | in the last layer | bad ones in "
        "the subspace of each round, but for the last layer | bad ones found |",
        "|---" * 7 + "|",
    ]
    for kind, method in dict.fromkeys((r["kind"], r["method"]) for r in rows):
        same = [r for r in rows if (r["kind"], r["method"]) == (kind, method)]
        begun = of_layers({str(i): row for i, row in enumerate(first(same[0]["size"]))}, PLANTED)
        gone = {key: sum(begun[key] - r["rounds"][-1][f"left{key}"] for r in same) for key in begun}
        early_bad, early = gone["_bad_early"], gone["_early"]
        last_bad, last = gone["_bad"] - early_bad, gone[""] - early
        held = [
            f"{sum(each['support_bad_early'] for each in some)} of {sum(each['support_early'] for each in some)}"
            for t in range(max(len(r["rounds"]) for r in same))
            for some in ([r["rounds"][t] for r in same if t < len(r["rounds"])],)
        ]
        picked = f"{sum(r['bad_picked'] for r in same)} of {LAYERS * len(same)}"
        lines.append(
            f"| {kind} | {method} | {len(same)} | {early_bad}, {early - early_bad} | {last_bad}, {last - last_bad} "
            f"| {', '.join(held)} | {picked} |"
        )
    return lines


def _rewarded(rows: list[dict[str, Any]]) -> list[str]:
    """What episodes say, means over the seeds."""
    lines = [
        "",
        "| episodes | seeds | number | mean reward | good above bad, layer by layer | reward with no bad one but in "
        "the last layer, with 1, 2, 3 | dropped by our rule but for the last layer: bad, good |",
        "|---" * 7 + "|",
    ]
    for kind, method in dict.fromkeys((r["kind"], r["method"]) for r in rows):
        same = [r["after"] for r in rows if (r["kind"], r["method"]) == (kind, method)]
        for several in zip(*same, strict=True):
            above = [statistics.fmean(layer) for layer in zip(*(s["good_above_bad"] for s in several), strict=True)]
            by_bad = [
                [r for s in several for k, r in s["reward_by_bad_early"].items() if int(k) == n]
                for n in range(LAYERS)
            ]
            rewards = ", ".join(f"{statistics.fmean(some):.3f}" if some else "-" for some in by_bad)
            lines.append(
                f"| {kind} {method} | {len(same)} | {several[0]['episodes']} "
                f"| {statistics.fmean(s['reward'] for s in several):.3f} | {', '.join(f'{a:.2f}' for a in above)} "
                f"| {rewards} | {sum(s['dropped_bad'] for s in several)}, {sum(s['dropped_good'] for s in several)} |"
            )
    return lines


def tables(rows: list[dict[str, object]]) -> str:
    lines = ["| candidates a layer | method | peak of the search, MB | largest step, MB |", "|---|---|---|---|"]
    for r in rows:
        if r["kind"] == "peak":
            held, step = float(r["peak_bytes"]) / 1e6, float(r["step_bytes"]) / 1e6  # type: ignore[arg-type]
            lines.append(f"| {r['size']} | {r['method']} | {held:.1f} | {step:.1f} |")
    lines += ["", "| | candidates a layer | method | test accuracy, % | RADARS above it | CPU s |", "|---" * 6 + "|"]
    groups = dict.fromkeys((r["kind"], r["size"], r["method"]) for r in rows if "accuracy" in r)
    for kind, size, method in groups:
        same = [r for r in rows if (r["kind"], r["size"], r["method"]) == (kind, size, method)]
        found = [100 * float(r["accuracy"]) for r in same]  # type: ignore[arg-type]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        best = {
            r["seed"]: r["accuracy"] for r in rows if (r["kind"], r["size"], r["method"]) == (kind, size, "radars")
        }
        above = [100 * (best[r["seed"]] - r["accuracy"]) for r in same if r["seed"] in best]  # type: ignore[operator]
        error = statistics.stdev(above) / len(above) ** 0.5 if len(above) > 1 else 0.0
        paired = f"{statistics.mean(above):.1f} ± {error:.1f}" if above else "-"
        score = f"{statistics.mean(found):.1f} ± {spread:.1f} ({len(found)})"
        cost = f"{statistics.fmean(r.get('cpu_seconds', r['seconds']) for r in same):.0f}"
        lines.append(f"| {kind} | {size} | {method} | {score} | {paired} | {cost} |")
    lines += _pruned([r for r in rows if "left_early" in r.get("rounds", [{}])[0]])
    lines += _rewarded([r for r in rows if "after" in r])
    return "\n".join(lines)


if __name__ == "__main__":
    main()
