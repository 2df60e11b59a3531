"""Norms over channels (LayerNorm, RMSNorm, GroupNorm of one group) whose statistics are those of the open channels.

    m = sum_c g_c x_c / sum_c g_c,   v = sum_c g_c (x_c - m)^2 / sum_c g_c,   y = (x - m) / sqrt(v + eps) * w + b

g is 1 for an open channel and 0 for a closed one, or between; an RMSNorm has m = 0. Where all g are 0 or 1 that is
what the norm computes without the closed channels, so that closing a channel behind it is removing it in front. Some
norms multiply by a number that they keep, as in `F.normalize(x, dim=-1) * self.scale`: they go on dividing by C.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from archgrad.choices.response_norms import ResponseNorm
from archgrad.choices.standardized_weights import Mask, OpenWeight, StandardizedWeight, add_open_weight
from archgrad.copy_and_run import in_mode

STATISTICS = "_archgrad_statistics"  # the child of a norm that computes its statistics over open channels
_BIASES = ("bias", "beta", "b", "b_2")  # tried as such first; a parameter may have any name
_EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-3, 1e-2, 1e-4, 1e-7, 1e-9, 1e-10, 1e-11)  # forward may have one as a number
_LEAST = 1e-12  # that of F.normalize
_TORCHS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # their eps is the one that they keep
_EXACT = 1e-4  # relative; a norm may compute in single precision whatever it is given


@dataclass(frozen=True)
class ChannelNorm:
    """What a norm over channels computes.

    Attributes:
        width: number of channels.
        axis: of the channels: -1 or 1.
        centered: whether the mean is subtracted.
        everywhere: whether it normalizes over all places of an example too, as GroupNorm does.
        eps: added to the variance; None for the precision that it is computed in.
        least: where eps is 0, the least length that a vector is divided by, as in F.normalize: zeros stay zeros.
        weight, bias: names of its parameters, "" for none.
        offset: added to the weight.
        tensors: (name, dimension) of what is cut with the channels.
        counts: attributes that hold their number.
        then: names of its modules that follow, such as an activation, which treat each element alone.
        groups: of channels side by side that each have statistics of their own; all lose the same places.
        unbiased: whether its variance is divided by one less than the number of channels, as `x.std(-1)` is.
        outside: whether eps is added to the root of the variance: (x - m) / (std + eps).
        keeps_width: whether it goes on dividing by `width` when channels are gone, since it keeps that as a number.
    """

    width: int
    axis: int = -1
    centered: bool = True
    everywhere: bool = False
    eps: float | None = 1e-5
    least: float = _LEAST
    weight: str = ""
    bias: str = ""
    offset: float = 0.0
    tensors: tuple[tuple[str, int], ...] = ()
    counts: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    groups: int = 1
    unbiased: bool = False
    outside: bool = False
    keeps_width: bool = False

    def __call__(self, norm: nn.Module, x: Tensor, is_open: Tensor) -> Tensor:
        """What `norm` computes of x, [B, ...], with the statistics of the channels that are open, [width]."""
        shape = [1] * x.dim()
        shape[self.axis] = -1
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        share = is_open.to(values).view(self.groups, -1)
        count = torch.full_like(share[:, :1], self.width) if self.keeps_width else share.sum(1, keepdim=True)
        share = (share / count.clamp_min(torch.finfo(values.dtype).tiny)).view(shape)
        others = [d for d in range(1, x.dim()) if d != self.axis] if self.everywhere else []

        def mean(y: Tensor) -> Tensor:
            if self.groups > 1:
                each = (share * y).reshape(len(y), self.groups, -1, *y.shape[2:]).sum(2)
                each = each.mean(others, keepdim=True) if others else each
                return each.repeat_interleave(y.shape[1] // self.groups, 1)
            y = (share * y).sum(self.axis, keepdim=True)
            return y.mean(others, keepdim=True) if others else y

        values = values - mean(values) if self.centered else values
        if not is_open.requires_grad:
            # Nothing limits what a closed channel holds: where few are open, each norm would multiply it.
            values = values.masked_fill(share == 0.0, 0.0)
        variance = mean(values.square())
        if self.unbiased:
            beside = count - 1.0  # 0 for a lone channel, whose variance is not a number
            beside = beside.clamp_min(1e-3) if is_open.requires_grad else beside
            variance = variance * (count / beside).view([1] * x.dim())
        if self.outside:
            variance = (variance.sqrt() + (self.eps or 0.0)).square()
        elif self.eps == 0.0:
            each = count.detach().mean() * math.prod(x.shape[d] for d in others)
            variance = variance.clamp_min(self.least**2 / each.clamp_min(torch.finfo(values.dtype).eps))
        else:
            variance = variance + (torch.finfo(values.dtype).eps if self.eps is None else self.eps)
        y = (values * torch.rsqrt(variance)).to(x.dtype)
        if self.weight:
            y = y * (getattr(norm, self.weight) + self.offset).reshape(shape).to(x.dtype)
        y = y + getattr(norm, self.bias).reshape(shape).to(x.dtype) if self.bias else y
        for name in self.then:
            y = getattr(norm, name)(y)
        return y


Norm = ChannelNorm | ResponseNorm


class OpenStatistics(nn.Module):
    """The forward hook of a norm over channels, and its child: the gates that say which of them are open."""

    def __init__(self, kind: Norm, gates: list[nn.Module]) -> None:
        super().__init__()
        self.kind, self.gates = kind, nn.ModuleList(gates)

    def forward(
        self, norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """The norm's output; None, for what it computed itself, where all channels are open."""
        dtype = torch.float64 if output.dtype == torch.float64 else torch.float32
        every = torch.ones(self.kind.width, dtype=dtype, device=output.device)
        is_open = every
        for gate in self.gates:
            is_open = gate(is_open)
        x = lone_input(args, kwargs)
        if x is None or is_open is every:
            return None
        if not (is_open.requires_grad or torch.compiler.is_compiling() or bool((is_open != 1).any())):
            return None
        return self.kind(norm, x, is_open).to(output.dtype)


def add_gate(norm: nn.Module, kind: Norm | StandardizedWeight, gate: nn.Module) -> None:
    """Let a gate over the channels, of dimension 0, count in the statistics of a norm or a weight, in place."""
    statistics = norm._modules.get(STATISTICS)
    if isinstance(statistics, (OpenStatistics, OpenWeight)):
        statistics.gates.append(gate)
        return
    if isinstance(kind, StandardizedWeight):
        norm.add_module(STATISTICS, add_open_weight(norm, kind, gate))
        return
    statistics = OpenStatistics(kind, [gate])
    norm.add_module(STATISTICS, statistics)
    norm.register_forward_hook(statistics, with_kwargs=True, prepend=True)  # hooks of the user see its output


def remove_gates(norm: nn.Module) -> None:
    """Take the gates off a norm, in place."""
    statistics = getattr(norm, STATISTICS, None)
    if statistics is None:
        return
    delattr(norm, STATISTICS)
    for key in [k for k, hook in norm._forward_hooks.items() if hook is statistics]:
        del norm._forward_hooks[key]
        norm._forward_hooks_with_kwargs.pop(key, None)
        norm._forward_hooks_always_called.pop(key, None)
    for key in [k for k, hook in norm._forward_pre_hooks.items() if getattr(hook, "__self__", norm) is statistics]:
        del norm._forward_pre_hooks[key]


def close(norm: nn.Module, kind: Norm | StandardizedWeight, is_open: Tensor) -> None:
    """Leave channels out of a norm's or a weight's statistics for good, in place: [width] bool."""
    if isinstance(kind, StandardizedWeight):
        add_open_weight(norm, kind, Mask(is_open))
        return
    how = kind

    def hook(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Tensor) -> Tensor | None:
        x = lone_input(args, kwargs)
        return None if x is None else how(norm, x, is_open)

    norm.register_forward_hook(hook, with_kwargs=True, prepend=True)


def lone_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that a module was called with; None where there are several."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    return tensors[0] if len(tensors) == 1 else None


def group_norm(module: nn.GroupNorm) -> ChannelNorm:
    """A GroupNorm whose groups all lose the same places, so that the number of groups stays."""
    weight, bias = ("weight", "bias") if module.affine else ("", "")
    return ChannelNorm(
        module.num_channels, axis=1, everywhere=True, eps=module.eps, weight=weight, bias=bias,
        tensors=tuple((n, 0) for n in (weight, bias) if n), counts=("num_channels",), groups=module.num_groups,
    )  # fmt: skip


def channel_norm(module: nn.Module) -> Norm | None:
    """What a module computes if it is a norm over channels, measured on noise; None if it is not.

    Tried are torch's norms, and modules of other classes that hold nothing but a weight or a bias for each channel
    and a small number. What they are is known by what they compute, whatever their class is called.
    """
    forms = list(_forms(module))
    # In double precision: in a half one, what it computes is known too roughly to tell kinds apart. One that makes
    # single precision of its input, as `super().forward(x.float()).type(x.dtype)` does, runs in that alone.
    for dtype in (torch.float64, torch.float32) if forms else ():
        if kind := _measured(module, forms, dtype):
            return kind
    return None


def _measured(module: nn.Module, forms: list[Norm], dtype: torch.dtype) -> Norm | None:
    """The form that computes what a module does, in one precision."""
    probe = in_mode(copy.deepcopy(module)).to(dtype)
    for hooks in (probe._forward_hooks, probe._forward_pre_hooks):
        hooks.clear()  # what the user's do is followed by itself
    generator = torch.Generator().manual_seed(0)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
        for axis, shape in ((-1, (5,)), (-1, (2, 5)), (1, (3, 5)), (1, (4,)), (-1, (2, 3, 2)), (1, (2, 3, 2))):
            size = (2, *shape, forms[0].width) if axis == -1 else (2, forms[0].width, *shape)
            x = (torch.randn(size, generator=generator) + 0.5).to(device, dtype)
            large = 1e3 * x  # where eps does not count
            actual = _normalized(probe, large)
            for form in forms if actual is not None else ():
                if form.axis == axis and _agrees(form, probe, large, actual):
                    if isinstance(form, ResponseNorm) and form.bias:
                        getattr(probe, form.bias).zero_()  # beside which what eps changes is too small to be seen
                    for kind, scales in _with_eps(form, module, x):
                        if all(_agrees(kind, probe, s * x, _normalized(probe, s * x)) for s in scales):
                            return _when_cut(kind, probe, x)
    return None


def _when_cut(kind: Norm, norm: nn.Module, x: Tensor) -> Norm:
    """The kind with what it divides by once channels are gone, measured on every other one."""
    if not isinstance(kind, ChannelNorm) or kind.centered or isinstance(norm, _TORCHS):
        return kind
    kept, small = torch.arange(0, kind.width, 2, device=x.device), copy.deepcopy(norm)
    for name, dim in kind.tensors:
        setattr(small, name, nn.Parameter(getattr(norm, name).index_select(dim, kept)))
    for name in kind.counts:
        value = getattr(norm, name)
        setattr(small, name, len(kept) if isinstance(value, int) else type(value)([len(kept)]))
    actual, is_open = _normalized(small, x.index_select(kind.axis, kept)), torch.zeros(kind.width, device=x.device)
    other = dataclasses.replace(kind, keeps_width=True)
    left = other(norm, x, is_open.index_fill(0, kept, 1.0)).index_select(kind.axis, kept)
    same = actual is not None and bool((left - actual).abs().max() <= _EXACT * actual.abs().max())
    return other if same else kind


def _normalized(norm: nn.Module, x: Tensor) -> Tensor | None:
    """What a module puts out, where that is like x."""
    try:
        y = norm(x)
    except Exception:  # noqa: BLE001 - a user's norm may raise anything, of inputs that it is not for
        return None
    return y if isinstance(y, Tensor) and y.shape == x.shape else None


def _agrees(kind: Norm, norm: nn.Module, x: Tensor, actual: Tensor | None) -> bool:
    if actual is None:
        return False
    every = torch.ones(kind.width, device=x.device)
    return bool((kind(norm, x, every) - actual).abs().max() <= _EXACT * actual.abs().max())


def _with_eps(form: Norm, module: nn.Module, x: Tensor) -> Iterator[tuple[Norm, tuple[float, ...]]]:
    """What a norm of this form might compute, and factors of x at which it is compared: there eps counts."""
    kept = [v for v in vars(module).values() if isinstance(v, float) and 0.0 <= v < 0.1]
    small = list(dict.fromkeys([*filter(None, kept), *(() if isinstance(module, _TORCHS) else _EPSILONS)]))
    if isinstance(form, ResponseNorm):
        for eps in (*small, 0.0):
            yield dataclasses.replace(form, eps=eps), (1.0, eps or 1e-13)
        return
    for eps in small:
        yield dataclasses.replace(form, eps=eps), (1.0, math.sqrt(eps))
        if not isinstance(module, _TORCHS):
            yield dataclasses.replace(form, eps=eps, outside=True), (1.0, eps)
    if 0.0 in kept or not isinstance(module, _TORCHS):
        for least in small:
            below = 0.1 * least / float(x.norm())
            yield dataclasses.replace(form, eps=0.0, least=least), (1.0, 1e-3, below)
        yield dataclasses.replace(form, eps=0.0), (1.0, 1e-3, 0.0)
        yield dataclasses.replace(form, eps=0.0, least=0.0), (1.0, 1e-3)  # zeros become NaN
    if isinstance(module, nn.RMSNorm):
        yield dataclasses.replace(form, eps=None), (1.0, 1e-3)


def _forms(module: nn.Module) -> Iterator[Norm]:
    """What a module might compute but for eps, going by its parameters and attributes."""
    torchs = isinstance(module, _TORCHS)
    others = not type(module).__module__.startswith("torch.") and not isinstance(module, _NormBase)
    own = dict(module.named_parameters())
    then = tuple(name for name, _ in module.named_children())
    if not (torchs or (others and own)) or any(True for _ in module.buffers()) or any("." in name for name in own):
        return
    counts = tuple(n for n in ("normalized_shape", "num_channels", "dim", "hidden_size") if n in vars(module))
    sizes = {p.numel() for p in own.values()} or {math.prod(_numbers(getattr(module, n))) for n in counts[:1]}
    width = sizes.pop() if len(sizes) == 1 else 0
    if width < 2 or any(max(p.shape) != width for p in own.values()) or len(own) > 2:
        return
    counts = tuple(n for n in counts if _numbers(getattr(module, n)) == [width])
    tensors = tuple((name, list(p.shape).index(width)) for name, p in own.items())
    roles = _roles(list(own))
    for (weight, bias), centered, unbiased in itertools.product(roles, (True, False), (False, True)):
        if unbiased and (torchs or not centered):
            continue
        for offset, (axis, everywhere) in itertools.product(
            (0.0, 1.0) if weight else (0.0,), ((-1, False), (1, False), (1, True))
        ):
            yield ChannelNorm(
                width, axis, centered, everywhere, 0.0, weight=weight, bias=bias, offset=offset, tensors=tensors,
                counts=counts, then=then, unbiased=unbiased,
            )  # fmt: skip
    weight, bias = roles[0]
    for axis, residual in itertools.product((-1, 1), (True, False)) if others and weight and not then else ():
        yield ResponseNorm(width, axis, residual, weight=weight, bias=bias, tensors=tensors, counts=counts)


def _roles(names: list[str]) -> list[tuple[str, str]]:
    """Which of at most two parameters may be the weight, and which the bias; the likelier way first."""
    if not names:
        return [("", "")]
    first, second = (*names, "")[:2]
    ways = [(first, second), (second, first)]
    return ways[::-1] if first in _BIASES else ways


def _numbers(value: object) -> list[int]:
    return [int(v) for v in value] if isinstance(value, (tuple, list)) else [value] if isinstance(value, int) else []
