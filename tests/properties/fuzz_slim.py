"""Slim random networks for as long as one likes: python tests/properties/fuzz_slim.py --seconds 3600 --seed 0."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from families.verdict import verdict


def drawn(seed: int, seconds: float) -> tuple[Counter[str], float, list[str]]:
    """Slim networks from a seed on for so long: the verdicts, the slowest in seconds of processor, what was wrong."""
    counts, end, slowest, wrong = Counter[str](), time.monotonic() + seconds, 0.0, list[str]()
    while time.monotonic() < end:
        start = time.process_time()
        try:
            outcome = verdict(seed)
        except Exception as error:  # noqa: BLE001, everything that is raised is a finding
            outcome = f"WRONG: raises {type(error).__name__}: {error}"
        slowest = max(slowest, time.process_time() - start)
        if outcome.startswith("WRONG"):
            wrong.append(f"seed {seed}: {outcome[:400]}")
            sys.stdout.write(f"{wrong[-1]}\n")
        counts[outcome.partition(":")[0].partition(" ")[0]] += 1
        seed += 1
        if counts.total() % 100 == 0:
            sys.stdout.write(f"{counts.total()} networks, slowest {slowest:.1f} s: {dict(counts)}\n")
            sys.stdout.flush()
    return counts, slowest, wrong


def main() -> None:
    """Run until the time is over; the exit status says whether anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts, slowest, wrong = drawn(options.seed, options.seconds)
    sys.stdout.write(f"{counts.total()} networks, slowest {slowest:.1f} s of processor: {dict(counts)}\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
