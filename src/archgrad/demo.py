"""The demo: a small CNN that has learnt real digits is slimmed to half its multiply-adds or less."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from archgrad.costs.count import macs
from archgrad.gates.importance import cut, importance
from archgrad.methods.dnal.dnal import dnal
from archgrad.results.result import Found, figures
from archgrad.run.run import Run
from archgrad.spaces.slim.slimmable import slim
from archgrad.tasks import Classification, digits
from archgrad.training.fit import fit

_WIDTHS = 16  # multiples of it save time where vectors are as wide as those of AVX-512


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
    """Train `DigitsCNN` on the digits of scikit-learn, and slim it to half its MACs in a third of the epochs.

    The record's baseline is the control: the trained network cut to uniform width, and trained for as long. All runs
    on the CPU and into the folder, the training into `trained/` and the control into `uniform/`.

    Raises:
        RunError: the folder holds another run, or cannot be written to.
    """
    folder = Path(folder)
    task = Classification(digits(), batch_size=64)
    torch.manual_seed(seed)
    network, x = DigitsCNN(), task.example

    def run(epochs: int, folder: Path) -> Run:
        return Run(epochs=epochs, seed=seed, folder=folder, device="cpu")

    fit(network, task, run(epochs, folder / "trained"))
    space, limit, third = slim(network, x), macs(x).at_most(fraction=0.5), max(epochs // 3, 1)
    found = dnal(space, task, run(third, folder), limit=limit, pretrained=True, round_to=_WIDTHS, check_weights=False)

    scores, of_control = importance(space, criterion="magnitude"), run(third, folder / "uniform")
    control = cut(space, scores, limit=limit, round_to=_WIDTHS, uniform=True)
    fit(control, task, of_control)
    reached = of_control.compute_once("figures", lambda: figures(control, task, x))
    found.record["baselines"] = [{"name": "uniform width", **reached}]
    found.save(folder)
    return found


def _layer(channels: int, filters: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()
