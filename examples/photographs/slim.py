"""From a folder of photographs to a small ONNX file: train a CNN, slim it under a limit, export it, note its labels.

    python examples/photographs/slim.py photographs/ --out runs/photographs
    python examples/photographs/slim.py sign_language_digits.tar --out runs/photographs --limit 0.3

The folder has one sub-folder for each class; a .tar of such a folder is unpacked into OUT first. Every photograph is
resized to 64 x 64. Stopped and started again, it goes on where it was. What comes out is served by `serve.py`.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import archgrad as ag

SIDE = 64


class Block(nn.Module):
    """Two convolutions beside a skip, which a third one makes fit."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.skip = nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.skip(x) + self.norm2(self.second(torch.relu(self.norm(self.first(x))))))


class PhotoCNN(nn.Module):
    """A small residual network: [B, 3, 64, 64] to [B, classes]."""

    def __init__(self, classes: int, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 2, 1), nn.BatchNorm2d(widths[0]), nn.ReLU())
        before = (widths[0], *widths)
        self.blocks = nn.Sequential(*(Block(a, b, 2) for a, b in zip(before, widths, strict=False)))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class FromPixels(nn.Module):
    """The network behind its normalization: pixels [B, 3, H, W] from 0 to 255 to logits [B, classes]."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network((pixels - self.mean) / self.std)


def opened(path: Path, out: Path) -> Path:
    """The folder of classes, unpacked first where it is a .tar."""
    if path.is_dir():
        return path
    with tarfile.open(path) as archive:
        archive.extractall(out / "images", filter="data")
    inside = [one for one in (out / "images").iterdir() if one.is_dir()]
    return inside[0] if len(inside) == 1 else out / "images"


def made_up(folder: Path) -> Path:
    """Noise in two colors, for a run that only shows that all parts work."""
    random = np.random.default_rng(0)
    for label, color in (("cold", (40, 90, 200)), ("warm", (200, 90, 40))):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for k in range(24):
            pixels = np.clip(random.normal(color, 60, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{k}.png")
    return folder


def main() -> None:
    """Train, slim, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path, nargs="?", help="a folder of classes, or a .tar of one")
    parser.add_argument("--out", type=Path, default=Path("runs/photographs"))
    parser.add_argument("--limit", type=float, default=0.3, help="share of the MACs that may stay")
    parser.add_argument("--epochs", type=int, default=30, help="of training, and as many again of slimming")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="made-up photographs and few epochs, in seconds")
    given = parser.parse_args()
    if not given.smoke and given.photographs is None:
        parser.error("give a folder of photographs, or --smoke")
    given.out.mkdir(parents=True, exist_ok=True)

    folder = made_up(given.out / "made up") if given.smoke else opened(given.photographs, given.out)
    task = ag.Classification.load(folder, size=SIDE, batch_size=16 if given.smoke else 64, augment=[ag.crop(4)])
    torch.manual_seed(given.seed)
    network, x = PhotoCNN(task.classes, (8, 8, 16) if given.smoke else (32, 64, 128)), task.example
    epochs = 8 if given.smoke else given.epochs
    folders = (None, None) if given.smoke else (given.out / "trained", given.out / "slimmed")
    ag.fit(network, task, ag.Run(epochs=epochs, seed=given.seed, folder=folders[0]))

    run = ag.Run(epochs=4 if given.smoke else epochs, seed=given.seed, folder=folders[1])
    limit = ag.macs(x).at_most(fraction=0.8 if given.smoke else given.limit)
    found = ag.dnal(ag.slim(network, x), task, run, limit=limit, pretrained=True)
    print(found.report())

    # Pixels in, so that whoever serves the file needs no normalization of ours.
    pixels = torch.zeros(1, 3, SIDE, SIDE)
    networks = {"small": found.network} if given.smoke else {"whole": network, "small": found.network}
    for name, one in networks.items():
        ag.export_onnx(FromPixels(one, **task.splits["normalization"]).eval(), pixels, given.out / f"{name}.onnx")
    (given.out / "labels.json").write_text(json.dumps([str(one) for one in task.splits["class_names"]]))
    print(f"{given.out} holds {', '.join(f'{name}.onnx' for name in networks)} and labels.json")


if __name__ == "__main__":
    main()
