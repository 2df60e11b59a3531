"""The operations of cell spaces, from maps [B, C, H, W] to maps [B, C, ceil(H / stride), ceil(W / stride)].

No operation changes its input in place, so candidates may share one. BatchNorm has torch's momentum and eps, as
published. Source: DARTS (arXiv 1806.09055), the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archgrad.errors import ConfigError


class Shared:
    """A map [B, C, H, W] that several operations read: the first layer that they have in common runs once.

    Args:
        x: the map.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._outputs: dict[tuple[type, object], Tensor] = {}

    def through(self, layer: nn.Module) -> Tensor:
        """The output of a layer without weights; layers of the same type and stride share it."""
        key = type(layer), getattr(layer, "stride", None)
        if key not in self._outputs:
            self._outputs[key] = layer(self.x)
        return self._outputs[key]


def _through(x: Tensor | Shared, layer: nn.Module) -> Tensor:
    y: Tensor = x.through(layer) if isinstance(x, Shared) else layer(x)
    return y


class Operation(nn.Sequential):
    """Layers in sequence; the first has no weights, so that operations on a `Shared` map share its output."""

    def forward(self, x: Tensor | Shared) -> Tensor:
        """[B, C, H, W] to [B, C, ceil(H / stride), ceil(W / stride)]."""
        first, *others = self
        y = _through(x, first)
        for layer in others:
            y = layer(y)
        return y

    @property
    def scaling_norm(self) -> str | None:
        """Name of the BatchNorm that is the last layer, if it is one."""
        return str(len(self) - 1) if isinstance(self[-1], nn.BatchNorm2d) else None


class Weightless(nn.Module):
    """One layer without weights, on a map that may be `Shared`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor | Shared) -> Tensor:
        """The layer's output."""
        return _through(x, self.layer)


class StridedReLU(nn.Module):
    """ReLU of every `stride`-th pixel.

    A dilated convolution of the same stride reads only these pixels, and is an ordinary convolution of them. In that
    form its backward pass took a tenth of the time on CPU.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, ceil(H / stride), ceil(W / stride)]."""
        return F.relu(x[:, :, :: self.stride, :: self.stride])


def relu_conv_norm(
    inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, affine: bool = True
) -> nn.Sequential:
    """ReLU, convolution, BatchNorm: [B, inputs, H, W] to [B, outputs, ceil(H / stride), ceil(W / stride)]."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs, affine=affine),
    )


def depthwise_separable(
    channels: int, kernel: int, *, stride: int = 1, dilation: int = 1, affine: bool = True
) -> Operation:
    """ReLU, depthwise convolution, 1x1 convolution, BatchNorm; with dilation 2, DARTS's "dil_conv"."""
    relu: nn.Module = nn.ReLU()
    if stride == dilation > 1:
        relu, stride, dilation = StridedReLU(stride), 1, 1
    return Operation(
        relu,
        nn.Conv2d(
            *(channels, channels, kernel, stride, dilation * (kernel // 2), dilation),
            groups=channels,
            bias=False,
        ),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    )


def sep_conv(channels: int, kernel: int, *, stride: int = 1, affine: bool = True) -> Operation:
    """Two `depthwise_separable` in sequence, the first with the stride; DARTS's "sep_conv"."""
    first = depthwise_separable(channels, kernel, stride=stride, affine=affine)
    return Operation(*first, *depthwise_separable(channels, kernel, affine=affine))


class FactorizedReduce(nn.Module):
    """Halves a map without losing pixels: two strided 1x1 convolutions, one on the map shifted by a pixel.

        y = norm(concat(first(relu(x)), second(shifted relu(x))))

    [B, inputs, H, W] to [B, outputs, ceil(H / 2), ceil(W / 2)]. The shifted map ends in zeros, which are read only
    where H or W is odd; the published form is not defined there.

    Raises:
        ConfigError: fewer than 2 output channels.
    """

    scaling_norm = "norm"

    def __init__(self, inputs: int, outputs: int, *, affine: bool = True) -> None:
        super().__init__()
        if outputs < 2:
            raise ConfigError(f"a factorized reduction makes {outputs} channels of two halves; give 2 or more")
        self.relu = nn.ReLU()
        # The map is strided before the convolutions: oneDNN's gradient of a strided 1x1 convolution with fewer than
        # 8 channels in channels_last writes beyond its memory (torch 2.13).
        self.first = nn.Conv2d(inputs, outputs - outputs // 2, 1, bias=False)
        self.second = nn.Conv2d(inputs, outputs // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x: Tensor | Shared) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, ceil(H / 2), ceil(W / 2)]."""
        y = _through(x, self.relu)
        shifted = F.pad(y, (-1, 1, -1, 1))
        halves = self.first(y[:, :, ::2, ::2]), self.second(shifted[:, :, ::2, ::2])
        return self.norm(torch.cat(halves, dim=1))  # type: ignore[no-any-return]


class Zero(nn.Module):
    """No connection: zeros [B, C, ceil(H / stride), ceil(W / stride)], even where the input is NaN."""

    always_zero = True

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor | Shared) -> Tensor:
        """Zeros of the strided shape."""
        x = x.x if isinstance(x, Shared) else x
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine)


_BUILDERS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "none": lambda _, stride, __: Zero(stride),
    "max_pool_3x3": lambda _, stride, __: nn.MaxPool2d(3, stride, 1),
    "avg_pool_3x3": lambda _, stride, __: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
    "skip_connect": _skip,
    "sep_conv_3x3": lambda channels, stride, affine: sep_conv(channels, 3, stride=stride, affine=affine),
    "sep_conv_5x5": lambda channels, stride, affine: sep_conv(channels, 5, stride=stride, affine=affine),
    "sep_conv_7x7": lambda channels, stride, affine: sep_conv(channels, 7, stride=stride, affine=affine),
    "dil_conv_3x3": lambda channels, stride, affine: depthwise_separable(
        channels, 3, stride=stride, dilation=2, affine=affine
    ),
    "dil_conv_5x5": lambda channels, stride, affine: depthwise_separable(
        channels, 5, stride=stride, dilation=2, affine=affine
    ),
}
LABELS = tuple(_BUILDERS)


def operation(
    label: str, channels: int, *, stride: int = 1, affine: bool = False, pool_norm: bool = False
) -> nn.Module:
    """The operation of a published label: [B, channels, H, W] to [B, channels, ceil(H / stride), ceil(W / stride)].

    Args:
        label: one of `LABELS`.
        channels: channels in and out.
        stride: 1 or 2.
        affine: whether BatchNorm has a scale and a shift; supernets have none.
        pool_norm: BatchNorm without scale and shift behind a pool, as in DARTS's supernet.

    Raises:
        ConfigError: another label or stride, or too few channels.
    """
    if label not in _BUILDERS:
        raise ConfigError(f"no operation is labelled {label!r}; there are {', '.join(LABELS)}")
    if stride not in (1, 2) or channels < 1:
        raise ConfigError(
            f"operation {label!r}: stride {stride}, {channels} channels; give stride 1 or 2, 1 channel up"
        )
    module = _BUILDERS[label](channels, stride, affine)
    if pool_norm and isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return Operation(module, nn.BatchNorm2d(channels, affine=False))
    return module
