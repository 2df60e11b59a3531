"""Whether weights that a user gives know anything of the data, and what speaks for it where they do not."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean
from typing import Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from archgrad.copy_and_run import evaluating
from archgrad.errors import ArchgradError, ModelError, one_line
from archgrad.tasks import batch_checks
from archgrad.tasks.classification import Classification
from archgrad.tasks.distilled import Distilled
from archgrad.tasks.metrics import Score
from archgrad.tasks.normalization import IMAGENET, channel_statistics
from archgrad.tasks.sources import MemorySource, seeded
from archgrad.tasks.supervised import Supervised
from archgrad.tasks.task import Task, batch_size, evaluate, mapped, names_label, rows_of, tensors

_FEW = 1024  # training samples that the best constant output is fitted to
_INFORMED = 0.25  # of the way from chance to a perfect score
_EXCHANGED = 0.1  # of the loss with the inputs of other samples, which weights that know something stay below


class Constant(nn.Module):
    """A network that gives the same output for every sample: what can be known without looking.

    Args:
        output: [1, ...].
    """

    output: Tensor

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.register_buffer("output", output)

    def forward(self, *inputs: Any) -> Tensor:
        """The output, once for each sample, [B, ...]."""
        return self.output.expand(batch_size(inputs), *self.output.shape[1:])


class Verdict(NamedTuple):
    """Why weights are doubted, or why they cannot be judged; both are empty where the weights know something."""

    doubts: str = ""
    unjudged: str = ""


def judged(task: Task, network: nn.Module, figures: Mapping[str, float]) -> Verdict:
    """Whether these weights may be what the user means by a trained network.

    Where the task has a loss of (output, target), weights are doubted if their loss on the validation part is no
    lower than that of the best output that is the same for every sample, and their score closes less than a quarter
    of the way from that output's to a perfect one (of a classifier: the mean over classes of the accuracy, so that
    unbalanced classes do not count).

    Any other task is asked what it loses where the network is given the inputs of another sample. Weights are doubted
    if the loss of training batches is then nearly what it was: at most 10 % more, or within twice its standard error.

    Args:
        task: what the network is judged on.
        network: with the weights, on its device.
        figures: of the network on the validation part.
    """
    while isinstance(task, Distilled):
        task = task.task
    if isinstance(task, Supervised) and task._batch_loss is None:
        constant = best_constant(task, network)
        if constant is not None:
            return Verdict(_beside_constant(task, network, figures, evaluate(task, constant)))
    return _beside_exchanged(task, network)


def _beside_constant(
    task: Supervised, network: nn.Module, figures: Mapping[str, float], chance: Mapping[str, float]
) -> str:
    if not figures["loss"] >= chance["loss"] > -math.inf:
        return ""
    name = task.score.name
    reasons = [_normalization(task, network)]
    if isinstance(task, Classification):
        informed, order = _classes(task, network)
        reasons.append(order)
    else:
        informed = _progress(figures[name], chance[name], higher=task.higher_is_better)
        reasons.append("the scale of the targets, which must be that of training")
    if informed >= _INFORMED:
        return ""
    reasons.append(f"the size of the inputs, which is {task.splits['input_shape']} here")
    return (
        f"{name} is {figures[name]:.4g} on the validation part, and the best output that is the same for every "
        f"sample scores {chance[name]:.4g}: these weights seem to know nothing of this data. Likely reasons: "
        f"{'; '.join(reasons)}"
    )


def _beside_exchanged(task: Task, network: nn.Module) -> Verdict:
    try:
        own, others, outside = losses_when_exchanged(task, network)
    except batch_checks.FAILURES as error:
        return Verdict(unjudged=str(error) if isinstance(error, ArchgradError) else one_line(error))
    gains = torch.tensor(others) - torch.tensor(own)
    loss, chance, noise = fmean(own), fmean(others), float(gains.std()) / len(own) ** 0.5 if len(own) > 1 else 0.0
    least = _EXCHANGED * chance if min(loss, chance) >= 0 else 0.0  # what is below 0 has no scale
    if loss == chance == 0:
        return Verdict(unjudged="its loss is 0 in evaluation mode, whatever the network is given")
    if chance - loss > max(least, 2 * noise):
        return Verdict()
    if not outside:
        return Verdict(unjudged="everything in its batches goes through the network, targets included")
    reasons = ["the scale and the form of the inputs", "the order of their channels", "what the outputs mean"]
    if isinstance(task, Supervised):
        reasons[0] = _normalization(task, network)
    return Verdict(
        f"the loss is {loss:.4g} on training batches, and {chance:.4g} where the network is given the inputs of "
        f"another sample: these weights seem to know nothing of this data. Likely reasons: {'; '.join(reasons)}"
    )


def losses_when_exchanged(task: Task, network: nn.Module) -> tuple[list[float], list[float], bool]:
    """The loss of some training batches, that with the inputs of other samples, and whether anything stays in place.

    What stays in place is targets, and labels among the network's keywords. Draws are the same in both.

    Raises:
        ModelError: the loss does not call the network as a whole, or on one sample at a time.
    """
    own, others, outside, seen = list[float](), list[float](), False, 0
    stream, device = task.stream(seed=0), batch_checks.device_of(network)
    for step in range(task.steps_per_epoch):
        batch: Any = mapped(lambda tensor: tensor.to(device), stream(step))
        with evaluating(network), seeded(step):
            own.append(float(task.loss(network, batch).mean()))
        with evaluating(network), seeded(step), _exchanged(network, step) as given:
            others.append(float(task.loss(network, batch).mean()))
        if not given:
            raise ModelError("its loss does not call the network itself, with tensors of several samples")
        known = {id(tensor) for tensor in given}
        outside |= any(id(tensor) not in known for tensor in tensors(batch))
        if (seen := seen + batch_size(batch)) >= _FEW:
            break
    return own, others, outside


@contextmanager
def _exchanged(network: nn.Module, seed: int) -> Iterator[list[Tensor]]:
    """Inside, the network runs on the inputs in another order, none in its place; a list of the tensors reordered."""
    given, generator = list[Tensor](), torch.Generator().manual_seed(seed)

    def exchange(_: nn.Module, args: Any, kwargs: Any) -> Any:
        inputs = (tuple(args), {name: value for name, value in kwargs.items() if not names_label(name)})
        if not tensors(inputs) or (size := batch_size(inputs)) < 2:
            return None
        order = torch.randperm(size, generator=generator)
        source = torch.empty_like(order).scatter(0, order, order.roll(1))  # one cycle through all
        args, named = others = rows_of(inputs, source.tolist(), kept=names_label)
        given.extend(own for own, other in zip(tensors(inputs), tensors(others), strict=True) if own is not other)
        return args, {**kwargs, **named}

    handle = network.register_forward_pre_hook(exchange, with_kwargs=True)
    try:
        yield given
    finally:
        handle.remove()


def best_constant(task: Supervised, network: nn.Module) -> Constant | None:
    """The output [1, ...] of least loss on some training samples; None where outputs are no tensors [B, ...]."""
    device, outputs, targets = batch_checks.device_of(network), list[Tensor](), list[Any]()
    stream, seen = task.stream(seed=0), 0
    with evaluating(network):
        for step in range(task.steps_per_epoch):
            batch: Any = mapped(lambda tensor: tensor.to(device), stream(step))
            if not outputs or not isinstance(task, Classification):  # which needs its labels alone
                output = task._computed(network, batch)[1]
                if not isinstance(output, Tensor) or not output.ndim or not output.is_floating_point():
                    return None
                outputs.append(output.float())
            targets.append(batch[1])
            seen += len(outputs[-1])
            if seen >= _FEW:
                break
    if isinstance(task, Classification):
        labels = torch.cat(targets)
        counts = torch.bincount(labels[(labels >= 0) & (labels < task.classes)], minlength=task.classes)
        return Constant((counts + 1.0).log()[None])  # one more of each, as not all may have been seen
    try:
        return _fitted(task, outputs, targets)
    except batch_checks.FAILURES:
        return None  # a loss that does not take such outputs


def _fitted(task: Supervised, outputs: list[Tensor], targets: list[Any]) -> Constant | None:
    assert task._loss is not None
    loss_of, output = task._loss, torch.cat(outputs).mean(0, keepdim=True).requires_grad_()
    optimizer = torch.optim.LBFGS([output], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        parts = [
            loss_of(output.expand_as(each), target).mean() for each, target in zip(outputs, targets, strict=True)
        ]
        total = torch.stack(parts).mean()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return Constant(output.detach()) if bool(output.isfinite().all()) else None


def _progress(score: float, chance: float, *, higher: bool) -> float:
    """The fraction of the way from chance to a perfect score, where that is known; else 1 for better, and 0."""
    perfect = (1.0 if 0 <= min(score, chance) <= max(score, chance) <= 1 else None) if higher else 0.0
    if perfect is None or (not higher and chance <= 0) or perfect == chance:
        return float(score > chance if higher else score < chance)
    return (score - chance) / (perfect - chance)


class _Confusion:
    """How often each class [row] was taken for each [column], over a whole part: a metric that keeps its counts."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes)

    def __deepcopy__(self, memo: object) -> _Confusion:
        return self  # what is evaluated is a copy, and its counts are wanted

    def reset(self) -> None:
        self.counts.zero_()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.counts += (
            functional.one_hot(labels, len(self.counts)).float().T.cpu()
            @ functional.one_hot(logits.argmax(1), len(self.counts)).float().cpu()
        )

    def compute(self) -> float:
        rows = self.counts[self.counts.sum(1) > 0]
        accuracy = self.counts.diagonal()[self.counts.sum(1) > 0] / rows.sum(1)
        return float(accuracy.mean())


def _classes(task: Classification, network: nn.Module) -> tuple[float, str]:
    """How informed a classifier is, in [0, 1], and what is to be said of the order of its classes."""
    confusion = _Confusion(task.classes)
    asked = copy.copy(task)
    asked._metrics, asked.score = {"balanced": confusion}, Score("balanced")
    balanced = evaluate(asked, network)["balanced"]
    present = int((confusion.counts.sum(1) > 0).sum())
    informed = (balanced - 1 / present) / (1 - 1 / present) if present > 1 else 1.0
    rows, columns = linear_sum_assignment(-confusion.counts.numpy())
    best = float(confusion.counts[rows, columns].sum() / confusion.counts.sum())
    names = task.splits["class_names"]
    first = ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
    order = f"the order of the classes, which is {first} here"
    if best > 0.5 and best > 2 * balanced:
        listed = ", ".join(f"{names[r]}: output {c}" for r, c in list(zip(rows, columns, strict=True))[:5])
        order += f" (with its outputs in another order the network scores an accuracy of {best:.3g}: {listed})"
    return informed, order


def _normalization(task: Supervised, network: nn.Module) -> str:
    constants = task.splits["normalization"]
    if constants is None:
        return "normalization, which is up to your data set here"
    scores = scores_by_normalization(task, network)
    listed = ", ".join(f"{name} {score:.3g}" for name, score in scores.items())
    mean, std = ([round(number, 3) for number in constants[key]] for key in ("mean", "std"))
    return (
        f"normalization, which is by mean {mean} and deviation {std} here (by others {task.score.name} is: {listed})"
    )


def scores_by_normalization(task: object, network: nn.Module) -> dict[str, float]:
    """What a network scores on the validation part under each usual normalization of images in memory.

    Returns:
        By the value of `normalize`: "data" for the training part's own, "imagenet", "none", "0.5/0.5"; empty where
        the data are not normalized by the task.
    """
    while isinstance(task, Distilled):
        task = task.task
    if not isinstance(task, Supervised) or task.splits["normalization"] is None:
        return {}
    source = task._parts["train"].source
    assert isinstance(source, MemorySource)
    own = channel_statistics(source.samples.x, task._parts["train"].indices)
    channels = len(own[0])
    usual: dict[str, Any] = {"data": own, "none": ([0.0] * channels, [1.0] * channels)}
    usual |= {"imagenet": IMAGENET} if channels == 3 else {}
    usual["0.5/0.5"] = ([0.5] * channels, [0.5] * channels)
    scores = {}
    with _constants_kept(task):
        for name, (mean, std) in usual.items():
            for part in task._parts.values():
                if isinstance(part.source, MemorySource):
                    part.source.normalize(mean, std)
            try:
                scores[name] = next(iter(evaluate(task, network).values()))
            except ArchgradError:
                continue  # a metric that fails on such outputs
    return scores


@contextmanager
def _constants_kept(task: Supervised) -> Iterator[None]:
    sources = [part.source for part in task._parts.values() if isinstance(part.source, MemorySource)]
    constants = [(source.mean, source.std) for source in sources]
    try:
        yield
    finally:
        for source, (mean, std) in zip(sources, constants, strict=True):
            source.mean, source.std = mean, std
