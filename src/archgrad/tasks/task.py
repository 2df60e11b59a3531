"""What a network is judged on: the contract between tasks and everything that trains on them."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from archgrad import copy_and_run
from archgrad.digests import of_item
from archgrad.errors import ConfigError, DataError
from archgrad.files import shown
from archgrad.fingerprint import described

# Of a network: one, several in order, or several by name: as keywords where its `forward` takes them, else one dict.
Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
# Any nest of tensors; (inputs, target) for the tasks of this room.
Batch = Any


@runtime_checkable
class Task(Protocol):
    """Training batches, a loss, and a score: what every method needs.

    Optional are `higher_is_better` (False where a lower score is better), `splits` (a JSON record of the data, for
    reports), `fingerprint()` (digests of the data, {name: text}, which a resumed run is compared by),
    `remarks(network)` (sentences on the network that is handed back, for its report), and the abilities below, which
    some methods need: `Splittable`, `PerSample`, `Checkable`.

    Attributes:
        example: the inputs of one sample, [1, ...], or a tuple or dict of such.
        steps_per_epoch: the number of training batches in one pass over the training part.

    Example:
        >>> import torch, archgrad as ag
        >>> class Line:  # y = 3x
        ...     example, steps_per_epoch, higher_is_better = torch.ones(1, 1), 4, False
        ...     def stream(self, *, seed, rank=0, world=1):
        ...         def batch(step):
        ...             x = torch.rand(8, 1, generator=torch.Generator().manual_seed(seed * 1000 + step))
        ...             return x, 3 * x
        ...         return batch
        ...     def loss(self, network, batch):
        ...         return torch.nn.functional.mse_loss(network(batch[0]), batch[1])
        ...     def evaluate(self, network, part="valid"):
        ...         with torch.no_grad():
        ...             return {"mse": float(self.loss(network, self.stream(seed=-1 if part == "test" else -2)(0)))}
        >>> figures = ag.fit(torch.nn.Linear(1, 1), Line(), ag.Run(epochs=1, progress=False))
        >>> list(figures)
        ['mse']
    """

    @property
    def steps_per_epoch(self) -> int:
        """The number of training batches in one pass over the training part."""
        ...

    @property
    def example(self) -> Inputs:
        """The inputs of one sample, [1, ...]."""
        ...

    def stream(self, *, seed: int, rank: int = 0, world: int = 1) -> Callable[[int], Batch]:
        """Training batch number `step` (0, 1, 2, ... across epochs): a pure function of its four numbers."""
        ...

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """What training minimizes on this batch: a scalar []. It draws no data."""
        ...

    def evaluate(self, network: nn.Module, part: str = "valid") -> dict[str, float]:
        """Figures on "train", "valid" or "test"; the first is the score.

        The network is evaluated in eval mode; the mode of every submodule is restored.
        """
        ...


@runtime_checkable
class Splittable(Protocol):
    """A task whose training data can be divided: for methods that train weights and architecture on separate data."""

    def split(self, fraction: float) -> tuple[Task, Task]:
        """Two tasks on disjoint parts of the training data, `fraction` of it and the rest."""
        ...


@runtime_checkable
class PerSample(Protocol):
    """A task that gives the loss of each sample: for methods that weigh samples."""

    def losses(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss of each sample, [B]; their mean is `loss`."""
        ...


@runtime_checkable
class Checkable(Protocol):
    """A task that can tell whether a network fits it, before anything is trained."""

    def check(self, network: nn.Module) -> None:
        """Raise an ArchgradError where the network does not run on the data, or gives outputs of another form."""
        ...


_HOW: dict[type[Any], str] = {
    Splittable: "split(fraction) -> two tasks on disjoint training data",
    PerSample: "losses(network, batch) -> the loss of each sample, [B]",
}


def require(task: object, *abilities: type[Any], method: str) -> None:
    """Verify before a run begins that a task has what a method needs.

    Args:
        task: what the user gave.
        abilities: Protocols beyond `Task`: `Splittable`, `PerSample`, or a method's own, whose docstring's first line
            is what the message says of it.
        method: its name, for the message.

    Raises:
        ConfigError: something is missing; the message lists all of it, and how to get it.

    Example:
        >>> import archgrad as ag
        >>> from archgrad.tasks import Splittable, require
        >>> require(ag.Classification.load("digits"), Splittable, method="DARTS")
    """
    basics = {
        "example": "the inputs of one sample, [1, ...]",
        "steps_per_epoch": "the number of batches in an epoch, a whole number from 1 up",
        "stream": "stream(seed=, rank=, world=) -> a function from the step to a batch",
        "loss": "loss(network, batch) -> a scalar tensor []",
        "evaluate": 'evaluate(network, part) -> {name: figure} on "train", "valid" or "test", the score first',
    }
    missing = [f"{name}: {what}" for name, what in basics.items() if not hasattr(task, name)]
    missing += [_HOW.get(a) or str(a.__doc__).partition("\n")[0] for a in abilities if not isinstance(task, a)]
    if missing:
        raise ConfigError(
            f"{method} cannot run on {type(task).__name__}, which lacks {len(missing)} of what it needs: "
            f"{'; '.join(missing)}. Add it to the class, or use a task that has all of it, such as "
            f"archgrad.Supervised."
        )
    steps = task.steps_per_epoch  # type: ignore[attr-defined]
    if type(steps) is not int or steps < 1:
        raise ConfigError(f"steps_per_epoch={steps!r} of {type(task).__name__}: give a whole number from 1 up.")
    for name, count, names in (("stream", 0, ("seed", "rank", "world")), ("loss", 2, ()), ("evaluate", 2, ())):
        try:
            inspect.signature(getattr(task, name)).bind(*range(count), **dict.fromkeys(names))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{method} cannot call {name} of {type(task).__name__} ({error}). Define {basics[name]}."
            ) from error
    if not callable(stream := task.stream(seed=0)):  # type: ignore[attr-defined]
        raise ConfigError(
            f"stream of {type(task).__name__} returns {stream!r}. Return a function from the number of a step to a "
            f"batch."
        )


def evaluate(task: Task, network: nn.Module, part: str = "valid") -> dict[str, float]:
    """The figures of `task.evaluate` as numbers, the score first; they may be NaN.

    Raises:
        ConfigError: it returns no dict, an empty one, or something in it that is no number.
    """
    figures: object = task.evaluate(network, part)
    if not isinstance(figures, Mapping) or not figures:
        raise ConfigError(
            f"evaluate of {type(task).__name__} returns {figures!r}. Return a dict of figures by name, the score "
            f'first, such as {{"mse": 0.5}}.'
        )
    return {str(name): _number(name, value, task) for name, value in figures.items()}


def _number(name: object, value: Any, task: Task) -> float:
    try:
        return float("text" if isinstance(value, str) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ConfigError(
            f"evaluate of {type(task).__name__} gives {kind} for {name!r}. Allowed is one number: take the mean."
        ) from error


def require_finite(figures: Mapping[str, float], task: Task, part: str) -> None:
    """Raise ConfigError for figures of a result that are NaN or infinite."""
    if wrong := {name: value for name, value in figures.items() if not math.isfinite(value)}:
        raise ConfigError(
            f"evaluate of {type(task).__name__} gives {wrong} on the {part} part, and a result needs finite figures. "
            f"Return a number where a figure is not defined. A run with a folder then goes on from its last state."
        )


def higher_is_better(task: object) -> bool:
    """Whether a higher score of this task is better; True where the task does not say."""
    return bool(getattr(task, "higher_is_better", True))


def description(task: object) -> dict[str, Any]:
    """The task's JSON record of its data, `splits`; empty where it has none."""
    return dict(getattr(task, "splits", None) or {})


def identity(task: object, *, seed: int) -> dict[str, Any]:
    """What a resumed run must find again of its task: `splits`, and digests of what the parts hold, as JSON.

    A task says it by `fingerprint() -> {name: digest}`; of one without it the first training batch counts.
    """
    record = {name: _rounded(value) for name, value in description(task).items()}
    say, stream = getattr(task, "fingerprint", None), getattr(task, "stream", None)
    if callable(say):
        return record | {str(name): str(value) for name, value in say().items()}
    if not callable(stream):
        return record
    # Asked for twice, since a task that draws batches of its own cannot be compared by them.
    batches = [of_item(stream(seed=seed)(0)) for _ in range(2)]
    return record | {"first batch": batches[0] if batches[0] == batches[1] else "drawn anew each time"}


def _rounded(value: Any) -> Any:
    """A record with its measured numbers, such as means of pixels, to six digits: the last ones vary with threads."""
    if isinstance(value, Mapping):
        return {str(name): _rounded(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value if isinstance(value, int | str | None) else described(value)


def remarks(task: object, network: nn.Module) -> list[str]:
    """What a task has to say of the network that is handed back, for its report."""
    say = getattr(task, "remarks", None)
    return list(say(network)) if say is not None else []


@runtime_checkable
class Scored(Protocol):
    """A task that scores architectures themselves, such as `archgrad.Tabular`: nothing is trained on it.

    `perfect` is what a network without fault scores: 1 for an accuracy in [0, 1], 100 for one in %.
    """

    perfect: float

    def score(self, architecture: Mapping[str, Any], /) -> float:
        """The architecture's score, higher is better."""
        ...


def batch_size(batch: Batch) -> int:
    """The number of samples in a batch: the length of its first tensor, or of a list in it, of an entry a sample.

    Raises:
        DataError: the batch holds no tensor with a first dimension.
    """
    if not (size := _length(_parts(batch))):
        raise DataError(f"a batch of type {type(batch).__name__} holds no tensor [B, ...], so its size is unknown")
    return size


def _parts(batch: Batch) -> Batch:
    """A batch that is a list of its parts, (inputs, target) or tensors of one length, as a tuple of them."""
    if not isinstance(batch, list):
        return batch
    lengths = {len(x) if isinstance(x, Tensor) and x.ndim else 0 for x in batch}
    alike = all(isinstance(x, tuple) for x in batch) or (
        all(isinstance(x, Mapping) for x in batch) and len({frozenset(x) for x in batch}) == 1
    )
    pair = len(batch) == 2 and not alike  # two of a kind are two samples
    return tuple(batch) if pair or (len(lengths) == 1 and lengths != {0}) else batch


def _length(nest: Any) -> int:
    if isinstance(nest, list) or (isinstance(nest, Tensor) and nest.ndim):
        return len(nest)
    parts = nest.values() if isinstance(nest, Mapping) else nest if isinstance(nest, tuple) else ()
    return next((size for size in map(_length, parts) if size), 0)


def rows_of(batch: Batch, rows: Sequence[int], *, kept: Callable[[object], bool] = lambda name: False) -> Batch:
    """The samples `rows` of a batch; entries of dicts whose name is `kept`, and what is not of B samples, stay."""
    size, chosen = batch_size(batch), list(rows)

    def taken(nest: Any) -> Any:
        if isinstance(nest, Tensor):
            return nest[chosen] if nest.ndim and len(nest) == size else nest
        if isinstance(nest, list):
            return [nest[row] for row in chosen] if len(nest) == size else [taken(part) for part in nest]
        if isinstance(nest, Mapping):
            return {name: part if kept(name) else taken(part) for name, part in nest.items()}
        return tuple(map(taken, nest)) if isinstance(nest, tuple) else nest

    parts = taken(_parts(batch))
    return list(parts) if isinstance(batch, list) else parts


def first(batch: Batch, count: int) -> Batch:
    """The first `count` samples of a batch, all of them where there are no more."""
    return rows_of(batch, range(min(count, batch_size(batch))))


def arguments(inputs: Inputs | Sequence[Tensor]) -> tuple[Any, ...]:
    """What a network is called with: each of a tuple, or the tensor, or the dict of named ones, alone."""
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


def call(network: nn.Module, inputs: Any) -> Any:
    """A network's output; several inputs are a tuple, or a dict by name, and a list is one argument."""
    if isinstance(inputs, dict):
        return copy_and_run.call(network, (inputs,))
    return network(*inputs) if isinstance(inputs, tuple) else network(inputs)


def tensors(inputs: Any) -> list[Tensor]:
    """All tensors of a network's inputs, in order."""
    return [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]


def first_tensor(inputs: Any) -> Tensor:
    """The first tensor of an example, whose dimension 0 is the batch.

    Raises:
        DataError: it holds none, or one without a batch.
    """
    first = next(iter(tensors(inputs)), None)
    if first is None or not first.ndim:
        raise DataError(
            f"the example is {type(inputs).__name__} {shown(inputs)}; give the tensors that the network takes, with "
            f"a batch dimension in front, such as torch.zeros(1, 3, 32, 32)"
        )
    return first


def names_label(name: object) -> bool:
    """Whether an entry of a dict holds labels, and no input of a network, by the convention of Hugging Face."""
    return isinstance(name, str) and "label" in name


def mapped(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """The inputs with a function applied to each tensor."""
    return tree_map_only(Tensor, function, inputs)  # type: ignore[no-any-return]


def stable_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) that depends on `parts` alone: the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
