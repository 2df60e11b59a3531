"""What a network is scored by: metrics over a whole part of the data, and which way is better."""

from __future__ import annotations

import copy
import difflib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from archgrad.argument_types import checked, noted
from archgrad.errors import ArchgradError, ConfigError, full_text
from archgrad.tasks.batch_checks import FAILURES, described

# A function of (output, target), or an object with update(output, target), compute() and reset().
Metric = Any


@dataclass(frozen=True)
class Score:
    """The figure that networks are ranked by, and which way is better."""

    name: str
    higher_is_better: bool = True


@checked
def lower(name: str) -> Score:
    """A score of which less is better, for `Supervised(score=)`.

    Example:
        >>> import archgrad as ag
        >>> ag.lower("mae")
        Score(name='mae', higher_is_better=False)
    """
    return Score(name, False)


@checked
def higher(name: str) -> Score:
    """A score of which more is better, for `Supervised(score=)`; a plain name means the same.

    Example:
        >>> import archgrad as ag
        >>> ag.higher("f1")
        Score(name='f1', higher_is_better=True)
    """
    return Score(name, True)


class _OverPart:
    """Keeps all outputs and targets, and gives them to a function at the end."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self._function = function
        self.reset()

    def __repr__(self) -> str:
        return f"over_part({getattr(self._function, '__name__', type(self._function).__name__)})"

    def reset(self) -> None:
        self._batches: list[Any] = []

    def update(self, output: Any, target: Any) -> None:
        self._batches.append(tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), (output, target)))

    def compute(self) -> Any:
        if all(isinstance(part, list) for part in self._batches[0]):
            return self._function(*(list(itertools.chain(*parts)) for parts in zip(*self._batches, strict=True)))
        return self._function(*tree_map(lambda *tensors: torch.cat(tensors), *self._batches))


@checked
def over_part(function: Callable[..., Any]) -> Metric:
    """A metric of all outputs and targets of a part at once, where no mean over samples gives it, such as F1.

    Args:
        function: of (outputs, targets), each [N, ...] on the CPU, or nests of such, or lists of N: a number.

    Example:
        >>> import archgrad as ag
        >>> from sklearn.metrics import f1_score
        >>> f1 = ag.over_part(lambda logits, labels: f1_score(labels, logits.argmax(1), average="macro"))
        >>> ag.Classification(ag.digits(), metrics={"f1": f1}, score="f1").score
        Score(name='f1', higher_is_better=True)
    """
    return _OverPart(function)


def chosen_score(score: str | Score | None, names: Sequence[str], *, default: Score) -> Score:
    """The score that a user gave, as one of the figures that there are. Raises ConfigError."""
    if score is None:
        return default
    if not isinstance(score, str | Score):
        raise ConfigError(f'score={score!r}: give the name of a metric, or archgrad.lower("mae")')
    name = score if isinstance(score, str) else score.name
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"score={name!r} is no metric of this task; there are {', '.join(names)}.{guess}")
    if isinstance(score, Score):
        return score
    return default if name == default.name else Score(name, name != "loss")


def checked_metrics(metrics: Mapping[str, Metric] | None) -> dict[str, Metric]:
    """The metrics by name. Raises ConfigError for what is neither a function nor an object that accumulates."""
    if metrics is not None and not isinstance(metrics, Mapping):
        raise ConfigError(f'metrics is a {type(metrics).__name__}; give a dict such as {{"mae": function}}')
    for name, metric in (metrics or {}).items():
        if not isinstance(name, str) or name == "loss":
            raise ConfigError(f'metrics has {name!r}; a name is a string, and "loss" is the loss itself')
        if isinstance(metric, type):
            raise ConfigError(f"metric {name!r} is the class {metric.__name__}; make one of it: {metric.__name__}()")
        if not callable(metric) and not accumulates(metric):
            raise ConfigError(
                f"metric {name!r} is a {type(metric).__name__}; give a function of (output, target), or an object "
                f"with update, compute and reset such as those of torchmetrics"
            )
    return dict(metrics or {})


def accumulates(metric: Metric) -> bool:
    """Whether this is an object that is updated batch by batch, as those of torchmetrics."""
    return all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset"))


class Totals:
    """Metrics and the loss over a part of the data, batch by batch.

    A function's values are averaged over samples, not over batches; an object is updated with every batch and
    computes its figure at the end.
    """

    def __init__(self, metrics: Mapping[str, Metric], device: torch.device) -> None:
        self._functions = {name: metric for name, metric in metrics.items() if not accumulates(metric)}
        # Copies: a task is shared by evaluations, and by processes.
        self._objects = {name: copy.deepcopy(metric) for name, metric in metrics.items() if accumulates(metric)}
        for metric in self._objects.values():
            metric.reset()
            if callable(getattr(metric, "to", None)):
                metric.to(device)
        self.names = list(metrics)
        self._order = ["loss", *metrics]
        self._sums = dict.fromkeys(("loss", *self._functions), 0.0)
        self._counts = dict.fromkeys(self._sums, 0)

    def add(self, output: Any, target: Any, *, samples: int, loss: float) -> None:
        """A batch of so many samples, whose losses sum to `loss`. Raises ConfigError where a metric fails."""
        self._add("loss", loss, samples)
        for name, function in self._functions.items():
            self._add(name, *_measured(name, function, output, target, samples))
        for name, metric in self._objects.items():
            try:
                with noted(f"update() of metric {name!r}"):
                    metric.update(output, target)
            except FAILURES as error:
                raise _failed(name, error, output, target) from error

    def _add(self, name: str, total: float, samples: int) -> None:
        self._sums[name] += total
        self._counts[name] += samples

    def figures(self, *, first: str) -> dict[str, float]:
        """{name: figure}, the score first. Raises ConfigError where a metric's figure is no number."""
        figures = {name: self._sums[name] / max(1, self._counts[name]) for name in self._sums}
        for name, metric in self._objects.items():
            try:
                with noted(f"compute() of metric {name!r}"):
                    computed = metric.compute()
            except FAILURES as error:
                raise ConfigError(f"metric {name!r} fails in compute(): {full_text(error)}") from error
            figures[name] = _single(name, computed)
        return {name: figures[name] for name in dict.fromkeys((first, *self._order))}


def _measured(name: str, function: Any, output: Any, target: Any, samples: int) -> tuple[float, int]:
    """The sum of a metric over the samples of a batch, and how many there are."""
    try:
        with noted(f"metric {name!r}"):
            value = function(output, target)
    except FAILURES as error:
        raise _failed(name, error, output, target) from error
    if isinstance(value, Tensor | np.ndarray) and tuple(value.shape) == (samples,):
        return float(torch.as_tensor(value).double().sum()), samples
    return _single(name, value, samples) * samples, samples


def _single(name: str, value: Any, samples: int | None = None) -> float:
    if isinstance(value, Tensor | np.ndarray) and int(np.prod(value.shape)) == 1:
        return float(value.reshape(()))
    if isinstance(value, int | float | np.number):
        return float(value)
    each = f", or one for each of the {samples} samples of the batch, [{samples}]" if samples else ""
    raise ConfigError(f"metric {name!r} gives {described(value)}; it must give one number{each}")


def _failed(name: str, error: Exception, output: Any, target: Any) -> ArchgradError:
    if isinstance(error, ArchgradError):
        return error
    return ConfigError(
        f"metric {name!r} fails on the output {described(output)} and the target {described(target)}: "
        f"{full_text(error)}. Change the metric, or what the network returns; one that some batches cannot give is "
        f"computed over the whole part by archgrad.over_part"
    )
