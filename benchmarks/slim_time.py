"""Seconds and memory of slim on published networks, beside Torch-Pruning's, and what it made of them.

    python benchmarks/slim_time.py --out benchmarks/results/slim_time.json
    python benchmarks/slim_time.py resnet50 decoder:12 --pixels 224

Names are timm's, at random weights, or `decoder:N`, a language model of N blocks written here with torch alone
(grouped queries, rotary positions, a gated MLP; 12 blocks have 100 million parameters). Seconds are of the processor,
one thread, the first run of each network and all imports left out for both. Memory is the peak of the process while
slim runs, less what it held before, plus the weights that it was given: "4 times the weights" counts them too (Linux
alone). "exact" is the largest relative difference between a held space and the network built from it, over the
smallest architecture and two random ones, on inputs other than the example. Torch-Pruning cuts half of every layer of
the same network in the same process; a network that does not run afterwards counts as failed.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import platform
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from saving import save_results
from torch import Tensor, nn

import archgrad as ag

NETWORKS = (
    "resnet18", "resnet50", "resnet152", "mobilenetv3_small_100", "efficientnet_b0", "densenet121",
    "res2net50_26w_4s", "convnext_atto", "convnext_base", "vit_tiny_patch16_224", "vit_base_patch16_224",
    "swin_base_patch4_window7_224", "decoder:4", "decoder:12",
)  # fmt: skip


class DecoderBlock(nn.Module):
    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.repeats = heads // groups
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, groups * self.head_dim, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)

    def _rotated(self, x: Tensor) -> Tensor:
        half = self.head_dim // 2
        angles = torch.arange(x.shape[2], device=x.device)[:, None] * 0.1 ** torch.arange(half, device=x.device)
        both = torch.cat([angles, angles], -1).to(x.dtype)
        return x * both.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * both.sin()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        q, k, v = (f(y).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(self.repeats, 1) for t in (self._rotated(k), v))
        mixed = F.scaled_dot_product_attention(self._rotated(q), k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def network(name: str, pixels: int) -> tuple[nn.Module, Tensor]:
    """A network at random weights, in eval mode, and an example."""
    torch.manual_seed(0)
    if name.startswith("decoder:"):
        blocks = [DecoderBlock(768, 12, 4) for _ in range(int(name.partition(":")[2]))]
        net = nn.Sequential(nn.Embedding(8000, 768), *blocks, nn.RMSNorm(768), nn.Linear(768, 8000, bias=False))
        return net.eval(), torch.randint(0, 8000, (1, 64))
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from families.timm_shim import load_timm

    timm = load_timm()
    net = timm.create_model(name, pretrained=False, num_classes=10).eval()
    return net, torch.randn(1, 3, pixels, pixels)


def difference(space: nn.Module, x: Tensor) -> float:
    """Largest relative difference of held and built outputs."""
    generator = torch.Generator().manual_seed(1)
    other = torch.randn(x.shape, generator=generator) if x.is_floating_point() else x.flip(-1)
    smallest = {n: () if c[0].vanishing else (0,) for n, c in _choices(space).items()}
    architectures = [ag.Architecture(smallest), *(ag.sample(space, generator=generator) for _ in range(2))]
    worst = 0.0
    for architecture in architectures:
        with torch.no_grad():
            held = ag.hold(space, architecture).eval()(other)
            built = ag.build(space, architecture).eval()(other)
        worst = max(worst, float((held - built).abs().max() / held.abs().max()))
    return worst


def _choices(space: nn.Module) -> dict[str, Any]:
    from archgrad.choices import choices

    return choices(space)


def slimmed(net: nn.Module, x: Tensor) -> dict[str, Any]:
    """What slim makes of a network."""
    ag.slim(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.ones(1, 2))  # what it imports is left out
    with torch.no_grad():
        net(x)
    before = _reset_peak()
    began = time.process_time()
    space = ag.slim(net, x)
    seconds = time.process_time() - began
    peak = _status("VmHWM") - before + sum(p.numel() * p.element_size() for p in net.parameters())
    frozen = ag.frozen(space)
    return {
        "seconds": seconds, "peak_bytes": peak, "gates": len(_choices(space)), "frozen": len(frozen),
        "parameters_fraction": frozen.parameters_fraction, "macs_fraction": frozen.macs_fraction,
        "reasons": dict(Counter(frozen.values()).most_common(5)), "exact": difference(space, x),
    }  # fmt: skip


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> int:
    """Forget the process's peak; what it holds now, in bytes."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def cut_by_torch_pruning(net: nn.Module, x: Tensor) -> dict[str, Any]:
    """Half of every layer but the last."""
    try:
        import torch_pruning as tp
    except ImportError:
        return {"failed": "not installed"}
    last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1:]
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importance = tp.importance.MagnitudeImportance()
            pruner = tp.pruner.BasePruner(net, x, importance, pruning_ratio=0.5, ignored_layers=last)
            pruner.step()
        seconds = time.process_time() - began
        net(x)
    except Exception as error:  # noqa: BLE001, it may raise anything
        return {"failed": f"{type(error).__name__}: {error}"[:120], "seconds": time.process_time() - began}
    return {"seconds": seconds}


def measured(name: str, pixels: int) -> dict[str, Any]:
    """One row."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    net, x = network(name, pixels)
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    try:
        row = {"parameters": weights // 4, **slimmed(net, x)}
        row["peak_over_weights"] = row["peak_bytes"] / weights
    except ag.ArchgradError as error:
        row = {"failed": str(error)[:200]}
    row["torch_pruning"] = cut_by_torch_pruning(net, x)
    if "seconds" in row and "seconds" in row["torch_pruning"]:
        row["ratio"] = row["seconds"] / row["torch_pruning"]["seconds"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--out", type=Path, help="a JSON file of all rows")
    chosen = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    # Each in a process of its own, so that none finds memory that another has left.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in chosen.networks:
            rows[name] = pool.apply(measured, (name, chosen.pixels))
            print(name, json.dumps(rows[name]), flush=True)
    if chosen.out:
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        save_results(chosen.out, {"pixels": chosen.pixels, **versions, "networks": rows})


if __name__ == "__main__":
    main()
