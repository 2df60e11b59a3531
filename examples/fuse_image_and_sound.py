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


def made_up() -> ag.Classification:
    """Noise of the right shapes: named inputs, as any task with several has them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(80, 1, 8, 8, generator=generator)
    sounds = torch.rand(80, 1, 16, 16, generator=generator)
    return ag.Classification(ag.Modalities({"image": images, "audio": sounds}, torch.arange(80) % 10), batch_size=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path, nargs="?")
    parser.add_argument("recordings", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--level", default="A")
    parser.add_argument("--pairs", type=int, nargs=3, default=[8000, 1000, 1000])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="made-up data, four trials, in seconds")
    chosen = parser.parse_args()
    if chosen.smoke:
        task, chosen.trials, steps = made_up(), 4, 16
    elif chosen.mnist is None or chosen.recordings is None:
        parser.error("give mnist.npz and the folder of recordings, or --smoke")
    else:
        steps = None
        task = ag.av_digits(
            chosen.mnist, chosen.recordings, level=chosen.level, pairs=tuple(chosen.pairs), seed=chosen.seed
        )
    torch.manual_seed(chosen.seed)
    space = ag.fusion(task.example, classes=10)
    folder = None if chosen.smoke else chosen.out
    run = ag.Run(epochs=chosen.epochs, steps=steps, trials=chosen.trials, seed=chosen.seed, folder=folder)
    found = ag.multimodal_random(space, task, run, limit=ag.macs(task.example).at_most(10e6))
    print(found.report())


if __name__ == "__main__":
    main()
