"""From network to device: fewer MACs and int8, in the runtimes that ship, beside Torch-Pruning and the same int8.

    python benchmarks/device.py --out benchmarks/results/device.json

A network is trained, then cut by `dnal` and by Torch-Pruning (group magnitude, global) to fractions of its MACs, with
the same epochs of training behind the cut, and each is quantized by `found.export(int8=True)`, calibrated on the
training part. Accuracy is of the files, on the test part. Times are medians on one thread, batch 1, all files of a
network in turns.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from networks import NETWORKS
from saving import save_results
from slim_tasks import TASKS
from torch import nn

import archgrad as ag


def by_torch_pruning(network: nn.Module, x: torch.Tensor, fraction: float) -> nn.Module:
    """Global pruning by group magnitude, in small steps until the MACs are at the budget."""
    network = copy.deepcopy(network).eval()
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    pruner = tp.pruner.MetaPruner(
        network, x, importance=tp.importance.GroupMagnitudeImportance(p=2), global_pruning=True, pruning_ratio=0.999,
        iterative_steps=400, ignored_layers=[last], max_pruning_ratio=0.97, round_to=8,
    )  # fmt: skip
    whole = ag.macs(x).of(network)
    for _ in range(400):
        if ag.macs(x).of(network) <= fraction * whole:
            break
        pruner.step()
    network.zero_grad()
    return network


def rows_of(name: str, task: ag.Classification, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The original and two cut networks for each fraction, each as a float and an int8 file."""
    torch.manual_seed(given.seed)
    network, x = NETWORKS[name](), task.example
    recipe = ag.Recipe()

    def run() -> ag.Run:
        return ag.Run(epochs=given.tuning, seed=given.seed, progress=False)

    ag.fit(network, task, ag.Run(epochs=given.epochs, seed=given.seed, progress=False), recipe=recipe)
    networks: dict[str, nn.Module] = {"original": network}
    for fraction in given.fractions:
        limit = ag.macs(x).at_most(fraction=fraction)
        found = ag.dnal(ag.slim(network, x), task, run(), limit=limit, pretrained=True, recipe=recipe)
        pruned = by_torch_pruning(network, x, fraction)
        ag.fit(pruned, task, run(), recipe=recipe)
        networks |= {f"dnal {fraction:.0%}": found.network, f"torch-pruning {fraction:.0%}": pruned}
    rows, files = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for method, net in networks.items():
            result = ag.Found(ag.Architecture({}), net.eval(), example=x)
            for kind in ("float", "int8"):
                files[f"{method}, {kind}"] = Path(folder) / f"{method}-{kind}.onnx"
            result.export(files[f"{method}, float"])
            done = result.export(files[f"{method}, int8"], task=task, int8=True, max_drop=given.max_drop)
            for kind in ("float", "int8"):
                rows.append({
                    "network": name, "method": f"{method}, {kind}", "macs": ag.macs(x).of(net),
                    "accuracy": done.test[kind], "size_bytes": files[f"{method}, {kind}"].stat().st_size,
                    "float_layers": list(done.float_layers) if kind == "int8" else [],
                })  # fmt: skip
        for runtime in given.runtimes:
            timings = ag.measure_files(files, x, runtime=runtime, repeats=given.repeats)
            first = timings["original, float"].median_ms
            for row in rows:
                timing = timings[row["method"]]
                row[f"{runtime}_ms"] = timing.median_ms
                row[f"{runtime}_low_ms"], row[f"{runtime}_high_ms"] = timing.low_ms, timing.high_ms
                row[f"{runtime}_ratio"] = timing.median_ms / first
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["small-vgg", "resnet20"])
    parser.add_argument("--runtimes", nargs="+", choices=["onnx", "openvino"], default=["onnx", "openvino"])
    parser.add_argument("--epochs", type=int, default=30, help="of the original")
    parser.add_argument("--tuning", type=int, default=15, help="of each cut network")
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.5, 0.25], help="of the MACs that stay")
    parser.add_argument(
        "--max-drop", type=float, default=1.0, help="points that int8 may cost on the validation part"
    )
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    task, rows = TASKS["cifar"](), list[dict[str, Any]]()
    settings = {k: v for k, v in vars(chosen).items() if k != "out"}
    for name in chosen.networks:
        rows += rows_of(name, task, chosen)
        save_results(chosen.out, {"settings": settings, "rows": rows})
        for row in rows:
            print(row, flush=True)


if __name__ == "__main__":
    main()
