"""Augmentations of training batches: tensor operations over the whole batch, drawn from a given generator.

Any callable `(x, generator) -> x` will do in their place. Draws are made on the generator's device, so the
same generator gives the same pictures wherever the batch lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


def _integers(high: int, *, like: Tensor, generator: torch.Generator) -> Tensor:
    """One integer in [0, high) for each image of `like`."""
    drawn = torch.randint(high, (like.shape[0],), generator=generator, device=generator.device)
    return drawn.to(like.device)


def _check_size(name: str, option: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(
            f"{name}({option}={value!r}): {option} is a whole number of pixels, at least 1, e.g. {name}(4)"
        )
