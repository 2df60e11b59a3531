"""What half the MACs are worth in time: the step of the gates, and inference of narrowed networks by runtime.

    python benchmarks/slim_speed.py --out benchmarks/results/slim_speed.json
    python benchmarks/slim_speed.py --compile --out benchmarks/results/compiled_step.json

`--compile` measures what `torch.compile` makes of the training step of a network, and of the same with gates;
`--profile` prints what ONNX Runtime spends where instead. One thread, networks in turns. Steps are timed by the
processor's time, their median; passes by the 10th percentile, which other work of the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from networks import NETWORKS
from saving import save_results
from slim_tasks import TASKS
from torch import nn

import archgrad as ag
from archgrad.gates import GateConstraint, GateOptimizer, WidthRounding, uniform


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
            start = time.process_time()
            for p, g in zip(watched, torch.autograd.grad(task.loss(net, batch), watched), strict=True):
                p.grad = g
            optimizer.step()
            if kind == "gate":
                gate_optimizer.project(turn)
            if turn >= 3:
                times[kind].append(time.process_time() - start)
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
            **{f"{r}_ratio": t[key].low_ms / t["full"].low_ms for r, t in timings.items()},
            **{f"{r}_ms": t[key].low_ms for r, t in timings.items()},
        }
        for key in networks
    }


def compiled_step(name: str, task: ag.Classification, *, repeats: int = 30) -> dict[str, dict[str, float]]:
    """A training step as written and compiled, in turns, of the plain network and of the same with gates."""
    batch, rows = task.stream(seed=0)(0), {}
    for kind in ("plain", "gated"):
        network = NETWORKS[name]()
        if kind == "gated":
            network = ag.relax(ag.slim(network, task.example), ag.scaled_sigmoid)
        network.train()

        def forward(x: torch.Tensor, network: nn.Module = network) -> torch.Tensor:
            return network(x)  # type: ignore[no-any-return]

        def step(call: Callable[[torch.Tensor], torch.Tensor], network: nn.Module = network) -> float:
            start = time.process_time()
            loss = nn.functional.cross_entropy(call(batch[0]), batch[1])
            torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad], allow_unused=True)
            return time.process_time() - start

        calls = {"written": forward, "compiled": torch.compile(forward, dynamic=False)}
        start = time.perf_counter()
        step(calls["compiled"])
        seconds = time.perf_counter() - start
        times: dict[str, list[float]] = {key: [] for key in calls}
        for _ in range(repeats):
            for key, call in calls.items():
                times[key].append(step(call))
        medians = {key: statistics.median(values) for key, values in times.items()}
        rows[kind] = {
            "compile_seconds": seconds, **{f"{key}_ms": 1e3 * value for key, value in medians.items()},
            "ratio": medians["compiled"] / medians["written"],
        }  # fmt: skip
    return rows


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["small-vgg", "resnet20"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compile", action="store_true", help="measure compiled training steps instead")
    parser.add_argument("--profile", action="store_true", help="print what ONNX Runtime spends where, and stop")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    task, rows = TASKS["cifar"](), []
    for name in chosen.networks:
        if chosen.profile:
            print(profile(name, task.example))
            continue
        if chosen.compile:
            rows.append({"network": name, **compiled_step(name, task)})
            save_results(chosen.out, {"torch": torch.__version__, "rows": rows})
            print(json.dumps(rows[-1], indent=1), flush=True)
            continue
        step, half = step_ratio(name, task), speed_at_half(name, task.example)
        rows.append({"network": name, "gate_step": step, "half": half})
        save_results(chosen.out, {"torch": torch.__version__, "rows": rows})
        print(json.dumps(rows[-1], indent=1), flush=True)


if __name__ == "__main__":
    main()
