"""What a network is trained on and scored by: data, or a task of the user's own."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from archgrad.cli.schemas.options import DATA, BatchOptions, Options, as_given
from archgrad.cli.suggestions import meant

METRICS = ("accuracy", "top5", "loss")


class NormalizedOptions(BatchOptions):
    """How training batches are drawn, and how images are normalized."""

    normalize: str | None = Field(
        None,
        description="Of images: imagenet, none, data (the training part's own, default), or MEANS/DEVIATIONS, a "
        "number a channel or one for all, such as 0.5/0.25. Give what trained --weights were trained with.",
    )

    @field_validator("normalize")
    @classmethod
    def _check_normalize(cls, text: str | None) -> str | None:
        normalization(text)
        return text


class TaskOptions(NormalizedOptions):
    """DATA for classification, or code that gives any task."""

    panel = "Data"
    needs_task: ClassVar[bool] = True

    data: str | None = Field(None, description=f"{DATA}.")
    task: str | None = Field(
        None,
        description="In place of DATA: path/to/file.py:function or package.module:function, which returns a task of "
        "any kind.",
    )
    smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing.")
    class_weight: str | None = Field(
        None, description="Weights of the classes in the loss: balanced, or a number a class, such as 1,1,5."
    )
    metric: str | None = Field(
        None,
        description="What networks are ranked by: accuracy (default), top5, loss, or code of yours, "
        "path/to/file.py:function of (logits, labels), of which more is better.",
    )

    @field_validator("class_weight")
    @classmethod
    def _check_class_weight(cls, text: str | None) -> str | None:
        class_weights(text)
        return text

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, text: str | None) -> str | None:
        if text is not None and text not in METRICS and ":" not in text:
            raise ValueError(
                f"{text!r} was given.{meant(text, METRICS)} Allowed are {', '.join(METRICS)}, and "
                "path/to/file.py:function or package.module:function"
            )
        return text

    @model_validator(mode="after")
    def _check_task(self) -> TaskOptions:
        if self.task and self.data:
            raise ValueError(f"DATA {self.data!r} and task={self.task!r} were given. Give one of them")
        if self.needs_task and not (self.task or self.data):
            raise ValueError(missing_task())
        of_data = TaskOptions.model_fields.keys() - Options.model_fields.keys() - {"data", "task"}
        given = sorted(filter(None, (as_given(self, name) for name in of_data)))
        if self.task and given:
            raise ValueError(f"{given[0]} goes with DATA; the code of task={self.task!r} decides that itself")
        return self


def normalization(text: str | None) -> str | tuple[list[float], list[float]] | None:
    """What --normalize says, as `archgrad.Classification` takes it. Raises ValueError."""
    if text in (None, "imagenet", "none", "data"):
        return text
    means, _, deviations = text.partition("/")
    parsed = _numbers(means), _numbers(deviations)
    if not parsed[0] or len(parsed[0]) != len(parsed[1]) or min(parsed[1]) <= 0:
        raise ValueError(
            f"{text!r} was given. Allowed are imagenet, none, data, and as many means as deviations above 0: "
            "0.5/0.25, or 0.485,0.456,0.406/0.229,0.224,0.225"
        )
    return parsed


def class_weights(text: str | None) -> Literal["balanced"] | list[float] | None:
    """What --class-weight says, as `archgrad.Classification` takes it. Raises ValueError."""
    if text is None or text == "balanced":
        return text  # type: ignore[return-value]
    weights = _numbers(text)
    if len(weights) < 2 or any(weight < 0 for weight in weights) or not any(weights):
        raise ValueError(
            f"{text!r} was given. Allowed are balanced, and a number from 0 up for each class, not all 0: 1,1,5"
        )
    return weights


def _numbers(text: str) -> list[float]:
    """Numbers joined by commas; none where one of them is no finite number."""
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def missing_task(method: str = "") -> str:
    """What to say where neither data nor a task was given."""
    needed = f": {method} trains" if method else ""
    return f"DATA is missing{needed}. Give {DATA}. Or give a task of your own: --task path/to/file.py:function"
