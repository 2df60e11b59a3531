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


def main() -> None:
    """Run until the time is over; the exit status says whether anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    seed, end, slowest = options.seed, time.monotonic() + options.seconds, 0.0
    while time.monotonic() < end:
        start = time.process_time()
        try:
            outcome = verdict(seed)
        except Exception as error:  # noqa: BLE001, everything that is raised is a finding
            outcome = f"WRONG: raises {type(error).__name__}: {error}"
        slowest = max(slowest, time.process_time() - start)
        if outcome.startswith("WRONG"):
            sys.stdout.write(f"seed {seed}: {outcome[:400]}\n")
        counts[outcome.partition(":")[0].partition(" ")[0]] += 1
        seed += 1
        if (seed - options.seed) % 100 == 0:
            sys.stdout.write(f"{seed - options.seed} networks, slowest {slowest:.1f} s: {dict(counts)}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{seed - options.seed} networks, slowest {slowest:.1f} s of processor: {dict(counts)}\n")
    sys.exit(counts["WRONG"] > 0)


if __name__ == "__main__":
    main()
