"""Classification: images, feature vectors or several inputs at once, one label each."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from archgrad.copy_and_run import evaluating
from archgrad.errors import ConfigError, DataError, ModelError
from archgrad.files import shown
from archgrad.tasks import batch_checks
from archgrad.tasks.data_path import load
from archgrad.tasks.metrics import Metric, Score, Totals, checked_metrics
from archgrad.tasks.normalization import Normalization
from archgrad.tasks.parts import Data, Labels, Part, count_classes, open_part, targets
from archgrad.tasks.sources import DatasetSource, MemorySource
from archgrad.tasks.splits import Split, few
from archgrad.tasks.supervised import PARTS, Augment, Supervised
from archgrad.tasks.task import Batch, call, mapped

EVALUATION_BATCH = 512
_MOST_CLASSES = 10**8  # of which each has a name in memory


class Classification(Supervised):
    """Networks trained on cross entropy and scored by their accuracy on held-out data.

    train, valid, test: as for `Supervised`, with one label for each sample, or `Samples`. x may be a tuple or a dict
    of tensors [B, ...], for networks of several inputs. Missing parts are split off the training part for good,
    stratified by class. Images given as uint8 arrays are scaled and normalized; what a Dataset returns is passed as
    it is (also its own augmentation, in parts split off it too: give separate datasets to avoid that).

        loss = mean over samples of w[y] * cross entropy(logits, y), divided by the mean of w[y]

    Args:
        train, valid, test: the data.
        classes: how many there are, for integer labels of which some do not occur.
        loss: torch's cross entropy with options of its own, such as `nn.CrossEntropyLoss(label_smoothing=0.1)`; or
            `ignore_index=-1`, a label of samples that neither the loss nor a metric counts. For any other loss take
            `Supervised`.
        class_weight: w, [classes], or "balanced" for w = samples / (classes * samples of the class), of the training
            part. Scores are not weighted.
        metrics: more metrics, of (logits [B, classes], labels [B]); see `Supervised`.
        score: the metric that networks are ranked by; default: the accuracy.
        batch_size, augment, normalize, split: as for `Supervised`.

    `splits` is a JSON record of the parts; `test_reads` counts the evaluations on the test part.

    Raises:
        DataError: data or labels that cannot be used.
        ConfigError: a metric that is none, or a score that no metric has.

    Example:
        >>> import torch, archgrad as ag
        >>> task = ag.Classification(ag.digits(), batch_size=64, augment=[ag.crop(1)], class_weight="balanced")
        >>> task
        <Classification, 10 classes, inputs [1, 8, 8]: train 1,079, valid 359, test 359>
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> list(task.evaluate(network))
        ['accuracy', 'loss']
    """

    def __init__(
        self,
        train: Data,
        valid: Data = None,
        test: Data = None,
        *,
        classes: int | None = None,
        loss: nn.CrossEntropyLoss | None = None,
        class_weight: Literal["balanced"] | Tensor | Sequence[float] | None = None,
        metrics: Mapping[str, Metric] | None = None,
        score: str | Score | None = None,
        batch_size: int = 128,
        augment: Sequence[Augment] = (),
        normalize: Normalization = None,
        split: Split = Split(),
    ) -> None:
        if classes is not None and (not isinstance(classes, int) or not 2 <= classes <= _MOST_CLASSES):
            raise DataError(
                f"classes={shown(classes)}: classification needs at least two, and at most {_MOST_CLASSES:,}"
            )
        _check_loss(loss, class_weight)
        self._ignore = None if loss is None else loss.ignore_index
        parts, names = _open({"train": train, "valid": valid, "test": test}, Labels(classes, None, self._ignore))
        self.classes, self._weight = len(names), None
        self._smoothing = 0.0 if loss is None else loss.label_smoothing
        own: dict[str, Metric] = {"accuracy": _accuracy}
        if self.classes > 10:
            own["top5"] = _top5
        super().__init__(
            *(parts.get(name) for name in PARTS),
            loss=functional.cross_entropy, metrics={**own, **checked_metrics(metrics)},
            score=Score("accuracy") if score is None else score, batch_size=batch_size, augment=augment,
            normalize=normalize, split=split,
        )  # fmt: skip
        self._weight = self._class_weight(class_weight if loss is None or loss.weight is None else loss.weight)
        source = self._parts["train"].source
        self.splits |= {
            "classes": self.classes,
            "class_names": list(names),
            "smoothing": self._smoothing,
            "class_weight": None if self._weight is None else self._weight.tolist(),
            "ignore_index": self._ignore,
            "skipped": list(source.samples.skipped) if isinstance(source, MemorySource) else [],
        }

    def _kind(self) -> str:
        return f", {self.classes} classes"

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        size: int | tuple[int, int] | None = None,
        skip_corrupt: bool = False,
        classes: int | None = None,
        loss: nn.CrossEntropyLoss | None = None,
        class_weight: Literal["balanced"] | Tensor | Sequence[float] | None = None,
        metrics: Mapping[str, Metric] | None = None,
        score: str | Score | None = None,
        batch_size: int = 128,
        augment: Sequence[Augment] = (),
        normalize: Normalization = None,
        split: Split = Split(),
    ) -> Classification:
        """A task from "digits", a `.npz` file, a folder of images or a saved Hugging Face data set.

        size, skip_corrupt: as in `archgrad.tasks.data_path.load`; the rest as in the class. Raises DataError and
        MissingExtra.
        """
        parts = load(path, size=size, skip_corrupt=skip_corrupt, classes=classes)
        return cls(
            parts.train, parts.valid, parts.test, classes=classes, loss=loss, class_weight=class_weight,
            metrics=metrics, score=score, batch_size=batch_size, augment=augment, normalize=normalize, split=split,
        )  # fmt: skip

    def shots(self, count: int, *, seed: int = 0) -> Classification:
        """This task on so many training samples of each class, drawn by the seed, all of them in one batch.

        The other parts and the normalization, which has seen the images of the whole training part, stay.
        Raises DataError where a class has fewer samples.
        """
        drawn = few(self._parts["train"], count, classes=self.splits["class_names"], seed=seed)
        return self._on(drawn, {"half": f"{count} shots, draw {seed}"}, one_batch=True)

    def check(self, network: nn.Module) -> None:
        """As of `Supervised`; warns of a network that gives probabilities, where cross entropy takes logits."""
        super().check(network)
        device = batch_checks.device_of(network)
        batch: Any = mapped(lambda tensor: tensor.to(device), self._fetch("train", 0, 2))
        with evaluating(network):
            output = self._logits(call(network, batch[0])).float()
        sums = output.sum(1)
        if self.classes > 1 and float(output.min()) >= 0 and bool(torch.isclose(sums, torch.ones_like(sums)).all()):
            warnings.warn(
                "the outputs of this network are probabilities: none is below 0, and those of a sample sum to one. "
                "Cross entropy takes logits and applies the softmax itself; twice, it hardly learns. Remove the "
                "softmax at the end of the network",
                stacklevel=3,
            )

    def losses(self, network: nn.Module, batch: Batch) -> Tensor:
        """The cross entropy of each sample, [B]; their mean is `loss`, to the last bits, smoothed labels included."""
        logits = self._logits(call(network, batch[0]))
        losses = self._cross_entropy(logits, batch[1], reduction="none")
        if self._weight is None and self._ignore is None:
            return losses
        weights = self._weights_of(batch[1])
        return losses * (len(losses) / weights.sum().clamp_min(1e-12))

    def _computed(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        logits = self._logits(call(network, batch[0]))
        if self._ignore is not None and bool((batch[1] == self._ignore).all()):
            return logits.sum() * 0, logits
        return self._cross_entropy(logits, batch[1], reduction="mean"), logits

    def _cross_entropy(self, logits: Tensor, labels: Tensor, *, reduction: str) -> Tensor:
        ignore = -100 if self._ignore is None else self._ignore
        weight = None if self._weight is None else self._weight.to(logits)
        return functional.cross_entropy(
            logits, labels, weight=weight, ignore_index=ignore, reduction=reduction, label_smoothing=self._smoothing
        )

    def _weights_of(self, labels: Tensor) -> Tensor:
        """The weight of each sample in the loss, [B]."""
        counted = torch.ones(len(labels), device=labels.device) if self._ignore is None else labels != self._ignore
        weights = counted.float()
        return weights if self._weight is None else weights * self._weight.to(labels.device)[labels.clamp_min(0)]

    def _judge(self, network: nn.Module, batch: Batch, totals: Totals, *, samples: int) -> None:
        with batch_checks.explained("the network fails", batch[0]):
            output = call(network, batch[0])
        logits, labels = self._logits(output).float(), batch[1]
        if self._ignore is not None:
            logits, labels = logits[labels != self._ignore], labels[labels != self._ignore]
        if len(labels):
            loss = functional.cross_entropy(logits, labels, reduction="sum")
            totals.add(logits, labels, samples=len(labels), loss=float(loss))

    def _evaluation_size(self, part: Part) -> int:
        return min((part.loader and part.loader.batch_size) or EVALUATION_BATCH, EVALUATION_BATCH)

    def _class_weight(self, class_weight: Any) -> Tensor | None:
        if class_weight is None:
            return None
        if isinstance(class_weight, str):
            if class_weight != "balanced":
                raise DataError(f'class_weight={class_weight!r}: give "balanced", or a number for each class')
            labels = targets(self._parts["train"])
            labels = labels[labels != self._ignore] if self._ignore is not None else labels
            counts = torch.bincount(labels, minlength=self.classes)
            return len(labels) / (self.classes * counts.clamp_min(1).float())
        try:
            weight = torch.as_tensor(class_weight, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise DataError(
                f'class_weight is a {type(class_weight).__name__}; give "balanced", or a number for each class'
            ) from None
        if (
            tuple(weight.shape) != (self.classes,)
            or not bool(torch.isfinite(weight).all())
            or float(weight.min()) < 0
            or float(weight.max()) == 0
        ):
            raise DataError(
                f"class_weight is {batch_checks.described(weight)}; give a number from 0 up, not all 0, for each of "
                f'the {self.classes} classes, or "balanced"'
            )
        return weight

    def _logits(self, output: Any) -> Tensor:
        """Logits [B, classes] from what a network returns: a tensor, its first element, or `logits` of it."""
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if logits is None and isinstance(output, Mapping):
            # What torchvision's networks call it is "out".
            logits = output.get("logits", output.get("out"))
        elif logits is None and isinstance(output, tuple | list) and output:
            logits = output[0]
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"the network returns {batch_checks.described(output)}; it must return logits [B, {self.classes}], a "
                f"tuple that begins with them, or an object or dict with logits"
            )
        if logits.ndim != 2 or logits.shape[1] != self.classes:
            raise ModelError(
                f"the network's output is {list(logits.shape)}, but the data has {self.classes} classes; the "
                f"output must be [B, {self.classes}]. Change its last layer, or give the data's classes="
            )
        return logits


def _check_loss(loss: object, class_weight: object) -> None:
    if loss is None:
        return
    if not isinstance(loss, nn.CrossEntropyLoss) or loss.reduction != "mean":
        kind = f"{type(loss).__name__} of reduction {getattr(loss, 'reduction', None)!r}"
        raise ConfigError(
            f"loss is a {kind}; classification takes torch.nn.CrossEntropyLoss with its mean. For another loss give "
            f'archgrad.Supervised(loss=, metrics=, score="accuracy")'
        )
    if not 0 <= loss.label_smoothing < 1:
        raise ConfigError(f"label_smoothing={loss.label_smoothing!r}: give a number from 0 up and below 1")
    if loss.weight is not None and class_weight is not None:
        raise ConfigError("class_weight and a loss with weight= were given: give one of them")


def _open(data_by_part: Mapping[str, Data], labels: Labels) -> tuple[dict[str, Part], tuple[str, ...]]:
    """The parts that were given, their labels held to the classes, and the classes' names."""
    first = open_part(data_by_part["train"], "train", labels=labels)
    if isinstance(first.source, MemorySource):
        labels = dataclasses.replace(labels, names=first.source.samples.class_names)
    parts = {"train": first} | {
        name: open_part(data, name, labels=labels)
        for name, data in data_by_part.items()
        if data is not None and name != "train"
    }
    names = labels.names or tuple(map(str, range(count_classes(first, labels, needed=len(parts) < len(PARTS)))))
    for part in parts.values():
        if isinstance(part.source, DatasetSource):
            part.source.classes, part.source.ignore = len(names), labels.ignore
    return parts, names


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.topk(min(5, logits.shape[1])).indices[:, 0] == labels


def _top5(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.topk(5).indices == labels[:, None]).any(1)
