"""What runs on a GPU, in ten minutes: every method, training steps beside torch.compile and bfloat16, slimming.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json
    python benchmarks/gpu.py --device cpu --toy --out toy.json

1. Every method of the conformance list on its planted problem: whether it finds the answer, seconds, and how often
   torch saw the program wait for the device in a step (`torch.cuda.set_sync_debug_mode`).
2. Milliseconds of a training step of a plain network, of the same with gates, and of a supernet: as it is, compiled,
   and in bfloat16; medians of steps that take turns.
3. The networks of published slimming rows, VGG16-BN and ResNet-56 on CIFAR-10, trained for a share of the minutes and
   slimmed to half of the MACs in as much again. The published rows train for 160 epochs and more: `epochs` says how
   far these came. Data: `ARCHGRAD_DATA`; without it this part is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS
from saving import save_results
from slim_tasks import cifar10
from torch import nn

import archgrad as ag

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "conformance"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
STEPS = 200


def methods(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each method of the conformance list."""
    from planted import limit
    from test_methods import METHODS, found_by, quiet

    rows = []
    for name in list(METHODS)[:: 6 if chosen.toy else 1]:
        budget = {"steps": STEPS, "epochs": None} if chosen.toy else {}
        run = quiet(name, device=chosen.device, output=ag.Output(), **budget)
        began = time.perf_counter()
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            _debug_waits(chosen.device, "warn")
            found = found_by(name, run, limit=limit())
            _debug_waits(chosen.device, "default")
        told = sum("synchroniz" in str(warning.message) for warning in waits)
        rows.append({
            "method": name, "seconds": time.perf_counter() - began, "score": found.score,
            "answered": METHODS[name][1].answered(found.architecture), "waits": told, "steps": _steps(run),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def _steps(run: ag.Run) -> int:
    """Training steps, of the last logged of each phase."""
    return sum({row["phase"]: int(row["step"]) + 1 for row in run.history if "loss" in row}.values())


def _debug_waits(device: str, mode: str) -> None:
    if device != "cpu":
        torch.cuda.set_sync_debug_mode(mode)


def gated(network: nn.Module, x: torch.Tensor) -> nn.Module:
    """The network with a gate on all that can be removed."""
    return ag.relax(ag.slim(network, x), ag.scaled_sigmoid)


def step_times(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each kind of network and form of its step."""
    batch, size, repeats = (8, 8, 2) if chosen.toy else (256, 32, 30)
    example = torch.randn(1, 3, size, size)
    wide = {"channels": 4, "cells": 1} if chosen.toy else {"channels": 16, "cells": 5}
    made: dict[str, Callable[[], nn.Module]] = {
        "ResNet-20": NETWORKS["resnet20"],
        "ResNet-20 with gates": lambda: gated(NETWORKS["resnet20"](), example),
        "NAS-Bench-201 supernet": lambda: ag.relax(ag.nasbench201_cells(**wide), ag.softmax),
    }
    x = torch.randn(batch, 3, size, size, device=chosen.device)
    y = torch.randint(10, (batch,), device=chosen.device)
    rows = []
    for kind, make in made.items():
        torch.manual_seed(0)
        network = make().to(chosen.device).train()
        forms: dict[str, Callable[[], float]] = {
            "as it is": lambda n=network: _step(n, x, y, bf16=False),
            "bfloat16": lambda n=network: _step(n, x, y, bf16=True),
        }
        if not chosen.toy:
            compiled = torch.compile(network)
            forms["compiled"] = lambda n=compiled: _step(n, x, y, bf16=False)
        first = {form: step() for form, step in forms.items()}
        times: dict[str, list[float]] = {form: [] for form in forms}
        for _ in range(repeats):
            for form, step in forms.items():
                times[form].append(step())
        for form, taken in times.items():
            middle = statistics.median(taken)
            ratio = middle / statistics.median(times["as it is"])
            rows.append(
                {"network": kind, "form": form, "step_ms": 1e3 * middle, "ratio": ratio, "first_s": first[form]}
            )
            print(rows[-1], flush=True)
    return rows


def _step(network: nn.Module, x: torch.Tensor, y: torch.Tensor, *, bf16: bool) -> float:
    """Seconds of a forward and a backward pass."""
    began = time.perf_counter()
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
        loss = nn.functional.cross_entropy(network(x), y)
    torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad], allow_unused=True)
    loss.item()
    return time.perf_counter() - began


def slimming(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each published network: before and after."""
    if not os.environ.get("ARCHGRAD_DATA"):
        print("ARCHGRAD_DATA is not set: no slimming")
        return []
    names = ["resnet20"] if chosen.toy else ["vgg16", "resnet56"]
    task = cifar10(*((500, 200) if chosen.toy else (49000, 10000)))
    x, rows = task.example, []
    seconds = 60.0 * chosen.minutes * 0.5 / (2 * len(names))
    for name in names:
        torch.manual_seed(0)
        network = NETWORKS[name]()

        def run() -> ag.Run:
            budget: dict[str, Any] = {"steps": 24} if chosen.toy else {"seconds": seconds}
            return ag.Run(device=chosen.device, progress=False, **budget)

        first, second = run(), run()
        ag.fit(network, task, first)
        before = task.evaluate(network, "test")["accuracy"]
        found = ag.dnal(
            ag.slim(network.cpu(), x), task, second, limit=ag.macs(x).at_most(fraction=0.5), pretrained=True
        )
        rows.append({
            "network": name, "accuracy_before": before, "accuracy_after": found.score,
            "macs_before": ag.macs(x).of(network), "macs_after": found.costs["macs"], "seconds": 2 * seconds,
            "epochs": (_steps(first) + _steps(second)) / task.steps_per_epoch,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=10.0, help="of which half is for slimming")
    parser.add_argument("--toy", action="store_true", help="a minute on a CPU, to try the script out")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    if chosen.device != "cpu" and not torch.cuda.is_available():
        sys.exit("skipped: PyTorch finds no CUDA device here; --device cpu --toy tries the script out")
    body: dict[str, Any] = {"device": chosen.device, "toy": chosen.toy}
    if chosen.device != "cpu":
        body["gpu"] = torch.cuda.get_device_name()
    for part in (methods, step_times, slimming):
        body[part.__name__] = part(chosen)
        save_results(chosen.out, body)


if __name__ == "__main__":
    main()
