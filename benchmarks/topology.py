"""How often a planted topology is found: DARTS's rule of the two heaviest edges, and distributions over subsets.

    python benchmarks/topology.py --seeds 12 --out benchmarks/results/topology.json
    python benchmarks/topology.py --seeds 10 --seen nodes --out benchmarks/results/topology.json

A teacher cell has four nodes behind two inputs; each adds two fixed operations, on two states before it, drawn at
random. A supernet of all inputs and operations regresses what is seen of the teacher, the weights on half of the data
and the logits on the other half. Seen is a fixed random projection of the concatenated nodes to the width of one
("readout"), as by the layer behind a cell, or every node by itself ("nodes"), which is easier. Everything but the
topology is the same for all variants: data, weights at the start, optimizers, steps. Rows that --out already holds
are not run again.

Recovery of topology: the share of the three nodes with a choice whose two inputs are both the planted ones (at random
0.2). Recovery of edges: the share of the six planted edges of these nodes that are kept (at random 0.52). Recovery of
operations: the share of all eight planted edges that are kept with the planted operation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from saving import save_results
from torch import Tensor, nn
from torch.optim import SGD, Adam

import archgrad as ag
from archgrad.choices import Open, choices, topologies, topology, without_topology
from archgrad.methods import DynamicSchedule, PassiveAggressive, Proximity, regularized
from archgrad.supernets import EverySteps, alternate, logit_rate

NODES, WIDTH, SAMPLES, BATCH, F = 4, 12, 4096, 64, 4
OPERATIONS = ("skip", "linear", "tanh", "absolute")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "tanh": torch.tanh,
    "absolute": torch.abs,
}


class Weighted(nn.Module):
    """Normalized behind its weights, as the operations of DARTS are."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.before = ACTIVATIONS[label]
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm = nn.BatchNorm1d(WIDTH, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(self.before(x)))


def operation(label: str) -> nn.Module:
    """On [B, WIDTH]."""
    if label == "none":
        return Zero()
    return nn.Identity() if label == "skip" else Weighted(label)


class Zero(nn.Module):
    always_zero = True

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Cell(nn.Module):
    """Two inputs [B, WIDTH] each, NODES nodes of two inputs: [B, 2 * WIDTH] to [B, NODES * WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        labels = ("none", *OPERATIONS)
        self.nodes = nn.ModuleList()
        for node in range(2, 2 + NODES):
            edges = [
                ag.OpChoice({o: operation(o) for o in labels}, name=f"{node}.{i}", barred=["none"])
                for i in range(node)
            ]
            self.nodes.append(ag.InputChoice(node, name=f"{node}.inputs", keep=2, edges=edges))

    def forward(self, x: Tensor) -> Tensor:
        states = list(x.chunk(2, dim=1))
        for node in self.nodes:
            states.append(node(states))
        return torch.cat(states[2:], dim=1)


class Regression:
    """Half of a fixed set of examples; a Task as `alternate` asks for one."""

    def __init__(self, x: Tensor, y: Tensor, readout: Tensor) -> None:
        self.x, self.y, self.readout, self.steps_per_epoch = x, y, readout, len(x) // BATCH

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Callable[[int], tuple[Tensor, Tensor]]:
        def batch(step: int) -> tuple[Tensor, Tensor]:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            rows = torch.randint(len(self.x), (BATCH,), generator=generator)
            return self.x[rows], self.y[rows]

        return batch

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (network(batch[0]) @ self.readout - batch[1]).square().mean()

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        with torch.no_grad():
            return {"score": -float(self.loss(network.eval(), (self.x, self.y)))}


def planted(seed: int, seen: str) -> tuple[ag.Architecture, tuple[Regression, Regression]]:
    """A random teacher, and what it does to normal inputs, in two halves."""
    torch.manual_seed(1000 + seed)
    teacher = Cell()
    answer = ag.sample(teacher, generator=torch.Generator().manual_seed(seed))
    x = torch.randn(SAMPLES, 2 * WIDTH)
    with torch.no_grad():
        full = NODES * WIDTH
        readout = torch.eye(full) if seen == "nodes" else torch.randn(full, WIDTH) / NODES**0.5
        y = ag.hold(teacher, answer)(x) @ readout
    half = SAMPLES // 2
    return answer, (Regression(x[:half], y[:half], readout), Regression(x[half:], y[half:], readout))


# form, regularizer, whether the schedule and the proximity of DARTS-PRIME join in
VARIANTS: dict[str, tuple[str | None, str | None, bool]] = {
    "DARTS": (None, None, False),
    "DARTS without none": ("open", None, False),
    "table": ("table", None, False),
    "table, margin": ("table", "margin", False),
    "factorized": ("factorized", None, False),
    "factorized, mass": ("factorized", "mass", False),
    "factorized, margin": ("factorized", "margin", False),
    "DARTS-PRIME": (None, None, True),
    "factorized, DARTS-PRIME": ("factorized", None, True),
}


def searched(variant: str, seed: int, *, steps: int, seen: str) -> dict[str, float]:
    form, reading, prime = VARIANTS[variant]
    answer, halves = planted(seed, seen)
    torch.manual_seed(seed)
    space: nn.Module = Cell()
    if form == "open":
        ag.restrict(space, {name: same[0].pickable for name, same in choices(space).items()})
    elif form is not None:
        space = topology(space, form=form)  # type: ignore[arg-type]
    ag.relax(space, ag.softmax, where=without_topology)
    ag.relax(space, Open, where=lambda c: isinstance(c, ag.InputChoice) and without_topology(c))
    warm_up = 0.2
    weights = SGD([{"params": ag.weights(space), "clip": 5.0}], lr=0.05, momentum=0.9, weight_decay=3e-4)
    subset = {p for distribution, _ in topologies(space).values() for p in distribution.parameters()}
    groups = [
        {"params": [p for p in ag.logits(space) if p not in subset], "weight_decay": 1e-3},
        {"params": list(subset), "weight_decay": 0.0},
    ]
    run = ag.Run(steps=steps, seed=seed, device="cpu", progress=False)
    run.begin("topology", {})
    regularizer = PassiveAggressive(
        space, reading=reading, ramp=1.0, progress=lambda: max(0.0, run.progress - warm_up) / (1.0 - warm_up)
    ) if reading else None  # type: ignore[arg-type]  # fmt: skip
    # Without the schedule the architecture moves with every step behind the warm-up; with it, with one in F + 1.
    update_schedule = DynamicSchedule(F) if prime else EverySteps(warm_up=warm_up)
    moves = steps / (F + 1) if prime else (1.0 - warm_up) * steps
    architecture = Adam([g for g in groups if g["params"]], lr=logit_rate(3e-4, moves), betas=(0.5, 0.999))
    term = Proximity(space, rho=0.1 if prime else 0.0, progress=lambda: run.progress)
    run.register_state(space=space, weights=weights, architecture=architecture, update_schedule=update_schedule)

    def gradient(train: object, valid: tuple[Tensor, Tensor]) -> tuple[Tensor, Sequence[Tensor | None]]:
        loss = halves[1].loss(space, valid)
        if regularizer:
            loss = loss + regularizer().to(loss)
        return loss, torch.autograd.grad(loss, ag.logits(space), allow_unused=True)

    alternate(
        space,
        halves,
        run,
        weights=weights,
        architecture=architecture,
        steps=steps,
        weight_loss=halves[0].loss,
        architecture_loss=regularized(gradient, term, space),
        update_schedule=update_schedule,
        schedules=(lambda progress: 1.0 - 0.9 * progress, lambda progress: 1.0),
    )
    found = ag.decide(space)
    with torch.no_grad():
        space.train()
        whole = (halves[1].x, halves[1].y)
        relaxed, discrete = (float(halves[1].loss(s, whole)) for s in (space, ag.hold(space, found).train()))
    return {**recovery(answer, found), "relaxed_loss": relaxed, "discrete_loss": discrete}


def recovery(answer: ag.Architecture, found: ag.Architecture) -> dict[str, float]:
    nodes = range(2, 2 + NODES)
    pairs = {n: (set(answer[f"{n}.inputs"]), set(found[f"{n}.inputs"])) for n in nodes}
    chosen = [pair for n, pair in pairs.items() if n > 2]
    operations = [
        i in kept and answer[f"{n}.{i}"] == found[f"{n}.{i}"] for n, (wanted, kept) in pairs.items() for i in wanted
    ]
    return {
        "topology": statistics.fmean(wanted == kept for wanted, kept in chosen),
        "edges": statistics.fmean(len(wanted & kept) / 2 for wanted, kept in chosen),
        "operations": statistics.fmean(operations),
    }


def table(rows: Sequence[dict[str, object]]) -> str:
    names = ("topology", "edges", "operations", "relaxed_loss", "discrete_loss")
    lines = [
        f"| variant | {' | '.join(n.replace('_', ' ') for n in names)} | seeds |",
        "|---" * (len(names) + 2) + "|",
    ]
    for variant in VARIANTS:
        mine = [row for row in rows if row["variant"] == variant]
        if mine:
            cells = []
            for name in names:
                values = [float(row[name]) for row in mine]  # type: ignore[arg-type]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.fmean(values):.2f} ± {spread:.2f}")
            lines.append(f"| {variant} | {' | '.join(cells)} | {len(mine)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seen", choices=("nodes", "readout"), default="readout")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    asked = {"steps": chosen.steps, "torch": torch.__version__}
    result = {**asked, "rows": []}
    if chosen.out.is_file():
        result = json.loads(chosen.out.read_text())
        if any(result.get(key) != value for key, value in asked.items()):
            parser.error(f"{chosen.out} holds rows of another run: name another file with --out")
    done = {(row["seen"], row["seed"], row["variant"]) for row in result["rows"]}
    for seed, variant in itertools.product(range(chosen.seeds), chosen.variants):
        if (chosen.seen, seed, variant) in done:
            continue
        start = time.perf_counter()
        row = {"seen": chosen.seen, "seed": seed, "variant": variant}
        row |= searched(variant, seed, steps=chosen.steps, seen=chosen.seen)
        result["rows"].append({**row, "seconds": round(time.perf_counter() - start, 1)})
        print(json.dumps(result["rows"][-1]), flush=True)
        save_results(chosen.out, result)
    print(table([row for row in result["rows"] if row["seen"] == chosen.seen]))


if __name__ == "__main__":
    main()
