"""What the demo gives over several seeds: accuracy, size and time of a small CNN, whole and at half its MACs.

    python benchmarks/demo.py --seeds 1 --out benchmarks/results/demo.json

Data: the handwritten digits that come with scikit-learn. Each seed trains a network for 60 epochs as it is, and one
for as many while it is slimmed; a minute a seed on one core. Times are of ONNX Runtime, one image, one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from saving import save_results

from archgrad.demo import demo


def rows_of(seed: int) -> list[dict[str, Any]]:
    """The network as it is, and slimmed."""
    with tempfile.TemporaryDirectory() as folder:
        record = demo(folder, seed=seed).record
    (whole,) = record["baselines"]
    parts = {"as it is": (whole, record["before"]), "slimmed": (record["after"], record["after"])}
    return [
        {
            "seed": seed, "network": name, "accuracy": scored["accuracy"], "params": scored["params"],
            "macs": scored["macs"], "onnx_ms": timed["latency_ms"]["onnx"]["median_ms"],
        }
        for name, (scored, timed) in parts.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in range(chosen.seeds):
        rows += rows_of(seed)
        print(json.dumps(rows[-2:]), flush=True)
        save_results(chosen.out, {"rows": rows})


if __name__ == "__main__":
    main()
