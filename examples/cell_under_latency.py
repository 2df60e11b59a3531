"""Find a cell for your data that runs within a time on this machine, and build a larger network of it.

    python examples/cell_under_latency.py --fraction 0.6 --out runs/cell

The bound is a share of the time that the slowest cell of a few takes, so that it means something on any machine; give
milliseconds in earnest. The space is NAS-Bench-201's, small, and the data are digits. About a minute on one CPU core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import archgrad as ag


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fraction", type=float, default=0.6, help="of the slowest of ten cells' time")
    parser.add_argument("--epochs", type=int, default=10, help="of search and training together")
    parser.add_argument("--out", type=Path, default=Path("runs/cell"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few steps, nothing kept, in seconds")
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    task = ag.Classification.load("digits", batch_size=64)
    space = ag.nasbench201_cells(channels=4 if given.smoke else 8, cells=1, classes=10, in_channels=1)

    time = ag.latency(task.example, repeats=5 if given.smoke else 50)  # measured here, one image at a time
    generator = torch.Generator().manual_seed(given.seed)
    some = [ag.build(space, ag.sample(space, generator=generator)) for _ in range(3 if given.smoke else 10)]
    slowest = max(time.of(network) for network in some)
    print(f"the slowest of {len(some)} cells takes {slowest:.3f} ms")

    run = ag.Run(
        steps=16 if given.smoke else None, epochs=given.epochs, seed=given.seed, progress=not given.smoke,
        folder=None if given.smoke else given.out,
    )  # fmt: skip
    # A measured limit asks for 100 networks and more; MACs, which are counted, show the same in no time.
    limit = ag.macs(task.example).at_most(fraction=0.6) if given.smoke else time.at_most(ms=given.fraction * slowest)
    found = ag.unas(space, task, run, limit=limit)
    print(found.report())

    larger = ag.build(space, found.architecture, cells=1 if given.smoke else 3, channels=16)
    print(f"a larger network of this cell has {ag.params().of(larger):,.0f} parameters; train it with ag.fit")


if __name__ == "__main__":
    main()
