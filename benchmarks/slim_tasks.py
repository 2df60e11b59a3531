"""Tasks of the slimming benchmarks: real data in small parts, each a task with a training, validation and test part.

Data is found through ARCHGRAD_DATA: CIFAR-10 (JPEG copy), Fashion-MNIST, MNIST, Sign Language Digits, Free Spoken
Digits. `angle` and `masks` are made of real pictures: Fashion-MNIST turned by a known angle, MNIST digits on
photographs whose pixels are to be found.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import archgrad as ag

Part = tuple[Any, Any]


def _file(*names: str) -> Path:
    path = Path(os.environ.get("ARCHGRAD_DATA", "")).joinpath(*names)
    if not path.is_file():
        sys.exit(f"skipped: {path} is not there; set ARCHGRAD_DATA to the folder that holds {names[0]}/")
    return path


def _cifar(first: int, count: int) -> Part:
    """Pictures from one on: 0 to 49,999 are for training, the rest for tests."""
    z = np.load(_file("cifar10", "cifar10_jpeg.npz"))
    header, body, offsets = z["header"].tobytes(), z["body"].tobytes(), z["offsets"]
    streams = (header + body[offsets[i] : offsets[i + 1]] for i in range(first, first + count))
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(stream))) for stream in streams])
    return pixels, z["labels"][first : first + count].astype(np.int64)


def cifar10(images: int, tests: int, *, halved: bool = False) -> ag.Classification:
    """So many photographs to train and to test, 32 x 32 or halved to 16 x 16; at most 1,000 others to validate."""
    valid = min(1000, 50000 - images)
    parts = [
        cifar10_part(first, count, halved=halved)
        for first, count in ((0, images), (50000 - valid, valid), (50000, tests))
    ]
    return ag.Classification(*parts, batch_size=64, augment=(ag.flip(), ag.crop(2 if halved else 4)))


def cifar10_part(first: int, count: int, *, halved: bool = False) -> Part:
    """Photographs from one on, 32 x 32 or halved to 16 x 16: 0 to 49,999 are for training, the rest for tests."""
    pixels, labels = _cifar(first, count)
    if halved:
        pixels = pixels.reshape(count, 16, 2, 16, 2, 3).mean((2, 4)).round().astype(np.uint8)
    return pixels, labels


def cifar() -> ag.Classification:
    """3,000 photographs of ten classes, 32 x 32; 1,000 to validate, 4,000 to test."""
    return cifar10(3000, 4000)


def fashion() -> ag.Classification:
    """2,500 pictures of clothes, 28 x 28 grey; 1,000 to validate, 4,000 to test."""
    z = np.load(_file("fashion_mnist", "fashion_mnist.npz"))

    def part(name: str, first: int, count: int) -> Part:
        rows = slice(first, first + count)
        return z[f"x_{name}"][rows, ..., None], z[f"y_{name}"][rows].astype(np.int64)

    parts = part("train", 0, 2500), part("train", 50000, 1000), part("test", 0, 4000)
    return ag.Classification(*parts, batch_size=64, augment=(ag.flip(), ag.crop(2)))


def sign() -> ag.Classification:
    """1,100 photographs of hands that show a digit, 32 x 32; 300 to validate, 662 to test."""
    with tarfile.open(_file("sign_language_digits", "sign_language_digits.tar")) as archive:
        names = sorted(name for name in archive.getnames() if name.endswith("JPG"))
        pixels = np.stack([np.asarray(Image.open(archive.extractfile(n)).resize((32, 32))) for n in names])  # type: ignore[arg-type]
    labels = np.array([int(name.split("/")[1]) for name in names])
    order = np.random.RandomState(0).permutation(len(names))
    parts = [(pixels[rows], labels[rows]) for rows in np.split(order, [1100, 1400])]
    return ag.Classification(*parts, batch_size=64, augment=(ag.crop(2),))


def spoken() -> ag.Classification:
    """2,400 spoken digits as spectrograms of 32 frequencies x 32 times; 300 to validate, 300 to test."""
    z = np.load(_file("fsdd", "fsdd.npz"))
    audio, window, pictures = z["audio"], torch.hann_window(256), []
    for start, end in zip(z["offsets"][:-1], z["offsets"][1:], strict=True):
        wave = torch.from_numpy(audio[start:end].astype(np.float32) / 32768)
        spectrum = torch.stft(wave, 256, 64, window=window, return_complex=True, pad_mode="constant").abs()
        mean = nn.functional.adaptive_avg_pool2d(spectrum[None, 1:], (32, 32))
        pictures.append((mean + 1e-4).log())
    x, y, take = torch.stack(pictures), torch.from_numpy(z["digit"].astype(np.int64)), torch.from_numpy(z["take"])
    parts = [(x[rows], y[rows]) for rows in (take >= 10, (take >= 5) & (take < 10), take < 5)]
    return ag.Classification(*parts, batch_size=64)


def angle() -> ag.Supervised:
    """By how many radians a picture of clothes was turned, up to 60 degrees either way: 2,500, 1,000, 3,000."""
    z, draw = np.load(_file("fashion_mnist", "fashion_mnist.npz")), np.random.RandomState(0)

    def part(name: str, first: int, count: int) -> tuple[Tensor, Tensor]:
        degrees = draw.uniform(-60, 60, count)
        turned = [
            np.asarray(Image.fromarray(x).rotate(d, Image.Resampling.BILINEAR))
            for x, d in zip(z[f"x_{name}"][first : first + count], degrees, strict=True)
        ]
        x = torch.from_numpy(np.stack(turned)).float()[:, None] / 127.5 - 1
        return x, torch.from_numpy(np.radians(degrees)).float()[:, None]

    parts = part("train", 0, 2500), part("train", 50000, 1000), part("test", 0, 3000)
    return ag.Supervised(
        *parts, loss=nn.functional.smooth_l1_loss, metrics={"mae": nn.functional.l1_loss}, score=ag.lower("mae"),
        batch_size=64,
    )  # fmt: skip


def masks() -> ag.Supervised:
    """The pixels of a digit pasted on a photograph, 32 x 32: 1,500, 400, 1,000; the score is the mean IoU."""
    digits, draw = np.load(_file("mnist", "mnist.npz")), np.random.RandomState(0)

    def part(name: str, first: int, count: int, photographs: int) -> tuple[Tensor, Tensor]:
        pixels = _cifar(photographs, count)[0].astype(np.float32)
        target = np.zeros((count, 1, 32, 32), np.float32)
        for picture, mask, digit in zip(pixels, target, digits[f"x_{name}"][first : first + count], strict=True):
            top, left = draw.randint(0, 5, 2)
            inside = digit > 100
            mask[0, top : top + 28, left : left + 28] = inside
            picture[top : top + 28, left : left + 28][inside] += draw.choice([-60, 60])
        x = torch.from_numpy(pixels.clip(0, 255)).permute(0, 3, 1, 2) / 127.5 - 1
        return x, torch.from_numpy(target)

    parts = part("train", 0, 1500, 0), part("train", 50000, 400, 45000), part("test", 0, 1000, 50000)
    return ag.Supervised(
        *parts, loss=nn.functional.binary_cross_entropy_with_logits, metrics={"iou": _iou}, score=ag.higher("iou"),
        batch_size=32,
    )  # fmt: skip


def _iou(logits: Tensor, target: Tensor) -> Tensor:
    found, wanted = logits > 0, target > 0.5
    return ((found & wanted).sum((1, 2, 3)) / (found | wanted).sum((1, 2, 3)).clamp(min=1)).float().mean()


TASKS: dict[str, Callable[[], Any]] = {
    "cifar": cifar, "fashion": fashion, "sign": sign, "spoken": spoken, "angle": angle, "masks": masks,
}  # fmt: skip
