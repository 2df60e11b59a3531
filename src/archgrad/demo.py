"""The demo: a small CNN learns real digits, and is slimmed to half its multiply-adds or less."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from archgrad.costs.count import macs
from archgrad.methods.dnal.dnal import dnal
from archgrad.results.result import Found, figures
from archgrad.run.run import Run
from archgrad.spaces.slim.slimmable import slim
from archgrad.tasks import Classification, digits
from archgrad.training.fit import fit


class DigitsCNN(nn.Module):
    """Four convolutions of 24, 48, 96 and 96 channels for images [B, 1, 8, 8]; logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_layer(1, 24), *_layer(24, 48), nn.MaxPool2d(2), *_layer(48, 96), *_layer(96, 96)
        )
        self.classifier = nn.Linear(96, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 10] of images [B, 1, 8, 8]."""
        pooled: Tensor = self.features(images).mean((2, 3))
        logits: Tensor = self.classifier(pooled)
        return logits


def demo(folder: str | Path, *, seed: int = 0, epochs: int = 60) -> Found:
    """Slim `DigitsCNN` on the digits of scikit-learn to half its MACs, on the CPU, into a folder.

    The record's baseline is the network as it was, trained for as many epochs in all.

    Raises:
        RunError: the folder holds another run, or cannot be written to.
    """
    folder = Path(folder)
    task = Classification(digits(), batch_size=64)
    torch.manual_seed(seed)
    network, x = DigitsCNN(), task.example
    space = slim(network, x)
    run = Run(epochs=epochs, seed=seed, folder=folder, device="cpu")
    # Multiples of 16 are what saves time where vectors are as wide as those of AVX-512.
    found = dnal(space, task, run, limit=macs(x).at_most(fraction=0.5), round_to=16)

    baseline = Run(epochs=epochs, seed=seed, folder=folder / "baseline", device="cpu")
    fit(network, task, baseline)
    unslimmed = baseline.compute_once("figures", lambda: figures(network, task, x))
    found.record["baselines"] = [{"name": f"not slimmed, {epochs} epochs", **unslimmed}]
    found.save(folder)
    return found


def _layer(channels: int, filters: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()
