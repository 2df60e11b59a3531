"""The one training step, which every loop takes: precision, finite checks, averaging, clipping, resource errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from archgrad.errors import ConfigError, DataError, ModelError
from archgrad.run.loop import watched
from archgrad.run.run import Run
from archgrad.tasks.batch_checks import described
from archgrad.tasks.task import Batch

# Whether an optimizer's losses use reentrant checkpointing, which allows no `torch.autograd.grad`. It is looked up
# once in a process, since following the graph takes a few per cent of a small network's step.
_REENTRANT: WeakKeyDictionary[Optimizer, bool] = WeakKeyDictionary()

Gradients = Sequence[Tensor | None]
# A loss [], or a loss and its gradient with respect to what the optimizer trains, in its order.
Computed = Tensor | tuple[Tensor, Gradients]


def take_step(
    optimizer: Optimizer,
    run: Run,
    *compute: Callable[[], Computed],
    name: str = "loss",
    observe: Callable[[Gradients], None] | None = None,
) -> Tensor:
    """One step of an optimizer on a loss, or on the mean of several (gradient accumulation).

    Each loss is computed under the run's precision. Its gradient is that of autograd, or what `compute` returns
    beside the loss. Gradients are averaged over `compute` and over processes, clipped at the `"clip"` of each
    parameter group (the largest norm of the group's gradient), and forgotten after the step.

    Args:
        optimizer: what it trains takes the step; everything else is left alone.
        run: gives precision and processes, and says where the step was when something fails.
        compute: from nothing to the loss []; called again only to find out where a NaN came from.
        name: of the loss, in error messages.
        observe: called with the gradients before they are clipped.

    Returns:
        The mean loss [], detached.

    Raises:
        NonFiniteError: the loss or a gradient is NaN or infinite; no step is taken.
        ResourceError: memory ran out, or a worker of a data loader died.
    """
    # Networks are not wrapped (as DistributedDataParallel does), so that any gradient can be taken of them.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    with watched(run):
        loss, gradients = _gradient(compute[0], optimizer, parameters, run, name)
        for another in compute[1:]:
            loss, gradients = _sum(loss, gradients, *_gradient(another, optimizer, parameters, run, name))
        if len(compute) > 1:
            loss = loss / len(compute)
            gradients = [None if gradient is None else gradient / len(compute) for gradient in gradients]
        gradients = run.mean(gradients)
        run.check_gradients(parameters, gradients)
        if observe:
            observe(gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            if "clip" in group:
                nn.utils.clip_grad_norm_(group["params"], group["clip"])
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None
    return loss


def _gradient(
    compute: Callable[[], Computed], optimizer: Optimizer, parameters: Sequence[nn.Parameter], run: Run, name: str
) -> tuple[Tensor, Gradients]:
    again = compute if run.precision == "32-true" else functools.partial(_under_precision, run, compute)
    computed = again()
    loss = computed[0] if isinstance(computed, tuple) else computed
    if not isinstance(computed, tuple):
        _require_gradient(loss, name)
    run.check_finite({name: loss}, again=again)
    if isinstance(computed, tuple):
        return loss.detach(), computed[1]
    reentrant = _REENTRANT.get(optimizer)
    if reentrant is None:
        reentrant = any(node.name() == "CheckpointFunctionBackward" for node in _graph(loss))
        _REENTRANT[optimizer] = reentrant
    if reentrant:
        return loss.detach(), _backward(loss, parameters)
    try:
        return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise ModelError(
            f"the {name} uses torch.utils.checkpoint with use_reentrant=True, which it did not in the first step. "
            f"Give use_reentrant=False"
        ) from error


def _require_gradient(loss: object, name: str) -> None:
    """Raise ConfigError for a loss that is no scalar, or that nothing can learn from."""
    if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
        raise ConfigError(
            f"the {name} is {described(loss)}; it must be a scalar tensor []. Take the mean over all dimensions"
        )
    if not loss.requires_grad:
        raise ConfigError(
            f"the {name} has no gradient: it depends on no weight that is trained, or goes through .detach(), "
            f".item(), argmax or torch.no_grad(). Compute it from the network's output with differentiable operations"
        )


def _graph(loss: Tensor) -> Iterator[Any]:
    """All nodes of the graph of a loss."""
    waiting, seen = [loss.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [before for before, _ in node.next_functions]


def _backward(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Gradients:
    """The gradients by `backward()`, which accumulates into all leaves; those of other leaves are removed again."""
    leaves = {node.variable for node in _graph(loss) if hasattr(node, "variable")}

    def collect(module: nn.Module, inputs: object) -> None:
        leaves.update(module.parameters(recurse=False))

    for leaf in (*leaves, *parameters):
        leaf.grad = None
    # What lies inside of a checkpoint is run, and enters a graph, during the backward pass alone.
    with nn.modules.module.register_module_forward_pre_hook(collect):
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in parameters]
    for leaf in (*leaves, *parameters):
        leaf.grad = None
    return gradients


def _sum(loss: Tensor, gradients: Gradients, more: Tensor, others: Gradients) -> tuple[Tensor, Gradients]:
    """The sum of losses and of gradients; None counts as zero where the other part has a gradient."""
    pairs = zip(gradients, others, strict=True)
    return loss + more, [a if b is None else b if a is None else a + b for a, b in pairs]


def _under_precision(run: Run, compute: Callable[[], Computed]) -> Computed:
    """What `compute` returns, computed under the run's precision."""
    with autocast(run):
        return compute()


def autocast(run: Run) -> AbstractContextManager[object]:
    """Where losses are computed: under the run's precision."""
    # Fabric takes seconds to import; plain float32 does not need it.
    return nullcontext() if run.precision == "32-true" else run.fabric.autocast()


def load_batch(stream: Callable[[int], Batch], number: int, run: Run) -> Batch:
    """Batch `number` of a task's stream on the run's device. Raises ResourceError where a data worker died."""
    with watched(run):
        batch = stream(number)
        if batch is None:
            raise DataError(f"the task's stream gives None for batch {number}. Return the batch from it.")
        return run.to_device(batch)
