"""DNAL against Torch-Pruning, random masks and uniform width, at equal MACs and equal training epochs.

    python benchmarks/slim.py --network small-vgg --images 4000 --epochs 40 --seeds 3 --out slim.json

Every method gets the same number of training epochs in all. One dense network a seed is trained for the first
share of them and is where DNAL, Torch-Pruning and the random mask start; DNAL's gate epochs count. The uniform
network is trained from scratch for all epochs. The learning rate and schedule are the same for all.
Rows that --out already holds are kept and not run again, so a run that was stopped goes on.
Accuracy is on CIFAR-10 test images, read once a network. Data: CIFAR-10 (JPEG copy), found through ARCHGRAD_DATA.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch_pruning as tp
from networks import NETWORKS
from PIL import Image
from torch import nn

import archgrad as ag
from archgrad.gates import GateConstraint, GateOptimizer, WidthRounding, gates, uniform

DENSE_SHARE = 0.3


def cifar10(images: int, tests: int, *, halved: bool = False) -> ag.Classification:
    """So many training and test images of 32 x 32, or of 16 x 16 if halved; validation images from the end."""
    path = Path(os.environ.get("ARCHGRAD_DATA", "")) / "cifar10" / "cifar10_jpeg.npz"
    if not path.is_file():
        sys.exit(f"skipped: {path} is not there; set ARCHGRAD_DATA to the folder that holds cifar10/")
    z = np.load(path)
    header, body, offsets = z["header"].tobytes(), z["body"].tobytes(), z["offsets"]

    def part(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows = range(first, first + count)
        raw = [np.asarray(Image.open(io.BytesIO(header + body[offsets[i] : offsets[i + 1]]))) for i in rows]
        pixels = np.stack(raw)
        if halved:
            pixels = pixels.reshape(count, 16, 2, 16, 2, 3).mean((2, 4)).round().astype(np.uint8)
        return pixels, z["labels"][first : first + count].astype(np.int64)

    first_test = int(z["n_train"])
    valid = min(1000, first_test - images)
    return ag.Classification(
        part(0, images), part(first_test - valid, valid), part(first_test, tests),
        batch_size=64, augment=(ag.flip(), ag.crop(2 if halved else 4)),
    )  # fmt: skip


def quiet(seed: int, epochs: int, device: str) -> ag.Run:
    return ag.Run(epochs=epochs, seed=seed, device=device, progress=False)


class Bench:
    """One network, one seed."""

    def __init__(self, name: str, task: ag.Classification, *, epochs: int, seed: int, device: str) -> None:
        self.make, self.task, self.seed, self.device = NETWORKS[name], task, seed, device
        self.dense_epochs = max(1, round(DENSE_SHARE * epochs))
        self.left, self.epochs = epochs - self.dense_epochs, epochs
        self.x = task.example
        torch.manual_seed(seed)
        self.dense = self.make()
        ag.fit(self.dense, task, quiet(seed, self.dense_epochs, device))
        self.space = ag.slim(self.dense.cpu(), self.x)
        self.exact = WidthRounding(1)

    def score(self, network: nn.Module) -> dict[str, float]:
        return {
            "accuracy": self.task.evaluate(network, "test")["accuracy"],
            "macs": ag.macs(self.x.to(next(network.parameters()).device)).of(network),
            "params": ag.params().of(network),
        }

    def tuned(self, network: nn.Module, epochs: int) -> dict[str, float]:
        ag.fit(network, self.task, quiet(self.seed + 1000, epochs, self.device))
        return self.score(network)

    def dnal(self, fraction: float, **options: object) -> dict[str, float]:
        limit = ag.macs(self.x).at_most(fraction=fraction)
        run = quiet(self.seed, self.left, self.device)
        found = ag.dnal(self.space, self.task, run, limit=limit, pretrained=True, round_to=1, **options)
        return self.score(found.network)

    def dnal_whole(self, fraction: float) -> dict[str, float]:
        """All three stages from fresh weights, under one schedule."""
        torch.manual_seed(self.seed)
        space = ag.slim(self.make(), self.x)
        limit = ag.macs(self.x).at_most(fraction=fraction)
        run = quiet(self.seed, self.epochs, self.device)
        return self.score(ag.dnal(space, self.task, run, limit=limit, round_to=1, joint=True).network)

    def random(self, fraction: float) -> dict[str, float]:
        generator = torch.Generator().manual_seed(self.seed)
        scores = {n: torch.rand(g.size, generator=generator) for n, g in gates(self.space).items()}
        constraint = GateConstraint(self.space, ag.macs(self.x).at_most(fraction=fraction), self.exact)
        return self.tuned(ag.build(self.space, constraint.best_feasible(scores)), self.left)

    def uniform(self, fraction: float) -> dict[str, float]:
        constraint = GateConstraint(self.space, ag.macs(self.x).at_most(fraction=fraction), self.exact)
        torch.manual_seed(self.seed)
        network = ag.build(self.space, uniform(self.space, constraint.uniform_width(), self.exact), weights="fresh")
        return self.tuned(network, self.epochs)

    def torch_pruning(self, fraction: float, importance: Callable[[], tp.importance.Importance]) -> dict[str, float]:
        """Global pruning by Torch-Pruning, in small steps until the MACs are at the fraction."""
        network = copy.deepcopy(self.dense).cpu()
        last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
        needs_gradient = "Taylor" in type(importance()).__name__
        pruner = tp.pruner.MetaPruner(
            network, self.x, importance=importance(), global_pruning=True, pruning_ratio=0.999,
            iterative_steps=400, ignored_layers=[last], max_pruning_ratio=0.97,
        )  # fmt: skip
        full = ag.macs(self.x).of(network)
        batches = self.task.stream(seed=self.seed)
        for step in range(400):
            if ag.macs(self.x).of(network) <= fraction * full:
                break
            if needs_gradient:
                network.train().zero_grad()
                self.task.loss(network, batches(step)).backward()
            pruner.step()
        network.zero_grad()
        return self.tuned(network, self.left)


def methods(bench: Bench) -> dict[str, Callable[[float], dict[str, float]]]:
    importance = tp.importance
    return {
        "dnal": bench.dnal,
        "dnal-joint": lambda f: bench.dnal(f, joint=True),
        "dnal-joint-whole": bench.dnal_whole,
        "tp-magnitude": lambda f: bench.torch_pruning(f, lambda: importance.GroupMagnitudeImportance(p=2)),
        "tp-bn-scale": lambda f: bench.torch_pruning(f, importance.BNScaleImportance),
        "tp-taylor": lambda f: bench.torch_pruning(f, importance.GroupTaylorImportance),
        "random": bench.random,
        "uniform": bench.uniform,
    }


def step_ratio(name: str, task: ag.Classification, *, repeats: int = 30) -> dict[str, float]:
    """Time of a gate step of DNAL under a limit over that of a plain training step, in turns, one thread."""
    network = NETWORKS[name]()
    space = ag.relax(ag.slim(network, task.example), ag.scaled_sigmoid)
    gate_optimizer = GateOptimizer(space, task, strength=0.0, scaled=False, scale=(1.0, 1e4))
    constraint = GateConstraint(space, ag.macs(task.example).at_most(fraction=0.5), WidthRounding(1))
    gate_optimizer.set_target(constraint, constraint.bound)
    batch = task.stream(seed=0)(0)
    pairs = {
        "plain": (network.train(), ag.sgd(network.parameters())),
        "gate": (space.train(), torch.optim.SGD(ag.logits(space), lr=0.01, momentum=0.9)),
    }
    times: dict[str, list[float]] = {"plain": [], "gate": []}
    for turn in range(repeats + 3):
        for kind, (net, optimizer) in pairs.items():
            watched = [p for g in optimizer.param_groups for p in g["params"]]
            start = time.perf_counter()
            for p, g in zip(watched, torch.autograd.grad(task.loss(net, batch), watched), strict=True):
                p.grad = g
            optimizer.step()
            if kind == "gate":
                gate_optimizer.project(turn)
            if turn >= 3:
                times[kind].append(time.perf_counter() - start)
    medians = {kind: statistics.median(values) for kind, values in times.items()}
    return {**{f"{k}_ms": 1e3 * v for k, v in medians.items()}, "ratio": medians["gate"] / medians["plain"]}


def speed_at_half(name: str, x: torch.Tensor) -> dict[str, object]:
    """ONNX Runtime time of a network at half the MACs over the whole one's, for widths rounded to 8 and not."""
    network = NETWORKS[name]()
    space = ag.slim(network, x)
    networks: dict[str, nn.Module] = {"full": network.eval()}
    macs = {"full": ag.macs(x).of(network)}
    for step in (16, 8, 1):
        constraint = GateConstraint(space, ag.macs(x).at_most(fraction=0.5), WidthRounding(step))
        networks[f"half, multiples of {step}"] = ag.build(
            space, uniform(space, constraint.uniform_width(), WidthRounding(step))
        ).eval()
    timings = {r: ag.latency(x, runtime=r, repeats=200).timings(networks) for r in ("eager", "onnx")}
    macs = {key: ag.macs(x).of(net) for key, net in networks.items()}
    return {
        key: {
            "macs_ratio": macs[key] / macs["full"],
            **{f"{r}_ratio": t[key].median_ms / t["full"].median_ms for r, t in timings.items()},
            **{f"{r}_ms": t[key].median_ms for r, t in timings.items()},
        }
        for key in networks
    }


def profile(name: str, x: torch.Tensor, *, passes: int = 600) -> str:
    """Median microseconds of each operator of ONNX Runtime, whole and at half the MACs in multiples of 8 and 16."""
    import onnxruntime

    network = NETWORKS[name]()
    space, found = ag.slim(network, x), {"whole": network.eval()}
    for step in (8, 16):
        constraint = GateConstraint(space, ag.macs(x).at_most(fraction=0.5), WidthRounding(step))
        found[f"multiples of {step}"] = ag.build(
            space, uniform(space, constraint.uniform_width(), WidthRounding(step))
        ).eval()
    lines = []
    for key, net in found.items():
        with tempfile.TemporaryDirectory() as folder:
            ag.export_onnx(net, x, f"{folder}/network.onnx")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.enable_profiling = 1, True
            options.profile_file_prefix = f"{folder}/profile"
            session = onnxruntime.InferenceSession(f"{folder}/network.onnx", options)
            for _ in range(passes):
                session.run(None, {session.get_inputs()[0].name: x.numpy()})
            events = json.loads(Path(session.end_profiling()).read_text())
        times: dict[tuple[str, str], list[float]] = {}
        for event in events:
            if event["name"].endswith("_kernel_time"):
                times.setdefault((event["args"]["op_name"], event["name"]), []).append(event["dur"])
        medians = [(kind, statistics.median(spent[passes // 5 :])) for (kind, _), spent in times.items()]
        kinds = dict.fromkeys(kind for kind, _ in medians)
        told = (f"{kind} {' '.join(f'{us:g}' for k, us in medians if k == kind)}" for kind in kinds)
        lines.append(f"{key}: {'; '.join(told)}")
    return "\n".join(lines)


def table(rows: list[dict[str, object]], fractions: list[float]) -> str:
    names = list(dict.fromkeys(str(r["method"]) for r in rows))
    lines = [
        "| method | " + " | ".join(f"{f:.0%} of the MACs" for f in fractions) + " |",
        "|---" * (len(fractions) + 1) + "|",
    ]
    for name in names:
        cells = []
        for f in fractions:
            values = [100 * float(r["accuracy"]) for r in rows if r["method"] == name and r["fraction"] == f]  # type: ignore[arg-type]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.2f} ± {spread:.2f} ({len(values)})" if values else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="small-vgg")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--tests", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.5, 0.25, 0.1])
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("slim.json"))
    parser.add_argument("--profile", action="store_true", help="print what ONNX Runtime spends where, and stop")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.profile:
        print(profile(chosen.network, torch.randn(1, 3, 32, 32)))
        return
    task = cifar10(chosen.images, chosen.tests)
    asked: dict[str, object] = {
        "data": f"CIFAR-10 (JPEG copy), first {chosen.images} training images, first {chosen.tests} test images",
        "network": chosen.network, "epochs": chosen.epochs, "torch": torch.__version__,
        "torch_pruning": tp.__version__,
    }  # fmt: skip
    if chosen.out.is_file():
        result = json.loads(chosen.out.read_text())
        if other := {k: result.get(k) for k, v in asked.items() if result.get(k) != v}:
            sys.exit(f"{chosen.out} holds rows of another run ({other}, not {asked}): name another file with --out")
    else:
        result = {
            **asked, "gate_step": step_ratio(chosen.network, task),
            "half": speed_at_half(chosen.network, task.example), "rows": [],
        }  # fmt: skip
    rows: list[dict[str, object]] = result.pop("rows")
    done = {(r["seed"], r["method"], r["fraction"]) for r in rows}
    print(json.dumps(result, indent=1), flush=True)
    for seed in range(chosen.first_seed, chosen.first_seed + chosen.seeds):
        bench = Bench(chosen.network, task, epochs=chosen.epochs, seed=seed, device=chosen.device)
        if (seed, "dense start", 1.0) not in done:
            rows.append({"seed": seed, "method": "dense start", "fraction": 1.0, **bench.score(bench.dense)})
        for fraction in chosen.fractions:
            for name, method in methods(bench).items():
                if (chosen.methods and name not in chosen.methods) or (seed, name, fraction) in done:
                    continue
                start = time.perf_counter()
                row = {"seed": seed, "method": name, "fraction": fraction, **method(fraction)}
                rows.append({**row, "seconds": round(time.perf_counter() - start, 1)})
                print(json.dumps(rows[-1]), flush=True)
                chosen.out.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")
    print(table([r for r in rows if r["method"] != "dense start"], chosen.fractions))


if __name__ == "__main__":
    main()
