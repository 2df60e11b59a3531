"""What the demo gives over several seeds: accuracy, size and time of a small CNN, whole and at half its MACs.

    python benchmarks/demo.py --seeds 1 --out benchmarks/results/demo.json

Data: the handwritten digits that come with scikit-learn. Each seed trains a network for 60 epochs and slims it in 20
more; the control, the same network cut to uniform width, is trained for as long. A minute a seed on one core. Times
are of ONNX Runtime, one image, one thread.
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
    """The network as it is, slimmed, and of uniform width."""
    with tempfile.TemporaryDirectory() as folder:
        record = demo(folder, seed=seed).record
    (control,) = record["baselines"]
    parts = {"as it is": record["before"], "slimmed": record["after"], "uniform width": control}
    return [
        {
            "seed": seed, "network": name, **{key: figures[key] for key in ("accuracy", "params", "macs")},
            **({"onnx_ms": figures["latency_ms"]["onnx"]["median_ms"]} if "latency_ms" in figures else {}),
        }
        for name, figures in parts.items()
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
        print(json.dumps(rows[-3:]), flush=True)
        save_results(chosen.out, {"rows": rows})


if __name__ == "__main__":
    main()
