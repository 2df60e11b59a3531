"""Slim a CNN of your own, on data of your own, to a limit; then write it as ONNX.

    python examples/slim_my_cnn.py --fraction 0.4 --out runs/example

Here the network is a small residual CNN and the data are digits as plain arrays: put yours in their place.
It takes about half a minute on one CPU core. Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import archgrad as ag


class Block(nn.Module):
    """Two convolutions beside a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


class MyCNN(nn.Module):
    """A stem, two residual stages and a linear head: images [B, 1, 8, 8] to logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.stages = nn.Sequential(Block(32), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), Block(64))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def my_data() -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 8, 8] as uint8 and labels [N]: any arrays of such shapes will do, also [N, H, W, 3]."""
    bunch = load_digits()
    return (bunch.images * (255 / 16)).astype(np.uint8), bunch.target


def main() -> None:
    """Train, slim, report, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    parser.add_argument("--fraction", type=float, default=0.4, help="share of the MACs that may stay")
    parser.add_argument("--epochs", type=int, default=20, help="of slimming; training takes half as many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two epochs, nothing kept, in seconds")
    given = parser.parse_args()
    folder = None if given.smoke else given.out
    given.epochs = 2 if given.smoke else given.epochs

    torch.manual_seed(given.seed)
    net = MyCNN()
    task = ag.Classification(my_data(), batch_size=64, augment=[ag.crop(1)])  # validation and test are split off
    ag.fit(
        net, task, ag.Run(epochs=max(given.epochs // 2, 1), seed=given.seed, folder=folder and folder / "training")
    )

    x = task.example  # [1, 1, 8, 8], scaled and normalized as the network sees it
    space = ag.slim(net, example=x)
    for layer, reason in ag.frozen(space).items():
        print(f"frozen: {layer}: {reason}")
    run = ag.Run(epochs=given.epochs, seed=given.seed, folder=folder)
    found = ag.dnal(space, task, run, limit=ag.macs(x).at_most(fraction=given.fraction), pretrained=True)
    print(found.report())

    if folder is None:
        return
    written = ag.export_onnx(found.network, x, given.out / "small.onnx")
    print(f"{written.path}: outputs differ from PyTorch's by {written.largest_difference:.1e} at most")


if __name__ == "__main__":
    main()
