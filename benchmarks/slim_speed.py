"""What half the MACs are worth in time: the step of the gates, and inference of narrowed networks by runtime.

    python benchmarks/slim_speed.py --out benchmarks/results/slim_speed.json
    python benchmarks/slim_speed.py --compile --out benchmarks/results/compiled_step.json

`--compile` measures what `Run(compile=True)` makes of the training step of a network, of the same with gates, and of
both steps of a supernet and of a ready space, whose choices are compiled one by one; `--profile` prints what ONNX
Runtime spends where instead. One thread, networks in turns. Steps and compiling are timed by the
processor's time, steps by their median; passes by the 10th percentile, which other work of the machine disturbs
least.
"""

from __future__ import annotations

import argparse
import json
import os
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
from archgrad.training import compiled


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


def supernet() -> nn.Module:
    """Five layers, each a choice between kernels of 1, 3 and 5, mixed by a softmax."""

    def block(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width, step in ((inputs, stride), (outputs, 1)):
            layers += [nn.Conv2d(width, outputs, kernel, step, kernel // 2, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers)

    shapes = [(16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    layers = [
        ag.OpChoice({f"{k}x{k}": block(i, o, k, stride) for k in (1, 3, 5)}, name=f"layer{place}")
        for place, (i, o, stride) in enumerate(shapes)
    ]
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    return ag.relax(nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *layers, *ends), ag.softmax)


SPACES: dict[str, Callable[[], nn.Module]] = {
    "supernet": supernet,
    # A cell a stage: more cells take longer steps, and are of the same three kinds.
    "nasbench201": lambda: ag.relax(ag.nasbench201_cells(cells=1), ag.softmax),
}


def steps_of(name: str, task: ag.Classification) -> dict[str, tuple[nn.Module, list[nn.Parameter]]]:
    """By kind of step the network, and what the step trains."""
    if name in SPACES:
        space = SPACES[name]()
        return {"weights": (space, ag.weights(space)), "architecture": (space, ag.logits(space))}
    gated = ag.relax(ag.slim(NETWORKS[name](), task.example), ag.scaled_sigmoid)
    plain = NETWORKS[name]()
    return {
        "plain": (plain, [*plain.parameters()]),
        "gated": (gated, [p for p in gated.parameters() if p.requires_grad]),
    }


def compiled_step(name: str, task: ag.Classification, *, repeats: int = 30) -> dict[str, dict[str, float]]:
    """A step's forward and backward pass as written and as `Run(compile=True)` compiles it, in turns."""
    batch, rows = task.stream(seed=0)(0), {}
    run = ag.Run(device="cpu", compile=True, progress=False)
    for kind, (network, trained) in steps_of(name, task).items():
        network.train()

        def step(
            loss: Callable[..., torch.Tensor], network: nn.Module = network, trained: list[nn.Parameter] = trained
        ) -> float:  # fmt: skip
            start = time.process_time()
            torch.autograd.grad(loss(network, batch), trained, allow_unused=True)
            return time.process_time() - start

        losses = {"written": task.loss, "compiled": compiled(task.loss, network, run, trained)}
        torch._inductor.config.force_disable_caches = True
        torch._inductor.config.compile_threads = 1  # in this process, whose children are counted
        start = os.times()
        step(losses["compiled"])
        end = os.times()
        seconds = sum(end[:4]) - sum(start[:4])
        times: dict[str, list[float]] = {key: [] for key in losses}
        for turn in range(repeats + 1):
            for key, loss in losses.items():
                spent = step(loss)
                if turn:
                    times[key].append(spent)
        medians = {key: statistics.median(values) for key, values in times.items()}
        rows[kind] = {
            "compile_seconds": seconds,
            **{f"{key}_ms": 1e3 * value for key, value in medians.items()},
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
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS, *SPACES])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compile", action="store_true", help="measure compiled training steps instead")
    parser.add_argument("--profile", action="store_true", help="print what ONNX Runtime spends where, and stop")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.networks is None:
        chosen.networks = ["small-vgg", "resnet20", *(SPACES if chosen.compile else [])]
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
