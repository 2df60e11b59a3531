"""Classification: images, feature vectors or several inputs at once, one label each."""

from __future__ import annotations

import collections
import contextlib
import copy
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from archgrad.errors import ArchgradError, DataError, ModelError
from archgrad.tasks.batch_order import Order, Stream, sampled, shuffled
from archgrad.tasks.data_path import load
from archgrad.tasks.parts import Data, Part, check_parts, count_classes, open_part, split_off
from archgrad.tasks.sources import MemorySource, channel_statistics
from archgrad.tasks.splits import divide, few, join
from archgrad.tasks.task import Batch, Inputs, arguments, mapped, stable_seed, tensors

PARTS = ("train", "valid", "test")
EVALUATION_BATCH = 512

Augment = Callable[[Any, torch.Generator], Any]


class Classification:
    """Networks judged by their accuracy on held-out data.

    train, valid, test: each a map-style Dataset of (x, y), a DataLoader of one (its dataset, batch size,
    collate_fn, workers and sampler are kept, so train with shuffle=True), a pair of arrays or tensors, or
    `Samples`. x may be a tuple or a dict of tensors [B, ...], for networks of several inputs. Missing parts are split
    off the training part for good, stratified: a share `valid_fraction` each, drawn by `split_seed`.
    Images given as uint8 arrays are scaled and normalized with the training part's mean and deviation; what
    a Dataset returns is passed as it is (also its own augmentation, in parts split off it too: give separate
    datasets to avoid that).

    augment: callables (x, generator) -> x for training batches, such as `crop(4)`, `flip()`, `cutout(8)`.
    smoothing: label smoothing of the training loss. workers: processes that read a Dataset.

    Batches are a pure function of (seed, step) where the dataset draws from the global generators of Python,
    NumPy or torch, with workers or without; one that keeps a generator of its own is not reseeded.

    `splits` is a JSON record of the parts; `test_reads` counts the evaluations on the test part.
    Raises DataError.
    """

    def __init__(
        self,
        train: Data,
        valid: Data = None,
        test: Data = None,
        *,
        batch_size: int = 128,
        classes: int | None = None,
        augment: Sequence[Augment] = (),
        valid_fraction: float = 0.2,
        split_seed: int = 0,
        workers: int = 0,
        smoothing: float = 0.0,
    ) -> None:
        _check_options(batch_size, classes, valid_fraction=valid_fraction, workers=workers, smoothing=smoothing)
        first = open_part(train, "train", classes=classes, class_names=None, workers=workers)
        held = first.source.held if isinstance(first.source, MemorySource) else None
        names = held.class_names if held else None
        self._parts = {"train": first}
        for name, data in (("valid", valid), ("test", test)):
            if data is not None:
                part = open_part(data, name, classes=classes, class_names=names, workers=workers)
                self._parts[name] = part
        missing = [name for name in PARTS if name not in self._parts]
        self.classes = len(names) if names else count_classes(first, classes, missing)
        check_parts(self._parts, self.classes)
        if missing:
            self._parts |= split_off(first, missing, fraction=valid_fraction, seed=split_seed)
        self.splits: dict[str, Any] = {
            **{name: _record(part, split_off=name in missing) for name, part in self._parts.items()},
            "split_seed": split_seed,
            "valid_fraction": valid_fraction,
            "classes": self.classes,
            "class_names": list(names or map(str, range(self.classes))),
            "normalization": _normalize(self._parts),
            "input_shape": _shape(self.example),
            "batch_size": first.loader.batch_size if first.loader is not None else batch_size,
            "augmentation": [_name(augmentation) for augmentation in augment],
            "smoothing": smoothing,
            "skipped": list(held.skipped) if held else [],
        }
        self._batch_size: int | None = self.splits["batch_size"]
        self._drawable = len(first.indices)
        self._order = _training_order(self._parts["train"], self._batch_size, drawable=self._drawable)
        self._augment = tuple(augment)
        self._smoothing = smoothing
        self.steps_per_epoch = self._order.steps
        self._half: str | None = None
        self._reads: collections.Counter[str] = collections.Counter()

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {len(part.indices):,}" for name, part in self._parts.items())
        return f"<{type(self).__name__}, {self.classes} classes, inputs {self.splits['input_shape']}: {parts}>"

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        size: int | tuple[int, int] | None = None,
        skip_corrupt: bool = False,
        batch_size: int = 128,
        classes: int | None = None,
        augment: Sequence[Augment] = (),
        valid_fraction: float = 0.2,
        split_seed: int = 0,
        smoothing: float = 0.0,
    ) -> Classification:
        """A task from "digits", a `.npz` file, a folder of images or a saved Hugging Face data set.

        size, skip_corrupt: as in `archgrad.tasks.data_path.load`. Raises DataError and MissingExtra.
        """
        parts = load(path, size=size, skip_corrupt=skip_corrupt, classes=classes)
        return cls(
            parts.train,
            parts.valid,
            parts.test,
            batch_size=batch_size,
            classes=classes,
            augment=augment,
            valid_fraction=valid_fraction,
            split_seed=split_seed,
            smoothing=smoothing,
        )

    def split(self, fraction: float = 0.5, *, seed: int | None = None) -> tuple[Classification, Classification]:
        """Two tasks over disjoint, stratified shares of the training part: for weights, and for architectures.

        Validation and test parts, normalization, augmentation and batch size stay; a share smaller than the batch
        size comes as one batch. The two draw their batches and augmentations independently under one seed.

        Args:
            fraction: the first task's share of the training samples of each class, between 0 and 1. A class of two
                samples or more is in both, the sample of a class of one in the first.
            seed: what the division is drawn by; default: `split_seed`.

        Returns:
            The two tasks. `splits["train"]` is the size and hash of each one's share, `splits["half"]` says which
            it is of what. Reading the test part through either counts in `test_reads` of all three.

        Raises:
            DataError: a share or seed that makes no sense, no class of two samples, or a DataLoader with a sampler
                of its own, which cannot be divided.
        """
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise DataError(f"seed={seed!r}: give a whole number, or None for the task's split_seed")
        seed = self.splits["split_seed"] if seed is None else seed
        first, second = divide(self._parts["train"], fraction=fraction, seed=seed)
        record = {"fraction": fraction, "seed": seed, "of": self.splits["train"]}
        return self._share(first, record | {"half": "first"}), self._share(second, record | {"half": "second"})

    def shots(self, count: int, *, seed: int = 0) -> Classification:
        """This task on so many training samples of each class, drawn by the seed, all of them in one batch.

        The other parts and the normalization, which has seen the images of the whole training part, stay.
        Raises DataError where a class has fewer samples.
        """
        drawn = few(self._parts["train"], count, classes=self.splits["class_names"], seed=seed)
        return self._share(drawn, {"half": f"{count} shots, draw {seed}"}, whole=True)

    def with_validation(self) -> Classification:
        """This task with the validation part added to the training part, in a shuffled order, to train for good."""
        joined = join(self._parts["train"], self._parts["valid"])
        record = {"half": "whole", "of": self.splits["train"], "and": self.splits["valid"]}
        return self._share(joined, record)

    def _share(self, train: Part, record: dict[str, Any], *, whole: bool = False) -> Classification:
        """This task on a part of its training part."""
        task = copy.copy(self)
        batch_size = len(train.indices) if whole else min(self._batch_size or len(train.indices), len(train.indices))
        task._parts = self._parts | {"train": train}
        task._order = _training_order(train, batch_size, drawable=self._drawable)
        task.steps_per_epoch = task._order.steps
        task._half = "/".join(filter(None, (self._half, record["half"])))
        size = _record(train, split_off=self.splits["train"]["split_off_train"])
        task.splits = self.splits | {"train": size, "batch_size": batch_size, "half": record}
        return task

    @property
    def test_reads(self) -> int:
        """How often the test part was read; a task and its halves count together."""
        return self._reads["test"]

    @property
    def example(self) -> Inputs:
        """The first training sample as a network sees it: [1, ...], or a tuple or dict of such."""
        inputs: Inputs = self._fetch("train", self._parts["train"].indices[:1].tolist())[0]
        return inputs

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Stream:
        """Training batch number `step`: a function of (seed, step, rank, world) alone.

        Each epoch is a new permutation without its incomplete last batch. With several processes each takes
        an equal share of the batch, so that `batch_size` and `steps_per_epoch` are those of all together.
        Raises DataError where the batch cannot be shared equally.
        """
        if not 0 <= rank < world:
            raise DataError(f"rank={rank}, world={world}: ranks are 0..{world - 1}")
        given = self._batch_size
        if given is not None and given % world:
            raise DataError(
                f"batch_size={given} cannot be shared equally by {world} processes; give a multiple of {world}"
            )
        if min(len(batch) for batch in self._order.epoch(seed, 0)) < world:
            raise DataError(f"a batch has fewer samples than there are processes ({world}); use fewer processes")
        if self._half is not None:
            seed = stable_seed(self._half, seed)
        return Stream(
            self._parts["train"].source, self._order, seed=seed, rank=rank, world=world, augment=self._augment
        )

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Mean cross entropy of the network's logits [B, classes], with label smoothing where asked for."""
        return self._cross_entropy(network, batch, reduction="mean")

    def losses(self, network: nn.Module, batch: Batch) -> Tensor:
        """The cross entropy of each sample, [B]; their mean is `loss`, to the last bits, smoothed labels included."""
        return self._cross_entropy(network, batch, reduction="none")

    def _cross_entropy(self, network: nn.Module, batch: Batch, *, reduction: str) -> Tensor:
        inputs, target = batch
        output = network(*arguments(inputs))
        return functional.cross_entropy(
            self._logits(output), target, reduction=reduction, label_smoothing=self._smoothing
        )

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        """Accuracy in [0, 1], mean cross entropy, and with more than ten classes top-5 accuracy.

        Runs in eval mode without gradients on the device of the network's parameters, and restores the mode
        of every submodule. part: "train" (not augmented), "valid" or "test". Raises DataError for another
        part, ModelError where the network fails.
        """
        if part not in PARTS:
            raise DataError(f"part={part!r}: give one of {', '.join(map(repr, PARTS))}")
        self._reads[part] += 1
        total = torch.zeros(3, dtype=torch.float64)
        count = 0
        device = _device(network)
        with _evaluating(network):
            for batch in self._whole(part):
                target = batch[1].to(device)
                logits = self._logits(_forward(network, mapped(lambda x: x.to(device), batch[0]))).float()
                ranked = logits.topk(min(5, self.classes)).indices == target[:, None]
                loss = functional.cross_entropy(logits, target, reduction="sum")
                total += torch.stack([ranked[:, 0].sum(), loss, ranked.sum()]).cpu().double()
                count += len(target)
        accuracy, loss_mean, top5 = (total / count).tolist()
        figures = {"accuracy": accuracy, "loss": loss_mean}
        return figures | {"top5": top5} if self.classes > 10 else figures

    def check(self, network: nn.Module) -> None:
        """Run the network on two training samples, in eval mode, before anything long starts.

        Leaves the network and the random states as they were. Raises ModelError where it fails or its output
        is not [B, classes], DataError where the samples hold NaN or infinite numbers.
        """
        device = _device(network)
        indices = self._parts["train"].indices
        inputs = mapped(lambda x: x.to(device), self._fetch("train", indices[:2].tolist())[0])
        for tensor in tensors(inputs):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise DataError("NaN or infinite numbers in the first training samples; repair them")
        accelerators = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=accelerators), _evaluating(network):
            self._logits(_forward(network, inputs))

    def _fetch(self, part: str, indices: list[int]) -> Batch:
        key = (indices, stable_seed("evaluate", part, indices[0]))
        return self._parts[part].source.one(key)

    def _whole(self, name: str) -> Iterator[Batch]:
        part = self._parts[name]
        size = (part.loader and part.loader.batch_size) or EVALUATION_BATCH
        batches = (rows.tolist() for rows in torch.split(part.indices, min(size, EVALUATION_BATCH)))
        return part.source.batches((rows, stable_seed("evaluate", name, rows[0])) for rows in batches)

    def _logits(self, output: Any) -> Tensor:
        """Logits [B, classes] from what a network returns: a tensor, its first element, or `.logits`."""
        if not isinstance(output, Tensor):
            found = getattr(output, "logits", None)
            if found is None and isinstance(output, tuple | list) and output:
                found = output[0]
            if not isinstance(found, Tensor):
                raise ModelError(
                    f"the network returns a {type(output).__name__}; it must return logits "
                    f"[B, {self.classes}], a tuple that begins with them, or an object with .logits"
                )
            output = found
        assert isinstance(output, Tensor)
        if output.ndim != 2 or output.shape[1] != self.classes:
            raise ModelError(
                f"the network's output is {list(output.shape)}, but the data has {self.classes} classes; the "
                f"output must be [B, {self.classes}]. Change its last layer, or give the data's classes="
            )
        return output


def _check_options(
    batch_size: int, classes: int | None, *, valid_fraction: float, workers: int, smoothing: float
) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise DataError(f"batch_size={batch_size!r}: give a whole number, at least 1")
    if classes is not None and classes < 2:
        raise DataError(f"classes={classes}: classification needs at least two")
    if not 0 < valid_fraction < 1:
        raise DataError(f"valid_fraction={valid_fraction}: give a share between 0 and 1, for instance 0.2")
    if workers < 0:
        raise DataError(f"workers={workers}: give 0 (none) or more")
    if not 0 <= smoothing < 1:
        raise DataError(f"smoothing={smoothing}: label smoothing is at least 0 and below 1")


def _training_order(train: Part, batch_size: int | None, *, drawable: int) -> Order:
    """The order of the loader's sampler, or a shuffled one; no batch size where a batch sampler has its own."""
    if train.loader is None:
        assert batch_size is not None
        return shuffled(train.indices, batch_size)
    return sampled(train.loader, train.indices, batch_size=batch_size, bounded=train.bounded, drawable=drawable)


def _normalize(parts: dict[str, Part]) -> dict[str, list[float]] | None:
    source = parts["train"].source
    if not isinstance(source, MemorySource) or source.held.x.dtype != torch.uint8:
        return None
    mean, std = channel_statistics(source.held.x, parts["train"].indices)
    for part in parts.values():
        if isinstance(part.source, MemorySource):
            part.source.normalize(mean, std)
    return {"mean": mean, "std": std}


def _record(part: Part, *, split_off: bool) -> dict[str, Any]:
    digest = hashlib.sha256(part.indices.numpy().astype("<i8").tobytes()).hexdigest()
    return {"size": len(part.indices), "indices_sha256": digest, "split_off_train": split_off}


def _shape(inputs: Inputs) -> Any:
    if isinstance(inputs, dict):
        return {name: list(tensor.shape[1:]) for name, tensor in inputs.items()}
    shapes = [list(tensor.shape[1:]) for tensor in arguments(inputs)]
    return shapes if isinstance(inputs, tuple) else shapes[0]


def _name(augmentation: Augment) -> str:
    named = getattr(augmentation, "name", None) or getattr(augmentation, "__qualname__", None)
    return str(named or type(augmentation).__qualname__)


def _device(network: nn.Module) -> torch.device:
    tensor = next(itertools.chain(network.parameters(), network.buffers()), None)
    return tensor.device if tensor is not None else torch.device("cpu")


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _forward(network: nn.Module, inputs: Inputs) -> Any:
    try:
        return network(*arguments(inputs))
    except (ArchgradError, torch.OutOfMemoryError):
        raise
    except (
        RuntimeError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        AssertionError,
    ) as error:
        given = ", ".join(f"{list(tensor.shape)} {tensor.dtype}" for tensor in tensors(inputs))
        raise ModelError(
            f"the network fails on a batch of shape {given}: {type(error).__name__}: {error}. "
            "Change the network or the data"
        ) from error
