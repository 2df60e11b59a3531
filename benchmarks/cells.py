"""Searches of a supernet small enough to enumerate, at equal cost, beside random search.

    python benchmarks/cells.py --seeds 5 --out benchmarks/results/cells.json
    python benchmarks/cells.py --spaces even --methods darts --seeds 1 --seconds 10 --out one.json
    python benchmarks/cells.py --spaces even --seconds 16 2 4 8 --out cells.json     regret over cost
    python benchmarks/cells.py --brief 90 --out cells.json     what ranks networks after a short training

Three layers on Fashion-MNIST. In the space "even" each chooses among four operations, 64 networks; in "planted" among
these and four that lose information, 512 networks, of which one in eight has none of those. The truth about a network
is its mean test accuracy over several trainings on its own (`--trainings`), from fresh weights: of all 64, and of
what else a search hands back. Every search gets the same CPU time (`--seconds`, as a number of steps that is worked
out from the time that its first runs took; further budgets get steps in proportion), and its result is judged by the
truth: regret is the best network's accuracy minus that of the network found; rank correlation is Spearman's, of what
the search says of the 64 networks with the truth. Searches never see the test images. Searches and their forms:
searches.py. Rows that --out holds are not made again, so that budgets, seeds, methods and trainings can be added.
Data: found through ARCHGRAD_DATA.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from saving import save_results
from searches import BARE, ROWS, SEARCHES, by_row, paired, search
from torch import Tensor, nn

import archgrad as ag
from archgrad.costs import rank_correlation
from archgrad.spaces import operation

GOOD = ("skip_connect", "max_pool_3x3", "sep_conv_3x3", "dil_conv_5x5")
BAD = ("average", "corner", "one_channel", "sign")
SPACES = {"even": GOOD, "planted": GOOD + BAD}
CHANNELS = (8, 16, 16)
LAYERS = len(CHANNELS)
USUAL = [
    name for name in ROWS if not any(part in name for part in (BARE, "published", "static", "policy", "no gap"))
]  # fmt: skip
Picks = tuple[str, ...]
Row = dict[str, Any]


class Lossy(nn.Module):
    """What no network should choose: of [B, C, H, W] the mean of all, one place, one channel, or the signs."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind, self.norm = kind, nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "average":
            y = x.mean((1, 2, 3), keepdim=True).expand_as(x)
        elif self.kind == "corner":
            y = x[:, :, :1, :1].expand_as(x)
        elif self.kind == "one_channel":
            y = x[:, :1].expand_as(x)
        else:
            y = x.sign()
        return self.norm(y)


class Layers(nn.Module):
    """Stem, three layers that are chosen, head: [B, 1, 28, 28] to [B, 10]."""

    def __init__(self, labels: Picks = GOOD) -> None:
        super().__init__()
        first = CHANNELS[0]
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(first))
        layers: list[nn.Module] = []
        for i, (before, width) in enumerate(zip((first, *CHANNELS), CHANNELS, strict=False)):
            if width != before:
                layers.append(nn.Sequential(nn.ReLU(), nn.Conv2d(before, width, 1, stride=2), nn.BatchNorm2d(width)))
            candidates = {
                label: Lossy(label, width) if label in BAD else operation(label, width, affine=False, pool_norm=True)
                for label in labels
            }
            layers.append(ag.OpChoice(candidates, name=f"layer{i}"))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(CHANNELS[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)).relu().mean((2, 3)))


ALL: list[Picks] = list(itertools.product(GOOD, repeat=LAYERS))


def picks(architecture: ag.Architecture, labels: Picks) -> Picks:
    return tuple(labels[architecture[f"layer{i}"]] for i in range(LAYERS))  # type: ignore[index]


def task(images: int, tests: int, *, valid: int | None = None) -> ag.Classification:
    """`images` to train, as many to validate unless `valid` says fewer, `tests` to test."""
    path = Path(os.environ.get("ARCHGRAD_DATA", "")) / "fashion_mnist" / "fashion_mnist.npz"
    if not path.is_file():
        sys.exit(f"skipped: {path} is not there; set ARCHGRAD_DATA to the folder that holds fashion_mnist/")
    z = np.load(path)
    x, y, tx, ty = (z[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    held = slice(images, images + (valid or images))
    shape = lambda a: a.reshape(-1, 28, 28, 1)  # noqa: E731
    return ag.Classification(
        (shape(x[:images]), y[:images].astype(np.int64)), (shape(x[held]), y[held].astype(np.int64)),
        (shape(tx[:tests]), ty[:tests].astype(np.int64)), batch_size=64,
    )  # fmt: skip


def brief(some: Picks, tasks: Mapping[int, ag.Classification], *, steps: int) -> dict[str, float]:
    """Loss and accuracy on so many validation images, after so many steps from fresh weights."""
    labels = SPACES["even"]
    architecture = ag.Architecture({f"layer{i}": labels.index(label) for i, label in enumerate(some)})
    torch.manual_seed(0)
    network = ag.build(Layers(labels), architecture, weights="fresh")
    ag.fit(network, next(iter(tasks.values())), ag.Run(steps=steps, seed=0, device="cpu", progress=False))
    return {f"{name} on {n}": value for n, one in tasks.items() for name, value in one.evaluate(network).items()}


class Truth:
    """Test accuracies of networks trained on their own, [trainings] each; made when they are asked for."""

    def __init__(self, held: dict[str, list[float]], data: ag.Classification, *, epochs: int, trainings: int) -> None:
        self.held, self.data, self.epochs, self.trainings = held, data, epochs, trainings
        self.space = Layers(SPACES["planted"])

    def of(self, some: Picks) -> list[float]:
        name = ", ".join(some)
        scores = self.held.setdefault(name, [])
        labels = SPACES["planted"]
        architecture = ag.Architecture({f"layer{i}": labels.index(label) for i, label in enumerate(some)})
        for seed in range(len(scores), self.trainings):
            torch.manual_seed(1000 * seed + sum(len(labels) ** i * p for i, p in enumerate(architecture.values())))
            network = ag.build(self.space, architecture, weights="fresh")
            ag.fit(network, self.data, ag.Run(epochs=self.epochs, seed=seed, device="cpu", progress=False))
            scores.append(self.data.evaluate(network, "test")["accuracy"])
        return scores

    def mean(self, some: Picks) -> float:
        return statistics.fmean(self.of(some))


def said_by(found: ag.Found, row: str, labels: Picks) -> dict[Picks, float]:
    """What the search says of the 64 networks: log-probability, or validation accuracy with shared weights."""
    if row.startswith("single path"):
        tried = {picks(ag.Architecture(r["architecture"]), labels): r["score"] for r in found.record["trials"]}
        return {some: score for some, score in tried.items() if some in ALL and score is not None}
    last = next((r for r in reversed(found.history) if "weight/layer0/" + GOOD[0] in r), None)
    if last is None:
        return {}
    logs = [{label: np.log(max(last[f"weight/layer{i}/{label}"], 1e-9)) for label in GOOD} for i in range(LAYERS)]
    return {some: float(sum(log[label] for log, label in zip(logs, some, strict=True))) for some in ALL}


def searched(row: str, space: str, data: ag.Classification, *, seed: int, steps: int) -> tuple[ag.Found, float]:
    """A search without training afterwards, and its seconds of CPU."""
    torch.manual_seed(seed)
    began = time.process_time()
    network = Layers(SPACES[space])
    found = search(row, network, data, steps=steps, seed=seed, trials=len(ALL), recipe=ag.Recipe())
    return found, time.process_time() - began


def within(
    seconds: float, row: str, space: str, data: ag.Classification, *, seed: int
) -> tuple[int, ag.Found, float]:
    """As many steps as take these seconds of CPU, and the search that showed it; begun with few, and corrected."""
    searched(row, space, data, seed=seed, steps=16)  # the first call pays for what is loaded once
    fixed = searched(row, space, data, seed=seed, steps=16)[1]
    guess = round(20 * seconds)
    for _ in range(4):
        steps = guess
        found, taken = searched(row, space, data, seed=seed, steps=steps)
        if abs(taken - seconds) <= 0.15 * seconds:
            break
        ratio = max(seconds - fixed, 0.1 * seconds) / max(taken - fixed, 0.1 * seconds)
        guess = max(32, round(steps * min(ratio, 4.0)))
    return steps, found, taken


def row_of(found: ag.Found, row: str, labels: Picks) -> Row:
    """What is kept of a search, by which `judge` needs no network."""
    chosen, said = picks(found.architecture, labels), said_by(found, row, labels)
    finalists = [
        [r["from"], picks(ag.Architecture(r["architecture"]), labels), r["score"]]
        for r in found.record.get("finalists", ())
    ]
    return {
        "picks": chosen, "lossy": sum(label in BAD for label in chosen), "finalists": finalists,
        "said": [round(said[some], 4) if some in said else None for some in ALL],
    }  # fmt: skip


def judge(rows: Sequence[Row], truth: Truth) -> None:
    """Accuracy, regret, that of the search's own choice before finalists, and rank correlation, by the truth now."""
    means = [truth.mean(some) for some in ALL]
    for row in rows:
        own = row["finalists"][0][1] if row["finalists"] else row["picks"]
        accuracy = truth.mean(tuple(row["picks"]))
        known = [i for i, said in enumerate(row["said"]) if said is not None]
        rank = (
            rank_correlation([row["said"][i] for i in known], [means[i] for i in known]) if len(known) > 2 else None
        )
        own_regret = max(means) - truth.mean(tuple(own))
        row.update(accuracy=accuracy, regret=max(means) - accuracy, own_regret=own_regret, rank=rank)


def yardstick(truth: Truth) -> str:
    """The space, the deviation of one training, and how well means would be ranked by as many trainings more."""
    scores = np.array([truth.of(some) for some in ALL])  # [64, trainings]
    means, count = scores.mean(1), scores.shape[1]
    noise = float(scores.var(1, ddof=1).mean() ** 0.5)
    pairs = [rank_correlation(list(a), list(b)) for a, b in itertools.combinations(scores.T, 2)]
    one = statistics.fmean(pairs)
    return (
        f"best {means.max():.4f}, mean {means.mean():.4f}, worst {means.min():.4f}; root mean square deviation of "
        f"one training {noise:.4f}, of a mean {noise / count**0.5:.4f}; ranks of two trainings correlate with "
        f"{one:.2f}, of two means of {count} with about {count * one / (1 + (count - 1) * one):.2f}"
    )


def table(rows: Sequence[Row], space: str) -> str:
    lines = [
        f"| {space}: search | CPU s | seeds | steps | regret, points | less random search's | of its own choice "
        "| rank correlation | found a lossy operation |",
        "|---" * 9 + "|",
    ]
    same = [row for row in rows if row["space"] == space]
    base = {seconds: group for (name, seconds), group in by_row(same, "asked").items() if name == "random"}
    for (name, seconds), group in by_row(same, "asked").items():
        regret = [100 * row["regret"] for row in group]
        ranks = [row["rank"] for row in group if row["rank"] is not None]
        spread = f" ± {statistics.stdev(regret):.1f}" if len(regret) > 1 else ""
        own = f"{statistics.fmean(100 * row['own_regret'] for row in group):.1f}"
        rank = f"{statistics.fmean(ranks):.2f}" if ranks else "–"
        rank += f" ± {statistics.stdev(ranks):.2f}" if len(ranks) > 1 else ""
        above = "–" if name == "random" else paired(group, base.get(seconds, ()), "regret", scale=100.0)
        lossy = f"{sum(row['lossy'] > 0 for row in group)} of {len(group)}" if space == "planted" else "–"
        lines.append(
            f"| {name} | {seconds:g} | {len(group)} | {group[0]['steps']:,} | {statistics.fmean(regret):.1f}{spread} "
            f"| {above} | {own} | {rank} | {lossy} |"
        )
    return "\n".join(lines)


def over_cost(rows: Sequence[Row], space: str) -> str:
    """Regret of what separate searches hand back, by the CPU seconds asked for; how many, and seconds taken."""
    groups = by_row([row for row in rows if row["space"] == space], "asked")
    budgets = sorted({seconds for _, seconds in groups})
    several = [name for name in ROWS if sum(name == each for each, _ in groups) > 1]
    lines = [f"| {space}, regret: search | " + " | ".join(f"{s:g} s" for s in budgets) + " |"]
    lines.append("|---" * (len(budgets) + 1) + "|")
    for name in several:
        cells = []
        for seconds in budgets:
            regret = [100 * row["regret"] for row in groups.get((name, seconds), ())]
            spread = f" ± {statistics.stdev(regret):.1f}" if len(regret) > 1 else ""
            took = statistics.fmean(row["seconds"] for row in groups[name, seconds]) if regret else 0.0
            cells.append(f"{statistics.fmean(regret):.1f}{spread} ({len(regret)}; {took:.0f})" if regret else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def in_proportion(steps: dict[str, int], space: str, name: str, seconds: float) -> int | None:
    """Steps for a budget, of those for another budget of the same search; None where there are none."""
    other = next((key for key in steps if key.rpartition(", ")[0] == f"{space}, {name}"), None)
    if other is None:
        return None
    return max(32, round(steps[other] * seconds / float(other.rpartition(", ")[2].removesuffix(" s"))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--tests", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=8, help="of each training alone")
    parser.add_argument("--trainings", type=int, default=8)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0], help="of CPU for each search")
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=list(SPACES))
    parser.add_argument("--methods", nargs="+", choices=ROWS, default=USUAL, metavar="ROW",
                        help=f"of {', '.join(SEARCHES)}; with '{BARE}' the form without")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--brief", type=int, help="only rank all networks after so many steps, against the truth")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: getattr(chosen, name) for name in ("images", "tests", "epochs")}
    body: dict[str, Any] = {"settings": settings, "truth": {}, "steps": {}, "rows": []}
    if chosen.out.is_file():
        body = json.loads(chosen.out.read_text())
        if body["settings"] != settings:
            sys.exit(
                f"{chosen.out} holds rows of {body['settings']}, not of {settings}: name another file with --out"
            )
    data, rows = task(chosen.images, chosen.tests), body["rows"]
    truth = Truth(body["truth"], data, epochs=chosen.epochs, trainings=chosen.trainings)
    for some in [*ALL, *(tuple(row["picks"]) for row in rows)]:
        truth.of(some)
        save_results(chosen.out, body)
    judge(rows, truth)
    save_results(chosen.out, body)
    print(yardstick(truth), flush=True)
    if chosen.brief:
        tasks = {chosen.images: data, 200: task(chosen.images, chosen.tests, valid=200)}
        said = [brief(some, tasks, steps=chosen.brief) for some in ALL]
        means = [truth.mean(some) for some in ALL]
        body["brief"] = {"steps": chosen.brief, "rank": {
            name: abs(rank_correlation([each[name] for each in said], means)) for name in said[0]
        }}  # fmt: skip
        save_results(chosen.out, body)
        print(body["brief"])
        return
    done = {(row["space"], row["asked"], row["seed"], row["method"]) for row in rows}
    for seconds, seed, space, name in itertools.product(
        chosen.seconds, range(chosen.seeds), chosen.spaces, chosen.methods
    ):
        if (space, seconds, seed, name) in done:
            continue
        key = f"{space}, {name}, {seconds:g} s"
        known = body["steps"].get(key) or in_proportion(body["steps"], space, name, seconds)
        if known:
            steps = body["steps"][key] = known
            found, taken = searched(name, space, data, seed=seed, steps=steps)
        else:
            steps, found, taken = within(seconds, name, space, data, seed=seed)
            body["steps"][key] = steps
        row = {"space": space, "method": name, "asked": seconds, "seed": seed, "steps": steps}
        row["seconds"] = round(taken, 1)
        rows.append({**row, **row_of(found, name, SPACES[space])})
        judge(rows[-1:], truth)
        print(json.dumps({k: v for k, v in rows[-1].items() if k != "said"}), flush=True)
        save_results(chosen.out, body)
    print(yardstick(truth))
    for space in SPACES:
        print(f"\n{table(rows, space)}\n\n{over_cost(rows, space)}")


if __name__ == "__main__":
    main()
