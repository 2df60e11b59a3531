"""Convolutions that standardize their weight in each call, whose statistics are those of the open input channels.

    w' = s * gain_o * (w_oi - m_o) / sqrt(v_o + eps) * g_i,    m_o, v_o: mean and variance of w_oi, weighted by g_i

g is 1 for an open channel and 0 for a closed one, or between. Where all are 0 or 1 that is what the convolution
computes without the closed channels, so that closing a channel in front of it is removing it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from archgrad.copy_and_run import Intercepted, in_mode

_EXACT = 1e-4  # relative
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_EPSILONS = (1e-5, 1e-6, 1e-8, 0.0)  # beside those that a module keeps


@dataclass(frozen=True)
class StandardizedWeight:
    """How a convolution computes its weight from its parameter.

    Attributes:
        width: number of input channels.
        eps: added to the variance, or to the standard deviation.
        under_root: to which of both.
        unbiased: whether the variance is divided by one less than the number of weights.
        gain: name of a parameter with a factor for each output channel, "" for none.
        factor: of the whole weight.
        least: input channels that have to be left: one weight alone has no variance.
    """

    width: int
    eps: float
    under_root: bool
    unbiased: bool
    gain: str
    factor: float
    least: int = 1

    def weight(self, conv: nn.Module, is_open: Tensor) -> Tensor:
        """The weight with the statistics of the input channels that are open, [width]."""
        w = conv.weight
        assert isinstance(w, Tensor)
        share = is_open.to(w).view(1, -1, *[1] * (w.dim() - 2)).expand_as(w[:1])
        count = share.sum()
        axes = list(range(1, w.dim()))
        w = w - (share * w).sum(axes, keepdim=True) / count
        variance = (share * w.square()).sum(axes, keepdim=True) / (count - float(self.unbiased))
        w = w * share / ((variance + self.eps).sqrt() if self.under_root else variance.sqrt() + self.eps)
        return w * (getattr(conv, self.gain).reshape(-1, *[1] * len(axes)) if self.gain else 1.0) * self.factor

    def replacing(self, conv: nn.Module, is_open: Tensor) -> Intercepted:
        """Inside, `conv` computes with that weight."""
        weight = self.weight(conv, is_open)

        def with_weight(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if getattr(function, "__name__", "") in _CONVOLUTIONS:
                return function(args[0], weight, *args[2:], **{k: v for k, v in kwargs.items() if k != "weight"})
            return function(*args, **kwargs)

        return Intercepted(with_weight)


class OpenWeight(nn.Module):
    """Both hooks of a convolution, and its child: the gates that say which of its input channels are open."""

    def __init__(self, kind: StandardizedWeight, gates: list[nn.Module]) -> None:
        super().__init__()
        self.kind, self.gates = kind, nn.ModuleList(gates)
        self.running: list[Intercepted | contextlib.nullcontext[None]] = []

    def begin(self, conv: nn.Module, _args: tuple[Any, ...]) -> None:
        """In front of the convolution: from here on it computes with the weight of the open channels."""
        assert isinstance(conv.weight, Tensor)
        every = torch.ones(self.kind.width, dtype=conv.weight.dtype, device=conv.weight.device)
        is_open = every
        for gate in self.gates:
            is_open = gate(is_open)
        closes = is_open is not every and (is_open.requires_grad or bool((is_open != 1).any()))
        self.running.append(self.kind.replacing(conv, is_open) if closes else contextlib.nullcontext())
        self.running[-1].__enter__()

    def forward(self, _conv: nn.Module, _args: tuple[Any, ...], _output: object) -> None:
        """Behind it, whether it failed or not."""
        self.running.pop().__exit__(None, None, None)


class Mask(nn.Module):
    """A gate that stays as it is."""

    is_open: Tensor

    def __init__(self, is_open: Tensor) -> None:
        super().__init__()
        self.register_buffer("is_open", is_open)

    def forward(self, x: Tensor) -> Tensor:
        """x where it is open."""
        return x * self.is_open


def add_open_weight(conv: nn.Module, kind: StandardizedWeight, gate: nn.Module) -> OpenWeight:
    """Let a gate over the input channels count in the weight of a convolution, in place."""
    made = OpenWeight(kind, [gate])
    conv.register_forward_pre_hook(made.begin)
    conv.register_forward_hook(made, always_call=True, prepend=True)
    return made


def standardized_weight(module: nn.Module) -> StandardizedWeight | None:
    """How a convolution standardizes its weight, measured on noise; None if it does not."""
    if not isinstance(module, _ConvNd) or isinstance(module, _ConvTransposeNd):
        return None
    if type(module).forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward):
        return None
    gains = [n for n, p in module._parameters.items() if n not in ("weight", "bias") and p is not None]
    if len(gains) > 1 or any(getattr(module, n).numel() != module.out_channels for n in gains):
        return None
    weights = list(_weights(module, gains))
    if len(weights) != 2:
        return None
    width = module.weight.shape[1]
    every = torch.ones(width, device=module.weight.device)
    for kind in _kinds(module, width, gains[0] if gains else ""):
        ways = []
        for probe, used in weights:
            plain = kind.weight(probe, every).detach()
            factor = (used * plain).sum() / plain.square().sum()
            ways.append((float(factor), bool((used - factor * plain).abs().max() <= _EXACT * used.abs().max())))
        (first, fits), (second, fits_too) = ways
        if fits and fits_too and abs(first - second) <= _EXACT * abs(first):
            return dataclasses.replace(kind, factor=first, least=_least(module))
    return None


def _least(module: _ConvNd) -> int:
    """2 for a convolution that does not run with one input channel, or not to a finite end."""
    if module.groups > 1 or module.weight[0, 0].numel() > 1:
        return 1
    lone = in_mode(copy.deepcopy(module))
    lone.weight, lone.in_channels = nn.Parameter(module.weight.detach()[:, :1].clone()), 1
    x = torch.ones(2, 1, *[9] * (module.weight.dim() - 2)).to(module.weight)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a variance of one number
            return 1 if bool(lone(x).isfinite().all()) else 2
    except (RuntimeError, ValueError):
        return 2


def _kinds(module: nn.Module, width: int, gain: str) -> Iterator[StandardizedWeight]:
    kept = [v for v in vars(module).values() if isinstance(v, float) and 0.0 <= v < 0.1]
    for eps in dict.fromkeys([*kept, *_EPSILONS]):
        for unbiased in (False, True):
            for under_root in (True, False):
                yield StandardizedWeight(width, eps, under_root, unbiased, gain, 1.0)


def _weights(module: _ConvNd, gains: list[str]) -> Iterator[tuple[nn.Module, Tensor]]:
    """Copies with random weights, the second with ones that are as small as eps, and the weights that they use."""
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 1e-3):
        probe = in_mode(copy.deepcopy(module))
        for hooks in (probe._forward_hooks, probe._forward_pre_hooks):
            hooks.clear()
        used: list[Tensor] = []

        def noting(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], used: list[Tensor] = used) -> Any:
            if getattr(function, "__name__", "") in _CONVOLUTIONS:
                used.append(args[1] if len(args) > 1 else kwargs["weight"])
            return function(*args, **kwargs)

        with torch.no_grad():
            for name, parameter in probe.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(size * (noise + 0.5) if name == "weight" else noise.abs() + 0.5)
            x = torch.randn(2, module.in_channels, *[9] * (module.weight.dim() - 2), generator=generator)
            try:
                with Intercepted(noting):
                    probe(x.to(module.weight))
            except Exception:  # noqa: BLE001 - a user's convolution may raise anything, of inputs that it is not for
                return
        if len(used) != 1 or used[0].shape != module.weight.shape:
            return
        yield probe, used[0].detach()
