"""From a space and one of its architectures to a plain network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from archgrad.argument_types import checked
from archgrad.choices import fewer_heads
from archgrad.choices.access import choices, decisions, matched
from archgrad.choices.architecture import Architecture
from archgrad.choices.channels import remove_branches, remove_channels, require_whole
from archgrad.choices.gate import Gate
from archgrad.choices.modules import InputChoice
from archgrad.choices.spectral_norms import restore_spectral_norms, take_off_spectral_norms
from archgrad.choices.weight_norms import restore_weight_norms, without_weight_norms
from archgrad.copy_and_run import copied
from archgrad.errors import ConfigError
from archgrad.extract.plain_network import picked, plain, unparametrize


@runtime_checkable
class Resizable(Protocol):
    """A space that can return a fresh space of the same choices, to be trained from scratch.

    `resized` takes by name those of cells, channels, auxiliary and drop_path that its networks have.
    """

    @property
    def resized(self) -> Callable[..., nn.Module]:
        """From options to a fresh space of the same choices."""
        ...


def resized(space: nn.Module, options: Mapping[str, int | float]) -> nn.Module:
    """`space.resized(...)` with these options, which are verified first.

    Raises:
        ConfigError: the space has one size only, or no such option.
    """
    allowed = list(inspect.signature(space.resized).parameters) if isinstance(space, Resizable) else []
    if refused := [name for name in options if name not in allowed]:
        given = ", ".join(f"{name}={options[name]}" for name in refused)
        raise ConfigError(
            f"{type(space).__name__} cannot be built with {given}; "
            + (f"its networks can be resized by {' and '.join(allowed)}" if allowed else "it has one size only")
            + ". Leave the others out, or give your space a method `resized` that takes them"
        )
    assert isinstance(space, Resizable)
    fresh = space.resized(**options)
    searched = decisions(space)
    for name, namesakes in choices(fresh).items():
        for choice in namesakes:
            if isinstance(choice, InputChoice) and isinstance(before := searched[name], InputChoice):
                choice.fewest, choice.keep = before.fewest, before.keep
    return fresh


@checked
def build(
    space: nn.Module,
    architecture: Architecture,
    *,
    weights: Literal["inherit", "fresh"] = "inherit",
    cells: int | None = None,
    channels: int | None = None,
    auxiliary: bool = False,
    drop_path: float = 0.0,
) -> nn.Module:
    """The plain network of one architecture: closed channels, branches and candidates are gone.

    It holds no object of ours, and with inherited weights it computes what `hold(space, architecture)` computes.

    Args:
        space: any network with choices; it is not changed.
        architecture: a pick for each of its choices.
        weights: "inherit" the space's, or draw them "fresh" (`draw_anew`).
        cells, channels, auxiliary, drop_path: for spaces with a method `resized`, such as the ready spaces of cells:
            another number of cells or first channels, a head for auxiliary logits, a probability of dropping an
            operation in training. Weights are fresh then.

    Raises:
        ArchitectureError: the architecture is for another space.
        ConfigError: the space has no such size or option.

    Example:
        >>> import torch, archgrad as ag
        >>> space = ag.OpChoice([torch.nn.Linear(4, 4), torch.nn.ReLU()], name="layer")
        >>> ag.build(space, ag.Architecture({"layer": 0}))
        Linear(in_features=4, out_features=4, bias=True)
    """
    sizes = {"cells": cells, "channels": channels, "auxiliary": auxiliary or None, "drop_path": drop_path or None}
    if options := {name: value for name, value in sizes.items() if value is not None}:
        space, weights = resized(space, options), "fresh"
    gated = any(isinstance(namesakes[0], Gate) for namesakes in matched(space, architecture).values())
    # Channels are cut where they stand in the space; without gates most of a supernet need not be copied.
    network = copied(space) if gated else picked(space, architecture)
    require_whole(network)
    gates = {name: choice for name, choice in decisions(network).items() if isinstance(choice, Gate)}
    kept = {n: gate.picked(architecture[n]).nonzero().flatten().tolist() for n, gate in gates.items()}
    take_off_spectral_norms(network)
    unparametrize(network)
    remove_channels(network, {name: gate.couplings for name, gate in gates.items()}, kept)
    remove_branches(network, [gate.vanishing for name, gate in gates.items() if gate.vanishing and not kept[name]])
    network = plain(network, architecture)
    if weights == "fresh":
        draw_anew(network)
    restore_weight_norms(network)
    restore_spectral_norms(network, fresh=weights == "fresh")
    return network


def write_back(space: nn.Module, architecture: Architecture, network: nn.Module) -> None:
    """Write the weights of a network that `build` made, trained since, to where in the space they came from.

    A weight w of the network is f v, with v a weight of the space and f a factor, mostly 1 (queries of fewer channels
    are scaled). Built alike, a copy of the space whose weights are 1 tells each f, and one whose weights are the
    numbers of their places tells f times the place; v becomes w / f. What weight_norm computes counts as a weight.
    What `build` computes otherwise stays in the space as it is, and so do buffers that no file holds.

    Args:
        space: unchanged since the network was built; it gets the weights.
        architecture: of the network.
        network: as `build(space, architecture)` returned it, with other weights.
    """
    copy, own = copied(space).cpu().double(), _weights(space)
    copies, sizes = _weights(copy), [tensor.numel() for tensor in own.values()]

    def built(numbers: Tensor) -> dict[str, Tensor]:
        for name, part in zip(own, torch.split(numbers, sizes), strict=True):
            copies[name].copy_(part.view_as(copies[name]))
        made = without_weight_norms(build(copy, architecture))
        return {name: tensor.flatten() for name, tensor in _weights(made).items()}

    with torch.no_grad():
        values = torch.cat([tensor.flatten().cpu().double() for tensor in own.values()])
        numbers = torch.arange(1, 1 + len(values), dtype=torch.float64)
        factors, places, before = (built(one) for one in (torch.ones_like(values), numbers, values))
        after = _weights(without_weight_norms(network))
        for name, factor in factors.items():
            if name not in after or after[name].numel() != factor.numel():
                continue
            place = (places[name] / factor).nan_to_num(0).round().long().clamp(1, len(values)) - 1
            known = (numbers[place] * factor).isclose(places[name], rtol=1e-12, atol=0.0) & (factor != 0)
            known &= (values[place] * factor).isclose(before[name], rtol=1e-9)
            values[place[known]] = (after[name].flatten().cpu().double() / factor)[known]
        for tensor, part in zip(own.values(), torch.split(values, sizes), strict=True):
            tensor.copy_(part.view_as(tensor))


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """Its parameters and buffers of real numbers by name, each once, without buffers that no file holds."""
    passing = {
        f"{path}.{name}".lstrip(".")
        for path, module in network.named_modules()
        for name in getattr(module, "_non_persistent_buffers_set", ())
    }
    buffers = ((name, tensor) for name, tensor in network.named_buffers() if name not in passing)
    return {
        name: tensor for name, tensor in (*network.named_parameters(), *buffers)
        if tensor.is_floating_point() and (tensor.numel() < 2 or 0 not in tensor.stride())  # an expanded one repeats
    }  # fmt: skip


def draw_anew(network: nn.Module) -> None:
    """Draw all weights anew (every module's `reset_parameters`), except in modules whose own are all frozen.

    torch's attention modules, whole or with heads removed, and `nn.Transformer` are drawn as torch does.
    """
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        frozen = own and not any(p.requires_grad for p in own)
        if callable(reset := getattr(module, "reset_parameters", None)) and not frozen:
            reset()
    for module in reversed([*network.modules()]):  # a whole draws over its parts
        projections = {name: p for name, p in module.named_parameters(recurse=False) if name in fewer_heads.WEIGHTS}
        if projections and all(p.requires_grad for p in projections.values()):
            fewer_heads.draw_anew(module, projections)
        elif type(module) is nn.Transformer and all(p.requires_grad for p in module.parameters()):
            module._reset_parameters()
