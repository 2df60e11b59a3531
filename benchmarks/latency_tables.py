"""Additive latency tables fitted on measured networks: how well they predict others, device by device.

    python benchmarks/latency_tables.py --out benchmarks/results/latency_tables.json

5,000 architectures of the FBNet space (22 layers, 9 blocks each) with their latencies on 27 devices and batch sizes,
as published with HELP. `Surrogate`, the table that searches under a measured limit fit, gets the first networks and
predicts the last 1,000. Beside it the plain least squares of all 22 x 9 costs. Data: found through ARCHGRAD_DATA.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from saving import save_results
from torch import nn

import archgrad as ag
from archgrad.costs import Surrogate

BLOCKS = ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip")
TESTED = 1000


@dataclass
class TableColumn:
    """A cost that was measured elsewhere: a name and a unit for the surrogate."""

    name: str
    unit: str = "ms"
    measured: bool = True

    def of(self, network: nn.Module) -> float:
        raise ag.LimitError(f"{self.name} was measured elsewhere")

    def expected(self, space: nn.Module) -> torch.Tensor:
        raise ag.LimitError(f"{self.name} has no gradient; its surrogate has one")


def r2(predicted: np.ndarray, true: np.ndarray) -> float:
    return float(1 - ((predicted - true) ** 2).sum() / ((true - true.mean()) ** 2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fitted", type=int, nargs="+", default=[100, 500, 4000])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    path = Path(os.environ.get("ARCHGRAD_DATA", "")) / "fbnet_latency" / "fbnet_latency.npz"
    if not path.is_file():
        sys.exit(f"skipped: {path} is not there; set ARCHGRAD_DATA to the folder that holds fbnet_latency/")
    with np.load(path, allow_pickle=False) as file:
        table = {name: file[name] for name in file.files}
    ops = table.pop("ops")
    names = [f"layer{i}" for i in range(ops.shape[1])]
    space = nn.Sequential(*(ag.OpChoice(BLOCKS, name=name) for name in names))
    architectures = [ag.Architecture(dict(zip(names, map(int, row), strict=True))) for row in ops]
    onehot = np.eye(len(BLOCKS))[ops].reshape(len(ops), -1)
    rows = []
    for device, values in table.items():
        true = values[-TESTED:].astype(float)
        found: dict[str, object] = {"device": device.removeprefix("lat_ms_")}
        for count in arguments.fitted:
            surrogate = Surrogate(space, TableColumn(device))
            surrogate.fit(architectures[:count], values[:count].tolist())
            predicted = np.array([surrogate.predict(a) for a in architectures[-TESTED:]])
            found[f"surrogate_{count}"] = r2(predicted, true)
        most = max(arguments.fitted)
        costs = np.linalg.lstsq(onehot[:most], values[:most].astype(float), rcond=None)[0]
        found[f"least_squares_{most}"] = r2(onehot[-TESTED:] @ costs, true)
        rows.append(found)
        print(" | ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in found.values()), flush=True)
    save_results(arguments.out, {"tested": TESTED, "rows": rows})


if __name__ == "__main__":
    main()
