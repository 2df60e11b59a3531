"""What of some eighty networks can be removed, and whether the removal is exact; beside Torch-Pruning 1.6.1.

    python benchmarks/coverage.py --out benchmarks/results/coverage.json      some ten minutes of one core
    python benchmarks/coverage.py "timm: resnet18" "detection: YOLO-like"
    python benchmarks/coverage.py --page benchmarks/results/coverage.json     prints the page of the rows
    python benchmarks/coverage.py --summary benchmarks/results/coverage.json  prints the table of the README

A row has the share of parameters and of MACs that some network of the space is without ("reach"), what is left of
both in the smallest network, the seconds of the processor that slim took (imports left out), and the largest relative
difference between a held space and the network built from it ("difference": the smallest architecture and two random
ones, after noise on the weights, on the example; single precision). "macs_gap" is the largest relative gap between
the cost that the space expects and the count of the built network.

Torch-Pruning cuts what it can: all but one channel or group of every layer but those that make the outputs, as its
documentation says, with the heads of timm's attention named as in its example for ViT. It is asked for all but one
channel, then for 0.9, 0.75 and 0.5 of each layer, until the network runs afterwards. A network that fails counts as
failed, with the reason. Each network is tried in a process of its own, for at most three minutes of the processor,
and one for Torch-Pruning.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import archgrad as ag

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from coverage_networks import Made, of_timm, of_transformers, own
from families.checks import stir
from saving import save_results

MINUTES = 3
ASKED = (None, 0.9, 0.75, 0.5)  # None: all but one channel
EXACT = 1e-4  # relative, single precision


def networks() -> dict[str, Callable[[], Made]]:
    """All of them by name."""
    return {**dict(own()), **dict(of_timm()), **dict(of_transformers())}


def outputs(net: nn.Module, example: Any) -> list[Tensor]:
    given = example if isinstance(example, tuple) else (example,)
    named = dict(given[0]) if isinstance(given[0], Mapping) else {}
    with torch.no_grad():
        out = net.eval()(**named) if named else net(*given)
    if isinstance(out, Mapping):  # of a head, where there is one: hidden states beside it are no outputs for slim
        of_heads = [value for name, value in out.items() if name.startswith("logits") or name.endswith("embeds")]
        out = of_heads or list(out.values())
    return [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.is_floating_point()]


def slimmed(net: nn.Module, example: Any) -> dict[str, Any]:
    """What slim makes of a network."""
    from archgrad.choices import choices

    ag.slim(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.ones(1, 2))  # what it imports is left out
    began = time.process_time()
    space = ag.slim(net, example)
    seconds = time.process_time() - began
    stir(space)
    generator = torch.Generator().manual_seed(1)
    gates = {n: same[0] for n, same in choices(space).items()}
    smallest = ag.Architecture({n: () if g.vanishing else (0,) for n, g in gates.items()})
    difference = gap = 0.0
    macs, params = ag.macs(example), ag.params()
    for architecture in (smallest, *(ag.sample(space, generator=generator) for _ in range(2))):
        held, built = ag.hold(space, architecture), ag.build(space, architecture)
        for a, b in zip(outputs(held, example), outputs(built, example), strict=True):
            difference = max(difference, float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)))
        gap = max(gap, abs(float(macs.expected(held)) / macs.of(built) - 1))
    built = ag.build(space, smallest)
    frozen = ag.frozen(space)
    return {
        "seconds": seconds, "gates": len(gates), "frozen": len(frozen), "difference": difference, "macs_gap": gap,
        "parameters_left": params.of(built) / params.of(net), "macs_left": macs.of(built) / macs.of(net),
        "reach_parameters": 1 - frozen.parameters_fraction, "reach_macs": 1 - frozen.macs_fraction,
        "reasons": [r for r, _ in Counter(r.partition(";")[0][:160] for r in frozen.values()).most_common(4)],
    }  # fmt: skip


def cut_by_torch_pruning(make: Callable[[], Made]) -> dict[str, Any]:
    """What Torch-Pruning leaves of it at the least."""
    import torch_pruning as tp

    failure = ""
    for ratio in ASKED:
        torch.manual_seed(0)
        net, example = make()
        net.eval()
        before = {"parameters": ag.params().of(net), "macs": ag.macs(example).of(net)}
        heads = {
            m.qkv: m.num_heads for m in net.modules() if isinstance(getattr(m, "qkv", None), nn.Linear)
            and isinstance(getattr(m, "num_heads", None), int)
        }  # fmt: skip
        began = time.process_time()
        try:
            pruner = tp.pruner.BasePruner(
                net, example, tp.importance.MagnitudeImportance(), pruning_ratio=ratio or 0.9,
                pruning_ratio_dict=all_but_one(net) if ratio is None else None,
                ignored_layers=last_layers(net, example), num_heads=heads,
            )  # fmt: skip
            pruner.step()
            for module in net.modules():
                qkv = getattr(module, "qkv", None)
                if qkv in heads:
                    module.head_dim = qkv.out_features // (3 * module.num_heads)
                    module.attn_dim = module.head_dim * module.num_heads
            seconds = time.process_time() - began
            if not outputs(net, example):
                raise RuntimeError("no outputs")
            return {
                "asked": ratio, "seconds": seconds, "parameters_left": ag.params().of(net) / before["parameters"],
                "macs_left": ag.macs(example).of(net) / before["macs"],
            }  # fmt: skip
        except Exception as error:  # noqa: BLE001, it may raise anything
            failure = failure or f"{type(error).__name__}: {error}".strip().split("\n")[0][:140]
    return {"failed": failure}


def all_but_one(net: nn.Module) -> dict[nn.Module, float]:
    """The share of each layer's channels to cut so that one stays."""
    widths = {m: getattr(m, "out_channels", getattr(m, "out_features", 0)) for m in net.modules()}
    return {m: 1 - 1 / width for m, width in widths.items() if isinstance(width, int) and width > 1}


def last_layers(net: nn.Module, example: Any) -> list[nn.Module]:
    """The layers whose outputs are the network's, as far as identity or size tells."""
    made: dict[int, nn.Module] = {}
    handles = []
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):

            def note(module: nn.Module, _i: Any, out: Tensor) -> None:
                made[out.shape[1 if isinstance(module, nn.modules.conv._ConvNd) else -1]] = module

            handles.append(module.register_forward_hook(note))
    results = outputs(net, example)
    for handle in handles:
        handle.remove()
    sizes = {x.shape[d] for x in results for d in ((1,) if x.dim() == 4 else (1, -1)) if x.dim() > 1}
    return [module for size, module in made.items() if size in sizes]


def measured(pipe: Any, name: str) -> None:
    """Send what slim makes of a network, then what Torch-Pruning does."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _allow(MINUTES)
    make = networks()[name]
    torch.manual_seed(0)
    net, example = make()
    net.eval()
    row: dict[str, Any] = {"name": name, "parameters": ag.params().of(net), "macs": ag.macs(example).of(net)}
    try:
        row |= slimmed(net, example)
        row["exact"] = row["difference"] < EXACT
    except Exception as error:  # noqa: BLE001, a failure is a row
        row["failed"] = f"{type(error).__name__}: {error}"[:200]
    pipe.send(row)
    _allow(1)
    pipe.send(cut_by_torch_pruning(make))


def in_a_process(name: str) -> dict[str, Any]:
    """A row; a process that takes too long ends."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=measured, args=(there, name))
    process.start()
    there.close()

    def received(minutes: int) -> dict[str, Any]:
        try:
            return here.recv()  # type: ignore[no-any-return]
        except EOFError:
            return {"failed": f"not done after {minutes} minutes of the processor, or the process ended"}

    row = {"name": name, **received(MINUTES)}
    row["torch_pruning"] = received(1) if "parameters" in row else {"failed": "not run"}
    process.join()
    return row


def _allow(minutes: int) -> None:
    """End this process after so many more minutes of the processor."""
    until = int(time.process_time()) + 60 * minutes
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _percent(x: float) -> str:
    return f"{100 * x:.1f} %" if x >= 0.001 else "0.1 % or less"


def page(record: dict[str, Any]) -> str:
    """docs/benchmarks/coverage.md."""
    rows = record["networks"]
    ours = [r for r in rows if "failed" not in r]
    peers = [r for r in rows if "failed" not in r.get("torch_pruning", {"failed": ""})]
    both = [r for r in ours if r in peers]
    larger = [r for r in both if r["parameters_left"] > r["torch_pruning"]["parameters_left"]]
    inexact = [r["name"] for r in ours if not r["exact"]]
    within = sum(r["reach_parameters"] >= 0.9 for r in ours)
    seconds = statistics.median(r["seconds"] / max(r["torch_pruning"]["seconds"], 1e-3) for r in both)
    off = ", ".join(f"{r['name']} ({r['macs_gap']:.1%})" for r in ours if r["macs_gap"] > 1e-6)
    lines = [
        "# What can be removed, network by network",
        "",
        "<!-- written by benchmarks/coverage.py --page; do not edit -->",
        "",
        f"Rows are there for {len(rows)} of the script's {record['listed']} networks. Of these `ag.slim` handles "
        f"{len(ours)}; Torch-Pruning {record['torch_pruning']} cuts "
        f"{len(peers)} so that they run afterwards. "
        + (f"Held and built networks differ in {', '.join(inexact)}." if inexact else
           "In all of ours the held space and the built network compute the same."),
        f"At least 90 % of the parameters are within reach in {within} of {len(ours)}. Where both run, the smallest "
        f"network of `ag.slim` has no more parameters than that of Torch-Pruning in {len(both) - len(larger)} of "
        f"{len(both)}" + (f"; not in {', '.join(r['name'] for r in larger)}." if larger else "."),
        "",
        "**Where it loses.** Below 90 %: "
        + ("; ".join(f"{r['name']} ({_percent(r['reach_parameters'])}: {', '.join(r['reasons'])})"
                     for r in ours if r["reach_parameters"] < 0.9) or "none") + ".",
        "Not handled at all: "
        + ("; ".join(f"{r['name']} ({r['failed'][:80]})" for r in rows if "failed" in r) or "none") + ".",
        "Costs that the space expects and that differ from the count of the built network by more than one in a "
        "million, in shares of that count: " + (off or "none") + ".",
        f"Slimming takes {seconds:.0f} times the processor time of Torch-Pruning in the median of the networks that "
        "both handle: each removal is tried.",
        "",
        "The smallest network is a bound and nothing to use: it keeps one channel everywhere. Its size says how much "
        "is frozen. Torch-Pruning is asked for all but one channel, then for less until the network runs, so its "
        "figures are what that leaves; a call that is tuned to the network may reach further. It removes no whole "
        "residual branches, which ours does. Networks with `weight_norm` are given to both as they are.",
        "",
        "| network | parameters | reach, parameters | reach, MACs | smallest | Torch-Pruning's | seconds | its |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in rows:
        peer = r.get("torch_pruning", {"failed": "not run"})
        theirs = "fails" if "failed" in peer else _percent(peer["parameters_left"])
        took = "" if "failed" in peer else f"{peer['seconds']:.1f}"
        if "failed" in r:
            lines.append(f"| {r['name']} | {r.get('parameters', math.nan):,.0f} | fails | | | {theirs} | | {took} |")
            continue
        lines.append(
            f"| {r['name']} | {r['parameters']:,.0f} | {_percent(r['reach_parameters'])} | "
            f"{_percent(r['reach_macs'])} | {_percent(r['parameters_left'])} | {theirs} | "
            f"{r['seconds']:.1f} | {took} |"
        )
    machine = record["machine"]
    lines += [
        "",
        f"Measured on {machine['words']}, torch {machine['versions']['torch']}, timm {record['timm']}, transformers "
        f"{record['transformers']}, at random weights. Rows: `benchmarks/results/coverage.json`. Reproduce: "
        "`python benchmarks/coverage.py --out benchmarks/results/coverage.json`, then "
        "`python benchmarks/coverage.py --page benchmarks/results/coverage.json > docs/benchmarks/coverage.md`.",
        "",
        "**Read next:** [what can be removed, and what is left as it is](../slim.md#what-can-be-removed)",
    ]
    return "\n".join(lines)


def summary(record: dict[str, Any]) -> str:
    """The README's table."""
    kinds = {
        "timm: ": "of timm: ResNet, EfficientNet, ViT, Swin, ...",
        "Hugging Face: ": "of Hugging Face: BERT, T5, Llama, ...",
    }
    own = "of other kinds: detection, segmentation, diffusion, speech, agents"
    named = {**kinds, "": own}
    lines = [
        "| networks | handled, exactly | parameters within reach | smallest network no larger than Torch-Pruning's |",
        "|---|---|---|---|",
    ]
    for prefix, words in named.items():
        rows = [
            r
            for r in record["networks"]
            if (r["name"].startswith(prefix) if prefix else not r["name"].startswith(tuple(kinds)))
        ]
        good = [r for r in rows if r.get("exact")]
        both = [r for r in good if "failed" not in r["torch_pruning"]]
        smaller = sum(r["parameters_left"] <= r["torch_pruning"]["parameters_left"] for r in both)
        reach = sorted(r["reach_parameters"] for r in good)
        lines.append(
            f"| {len(rows)} {words} | {len(good)} | {_percent(reach[0])} to {_percent(reach[-1])}, median "
            f"{_percent(statistics.median(reach))} | {smaller} of the {len(both)} that it cuts |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="names; default: all")
    parser.add_argument("--out", type=Path, help="a JSON file of all rows; rows of the same name are replaced")
    parser.add_argument("--page", type=Path, help="print the page of such a file, and measure nothing")
    parser.add_argument("--summary", type=Path, help="print the README's table of such a file, and measure nothing")
    chosen = parser.parse_args()
    if chosen.summary:
        print(summary(json.loads(chosen.summary.read_text())))
        return
    if chosen.page:
        print(page(json.loads(chosen.page.read_text())))
        return
    kept = chosen.out is not None and chosen.out.exists()
    record: dict[str, Any] = json.loads(chosen.out.read_text()) if kept else {"networks": []}
    record |= {n.replace("-", "_"): version(n) for n in ("timm", "transformers", "torch-pruning")}
    everything = networks()
    record["listed"] = len(everything)
    for name in chosen.networks or everything:
        row = in_a_process(name)
        print(json.dumps(row), flush=True)
        rows = {r["name"]: r for r in record["networks"]} | {name: row}
        record["networks"] = [rows[n] for n in everything if n in rows]
        if chosen.out:
            save_results(chosen.out, record)


if __name__ == "__main__":
    main()
