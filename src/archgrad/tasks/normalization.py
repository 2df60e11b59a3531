"""Normalization of images in memory: the training part's own constants, ImageNet's, or those of the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from archgrad.errors import DataError
from archgrad.tasks.parts import Part
from archgrad.tasks.sources import MemorySource

Normalization = str | tuple[Sequence[float], Sequence[float]] | None
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def normalized(parts: Mapping[str, Part], constants: Normalization) -> dict[str, list[float]] | None:
    """Set the constants of all parts, and return them for the record; None where there are no images in memory."""
    source = parts["train"].source
    if not isinstance(source, MemorySource) or not source.samples.is_image:
        if constants not in (None, "none", "data"):
            raise DataError("normalize= is for images in memory, uint8 arrays; normalize in the dataset instead")
        return None
    images = source.samples.x
    channels = images.shape[1] if images.ndim > 2 else 1
    if constants in (None, "data"):
        mean, std = channel_statistics(images, parts["train"].indices)
    elif constants == "none":
        mean, std = [0.0] * channels, [1.0] * channels
    else:
        mean, std = _constants(IMAGENET if constants == "imagenet" else constants, channels)
    for part in parts.values():
        if isinstance(part.source, MemorySource):
            part.source.normalize(mean, std)
    return {"mean": mean, "std": std}


def _constants(constants: Any, channels: int) -> tuple[list[float], list[float]]:
    try:
        mean, std = ([float(number) for number in numbers] for numbers in constants)
    except (TypeError, ValueError):
        mean, std = [], []
    mean, std = (numbers * channels if len(numbers) == 1 else numbers for numbers in (mean, std))
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise DataError(
            f'normalize={constants!r}: give "imagenet" (of 3 channels), "none", "data" (the default), or '
            f"(means, deviations), a number for all channels or one for each of the {channels}, deviations above 0"
        )
    return mean, std


def channel_statistics(x: Tensor, indices: Tensor) -> tuple[list[float], list[float]]:
    """Exact mean and standard deviation of uint8 `x[indices] / 255` [N, C, ...] for each channel.

    Features [N, F] count as one channel. A constant channel gets the deviation 1.
    """
    channels = x.shape[1] if x.ndim > 2 else 1
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for rows in torch.split(indices, 4096):
        chunk = x[rows].reshape(len(rows), channels, -1)
        for channel in range(channels):
            counts[channel] += torch.bincount(chunk[:, channel].reshape(-1), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    share = counts.double() / counts.sum(1, keepdim=True)
    mean = share @ levels
    std = (share * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    return mean.tolist(), torch.where(std > 0, std, torch.ones_like(std)).tolist()
