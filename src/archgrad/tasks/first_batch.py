"""What is verified of a network, a loss and metrics on the first samples, before anything long starts."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from archgrad.copy_and_run import evaluating
from archgrad.errors import ConfigError
from archgrad.tasks import batch_checks
from archgrad.tasks.metrics import Totals
from archgrad.tasks.task import Batch, batch_size, first, mapped, rows_of

Supervised = Any  # of supervised.py, which imports this file
_MORE = 32  # samples on which metrics are tried: two may be of one class


def check(task: Supervised, network: nn.Module) -> None:
    """Run the network, the loss and the metrics on a few training samples; errors are those of `Supervised.check`."""
    device, available = batch_checks.device_of(network), len(task._parts["train"].indices)
    samples = min(2, available)
    batch = task._fetch("train", 0, samples)
    batch_checks.check_weights(network)
    batch_checks.check_finite(batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch)
    batch_checks.check_views(batch, lambda: task._fetch("train", -samples, None))
    batch = mapped(lambda tensor: tensor.to(device), batch)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), evaluating(network):
        task._judge(network, batch, Totals({}, device), samples=samples)
        _check_pairing(task, network, batch)
        _check_metrics(task, network, samples=min(_MORE, available, max(samples, task._batch_size or 1)))
    if samples > 1:
        if task._batch_size == 1:  # where BatchNorm has nothing to average over
            samples, batch = 1, mapped(lambda tensor: tensor.to(device), task._fetch("train", 0, 1))
        with batch_checks.training(network), torch.enable_grad():
            with batch_checks.explained("the network runs in evaluation mode and fails in training mode", batch):
                count = min(samples, task._batch_size or samples)  # BatchNorm takes no batch of one sample
                loss, _ = task._computed(network, batch if count == samples else first(batch, count))
            batch_checks.check_loss(loss, network, samples=count)
            if batch_checks.has_zero_gradient(loss, network):
                _warn_of_zero_gradient(task, network, samples=min(_MORE, available))


def _warn_of_zero_gradient(task: Supervised, network: nn.Module, *, samples: int) -> None:
    """Two samples that are learned may have no gradient; more of them, at every weight, hardly."""
    device = batch_checks.device_of(network)
    batch: Any = mapped(lambda tensor: tensor.to(device), task._fetch("train", 0, samples))
    if batch_checks.has_zero_gradient(task._computed(network, batch)[0], network):
        warnings.warn(
            f"the gradient of the loss is exactly zero at every weight on {samples} training samples, so that "
            f"nothing would be learned; rounding, sign and comparisons, or a factor of 0, have no gradient",
            stacklevel=4,
        )


def _check_metrics(task: Supervised, network: nn.Module, *, samples: int) -> None:
    if not task._metrics:
        return
    device = batch_checks.device_of(network)
    batch: Any = mapped(lambda tensor: tensor.to(device), task._fetch("train", 0, samples))
    totals = Totals(task._metrics, device)
    task._judge(network, batch, totals, samples=samples)
    try:
        undefined = [name for name, figure in totals.figures(first=task.score.name).items() if math.isnan(figure)]
    except ConfigError:  # a few samples may be too few for it, such as those of one class
        task.evaluate(network)
        undefined = []
    if undefined and (undefined := [name for name, figure in task.evaluate(network).items() if math.isnan(figure)]):
        warnings.warn(
            f"of this network {', '.join(undefined)} is NaN on the validation part, on all of it or on some batches, "
            f"whose mean it is. If it always is, nothing can be chosen by it: return a number where there is nothing "
            f"to compare, or compute it over the whole part (archgrad.over_part)",
            stacklevel=4,
        )
    if task._undirected and _falls_with_the_loss(task, network, batch, samples=samples):
        name = task.score.name
        warnings.warn(
            f"score={name!r} counts as better where it is higher, but it falls as the loss falls; if less is better, "
            f"give score=archgrad.lower({name!r})",
            stacklevel=4,
        )


def _check_pairing(task: Supervised, network: nn.Module, batch: Batch) -> None:
    """Raises ConfigError where outputs [B, 1] and targets [B] are stretched to [B, B] by the loss."""
    if task._loss is None or batch_size(batch) < 2:
        return
    output, target = task._computed(network, batch)[1], batch[1]
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in (output, target)):
        return
    if output.shape == target.shape or output.squeeze().shape != target.squeeze().shape:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = task._loss(output, target).double().mean()
            rows = [(rows_of(output, [row]), rows_of(target, [row])) for row in range(2)]
            each = torch.stack([task._loss(*row).double().mean() for row in rows])
    except batch_checks.FAILURES:
        return  # a loss that compares samples, and takes no single one
    if not any(torch.isclose(whole, value, rtol=1e-4) for value in (each.mean(), each.sum())):
        raise ConfigError(
            f"the output is {batch_checks.described(output)}, the target {batch_checks.described(target)}, and the "
            f"loss compares each with each. Give both one shape: targets y[:, None], or an output without its last "
            f"dimension"
        )


def _falls_with_the_loss(task: Supervised, network: nn.Module, batch: Batch, *, samples: int) -> bool:
    """Whether the score falls where the outputs themselves descend the loss: a sign that lower is better."""
    metric = {task.score.name: task._metrics[task.score.name]}
    outputs = list[Any]()
    handle = network.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        task._computed(network, batch)
    finally:
        handle.remove()
    moving = [_with_tensors(output, lambda tensor: tensor.detach().clone().requires_grad_()) for output in outputs]
    leaves = [leaf for output in moving for leaf in _floating(output)]
    if not leaves:
        return False
    rates = [{"params": [leaf], "lr": 0.05 * float(leaf.detach().abs().mean()) + 1e-3} for leaf in leaves]
    optimizer = torch.optim.Adam(rates)

    def judged() -> tuple[float, float]:
        totals = Totals(metric, batch_checks.device_of(network))
        with _replayed(network, moving), torch.no_grad():
            task._judge(network, batch, totals, samples=samples)
        figures = totals.figures(first="loss")
        return figures["loss"], figures[task.score.name]

    try:
        before = judged()
        for _ in range(50):
            optimizer.zero_grad()
            with _replayed(network, moving), torch.enable_grad():
                task._computed(network, batch)[0].mean().backward()
            optimizer.step()
        after = judged()
    except batch_checks.FAILURES:
        return False  # of a network that computes its loss itself, say
    return after[0] < before[0] and after[1] < before[1]


@contextlib.contextmanager
def _replayed(network: nn.Module, outputs: list[Any]) -> Iterator[None]:
    """Inside, the network gives these outputs, one a call, and computes nothing."""
    own, following = vars(network).get("forward"), iter(outputs)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return next(following)

    network.forward = forward
    try:
        yield
    finally:
        if own is None:
            del network.forward
        else:
            network.forward = own


def _with_tensors(output: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """An output with a function applied to each floating-point tensor, in data classes too."""

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf) if leaf.is_floating_point() else leaf
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type | Mapping):
            fields = {
                field.name: _with_tensors(getattr(leaf, field.name), function) for field in dataclasses.fields(leaf)
            }
            return dataclasses.replace(leaf, **fields)
        return leaf

    return tree_map(changed, output)


def _floating(output: Any) -> list[Tensor]:
    found = list[Tensor]()
    _with_tensors(output, lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found
