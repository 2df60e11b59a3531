"""DNAL against its rivals at equal MACs and equal training, from trained weights (A) and from scratch (B).

    python benchmarks/slim.py --cases sign/vgg --seeds 3 --out benchmarks/results/slim.json

(A) The network is trained for E epochs; each method slims it in E / 3 more. (B) Each method starts from fresh weights
and has E / 2 epochs in all. Every row has its training epochs, its processor seconds (one thread) and its MACs, which
are at the budget to a rounding of one channel. In (A) each method has the better of two learning rates, chosen on the
validation part of the first seed at the first budget. `headroom` trains random allocations of the same MACs from
scratch, which says what widths can win at all. Half of the cases are for development and half are looked at once.
Rows that --out already holds are kept, so a run that was stopped goes on. Data: see slim_tasks.py.
HESSO needs only_train_once 3.0.1 (pip install --no-deps only_train_once==3.0.1), and is left out where it is missing.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from ledger import taken
from networks import CifarResNet, densenet, mobile, tiny_vit, unet, vgg
from saving import save_results
from scipy import stats
from slim_tasks import TASKS
from torch import Tensor, nn

import archgrad as ag
from archgrad.gates import GateConstraint, WidthRounding, gates, uniform

RATES = (0.05, 0.015)
SMALL, EVEN = (16, "M", 32, "M", 64, 64, "M", 128, 128), (24, "M", 24, "M", 48, 48, "M", 96, 96)
WIDE_END = (24, "M", 24, "M", 48, 48, "M", 192, 192, 192)


@dataclass(frozen=True)
class Case:
    """A task, a network, for how many epochs it is trained in (A), and how far an output is from its teacher's."""

    task: str
    network: Callable[[], nn.Module]
    epochs: int
    once: bool = False
    distance: Callable[[Tensor, Tensor], Tensor] | None = None


def soft_masks(output: Tensor, taught: Tensor) -> Tensor:
    """Binary cross entropy with the teacher's probabilities."""
    return nn.functional.binary_cross_entropy_with_logits(output, taught.sigmoid())


CASES = {
    "cifar/vgg": Case("cifar", lambda: vgg(SMALL), 18),
    "sign/resnet14": Case("sign", functools.partial(CifarResNet, 2), 15),
    "sign/vgg": Case("sign", lambda: vgg(EVEN), 24),
    "fashion/wide-end": Case("fashion", lambda: vgg(WIDE_END, ins=1), 12),
    "spoken/mobile": Case("spoken", lambda: mobile(ins=1), 18, once=True),
    "spoken/vit": Case("spoken", lambda: tiny_vit(ins=1), 24, once=True),
    "angle/wide-end": Case(
        "angle", lambda: vgg(WIDE_END, ins=1, classes=1), 12, once=True, distance=nn.functional.smooth_l1_loss
    ),
    "masks/unet": Case("masks", unet, 12, once=True, distance=soft_masks),
    "fashion/densenet": Case("fashion", lambda: densenet(ins=1), 12, once=True),
}
# Where each epoch is worth less: is the search from scratch still behind uniform width for as long, and a front still
# behind separate runs? (slim_front.py takes the last.)
LONG = {f"{name}, four times as long": replace(CASES[name], epochs=4 * CASES[name].epochs)
        for name in ("cifar/vgg", "fashion/wide-end", "spoken/vit", "sign/resnet14")}  # fmt: skip
CASES |= LONG


class Bench:
    """One case with one seed: what is shared by its methods."""

    def __init__(self, case: Case, task: Any, seed: int) -> None:
        self.case, self.task, self.seed, self.x = case, task, seed, task.example
        torch.manual_seed(seed)
        self.fresh = case.network()
        self.adam = any(isinstance(m, nn.LayerNorm) for m in self.fresh.modules())
        self._dense: nn.Module | None = None

    def dense(self) -> nn.Module:
        """The trained network."""
        if self._dense is None:
            self._dense = copy.deepcopy(self.fresh)
            ag.fit(self._dense, self.task, self.run(self.case.epochs), recipe=self.recipe(RATES[0]))
        return self._dense

    def taught_by(self, teacher: nn.Module) -> ag.Distilled:
        """The task, with a teacher."""
        return ag.Distilled(self.task, teacher, loss=self.case.distance)

    def run(self, epochs: float) -> ag.Run:
        """A run of its own for each training."""
        steps = round(epochs * self.task.steps_per_epoch)
        return ag.Run(steps=steps, seed=self.seed + 1000, device="cpu", progress=False)

    def recipe(self, rate: float) -> ag.Recipe:
        """SGD at the rate; for transformers AdamW at a fiftieth of it."""
        if self.adam:
            return ag.Recipe(optimizer_factory=functools.partial(ag.adamw, learning_rate=rate / 50))
        return ag.Recipe(optimizer_factory=functools.partial(ag.sgd, learning_rate=rate))


@dataclass(frozen=True)
class Slimming:
    """What a method starts from: a network with gates, trained or fresh, and what it may spend."""

    bench: Bench
    network: nn.Module
    trained: bool
    fraction: float
    epochs: float
    rate: float

    @functools.cached_property
    def space(self) -> nn.Module:
        return ag.slim(self.network, self.bench.x)

    @functools.cached_property
    def limit(self) -> ag.Limit:
        return ag.macs(self.bench.x).at_most(fraction=self.fraction)

    @functools.cached_property
    def constraint(self) -> GateConstraint:
        return GateConstraint(self.space, self.limit, WidthRounding(1))

    def tuned(self, network: nn.Module, *, teacher: nn.Module | None = None) -> nn.Module:
        """Train what a method has cut for all epochs."""
        task = self.bench.taught_by(teacher) if teacher is not None else self.bench.task
        ag.fit(network, task, self.bench.run(self.epochs), recipe=self.bench.recipe(self.rate))
        return network


def dnal(given: Slimming, *, distill: bool = False, **options: Any) -> nn.Module:
    """Our form, or the published one with `sparsity`."""
    task = given.bench.taught_by(given.network) if distill else given.bench.task
    found = ag.dnal(
        given.space, task, given.bench.run(given.epochs), limit=given.limit, pretrained=given.trained, round_to=1,
        recipe=given.bench.recipe(given.rate), **options,
    )  # fmt: skip
    return found.network


def uniform_width(given: Slimming, *, distill: bool = False) -> nn.Module:
    """The same fraction of every gate: from trained weights the channels of largest magnitude, else fresh ones."""
    if not given.trained:
        widths = uniform(given.space, given.constraint.uniform_width(), WidthRounding(1))
        return given.tuned(ag.build(given.space, widths, weights="fresh"))
    scores = ag.importance(given.space, criterion="magnitude")
    network = ag.cut(given.space, scores, limit=given.limit, round_to=1, uniform=True)
    return given.tuned(network, teacher=given.network if distill else None)


def as_dnal(bench: Bench, fraction: float, *, trained: bool) -> float:
    """How much longer uniform width may train to take the processor time of all steps of `dnal`.

    Those beside its gates are of the whole network where it is trained, else of one of twice the limit's MACs.
    """
    given = Slimming(bench, bench.fresh, trained, fraction, 1.0, RATES[0])
    width = given.constraint.uniform_width()
    small, wider = (
        ag.build(given.space, uniform(given.space, min(1.0, factor * width), WidthRounding(1)))
        for factor in (1.0, 2.0**0.5)
    )
    networks = (copy.deepcopy(bench.fresh).train() if trained else wider.train(), small.train())
    batch = bench.task.stream(seed=0)(0)
    ratios = []
    for _ in range(15):
        seconds = []
        for network in networks:
            started = time.process_time()
            bench.task.loss(network, batch).backward()
            seconds.append(time.process_time() - started)
        ratios.append(seconds[0] / seconds[1])
    return 1 + LARGER[trained] * (statistics.median(ratios) - 1)


def random_channels(given: Slimming) -> nn.Module:
    """Random channels, about the same fraction of every gate."""
    scores = ag.importance(given.space, criterion="random", seed=given.bench.seed)
    return given.tuned(ag.cut(given.space, scores, limit=given.limit, round_to=1))


def torch_pruning(
    given: Slimming, importance: Callable[[], tp.importance.Importance], *, distill: bool = False
) -> nn.Module:
    """Global pruning by Torch-Pruning, in small steps until the MACs are at the budget, then training."""
    network, bench = copy.deepcopy(given.network).cpu(), given.bench
    last = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)][-1]
    try:
        pruner = tp.pruner.MetaPruner(
            network, bench.x, importance=importance(), global_pruning=True, pruning_ratio=0.999, iterative_steps=400,
            ignored_layers=[last], max_pruning_ratio=0.97,
        )  # fmt: skip
    except IndexError as error:  # while it groups channels, of recurrent layers for instance
        raise ag.errors.ModelError(f"Torch-Pruning: {error}") from error
    whole, batches = ag.macs(bench.x).of(network), bench.task.stream(seed=bench.seed)
    for step in range(400):
        if ag.macs(bench.x).of(network) <= given.fraction * whole:
            break
        if "Taylor" in type(importance()).__name__:
            network.train().zero_grad()
            bench.task.loss(network, batches(step)).backward()
        pruner.step()
    network.zero_grad()
    return given.tuned(network, teacher=given.network if distill else None)


def hesso(given: Slimming, *, distill: bool = False) -> nn.Module:
    """HESSO, one schedule of joint training and pruning: its optimizer on groups made of our couplings."""
    from slim_hesso import train

    bench = copy.copy(given.bench)
    if distill:
        bench.task = bench.taught_by(given.network)
    return train(given.space, given.network, given.constraint, bench, epochs=given.epochs, rate=given.rate)


def headroom(given: Slimming, draw: int) -> nn.Module:
    """A random allocation of the same MACs: each gate a width of its own, from scratch."""
    generator = torch.Generator().manual_seed(1000 * given.bench.seed + draw)
    by_name = gates(given.space)
    shift = {name: 0.7 * torch.rand((), generator=generator) for name in by_name}
    scores = {n: torch.rand(g.size, generator=generator) + shift[n] for n, g in by_name.items()}
    widths = given.constraint.best_feasible(scores, floor=0.2 * given.constraint.uniform_width())
    return given.tuned(ag.build(given.space, widths, weights="fresh"))


magnitude = functools.partial(tp.importance.GroupMagnitudeImportance, p=2)
taylor = tp.importance.GroupTaylorImportance
LONGER = "uniform, equal time"
# The share of its steps in which dnal trains a larger network, from trained weights or not.
LARGER = {True: 0.1, False: 0.2}
Method = Callable[[Slimming], nn.Module]
TRAINED: Mapping[str, Method] = {
    "dnal": dnal,
    "dnal, distilled": functools.partial(dnal, distill=True),
    "dnal, published": functools.partial(dnal, sparsity=3.0),
    "uniform": uniform_width,
    "uniform, distilled": functools.partial(uniform_width, distill=True),
    LONGER: uniform_width,
    "random": random_channels,
    "tp-magnitude": functools.partial(torch_pruning, importance=magnitude),
    "tp-magnitude, distilled": functools.partial(torch_pruning, importance=magnitude, distill=True),
    "tp-bn-scale": functools.partial(torch_pruning, importance=tp.importance.BNScaleImportance),
    "tp-taylor": functools.partial(torch_pruning, importance=taylor),
    "tp-taylor, distilled": functools.partial(torch_pruning, importance=taylor, distill=True),
    "hesso": hesso,
    "hesso, distilled": functools.partial(hesso, distill=True),
}
SCRATCH: Mapping[str, Method] = {
    "dnal": dnal, "uniform": uniform_width, LONGER: uniform_width, "hesso": hesso,
    **{f"headroom {draw}": functools.partial(headroom, draw=draw) for draw in range(20)},
}  # fmt: skip


class Rows:
    """The rows of a file, each found or measured once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.is_file() else []

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        return next((row for row in self.rows if all(row.get(n) == value for n, value in key.items())), None)

    def add(self, key: Mapping[str, Any], measure: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
        """The row of a key; None where the method does not run here."""
        if found := self.find(key):
            return found
        started = time.process_time()
        figures = measure()
        if figures is None:
            return None
        self.rows.append({**key, **figures, "cpu_seconds": round(time.process_time() - started, 1)})
        versions = {"torch": torch.__version__, "torch_pruning": tp.__version__}
        save_results(self.path, {**versions, "rows": self.rows})
        print(json.dumps(self.rows[-1]), flush=True)
        return self.rows[-1]


def measured(given: Slimming, method: Method) -> dict[str, Any] | None:
    """What a method reaches; the test part is read here alone."""
    try:
        network = method(given)
    except (ImportError, ag.errors.ModelError, ag.errors.LimitError) as error:  # the rival is missing, or cannot
        print(f"left out: {method}: {error}", file=sys.stderr)
        return None
    valid, test = (given.bench.task.evaluate(network, part) for part in ("valid", "test"))
    name = next(iter(test))
    macs = ag.macs(given.bench.x)
    return {
        "score": name, "valid": valid[name], "test": test[name],
        "macs_fraction": round(macs.of(network) / macs.of(given.network), 4), "epochs": given.epochs,
    }  # fmt: skip


def trained(bench: Bench) -> dict[str, Any] | None:
    """What the trained network reaches."""
    given = Slimming(bench, bench.dense(), True, 1.0, bench.case.epochs, RATES[0])
    return measured(given, lambda given: given.network)


def run_case(name: str, rows: Rows, *, seeds: range, fractions: list[float], only: list[str] | None) -> None:
    """All methods on one case; the first seed and budget choose the learning rates of (A)."""
    case = CASES[name]
    task = TASKS[case.task]()
    better = max if task.higher_is_better else min
    rates: dict[str, float] = {}

    def row(bench: Bench, protocol: str, method: str, fraction: float, rate: float) -> dict[str, Any] | None:
        key = {"case": name, "protocol": protocol, "method": method, "fraction": fraction}
        key |= {"seed": bench.seed, "rate": rate}
        if found := rows.find(key):
            return found
        if method == "dense":
            return rows.add(key, functools.partial(trained, bench))
        of_protocol, epochs = (TRAINED, case.epochs / 3) if protocol == "A" else (SCRATCH, case.epochs / 2)
        network = bench.dense() if protocol == "A" else bench.fresh
        given = Slimming(bench, network, protocol == "A", fraction, epochs, rate)
        if method == LONGER:
            given = replace(given, epochs=round(epochs * longer[protocol, fraction], 2))
        return rows.add(key, functools.partial(measured, given, of_protocol[method]))

    longer = {(p, f): as_dnal(Bench(case, task, seeds[0]), f, trained=p == "A") for p in "AB" for f in fractions}
    for seed in seeds:
        bench = Bench(case, task, seed)
        if name not in LONG:
            row(bench, "A", "dense", 1.0, RATES[0])
        for fraction in fractions:
            for method in only or TRAINED:
                if method in TRAINED and name not in LONG:
                    tried = {r: row(bench, "A", method, fraction, r) for r in [rates.get(method)] if r} or {
                        r: row(bench, "A", method, fraction, r) for r in RATES
                    }
                    valid = {rate: found["valid"] for rate, found in tried.items() if found}
                    if valid:
                        rates[method] = better(valid, key=lambda r: valid[r])
            for method in only or SCRATCH:
                if method in SCRATCH and not (method.startswith("headroom") and seed > seeds[0]):
                    row(bench, "B", method, fraction, RATES[0])


def tables(rows: list[dict[str, Any]]) -> str:
    """For each case and protocol: mean and deviation, the paired difference to uniform width, processor time."""
    lines = []
    for name, protocol in dict.fromkeys((row["case"], row["protocol"]) for row in rows):
        chosen = taken([r for r in rows if (r["case"], r["protocol"]) == (name, protocol)])
        fractions = sorted({r["fraction"] for r in chosen if r["method"] != "dense"}, reverse=True)
        once = ", looked at once" if CASES[name].once and protocol == "A" else ""
        lines += [f"### {name}, ({protocol}){once}", ""]
        dense = [r["test"] for r in chosen if r["method"] == "dense"]
        if dense:
            lines += [f"The trained network: {_spread(dense, chosen[0]['score'])}.", ""]
        heads = " | ".join(f"{f:.0%}" for f in fractions)
        lines += [f"| method | rate | {heads} |", "|---|---" + "|---" * len(fractions) + "|"]
        for method in dict.fromkeys(r["method"] for r in chosen if r["method"] != "dense"):
            if not method.startswith("headroom"):
                cells = [_cells(chosen, method, fraction) for fraction in fractions]
                rate = next(r["rate"] for r in chosen if r["method"] == method)
                lines.append(f"| {method} | {rate:g} | {' | '.join(cells)} |")
        if protocol == "B":
            lines += ["", _headroom(chosen, fractions)]
        lines.append("")
    return "\n".join(lines)


def _spread(values: list[float], score: str) -> str:
    scale, digits = (1.0, 3) if score == "mae" else (100.0, 1)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{scale * statistics.mean(values):.{digits}f} ± {scale * deviation:.{digits}f}"


def _cells(rows: list[dict[str, Any]], method: str, fraction: float) -> str:
    """Score, paired difference to uniform width with its 95 % interval, processor time over that of uniform width."""
    by_seed = {r["seed"]: r for r in rows if (r["method"], r["fraction"]) == (method, fraction)}
    control = {r["seed"]: r for r in rows if (r["method"], r["fraction"]) == ("uniform", fraction)}
    if not by_seed:
        return ""
    score = next(iter(by_seed.values()))["score"]
    scale, digits = (1.0, 3) if score == "mae" else (100.0, 1)
    pairs = [scale * (row["test"] - control[seed]["test"]) for seed, row in by_seed.items() if seed in control]
    told = _spread([row["test"] for row in by_seed.values()], score)
    if method == "uniform" or not pairs:
        return told
    told += f" ({statistics.mean(pairs):+.{digits}f}"
    if len(pairs) > 1:
        half = stats.t.ppf(0.975, len(pairs) - 1) * statistics.stdev(pairs) / len(pairs) ** 0.5
        told += f" ± {half:.{digits}f}"
    times = [row["cpu_seconds"] / control[seed]["cpu_seconds"] for seed, row in by_seed.items() if seed in control]
    return f"{told}), {statistics.mean(times):.1f}"


def _headroom(rows: list[dict[str, Any]], fractions: list[float]) -> str:
    """Random allocations from scratch on the first seed, and how many of them each method is above."""
    told = []
    for fraction in fractions:
        here = [r for r in rows if r["fraction"] == fraction]
        drawn = [r["test"] for r in here if r["method"].startswith("headroom")]
        if not drawn:
            continue
        first, lower = min(r["seed"] for r in here), here[0]["score"] == "mae"
        own = {r["method"]: r["test"] for r in here if r["seed"] == first and not r["method"].startswith("headroom")}
        above = ", ".join(
            f"{method} is above {sum((v < d) if lower else (v > d) for d in drawn)}" for method, v in own.items()
        )
        scale, digits = (1.0, 3) if lower else (100.0, 1)
        best, median = (min if lower else max)(drawn), statistics.median(drawn)
        told.append(
            f"{fraction:.0%}: {len(drawn)} random allocations have a median of {scale * median:.{digits}f} and a "
            f"best of {scale * best:.{digits}f}; on that seed {above} of them."
        )
    return " ".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.25, 0.1])
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tables", action="store_true", help="print the tables of the rows in --out, and stop")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.tables:
        print(tables(Rows(chosen.out).rows))
        return
    rows, seeds = Rows(chosen.out), range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    for name in chosen.cases:
        run_case(name, rows, seeds=seeds, fractions=chosen.fractions, only=chosen.methods)


if __name__ == "__main__":
    main()
