"""Try a removal out before promising it: closed channels and removed channels must compute the same."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from archgrad.choices.channels import Coupling, open_channels, remove_channels
from archgrad.spaces.slim.channel_graph import NETWORK_ERRORS

Groups = Mapping[str, Sequence[Coupling]]
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}


class Trial:
    """A scrambled double-precision copy of a network on which removals are tried.

    The copy's normalization layers get random statistics and its zero parameters random values, so that nothing
    is hidden by a fresh network's zeros and ones. Modules that drop at random are switched off.
    """

    def __init__(self, network: nn.Module, example: tuple[Tensor, ...]) -> None:
        self.dtype = torch.float64
        self.network = _scrambled(network)
        self.inputs = _twice(self.network, example, torch.float64)
        try:
            with torch.no_grad():
                self.network(*self.inputs)
        except NETWORK_ERRORS:  # it computes in float32 on its own account
            self.dtype = torch.float32
            self.network.float()
            self.inputs = _twice(self.network, example, torch.float32)

    def failure(self, groups: Groups, *, seed: int) -> str:
        """Why removing a random part of every group is not what closing it computes; "" where it is."""
        generator = torch.Generator().manual_seed(seed)
        sizes = {n: 1 + max(int(c.places.max()) for c in couplings) for n, couplings in groups.items()}
        kept: dict[str, list[int]] = {}
        for name, size in sizes.items():
            count = int(torch.randint(1, size, (), generator=generator))
            kept[name] = sorted(torch.randperm(size, generator=generator)[:count].tolist())
        closed = closed_copy(self.network, groups, kept)
        smaller = copy.deepcopy(self.network)
        try:
            remove_channels(smaller, groups, kept)
            for training in (False, True):
                reason = self._differ(closed, smaller, training=training)
                if reason:
                    return reason
        except NETWORK_ERRORS as error:
            return f"the network does not run without them ({type(error).__name__}: {_line(error)})"
        return ""

    def _differ(self, closed: nn.Module, smaller: nn.Module, *, training: bool) -> str:
        outputs = []
        for network in (closed, smaller):
            network.train(training)
            for module in network.modules():
                if "drop" in type(module).__name__.lower():
                    module.eval()
            try:
                with torch.no_grad():
                    outputs.append(tensors_of(network(*self.inputs)))
            except NETWORK_ERRORS:
                if training and network is closed:  # for instance BatchNorm on a single value
                    return ""
                raise
        if training:  # functional dropout and the like: two runs of one network differ already
            with torch.no_grad():
                again = tensors_of(closed(*self.inputs))
            if not all(torch.equal(a, b) for a, b in zip(outputs[0], again, strict=True)):
                return ""
        for a, b in zip(*outputs, strict=True):
            if a.shape != b.shape:
                return "its channels reach the network's output"
            if not torch.isfinite(a).all():
                continue
            if float((a - b).abs().max()) > TOLERANCE[self.dtype] * max(1.0, float(a.abs().max())):
                return "removing its channels is not the same as closing them: something mixes them"
        return ""


def closed_copy(network: nn.Module, groups: Groups, kept: Mapping[str, Iterable[int]]) -> nn.Module:
    """A copy of the network in which every layer reads zeros from the closed channels."""
    closed = copy.deepcopy(network)
    with torch.no_grad():
        for name, couplings in groups.items():
            for member in couplings:
                if reads(closed, member):
                    ((attribute, dim),) = member.tensors
                    weight = getattr(closed.get_submodule(member.module), attribute)
                    shut = (~open_channels(member, kept[name])).nonzero().flatten()
                    weight.index_fill_(dim, shut.to(weight.device), 0.0)
    return closed


def reads(network: nn.Module, member: Coupling) -> bool:
    """Whether this side is the input of a layer whose weight has a column for each channel."""
    return (
        member.side == "in"
        and len(member.tensors) == 1
        and getattr(network.get_submodule(member.module), "groups", 1) == 1
    )


def tensors_of(outputs: object) -> list[Tensor]:
    """All floating tensors in a network's output, in order."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, (list, tuple)):
        return [t for part in outputs for t in tensors_of(part)]
    return []


def _scrambled(network: nn.Module) -> nn.Module:
    scrambled = copy.deepcopy(network).double()
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)

    with torch.no_grad():
        for parameter in scrambled.parameters():
            if parameter.is_floating_point() and parameter.numel() and float(parameter.abs().max()) < 1e-3:
                parameter.copy_(0.3 * noise(parameter))
        for module in scrambled.modules():
            mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
            if isinstance(mean, Tensor) and isinstance(variance, Tensor):
                mean.copy_(0.1 * noise(mean))
                variance.copy_(1.0 + 0.5 * torch.tanh(noise(variance)))
            if "norm" in type(module).__name__.lower():
                for parameter in module.parameters(recurse=False):
                    parameter.add_(0.2 * noise(parameter))
    return scrambled


def _twice(network: nn.Module, example: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Random inputs like the example, with a batch of two where the network takes that."""
    generator = torch.Generator().manual_seed(1)

    def like(x: Tensor, times: int) -> Tensor:
        if not x.is_floating_point():
            return torch.cat([x] * times)
        shape = (x.shape[0] * times, *x.shape[1:])
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(x.device, dtype)

    if any(x.dim() == 0 for x in example):
        return tuple(like(x, 1) if x.dim() else x for x in example)
    if all(x.shape[0] >= 2 and x.shape[0] == example[0].shape[0] for x in example):
        example = tuple(x[:1] for x in example)
    single, double = tuple(like(x, 1) for x in example), tuple(like(x, 2) for x in example)
    try:
        with torch.no_grad():
            network(*double)
    except NETWORK_ERRORS:
        return single
    return double


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
