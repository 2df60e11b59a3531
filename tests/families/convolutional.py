"""Small convolutional networks, one for each family of layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm_act(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class Trunk(nn.Module):
    """stem -> blocks -> global average -> linear."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], features: int) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(features, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def plain() -> nn.Module:
    return Trunk(conv_norm_act(3, 8), [conv_norm_act(8, 12, stride=2), conv_norm_act(12, 6)], 6)


def no_norm() -> nn.Module:
    layers = [nn.Conv2d(8, 12, 3, padding=1), nn.GELU(), nn.Conv2d(12, 10, 3, stride=2), nn.LeakyReLU()]
    return Trunk(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish()), layers, 10)


def active_at_zero() -> nn.Module:
    """Activations with act(0) != 0: a closed channel still carries a constant."""
    layers = [
        nn.Conv2d(8, 12, 3, padding=1),
        nn.Sigmoid(),
        nn.Conv2d(12, 10, 3),
        nn.BatchNorm2d(10),
        nn.Softplus(),
    ]
    return Trunk(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Softplus()), layers, 10)


def prelu() -> nn.Module:
    layers = [nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.PReLU()]
    return Trunk(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8)), layers, 12)


def vgg() -> nn.Module:
    """BatchNorm, pooling, then flatten with 4 x 4 places left."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(6 * 16, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 5),
    )  # fmt: skip


class Basic(nn.Module):
    """conv -> conv beside a skip, with functional ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.short(x))


def resnet() -> nn.Module:
    return Trunk(conv_norm_act(3, 8), [Basic(8, 8), Basic(8, 12, 2), Basic(12, 12)], 12)


class Bottleneck(nn.Module):
    """1x1 -> 3x3 (grouped) -> 1x1 beside a skip, with one ReLU module for all places."""

    def __init__(self, inputs: int, inner: int, outputs: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


def bottlenecks() -> nn.Module:
    return Trunk(conv_norm_act(3, 8), [Bottleneck(8, 6, 16), Bottleneck(16, 6, 16)], 16)


def resnext() -> nn.Module:
    return Trunk(conv_norm_act(3, 8), [Bottleneck(8, 12, 16, 4), Bottleneck(16, 12, 16, 4)], 16)


class PreActivation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


def preact() -> nn.Module:
    end = [nn.BatchNorm2d(8), nn.ReLU()]
    return Trunk(nn.Conv2d(3, 8, 3, padding=1, bias=False), [PreActivation(8), PreActivation(8), *end], 8)


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.skip = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def mobilenet() -> nn.Module:
    return Trunk(conv_norm_act(3, 8), [InvertedResidual(8, 16, 6, 2), InvertedResidual(6, 12, 6)], 6)


def depthwise_separable() -> nn.Module:
    first = [conv_norm_act(8, 8, groups=8), conv_norm_act(8, 12, 1)]
    return Trunk(conv_norm_act(3, 8), [*first, conv_norm_act(12, 12, groups=12), conv_norm_act(12, 10, 1)], 10)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


def squeeze_excite() -> nn.Module:
    return Trunk(conv_norm_act(3, 8), [SqueezeExcite(8, 4), conv_norm_act(8, 10), SqueezeExcite(10, 3)], 10)


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet() -> nn.Module:
    end = [nn.BatchNorm2d(16), nn.ReLU()]
    return Trunk(nn.Conv2d(3, 6, 3, padding=1), [DenseLayer(6, 5), DenseLayer(11, 5), *end], 16)


class Inception(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one = conv_norm_act(inputs, 4, 1)
        self.three = nn.Sequential(conv_norm_act(inputs, 5, 1), conv_norm_act(5, 6, 3))
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_norm_act(inputs, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.pool(x)], dim=1)


def inception() -> nn.Module:
    return Trunk(conv_norm_act(3, 8), [Inception(8), conv_norm_act(13, 10, 1)], 10)


def group_norm() -> nn.Module:
    layers = [nn.Conv2d(8, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.ReLU()]
    return Trunk(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU()), layers, 12)


def instance_norm() -> nn.Module:
    layers = [nn.Conv2d(8, 12, 3, padding=1), nn.InstanceNorm2d(12, track_running_stats=True), nn.ReLU()]
    return Trunk(nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU()), layers, 12)


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 6, 3, dilation=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5),
    )  # fmt: skip


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def autoencoder() -> nn.Module:
    """An image in, an image out."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(12, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Upsample(scale_factor=2),
        nn.ConvTranspose2d(8, 3, 3, 1, 1), nn.Sigmoid(),
    )  # fmt: skip


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 5)
    )


class DropPath(nn.Module):
    """Stochastic depth: in training the branch is left out for a random part of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(x.shape[0], 1, 1, 1, device=x.device) < 0.8) / 0.8


class Skipping(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm_act(width, 10), nn.Dropout2d(0.3), nn.Conv2d(10, width, 3, padding=1))
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.body(x))


def stochastic_depth() -> nn.Module:
    return Trunk(conv_norm_act(3, 8), [Skipping(8), Skipping(8), nn.Dropout(0.2)], 8)
