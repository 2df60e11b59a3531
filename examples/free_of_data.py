"""A cell in seconds, without data, labels or training: FreeNAS, beside the scores of random cells.

    python examples/free_of_data.py --cells 20 --out runs/free

What it finds is a candidate and no result: train it beside random cells. A few seconds on one CPU core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import archgrad as ag
from archgrad import proxies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20, help="random cells to compare with")
    parser.add_argument("--out", type=Path, default=Path("runs/free"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a smaller space, nothing kept")
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    x = torch.ones(1, 3, 8 if given.smoke else 32, 8 if given.smoke else 32)  # the shape alone matters
    space = ag.nasbench201_cells(channels=4, cells=1) if given.smoke else ag.nasbench201_cells()
    run = ag.Run(seed=given.seed, folder=None if given.smoke else given.out, progress=not given.smoke)
    found = ag.freenas(space, run, example=x)
    print(space.to_string(found.architecture))

    generator = torch.Generator().manual_seed(given.seed)
    rows = [("FreeNAS", found.architecture)]
    rows += [(f"random {k}", ag.sample(space, generator=generator)) for k in range(2 if given.smoke else given.cells)]
    for name, architecture in rows:
        network = ag.build(space, architecture, weights="fresh")
        flow, size = proxies.synflow(network, x), proxies.params(network)
        print(f"{name:<10} SynFlow {flow:9.2f}   {size:10,.0f} parameters   {space.to_string(architecture)}")


if __name__ == "__main__":
    main()
