"""Data read into one form in memory: arrays, `.npz` files, the digits that come with scikit-learn.

Image folders and Hugging Face data sets are read by `archgrad.tasks.images`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from archgrad import files
from archgrad.errors import DataError
from archgrad.tasks.samples import Samples, samples, unlabelled

KINDS = (
    'the word "digits"; a .npz file with x_train, y_train (and x_valid, y_valid, x_test, y_test) or x, y; '
    "a folder of images ROOT/CLASS/*.png or ROOT/train/CLASS/*.png with ROOT/valid and ROOT/test; "
    "a Hugging Face data set written by save_to_disk"
)


@dataclass(frozen=True)
class Parts:
    """What a path holds: the training part, and the others where they exist."""

    train: Samples
    valid: Samples | None = None
    test: Samples | None = None


def digits() -> Samples:
    """The 1797 handwritten digits that come with scikit-learn: uint8 [1797, 1, 8, 8], ten classes.

    Example:
        >>> import archgrad as ag
        >>> ag.digits().x.shape
        torch.Size([1797, 1, 8, 8])
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # The 17 grey levels 0..16 are spread over 0..255; no two of them meet.
    return samples(np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target)


def read_npz(path: Path, classes: int | None, *, labels: bool = True) -> Parts:
    """The parts of a `.npz` file: x_train, y_train and the like, or x, y; `labels` says that y are classes.

    Raises:
        DataError: damaged arrays, or some that are missing.
    """
    arrays = dict(_npz_arrays(path))
    if "x_train" not in arrays and {"x", "y"} <= arrays.keys():
        x, y = arrays["x"], arrays["y"]
        return Parts(samples(x, y, classes=classes) if labels else unlabelled(x, y))
    parts: dict[str, Samples] = {}
    for part in ("train", "valid", "test"):
        keys = {f"x_{part}", f"y_{part}"}
        if part != "train" and not keys & arrays.keys():
            continue
        missing = sorted(keys - arrays.keys())
        if missing:
            raise DataError(
                f"{path} lacks {' and '.join(missing)}; it has {', '.join(sorted(arrays)) or 'nothing'}. "
                f"Give x_train, y_train (and x_valid, y_valid, x_test, y_test), or x, y"
            )
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        names = parts["train"].class_names if parts else None
        parts[part] = (
            samples(x, y, classes=classes, class_names=names, part=part) if labels else unlabelled(x, y, part=part)
        )
    return Parts(parts["train"], parts.get("valid"), parts.get("test"))


def _npz_arrays(path: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The arrays of a `.npz` file whose names we use, one after another."""
    wanted = {"x", "y", *(f"{kind}_{part}" for kind in "xy" for part in ("train", "valid", "test"))}
    return files.read_arrays(path, DataError, wanted=wanted.__contains__)
