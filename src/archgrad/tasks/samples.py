"""Samples in memory: arrays, tensors or lists in the one form that tasks use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from archgrad.errors import DataError

CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Samples:
    """Inputs and targets in memory.

    `x` [N, C, H, W] (or [N, F], or any [N, ...]) is uint8 or float32. With labels, `y` [N] is int64 in 0..K-1 and
    `class_names` holds the K labels as they were given, so it also records how labels were mapped. Without, x and y
    are any nests of tensors [N, ...]. `skipped` names the files that could not be read and were left out on request.
    """

    x: Any
    y: Any
    class_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(tree_leaves(self.y)[0])

    @property
    def is_image(self) -> bool:
        """Whether the inputs are pixels, uint8 [N, C, ...], which are scaled and normalized."""
        return isinstance(self.x, Tensor) and self.x.dtype == torch.uint8


def unlabelled(x: Any, y: Any, *, part: str = "train") -> Samples:
    """Arrays, tensors, lists or nests of them, [N, ...] each, with targets of any kind.

    Images of numpy, uint8 [N, H, W] or [N, H, W, C], get channels in dimension 1. Floats become float32, whole
    numbers int64; bytes and truth values stay. Raises DataError.
    """
    is_image = isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim > 2
    inputs = _inputs(x, part) if is_image else _tensors(x, f"{part}: the inputs")
    targets = _tensors(y, f"{part}: the targets")
    lengths = {len(leaf) if leaf.ndim else -1 for leaf in (*tree_leaves(inputs), *tree_leaves(targets))}
    if len(lengths) != 1 or -1 in lengths:
        raise DataError(f"{part}: inputs and targets of the lengths {sorted(lengths)}; give one of each for a sample")
    if lengths == {0}:
        raise DataError(f"{part}: no samples at all; give at least two")
    return Samples(inputs, targets)


def _tensors(nest: Any, name: str) -> Any:
    """The nest as tensors: dicts and tuples are branches, everything else is one array."""
    if isinstance(nest, dict):
        return {key: _tensors(value, f"{name}[{key!r}]") for key, value in nest.items()}
    if isinstance(nest, tuple):
        return tuple(_tensors(value, f"{name}[{place}]") for place, value in enumerate(nest))
    try:
        tensor = nest.detach().cpu() if isinstance(nest, Tensor) else torch.from_numpy(np.array(nest))
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} do not form one array of numbers ({error}); make their shapes equal") from error
    if tensor.is_floating_point():
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{name} hold NaN or infinite numbers; repair them or leave the samples out")
        return tensor.float()
    if tensor.is_complex():
        raise DataError(f"{name} are complex; give real numbers")
    return tensor if tensor.dtype in (torch.bool, torch.uint8) else tensor.long()


def samples(
    x: Any,
    y: Any,
    *,
    classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    ignore: int | None = None,
    part: str = "train",
) -> Samples:
    """Arrays, tensors or lists in the form that tasks use.

    x: a dict of inputs by name, each [N, ...], which are taken as they are; [N, F] features;
    [N, H, W] images, which get a channel; [N, C, H, W] images. A numpy array whose last
    dimension alone can be the channels (1, 3 or 4) is taken for [N, H, W, C] and moved; a tensor is not.
    uint8 stays uint8, whole numbers in 0..255 with three or more dimensions become uint8, all else float32.
    y: [N] whole numbers or strings. Names in sorted order number the classes; integers that are not
    0..K-1 are mapped in the same way, unless `classes` says how many there are. `class_names` fixes the
    classes, as for a second part of the same data. The label `ignore` is of no class and stays. Raises DataError.
    """
    inputs = _tensors(x, f"{part}: the inputs") if isinstance(x, dict) else _inputs(x, part)
    labels = _labels(y, part)
    lengths = {len(leaf) if leaf.ndim else 1 for leaf in tree_leaves(inputs)}
    if lengths != {len(labels)}:
        counts = " and ".join(map(str, sorted(lengths)))
        raise DataError(f"{part}: {counts} inputs but {len(labels)} labels; give one label for each input")
    if len(labels) == 0:
        raise DataError(f"{part}: no samples at all; give at least two classes with a sample each")
    distinct, position = np.unique(labels, return_inverse=True)
    known = distinct[distinct != ignore] if ignore is not None and distinct.dtype.kind == "i" else distinct
    if part == "train" and len(known) < 2:
        only = f"only one class ({known[0]})" if len(known) else "no class"
        raise DataError(f"{part}: {only} among {len(labels)} samples; give at least two")
    if class_names is None:
        class_names = _name_classes(known, classes, part)
    number = {name: index for index, name in enumerate(class_names)} | (
        {} if ignore is None else {str(ignore): ignore}
    )
    foreign = [str(label) for label in distinct.tolist() if str(label) not in number]
    if foreign:
        raise DataError(
            f"{part}: labels {', '.join(foreign[:10])} are outside the {len(class_names)} classes "
            f"{', '.join(class_names[:10])}{', ...' if len(class_names) > 10 else ''}; correct them, or give "
            f"classes= where the training part lacks some"
        )
    codes = np.array([number[str(label)] for label in distinct.tolist()], dtype=np.int64)
    return Samples(inputs, torch.from_numpy(codes[position.reshape(-1)]), class_names)


def _inputs(inputs: Any, part: str) -> Tensor:
    x = inputs.detach().cpu() if isinstance(inputs, Tensor) else _from_array(inputs, part)
    if x.layout != torch.strided:
        raise DataError(f"{part}: sparse inputs; give dense ones, such as x.to_dense()")
    if x.ndim < 2:
        raise DataError(
            f"{part}: inputs of shape {list(x.shape)}; give [N, F] features or [N, H, W], [N, C, H, W] or "
            f"[N, H, W, C] images"
        )
    if x.is_complex():
        raise DataError(f"{part}: complex inputs; give real numbers, or a torch.utils.data.TensorDataset of them")
    if x.ndim == 3:
        x = x[:, None]
    if x.dtype == torch.uint8:
        return x
    if x.ndim > 2 and len(x) and not x.is_floating_point() and int(x.min()) >= 0 and int(x.max()) <= 255:
        return x.to(torch.uint8)
    for numbers, what in ((x, "NaN or infinite numbers"), (x := x.float(), "numbers too large for float32")):
        good = torch.isfinite(numbers).flatten(1).all(1)
        if not bool(good.all()):
            bad = torch.nonzero(~good).flatten().tolist()
            raise DataError(
                f"{part}: {what} in {len(bad)} of {len(x)} inputs (rows {bad[:10]}); repair them or leave them out"
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
        # In float64 what is too large for float32 is told from what is infinite.
        floating = np.float64 if array.dtype.itemsize >= 8 else np.float32
        array = array.astype(floating if array.dtype.kind == "f" or _beyond_int64(array) else np.int64)
    tensor: Tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return tensor


def _beyond_int64(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype == np.uint64 and array.size > 0 and int(array.max()) > np.iinfo(np.int64).max


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
        try:
            return np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{part}: labels are bytes that are no UTF-8 ({error}); give numbers, or text") from error
    if _beyond_int64(array):
        raise DataError(f"{part}: label {array.max()} is too large; labels are 0..K-1")
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
