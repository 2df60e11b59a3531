"""Published networks, written compactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: pool


def vgg16(head: Sequence[int], *, places: int) -> nn.Sequential:
    """Thirteen 3x3 convolutions with BatchNorm; `places` x `places` are left before the head."""
    layers: list[nn.Module] = []
    width = 3
    for outputs in VGG16:
        if outputs:
            layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            width = outputs
        else:
            layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    width *= places**2
    for features in head[:-1]:
        layers += [nn.Linear(width, features), nn.ReLU()]
        width = features
    return nn.Sequential(*layers, nn.Linear(width, head[-1]))


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)); the shortcut is a projection, or strided and padded with zero channels."""

    def __init__(self, body: nn.Module, *, project: nn.Module | None = None, pad: int = 0) -> None:
        super().__init__()
        self.body, self.project, self.pad = body, project, pad

    def forward(self, x: Tensor) -> Tensor:
        short = self.project(x) if self.project else x
        if self.pad:
            short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad // 2, self.pad // 2))
        return F.relu(self.body(x) + short)


def resnet56() -> nn.Sequential:
    """For 32 x 32 pixels; shortcuts without parameters."""
    layers: list[nn.Module] = [conv_norm(3, 16, 3), nn.ReLU()]
    width = 16
    for stage, outputs in enumerate((16, 32, 64)):
        for block in range(9):
            stride = 2 if stage and not block else 1
            body = nn.Sequential(conv_norm(width, outputs, 3, stride), nn.ReLU(), conv_norm(outputs, outputs, 3))
            layers.append(Residual(body, pad=outputs - width))
            width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet50() -> nn.Sequential:
    layers: list[nn.Module] = [conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, (inner, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            body = nn.Sequential(
                *(conv_norm(width, inner, 1), nn.ReLU()),
                *(conv_norm(inner, inner, 3, stride), nn.ReLU()),
                conv_norm(inner, 4 * inner, 1),
            )
            layers.append(Residual(body, project=None if block else conv_norm(width, 4 * inner, 1, stride)))
            width = 4 * inner
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class Inverted(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def mobilenet_v2() -> nn.Sequential:
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2), nn.ReLU6()]
    width = 32
    table = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expand, outputs, blocks, first in table:
        for block in range(blocks):
            inner, stride = expand * width, 1 if block else first
            parts: list[nn.Module] = [conv_norm(width, inner, 1), nn.ReLU6()] if expand > 1 else []
            parts += [conv_norm(inner, inner, 3, stride, groups=inner), nn.ReLU6(), conv_norm(inner, outputs, 1)]
            body = nn.Sequential(*parts)
            layers.append(Inverted(body) if block else body)
            width = outputs
    layers += [conv_norm(width, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(1280, 1000))
