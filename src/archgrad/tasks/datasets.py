"""Data read into one form in memory: arrays, `.npz` files, the digits that come with scikit-learn.

Image folders and Hugging Face data sets are read by `archgrad.tasks.images`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archgrad import files
from archgrad.errors import DataError

KINDS = (
    'the word "digits"; a .npz file with x_train, y_train (and x_valid, y_valid, x_test, y_test) or x, y; '
    "a folder of images ROOT/CLASS/*.png or ROOT/train/CLASS/*.png with ROOT/valid and ROOT/test; "
    "a Hugging Face data set written by save_to_disk"
)
CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Samples:
    """Inputs and labels in memory.

    `x` [N, C, H, W] (or [N, F], or any [N, ...]) is uint8 or float32; `y` [N] is int64 in 0..K-1.
    `class_names` holds the K labels as they were given, so it also records how labels were mapped.
    `skipped` names the files that could not be read and were left out on request.
    """

    x: Tensor
    y: Tensor
    class_names: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Parts:
    """What a path holds: the training part, and the others where they exist."""

    train: Samples
    valid: Samples | None = None
    test: Samples | None = None


def digits() -> Samples:
    """The 1797 handwritten digits that come with scikit-learn: uint8 [1797, 1, 8, 8], ten classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # The 17 grey levels 0..16 are spread over 0..255; no two of them meet.
    return samples(np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target)


def samples(
    x: Any,
    y: Any,
    *,
    classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    part: str = "train",
) -> Samples:
    """Arrays, tensors or lists in the form that tasks use.

    x: [N, F] features; [N, H, W] images, which get a channel; [N, C, H, W] images. A numpy array whose last
    dimension alone can be the channels (1, 3 or 4) is taken for [N, H, W, C] and moved; a tensor is not.
    uint8 stays uint8, whole numbers in 0..255 with three or more dimensions become uint8, all else float32.
    y: [N] whole numbers or strings. Names in sorted order number the classes; integers that are not
    0..K-1 are mapped in the same way, unless `classes` says how many there are. `class_names` fixes the
    classes, as for a second part of the same data. Raises DataError.
    """
    inputs = _inputs(x, part)
    labels = _labels(y, part)
    if len(inputs) != len(labels):
        raise DataError(f"{part}: {len(inputs)} inputs but {len(labels)} labels; give one label for each input")
    if len(labels) == 0:
        raise DataError(f"{part}: no samples at all; give at least two classes with a sample each")
    distinct, position = np.unique(labels, return_inverse=True)
    if class_names is None:
        class_names = _name_classes(distinct, classes, part)
    if part == "train" and len(distinct) < 2:
        raise DataError(f"{part}: only one class ({distinct[0]}) among {len(labels)} samples; give at least two")
    number = {name: index for index, name in enumerate(class_names)}
    foreign = [str(label) for label in distinct.tolist() if str(label) not in number]
    if foreign:
        raise DataError(
            f"{part}: labels {', '.join(foreign[:10])} are outside the {len(class_names)} classes "
            f"{', '.join(class_names[:10])}{', ...' if len(class_names) > 10 else ''}; correct them, or give "
            f"classes= where the training part lacks some"
        )
    codes = np.array([number[str(label)] for label in distinct.tolist()], dtype=np.int64)
    return Samples(inputs, torch.from_numpy(codes[position.reshape(-1)]), class_names)


def _inputs(given: Any, part: str) -> Tensor:
    x = given.detach().cpu() if isinstance(given, Tensor) else _from_array(given, part)
    if x.layout != torch.strided:
        raise DataError(f"{part}: sparse inputs; give dense ones, such as x.to_dense()")
    if x.ndim < 2:
        raise DataError(
            f"{part}: inputs of shape {list(x.shape)}; give [N, F] features or [N, H, W], [N, C, H, W] or "
            f"[N, H, W, C] images"
        )
    if x.is_complex():
        raise DataError(f"{part}: complex inputs; give real numbers")
    if x.ndim == 3:
        x = x[:, None]
    if x.dtype == torch.uint8:
        return x
    if x.ndim > 2 and len(x) and not x.is_floating_point() and int(x.min()) >= 0 and int(x.max()) <= 255:
        return x.to(torch.uint8)
    x = x.to(torch.float32)
    good = torch.isfinite(x).flatten(1).all(1)
    if not bool(good.all()):
        bad = torch.nonzero(~good).flatten().tolist()
        raise DataError(
            f"{part}: NaN or infinite numbers in {len(bad)} of {len(x)} inputs (rows {bad[:10]}); "
            f"repair them or leave them out"
        )
    return x


def _from_array(x: Any, part: str) -> Tensor:
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise DataError(f"{part}: the inputs do not form one array ({error}); make their shapes equal") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{part}: inputs of type {array.dtype}; give numbers (uint8 or floating point)")
    if array.ndim == 4 and array.shape[-1] in CHANNELS and array.shape[1] not in CHANNELS:
        array = np.moveaxis(array, -1, 1)
    if array.dtype != np.uint8:
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
    tensor: Tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return tensor


def _labels(y: Any, part: str) -> np.ndarray[Any, Any]:
    """Labels [N] as int64 or as strings."""
    array = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(
            f"{part}: labels of shape {list(array.shape)}; give a number or name for each sample, shape [N] "
            f"(argmax(1) turns one-hot rows into numbers)"
        )
    kind = array.dtype.kind
    if kind == "S":
        return np.char.decode(array, "utf-8")
    if kind == "U" or (kind == "O" and all(isinstance(label, str) for label in array)):
        return array.astype(str)
    if kind in "biu" or (kind == "f" and bool((np.isfinite(array) & (array == np.rint(array))).all())):
        return array.astype(np.int64)
    raise DataError(f"{part}: labels of type {array.dtype}; give whole numbers from 0, or names")


def _name_classes(distinct: np.ndarray[Any, Any], classes: int | None, part: str) -> tuple[str, ...]:
    if distinct.dtype.kind == "i":
        if distinct[0] < 0:
            raise DataError(
                f"{part}: label {distinct[0]} is negative; labels are 0..K-1 (leave unlabelled samples out)"
            )
        if classes is not None:
            if distinct[-1] >= classes:
                raise DataError(
                    f"{part}: label {distinct[-1]} with classes={classes}; labels are 0..{classes - 1}. "
                    f"Correct the labels or give more classes"
                )
            return tuple(str(index) for index in range(classes))
    elif classes is not None and classes != len(distinct):
        raise DataError(
            f"{part}: classes={classes}, but the labels name {len(distinct)}: "
            f"{', '.join(distinct[:10].tolist())}. Leave classes out, or give {len(distinct)}"
        )
    return tuple(str(label) for label in distinct.tolist())


def read_npz(path: Path, classes: int | None) -> Parts:
    """The parts of a `.npz` file: x_train, y_train and the like, or x, y. Raises DataError."""
    arrays = dict(_npz_arrays(path))
    if "x_train" not in arrays and {"x", "y"} <= arrays.keys():
        return Parts(samples(arrays["x"], arrays["y"], classes=classes))
    found: dict[str, Samples] = {}
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
        names = found["train"].class_names if found else None
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        found[part] = samples(x, y, classes=classes, class_names=names, part=part)
    return Parts(found["train"], found.get("valid"), found.get("test"))


def _npz_arrays(path: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The arrays of a `.npz` file whose names we use, one after another."""
    wanted = {"x", "y", *(f"{kind}_{part}" for kind in "xy" for part in ("train", "valid", "test"))}
    return files.read_arrays(path, DataError, wanted=wanted.__contains__)
