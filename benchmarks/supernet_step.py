"""One search step of DARTS's supernet against the textbook form of the same supernet, on the same weights.

    python benchmarks/supernet_step.py --batch 64 --size 32 --repeats 7 --out supernet_step.json

The textbook form is written below from the published definition (arXiv 1806.09055): every operation of every edge is
run, each with a ReLU of its own, and the outputs, weighted by a softmax, are added up; maps are NCHW. It holds the
very parameters of the archgrad space, so that gradients can be compared. A step is two passes, forward and backward:
the gradient of the loss in the logits on one batch, then in the weights on another (first order). Optimizers, which
are the same for both, are left out.

Time: the forms take turns in one process, on one thread; ratios are of neighbors. Memory: a process a form; the
high-water mark of resident memory in a step above that before it (on CUDA the allocator's), and what autograd holds
at the end of a forward pass, as unique storages of saved tensors without parameters and buffers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from saving import save_results
from torch import Tensor, nn

import archgrad as ag
from archgrad.choices import Open, choices

FORMS = ("textbook", "textbook in channels_last", "archgrad")
AIM = {"time": 0.5, "memory": 0.6, "gradients": 1e-5}


class ReLUConvBN(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, affine=False))


class FactorizedReduce(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.conv_2 = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


class Zero(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


def separable(c: int, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    return [
        nn.ReLU(),
        nn.Conv2d(c, c, kernel, stride, dilation * (kernel // 2), dilation, groups=c, bias=False),
        nn.Conv2d(c, c, 1, bias=False),
        nn.BatchNorm2d(c, affine=False),
    ]


def candidates(c: int, stride: int) -> list[nn.Module]:
    """The eight operations of an edge, in the published order."""
    norm = {"affine": False}
    return [
        Zero(stride),
        nn.Sequential(nn.MaxPool2d(3, stride, 1), nn.BatchNorm2d(c, **norm)),
        nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), nn.BatchNorm2d(c, **norm)),
        nn.Identity() if stride == 1 else FactorizedReduce(c, c),
        nn.Sequential(*separable(c, 3, stride, 1), *separable(c, 3, 1, 1)),
        nn.Sequential(*separable(c, 5, stride, 1), *separable(c, 5, 1, 1)),
        nn.Sequential(*separable(c, 3, stride, 2)),
        nn.Sequential(*separable(c, 5, stride, 2)),
    ]


class MixedOp(nn.Module):
    def __init__(self, c: int, stride: int) -> None:
        super().__init__()
        self.ops = nn.ModuleList(candidates(c, stride))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(w * op(x) for w, op in zip(weights, self.ops, strict=True))


class Cell(nn.Module):
    def __init__(self, before: int, last: int, c: int, *, nodes: int, reduces: bool, halved: bool) -> None:
        super().__init__()
        self.nodes = nodes
        self.pre0 = FactorizedReduce(before, c) if halved else ReLUConvBN(before, c)
        self.pre1 = ReLUConvBN(last, c)
        self.ops = nn.ModuleList(
            MixedOp(c, 2 if reduces and j < 2 else 1) for i in range(nodes) for j in range(2 + i)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        states, first = [self.pre0(s0), self.pre1(s1)], 0
        for _ in range(self.nodes):
            states.append(sum(self.ops[first + j](h, weights[first + j]) for j, h in enumerate(states)))
            first += len(states) - 1
        return torch.cat(states[-self.nodes :], dim=1)


class Textbook(nn.Module):
    """The supernet of the paper, on the parameters and the logits of a space of ours."""

    def __init__(self, space: nn.Module, layout: torch.memory_format = torch.contiguous_format) -> None:
        super().__init__()
        self.layout = layout
        plan = space.plan
        c, before, last, halved = plan.channels, 3 * plan.channels, 3 * plan.channels, False
        self.stem = nn.Sequential(nn.Conv2d(plan.in_channels, last, 3, padding=1, bias=False), nn.BatchNorm2d(last))
        self.cells = nn.ModuleList()
        for i in range(plan.cells):
            reduces = i in plan.reductions
            c *= 2 if reduces else 1
            self.cells.append(Cell(before, last, c, nodes=plan.nodes, reduces=reduces, halved=halved))
            before, last, halved = last, plan.nodes * c, reduces
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(last, plan.classes)
        self.kinds = ["reduce" if i in plan.reductions else "normal" for i in range(plan.cells)]
        found = {name: same[0].relaxation for name, same in choices(space).items()}
        self.alphas = {k: [r.logits for n, r in found.items() if n.startswith(k) and hasattr(r, "logits")]
                       for k in set(self.kinds)}  # fmt: skip
        slots = [(m, name) for m in self.modules() for name in m._parameters if m._parameters[name] is not None]
        for (module, name), parameter in zip(slots, ag.weights(space), strict=True):
            assert module._parameters[name].shape == parameter.shape
            module._parameters[name] = parameter

    def forward(self, x: Tensor) -> Tensor:
        weights = {k: torch.softmax(torch.stack(rows), dim=-1) for k, rows in self.alphas.items()}
        s0 = s1 = self.stem(x).contiguous(memory_format=self.layout)
        for kind, cell in zip(self.kinds, self.cells, strict=True):
            s0, s1 = s1, cell(s0, s1, weights[kind])
        return self.head(self.pool(s1).flatten(1))


class Bench:
    """Both forms on the same parameters, and two batches."""

    def __init__(self, chosen: argparse.Namespace, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        space = ag.relax(ag.darts_cells(channels=chosen.channels, cells=chosen.cells), ag.softmax)
        ag.relax(space, Open, where=lambda choice: isinstance(choice, ag.InputChoice))
        for logit in ag.logits(space):
            nn.init.normal_(logit, std=0.5)
        space.to(chosen.device, dtype)
        textbooks = (Textbook(space), Textbook(space, torch.channels_last))
        made = (*(form.to(chosen.device, dtype) for form in textbooks), space)
        self.forms: dict[str, nn.Module] = dict(zip(FORMS, made, strict=True))
        shape = (chosen.batch, 3, chosen.size, chosen.size)
        self.batches = [
            (torch.randn(shape).to(chosen.device, dtype), torch.randint(10, shape[:1]).to(chosen.device))
            for _ in range(2)
        ]
        self.parameters = {"architecture": ag.logits(space), "weights": ag.weights(space)}
        self.cuda = chosen.device != "cpu"

    def gradients(self, name: str, half: str) -> list[Tensor]:
        x, y = self.batches[half == "weights"]
        return list(torch.autograd.grad(F.cross_entropy(self.forms[name](x), y), self.parameters[half]))

    def step(self, name: str) -> dict[str, float]:
        """Seconds of both halves of a step: on the clock, and of the processor (`..._cpu`)."""
        seconds: dict[str, float] = {}
        for half in self.parameters:
            before = self._clocks()
            self.gradients(name, half)
            after = self._clocks()
            seconds |= {half: after[0] - before[0], f"{half}_cpu": after[1] - before[1]}
        for kind in ("", "_cpu"):
            seconds[f"step{kind}"] = seconds[f"architecture{kind}"] + seconds[f"weights{kind}"]
        return seconds

    def _clocks(self) -> tuple[float, float]:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def times(bench: Bench, repeats: int) -> dict[str, Any]:
    """The forms in turns; the first turn, in which kernels are built, does not count."""
    names = list(bench.forms)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name in names if turn % 2 else names[::-1]:
            seconds = bench.step(name)
            if turn:
                rows[name].append(seconds)
    found: dict[str, Any] = {}
    for name in names:
        for part in rows[name][0]:
            values = [row[part] for row in rows[name]]
            ratios = [row[part] / base[part] for row, base in zip(rows[name], rows["textbook"], strict=True)]
            found.setdefault(part, {})[name] = {
                "median_s": statistics.median(values), "s": values,
                "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)],
            }  # fmt: skip
    return found


def held(form: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    """MB of unique storages that autograd keeps at the end of the forward pass, without parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in [*form.parameters(), *form.buffers()]}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = F.cross_entropy(form(batch[0]), batch[1])
    del loss
    return sum(size for address, size in kept.items() if address not in own) / 1e6


def memory(chosen: argparse.Namespace) -> dict[str, float]:
    """MB of one form, in a process of its own."""
    bench, name = Bench(chosen), chosen.memory
    bench.forms = {name: bench.forms[name]}
    batches = bench.batches
    bench.batches = [(x[:2, :, :8, :8], y[:2]) for x, y in batches]
    bench.step(name)  # what is loaded once
    bench.batches = batches
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e6
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        before = _resident("VmRSS")
    bench.step(name)
    peak = torch.cuda.max_memory_allocated() / 1e6 if bench.cuda else _resident("VmHWM")
    return {"peak_mb": peak - before, "before_mb": before, "saved_mb": held(bench.forms[name], batches[1])}


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1.024e-3 * int(next(line for line in lines if line.startswith(field)).split()[1])


def memories(chosen: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in FORMS:
        command = [sys.executable, __file__, "--memory", name, "--out", str(chosen.out)]
        for option in ("batch", "size", "channels", "cells", "device"):
            command += [f"--{option}", str(getattr(chosen, option))]
        # Blocks are given back as they are freed, so that the mark is of what was in use and not of gaps.
        settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=settings)
        found[name] = json.loads(run.stdout)
    for part in ("peak_mb", "saved_mb"):
        found[f"{part[:-3]}_ratio"] = found["archgrad"][part] / found["textbook"][part]
    return found


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest difference of an entry over the largest entry."""
    worst = max(float((a.double() - b.double()).abs().max()) for a, b in zip(ours, theirs, strict=True))
    return worst / max(float(b.abs().max()) for b in theirs)


def differences(chosen: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Of gradients, on at most 16 images."""
    small = argparse.Namespace(**{**vars(chosen), "batch": min(chosen.batch, 16)})
    single, double = Bench(small), Bench(small, torch.float64)
    found = {}
    for half in single.parameters:
        exact = double.gradients("textbook", half)
        found[half] = {"float64, archgrad to textbook": difference(double.gradients("archgrad", half), exact)}
        made = {name: single.gradients(name, half) for name in FORMS}
        for name in FORMS:
            if name != "textbook":
                found[half][f"float32, {name} to textbook"] = difference(made[name], made["textbook"])
            found[half][f"float32 to float64, {name}"] = difference(made[name], exact)
        last = difference(made["archgrad"], made["textbook in channels_last"])
        found[half]["float32, archgrad to textbook in channels_last"] = last
    return found


def norm_errors(chosen: argparse.Namespace) -> dict[str, float]:
    """Of BatchNorm in float32 on a map of the first cells, in either layout: to float64, relative to the largest."""
    x = torch.randn(chosen.batch, chosen.channels, chosen.size, chosen.size).to(chosen.device)
    exact = F.batch_norm(x.double(), None, None, training=True)
    found = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        y = F.batch_norm(x.contiguous(memory_format=layout), None, None, training=True)
        found[str(layout).removeprefix("torch.")] = difference([y], [exact])
    return found


def report(result: dict[str, Any]) -> str:
    """The figures beside the aims."""
    step, memory = result["time"]["step"], result["memory"]
    lines = [
        "| form | step, s | architecture, s | weights, s | ratio (range) | processor time | peak, MB | saved, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in step:
        parts = [result["time"][part][name] for part in ("step", "architecture", "weights")]
        low, high = parts[0]["ratio_range"]
        mb = [f"{memory[name][part]:.0f}" if name in memory else "-" for part in ("peak_mb", "saved_mb")]
        seconds = " | ".join(f"{part['median_s']:.2f}" for part in parts)
        processor = result["time"]["step_cpu"][name]["ratio"]
        ratio = f"{parts[0]['ratio']:.2f} ({low:.2f} to {high:.2f}) | {processor:.2f}"
        lines.append(f"| {name} | {seconds} | {ratio} | {' | '.join(mb)} |")
    figures = {
        "time": step["archgrad"]["ratio"],
        "memory": memory["peak_ratio"],
        "gradients": max(d["float32, archgrad to textbook"] for d in result["gradients"].values()),
    }
    for name, figure in figures.items():
        lines.append(f"{name}: {figure:.3g}, aim {AIM[name]:g}: {'met' if figure <= AIM[name] else 'MISSED'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile of the textbook form")
    parser.add_argument("--memory", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.memory:
        print(json.dumps(memory(chosen)))
        return
    result: dict[str, Any] = {k: getattr(chosen, k) for k in ("batch", "size", "channels", "cells", "device")}
    result |= {"torch": torch.__version__, "aim": AIM, "norm_errors": norm_errors(chosen)}
    result |= {"gradients": differences(chosen), "memory": memories(chosen)}
    print(json.dumps(result, indent=1), flush=True)
    bench = Bench(chosen)
    if chosen.compile:
        bench.forms["textbook, compiled"] = torch.compile(bench.forms["textbook"])  # type: ignore[assignment]
    result["time"] = times(bench, chosen.repeats)
    save_results(chosen.out, result)
    print(report(result))


if __name__ == "__main__":
    main()
