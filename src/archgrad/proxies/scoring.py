"""What every proxy requires of its network and its batch, and how it runs the network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from archgrad.choices import access
from archgrad.errors import ArchgradError, ConfigError, ModelError

Batch = Tensor | tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
# Where a synaptic flow overflows float64, inputs and output gradients are scaled: it is linear in the inputs.
SCALES = (1.0, 1e-150, 1e-300)


def inputs_of(batch: Batch) -> Tensor:
    """The inputs [B, ...] of a batch that may have labels beside them.

    Raises:
        ConfigError: no tensor of floating-point numbers, or an empty one.
    """
    x = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
    if not isinstance(x, Tensor):
        kind = f"{len(batch)} entries" if isinstance(batch, tuple | list) else type(batch).__name__
        raise ConfigError(f"a batch of {kind}: give inputs [B, C, H, W], or (inputs, labels)")
    if x.dim() < 2 or not x.numel() or not x.is_floating_point():
        raise ConfigError(
            f"inputs of shape {tuple(x.shape)} and type {x.dtype}: give floating-point [B, C, H, W], B of 1 or more"
        )
    return x


def examples(network: nn.Module, batch: Batch, *, least: int = 1) -> Tensor:
    """A copy of the inputs [B, ...] in the type and on the device of the network.

    Raises:
        ConfigError: no inputs, inputs without values, NaN or infinite ones, or fewer than `least` examples.
    """
    x = inputs_of(batch)
    if x.is_meta or not bool(torch.isfinite(x).all()):
        raise ConfigError("the inputs have no values, or NaN or infinite ones: give a batch of finite numbers")
    if len(x) < least:
        raise ConfigError(f"a batch of {len(x)} examples: this proxy compares examples, give {least} or more")
    like = theta(network)[0]
    return x.detach().to(like.device, like.dtype, copy=True)


def labelled(network: nn.Module, batch: Batch, *, least: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs as from `examples`, and labels on the network's device.

    Raises:
        ConfigError: as for `examples`; no labels, or not one for each example.
    """
    x = examples(network, batch, least=least)
    labels = batch[1] if isinstance(batch, tuple | list) else None
    if not isinstance(labels, Tensor) or labels.dim() < 1 or len(labels) != len(x):
        kind = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ConfigError(
            f"labels {kind} for {len(x)} inputs: this proxy needs a batch (inputs [B, ...], labels [B])"
        )
    return x, labels.detach().to(x.device, copy=True)


def scorable(network: nn.Module) -> None:
    """Refuse what is no network.

    Raises:
        ModelError: no `torch.nn.Module`.
    """
    if not isinstance(network, nn.Module):
        raise ModelError(f"a {type(network).__name__} cannot be scored: give a torch.nn.Module")


def theta(network: nn.Module) -> list[nn.Parameter]:
    """The weights that proxies score: parameters of two or more dimensions that are not architecture parameters.

    Raises:
        ModelError: there is none, or a weight or buffer is NaN, infinite, on the meta device, or of another type
            than float32 and float64.
    """
    scorable(network)
    weights = [p for p in access.weights(network) if p.dim() >= 2]
    name = type(network).__name__
    if not weights:
        raise ModelError(f"{name} has no weights of two or more dimensions: nothing in it can be scored")
    for path, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_meta:
            raise ModelError(
                f"{name}: {path!r} is on the meta device and has no values; use network.to_empty and load"
            )
        if not tensor.is_floating_point():
            continue
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ModelError(
                f"{name}: {path!r} is {tensor.dtype}; proxies need float32 or float64, call network.float()"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{name}: {path!r} has NaN or infinite values; initialize or load the network again")
    return weights


def run(network: nn.Module, x: Tensor) -> Tensor:
    """The network's output; the first of several.

    Raises:
        ModelError: the network fails on the inputs, or returns no tensor.
    """
    try:
        output = network(x)
    except ArchgradError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ModelError(f"{type(network).__name__} fails on inputs of shape {tuple(x.shape)}: {error}") from error
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise ModelError(f"{type(network).__name__} returns a {type(first).__name__}; a proxy needs a tensor")
    return first


@contextlib.contextmanager
def watched(modules: Iterable[nn.Module]) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """A list of the tensors that these modules output inside the block, in the order in which they run."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, _: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        seen.append((module, output))
        # The network goes on with a copy, so that a ReLU that works in place leaves this one alone.
        return output.clone()

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def loss_of(network: nn.Module, x: Tensor, labels: Tensor, *, loss: Loss, temperature: float = 1.0) -> Tensor:
    """The loss of output / temperature on a batch, a scalar.

    Raises:
        ModelError: as for `run`; the weights have no influence on the loss.
        ConfigError: the labels do not fit the outputs.
    """
    output = run(network, x)
    try:
        value = loss(output / temperature, labels)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConfigError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} do not fit outputs of shape "
            f"{tuple(output.shape)}: {error}; give class indices [B], or a loss that takes them"
        ) from error
    if not value.requires_grad:
        raise ModelError(f"the loss of {type(network).__name__} has no gradient with respect to its weights")
    return value


def gradients(
    value: Tensor, tensors: list[Tensor], *, create_graph: bool = False, retain_graph: bool = False
) -> list[Tensor]:
    """d value / d tensor for each, zeros where it has no influence."""
    # A network may run a part of itself without gradients, whose tensors torch would refuse.
    reached = [i for i, t in enumerate(tensors) if t.requires_grad] if value.requires_grad else []
    slope_of: dict[int, Tensor | None] = {}
    if reached:
        inputs, retain = [tensors[i] for i in reached], retain_graph or create_graph
        slopes = torch.autograd.grad(value, inputs, create_graph=create_graph, retain_graph=retain, allow_unused=True)
        slope_of = dict(zip(reached, slopes, strict=True))
    slopes_or_none = [slope_of.get(i) for i in range(len(tensors))]
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, slopes_or_none, strict=True)]


def unfrozen(network: nn.Module) -> list[Tensor]:
    """`theta` with gradients on; inside a `probe`, which puts the flags back."""
    return [p.requires_grad_(True) for p in theta(network)]


def noise(shape: torch.Size | tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, 1) drawn on the CPU, so the same on every device, as type and device of `like`."""
    return torch.randn(shape, generator=generator).to(like)
