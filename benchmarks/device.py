"""From network to device: fewer MACs and int8, in the runtimes that ship, beside Torch-Pruning and the same int8.

    python benchmarks/device.py --out benchmarks/results/device.json

A network is trained, then cut by `dnal` and by Torch-Pruning (group magnitude, global) to fractions of its MACs, with
the same epochs of training behind the cut, and each is quantized by `found.export(int8=True)`, calibrated on the
training part. Accuracy is of the files, on the test part. Times are on one thread, batch 1, all files of a network in
turns: the median, and the 10th percentile, of which the ratios are.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from networks import NETWORKS, Attention
from saving import save_results
from slim_tasks import TASKS
from torch import nn

import archgrad as ag

RUNTIMES = ["onnx", "openvino", "executorch"]
FIVE = ["wide-vgg", "wide-resnet14", "bottleneck", "wide-mobile", "wide-vit"]  # a float pass takes a millisecond


def by_torch_pruning(network: nn.Module, x: torch.Tensor, fraction: float, *, round_to: int) -> nn.Module:
    """Global pruning by group magnitude, in small steps until the MACs are at the budget."""
    network = copy.deepcopy(network).eval()
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    attention = [m.qkv for m in network.modules() if isinstance(m, Attention)]  # it is reshaped to heads of one size
    pruner = tp.pruner.MetaPruner(
        network, x, importance=tp.importance.GroupMagnitudeImportance(p=2), global_pruning=True, pruning_ratio=0.999,
        iterative_steps=400, ignored_layers=[last, *attention], max_pruning_ratio=0.97, round_to=round_to,
    )  # fmt: skip
    whole = ag.macs(x).of(network)
    for _ in range(400):
        if ag.macs(x).of(network) <= fraction * whole:
            break
        pruner.step()
    network.zero_grad()
    return network


def networks_of(
    name: str, task: ag.Classification, given: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, nn.Module]]:
    """The original and two cut networks for each fraction, trained; what the folder has is not trained again."""
    x, recipe, seed = task.example, ag.Recipe(), given.seed

    def once(method: str, make: Callable[[], nn.Module]) -> tuple[str, nn.Module]:
        path = folder / f"{method}.pt"
        if not path.exists():
            torch.save(make().eval(), path)
        return method, torch.load(path, weights_only=False)

    def run(epochs: int) -> ag.Run:
        return ag.Run(epochs=epochs, seed=seed, precision="bf16-mixed", progress=False)

    def original() -> nn.Module:
        torch.manual_seed(seed)
        network = NETWORKS[name]().to(memory_format=torch.channels_last)
        ag.fit(network, task, run(given.epochs), recipe=recipe)
        return network

    def by_dnal(fraction: float) -> nn.Module:
        space, limit = ag.slim(network, x), ag.macs(x).at_most(fraction=fraction)
        tuning = run(given.tuning)
        return ag.dnal(
            space, task, tuning, limit=limit, pretrained=True, recipe=recipe, round_to=given.round_to
        ).network

    def pruned(fraction: float) -> nn.Module:
        small = by_torch_pruning(network, x, fraction, round_to=given.round_to)
        ag.fit(small, task, run(given.tuning), recipe=recipe)
        return small

    _, network = once("original", original)
    yield "original", network
    for fraction in given.fractions:
        yield once(f"dnal {fraction:.0%}", functools.partial(by_dnal, fraction))
        yield once(f"torch-pruning {fraction:.0%}", functools.partial(pruned, fraction))


def rows_of(name: str, task: ag.Classification, given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A float and an int8 file of each network: accuracy, size, and time in each runtime."""
    x, rows, files = task.example, list[dict[str, Any]](), dict[str, dict[str, Path]]()
    for method, network in networks_of(name, task, given, folder):
        for kind in ("float", "int8"):
            rows.append({
                "network": name, "method": f"{method}, {kind}", "macs": ag.macs(x).of(network),
                "epochs": given.epochs, "tuning": given.tuning,
            })  # fmt: skip
        for ending in ("onnx", "pte") if "executorch" in given.runtimes else ("onnx",):
            paths = {kind: folder / f"{method}-{kind}.{ending}" for kind in ("float", "int8")}
            done = folder / f"{method}-{ending}.record.pt"
            if not done.exists():
                result = ag.Found(ag.Architecture({}), network.eval(), example=x)
                result.export(paths["float"])
                int8 = result.export(paths["int8"], task=task, int8=True, max_drop=given.max_drop)
                torch.save(int8.record(), done)
            record = torch.load(done)
            for kind, row in zip(paths, rows[-2:], strict=True):
                prefix = "" if ending == "onnx" else "executorch_"
                row[f"{prefix}accuracy"] = record["test"][kind]
                row[f"{prefix}size_bytes"] = paths[kind].stat().st_size
                row["float_layers"] = record["float_layers"] if kind == "int8" else []
                files.setdefault(ending, {})[row["method"]] = paths[kind]
    for runtime in given.runtimes:
        of_runtime = files["pte" if runtime == "executorch" else "onnx"]
        timings = ag.measure_files(of_runtime, x, runtime=runtime, repeats=given.repeats)
        first = timings["original, float"].low_ms  # what other work of the machine disturbed least
        for row in rows:
            timing = timings[row["method"]]
            row[f"{runtime}_ms"] = timing.median_ms
            row[f"{runtime}_low_ms"], row[f"{runtime}_high_ms"] = timing.low_ms, timing.high_ms
            row[f"{runtime}_ratio"] = timing.low_ms / first
    return rows


def memory_of(name: str, folder: Path) -> dict[str, Any]:
    """Bytes of activations: counted by archgrad, planned by ExecuTorch, of ONNX Runtime's largest operator.

    ExecuTorch's plan is that of its portable kernels, before any backend takes operators over. ONNX Runtime does not
    tell its plan; its profile has the inputs and outputs of each operator as it is run, after fusion: these have to
    be there at once.
    """
    import onnxruntime
    from executorch.exir import to_edge

    network, x = NETWORKS[name]().eval(), torch.randn(1, 3, 32, 32)
    plan = to_edge(torch.export.export(network, (x,))).to_executorch().executorch_program.execution_plan[0]
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    path = ag.export_onnx(network, x, folder / "memory.onnx").path
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: x.numpy()})
    events = [event.get("args", {}) for event in json.loads(Path(session.end_profiling()).read_text())]
    sizes = [int(e["activation_size"]) + int(e["output_size"]) for e in events if "activation_size" in e]
    counted = int(ag.peak_memory(x, mode="inference").of(network))
    return {
        "network": name, "archgrad": counted, "executorch": sum(plan.non_const_buffer_sizes), "onnx": max(sizes)
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=FIVE)
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    parser.add_argument("--epochs", type=int, default=10, help="of the original")
    parser.add_argument("--tuning", type=int, default=4, help="of each cut network")
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.5, 0.25], help="of the MACs that stay")
    parser.add_argument(
        "--max-drop", type=float, default=1.0, help="points that int8 may cost on the validation part"
    )
    parser.add_argument("--round-to", type=int, default=16, help="widths are multiples of this, in both methods")
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="of networks and files, which later runs take")
    parser.add_argument("--memory", action="store_true", help="bytes of activations alone; no training")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    task = TASKS["cifar"]()
    before = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    if chosen.memory:
        chosen.folder.mkdir(parents=True, exist_ok=True)
        memory = [memory_of(name, chosen.folder) for name in chosen.networks]
        save_results(chosen.out, {**before, "memory": memory})
        return
    rows = [row for row in before.get("rows", []) if row["network"] not in chosen.networks]
    settings = {k: v for k, v in vars(chosen).items() if k not in ("out", "folder", "memory")}
    settings["networks"] = sorted({row["network"] for row in rows} | {*chosen.networks})
    for name in chosen.networks:
        folder = chosen.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        rows += rows_of(name, task, chosen, folder)
        save_results(chosen.out, {**before, "settings": settings, "rows": rows})
        for row in rows:
            print(row, flush=True)


if __name__ == "__main__":
    main()
