"""Running a user's network and loss on a batch: checks, and errors that say what was given."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.copy_and_run import evaluating, modes_kept
from archgrad.errors import ArchgradError, ConfigError, DataError, ModelError, annotate, full_text
from archgrad.tasks.sources import seeded
from archgrad.tasks.task import Batch, PerSample, Task, batch_size, first, mapped, tensors

# What code of a user's raises where it does not fit the data.
FAILURES = (
    RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError, ArchgradError,
)  # fmt: skip

KEPT_TYPES = "Arrays become float32 or int64; a torch.utils.data.TensorDataset or a Dataset of yours keeps its types"


def device_of(network: nn.Module) -> torch.device:
    """Where a network's first parameter or buffer lies; the CPU where it has none."""
    tensor = next(itertools.chain(network.parameters(), network.buffers()), None)
    return tensor.device if tensor is not None else torch.device("cpu")


@contextlib.contextmanager
def training(network: nn.Module) -> Iterator[None]:
    """The network in training mode; modes, buffers and the random states are restored."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    device = device_of(network)
    try:
        with modes_kept(network), seeded(0), torch.random.fork_rng([device] if device.type == "cuda" else []):
            network.train()
            yield
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])


def is_of_types(error: Exception) -> bool:
    """Whether torch was given numbers of two types, such as float32 beside weights in float64."""
    return re.search("same dtype|input dtype|type .*should be the same|scalar type", str(error)) is not None


@contextlib.contextmanager
def explained(what: str, batch: Any) -> Iterator[None]:
    """Errors of a user's code as ModelError, with the batch that it was given."""
    try:
        yield
    except (ArchgradError, torch.OutOfMemoryError):
        raise
    except FAILURES as error:
        shapes = ", ".join(f"{list(tensor.shape)} {tensor.dtype}" for tensor in tensors(batch))
        advice = "Change the network or the data"
        if "'indices'" in str(error):
            advice = "Arrays become float32: give ids by name, {'ids': ids}, or in a torch.utils.data.TensorDataset"
        elif is_of_types(error):
            advice = KEPT_TYPES
        elif "does not require grad" in str(error):
            advice = "Networks are scored without gradients: take those of the loss under torch.enable_grad()"
        elif "3D" in str(error) and any(tensor.dim() == 4 and tensor.shape[1] == 1 for tensor in tensors(batch)):
            advice = "Arrays [N, H, W] are read as grey images: give series in a torch.utils.data.TensorDataset"
        raise ModelError(f"{what} on a batch of shape {shapes}: {full_text(error)}. {advice}") from error
    except Exception as error:  # a user's network or loss may raise anything
        annotate(error, "It was raised while archgrad tried the network and the loss on a batch.")
        raise


def described(value: Any) -> str:
    """A value in a few words for a message: its type, and shapes of the tensors in it."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        entries = (f"{name}: {described(part)}" for name, part in itertools.islice(value.items(), 5))
        return f"a dict of {', '.join(entries)}"
    if isinstance(value, tuple | list):
        inside = ", ".join(described(part) for part in value[:3])
        return f"a {type(value).__name__} of {len(value)}{f' ({inside})' if inside else ''}"
    return f"{value!r}" if isinstance(value, int | float | None) else f"a {type(value).__name__}"


def check_loss(loss: object, network: nn.Module, *, samples: int) -> None:
    """The loss is a number, or one for each sample, and its gradient reaches the network. Raises ConfigError."""
    if not isinstance(loss, Tensor) or not loss.is_floating_point() or tuple(loss.shape) not in ((), (samples,)):
        raise ConfigError(
            f"the loss is {described(loss)} on a batch of {samples} samples; it must be a scalar tensor [], or one "
            f"number for each sample [{samples}]. Take the mean over the other dimensions"
        )
    parameters = {parameter for parameter in network.parameters() if parameter.requires_grad}
    if not parameters:
        return
    if not loss.requires_grad:
        raise ConfigError(
            "the loss has no gradient: it depends on no weight of the network, or goes through .detach(), .item(), "
            "argmax or torch.no_grad(). Compute it from the network's output with differentiable operations"
        )
    if not _reaches(loss, parameters):
        raise ConfigError(
            "the loss depends on none of the network's weights; compute it from the output of the network it is given"
        )


def has_zero_gradient(loss: Tensor, network: nn.Module) -> bool:
    """Whether a loss, [] or [B], has a gradient of exactly zero at every weight; False where it cannot be taken."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters or not loss.requires_grad:
        return False
    try:
        gradients = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
    except RuntimeError:  # such as that of reentrant checkpointing
        return False
    return not any(gradient is not None and bool(gradient.count_nonzero()) for gradient in gradients)


def check_losses(task: Task, network: nn.Module) -> None:
    """Raises ModelError where `losses` of a `PerSample` task gives no loss for each of two training samples."""
    assert isinstance(task, PerSample)
    device = device_of(network)
    batch = mapped(lambda tensor: tensor.to(device), first(task.stream(seed=0)(0), 2))
    with seeded(0), evaluating(network):
        losses = task.losses(network, batch)
    if not isinstance(losses, Tensor) or tuple(losses.shape) != (batch_size(batch),):
        raise ModelError(
            f"losses of {type(task).__name__} gives {described(losses)} on {batch_size(batch)} samples; it must give "
            f"the loss of each, [{batch_size(batch)}]"
        )


def _reaches(loss: Tensor, parameters: set[nn.Parameter]) -> bool:
    """Whether the graph of a loss leads to one of these; so it is taken to where it cannot be followed."""
    pending, seen = [loss.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        # Reentrant checkpointing hides the graph of what it runs.
        if getattr(node, "variable", None) in parameters or "CheckpointFunction" in node.name():
            return True
        pending += [following for following, _ in node.next_functions]
    return False


def nonfinite_tensors(network: nn.Module) -> list[str]:
    """Names of weights and statistics that hold NaN or infinite numbers, or a variance below 0."""
    whole = {n: w for n, w in network.named_parameters() if not nn.parameter.is_lazy(w)}
    weights = [name for name, weight in whole.items() if not bool(weight.detach().isfinite().all())]
    for name, buffer in network.named_buffers():
        # A mask may hold infinite numbers.
        variance = name.rpartition(".")[2] == "running_var"
        lazy = nn.parameter.is_lazy(buffer)
        if (
            not lazy
            and buffer.is_floating_point()
            and bool(buffer.isnan().any() or (variance and (buffer < 0).any()))
        ):
            weights.append(name)
    return weights


def check_weights(network: nn.Module) -> None:
    """Raises ModelError where weights or statistics of BatchNorm are no numbers, so that nothing can come of them."""
    if wrong := nonfinite_tensors(network):
        raise ModelError(
            f"the network holds NaN or infinite weights, or a negative variance, in {len(wrong)} of its tensors "
            f"({', '.join(wrong[:5])}). Load weights that are whole, or train it anew"
        )


def nonfinite_rows(nest: Any, count: int) -> list[int]:
    """Which of `count` samples have a NaN or infinite number in a nest of tensors [count, ...].

    A tensor of another form, such as a mean loss, says no more than that it is one of them: it counts for all where
    no sample is known by itself.
    """
    wrong, shared = torch.zeros(count, dtype=torch.bool), False
    for tensor in tensors(nest):
        if tensor.is_floating_point() and tensor.numel():
            finite = tensor.detach().isfinite().cpu()
            if tensor.ndim and len(tensor) == count:
                wrong |= ~finite.reshape(count, -1).all(1)
            else:
                shared |= not bool(finite.all())
    return list(range(count)) if shared and not bool(wrong.any()) else [int(row) for row in wrong.nonzero()]


def check_finite(batch: Batch) -> None:
    """Raises DataError where the first samples hold NaN or infinite numbers."""
    for tensor in tensors(batch):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError("NaN or infinite numbers in the first training samples; repair them")


def check_views(first: Batch, other: Any) -> None:
    """Raises DataError where fetching another batch, by calling `other`, changes the first."""
    before = [tensor.clone() for tensor in tensors(first)]
    other()
    if not all(torch.equal(old, tensor) for old, tensor in zip(before, tensors(first), strict=True)):
        raise DataError(
            "the collate function returns views of one buffer: a batch changes when the next one is fetched. Return "
            "new tensors, for instance buffer.clone()"
        )
