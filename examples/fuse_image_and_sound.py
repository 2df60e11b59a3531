"""Find encoders and their fusion for written and spoken digits, under a limit on MACs, from your own two copies.

    python examples/fuse_image_and_sound.py mnist.npz recordings --out runs/digits --trials 20 --epochs 30

`mnist.npz` holds x_train, y_train, x_test, y_test; `recordings` is the folder of that name of the Free Spoken Digit
Dataset, DIGIT_SPEAKER_TAKE.wav. Stopped, it goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import archgrad as ag


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--level", default="A")
    parser.add_argument("--pairs", type=int, nargs=3, default=[8000, 1000, 1000])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    task = ag.av_digits(
        chosen.mnist, chosen.recordings, level=chosen.level, pairs=tuple(chosen.pairs), seed=chosen.seed
    )  # fmt: skip
    torch.manual_seed(chosen.seed)
    space = ag.fusion(task.example, classes=10)
    run = ag.Run(epochs=chosen.epochs, trials=chosen.trials, seed=chosen.seed, folder=chosen.out)
    found = ag.multimodal_random(space, task, run, limit=ag.macs(task.example).at_most(10e6))
    print(found.report())


if __name__ == "__main__":
    main()
