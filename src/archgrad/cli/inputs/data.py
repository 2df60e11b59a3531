"""The task of DATA, a path or what a callable of the user's gives, and of --task."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.nn import CrossEntropyLoss

from archgrad.cli.inputs import user_code
from archgrad.cli.schemas.configuration import is_code
from archgrad.cli.schemas.options import BatchOptions, ImageOptions, augmentations
from archgrad.cli.schemas.task import METRICS, NormalizedOptions, TaskOptions, class_weights, normalization
from archgrad.errors import ConfigError, DataError
from archgrad.tasks import (
    Classification,
    Samples,
    brightness,
    crop,
    cutout,
    data_path,
    flip,
    mask,
    rotate,
)
from archgrad.tasks.sources import seeded
from archgrad.tasks.supervised import PARTS, Augment
from archgrad.tasks.task import Task, require

_AUGMENTATIONS: dict[str, Callable[[int], Augment]] = {
    "crop": crop, "cutout": cutout, "rotate": rotate, "brightness": brightness, "time_mask": mask,
    "frequency_mask": functools.partial(mask, axis="frequency"),
}  # fmt: skip


def load_task(options: TaskOptions) -> Task:
    """The task of --task, or of DATA. Raises InputError where it cannot be used."""
    if options.task:
        return _from_code(options.task)
    assert options.data is not None
    parts = _parts(options.data, options)
    metrics, score = _metric(options.metric, parts["train"])
    return Classification(
        parts["train"],
        parts.get("valid"),
        parts.get("test"),
        loss=CrossEntropyLoss(label_smoothing=options.smoothing) if options.smoothing else None,
        class_weight=class_weights(options.class_weight),
        metrics=metrics,
        score=score,
        batch_size=options.batch_size,
        augment=_augment(options.augment),
        normalize=normalization(options.normalize),
    )


def load(name: str, options: BatchOptions) -> Classification:
    """The task of DATA by the options that all commands have. Raises InputError."""
    parts = _parts(name, options)
    return Classification(
        parts["train"],
        parts.get("valid"),
        parts.get("test"),
        batch_size=options.batch_size,
        augment=_augment(options.augment),
        normalize=normalization(options.normalize) if isinstance(options, NormalizedOptions) else None,
    )


def classes_of(task: object) -> int | None:
    """How many classes a task has; None where it does not say."""
    classes = getattr(task, "classes", None)
    return classes if isinstance(classes, int) and not isinstance(classes, bool) else None


def _parts(name: str, options: ImageOptions) -> dict[str, Any]:
    """The parts that DATA names.

    A callable is called without arguments, the global generators seeded by 0. It gives what `Classification` takes
    as its training part, a Dataset, a DataLoader or a pair of arrays (x, y); or a dict of parts,
    {"train": ..., "valid": ..., "test": ...}, of which the last two may be missing.

    Raises:
        ConfigError: no such module, file or attribute, or options that are for folders of images.
        DataError: data that cannot be used.
        ModelError: the user's code fails.
    """
    if name.endswith(".py"):
        raise ConfigError(
            f"DATA {name!r} is a file of code: name the function in it that gives the data, {name}:FUNCTION"
        )
    if not is_code(name):
        loaded = data_path.load(name, size=options.size, skip_corrupt=options.skip_corrupt)
        return {part: getattr(loaded, part) for part in PARTS}
    if options.size or options.skip_corrupt:
        raise ConfigError(f"size and skip_corrupt are for folders of images; {name} makes its own data")
    with seeded(0):
        given = user_code.call(user_code.load(name, kind="DATA"), name, {}, kind="DATA")
    parts = dict(given) if isinstance(given, Mapping) else {"train": given}
    if "train" not in parts or not set(parts) <= set(PARTS):
        raise DataError(
            f'DATA {name!r} gives a dict of {sorted(map(str, parts))}. Allowed are "train", "valid" and "test", of '
            f"which the first is needed"
        )
    return parts


def _metric(name: str | None, train: object) -> tuple[dict[str, Any], str | None]:
    """The metric of --metric where it is code, and the name of the score.

    A class, such as one of torchmetrics, is called with the number of classes if it takes it and the data say it.
    """
    if name is None or name in METRICS:
        return {}, name
    metric = user_code.load(name, kind="--metric", forms=f"{', '.join(METRICS)}, or {user_code.FORMS}")
    if inspect.isclass(metric):
        known = {"classes": len(train.class_names)} if isinstance(train, Samples) else {}
        metric = user_code.call(metric, name, known, kind="--metric")
    return {name.rpartition(":")[2]: metric}, name.rpartition(":")[2]


def _augment(text: str) -> Sequence[Augment]:
    return [flip() if size is None else _AUGMENTATIONS[name](size) for name, size in augmentations(text)]


def _from_code(name: str) -> Task:
    with seeded(0):
        task: Any = user_code.call(user_code.load(name, kind="--task"), name, {}, kind="--task")
    require(task, method=f"archgrad, with the task that {name} gives,")
    return task  # type: ignore[no-any-return]
