"""How many cells of NAS-Bench-201 are drawn until one is good enough, evenly and from a prior of untrained scores.

    python benchmarks/prior.py --seeds 20 --out benchmarks/results/prior.json

The prior is `ag.prior` of the mean SynFlow (16 x 16) of 300 cells, at several strengths; 0 draws evenly. A draw is a
look-up in the table of test accuracies after 200 epochs, which the prior does not see. Medians over the seeds of the
draws. Data: found through ARCHGRAD_DATA.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from proxies import folder
from saving import save_results

import archgrad as ag
from archgrad.choices import Uniform
from archgrad.proxies import mean_channels, synflow_each

TARGETS = {"cifar10": 94.0, "cifar100": 72.0, "imagenet16_120": 46.0}
STRENGTHS = (0.0, 0.5, 1.0, 2.0, 4.0)
MOST = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small, ones = mean_channels(ag.nasbench201_cells()), torch.ones(1, 1, 16, 16)
    rows = []
    for strength in STRENGTHS:
        given = ag.prior(
            small, lambda some: synflow_each(small, some, ones), samples=300, strength=strength,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        policy = Uniform(small, prior=given)
        for data, target in TARGETS.items():
            table = ag.Tabular.load(folder() / "nasbench201" / "nasbench201.npz", data=data)
            for seed in range(arguments.seeds):
                generator = torch.Generator().manual_seed(seed)
                draws = (n for n in range(1, MOST) if table.score(policy.sample(generator)) >= target)
                rows.append({"data": data, "strength": strength, "seed": seed, "draws": next(draws, MOST)})
        save_results(arguments.out, {"targets": TARGETS, "rows": rows})
    print("| until the accuracy is | " + " | ".join(map(str, STRENGTHS)) + " |\n|---" + "|---" * len(STRENGTHS) + "|")
    for data, target in TARGETS.items():
        of = {s: [r["draws"] for r in rows if r["data"] == data and r["strength"] == s] for s in STRENGTHS}
        print(f"| {target} on {data} | " + " | ".join(f"{statistics.median(of[s]):g}" for s in STRENGTHS) + " |")


if __name__ == "__main__":
    main()
