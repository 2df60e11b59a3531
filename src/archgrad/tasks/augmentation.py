"""Augmentations of training batches: tensor operations over the whole batch, drawn from a given generator.

Any callable `(x, generator) -> x` will do in their place. Draws are made on the generator's device, so the
same generator gives the same pictures wherever the batch lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from archgrad.errors import DataError
from archgrad.fingerprint import described


@dataclass(frozen=True, repr=False)
class Augmentation:
    """A function of `(x, generator)` with the name under which a run records it."""

    name: str
    function: Callable[[Tensor, torch.Generator], Tensor]

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Augment images [B, C, H, W] into a new tensor of that shape. Raises DataError for another shape."""
        if not isinstance(x, Tensor) or x.ndim != 4:
            kind = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise DataError(
                f"{self.name} augments images [B, C, H, W]; the inputs given are {kind}. "
                f"Leave it out, or pass a callable (x, generator) -> x of your own"
            )
        return self.function(x, generator)

    def __repr__(self) -> str:
        return self.name


def augmentation_name(function: Callable[..., object]) -> str:
    """What a run records of an augmentation: its name and settings, of the user's functions also a digest of code."""
    return function.name if isinstance(function, Augmentation) else described(function)


def crop(padding: int) -> Augmentation:
    """Pad each side with `padding` zeros (the mean color of normalized images) and cut at a random place.

    Images are [B, C, H, W]. Raises DataError.

    Example:
        >>> import torch, archgrad as ag
        >>> ag.crop(4)(torch.ones(2, 3, 32, 32), torch.Generator()).shape
        torch.Size([2, 3, 32, 32])
    """
    _check_size("crop", "padding", padding)

    def function(x: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = x.shape
        top = _integers(2 * padding + 1, like=x, generator=generator)
        left = _integers(2 * padding + 1, like=x, generator=generator)
        rows = top[:, None] + torch.arange(height, device=x.device)
        columns = left[:, None] + torch.arange(width, device=x.device)
        image = torch.arange(count, device=x.device)
        channel = torch.arange(x.shape[1], device=x.device)
        padded = functional.pad(x, [padding] * 4)
        return padded[
            image[:, None, None, None],
            channel[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]

    return Augmentation(f"crop({padding})", function)


def flip() -> Augmentation:
    """Mirror each image [B, C, H, W] left to right with probability one half.

    Example:
        >>> import torch, archgrad as ag
        >>> row = torch.arange(3.0).expand(8, 1, 1, 3)
        >>> ag.flip()(row, torch.Generator().manual_seed(0))[:, 0, 0, 0].unique()
        tensor([0., 2.])
    """

    def function(x: Tensor, generator: torch.Generator) -> Tensor:
        mirrored = _integers(2, like=x, generator=generator).bool()
        return torch.where(mirrored[:, None, None, None], x.flip(-1), x)

    return Augmentation("flip()", function)


def cutout(size: int) -> Augmentation:
    """Set a square of `size` pixels, centered anywhere in the image and clipped at its edges, to zero.

    DeVries and Taylor 2017, Improved Regularization of Convolutional Neural Networks with Cutout. Images are
    [B, C, H, W]. Raises DataError.

    Example:
        >>> import torch, archgrad as ag
        >>> augmented = ag.cutout(3)(torch.ones(50, 1, 8, 8), torch.Generator().manual_seed(0))
        >>> (1 - augmented).flatten(1).sum(1).max()
        tensor(9.)
    """
    _check_size("cutout", "size", size)

    def function(x: Tensor, generator: torch.Generator) -> Tensor:
        _, _, height, width = x.shape
        top = _integers(height, like=x, generator=generator)[:, None] - size // 2
        left = _integers(width, like=x, generator=generator)[:, None] - size // 2
        row = torch.arange(height, device=x.device)
        column = torch.arange(width, device=x.device)
        in_rows = (row >= top) & (row < top + size)
        in_columns = (column >= left) & (column < left + size)
        hole = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        return x.masked_fill(hole, 0)

    return Augmentation(f"cutout({size})", function)


def rotate(degrees: int) -> Augmentation:
    """Turn each image [B, C, H, W] about its center by an angle drawn evenly from -degrees to degrees.

    What comes in from outside is zero. Values are interpolated linearly. Raises DataError.

    Example:
        >>> import torch, archgrad as ag
        >>> from archgrad.tasks.augmentation import rotate
        >>> rotate(10)(torch.ones(2, 3, 8, 8), torch.Generator()).shape
        torch.Size([2, 3, 8, 8])
    """
    _check_size("rotate", "degrees", degrees)

    def function(x: Tensor, generator: torch.Generator) -> Tensor:
        angle = math.radians(degrees) * (2 * _uniform(like=x, generator=generator) - 1)
        height, width = x.shape[-2:]
        zero, sine, cosine = torch.zeros_like(angle), angle.sin(), angle.cos()
        # In coordinates from -1 to 1 on both axes, whatever the sides.
        rows = [cosine, -sine * height / width, zero, sine * width / height, cosine, zero]
        theta = torch.stack(rows, dim=1).view(-1, 2, 3).to(x.dtype)
        grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, align_corners=False)

    return Augmentation(f"rotate({degrees})", function)


def brightness(percent: int) -> Augmentation:
    """Multiply each image [B, C, H, W] by a factor drawn evenly from 1 - percent / 100 to 1 + percent / 100.

    Of normalized images this is contrast about their mean color. Raises DataError.

    Example:
        >>> import torch
        >>> from archgrad.tasks.augmentation import brightness
        >>> x = brightness(20)(torch.ones(50, 1, 2, 2), torch.Generator().manual_seed(0))
        >>> bool((x >= 0.8).all() and (x <= 1.2).all() and x.std() > 0)
        True
    """
    _check_size("brightness", "percent", percent)

    def function(x: Tensor, generator: torch.Generator) -> Tensor:
        factor = 1 + percent / 100 * (2 * _uniform(like=x, generator=generator) - 1)
        return x * factor.to(x.dtype)[:, None, None, None]

    return Augmentation(f"brightness({percent})", function)


def mask(size: int, *, axis: Literal["time", "frequency"] = "time") -> Augmentation:
    """Set a band of up to `size` columns (time) or rows (frequency) of each spectrogram [B, C, F, T] to zero.

    Park and others 2019, SpecAugment. Width and place are drawn for each. Raises DataError.

    Example:
        >>> import torch
        >>> from archgrad.tasks.augmentation import mask
        >>> x = mask(3)(torch.ones(50, 1, 4, 9), torch.Generator().manual_seed(0))
        >>> int((1 - x[:, 0, 0]).sum(1).max())
        3
    """
    _check_size("mask", "size", size)

    def function(x: Tensor, generator: torch.Generator) -> Tensor:
        length = x.shape[-1] if axis == "time" else x.shape[-2]
        width = _integers(min(size, length) + 1, like=x, generator=generator)[:, None]
        start = (_uniform(like=x, generator=generator)[:, None] * (length - width + 1)).long()
        place = torch.arange(length, device=x.device)
        band = (place >= start) & (place < start + width)
        return x.masked_fill(band[:, None, None, :] if axis == "time" else band[:, None, :, None], 0)

    return Augmentation(f"mask({size}, axis={axis!r})", function)


def _uniform(*, like: Tensor, generator: torch.Generator) -> Tensor:
    """One number in [0, 1) for each image of `like`."""
    return torch.rand(like.shape[0], generator=generator, device=generator.device).to(like.device)


def _integers(high: int, *, like: Tensor, generator: torch.Generator) -> Tensor:
    """One integer in [0, high) for each image of `like`."""
    drawn = torch.randint(high, (like.shape[0],), generator=generator, device=generator.device)
    return drawn.to(like.device)


def _check_size(name: str, option: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"{name}({option}={value!r}): {option} is a whole number, at least 1, e.g. {name}(4)")
