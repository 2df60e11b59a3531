"""Bias and variance of the gradient estimators on spaces small enough to enumerate.

python benchmarks/estimators.py --seeds 5 --json benchmarks/results/estimators.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from estimator_variance import variance_lines, variance_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None, help="write the rows to this file")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = variance_report(seeds=chosen.seeds)
    if chosen.json:
        body = {"seeds": chosen.seeds, "torch": torch.__version__, "rows": rows}
        chosen.json.write_text(json.dumps(body, indent=1) + "\n")
    print("\n".join(variance_lines(rows)))


if __name__ == "__main__":
    main()
