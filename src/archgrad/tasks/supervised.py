"""Supervised learning of any kind: your data, your loss, your metrics."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from archgrad.copy_and_run import evaluating
from archgrad.errors import ConfigError, DataError, ModelError
from archgrad.fingerprint import described
from archgrad.tasks import batch_checks, first_batch
from archgrad.tasks.augmentation import augmentation_name
from archgrad.tasks.batch_order import Stream
from archgrad.tasks.data_path import load
from archgrad.tasks.losses import BatchLoss, Loss, LossState, checked_loss, per_sample
from archgrad.tasks.metrics import Metric, Score, Totals, checked_metrics, chosen_score
from archgrad.tasks.normalization import Normalization, normalized
from archgrad.tasks.parts import Data, Part, check_parts, notes_on, open_part, part_record, training_order
from archgrad.tasks.splits import Split, divide, join, split_off
from archgrad.tasks.task import Batch, Inputs, call, mapped, names_label, stable_seed, tensors

PARTS = ("train", "valid", "test")

Augment = Callable[[Any, torch.Generator], Any]


class Supervised:
    """Networks trained on a loss of yours and scored by metrics of yours.

    Each part of the data is a map-style Dataset, a list of samples, an IterableDataset that has a length (read once
    into memory, in its order), a DataLoader (its batch size, collate_fn, workers and sampler are kept, so train with
    shuffle=True), a pair (x, y) of arrays, tensors or dicts and tuples of them, [N, ...] each, or, for `train`,
    the path of a .npz file with x_train, y_train (and x_valid, y_valid, x_test, y_test). Missing parts are split off
    the training part for good, see `Split`.

    A sample is (x, y), and the network is called as `network(x)`, with several inputs where x is a tuple, or any nest
    of tensors, which `batch_loss` then reads; of a dict, entries with "label" in their names are no inputs, as in
    Hugging Face's data sets. Batches are a pure function of (seed, step).

    Args:
        train, valid, test: the data.
        loss: of (output, target) a scalar [], or one number for each sample [B]. Functions and modules of torch that
            have a `reduction` give the loss of each sample too.
        batch_loss: in place of `loss`, of (network, batch), with full control; it may return (loss, output), so that
            metrics see the output.
        metrics: {name: function of (output, target)}, a number or one for each sample [B], averaged over all samples;
            or {name: object with update, compute and reset}, as those of torchmetrics, for the whole part. The target
            is y where samples are (x, y), else the batch.
        score: the name of a metric of which more is better, or `archgrad.lower("mae")`; default: the loss, lower.
        batch_size: of training and evaluation.
        collate_fn: from a list of samples to a batch; default: the DataLoader's, or that of torch.
        augment: callables (x, generator) -> x on the inputs of training batches, such as `flip()`.
        normalize: of images in memory, uint8 [N, C, H, W], which are scaled to [0, 1] first: "imagenet", "none",
            "data" (default) for the training part's own, or (means, deviations), a number a channel; in the record.
        split: how missing parts are split off.

    Attributes:
        splits: a JSON record of the parts, and of how they are made.
        score: a name, and which way is better.
        test_reads: how many evaluations there were on the test part.

    Raises:
        DataError: data that cannot be used.
        ConfigError: no loss, or two; a metric that is none; a score that no metric has.

    Example:
        >>> import torch, archgrad as ag
        >>> x = torch.linspace(-1, 1, 200)[:, None]
        >>> mae = lambda output, target: (output - target).abs().mean()
        >>> loss = torch.nn.functional.mse_loss
        >>> task = ag.Supervised((x, 3 * x), loss=loss, metrics={"mae": mae}, score=ag.lower("mae"))
        >>> list(ag.fit(torch.nn.Linear(1, 1), task, ag.Run(epochs=1, progress=False)))
        ['mae', 'loss']
    """

    def __init__(
        self,
        train: Data,
        valid: Data = None,
        test: Data = None,
        *,
        loss: Loss | None = None,
        batch_loss: BatchLoss | None = None,
        metrics: Mapping[str, Metric] | None = None,
        score: str | Score | None = None,
        batch_size: int = 128,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        augment: Sequence[Augment] = (),
        normalize: Normalization = None,
        split: Split = Split(),
    ) -> None:
        _check_options(batch_size, augment, split)
        self._loss, self._batch_loss = checked_loss(loss, batch_loss)
        self._loss_state = LossState(loss or batch_loss)
        self._each = per_sample(self._loss) if self._loss is not None else None
        self._metrics = checked_metrics(metrics)
        self._undirected = isinstance(score, str) and score in self._metrics  # a name alone says no direction
        self.score = chosen_score(score, ["loss", *self._metrics], default=Score("loss", False))
        if isinstance(train, str | Path):
            read = load(train, labels=False)
            train, valid, test = read.train, valid or read.valid, test or read.test
        self._parts = {
            name: open_part(data, name, collate=collate_fn)
            for name, data in {"train": train, "valid": valid, "test": test}.items()
            if data is not None or name == "train"
        }
        missing, train_part = [name for name in PARTS if name not in self._parts], self._parts["train"]
        check_parts(self._parts)
        split.resolve(train_part.source)
        if missing:
            self._parts |= split_off(train_part, missing, fraction=split.valid_fraction, seed=split.seed)
        own, loader = train_part.batch_size, train_part.loader
        self._batch_size: int | None = loader.batch_size if loader is not None else own or batch_size
        self._drawable = len(train_part.indices)
        self._order = training_order(self._parts["train"], self._batch_size, drawable=self._drawable)
        self._augment = tuple(augment)
        self.steps_per_epoch = self._order.steps
        self._share: str | None = None
        self._reads: collections.Counter[str] = collections.Counter()
        self.splits: dict[str, Any] = {
            **{name: part_record(part, split_off=name in missing) for name, part in self._parts.items()},
            "split_seed": split.seed,
            "valid_fraction": split.valid_fraction,
            "normalization": normalized(self._parts, normalize),
            "input_shape": _shape(self.example),
            "batch_size": self._batch_size,
            "augmentation": [augmentation_name(augmentation) for augmentation in augment],
            "score": {"name": self.score.name, "higher_is_better": self.score.higher_is_better},
        }

    def fingerprint(self) -> dict[str, str]:
        """Digests of what the parts hold, and the loss and metrics: what a resumed run is compared by."""
        judged = {"loss": self._loss or self._batch_loss, **{f"metric {n}": m for n, m in self._metrics.items()}}
        contents = {f"{name} samples": part.source.fingerprint() for name, part in self._parts.items()}
        return contents | {name: described(function) for name, function in judged.items()}

    @property
    def notes(self) -> list[str]:
        """What a user should know of the data; a run shows and keeps it."""
        return notes_on(self._parts)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {len(part.indices):,}" for name, part in self._parts.items())
        return f"<{type(self).__name__}{self._kind()}, inputs {self.splits['input_shape']}: {sizes}>"

    def _kind(self) -> str:
        return ""

    @property
    def higher_is_better(self) -> bool:
        """Which way the score goes."""
        return self.score.higher_is_better

    def split(self, fraction: float = 0.5, *, seed: int | None = None) -> tuple[Self, Self]:
        """Two tasks over disjoint shares of the training part: for weights, and for architectures.

        Validation and test parts, normalization, augmentation and batch size stay; a share smaller than the batch
        size comes as one batch. The two draw their batches and augmentations independently under one seed.

        Args:
            fraction: the first task's share of the training samples of each class, tenth of the targets or group
                (see `Split`), between 0 and 1. A class of two samples or more is in both, the sample of a class of
                one in the first.
            seed: what the division is drawn by; default: that of `Split`.

        Returns:
            The two tasks. `splits["train"]` is the size and hash of each one's share, `splits["half"]` says which
            it is of what. Reading the test part through either counts in `test_reads` of all three.

        Raises:
            DataError: a share or seed that makes no sense, no class of two samples, or a DataLoader with a sampler
                of its own, which cannot be divided.
        """
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise DataError(f"seed={seed!r}: give a whole number, or None for the seed of the split")
        seed = self.splits["split_seed"] if seed is None else seed
        first, second = divide(self._parts["train"], fraction=fraction, seed=seed)
        record = {"fraction": fraction, "seed": seed, "of": self.splits["train"]}
        return self._on(first, record | {"half": "first"}), self._on(second, record | {"half": "second"})

    def with_validation(self) -> Self:
        """This task with the validation part added to the training part, in a shuffled order, to train for good."""
        joined = join(self._parts["train"], self._parts["valid"])
        record = {"half": "whole", "of": self.splits["train"], "and": self.splits["valid"]}
        return self._on(joined, record)

    def _on(self, train: Part, record: dict[str, Any], *, one_batch: bool = False) -> Self:
        """This task on another training part."""
        task = copy.copy(self)
        count = len(train.indices)
        batch_size = count if one_batch else min(self._batch_size or count, count)
        task._parts = self._parts | {"train": train}
        task._order = training_order(train, batch_size, drawable=self._drawable)
        task.steps_per_epoch = task._order.steps
        task._share = "/".join(filter(None, (self._share, record["half"])))
        size = part_record(train, split_off=self.splits["train"]["split_off_train"])
        task.splits = self.splits | {"train": size, "batch_size": batch_size, "half": record}
        return task

    def state_dict(self) -> dict[str, Any]:
        """What the loss carries from step to step; for runs that are resumed."""
        return self._loss_state.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._loss_state.load_state_dict(state)

    @property
    def test_reads(self) -> int:
        """How often the test part was read; a task and the tasks that it was split into count together."""
        return self._reads["test"]

    @property
    def example(self) -> Inputs:
        """The inputs of the first training sample, [1, ...], or a tuple or dict of such."""
        inputs = _pair(batch := self._fetch("train", 0, 1))[0]
        if inputs is batch and isinstance(batch, dict):
            inputs = {name: value for name, value in batch.items() if not names_label(name)}
        return cast(Inputs, (inputs,) if isinstance(inputs, list) else inputs)  # a list is one argument

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Stream:
        """Training batch number `step`: a function of (seed, step, rank, world) alone.

        Each epoch is a new permutation without its incomplete last batch. With several processes each takes
        an equal share of the batch, so that `batch_size` and `steps_per_epoch` are those of all together.
        Raises DataError where the batch cannot be shared equally.
        """
        if not 0 <= rank < world:
            raise DataError(f"rank={rank}, world={world}: ranks are 0..{world - 1}")
        size = self._batch_size
        if size is not None and size % world:
            raise DataError(
                f"batch_size={size} cannot be shared equally by {world} processes; give a multiple of {world}"
            )
        if min(len(batch) for batch in self._order.epoch(seed, 0)) < world:
            raise DataError(f"a batch has fewer samples than there are processes ({world}); use fewer processes")
        if self._share is not None:
            seed = stable_seed(self._share, seed)
        return Stream(
            self._parts["train"].source, self._order, seed=seed, rank=rank, world=world, augment=self._augment
        )

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch, []."""
        loss, _ = self._computed(network, batch)
        return loss.mean() if loss.ndim else loss

    def losses(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss of each sample, [B]; their mean is `loss`. Raises ModelError where a loss is of whole batches."""
        if self._each is not None:
            inputs, target = _pair(batch)
            losses = self._each(call(network, inputs), target)
        else:
            losses, _ = self._computed(network, batch)
        if losses.ndim != 1:
            raise ModelError(
                f"the loss of a batch is {batch_checks.described(losses)}, and that of each sample is needed, [B]; "
                f"give a loss that returns it, or one of torch that has a `reduction`"
            )
        return losses

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        """The score, then the other metrics, and the mean loss.

        Runs in eval mode without gradients on the device of the network's parameters, and restores the mode
        of every submodule. part: "train" (not augmented), "valid" or "test". Raises DataError for another
        part, ModelError where the network fails, ConfigError where a metric does.
        """
        if part not in PARTS:
            raise DataError(f"part={part!r}: give one of {', '.join(map(repr, PARTS))}")
        self._reads[part] += 1
        totals = Totals(self._metrics, device := batch_checks.device_of(network))
        with evaluating(network):
            for rows, batch in zip(self._rows(part), self._batches(part), strict=True):
                self._judge(network, mapped(lambda tensor: tensor.to(device), batch), totals, samples=len(rows))
        return totals.figures(first=self.score.name)

    def nonfinite_samples(self, network: nn.Module, part: str) -> list[int]:
        """The samples of a part, by their place in the data, whose inputs, outputs or losses are NaN or infinite."""
        wrong, device = list[int](), batch_checks.device_of(network)
        with evaluating(network):
            for rows, batch in zip(self._rows(part), self._batches(part), strict=True):
                batch = mapped(lambda tensor: tensor.to(device), batch)
                found = (batch, *self._computed(network, batch))
                wrong += [rows[row] for row in batch_checks.nonfinite_rows(found, len(rows))]
        return wrong

    def check(self, network: nn.Module) -> None:
        """Run the network, the loss and the metrics on a few training samples, before anything long starts.

        Leaves the network and the random states as they were.

        Raises:
            ModelError: the network fails, in eval mode or in training mode, or returns something else than it has to.
            ConfigError: the loss is no scalar, its gradient reaches no weight, or it compares each output with each
                target; a metric fails or gives no number.
            DataError: the samples hold NaN or infinite numbers, or a batch changes when the next one is fetched.
        """
        first_batch.check(self, network)

    def _computed(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        """The loss, [] or [B], and the output."""
        if self._batch_loss is not None:
            result = self._batch_loss(network, batch)
            loss, output = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        else:
            assert self._loss is not None
            inputs, target = _pair(batch)
            output = call(network, inputs)
            if isinstance(self._loss, nn.Module):
                self._loss.to(next((leaf.device for leaf in tensors(output)), torch.device("cpu")))
            loss = self._loss(output, target)
        if not isinstance(loss, Tensor):
            pair = ", or with the output in a pair (loss, output)" if self._batch_loss is not None else ""
            raise ConfigError(f"the loss is {batch_checks.described(loss)}; it must be a scalar tensor []{pair}")
        if not (loss.is_floating_point() or loss.is_complex()):
            raise ConfigError(f"the loss is {batch_checks.described(loss)}, which has no gradient; give real numbers")
        return loss, output

    def _judge(self, network: nn.Module, batch: Batch, totals: Totals, *, samples: int) -> None:
        """Add the loss and the metrics of a batch."""
        user = "the network or batch_loss fails" if self._batch_loss is not None else "the network or the loss fails"
        with batch_checks.explained(user, batch):
            loss, output = self._computed(network, batch)
        if tuple(loss.shape) not in ((), (samples,)):
            batch_checks.check_loss(loss, network, samples=samples)
        if output is None and totals.names and self._batch_loss is not None:
            raise ConfigError(
                f"batch_loss gives no output for the metrics {', '.join(totals.names)}; return (loss, output)"
            )
        total = float(loss.double().sum()) * (1 if loss.ndim else samples)
        target = batch[1] if self._batch_loss is None or _is_pair(batch) else batch
        totals.add(output, target, samples=samples, loss=total)

    def _fetch(self, part: str, start: int, end: int | None) -> Batch:
        indices = self._parts[part].indices[start:end].tolist()
        return self._parts[part].source.one((indices, stable_seed("evaluate", part, indices[0])))

    def _evaluation_size(self, part: Part) -> int:
        return (part.loader and part.loader.batch_size) or self._batch_size or 1

    def _rows(self, name: str) -> list[list[int]]:
        part = self._parts[name]
        return [rows.tolist() for rows in torch.split(part.indices, self._evaluation_size(part))]

    def _batches(self, name: str) -> Iterator[Batch]:
        """All batches of a part, in its order."""
        keys = ((rows, stable_seed("evaluate", name, rows[0])) for rows in self._rows(name))
        return self._parts[name].source.batches(keys)


def _is_pair(batch: Batch) -> bool:
    return isinstance(batch, tuple | list) and len(batch) == 2


def _pair(batch: Batch) -> tuple[Any, Any]:
    """Inputs and target of a batch; what is no pair is inputs alone."""
    return (batch[0], batch[1]) if _is_pair(batch) else (batch, batch)


def _shape(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {name: _shape(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return [_shape(value) for value in inputs]
    return list(inputs.shape[1:]) if isinstance(inputs, Tensor) else type(inputs).__name__


def _check_options(batch_size: object, augment: object, split: object) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size < 2**62:
        raise DataError(f"batch_size={batch_size!r}: give a whole number, at least 1")
    if not isinstance(augment, Sequence) or not all(map(callable, augment)):
        raise DataError(f"augment={augment!r}: give functions of (inputs, generator), e.g. archgrad.crop(4)")
    if not isinstance(split, Split):
        raise DataError(f"split={split!r}: give an archgrad.Split, such as archgrad.Split(0.2)")
